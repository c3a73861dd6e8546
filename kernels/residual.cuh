// residual.cuh - how a residual word makes a target word of a base word, and the
// exceptions of the add residual.
#pragma once

#include "floats.cuh"

// Target word from base word and residual word (core/residual). -DADD=F32 and
// the like selects the add residual, where zero means "unchanged".
template <typename Word>
TPDE_FN Word apply(Word base, Word residual) {
#ifdef ADD
  return residual == 0 ? base : (Word)ADD::add(base, residual);
#else
  return (Word)(base + residual);
#endif
}

// 0, 1, 2, 3, ... stand for 0, -1, 1, -2, ...
template <typename Word>
TPDE_FN Word unzigzag(Word z) {
  return (Word)((z >> 1) ^ (Word)(0 - (z & 1)));
}

// The exceptions that lead a chunk of the add residual: words that no residual
// reproduces (core/container/FORMAT.md, "Chunk data"). None with the bit
// residual.
template <typename Word>
struct Exceptions {
  u32 count;
  const u32* at;
  const Word* words;
  u32 bytes;  // of the section
};

// Reads the section at the start of a chunk; false if it does not fit.
template <typename Word>
TPDE_FN bool parse_exceptions(const u8* data, u32 chunk_bytes, u32 chunk_words, Exceptions<Word>& e) {
  e.count = e.bytes = 0;
#ifdef ADD
  if (chunk_bytes < 8) return false;
  e.count = *reinterpret_cast<const u32*>(data);
  const u64 bytes = (4 + (u64)e.count * (4 + sizeof(Word)) + 7) / 8 * 8;
  if (e.count > chunk_words || bytes > chunk_bytes) return false;
  e.at = reinterpret_cast<const u32*>(data + 4);
  e.words = reinterpret_cast<const Word*>(e.at + e.count);
  e.bytes = (u32)bytes;
#endif
  return true;
}

// The target word of exception i.
template <typename Word>
TPDE_FN Word exception_word(const Exceptions<Word>& e, u32 i) {
  if (sizeof(Word) == 8) {  // only 4-byte aligned
    const u32* half = reinterpret_cast<const u32*>(e.words + i);
    return (Word)((u64)half[1] << 32 | half[0]);
  }
  return e.words[i];
}

// Whether exception i is in range and behind the one before.
template <typename Word>
TPDE_FN bool good_exception(const Exceptions<Word>& e, u32 i, u32 chunk_words) {
  return e.at[i] < chunk_words && (i == 0 || e.at[i - 1] < e.at[i]);
}
