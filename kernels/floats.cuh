// floats.cuh - additions of the float dtypes on their bit patterns, with the
// rounding of torch and of core/residual. They compile for the host too.
#pragma once

#include "common.cuh"

TPDE_FN float float_of(u32 bits) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(bits);
#else
  float f;
  __builtin_memcpy(&f, &bits, 4);
  return f;
#endif
}

TPDE_FN u32 bits_of(float f) {
#ifdef __CUDA_ARCH__
  return __float_as_uint(f);
#else
  u32 bits;
  __builtin_memcpy(&bits, &f, 4);
  return bits;
#endif
}

// Never fused with a multiplication, whatever the compiler's flags.
TPDE_FN float add_float(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fadd_rn(a, b);
#else
  volatile float s = a + b;
  return s;
#endif
}

// For static member functions.
#ifdef __CUDACC__
#define TPDE_MEMBER static __device__ __forceinline__
#else
#define TPDE_MEMBER static inline
#endif

// The NaN that NVIDIA's conversions to F16 and BF16 give, torch's on CUDA among
// them, whatever the NaN was. Processors differ; core/residual relies on none.
const u32 kNan16 = 0x7fff;

struct F32 {
  typedef u32 Bits;
  TPDE_MEMBER Bits add(Bits a, Bits b) { return bits_of(add_float(float_of(a), float_of(b))); }
};

struct BF16 {
  typedef u16 Bits;
  TPDE_MEMBER Bits round(float f) {
    u32 u = bits_of(f);
    if ((u & 0x7fffffff) > 0x7f800000) return (Bits)kNan16;
    return (Bits)((u + 0x7fff + (u >> 16 & 1)) >> 16);
  }
  TPDE_MEMBER Bits add(Bits a, Bits b) { return round(add_float(float_of((u32)a << 16), float_of((u32)b << 16))); }
};

struct F16 {
  typedef u16 Bits;
  TPDE_MEMBER float widen(Bits h) {
    u32 sign = (u32)(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 1023;
    if (exponent == 31) return float_of(sign | 0x7f800000 | mantissa << 13);
    if (exponent != 0) return float_of(sign | (exponent + 112) << 23 | mantissa << 13);
    // Subnormal: mantissa * 2^-24, exact in float.
    float f = (float)mantissa * 5.9604644775390625e-08f;
    return float_of(bits_of(f) | sign);
  }
  TPDE_MEMBER Bits round(float f) {
    u32 u = bits_of(f), sign = u >> 16 & 0x8000, a = u & 0x7fffffff;
    if (a > 0x7f800000) return (Bits)kNan16;
    if (a >= 0x477ff000) return (Bits)(sign | 0x7c00);  // rounds to 2^16 or more
    if (a >= 0x38800000) return (Bits)(sign | (a - 0x38000000 + 0xfff + (a >> 13 & 1)) >> 13);
    if (a <= 0x33000000) return (Bits)sign;  // at most half of the least subnormal
    u32 shift = 126 - (a >> 23), m = (a & 0x7fffff) | 0x800000;
    u32 half = 1u << (shift - 1), rest = m & (2 * half - 1), q = m >> shift;
    return (Bits)(sign | (q + (rest > half || (rest == half && (q & 1)) ? 1 : 0)));
  }
  TPDE_MEMBER Bits add(Bits a, Bits b) { return round(add_float(widen(a), widen(b))); }
};

struct F64 {
  typedef u64 Bits;
  TPDE_MEMBER Bits add(Bits a, Bits b) {
#ifdef __CUDA_ARCH__
    return (Bits)__double_as_longlong(__dadd_rn(__longlong_as_double((long long)a), __longlong_as_double((long long)b)));
#else
    double x, y;
    __builtin_memcpy(&x, &a, 8);
    __builtin_memcpy(&y, &b, 8);
    volatile double s = x + y;
    double t = s;
    Bits r;
    __builtin_memcpy(&r, &t, 8);
    return r;
#endif
  }
};

// An 8-bit float, as core/residual/small.go describes them: kLimit is the first
// magnitude that is not finite, kOver what rounding makes of it and of all
// beyond. Without a signed zero, the pattern of minus zero is the only NaN.
template <u32 kMantissa, u32 kExponent, u32 kBias, u32 kLimit, u32 kOver, bool kSignedZero>
struct SmallFloat {
  typedef u8 Bits;

  // Exact: every value is a float.
  TPDE_MEMBER float widen(Bits code) {
    const u32 sign = (u32)(code >> 7) << 31, magnitude = code & 0x7f;
    const bool infinite = kSignedZero && kLimit == kOver && magnitude == kLimit;
    if (infinite) return float_of(sign | 0x7f800000);
    if (kSignedZero ? magnitude >= kLimit : code == kLimit) return float_of(sign | 0x7fc00000);
    const u32 exponent = magnitude >> kMantissa, mantissa = magnitude & ((1u << kMantissa) - 1);
    if (exponent != 0) return float_of(sign | (exponent + 127 - kBias) << 23 | mantissa << (23 - kMantissa));
    // Subnormal: both factors and the product are exact.
    const float unit = float_of((128 - kBias - kMantissa) << 23);
    return float_of(sign | bits_of((float)mantissa * unit));
  }

  // m >> drop to nearest, ties to even; drop is 1 to 24.
  TPDE_MEMBER u32 round_shift(u32 m, u32 drop) { return (m + (1u << (drop - 1)) - 1 + (m >> drop & 1)) >> drop; }

  TPDE_MEMBER Bits round(float f) {
    const u32 sign = bits_of(f) >> 31 << 7, magnitude = bits_of(f) & 0x7fffffff;
    const int exponent = (int)(magnitude >> 23) - 127 + (int)kBias;
    u32 code;
    if (magnitude > 0x7f800000) {
      code = kSignedZero ? 0x7f : kOver;
    } else if (exponent >= 1) {
      code = round_shift(magnitude - ((127 - kBias) << 23), 23 - kMantissa);
      if (code >= kLimit) code = kOver;
    } else {
      const u32 drop = 23 - kMantissa + (u32)(1 - exponent);
      code = drop > 24 ? 0 : round_shift((magnitude & 0x7fffff) | 0x800000, drop);
    }
    if (!kSignedZero && (code == 0 || code == kOver)) return (Bits)code;
    return (Bits)(sign | code);
  }

  TPDE_MEMBER Bits add(Bits a, Bits b) { return round(add_float(widen(a), widen(b))); }
};

typedef SmallFloat<3, 4, 7, 0x7f, 0x7e, true> F8E4M3;       // beyond the finite: the largest of them
typedef SmallFloat<2, 5, 15, 0x7c, 0x7c, true> F8E5M2;      // infinity
typedef SmallFloat<3, 4, 8, 0x80, 0x80, false> F8E4M3FNUZ;  // NaN
typedef SmallFloat<2, 5, 16, 0x80, 0x80, false> F8E5M2FNUZ;  // NaN
