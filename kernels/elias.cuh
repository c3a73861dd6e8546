// elias.cuh - decoder of the elias codec (core/codec/elias/FORMAT.md).
//
// One warp decodes one block; a thread is a lane of the format, and lanes need
// nothing of each other. A lane walks its rows 16 bytes at a time: the classes
// of a whole group are counted at once, and only where a gap counter runs out
// are its words looked at one by one.
#pragma once

#include "group.cuh"
#include "residual.cuh"
#ifdef QUANT
#include "dequant.cuh"
#endif
#include "bits.cuh"

namespace elias {

const u32 kLanes = 32;
const u32 kBlockWords = 1u << 19;
const u32 kMaxZeros = 8;    // zeros that announce a plain word
const u32 kMaxGapBits = 15;
const u32 kBeyondLane = 0x7fff;  // stands for every gap above it; no lane has as many words
const u32 kDense = 3;       // the class in which every word has a value
const u32 kSign = 0xfe, kVerbatim = 0xff;

// Parameters of a tensor, expanded on the host from the codec tables. It is
// copied to shared memory: one 4-byte bank per context, so that lanes that
// look up different contexts never conflict.
struct Tables {
  u32 step[32];     // 1 in the byte of the context's class
  u32 code[32];     // value code in bits 0-7, class in bits 8-9, gap parameter in bits 16-23
  u32 gap[3];       // gap parameter of each class
  u32 classes;      // number of gap classes
  u32 shift;        // context of a word: word >> shift & 31
  u32 reserved[3];
};
static_assert(sizeof(Tables) == 288, "layout is shared with the host");

// Reads a gap. One that no encoder writes comes out as one that no lane can
// close, and below 2^15.
TPDE_FN u32 read_gap(Bits& bits, u32 k) {
  const u32 zeros = leading_zeros(bits.peek());
  if (zeros > kMaxGapBits) return kBeyondLane;
  const u32 n = 2 * zeros + 1 + k;
  if (n <= 32) {
    const u32 v = (bits.peek() >> (32 - n)) - (1u << k);
    bits.skip(n);
    return min_u32(v, kBeyondLane);
  }
  const u32 q = bits.take(2 * zeros + 1) - 1;
  return min_u32(q << k | bits.take(k), kBeyondLane);
}

// Reads a plain word.
template <typename Word>
TPDE_FN Word read_word(Bits& bits) {
  if (sizeof(Word) == 8) {
    u64 high = bits.take(32);
    return (Word)(high << 32 | bits.take(32));
  }
  return (Word)bits.take(8 * sizeof(Word));
}

// Reads the residual word of an event in a context with this code word. The
// three value codes are told apart by selection rather than branches where the
// code fits 32 bits, since the lanes of a warp rarely agree on one.
template <typename Word>
TPDE_FN Word read_value(Bits& bits, u32 code_word) {
  const u32 code = code_word & 0xff;
  const bool dense = (code_word >> 8 & 3) == kDense;
  const bool sign = code == kSign, verbatim = code == kVerbatim;
  const u32 head = bits.peek();
  const u32 zeros = leading_zeros(head);
  const bool escape = zeros >= kMaxZeros;
  if (sizeof(Word) <= 2) {
    const u32 width = 8 * sizeof(Word);
    const u32 plain = verbatim ? 0 : kMaxZeros;  // bits before a plain word
    const bool is_plain = verbatim || (escape && !sign);
    const u32 gamma = 2 * zeros + 1 + code;
    const u32 total = sign ? 1 : is_plain ? plain + width : gamma;
    const u32 raw = head << (is_plain ? plain : 0) >> (32 - (is_plain ? width : total));
    bits.skip(total);
    const Word z = (Word)(raw - (1u << (code & 31)) + (dense ? 0 : 1));
    // Chosen by a mask: of a condition the compiler makes branches.
    const u32 zigzag = sign || is_plain ? 0 : ~0u;
    return (Word)(((sign ? 1 - 2 * raw : raw) & ~zigzag) | (unzigzag<Word>(z) & zigzag));
  }
  if (sign) {
    bits.skip(1);
    return (Word)1 - (Word)((head >> 31) << 1);
  }
  if (verbatim || escape) {
    bits.skip(verbatim ? 0 : kMaxZeros);
    return read_word<Word>(bits);
  }
  const u32 n = 2 * zeros + 1;
  Word z;
  if (n + code <= 32) {
    z = (Word)((head >> (32 - n - code)) - (1u << (code & 31)));
    bits.skip(n + code);
  } else {
    u64 q = (head >> (32 - n)) - 1;
    bits.skip(n);
    if (code > 32) {
      q = q << (code - 32) | bits.take(code - 32);
      z = (Word)(q << 32 | bits.take(32));
    } else {
      z = (Word)(q << code | bits.take(code));
    }
  }
  return unzigzag<Word>((Word)(z + (dense ? 0 : 1)));
}

// The gap counters of a lane: classes 0 and 1, 2 and the dense class, whose
// counter is always zero, in the halves of two registers.
struct Counters {
  u32 low, high;

