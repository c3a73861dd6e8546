// matvec.cu - y = x times the transpose of a quantised weight, plus a bias, for
// few rows of x: the weight is read once, as codes, and never written.
//
// Elements of the weight are those of core/quant/FORMAT.md in the type of x,
// bit for bit; products are summed in float32, in an order that depends on the
// shape alone.
//
// Compiled for 16-bit types, -DTYPE=quant::kBF16|kF16, and each layout of the
// codes, -DKIND=quant::kLinear -DBITS=2|3|4|8, -DKIND=quant::kCodebook -DBITS=4,
// -DKIND=quant::kInt8Rows -DBITS=8.
#include "matvec.cuh"

namespace {

using namespace matvec;
using quant::QuantBase;

// Loads of so many steps are on their way while a lane works on one before, and
// so many thread blocks share a multiprocessor: all its threads together have
// 32 to 48 KiB on their way, and no register is spilled.
const u32 kStages = BITS == 3 ? 1 : 2;
const u32 kBlocks = BITS < 4 ? 2 : 3;
typedef Unit<BITS> Codes;

// Two rows of the weight, as a lane loads them.
struct Stage {
  Group codes[2][Codes::kLoads];
  RawScale scale[2][Codes::kScales];
};

// Sixteen bytes that nothing else of this multiprocessor reads.
__device__ Group load_codes(const Group* p) {
#ifdef __CUDA_ARCH__
  Group g;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(g.w[0]), "=r"(g.w[1]), "=r"(g.w[2]), "=r"(g.w[3])
               : "l"(p));
  return g;
#else
  require_16(p);
  return *p;
#endif
}

// Sixteen bytes of x; zeros if it is not there.
__device__ Group load_x(const u16* p, bool there) {
#ifdef __CUDA_ARCH__
  Group g;
  asm("{\n.reg .pred p;\nsetp.ne.u32 p, %5, 0;\nmov.u32 %0, 0;\nmov.u32 %1, 0;\nmov.u32 %2, 0;\nmov.u32 %3, 0;\n"
      "@p ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];\n}"
      : "=&r"(g.w[0]), "=&r"(g.w[1]), "=&r"(g.w[2]), "=&r"(g.w[3])
      : "l"(p), "r"((u32)there));
  return g;
#else
  if (!there) return Group{};
  require_16(p);
  return *reinterpret_cast<const Group*>(p);
#endif
}

// sums += a * b, 16 x 16 times 16 x 8, of which each lane holds what PTX says of
// mma.m16n8k16: a of rows lane / 4 and 8 more, b of column lane / 4.
__device__ void multiply_tiles(float* sums, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
#ifndef __CUDA_ARCH__
  host_mma<TYPE>(sums, a0, a1, a2, a3, b0, b1);
#elif __CUDA_ARCH__ >= 800
  if (TYPE == quant::kBF16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }
#endif
}

// A warp's share of a tile: steps warp, warp + kWarps, ... of four units each, of
// which the lanes of one row take one. Offsets have 32 bits: registers are scarce.
template <bool kExact, bool kZero>
struct Warp {
  const Matvec& m;
  const QuantBase& q;  // with its code book
  u32 quarter;         // of a step
  u32 units;           // of a row
  u32 codes[2];        // first 16 bytes of the two rows
  u32 group[2];        // first groups of the two rows
  const u16* x;        // of the lane's column
  bool in_use;         // the lane's column
  // Of a code, in both halves. Were it a constant, the compiler would load it
  // before each use: an instruction has room for one, and the exponent is one.
  u32 mask;

  __device__ Warp(const Matvec& m, const QuantBase& q, u32 first_out, u32 first_row, u32 lane)
      : m(m), q(q), quarter(lane & 3), units((u32)m.ins / Codes::kCodes),
        mask(((1u << BITS % 8) - 1) * 0x10001 + threadIdx.y) {  // which is 0
#pragma unroll
    for (u32 r = 0; r < 2; r++) {
      const u32 out = min_u32(first_out + lane / 4 + 8 * r, (u32)m.outs - 1);  // sums of a second last row are not used
      codes[r] = out * units * Codes::kLoads;
      group[r] = out * m.row_groups;
    }
    const u32 row = first_row + lane / 4;
    in_use = row < m.rows;
    x = static_cast<const u16*>(m.x) + row * m.x_stride;
  }

  __device__ RawScale load_scale(u32 r, u32 first) const {
    const u32 at = group[r] + (first >> m.shift);
    RawScale s;
    if (kExact || (KIND == quant::kLinear && m.weight.scale_type != quant::kF32)) {
      s.scale = quant::load(static_cast<const u16*>(m.weight.scale) + at);
    } else {
      s.scale = quant::load(static_cast<const u32*>(m.weight.scale) + at);
    }
    s.zero = kZero ? quant::load(m.weight.zero + at) : 1u << (BITS - 1);
    return s;
  }

  // Behind the last unit it comes again: x is 0 there.
  __device__ void load(Stage& stage, u32 step) const {
    const u32 unit = min_u32(4 * step + quarter, units - 1);
#pragma unroll
    for (u32 r = 0; r < 2; r++) {
      const Group* from = reinterpret_cast<const Group*>(m.weight.packed) + (codes[r] + unit * Codes::kLoads);
#pragma unroll
      for (u32 i = 0; i < Codes::kLoads; i++) stage.codes[r][i] = load_codes(from + i);
#pragma unroll
      for (u32 i = 0; i < Codes::kScales; i++) {
        stage.scale[r][i] = load_scale(r, unit * Codes::kCodes + i * Codes::kShared);
      }
    }
  }

