// chunk.cuh - a chunk of a tensor and its base, for the kernels whose thread
// blocks work on one chunk each. Needs WORD; with QUANT the base is quantised.
#pragma once

#include "batch.cuh"
#ifdef QUANT
#include "dequant.cuh"
#endif

struct Chunk {
  const WORD* base;  // of the chunk; null without a base, unused with QUANT
  WORD* dst;
  u32 words;
#ifdef QUANT
  const quant::QuantBase* quantised;  // shared memory
  u64 first;                          // element of the tensor that word 0 is
#endif
};

#ifdef __CUDACC__

// Chunk r of an item. All threads of the thread block call it.
template <u32 Threads>
__device__ Chunk open_chunk(const Item& item, const Record& r) {
  Chunk c;
  c.words = r.uncompressed_bytes / sizeof(WORD);
  c.dst = static_cast<WORD*>(item.dst) + r.output_word;
#ifdef QUANT
  __shared__ quant::QuantBase quantised;
  const u32 i = threadIdx.x;
  static_assert(Threads >= sizeof(quantised) / 4, "each thread copies a word at most");
  if (i < sizeof(quantised) / 4) reinterpret_cast<u32*>(&quantised)[i] = reinterpret_cast<const u32*>(item.base)[i];
  __syncthreads();
  c.base = nullptr;
  c.quantised = &quantised;
  c.first = r.output_word;
#else
  c.base = item.base ? static_cast<const WORD*>(item.base) + r.output_word : nullptr;
#endif
  return c;
}

// Group i of 16 bytes of the base, all of it in the chunk.
__device__ inline uint4 base_group(const Chunk& c, u32 i) {
#ifdef QUANT
  const u32 per = 16 / sizeof(WORD);
  const Group g = quant::dequant_any<QUANT>(*c.quantised, c.first + (u64)i * per, per);
  return make_uint4(g.w[0], g.w[1], g.w[2], g.w[3]);
#else
  return c.base ? reinterpret_cast<const uint4*>(c.base)[i] : make_uint4(0, 0, 0, 0);
#endif
}

__device__ inline WORD base_word(const Chunk& c, u32 i) {
#ifdef QUANT
  return (WORD)quant::dequant_any<QUANT>(*c.quantised, c.first + i, 1).w[0];
#else
  return c.base ? c.base[i] : (WORD)0;
#endif
}

// Whether whole groups of base and dst can be loaded and stored at once.
__device__ inline bool aligned(const Chunk& c) {
  return ((reinterpret_cast<u64>(c.base) | reinterpret_cast<u64>(c.dst)) & 15) == 0;
}

// dst = base.
template <u32 Threads>
__device__ void copy_base(const Chunk& c) {
  const u32 per = 16 / sizeof(WORD);
  u32 done = 0;
  if (aligned(c)) {
    const u32 groups = c.words / per;
    uint4* to = reinterpret_cast<uint4*>(c.dst);
#ifdef QUANT
    // Codes are small: those of some groups are on their way at once.
    const u32 ahead = 4;
    quant::Run run;
    if (quant::open_run<QUANT>(*c.quantised, c.first, c.words, run)) {
#pragma unroll 1
      for (u32 i = threadIdx.x; i < groups; i += ahead * Threads) {
        quant::Fetched f[ahead];
#pragma unroll
        for (u32 k = 0; k < ahead; k++) f[k] = quant::fetch<QUANT>(run, min_u32(i + k * Threads, groups - 1) * per);
#pragma unroll
        for (u32 k = 0; k < ahead; k++) {
          const u32 at = i + k * Threads;
          const Group g = quant::dequant_any<QUANT>(run, f[k], at * per);
          if (at < groups) to[at] = make_uint4(g.w[0], g.w[1], g.w[2], g.w[3]);
        }
      }
    } else {
#pragma unroll 1
      for (u32 i = threadIdx.x; i < groups; i += Threads) to[i] = base_group(c, i);
    }
#else
#pragma unroll 8
    for (u32 i = threadIdx.x; i < groups; i += Threads) to[i] = base_group(c, i);
#endif
    done = groups * per;
  }
  for (u32 i = done + threadIdx.x; i < c.words; i += Threads) c.dst[i] = base_word(c, i);
}

#endif  // __CUDACC__