  // The counters, at most 0x6f of each, above 0x80 in the bytes of a register:
  // enough to find the events of a group of 16 words.
  TPDE_FN u32 bytes() const {
    u32 a = min_u32(low & 0xffff, 0x6f) | min_u32(low >> 16, 0x6f) << 8;
    return 0x80808080u + (a | min_u32(high & 0xffff, 0x6f) << 16);
  }
  // Takes the words counted in the bytes of `sum` off the counters.
  TPDE_FN void subtract(u32 sum) {
    low -= (sum & 0xff) | (sum & 0xff00) << 8;
    high -= sum >> 16 & 0xff;
  }
  TPDE_FN void set(u32 c, u32 gap) {
    if (c == 0) low = (low & 0xffff0000u) | gap;
    if (c == 1) low = (low & 0xffffu) | gap << 16;
    if (c == 2) high = gap;
  }
};

// What a lane knows of its block.
template <typename Word>
struct Block {
  const Word* base;  // global memory; nullptr: all zero; unused with QUANT
  Word* dst;         // global memory; may be base
  u32 words;
  bool aligned;      // base and dst are 16-byte aligned
#ifdef QUANT
  const quant::QuantBase* quantised;  // shared memory
  u64 first;                          // element of the tensor that word 0 is
#endif
};

// Loads the 16 bytes from word `first` on, or what is left of the block.
template <typename Word>
TPDE_FN Group load_group(const Block<Word>& b, u32 first) {
  const u32 n = 16 / sizeof(Word);
  Group g = {{0, 0, 0, 0}};
#ifdef QUANT
  if (first < b.words) g = quant::dequant_any<QUANT>(*b.quantised, b.first + first, min_u32(b.words - first, n));
  return g;
#endif
  if (!b.base) return g;
#ifdef __CUDA_ARCH__
  if (b.aligned && first + n <= b.words) {
    uint4 v = *reinterpret_cast<const uint4*>(b.base + first);
    g.w[0] = v.x, g.w[1] = v.y, g.w[2] = v.z, g.w[3] = v.w;
    return g;
  }
#endif
#pragma unroll 1
  for (u32 j = 0; j < n && first + j < b.words; j++) {
    u64 w = (u64)b.base[first + j];
    u32 bit = j * 8 * sizeof(Word);
    // A dynamic index would put the group into local memory.
    for (u32 i = 0; i < 4; i++) {
      if (bit / 32 == i) g.w[i] |= (u32)(w << (bit % 32));
      if (sizeof(Word) == 8 && bit / 32 + 1 == i) g.w[i] |= (u32)(w >> 32);
    }
  }
  return g;
}

template <typename Word>
TPDE_FN void store_group(const Block<Word>& b, u32 first, const Group& g) {
  const u32 n = 16 / sizeof(Word);
#ifdef __CUDA_ARCH__
  if (b.aligned && first + n <= b.words) {
    *reinterpret_cast<uint4*>(b.dst + first) = make_uint4(g.w[0], g.w[1], g.w[2], g.w[3]);
    return;
  }
#endif
#pragma unroll 1
  for (u32 j = 0; j < n && first + j < b.words; j++) {
    u32 bit = j * 8 * sizeof(Word);
    u64 w = 0;
    for (u32 i = 0; i < 4; i++) {
      if (bit / 32 == i) w |= (u64)(g.w[i] >> (bit % 32));
      if (sizeof(Word) == 8 && bit / 32 + 1 == i) w |= (u64)g.w[i] << 32;
    }
    b.dst[first + j] = (Word)w;
  }
}

// Word j of a group; j is known only at run time, and indexing registers by it
// would put the group into local memory.
template <typename Word>
TPDE_FN Word word_at(const Group& g, u32 j) {
  if (sizeof(Word) == 8) return j == 0 ? group_word<Word>(g, 0) : group_word<Word>(g, 1);
  const u32 bit = j * 8 * sizeof(Word);
  const u32 a = bit & 32 ? g.w[1] : g.w[0], b = bit & 32 ? g.w[3] : g.w[2];
  return (Word)((bit & 64 ? b : a) >> (bit & 31));
}

// Sets word j of a group of zeros.
template <typename Word>
TPDE_FN void put_at(Group& g, u32 j, Word v) {
  if (sizeof(Word) == 8) {
    if (j == 0) set_group_word<Word>(g, 0, v); else set_group_word<Word>(g, 1, v);
    return;
  }
  // One of four: with an index, or a condition, the compiler makes branches of it.
#pragma unroll
  for (u32 i = 0; i < 4; i++) g.w[i] |= shift_left_out((u32)v, j * 8 * (u32)sizeof(Word) - 32 * i);
}

// Adds a group of residuals to a group of base words.
template <typename Word>
TPDE_FN void apply_group(Group& g, const Group& residual) {
#pragma unroll
  for (u32 j = 0; j < 16 / sizeof(Word); j++) {
    set_group_word<Word>(g, j, apply<Word>(group_word<Word>(g, j), group_word<Word>(residual, j)));
  }
}

// A lane of a tensor in which every word has a value: no gaps to count.
template <typename Word>
TPDE_FN void decode_dense(const Block<Word>& b, u32 lane, const Tables& tables, Bits& bits, u32& deltas) {
  const u32 n = 16 / sizeof(Word);
  const u32 row = n * kLanes;
  const u32 shift = tables.shift;
  Group next = load_group(b, lane * n);
  for (u32 first = lane * n; first < b.words; first += row) {
    Group g = next;
    next = load_group(b, first + row);
    const u32 count = b.words - first;
#pragma unroll
    for (u32 j = 0; j < n; j++) {
      if (j >= count) break;
      const Word w = group_word<Word>(g, j);
      const Word v = read_value<Word>(bits, tables.code[(u32)((u64)w >> shift) & 31]);
      set_group_word<Word>(g, j, apply<Word>(w, v));
      deltas += v != 0;
    }
    store_group(b, first, g);
  }
}

// A lane of a tensor with gap classes. Returns false if a
// gap is left open or a value is that of an unchanged word.
template <typename Word>
TPDE_FN bool decode_sparse(const Block<Word>& b, u32 lane, const Tables& tables, Bits& bits, u32& deltas) {
  const u32 n = 16 / sizeof(Word);
  const u32 row = n * kLanes;
  const bool in_place = b.base == b.dst;
  const u32 shift = tables.shift;
  bool good = true;
  Counters left = {0, 0};
  for (u32 c = 0; c < tables.classes; c++) left.set(c, read_gap(bits, tables.gap[c]));

  // Two rows ahead, so that the loads of a lane overlap its arithmetic.
  Group next = load_group(b, lane * n), after_next = load_group(b, lane * n + row);
  for (u32 first = lane * n; first < b.words; first += row) {
    Group g = next;
    next = after_next;
    after_next = load_group(b, first + 2 * row);
    const u32 count = min_u32(b.words - first, n);
    u32 upto[n];  // words of each class, counted in bytes, up to word j
    u32 sum = 0;
#pragma unroll
    for (u32 j = 0; j < n; j++) {
      // Behind the end there are zeros, which have a step that is not taken: a look-up for nothing, not a branch.
      const u32 step = tables.step[(u32)((u64)group_word<Word>(g, j) >> shift) & 31];
      sum += j < count ? step : 0;
      upto[j] = sum;
    }
    Group residual = {{0, 0, 0, 0}};
    u32 done = 0;  // what has been taken off the counters
    bool changed = false;
    // Every turn takes the next event of the lane, wherever in the group it
    // is, so that the lanes of a warp take theirs at the same time.
    for (;;) {
      const u32 start = left.bytes() + done;
      // A counter that has run out at some word has run out at the last one, too.
      if (((start - sum) & 0x80808080u) == 0x80808080u) break;
      u32 event = n - 1, before = sum;
#pragma unroll
      for (u32 j = n - 1; j-- > 0;) {
        if (((start - upto[j]) & 0x80808080u) != 0x80808080u) event = j, before = upto[j];
      }
      const u32 code = tables.code[(u32)((u64)word_at<Word>(g, event) >> shift) & 31];
      const Word v = read_value<Word>(bits, code);
      put_at<Word>(residual, event, v);
      deltas += v != 0;
      const u32 c = code >> 8 & 3;
      good = good && (v != 0 || c == kDense);  // an unchanged word has no event
      // The word of the event itself is not counted: its gap has run out.
      left.subtract((before - done) - (1u << 8 * c));
      if (c != kDense) left.set(c, read_gap(bits, code >> 16 & 0xff));
      done = before;
      changed = true;
    }
    left.subtract(sum - done);
    if (changed) apply_group<Word>(g, residual);
    if (changed || !in_place) store_group(b, first, g);
  }
  return good && left.low == 0 && left.high == 0;
}

// Decodes the bit string of a lane, from bit `start` of the strings to `end`,
// and writes the lane's target words. Returns false for a string that no
// encoder writes; `deltas` counts the changed words. `tables` is in shared
// memory.
template <typename Word>
TPDE_FN bool decode_lane(const Block<Word>& b, u32 lane, const Tables& tables, const u32* strings,
                         u32 string_words, u32 start, u32 end, u32& deltas) {
  Bits bits;
  bits.start(strings, string_words, start);
  bool good = true;
  if (tables.classes == 0) {
    decode_dense(b, lane, tables, bits, deltas);
  } else {
    good = decode_sparse(b, lane, tables, bits, deltas);
  }
  return good && bits.position() == end;
}

}  // namespace elias
