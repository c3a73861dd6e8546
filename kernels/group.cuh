// group.cuh - groups of 16 bytes of words in registers: how lanes load, take
// apart and store them.
#pragma once

#include "common.cuh"

// Word j of a group; j is known when this is compiled.
template <typename Word>
TPDE_FN Word group_word(const Group& g, u32 j) {
  const u32 per = sizeof(Word) < 4 ? 4 / sizeof(Word) : 1;
  if (sizeof(Word) == 8) return (Word)((u64)g.w[(2 * j + 1) & 3] << 32 | g.w[(2 * j) & 3]);
  return (Word)(g.w[j / per] >> 8 * sizeof(Word) * (j % per));
}

template <typename Word>
TPDE_FN void set_group_word(Group& g, u32 j, Word v) {
  const u32 per = sizeof(Word) < 4 ? 4 / sizeof(Word) : 1;
  if (sizeof(Word) == 8) {
    g.w[(2 * j) & 3] = (u32)v;
    g.w[(2 * j + 1) & 3] = (u32)((u64)v >> 32);
  } else {
    const u32 shift = 8 * sizeof(Word) * (j % per);
    const u32 mask = (u32)(((u64)1 << 8 * sizeof(Word)) - 1) << shift;
    g.w[j / per] = (g.w[j / per] & ~mask) | ((u32)v << shift & mask);
  }
}

// Sets word j of a group; j is known only at run time, and indexing registers
// by it would put the group into local memory.
template <typename Word>
TPDE_FN void replace_at(Group& g, u32 j, Word v) {
#pragma unroll
  for (u32 i = 0; i < 16 / sizeof(Word); i++) if (i == j) set_group_word<Word>(g, i, v);
}

// The group at p, which is 16-byte aligned.
TPDE_FN Group load_whole(const void* p) {
  Group g;
#ifdef __CUDA_ARCH__
  const uint4 v = *static_cast<const uint4*>(p);
  g.w[0] = v.x, g.w[1] = v.y, g.w[2] = v.z, g.w[3] = v.w;
#else
  require_16(p);
  __builtin_memcpy(&g, p, 16);
#endif
  return g;
}

// The same for stores; p is global memory.
TPDE_FN void store_whole(void* p, const Group& g) {
#ifdef __CUDA_ARCH__
  // In C++ it has been seen to come out as four stores.
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(g.w[0]), "r"(g.w[1]), "r"(g.w[2]), "r"(g.w[3])
               : "memory");
#else
  require_16(p);
  __builtin_memcpy(p, &g, 16);
#endif
}

// Asks for what is at p to be brought to the L2 cache, if it is wanted: no branch,
// which would cost more than the rest.
TPDE_FN void prefetch_if(bool wanted, const void* p) {
#ifdef __CUDA_ARCH__
  asm volatile("{.reg .pred wanted; setp.ne.u32 wanted, %1, 0; @wanted prefetch.global.L2 [%0];}" ::"l"(p), "r"((u32)wanted));
#endif
}

// The `count` words at p, one by one, zeros behind them. They are shifted in
// from below: an index known only at run time would put the group into local
// memory.
template <typename Word>
TPDE_FN Group load_words(const Word* p, u32 count) {
  const u32 width = 8 * sizeof(Word);
  Group g = {{0, 0, 0, 0}};
#pragma unroll 1
  for (u32 j = min_u32(count, 16 / sizeof(Word)); j-- > 0;) {
    const u64 w = (u64)p[j];
    if (width == 64) {
      g = Group{{(u32)w, (u32)(w >> 32), g.w[0], g.w[1]}};
    } else {
      const u32 carry = width < 32 ? 32 - width : 0;
      g.w[3] = (u32)(((u64)g.w[3] << 32 | g.w[2]) >> carry);
      g.w[2] = (u32)(((u64)g.w[2] << 32 | g.w[1]) >> carry);
      g.w[1] = (u32)(((u64)g.w[1] << 32 | g.w[0]) >> carry);
      g.w[0] = (u32)((u64)g.w[0] << 32 >> carry) | (u32)w;
    }
  }
  return g;
}

// Stores the first `count` words of a group, one by one.
template <typename Word>
TPDE_FN void store_words(Word* p, u32 count, Group g) {
  const u32 width = 8 * sizeof(Word);
#pragma unroll 1
  for (u32 j = 0; j < 16 / sizeof(Word) && j < count; j++) {
    p[j] = width == 64 ? (Word)((u64)g.w[1] << 32 | g.w[0]) : (Word)g.w[0];
    if (width == 64) {
      g = Group{{g.w[2], g.w[3], 0, 0}};
    } else {
      const u32 shift = width & 31;  // 0 if whole registers move
      g.w[0] = shift ? g.w[0] >> shift | g.w[1] << (32 - shift) : g.w[1];
      g.w[1] = shift ? g.w[1] >> shift | g.w[2] << (32 - shift) : g.w[2];
      g.w[2] = shift ? g.w[2] >> shift | g.w[3] << (32 - shift) : g.w[3];
      g.w[3] = shift ? g.w[3] >> shift : 0;
    }
  }
}
