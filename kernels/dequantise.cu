// dequantise.cu - elements of a quantised weight (core/quant/FORMAT.md), bit for
// bit, in memory.
//
// Compiled for each type, -DTYPE=quant::kF16|kBF16|kF32.
#include "matvec.cuh"

namespace {

const u32 kElems = TYPE == quant::kF32 ? 4 : 8;  // of 16 bytes

}  // namespace

// What there is to do: `count` elements from element `first` on.
struct Dequantise {
  quant::QuantBase weight;  // its code book is `code`
  const float* code;        // global memory, 16 numbers; null unless kCodebook
  void* dst;                // global memory, 16-byte aligned
  u64 first;
  u64 count;
};

// launch: threads=256 elements_per_block=4096/sizeof(Bits)
extern "C" __global__ void __launch_bounds__(256) dequantise(const __grid_constant__ Dequantise d) {
  await_stream();
  __shared__ __align__(16) quant::QuantBase q;
  matvec::copy_base(q, d.weight, d.code);
  const u64 i = ((u64)blockIdx.x * 256 + threadIdx.x) * kElems;
  if (i >= d.count) return;
  const u32 count = (u32)(d.count - i < kElems ? d.count - i : kElems);
  const Group g = quant::dequant_any<TYPE>(q, d.first + i, count);
  if (count == kElems) {
    reinterpret_cast<uint4*>(d.dst)[i / kElems] = make_uint4(g.w[0], g.w[1], g.w[2], g.w[3]);
    return;
  }
  for (u32 j = 0; j < count; j++) {
    if (TYPE == quant::kF32) {
      static_cast<u32*>(d.dst)[i + j] = g.w[j];
    } else {
      static_cast<u16*>(d.dst)[i + j] = (u16)(g.w[j / 2] >> j % 2 * 16);
    }
  }
}
