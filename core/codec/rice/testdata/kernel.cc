// Decodes rice chunks with the code of kernels/rice.cuh, built for the CPU, one
// thread of a block after the other.
//
// Reads requests from standard input until it ends; 32-bit words, little-endian:
// word bytes, words, bytes of tables, bytes of data, deltas, whether to decode in
// place, by how many words base and target are off 16 bytes (16 is added if there
// is no base), the stride and the start of the order of the threads. Then the
// tables, the base and the data, each padded to 4 bytes. Answers with 1 or 0 for
// well formed or not, and the target. Every buffer is as large as what it holds.
//
// With -DQUANT=quant::kBF16 or kF32, in place of the base come a QuantBase, its
// codes and its scales.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "rice.cuh"

static bool read_words(void* p, size_t n) { return fread(p, 4, n, stdin) == n; }

// Memory of exactly n bytes, at `off` behind a multiple of 16.
struct Exact {
  char* start;
  char* p;
  Exact(size_t n, size_t off) {
    start = static_cast<char*>(malloc(n + off ? n + off : 1));
    p = start + off;
  }
  ~Exact() { free(start); }
};

static std::vector<char> read_padded(size_t bytes) {
  std::vector<char> v((bytes + 3) / 4 * 4);
  if (!read_words(v.data(), v.size() / 4)) exit(1);
  return v;
}

enum Field { kWordBytes, kWords, kTableBytes, kDataBytes, kDeltas, kInPlace, kOff, kStride, kFirst, kFields };

// Runs f as a block of threads, and returns what it returns.
template <typename F>
static bool run(const u32* fields, F f) {
#ifdef __CUDACC__
  struct Thread {
    pthread_t thread;
    u32 index;
    F* f;
    bool good;
  };
  static Thread threads[rice::kThreads];
  block.init(rice::kThreads);
  for (Warp& w : warps) w.barrier.init(32);
  for (u32 t = 0; t < rice::kThreads; t++) {
    threads[t].index = t;
    threads[t].f = &f;
    auto start = [](void* p) -> void* {
      Thread* self = static_cast<Thread*>(p);
      threadIdx.x = self->index;
      self->good = (*self->f)();
      return nullptr;
    };
    if (pthread_create(&threads[t].thread, nullptr, start, &threads[t]) != 0) abort();
  }
  for (Thread& t : threads) {
    pthread_join(t.thread, nullptr);
    if (t.good != threads[0].good) abort();
  }
  return threads[0].good;
#else
  host_stride = fields[kStride];
  host_first = fields[kFirst];
  return f();
#endif
}

template <typename Word>
static void answer(const u32* f) {
  const size_t bytes = f[kWords] * sizeof(Word), off = f[kOff] % 16 * sizeof(Word);
  const std::vector<char> tables = read_padded(f[kTableBytes]);
#ifdef QUANT
  quant::QuantBase q;
  if (!read_words(&q, sizeof(q) / 4)) exit(1);
  const std::vector<char> base(bytes), packed_words = read_padded(q.packed_bytes);
  const std::vector<char> scales = read_padded((q.elems + q.group - 1) / q.group * (q.scale_type == quant::kF32 ? 4 : 2));
  Exact packed(q.packed_bytes, 0);
  memcpy(packed.p, packed_words.data(), q.packed_bytes);
  q.packed = reinterpret_cast<const u32*>(packed.p), q.scale = scales.data(), q.zero = nullptr;
#else
  const std::vector<char> base = read_padded(bytes);
#endif
  const std::vector<char> data = read_padded(f[kDataBytes]);
  Exact t(tables.size(), 0), b(bytes, off), dst(bytes, off), d(f[kDataBytes], 0);
  memcpy(t.p, tables.data(), tables.size());
  if (bytes > 0) memcpy(b.p, base.data(), bytes);
  memset(dst.p, 0xa5, bytes);
  if (f[kDataBytes] > 0) memcpy(d.p, data.data(), f[kDataBytes]);
  rice::Block<Word> chunk;
  chunk.base = f[kOff] >= 16 ? nullptr : reinterpret_cast<const Word*>(b.p);
  chunk.dst = reinterpret_cast<Word*>(f[kInPlace] ? b.p : dst.p);
  chunk.words = f[kWords];
  chunk.aligned = (((u64)b.p | (u64)dst.p) & 15) == 0;
#ifdef QUANT
  chunk.base = nullptr;
  chunk.quantised = &q;
  chunk.first = 0;
#endif
  auto* shared = new rice::Shared<Word>;
  memset(static_cast<void*>(shared), 0xcd, sizeof(*shared));
  const u32 good = run(f, [&] {
    return rice::decode_chunk(*shared, chunk, *reinterpret_cast<const rice::Tables*>(t.p), reinterpret_cast<const u32*>(d.p),
                              f[kDataBytes] / 4, f[kDeltas]);
  });
  delete shared;
  std::vector<char> out((bytes + 3) / 4 * 4);
  memcpy(out.data(), chunk.dst, bytes);
  fwrite(&good, 4, 1, stdout);
  fwrite(out.data(), 4, out.size() / 4, stdout);
}

int main() {
  u32 f[kFields];
  while (read_words(f, kFields)) {
    switch (f[kWordBytes]) {
      case 2: answer<u16>(f); break;
      case 4: answer<u32>(f); break;
#ifndef QUANT
      case 1: answer<u8>(f); break;
      case 8: answer<u64>(f); break;
#endif
      default: return 1;
    }
  }
  return 0;
}