  __device__ void pairs_of(const Stage& stage, u32 r, u32 octet, u32* pairs) const {
    const u32* words = stage.codes[r][0].w;
    const RawScale& s = stage.scale[r][8 * octet / Codes::kShared];
    if constexpr (kExact) {
      octet_exact<BITS, TYPE, kZero>(words, octet, s, mask, pairs);
    } else {
      octet_float<KIND, BITS, TYPE>(q, words, octet, widen_scale(s), pairs);
    }
  }

  __device__ quant::GroupScale widen_scale(const RawScale& s) const {
    quant::GroupScale g;
    g.scale = float_of(s.scale);
    if (KIND == quant::kLinear && m.weight.scale_type == quant::kBF16) g.scale = float_of(s.scale << 16);
    if (KIND == quant::kLinear && m.weight.scale_type == quant::kF16) g.scale = quant::widen_f16((u16)s.scale);
    g.bias = float_of(0x4b000000 | s.zero);
    return g;
  }

  __device__ void multiply(const Stage& stage, u32 step, float (*sums)[4]) const {
    const u32 unit = 4 * step + quarter;
    const bool there = in_use && unit < units;
    const u16* from = x + unit * Codes::kCodes;
#pragma unroll
    for (u32 octet = 0; octet < Codes::kOctets; octet++) {
      u32 b[4], low[4], high[4];
      pair_up(load_x(from + 8 * octet, there), b);
      pairs_of(stage, 0, octet, low);
      pairs_of(stage, 1, octet, high);
      multiply_tiles(sums[0], low[0], high[0], low[1], high[1], b[0], b[1]);
      multiply_tiles(sums[1], low[2], high[2], low[3], high[3], b[2], b[3]);
    }
  }

  __device__ void run(u32 warp, float* sums) const {
    float both[2][4] = {};  // two, so that one product need not wait for the one before
    const u32 steps = (units + 3) / 4;
    Stage stage[kStages];
#pragma unroll
    for (u32 s = 0; s < kStages; s++) {
      if (warp + s * kWarps < steps) load(stage[s], warp + s * kWarps);
    }
#pragma unroll 1
    for (u32 step = warp; step < steps; step += kStages * kWarps) {
#pragma unroll
      for (u32 s = 0; s < kStages; s++) {
        const u32 now = step + s * kWarps, next = now + kStages * kWarps;
        if (now < steps) multiply(stage[s], now, both);
        if (next < steps) load(stage[s], next);
      }
    }
#pragma unroll
    for (u32 i = 0; i < 4; i++) sums[i] = both[0][i] + both[1][i];
  }
};

}  // namespace

// A thread block makes kOuts columns of y, of kColumns rows; its warps share the
// sums. Blocks of the same outs follow each other, so that all but the first
// find the codes in the L2 cache.
//
// Rows of the weight are whole units, aligned to 16 bytes, as rows of x are.
// Groups are whole rows, or of a power of two that divides them, of at least 32
// codes. The weight has fewer than 2^32 groups and pieces of 16 bytes, and fewer
// than 2^31 codes in a row.
// launch: threads=256 outs_per_block=16
extern "C" __global__ void __launch_bounds__(kThreads, kBlocks) matvec_tiles(const __grid_constant__ Matvec m) {
  await_stream();
  __shared__ __align__(16) QuantBase q;
  __shared__ float sums[kWarps][kOuts][kColumns];
  if (KIND == quant::kCodebook) copy_base(q, m.weight, m.code);
  const u32 first_out = blockIdx.x / m.parts * kOuts;
  const u32 first_row = blockIdx.x % m.parts * kColumns;
  const u32 lane = threadIdx.x & 31, warp = threadIdx.x / 32;
  float mine[4];
  if constexpr (KIND == quant::kLinear) {
    const bool exact = m.weight.scale_type == TYPE;
    if (exact && m.weight.zero) {
      Warp<true, true>(m, q, first_out, first_row, lane).run(warp, mine);
    } else if (exact) {
      Warp<true, false>(m, q, first_out, first_row, lane).run(warp, mine);
    } else if (m.weight.zero) {
      Warp<false, true>(m, q, first_out, first_row, lane).run(warp, mine);
    } else {
      Warp<false, false>(m, q, first_out, first_row, lane).run(warp, mine);
    }
  } else {
    Warp<false, false>(m, q, first_out, first_row, lane).run(warp, mine);
  }
#pragma unroll
  for (u32 i = 0; i < 4; i++) sums[warp][lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2] = mine[i];
  __syncthreads();
  const u32 out = threadIdx.x % kOuts, row = threadIdx.x / kOuts;
  if (row < kColumns && first_row + row < m.rows && first_out + out < m.outs) {
    float sum = 0;
#pragma unroll
    for (u32 w = 0; w < kWarps; w++) sum = add_float(sum, sums[w][out][row]);
    store<TYPE>(m, first_row + row, first_out + out, sum);
  }
}
