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

// Eight words of x in the order of pairs.
TPDE_FN void pair_up(const Group& x, u32* pairs) {
  pairs[0] = permute(x.w[0], x.w[2], kLowHalves);
  pairs[1] = permute(x.w[0], x.w[2], kHighHalves);
  pairs[2] = permute(x.w[1], x.w[3], kLowHalves);
  pairs[3] = permute(x.w[1], x.w[3], kHighHalves);
}

// What an octet is multiplied with, as it is loaded.
struct RawScale {
  u32 scale;  // bits
  u32 zero;   // the zero point
};

// The pairs of an octet of linear codes whose scales are of the weight's own
// 16-bit type. kZero: there are zero points. mask: a code's bits, in both halves.
template <u32 kBits, u32 kType, bool kZero>
TPDE_FN void octet_exact(const u32* codes, u32 octet, const RawScale& s, u32 mask, u32* pairs) {
  const u32 scale = quant::twice(s.scale), zero = kZero ? s.zero : 1u << (kBits - 1);
  const u32 less = quant::raised_zero<kType>(zero);
  if (kBits == 8) {
    const u32 lo = codes[2 * octet], hi = codes[2 * octet + 1];
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
      if (kType == quant::kF16) {
        const u32 raised = permute(permute(lo, hi, i | (4 + i) << 4), 0x64, 0x4140);
        pairs[i] = quant::multiply_pair<kType>(quant::add_pair<kType>(raised, less), scale);
      } else {  // 2^23 + code, less 2^23 + zero point: a float of 8 bits, whose upper half it is
        const float bias = float_of(0x4b000000 | zero);
        const float a = float_of(permute(lo, 0x4b000000, 0x7440 | i)) - bias;
        const float b = float_of(permute(hi, 0x4b000000, 0x7440 | i)) - bias;
        pairs[i] = quant::multiply_pair<kType>(permute(bits_of(a), bits_of(b), kHighHalves), scale);
      }
    }
    return;
  }
  const u32 d = quant::spread<quant::kLinear, kBits>(codes, octet);
#pragma unroll
  for (u32 i = 0; i < 4; i++) {
    const u32 code = d >> kBits * i & mask;
    if (kType == quant::kF16 || !kZero) {
      pairs[i] = quant::exact_pair<kType>(code, less, scale);
    } else {  // in two steps: 128 + zero point may have 9 bits
      const u32 minus = bits_of(float_of(0x4b000000) - float_of(0x4b000000 | zero)) >> 16;
      u32 v = quant::add_pair<kType>(code | quant::twice(quant::kRaise<kType>), quant::raised_zero<kType>(0));
      v = quant::add_pair<kType>(v, quant::twice(minus));
      pairs[i] = quant::multiply_pair<kType>(v, scale);
    }
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
    lo = quant::spread<kKind, kBits>(codes, octet), hi = lo >> 16;
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
  return quant::widen<kType>(quant::load(static_cast<const u16*>(p) + i));
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
