// dequant.cuh - words of a quantised base (core/quant/FORMAT.md), sixteen
// bytes of them at a time, from any element on.
//
// Codes are fetched with two aligned 4-byte loads, whatever the first element
// is. Every product is rounded on its own: never fused, never flushed, also
// when the compiler is told otherwise.
#pragma once

#include "floats.cuh"
#include "group.cuh"

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

// A 16-bit float as float32, exact.
template <u32 kTarget>
TPDE_FN float widen(u32 half) {
  return kTarget == kBF16 ? float_of(half << 16) : widen_f16((u16)half);
}

TPDE_FN u32 twice(u32 half) { return half << 16 | half; }

// a + b and a * b of both halves, rounded once. By way of float32, as on the host
// and on GPUs before sm_80, only where that is exact.
template <u32 kTarget>
TPDE_FN u32 add_pair(u32 a, u32 b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  u32 c;
  if (kTarget == kF16) {
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(c) : "r"(a), "r"(b));
  } else {
#if __CUDA_ARCH__ >= 900
    asm("add.rn.bf16x2 %0, %1, %2;" : "=r"(c) : "r"(a), "r"(b));
#else
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(c) : "r"(a), "r"(0x3f803f80), "r"(b));  // a * 1 + b
#endif
  }
  return c;
#else
  return narrow_pair<kTarget>(add_float(widen<kTarget>(a & 0xffff), widen<kTarget>(b & 0xffff)),
                              add_float(widen<kTarget>(a >> 16), widen<kTarget>(b >> 16)));
#endif
}

template <u32 kTarget>
TPDE_FN u32 multiply_pair(u32 a, u32 b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  u32 c;
  if (kTarget == kF16) {
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(c) : "r"(a), "r"(b));
  } else {
#if __CUDA_ARCH__ >= 900
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(c) : "r"(a), "r"(b));
#else
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(c) : "r"(a), "r"(b), "r"(0x80008000));  // a * b - 0
#endif
  }
  return c;
#else
  return narrow_pair<kTarget>(multiply(widen<kTarget>(a & 0xffff), widen<kTarget>(b & 0xffff)),
                              multiply(widen<kTarget>(a >> 16), widen<kTarget>(b >> 16)));
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

// A word of codes with codes of every kind unsigned and least significant first.
template <u32 kKind>
TPDE_FN u32 in_order(u32 w) {
  if (kKind == kCodebook) return (w & 0x0f0f0f0f) << 4 | (w >> 4 & 0x0f0f0f0f);
  if (kKind == kInt8Rows) return w ^ 0x80808080;
  return w;
}

// Scale and zero point of a group.
struct GroupScale {
  float scale;
  float bias;  // 2^23 + zero point
};

