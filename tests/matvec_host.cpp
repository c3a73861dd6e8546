// The kernels of kernels/matvec.cu, matvec_any.cu and dequantise.cu as they are,
// compiled for the host, where every thread of a block is a thread: what
// test_matvec_host.py holds against float64. Compiled with -DTYPE, and -DKIND and
// -DBITS for matvec.cu.
#include <pthread.h>

#include <cmath>
#include <cstring>
#include <thread>
#include <vector>

#define __CUDACC__
#define __device__
#define __global__
#define __forceinline__ inline
#define __shared__ static
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
#define __grid_constant__

struct Index {
  unsigned x, y;
};
static thread_local Index threadIdx;
static Index blockIdx;
struct uint4 {
  unsigned x, y, z, w;
};
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

static const unsigned kHostThreads = 256;
static pthread_barrier_t all, warps[kHostThreads / 32];
static inline void __syncthreads() { pthread_barrier_wait(&all); }

// What the lanes of a warp show each other.
static float shown[kHostThreads];
static unsigned fragment[kHostThreads][6];

static inline void sync_host_warp() { pthread_barrier_wait(&warps[threadIdx.x / 32]); }

static inline float __shfl_xor_sync(unsigned, float v, unsigned d) {
  shown[threadIdx.x] = v;
  sync_host_warp();
  const float other = shown[threadIdx.x ^ d];
  sync_host_warp();
  return other;
}

template <unsigned kType>
static void host_mma(float* sums, unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1);

#include KERNEL

// mma.m16n8k16 as PTX describes it: element k of row r of a is in lane
// 4 * (r % 8) + k % 8 / 2, register r / 8 + 2 * (k / 8), half k % 2; element k of
// column c of b is in lane 4 * c + k % 8 / 2, register k / 8, half k % 2.
template <unsigned kType>
static void host_mma(float* sums, unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
  const unsigned mine[6] = {a0, a1, a2, a3, b0, b1}, lane = threadIdx.x % 32, warp = threadIdx.x - lane;
  memcpy(fragment[threadIdx.x], mine, sizeof mine);
  sync_host_warp();
  for (unsigned i = 0; i < 4; i++) {
    const unsigned row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    double sum = sums[i];
    for (unsigned k = 0; k < 16; k++) {
      const unsigned a = fragment[warp + 4 * (row % 8) + k % 8 / 2][row / 8 + 2 * (k / 8)] >> k % 2 * 16 & 0xffff;
      const unsigned b = fragment[warp + 4 * column + k % 8 / 2][4 + k / 8] >> k % 2 * 16 & 0xffff;
      const float x = kType == quant::kBF16 ? float_of(a << 16) : quant::widen_f16((u16)a);
      const float y = kType == quant::kBF16 ? float_of(b << 16) : quant::widen_f16((u16)b);
      sum += (double)x * y;
    }
    sums[i] = (float)sum;
  }
  sync_host_warp();
}

// Runs a kernel in blocks of threads.
template <typename Kernel, typename Arguments>
static void launch(Kernel kernel, unsigned blocks, const Arguments& arguments) {
  pthread_barrier_init(&all, nullptr, kHostThreads);
  for (auto& warp : warps) pthread_barrier_init(&warp, nullptr, 32);
  for (unsigned block = 0; block < blocks; block++) {
    blockIdx.x = block;
    std::vector<std::thread> threads;
    for (unsigned t = 0; t < kHostThreads; t++) {
      threads.emplace_back([&, t] {
        threadIdx.x = t;
        kernel(arguments);
      });
    }
    for (auto& thread : threads) thread.join();
  }
}

extern "C" void run(const void* arguments, unsigned blocks) {
#ifdef DEQUANTISE
  launch(dequantise, blocks, *static_cast<const Dequantise*>(arguments));
#elif defined(KIND)
  launch(matvec_tiles, blocks, *static_cast<const matvec::Matvec*>(arguments));
#else
  launch(matvec_any, blocks, *static_cast<const matvec::Matvec*>(arguments));
#endif
}
