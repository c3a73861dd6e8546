// dequant.cuh - words of a quantised base (core/quant/FORMAT.md), sixteen
// bytes of them at a time, from any element on.
//
// Codes are fetched with two aligned 4-byte loads, whatever the first element
// is. Every product is rounded on its own: never fused, never flushed, also
// when the compiler is told otherwise.
#pragma once

#include "floats.cuh"

namespace quant {

enum Kind : u32 { kLinear = 1, kCodebook = 2, kInt8Rows = 3 };
enum Type : u32 { kF16 = 10, kBF16 = 11, kF32 = 12 };  // numbers of core/dtype

// What a kernel knows of a quantised base; written by core/quant, 8-byte
// aligned. Copy it to shared memory: threads look up different entries of the
// code book, which there lie in different banks.
struct QuantBase {
  const u32* packed;  // global memory, 4-byte aligned
  const void* scale;  // global memory, aligned to its words
  const u8* zero;     // global memory; null: the middle of the codes
  u64 elems;          // of the tensor
  u64 packed_bytes;
  u64 group;          // elements that share a scale, at least 8
  u64 magic;          // floor(2^64 / group) + 1
  u8 kind;
  u8 bits;
  u8 scale_type;
  u8 shift;           // log2 group; 255: group is no power of two
  u32 reserved;
  float code[16];
};
static_assert(sizeof(QuantBase) == 128, "layout is shared with the host");

// a * b rounded to nearest even, whatever -ftz, -fmad or -ffast-math say.
TPDE_FN float multiply(float a, float b) {
#ifdef __CUDA_ARCH__
  float p;
  asm("mul.rn.f32 %0, %1, %2;" : "=f"(p) : "f"(a), "f"(b));
  return p;
#else
  volatile float p = a * b;
  return p;
#endif
}

// The upper half of a product.
TPDE_FN u64 multiply_high(u64 a, u64 b) {
#ifdef __CUDA_ARCH__
  return __umul64hi(a, b);
#else
  return (u64)((unsigned __int128)a * b >> 64);
#endif
}

// a and the bits above it as one number, shifted right; shift is below 32.
TPDE_FN u32 funnel_right(u32 a, u32 above, u32 shift) {
#ifdef __CUDA_ARCH__
  return __funnelshift_r(a, above, shift);
#else
  return (u32)(((u64)above << 32 | a) >> shift);
#endif
}

template <typename T>
TPDE_FN T load(const T* p) {
#ifdef __CUDA_ARCH__
  return __ldg(p);
#else
  return *p;
#endif
}

// float16 to float32, exact.
TPDE_FN float widen_f16(u16 w) {
#ifdef __CUDA_ARCH__
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(w));
  return f;
#else
  return F16::widen(w);
#endif
}

// Rounding in integers: the host, and GPUs before sm_80. A NaN becomes what the
// conversions of later GPUs make of it.
template <typename Float>
TPDE_FN u32 round16(float f) {
  return (bits_of(f) & 0x7fffffff) > 0x7f800000 ? 0x7fff : Float::round(f);
}

// Two words of a 16-bit type; lo is the first.
template <u32 kTarget>
TPDE_FN u32 narrow_pair(float lo, float hi) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  u32 w;
  if (kTarget == kBF16) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(w) : "f"(hi), "f"(lo));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(w) : "f"(hi), "f"(lo));
  }
  return w;
#else
  if (kTarget == kBF16) return round16<BF16>(lo) | round16<BF16>(hi) << 16;
  return round16<F16>(lo) | round16<F16>(hi) << 16;
#endif
}

TPDE_FN u32 narrow_f32(float f) {
  u32 b = bits_of(f);
  return (b & 0x7fffffff) > 0x7f800000 ? 0x7fffffff : b;
}

// Word i of the codes, 0 behind the last; the last one may be incomplete.
TPDE_FN u32 packed_word(const QuantBase& q, u64 i) {
  if (4 * i + 4 <= q.packed_bytes) return load(q.packed + i);
  u32 w = 0;
  for (u64 at = 4 * i; at < q.packed_bytes; at++) {
    w |= (u32)load(reinterpret_cast<const u8*>(q.packed) + at) << (at - 4 * i) * 8;
  }
  return w;
}

// The same with codes of every kind unsigned and least significant first.
template <u32 kKind>
TPDE_FN u32 code_word(const QuantBase& q, u64 i) {
  u32 w = packed_word(q, i);
  if (kKind == kCodebook) return (w & 0x0f0f0f0f) << 4 | (w >> 4 & 0x0f0f0f0f);
  if (kKind == kInt8Rows) return w ^ 0x80808080;
  return w;
}

// Asks for the codes from element `first` on to be brought near: codes of 4 bits
// are a few bytes of a row, and waiting for them would take longer than all else.
TPDE_FN void prefetch_codes(const QuantBase& q, u64 first) {
#ifdef __CUDA_ARCH__
  const u64 at = first * q.bits / 32;
  if (4 * at < q.packed_bytes) asm volatile("prefetch.global.L2 [%0];" ::"l"(q.packed + at));
#endif
}

