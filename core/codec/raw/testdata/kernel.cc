// Rebuilds tensors with kernels/raw.cu as it is, built for the CPU with -DWORD=u16
// and the like. A thread of a block is a fiber: they run one after the other, in an
// order that is asked for, each until it waits at a barrier or for its warp. A
// result that depends on the order shows a missing barrier. With
// -include ../../rice/testdata/threads.h they are threads, for -fsanitize=thread.
//
// Reads launches from standard input until it ends: struct Launch, then for each
// tensor struct Request, its records, blob and base, the last two padded to 4
// bytes; with -DQUANT, in place of the base come its QuantBase, codes, scales and
// zero points, padded alike. Answers, for each tensor, with the status of each
// chunk and the target, padded. Everything lies in memory of exactly its size, so
// that the sanitizers see what goes further.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

const unsigned kHostThreads = 256;

#ifdef __CUDACC__  // threads.h
static int __syncthreads_and(int v) { return !__syncthreads_or(!v); }
#else
#include <ucontext.h>

#define __CUDACC__
#define __device__
#define __forceinline__ inline
#define __noinline__

struct Index {
  unsigned x;
};
static Index threadIdx;

enum State { kReady, kAtBarrier, kInWarp, kDone };
struct Fiber {
  ucontext_t context;
  std::vector<char> stack;
  State state;
  unsigned value;  // put in, and got
};
static Fiber fibers[kHostThreads];
static ucontext_t scheduler;

static unsigned wait_for(State state, unsigned value) {
  Fiber& f = fibers[threadIdx.x];
  f.state = state;
  f.value = value;
  swapcontext(&f.context, &scheduler);
  return f.value;
}

static inline void __syncthreads() { wait_for(kAtBarrier, 0); }
static inline int __syncthreads_and(int v) { return wait_for(kAtBarrier, v != 0); }
static inline unsigned __ballot_sync(unsigned, bool v) { return wait_for(kInWarp, v); }

// Lets n fibers from `first` on pass, if all of them wait in this state.
static bool release(unsigned first, unsigned n, State state) {
  unsigned all = 1, ballot = 0;
  for (unsigned t = first; t < first + n; t++) {
    if (fibers[t].state != state) return false;
    all &= fibers[t].value;
    ballot |= fibers[t].value << t % 32;
  }
  for (unsigned t = first; t < first + n; t++) {
    fibers[t].state = kReady;
    fibers[t].value = state == kInWarp ? ballot : all;
  }
  return true;
}
#endif

#define __global__
#define __shared__ static
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
#define __grid_constant__

struct BlockIndex {
  unsigned x;
};
static BlockIndex blockIdx;
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }

#include "raw.cu"

struct Launch {
  u32 items;
  u32 stride, first;  // of the order of fibers; the stride is odd
};

struct Request {
  u32 words, chunk_words, chunks, blob_bytes;
  u32 in_place, no_base, base_off, dst_off;  // by how many words base and dst are off 16 bytes
};

static void read_exactly(void* p, size_t n) {
  u32 padding = 0;
  if (fread(p, 1, n, stdin) != n || fread(&padding, 1, -n & 3, stdin) != (-n & 3)) exit(1);
}

// n bytes that lie `off` bytes behind a multiple of 16, which malloc gives.
struct Memory {
  std::unique_ptr<u8, void (*)(void*)> all;
  u8* p;
  size_t n;
  Memory(size_t n, size_t off) : all(static_cast<u8*>(malloc(n + off ? n + off : 1)), free), p(all.get() + off), n(n) {}
  void read() { read_exactly(p, n); }
  void write() {
    const u32 zero = 0;
    fwrite(p, 1, n, stdout);
    fwrite(&zero, 1, -n & 3, stdout);
  }
};

