// scatter.cu - out = base with values[i] added at element indices[i], indices
// strictly increasing: what torch.Tensor.scatter_add_ does on unique indices,
// in one pass.
//
// Compiled once for each dtype: -DDTYPE=F32|F16|BF16|F64. Sums are those of
// torch: F16 and BF16 in float, rounded to nearest even.
#include "common.cuh"
#include "floats.cuh"

namespace {

typedef DTYPE Value;
typedef Value::Bits Bits;

const u32 kTileBytes = 16384;
const u32 kTile = kTileBytes / sizeof(Bits);  // elements of a tile in shared memory
const u32 kThreads = 256;
const u32 kGroups = kTileBytes / 16 / kThreads;  // 16-byte groups that a thread copies

// The first of indices[0..n) that is not below `element`, found by one warp:
// every step narrows the range to a 32nd.
__device__ u64 lower_bound(const long long* indices, u64 n, u64 element, u32 lane) {
  u64 lo = 0, len = n;  // the answer is in [lo, lo + len]
  while (len > 0) {
    const u64 step = (len + 31) / 32;
    const u64 at = lo + (lane + 1) * step - 1;
    const bool below = at < lo + len && (u64)indices[at] < element;
    const u32 steps = __popc(__ballot_sync(0xffffffffu, below));
    const u64 skip = steps * step;
    lo += skip;
    len = len > skip ? (len - skip < step ? len - skip : step - 1) : 0;
  }
  return lo;
}

}  // namespace

// One thread block a tile of kTile elements. `bad` is set to 1 where indices
// are out of range or not increasing; the sums that they name are left out.
// launch: threads=256 elements_per_block=16384/sizeof(Bits)
extern "C" __global__ void __launch_bounds__(kThreads)
    scatter_add(Bits* dst, const Bits* base, u64 elements, const long long* indices, const Bits* values, u64 deltas,
                u32* bad) {
  await_stream();
  __shared__ __align__(16) Bits tile[kTile];
  __shared__ u64 range[2];
  const u64 first = (u64)blockIdx.x * kTile;
  const u32 count = (u32)(elements - first < kTile ? elements - first : kTile);
  const u32 lane = threadIdx.x & 31, warp = threadIdx.x / 32;
  const bool aligned = ((reinterpret_cast<u64>(dst) | reinterpret_cast<u64>(base)) & 15) == 0 && count == kTile;
  // The loads of the base are on their way while two warps search.
  uint4 group[kGroups];
  if (aligned) {
    const uint4* from = reinterpret_cast<const uint4*>(base + first);
#pragma unroll
    for (u32 k = 0; k < kGroups; k++) group[k] = from[threadIdx.x + k * kThreads];
  }
  if (warp < 2) {
    u64 at = lower_bound(indices, deltas, warp == 0 ? first : first + count, lane);
    if (lane == 0) range[warp] = at;
  }
  if (aligned) {
#pragma unroll
    for (u32 k = 0; k < kGroups; k++) reinterpret_cast<uint4*>(tile)[threadIdx.x + k * kThreads] = group[k];
  } else {
    for (u32 i = threadIdx.x; i < count; i += kThreads) tile[i] = base[first + i];
  }
  __syncthreads();
#pragma unroll 4
  for (u64 i = range[0] + threadIdx.x; i < range[1]; i += kThreads) {
    const u64 at = (u64)indices[i] - first;
    if (at < count && (i == 0 || indices[i - 1] < indices[i])) {
      tile[at] = Value::add(tile[at], values[i]);
    } else {
      *bad = 1;
    }
  }
  __syncthreads();
  if (aligned) {
    uint4* to = reinterpret_cast<uint4*>(dst + first);
#pragma unroll
    for (u32 k = 0; k < kGroups; k++) {
      to[threadIdx.x + k * kThreads] = reinterpret_cast<const uint4*>(tile)[threadIdx.x + k * kThreads];
    }
  } else {
    for (u32 i = threadIdx.x; i < count; i += kThreads) dst[first + i] = tile[i];
  }
  // Tiles find only indices in range.
  if (blockIdx.x == 0 && threadIdx.x == 0 && deltas > 0 &&
      ((u64)indices[0] >= elements || (u64)indices[deltas - 1] >= elements)) {
    *bad = 1;
  }
}

// The same in place: only the elements that change are touched. A thread works
// on kPer deltas, a block apart, so that its loads overlap.
// launch: threads=256 deltas_per_block=1024
extern "C" __global__ void __launch_bounds__(kThreads)
    scatter_add_in_place(Bits* dst, u64 elements, const long long* indices, const Bits* values, u64 deltas, u32* bad) {
  await_stream();
  const u32 kPer = 4;
  const u64 first = (u64)blockIdx.x * kThreads * kPer + threadIdx.x;
  u64 at[kPer];
  Bits value[kPer], old[kPer];
  bool good[kPer];
#pragma unroll
  for (u32 k = 0; k < kPer; k++) {
    const u64 i = first + k * kThreads;
    good[k] = false;
    if (i < deltas) {
      at[k] = (u64)indices[i];
      value[k] = values[i];
      good[k] = at[k] < elements && (i == 0 || (u64)indices[i - 1] < at[k]);
      if (!good[k]) *bad = 1;
    }
  }
#pragma unroll
  for (u32 k = 0; k < kPer; k++) if (good[k]) old[k] = dst[at[k]];
#pragma unroll
  for (u32 k = 0; k < kPer; k++) if (good[k]) dst[at[k]] = Value::add(old[k], value[k]);
}

// One thread a delta, behind a copy: the reference that the kernels above are
// compared with.
// launch: threads=256 deltas_per_block=256
extern "C" __global__ void __launch_bounds__(kThreads)
    scatter_add_naive(Bits* dst, u64 elements, const long long* indices, const Bits* values, u64 deltas, u32* bad) {
  await_stream();
  const u64 i = (u64)blockIdx.x * kThreads + threadIdx.x;
  if (i >= deltas) return;
  const u64 at = (u64)indices[i];
  if (at < elements && (i == 0 || (u64)indices[i - 1] < at)) {
    dst[at] = Value::add(dst[at], values[i]);
  } else {
    *bad = 1;
  }
}
