// matvec.cuh - a few rows of x times the transpose of a quantised weight: what
// a lane of a warp makes of codes and of x before the tensor cores multiply.
//
// Eight consecutive codes of a row are an octet. It becomes four pairs, of
// codes i and i + 4, because that takes the fewest steps; x is put in the same
// order. Which element meets which in a tensor core does not matter otherwise.
#pragma once

#include "dequant.cuh"

namespace matvec {

// The arguments of the kernels of matvec.cu. y[row, out] is the sum over i of
// x[row, i] * weight[out, i], plus bias[out].
struct Matvec {
  quant::QuantBase weight;  // [outs, ins]; its code book is `code`
  const float* code;        // global memory, 16 numbers; null unless kCodebook
  const void* x;            // global memory, [rows, ins], aligned to its words
  const void* bias;         // global memory, [outs]; null: none
  void* y;                  // global memory, [rows, outs], contiguous
  u64 x_stride;             // words from one row of x to the next
  u64 outs;
  u64 ins;
  u32 rows;
  u32 parts;                // of kColumns rows each
  u32 row_groups;           // matvec.cu: groups of a row of the weight
  u32 shift;                // matvec.cu: log2 of their size; 31: a row is one
};

const u32 kThreads = 256;
const u32 kWarps = kThreads / 32;
const u32 kOuts = 16;    // rows of the weight of a thread block
const u32 kColumns = 8;  // rows of x of a thread block

// What a lane loads at once of a row of the weight: whole 16 bytes and whole
// 32-bit words of codes.
template <u32 kBits>
struct Unit {
  static const u32 kLoads = kBits == 3 ? 3 : 1;  // of 16 bytes
  static const u32 kCodes = kLoads * 128 / kBits;
  static const u32 kOctets = kCodes / 8;
  static const u32 kShared = kCodes < 32 ? kCodes : 32;  // codes that share a scale
  static const u32 kScales = kCodes / kShared;
};

template <u32 kType>
TPDE_FN float widen(u32 half) {
  return kType == quant::kBF16 ? float_of(half << 16) : quant::widen_f16((u16)half);
}

// a * b + c of both halves, rounded once.
template <u32 kType>
TPDE_FN u32 fma_pair(u32 a, u32 b, u32 c) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  u32 r;
  if (kType == quant::kBF16) {
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  } else {
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  }
  return r;
#else
  // The products that are asked for have at most 24 bits, as the sums have.
  float v[2];
  for (u32 i = 0; i < 2; i++) {
    const float p = quant::multiply(widen<kType>(a >> 16 * i & 0xffff), widen<kType>(b >> 16 * i & 0xffff));
    v[i] = add_float(p, widen<kType>(c >> 16 * i & 0xffff));
  }
  return quant::narrow_pair<kType>(v[0], v[1]);
#endif
}

TPDE_FN u32 twice(u32 half) { return half << 16 | half; }

// Eight words of x in the order of pairs.
TPDE_FN void pair_up(const Group& x, u32* pairs) {
  pairs[0] = permute(x.w[0], x.w[2], 0x5410);
  pairs[1] = permute(x.w[0], x.w[2], 0x7632);
  pairs[2] = permute(x.w[1], x.w[3], 0x5410);
  pairs[3] = permute(x.w[1], x.w[3], 0x7632);
}

// What an octet is multiplied with, as it is loaded.
struct RawScale {
  u32 scale;  // bits
  u32 zero;   // the zero point
};

// An octet as two halves of four codes: code i from bit kBits * i on, code
// i + 4 sixteen bits above. Not for 8 bits, where two words are an octet.
template <u32 kKind, u32 kBits>
TPDE_FN u32 spread(const u32* codes, u32 octet) {
  if (kBits == 2) return permute(codes[octet / 2], 0, octet % 2 ? 0x4342 : 0x4140);
  if (kBits == 3) {
    const u32 at = octet * 24 / 32, shift = octet * 24 % 32;
    const u32 c = shift ? quant::funnel_right(codes[at], shift > 8 ? codes[at + 1] : 0, shift) : codes[at];
    return (c & 0xfff) | (c & 0xfff000) << 4;
  }
  const u32 w = codes[octet];
  return kKind == quant::kCodebook ? (w & 0x0f0f0f0f) << 4 | (w >> 4 & 0x0f0f0f0f) : w;
}