// The value of one code.
template <u32 kKind>
TPDE_FN float value(const float* book, u32 code, const GroupScale& g) {
  if (kKind == kCodebook) return multiply(book[code], g.scale);
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

// What is loaded for sixteen bytes of words: as it lies in memory, so that
// nobody waits for it before it is used.
struct Fetched {
  u32 word[3];              // of codes
  u32 scale[2], zero[2];    // of the group of the first element, and of the one behind it
  u32 left;                 // elements of the first group
};

// The number of words of sixteen bytes.
template <u32 kTarget>
constexpr u32 kWords = kTarget == kF32 ? 4 : 8;

TPDE_FN void fetch_scale(const QuantBase& q, u64 group, u32& scale, u32& zero) {
  if (q.kind == kLinear && q.scale_type != kF32) {
    scale = load(static_cast<const u16*>(q.scale) + group);
  } else {
    scale = load(static_cast<const u32*>(q.scale) + group);
  }
  zero = q.kind == kLinear && q.zero ? load(q.zero + group) : 1u << (q.bits - 1);
}

// Loads what dequant_group makes words of.
template <u32 kTarget>
TPDE_FN Fetched fetch(const QuantBase& q, u64 first, u32 count) {
  Fetched f;
  const u64 bit = first * q.bits, at = bit >> 5;
  const u32 need = ((u32)bit & 31) + kWords<kTarget> * q.bits;  // bits from word `at` on
  f.word[0] = packed_word(q, at);
  f.word[1] = need > 32 ? packed_word(q, at + 1) : 0;
  f.word[2] = need > 64 ? packed_word(q, at + 2) : 0;
  u64 inside, group = group_of(q, first, inside);
  const u64 left = q.group - inside;
  f.left = left < count ? (u32)left : count;
  fetch_scale(q, group, f.scale[0], f.zero[0]);
  f.scale[1] = f.zero[1] = 0;
  if (f.left < count) fetch_scale(q, group + 1, f.scale[1], f.zero[1]);  // a group has 8 elements at least
  return f;
}

template <u32 kKind>
TPDE_FN GroupScale group_scale(u32 scale_type, u32 scale, u32 zero) {
  GroupScale g;
  if (kKind == kLinear) {  // a choice of values: a branch takes as long as a few codes
    const float half = widen_f16((u16)scale);
    g.scale = scale_type == kF16 ? half : float_of(scale << (scale_type == kBF16 ? 16 : 0));
  } else {
    g.scale = float_of(scale);
  }
  g.bias = float_of(0x4b000000 | zero);
  return g;
}

// An octet, eight codes, as two halves of four: code i from bit kBits * i on, code
// i + 4 sixteen bits above. Not for 8 bits, where two words are an octet.
template <u32 kKind, u32 kBits>
TPDE_FN u32 spread(const u32* codes, u32 octet) {
  if (kBits == 2) return permute(codes[octet / 2], 0, octet % 2 ? 0x4342 : 0x4140);
  if (kBits == 3) {
    const u32 at = octet * 24 / 32, shift = octet * 24 % 32;
    const u32 c = shift ? funnel_right(codes[at], shift > 8 ? codes[at + 1] : 0, shift) : codes[at];
    return (c & 0xfff) | (c & 0xfff000) << 4;
  }
  const u32 w = codes[octet];
  return kKind == kCodebook ? (w & 0x0f0f0f0f) << 4 | (w >> 4 & 0x0f0f0f0f) : w;
}

// The values of a code in each half, times the scale in both, where scales are of
// the words' own type: codes become numbers there by being put behind an exponent,
// as 128 or 1024 more, and every step but the product is exact. less: that much
// and the zero point, negative. The product is rounded once, as it is by way of
// float32, where it is exact.
template <u32 kTarget>
constexpr u32 kRaise = kTarget == kBF16 ? 0x4300 : 0x6400;
template <u32 kTarget>
TPDE_FN u32 exact_pair(u32 codes, u32 less, u32 scale) {
  return multiply_pair<kTarget>(add_pair<kTarget>(codes | twice(kRaise<kTarget>), less), scale);
}

// 128 or 1024 and a zero point, negative, in both halves. Of BF16 that is exact for
// zero points below 128 only.
template <u32 kTarget>
TPDE_FN u32 raised_zero(u32 zero) { return twice(0x8000 | kRaise<kTarget> | zero); }
template <u32 kTarget>
TPDE_FN bool is_exact_zero(u32 zero) { return kTarget == kF16 || zero < 128; }

// Whether values are made so, two at once.
template <u32 kKind, u32 kBits, u32 kTarget>
constexpr bool kInPairs = kKind == kLinear && kBits < 8 && kTarget != kF32;

// Eight words, value j beside value j + 4 until the end.
template <u32 kBits, u32 kTarget>
TPDE_FN Group dequant_pairs(u32 codes, u32 scale, u32 zero) {
  const u32 halves = spread<kLinear, kBits>(&codes, 0), mask = twice((1u << kBits) - 1);
  const u32 less = raised_zero<kTarget>(zero), factor = twice(scale);
  u32 v[4];
#pragma unroll
  for (u32 j = 0; j < 4; j++) v[j] = exact_pair<kTarget>(halves >> kBits * j & mask, less, factor);
  Group out;
#pragma unroll
  for (u32 j = 0; j < 2; j++) {
    out.w[j] = permute(v[2 * j], v[2 * j + 1], kLowHalves);
    out.w[2 + j] = permute(v[2 * j], v[2 * j + 1], kHighHalves);
  }
  return out;
}

// What dequant_group knows of a base besides its template arguments.
struct Values {
  const float* book;  // shared memory
  u32 kind, bits, scale_type;
};

TPDE_FN Values values_of(const QuantBase& q) { return Values{q.code, q.kind, q.bits, q.scale_type}; }

// Sixteen bytes of words of type kTarget, from element `first` on: 8 of F16
// and BF16, 4 of F32. Words behind element first + count - 1 are undefined;
// first + count is at most q.elems and count at least 1. `f` is what was fetched
// for them.
template <u32 kKind, u32 kBits, u32 kTarget>
TPDE_FN Group dequant_group(const Values& q, const Fetched& f, u32 first, u32 count) {
  const u32 n = kWords<kTarget>;
  const u32 shift = first * kBits & 31;
  const u32 a = in_order<kKind>(f.word[0]), b = in_order<kKind>(f.word[1]);
  // The codes, in the low n * kBits bits of one or two words.
  u32 codes[2] = {funnel_right(a, b, shift), 0};
  if (n * kBits > 32) codes[1] = funnel_right(b, in_order<kKind>(f.word[2]), shift);

  if constexpr (kInPairs<kKind, kBits, kTarget>) {
    if (q.scale_type == kTarget && f.left >= count && is_exact_zero<kTarget>(f.zero[0])) {
      return dequant_pairs<kBits, kTarget>(codes[0], f.scale[0], f.zero[0]);
    }
  }
  const GroupScale g = group_scale<kKind>(q.scale_type, f.scale[0], f.zero[0]);
  float v[8];
  if (f.left >= count) {
#pragma unroll
    for (u32 j = 0; j < n; j++) v[j] = value<kKind>(q.book, code_of<kBits>(codes, j), g);
  } else {  // there are two groups
    const GroupScale next = group_scale<kKind>(q.scale_type, f.scale[1], f.zero[1]);
#pragma unroll
    for (u32 j = 0; j < n; j++) v[j] = value<kKind>(q.book, code_of<kBits>(codes, j), j < f.left ? g : next);
  }
  Group out;
#pragma unroll
  for (u32 j = 0; j < 4; j++) {
    out.w[j] = kTarget == kF32 ? narrow_f32(v[j]) : narrow_pair<kTarget>(v[2 * j], v[2 * j + 1]);
  }
  return out;
}

// The same for a kernel that was not compiled for one layout: the branch is the
// same for the whole thread block.
template <u32 kTarget>
TPDE_FN Group dequant_any(const Values& q, const Fetched& f, u32 first, u32 count) {
  // What most have comes before the jump of a switch.
  if (q.kind == kLinear && q.bits == 4) return dequant_group<kLinear, 4, kTarget>(q, f, first, count);
  if (q.kind == kCodebook) return dequant_group<kCodebook, 4, kTarget>(q, f, first, count);
  if (q.kind == kInt8Rows) return dequant_group<kInt8Rows, 8, kTarget>(q, f, first, count);
  switch (q.bits) {
    case 2: return dequant_group<kLinear, 2, kTarget>(q, f, first, count);
    case 3: return dequant_group<kLinear, 3, kTarget>(q, f, first, count);
  }
  return dequant_group<kLinear, 8, kTarget>(q, f, first, count);
}

// Fetches and dequantises.
template <u32 kTarget>
TPDE_FN Group dequant_any(const QuantBase& q, u64 first, u32 count) {
  return dequant_any<kTarget>(values_of(q), fetch<kTarget>(q, first, count), (u32)first, count);
}

// A run of elements of which sixteen bytes of words need few questions: it
// starts at a whole word of codes, all its words of codes are whole, and the size
// of a group is a power of two. Elements count from its start.
struct Run {
  Values values;
  const u32* packed;
  const u8* scale;
  const u8* zero;  // null: `middle`
  u32 middle;
  u32 before;      // elements of the first group before the run
  u32 shift;       // log2 of the group
  u32 scale_bytes;
  bool plain;      // 4 bits, scales of the words' type, no zero points: asked still less
};

// Whether there are plain runs of words of a type.
template <u32 kTarget>
constexpr bool kPlainRuns = kInPairs<kLinear, 4, kTarget>;

// Whether elements `first` to first + count - 1 are such a run.
template <u32 kTarget>
TPDE_FN bool open_run(const QuantBase& q, u64 first, u32 count, Run& r) {
  r.plain = false;
  if (q.shift == 255 || first % 32 != 0 || count > 1u << 28) return false;
  if (((first + count) * q.bits + 31) / 32 * 4 > q.packed_bytes) return false;
  r.values = values_of(q);
  r.packed = q.packed + first * q.bits / 32;
  const u64 group = first >> q.shift;
  const u64 before = first & (q.group - 1);
  if (before >> 31) return false;  // 32 bits hold what is added to it
  r.before = (u32)before;
  r.shift = q.shift;
  r.scale_bytes = q.kind == kLinear && q.scale_type != kF32 ? 2 : 4;
  r.scale = static_cast<const u8*>(q.scale) + group * r.scale_bytes;
  r.zero = q.kind == kLinear && q.zero ? q.zero + group : nullptr;
  r.middle = 1u << (q.bits - 1);
  r.plain = kPlainRuns<kTarget> && q.kind == kLinear && q.bits == 4 && q.scale_type == kTarget && !q.zero;
  return true;
}

// fetch for sixteen bytes of words that are all in the run; `at` is a multiple
// of their number, and so they are of one group. Which runs are plain the caller
// may know: loops are faster for one kind.
template <u32 kTarget, bool kPlain>
TPDE_FN Fetched fetch_run(const Run& r, u32 at) {
  Fetched f;
  f.word[1] = f.word[2] = f.scale[1] = f.zero[1] = 0;
  f.zero[0] = r.middle;
  f.left = kWords<kTarget>;
  const u32 group = (r.before + at) >> r.shift;
  if (kPlain) {
    f.word[0] = load(r.packed + at / 8);
    f.scale[0] = load(reinterpret_cast<const u16*>(r.scale) + group);
    return f;
  }
  const u32 bit = at * r.values.bits, word = bit >> 5, need = (bit & 31) + kWords<kTarget> * r.values.bits;
  f.word[0] = load(r.packed + word);
  if (need > 32) f.word[1] = load(r.packed + word + 1);
  f.scale[0] = r.scale_bytes == 2 ? load(reinterpret_cast<const u16*>(r.scale) + group)
                                  : load(reinterpret_cast<const u32*>(r.scale) + group);
  if (r.zero) f.zero[0] = load(r.zero + group);
  return f;
}

template <u32 kTarget>
TPDE_FN Fetched fetch(const Run& r, u32 at) {
  if constexpr (kPlainRuns<kTarget>) {
    if (r.plain) return fetch_run<kTarget, true>(r, at);
  }
  return fetch_run<kTarget, false>(r, at);
}

// Asks for what fetch loads of an element of the run to be brought near: of a row
// that is a few bytes, and waiting for those would take longer than all else.
// One element in 128 asks for all up to the next, for it comes in 128 bytes.
template <bool kPlain>
TPDE_FN void prefetch_codes(const Run& r, u32 at) {
  const bool first = at % 128 == 0;
  const u32 group = (r.before + at) >> r.shift;
  prefetch_if(first, r.packed + (kPlain ? at / 8 : at * r.values.bits / 32));
  prefetch_if(first, r.scale + group * (kPlain ? 2 : r.scale_bytes));
  if (!kPlain) prefetch_if(first && r.zero, r.zero + group);
}

template <u32 kTarget, bool kPlain>
TPDE_FN Group dequant_run(const Run& r, const Fetched& f, u32 at) {
  if constexpr (kPlain) return dequant_pairs<4, kTarget>(f.word[0], f.scale[0], 8);
  return dequant_any<kTarget>(r.values, f, at / kWords<kTarget> * kWords<kTarget>, kWords<kTarget>);
}

template <u32 kTarget>
TPDE_FN Group dequant_any(const Run& r, const Fetched& f, u32 at) {
  if constexpr (kPlainRuns<kTarget>) {
    if (r.plain) return dequant_run<kTarget, true>(r, f, at);
  }
  return dequant_run<kTarget, false>(r, f, at);
}

}  // namespace quant