static void run_block(const Batch& batch, const Launch& l) {
#ifdef _UCONTEXT_H
  for (u32 t = 0; t < kHostThreads; t++) {
    Fiber& f = fibers[t];
    f.stack.resize(64 << 10);
    f.state = kReady;
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.data();
    f.context.uc_stack.ss_size = f.stack.size();
    f.context.uc_link = &scheduler;
    static const Batch* arguments;
    arguments = &batch;
    makecontext(&f.context, +[] {
      raw_decode(*arguments);
      fibers[threadIdx.x].state = kDone;
    }, 0);
  }
  for (u32 done = 0; done < kHostThreads;) {
    bool going = false;
    for (u32 turn = 0; turn < kHostThreads; turn++) {
      threadIdx.x = (turn * l.stride + l.first) % kHostThreads;
      Fiber& f = fibers[threadIdx.x];
      if (f.state != kReady) continue;
      going = true;
      swapcontext(&scheduler, &f.context);
      done += f.state == kDone;
    }
    for (u32 w = 0; w < kHostThreads; w += 32) release(w, 32, kInWarp);
    release(0, kHostThreads, kAtBarrier);
    if (!going) abort();  // some wait for what others have passed by
  }
#else
  struct Thread {
    pthread_t thread;
    u32 index;
    const Batch* batch;
  };
  static Thread threads[kHostThreads];
  block.init(kHostThreads);
  for (Warp& w : warps) w.barrier.init(32);
  for (u32 t = 0; t < kHostThreads; t++) {
    threads[t].index = t;
    threads[t].batch = &batch;
    auto start = [](void* p) -> void* {
      threadIdx.x = static_cast<Thread*>(p)->index;
      raw_decode(*static_cast<Thread*>(p)->batch);
      return nullptr;
    };
    if (pthread_create(&threads[t].thread, nullptr, start, &threads[t]) != 0) abort();
  }
  for (Thread& t : threads) pthread_join(t.thread, nullptr);
#endif
}

struct Tensor {
  Request r;
  std::vector<Memory> all;  // in the order of Item
#ifdef QUANT
  std::vector<Memory> parts;
#endif

  Memory& dst() { return all[r.in_place ? 0 : 1]; }

  void read(Item& item, u32& units) {
    read_exactly(&r, sizeof(r));
    const size_t bytes = r.words * sizeof(WORD);
#ifdef QUANT
    all.emplace_back(sizeof(quant::QuantBase), 0);
#else
    all.emplace_back(bytes, r.base_off * sizeof(WORD));
#endif
    all.emplace_back(bytes, r.dst_off * sizeof(WORD));
    all.emplace_back(r.blob_bytes, 0);
    all.emplace_back(r.chunks * sizeof(Record), 0);
    all.emplace_back(r.chunks * 4, 0);
    all[3].read();
    all[2].read();
    all[0].read();
    memset(all[1].p, 0xa5, bytes);
    memset(all[4].p, 0xa5, all[4].n);
#ifdef QUANT
    quant::QuantBase& q = *reinterpret_cast<quant::QuantBase*>(all[0].p);
    const size_t groups = (q.elems + q.group - 1) / q.group;
    parts.emplace_back(q.packed_bytes, 0);
    parts.emplace_back(groups * (q.kind == quant::kLinear && q.scale_type != quant::kF32 ? 2 : 4), 0);
    parts.emplace_back(q.zero ? groups : 0, 0);
    for (Memory& m : parts) m.read();
    q.packed = reinterpret_cast<const u32*>(parts[0].p), q.scale = parts[1].p;
    if (q.zero) q.zero = parts[2].p;
#endif
    item.base = r.no_base ? nullptr : all[0].p;
    item.dst = dst().p;
    item.blob = all[2].p;
    item.records = reinterpret_cast<const Record*>(all[3].p);
    item.tables = nullptr;
    item.status = reinterpret_cast<u32*>(all[4].p);
    item.chunks = r.chunks;
    item.first_block = units;
    const u64 chunk_bytes = (u64)min_u32(r.chunk_words, r.words) * sizeof(WORD);
    units += r.chunks * (u32)((chunk_bytes + kTileBytes - 1) / kTileBytes);  // as cut.go says
  }
};

int main() {
  Launch l;
  while (fread(&l, sizeof(l), 1, stdin) == 1) {
    static Batch batch;
    std::vector<Tensor> tensors(l.items);
    memset(&batch, 0xcd, sizeof(batch));
    batch.items = l.items;
    batch.units = 0;
    for (u32 i = 0; i < l.items; i++) tensors[i].read(batch.item[i], batch.units);
    for (u32 block = 0; block < batch.units; block++) {
      blockIdx.x = l.first & 1 ? batch.units - 1 - block : block;
      run_block(batch, l);
    }
    for (Tensor& t : tensors) {
      t.all[4].write();
      t.dst().write();
    }
  }
  return 0;
}