// The pairs of an octet of linear codes whose scales are of the weight's own
// 16-bit type: codes become numbers there by being put behind an exponent, and
// every step but the last product is exact. kZero: there are zero points. mask: a
// code's bits, in both halves.
template <u32 kBits, u32 kType, bool kZero>
TPDE_FN void octet_exact(const u32* codes, u32 octet, const RawScale& s, u32 mask, u32* pairs) {
  const u32 scale = twice(s.scale), minus_zero = 0x80008000, zero = kZero ? s.zero : 1u << (kBits - 1);
  if (kBits == 8) {
    const u32 lo = codes[2 * octet], hi = codes[2 * octet + 1];
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
      u32 v;
      if (kType == quant::kF16) {  // 1024 + code, less 1024 + zero point
        v = permute(permute(lo, hi, i | (4 + i) << 4), 0x64, 0x4140);
        v = fma_pair<kType>(v, 0x3c003c00, twice(0xe400 | zero));
      } else {  // 2^23 + code, less 2^23 + zero point: a float of 8 bits, whose upper half it is
        const float bias = float_of(0x4b000000 | zero);
        const float a = float_of(permute(lo, 0x4b000000, 0x7440 | i)) - bias;
        const float b = float_of(permute(hi, 0x4b000000, 0x7440 | i)) - bias;
        v = permute(bits_of(a), bits_of(b), 0x7632);
      }
      pairs[i] = fma_pair<kType>(v, scale, minus_zero);
    }
    return;
  }
  const u32 d = spread<quant::kLinear, kBits>(codes, octet);
#pragma unroll
  for (u32 i = 0; i < 4; i++) {
    const u32 code = d >> kBits * i & mask;
    u32 v;
    if (kType == quant::kF16) {
      v = fma_pair<kType>(code | 0x64006400, 0x3c003c00, twice(0xe400 | zero));
    } else if (!kZero) {  // 128 + code, less 128 + zero point
      v = fma_pair<kType>(code | 0x43004300, 0x3f803f80, twice(0xc300 | zero));
    } else {  // in two steps: 128 + zero point may have 9 bits
      const u32 minus = bits_of(float_of(0x4b000000) - float_of(0x4b000000 | zero)) >> 16;
      v = fma_pair<kType>(code | 0x43004300, 0x3f803f80, 0xc300c300);
      v = fma_pair<kType>(v, 0x3f803f80, twice(minus));
    }
    pairs[i] = fma_pair<kType>(v, scale, minus_zero);
  }
}

// The same for everything else, by way of float32.
template <u32 kKind, u32 kBits, u32 kType>
TPDE_FN void octet_float(const quant::QuantBase& q, const u32* codes, u32 octet, const quant::GroupScale& s,
                         u32* pairs) {
  const u32 mask = (1u << kBits) - 1;
  u32 lo, hi;
  if (kBits == 8) {
    const u32 flip = kKind == quant::kInt8Rows ? 0x80808080 : 0;
    lo = codes[2 * octet] ^ flip, hi = codes[2 * octet + 1] ^ flip;
  } else {
    lo = spread<kKind, kBits>(codes, octet), hi = lo >> 16;
  }
#pragma unroll
  for (u32 i = 0; i < 4; i++) {
    const float a = quant::value<kKind>(q.code, lo >> kBits * i & mask, s);
    const float b = quant::value<kKind>(q.code, hi >> kBits * i & mask, s);
    pairs[i] = quant::narrow_pair<kType>(a, b);
  }
}

#ifdef __CUDACC__

// The weight with its code book, in shared memory, by all threads of a block.
__device__ inline void copy_base(quant::QuantBase& to, const quant::QuantBase& base, const float* codes) {
  const u32* from = reinterpret_cast<const u32*>(&base);
  if (threadIdx.x < sizeof(to) / 4) {
    u32 word = from[threadIdx.x];
    const u32 code = threadIdx.x - (sizeof(to) - sizeof(to.code)) / 4;
    if (code < 16 && codes) word = quant::load(reinterpret_cast<const u32*>(codes) + code);
    reinterpret_cast<u32*>(&to)[threadIdx.x] = word;
  }
  __syncthreads();
}

template <u32 kType>
TPDE_FN float load_float(const void* p, u64 i) {
  if (kType == quant::kF32) return quant::load(static_cast<const float*>(p) + i);
  return widen<kType>(quant::load(static_cast<const u16*>(p) + i));
}

// Writes y[row, out].
template <u32 kType>
TPDE_FN void store(const Matvec& m, u64 row, u64 out, float sum) {
  if (m.bias) sum = add_float(sum, load_float<kType>(m.bias, out));
  if (kType == quant::kF32) {
    static_cast<float*>(m.y)[row * m.outs + out] = sum;
  } else {
    static_cast<u16*>(m.y)[row * m.outs + out] = (u16)quant::narrow_pair<kType>(sum, 0);
  }
}

#endif

}  // namespace matvec
