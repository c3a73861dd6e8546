// prefix_block.cuh - the blocks of the prefix codec (core/codec/prefix/FORMAT.md):
// where their parts lie, and their exceptions. prefix.cuh decodes what is
// between.
#pragma once

#include "group.cuh"
#include "residual.cuh"
#ifdef QUANT
#include "dequant.cuh"
#endif

namespace prefix {

const u32 kLanes = 32;
const u32 kBlockWords = 1u << 16;
const u32 kManyExceptions = 2047;  // their number follows the head
const u32 kMaxWidth = 16;          // bits of an entry of the lane table
const u32 kMaxTotal = 24;          // bits of a code with its plain bits
const u32 kIndex = 8;              // bits of the codes that encoders make, at most
const u32 kMaxLaneBits = kBlockWords / kLanes * kMaxTotal;

// Parameters of a tensor, expanded on the host from the codec tables. Behind
// them lie u8 context[keys], and u32 entry[entries]: for each context 2^index
// entries, with the length of code and plain bits in bits 0-4 and the bias in
// bits 16-31, and a gap of one before those of the next. Both are padded to 16 bytes.
//
// Ramp: the context of a key is key - first, but 0 if that is less, and `last` if
// it is more. The host numbers contexts so where it can, and repeats the entries of
// one that several keys have: arithmetic is faster than a look-up.
struct Tables {
  u32 shift;          // key of a coded part: part >> shift & mask
  u32 mask;           // keys less one, before padding; 0: there is one context
  u32 index;          // bits of a window that an entry is found by, at least kIndex
  u32 longest;        // most bits of a code with its plain bits
  u32 keys;           // a power of two, at least 16
  u32 entries;        // with the gaps, a multiple of 4
  u32 sign_extended;  // parts stand for whole residual words; else there are planes
  u32 copies;         // of the entries in shared memory: a power of two, at most kLanes
  u32 ramp;           // 1: contexts are a ramp
  u32 first, last;    // its first key, and its last context
  u32 zero;           // 0, which the compiler does not know: Queue::fetch

  // What lies behind.
  TPDE_FN const u32* behind() const { return reinterpret_cast<const u32*>(this + 1); }
  TPDE_FN u32 words() const { return keys / 4 + entries; }
  // What it takes in shared memory, where the contexts are aligned to all of them.
  TPDE_FN u32 shared_words() const { return keys / 2 + copies * entries; }
};
static_assert(sizeof(Tables) == 48, "layout is shared with the host");

// What a lane owns of a row.
template <typename Word>
struct Shape {
  static const u32 kWords = sizeof(Word) == 1 ? 16 : 8;
  static const u32 kVectors = kWords * sizeof(Word) / 16;                    // of base and target
  static const u32 kPlanes = sizeof(Word) <= 2 ? 0 : sizeof(Word) / 2 - 1;   // of floats
  static const u32 kRow = kLanes * kWords;                                   // words of all lanes
  // Rows that are on their way: what hides the latency of memory where a tensor
  // has few chunks.
  static const u32 kFetch = 4;  // rows ahead of which bases are brought to the L2 cache, if lanes load for themselves
#ifdef QUANT
  static const u32 kAhead = 1, kQueueWords = 0;
#else
  static const u32 kAhead = sizeof(Word) == 4 ? 2 : 1;
  static const u32 kRowWords = (kVectors + kPlanes) * kLanes * 4;         // 32-bit words of base and planes
  static const u32 kQueueWords = kVectors == 1 ? 0 : kAhead * kRowWords;  // of shared memory, as the host counts them
#endif
};

// What a lane knows of its block.
template <typename Word>
struct Block {
  const Word* base;    // global memory; nullptr: all zero; unused with QUANT
  Word* dst;           // global memory; may be base
  u32 words;
  bool aligned;        // base and dst are 16-byte aligned
  bool sign_extended;  // as in Tables
  bool wide_planes;    // planes are 16-byte aligned
  const u32* planes;   // global memory
  u32 plane_words;     // 32-bit words from one plane to the next
  u32 exceptions;
  const u16* at;       // their word numbers, in shared or global memory
  const u32* values;   // their target words, next to them
#ifdef QUANT
  const quant::QuantBase* quantised;  // shared memory
  u64 first;                          // element of the tensor that word 0 is
  quant::Run run;                     // of all words, if `regular`
  bool regular;
#endif
};

// Whether rows can be loaded and stored 16 bytes at a time.
template <typename Word>
TPDE_FN bool is_aligned(const Block<Word>& b) {
#ifdef QUANT
  if (!b.regular) return false;
#endif
  return b.aligned && (Shape<Word>::kPlanes == 0 || b.sign_extended || b.wide_planes);
}

// Where the parts of a block lie, in 32-bit words from its start; every size is
// checked before it is used.
struct Cursor {
  const u32* data;  // of the block, in global memory; behind its planes, once they are found
  u32 left;         // words not yet used, of this block and those behind
  u32 used;         // words from `data` on

