// Included before kernel.cc, this makes it run a thread for each thread of a
// block, which exchange what the threads of a warp do, and wait for each other at
// barriers: what a GPU runs, but for single instructions. Built with
// -fsanitize=thread instead of address, it shows each barrier that is missing.
#pragma once

#include <pthread.h>

struct ThreadIndex {
  unsigned x;
};
static thread_local ThreadIndex threadIdx;

struct Barrier {
  pthread_barrier_t b;
  void init(unsigned n) { pthread_barrier_init(&b, nullptr, n); }
  void wait() { pthread_barrier_wait(&b); }
};

static Barrier block;
static struct Warp {
  Barrier barrier;
  unsigned slot[32];
} warps[32];

#define __CUDACC__
#define __device__
#define __forceinline__ inline
#define __noinline__

static Warp& warp() { return warps[threadIdx.x / 32]; }
static void __syncthreads() { block.wait(); }
static int __syncthreads_or(int v) {
  static int any;
  if (v) __atomic_store_n(&any, 1, __ATOMIC_RELAXED);
  block.wait();
  const int r = __atomic_load_n(&any, __ATOMIC_RELAXED);
  block.wait();
  if (threadIdx.x == 0) __atomic_store_n(&any, 0, __ATOMIC_RELAXED);
  block.wait();
  return r;
}
static void __syncwarp() { warp().barrier.wait(); }
static int __ffs(unsigned x) { return __builtin_ffs(x); }

// Calls f with what the lanes of the warp put in.
template <typename F>
static unsigned exchange(unsigned v, F f) {
  warp().slot[threadIdx.x & 31] = v;
  __syncwarp();
  const unsigned r = f(warp().slot, threadIdx.x & 31);
  __syncwarp();
  return r;
}

static unsigned __shfl_up_sync(unsigned, unsigned v, unsigned d) {
  return exchange(v, [&](unsigned* all, unsigned lane) { return lane >= d ? all[lane - d] : v; });
}

static unsigned __shfl_sync(unsigned, unsigned v, unsigned from) {
  return exchange(v, [&](unsigned* all, unsigned) { return all[from & 31]; });
}

static unsigned __ballot_sync(unsigned, bool p) {
  return exchange(p, [](unsigned* all, unsigned) {
    unsigned r = 0;
    for (unsigned i = 0; i < 32; i++) r |= all[i] << i;
    return r;
  });
}
