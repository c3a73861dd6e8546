// threads.cuh - code of a whole thread block that runs on the host too.
//
// Such code is a sequence of phases. A phase is the body of EACH_THREAD or
// EACH_WARP (with EACH_LANE in it), between barriers; what a thread keeps from one phase to the next is
// Private. On the host a phase is a loop over the threads, whose order can be
// changed: a result that depends on it shows a missing barrier. A program for the
// host that defines __CUDACC__, and what of CUDA is used here, can also run the
// threads as threads.
#pragma once

#include "common.cuh"

#ifdef __CUDACC__

// Code that is called, not inlined.
#define TPDE_SLOW __device__ __noinline__

#define EACH_THREAD(t, threads) if (const u32 t = threadIdx.x; true)
#define EACH_WARP(w, warps) if (const u32 w = threadIdx.x / 32; true)
#define EACH_LANE(l) if (const u32 l = threadIdx.x & 31; true)
TPDE_FN void barrier() { __syncthreads(); }

#else

#define TPDE_SLOW inline

inline u32 host_stride = 1, host_first = 0;  // of the order; the stride is odd
inline u32 host_turn(u32 turn, u32 n) { return (turn * host_stride + host_first) % n; }  // n is a power of two
#define EACH_THREAD(t, threads) for (u32 turn_ = 0, t = host_turn(0, threads); turn_ < (threads); t = host_turn(++turn_, threads))
#define EACH_WARP(w, warps) EACH_THREAD(w, warps)
#define EACH_LANE(l) for (u32 l = 0; l < 32; l++)
inline void barrier() {}

#endif

// A variable of each thread.
template <typename T, u32 Threads>
struct Private {
#ifdef __CUDACC__
  T value;
  TPDE_FN T& operator[](u32) { return value; }
#else
  T value[Threads];
  T& operator[](u32 t) { return value[t]; }
#endif
};

// Waits for the threads of the warp.
TPDE_FN void sync_warp() {
#ifdef __CUDACC__
  __syncwarp();
#endif
}

// Whether this thread is the one that writes for its warp.
TPDE_FN bool is_leader() {
#ifdef __CUDACC__
  return (threadIdx.x & 31) == 0;
#else
  return true;
#endif
}

// The number of ones of x.
TPDE_FN u32 count_ones(u32 x) {
#ifdef __CUDA_ARCH__
  return __popc(x);
#else
  return __builtin_popcount(x);
#endif
}

// Adds to a sum that threads share, and returns what it was.
TPDE_FN u32 add_shared(u32* sum, u32 v) {
#ifdef __CUDA_ARCH__
  return atomicAdd(sum, v);
#else
  return __atomic_fetch_add(sum, v, __ATOMIC_RELAXED);
#endif
}

// Raises a flag that threads share.
TPDE_FN void raise(u32* flag) {
#ifdef __CUDA_ARCH__
  atomicOr(flag, 1);
#else
  __atomic_store_n(flag, 1u, __ATOMIC_RELAXED);
#endif
}

// Whether a flag is raised, which others may do at any time. At least one thread
// of a warp sees what the warp has raised.
TPDE_FN bool is_raised(u32* flag) {
#ifdef __CUDA_ARCH__
  __syncwarp();
  return is_leader() && atomicOr(flag, 0) != 0;
#else
  return __atomic_load_n(flag, __ATOMIC_RELAXED) != 0;
#endif
}

#ifdef __CUDACC__
// Inclusive prefix sum over the warp.
TPDE_FN u32 scan_warp(u32 v) {
  const u32 lane = threadIdx.x & 31;
#pragma unroll
  for (u32 d = 1; d < 32; d *= 2) {
    const u32 up = __shfl_up_sync(0xffffffffu, v, d);
    if (lane >= d) v += up;
  }
  return v;
}
#endif

// Replaces v by the sum of those of the threads before, and returns the sum of
// all. `sums` is shared memory, a word for each warp. It holds barriers.
template <u32 Threads>
TPDE_FN u32 scan_block(Private<u32, Threads>& v, u32* sums) {
#ifdef __CUDACC__
  const u32 lane = threadIdx.x & 31, warp = threadIdx.x / 32;
  const u32 sum = scan_warp(v.value);
  barrier();  // `sums` may still be read
  if (lane == 31) sums[warp] = sum;
  barrier();
  u32 before = sum - v.value, all = 0;
#pragma unroll
  for (u32 w = 0; w < Threads / 32; w++) {
    const u32 n = sums[w];
    all += n;
    if (w < warp) before += n;
  }
  v.value = before;
  return all;
#else
  u32 all = 0;
  for (u32 t = 0; t < Threads; t++) {
    const u32 n = v[t];
    v[t] = all;
    all += n;
  }
  return all;
#endif
}