  TPDE_FN u32 take(u32 n) {  // n is at most left
    const u32 at = used;
    left -= n;
    used += n;
    return at;
  }
  // Goes on to what is behind the words used.
  TPDE_FN void next() {
    data += used;
    used = 0;
  }
};

const u32 kMostHead = 2 + kMaxWidth;  // words that take_head and lane_bits look at

struct Head {
  u32 least, width;
  const u32* table;  // of the lanes
};

// Where what follows the head lies.
struct Parts {
  u32 strings, string_words, at, values;
};

// Finds the planes. Once that is done, rows can be loaded.
template <typename Word>
TPDE_FN bool take_planes(Cursor& c, Block<Word>& b) {
  b.plane_words = (b.words + 7) / 8 * 4;
  const u32 all = b.sign_extended ? 0 : Shape<Word>::kPlanes * b.plane_words;
  if (all > c.left) return false;
  b.planes = c.data;
  b.wide_planes = ((u64)b.planes & 15) == 0;
  c.take(all);
  c.next();
  return true;
}

// The words from c.data on, or a copy of the first kMostHead of them, are at
// `from`.
template <typename Word>
TPDE_FN bool take_head(Cursor& c, const u32* from, Block<Word>& b, Head& h) {
  if (c.left < 1) return false;
  const u32 head = from[c.take(1)];
  h.least = head & 0xffff;
  h.width = head >> 16 & 31;
  b.exceptions = head >> 21;
  if (b.exceptions == kManyExceptions) {
    if (c.left < 1) return false;
    b.exceptions = from[c.take(1)];
    if (b.exceptions < kManyExceptions) return false;
  }
  if (h.width > kMaxWidth || b.exceptions > b.words || c.left < h.width) return false;
  h.table = from + c.take(h.width);
  return true;
}

// The length of a lane's bit string: an entry of the lane table, which has
// `width` words for 32 numbers of `width` bits.
TPDE_FN u32 lane_bits(const Head& h, u32 lane) {
  if (h.width == 0) return h.least;
  const u32 at = lane * h.width, i = at >> 5;
  const u32 a = byte_swap(h.table[i]), b = byte_swap(h.table[min_u32(i + 1, h.width - 1)]);
  return h.least + (u32)((((u64)a << 32 | b) << (at & 31)) >> (64 - h.width));
}

// Finds the bit strings, which take `bits` bits in all, and the exceptions.
template <typename Word>
TPDE_FN bool take_strings(Cursor& c, const Block<Word>& b, u32 bits, Parts& p) {
  p.string_words = (bits + 31) / 32;
  const u32 at_words = (b.exceptions + 1) / 2;
  const u32 value_words = (b.exceptions * (u32)sizeof(Word) + 3) / 4;
  const bool planes = Shape<Word>::kPlanes > 0 && !b.sign_extended;  // of multiples of 4 words
  const u32 all = p.string_words + at_words + value_words;
  const u32 padding = planes ? (0 - (c.used + all)) & 3 : 0;
  if (all + padding > c.left) return false;
  p.strings = c.take(p.string_words);
  p.at = c.take(at_words);
  p.values = c.take(value_words);
  c.take(padding);
  return true;
}

// Says that the block's parts are at `from`.
template <typename Word>
TPDE_FN void set_exceptions(Block<Word>& b, const u32* from, const Parts& p) {
  b.at = reinterpret_cast<const u16*>(from + p.at);
  b.values = from + p.values;
}

template <typename Word>
TPDE_FN Word exception_value(const Block<Word>& b, u32 i) {
  if (sizeof(Word) == 8) return (Word)((u64)b.values[2 * i + 1] << 32 | b.values[2 * i]);  // only 4-byte aligned
  return reinterpret_cast<const Word*>(b.values)[i];
}

// Checks a lane's share of the exceptions and, unless decode_row has done it,
// puts them in their place, once all lanes have stored their words.
template <typename Word>
TPDE_FN bool finish_exceptions(const Block<Word>& b, u32 lane) {
  bool good = true;
  for (u32 i = lane; i < b.exceptions; i += kLanes) {
    const u32 p = b.at[i];
    const bool fine = p < b.words && (i == 0 || b.at[i - 1] < p);
    good = good && fine;
#ifndef ADD
    if (fine) b.dst[p] = exception_value(b, i);
#endif
  }
  return good;
}

}  // namespace prefix
