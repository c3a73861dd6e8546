// matvec_any.cu - what matvec.cu does, for what that does not take: float32, odd
// sizes, odd groups, unaligned memory, and GPUs before sm_80.
//
// Compiled for each type, -DTYPE=quant::kF16|kBF16|kF32.
#include "matvec.cuh"

namespace {

using namespace matvec;

const u32 kElems = TYPE == quant::kF32 ? 4 : 8;  // of 16 bytes

}  // namespace

// A warp makes a column of y, of kColumns rows.
// launch: threads=256 outs_per_block=8
extern "C" __global__ void __launch_bounds__(kThreads) matvec_any(const __grid_constant__ Matvec m) {
  await_stream();
  __shared__ __align__(16) quant::QuantBase q;
  copy_base(q, m.weight, m.code);
  const u32 lane = threadIdx.x & 31;
  const u64 out = (u64)(blockIdx.x / m.parts) * kWarps + threadIdx.x / 32;
  const u32 first_row = blockIdx.x % m.parts * kColumns;
  if (out >= m.outs) return;
  float sums[kColumns] = {};
  for (u64 i = lane * kElems; i < m.ins; i += 32 * kElems) {
    const u32 count = (u32)(m.ins - i < kElems ? m.ins - i : kElems);
    const Group g = quant::dequant_any<TYPE>(q, out * m.ins + i, count);
#pragma unroll
    for (u32 j = 0; j < kElems; j++) {
      if (j < count) {
        const u32 half = g.w[j / 2 % 4] >> j % 2 * 16 & 0xffff;
        const float weight = TYPE == quant::kF32 ? float_of(g.w[j % 4]) : quant::widen<TYPE>(half);
#pragma unroll
        for (u32 row = 0; row < kColumns; row++) {
          if (first_row + row < m.rows) {
            sums[row] += weight * load_float<TYPE>(m.x, (first_row + row) * m.x_stride + i + j);
          }
        }
      }
    }
  }
#pragma unroll
  for (u32 row = 0; row < kColumns; row++) {
    float sum = sums[row];
    for (u32 d = 16; d > 0; d /= 2) sum = add_float(sum, __shfl_xor_sync(0xffffffffu, sum, d));
    if (lane == 0 && first_row + row < m.rows) store<TYPE>(m, first_row + row, out, sum);
  }
}