// Scale and zero point of a group.
struct GroupScale {
  float scale;
  float bias;  // 2^23 + zero point
};

template <u32 kKind, u32 kBits>
TPDE_FN GroupScale group_scale(const QuantBase& q, u64 group) {
  GroupScale g;
  if (kKind == kLinear && q.scale_type == kBF16) {
    g.scale = float_of((u32)load(static_cast<const u16*>(q.scale) + group) << 16);
  } else if (kKind == kLinear && q.scale_type == kF16) {
    g.scale = widen_f16(load(static_cast<const u16*>(q.scale) + group));
  } else {
    g.scale = load(static_cast<const float*>(q.scale) + group);
  }
  u32 zero = kKind == kLinear && q.zero ? load(q.zero + group) : 1u << (kBits - 1);
  g.bias = float_of(0x4b000000 | zero);
  return g;
}

// The value of one code.
template <u32 kKind>
TPDE_FN float value(const QuantBase& q, u32 code, const GroupScale& g) {
  if (kKind == kCodebook) return multiply(q.code[code], g.scale);
  // 2^23 + code, less 2^23 + zero point: exact, and far cheaper than a
  // conversion.
  float steps = float_of(0x4b000000 | code) - g.bias;
  float v = multiply(steps, g.scale);
  return kKind == kInt8Rows ? multiply(v, float_of(0x3c010204)) : v;
}

// The group of an element, and how many elements of it come before.
TPDE_FN u64 group_of(const QuantBase& q, u64 elem, u64& inside) {
  if (q.shift != 255) {
    inside = elem & (q.group - 1);
    return elem >> q.shift;
  }
  u64 group = multiply_high(elem, q.magic);
  inside = elem - group * q.group;
  if (inside >> 63) {  // the quotient is one too large; elem is below 2^63
    group--;
    inside += q.group;
  }
  return group;
}

// Code j of what was fetched.
template <u32 kBits>
TPDE_FN u32 code_of(const u32* codes, u32 j) {
  return codes[j * kBits / 32] >> (j * kBits % 32) & ((1u << kBits) - 1);
}

// Sixteen bytes of words of type kTarget, from element `first` on: 8 of F16
// and BF16, 4 of F32. Words behind element first + count - 1 are undefined;
// first + count is at most q.elems and count at least 1.
template <u32 kKind, u32 kBits, u32 kTarget>
TPDE_FN Group dequant_group(const QuantBase& q, u64 first, u32 count) {
  const u32 n = kTarget == kF32 ? 4 : 8;
  // The codes, in the low n * kBits bits of one or two words.
  u64 bit = first * kBits;
  u32 shift = (u32)bit & 31;
  u64 at = bit >> 5;
  u32 a = code_word<kKind>(q, at), codes[2] = {a, 0};
  if (n * kBits > 32) {
    u32 b = code_word<kKind>(q, at + 1), c = shift ? code_word<kKind>(q, at + 2) : 0;
    codes[0] = funnel_right(a, b, shift);
    codes[1] = funnel_right(b, c, shift);
  } else if (shift + n * kBits > 32) {
    codes[0] = funnel_right(a, code_word<kKind>(q, at + 1), shift);
  } else {
    codes[0] = a >> shift;
  }

  u64 inside, group = group_of(q, first, inside);
  u64 left = q.group - inside;
  GroupScale g = group_scale<kKind, kBits>(q, group);

  float v[8];
  if (left >= count) {
#pragma unroll
    for (u32 j = 0; j < n; j++) v[j] = value<kKind>(q, code_of<kBits>(codes, j), g);
  } else {  // a group has n elements at least: there are two
    GroupScale next = group_scale<kKind, kBits>(q, group + 1);
#pragma unroll
    for (u32 j = 0; j < n; j++) v[j] = value<kKind>(q, code_of<kBits>(codes, j), j < left ? g : next);
  }
  Group out;
#pragma unroll
  for (u32 j = 0; j < 4; j++) {
    out.w[j] = kTarget == kF32 ? narrow_f32(v[j]) : narrow_pair<kTarget>(v[2 * j], v[2 * j + 1]);
  }
  return out;
}

// dequant_group for a kernel that was not compiled for one layout: the branch
// is the same for the whole thread block.
template <u32 kTarget>
TPDE_FN Group dequant_any(const QuantBase& q, u64 first, u32 count) {
  if (q.kind == kCodebook) return dequant_group<kCodebook, 4, kTarget>(q, first, count);
  if (q.kind == kInt8Rows) return dequant_group<kInt8Rows, 8, kTarget>(q, first, count);
  switch (q.bits) {
    case 2: return dequant_group<kLinear, 2, kTarget>(q, first, count);
    case 3: return dequant_group<kLinear, 3, kTarget>(q, first, count);
    case 4: return dequant_group<kLinear, 4, kTarget>(q, first, count);
  }
  return dequant_group<kLinear, 8, kTarget>(q, first, count);
}

}  // namespace quant
