// The quantised bases of kernels/dequant.cuh, compiled for the host: what
// test_quant.py holds against the reference.
#include "dequant.cuh"

template <u32 kTarget>
static void run(unsigned char* dst, const quant::QuantBase& q, u64 first, u64 count) {
  const u64 n = kTarget == quant::kF32 ? 4 : 8;
  for (u64 i = 0; i < count; i += n) {
    u32 valid = (u32)(count - i < n ? count - i : n);
    Group g = quant::dequant_any<kTarget>(q, first + i, valid);
    __builtin_memcpy(dst + 16 * (i / n), &g, valid * (16 / n));
  }
}

// The same of whole groups of 16 bytes, all as one Run. Returns how many elements
// were written: none if they are not such a run.
template <u32 kTarget>
static u64 run_at_once(unsigned char* dst, const quant::QuantBase& q, u64 first, u64 count) {
  const u32 n = kTarget == quant::kF32 ? 4 : 8;
  quant::Run r;
  count = count / n * n;
  if (!quant::open_run<kTarget>(q, first, (u32)count, r)) return 0;
  for (u32 i = 0; i < count; i += n) {
    Group g = quant::dequant_any<kTarget>(r, quant::fetch<kTarget>(r, i), i);
    __builtin_memcpy(dst + 16 * (i / n), &g, 16);
  }
  return count;
}

extern "C" void dequant(unsigned char* dst, const quant::QuantBase* q, unsigned target, u64 first, u64 count) {
  if (target == quant::kF32) run<quant::kF32>(dst, *q, first, count);
  if (target == quant::kF16) run<quant::kF16>(dst, *q, first, count);
  if (target == quant::kBF16) run<quant::kBF16>(dst, *q, first, count);
}

extern "C" u64 dequant_run(unsigned char* dst, const quant::QuantBase* q, unsigned target, u64 first, u64 count) {
  if (target == quant::kF32) return run_at_once<quant::kF32>(dst, *q, first, count);
  if (target == quant::kF16) return run_at_once<quant::kF16>(dst, *q, first, count);
  return run_at_once<quant::kBF16>(dst, *q, first, count);
}

extern "C" unsigned long long group_of(const quant::QuantBase* q, u64 elem) {
  u64 inside, group = quant::group_of(*q, elem, inside);
  return inside == elem - group * q->group ? group : ~0ull;
}
