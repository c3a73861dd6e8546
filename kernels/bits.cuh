// bits.cuh - readers of bit strings: bytes with the most significant bit first,
// in 32-bit words of global memory that nobody writes meanwhile.
#pragma once

#include "common.cuh"

// A reader of a bit string from front to back. It never reads at or behind
// `last`. One word is always loaded ahead, so that nobody waits
// for memory.
struct Bits {
  const u32* words;  // global memory, 4-byte aligned
  u32 next;          // word that `ahead` holds
  u32 last;          // words in the chunk, at least 1
  u32 ahead;         // as in memory
  u32 high, low;     // the two words before it
  u32 used;          // bits of `high` already read, below 32

  TPDE_FN u32 load(u32 i) const {
    i = min_u32(i, last - 1);
#ifdef __CUDA_ARCH__
    return __ldg(words + i);
#else
    return words[i];
#endif
  }
  TPDE_FN void start(const u32* w, u32 count, u32 bit) {
    words = w;
    last = count;
    next = (bit >> 5) + 2;
    high = byte_swap(load(next - 2));
    low = byte_swap(load(next - 1));
    ahead = load(next);
    used = bit & 31;
  }
  // The next 32 bits.
  TPDE_FN u32 peek() const { return bits_between(high, low, used); }
  TPDE_FN void skip(u32 n) {  // n is at most 32
    used += n;
    if (used >= 32) {
      used -= 32;
      high = low;
      low = byte_swap(ahead);
      ahead = load(++next);
    }
  }
  // Reads n bits, 0 to 32.
  TPDE_FN u32 take(u32 n) {
    u32 v = n ? peek() >> (32 - n) : 0;
    skip(n);
    return v;
  }
  TPDE_FN u32 position() const { return (next - 2) * 32 + used; }
};

// Bits [at, at + n) of a string of `words` words, at least 1; n is at most 32.
// Behind the last word the bits are anything.
TPDE_FN u32 bits_at(const u32* p, u32 words, u32 at, u32 n) {
  if (n == 0) return 0;
  const u32 i = at >> 5;
#ifdef __CUDA_ARCH__
  const u32 a = __ldg(p + min_u32(i, words - 1)), b = __ldg(p + min_u32(i + 1, words - 1));
#else
  const u32 a = p[min_u32(i, words - 1)], b = p[min_u32(i + 1, words - 1)];
#endif
  return bits_between(byte_swap(a), byte_swap(b), at) >> (32 - n);
}

// Bit `at` of such a string.
TPDE_FN u32 bit_at(const u32* p, u32 words, u32 at) {
  const u32* word = p + min_u32(at >> 5, words - 1);
  const u32 shift = (at & 31) ^ 7;  // bytes are in order, their bits are not
#ifdef __CUDA_ARCH__
  return __ldg(word) >> shift & 1;
#else
  return *word >> shift & 1;
#endif
}
