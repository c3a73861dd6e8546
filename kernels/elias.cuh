// elias.cuh - decoder of the elias codec (core/codec/elias/FORMAT.md).
//
// One warp decodes one block; a thread is a lane of the format, and lanes need
// nothing of each other. A lane walks its rows 16 bytes at a time: the classes
// of a whole group are counted at once, and only where a gap counter runs out
// are its words looked at one by one.
#pragma once

#include "common.cuh"

namespace elias {

const u32 kLanes = 32;
const u32 kBlockWords = 1u << 19;
const u32 kMaxZeros = 8;    // zeros that announce a plain word
const u32 kMaxGapBits = 15;
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

// A reader of a lane's bit string, most significant bit first. It never reads
// at or behind `last`.
struct Bits {
  const u32* words;  // global memory, 4-byte aligned
  u32 next;          // next word to load
  u32 last;          // words in the chunk, at least 1
  u64 window;        // unread bits, left-aligned
  u32 valid;         // of them in the window

  TPDE_FN u32 load() {
    u32 i = min_u32(next, last - 1);
    next++;
#ifdef __CUDA_ARCH__
    return byte_swap(__ldg(words + i));
#else
    return byte_swap(words[i]);
#endif
  }
  TPDE_FN void start(const u32* w, u32 count, u32 bit) {
    words = w;
    last = count;
    next = bit >> 5;
    window = (u64)load() << 32;
    window |= load();
    window <<= bit & 31;
    valid = 64 - (bit & 31);
  }
  // Makes at least 33 bits valid.
  TPDE_FN void refill() {
    if (valid <= 32) {
      window |= (u64)load() << (32 - valid);
      valid += 32;
    }
  }
  // The next 32 bits; refill() came before.
  TPDE_FN u32 peek() const { return (u32)(window >> 32); }
  TPDE_FN void skip(u32 n) {  // n is at most 32
    window <<= n;
    valid -= n;
  }
  // Reads n bits, 0 to 32.
  TPDE_FN u32 take(u32 n) {
    refill();
    u32 v = n ? peek() >> (32 - n) : 0;
    skip(n);
    return v;
  }
  TPDE_FN u32 position() const { return next * 32 - valid; }
};

// Reads a gap; what no encoder writes comes out below 2^15 as well.
TPDE_FN u32 read_gap(Bits& bits, u32 k) {
  bits.refill();
  u32 zeros = min_u32(leading_zeros(bits.peek()), kMaxGapBits);
  u32 n = 2 * zeros + 1 + k;
  if (n <= 32) {
    u32 v = (bits.peek() >> (32 - n)) - (1u << k);
    bits.skip(n);
    return v & 0x7fff;
  }
  u32 q = bits.take(2 * zeros + 1) - 1;
  return ((q << k) | bits.take(k)) & 0x7fff;
}

template <typename Word>
TPDE_FN Word unzigzag(Word z) {
  return (Word)((z >> 1) ^ (Word)(0 - (z & 1)));
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

// Reads the residual word of an event in a context with this code word.
template <typename Word>
TPDE_FN Word read_value(Bits& bits, u32 code_word) {
  u32 code = code_word & 0xff;
  bool dense = (code_word >> 8 & 3) == kDense;
  bits.refill();
  u32 head = bits.peek();
  if (code == kSign) {
    bits.skip(1);
    return (Word)1 - (Word)((head >> 31) << 1);
  }
  if (code == kVerbatim) return read_word<Word>(bits);
  u32 zeros = leading_zeros(head);
  if (zeros >= kMaxZeros) {
    bits.skip(kMaxZeros);
    return read_word<Word>(bits);
  }
  u32 n = 2 * zeros + 1;
  Word z;
  if (n + code <= 32) {
    z = (Word)((head >> (32 - n - code)) - (1u << code));
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

// The classes of the words of a group, counted in the bytes of the result.
template <typename Word>
TPDE_FN u32 count_classes(const Group& g, const u32* step, u32 shift) {
  u32 sum = 0;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    if (sizeof(Word) == 8) {
      if (i & 1) continue;
      u64 w = (u64)g.w[i + 1] << 32 | g.w[i];
      sum += step[w >> shift & 31];
    } else {
      u32 w = g.w[i] >> shift;
#pragma unroll
      for (int j = 0; j < 32; j += 8 * sizeof(Word)) sum += step[w >> j & 31];
    }
  }
  return sum;
}

// The gap counters of a lane, 2^15 above what is left of each gap, two to a
// register: classes 0 and 2, 1 and dense. A counter that falls below 2^15 says
// that a word has a value; the dense one always stands at 2^15.
struct Counters {
  u32 even, odd;
  TPDE_FN bool none_below() const { return (even & odd & 0x80008000u) == 0x80008000u; }
  TPDE_FN Counters minus(u32 sum) const {
    return {even - (sum & 0x00ff00ffu), odd - (sum >> 8 & 0x00ff00ffu)};
  }
  TPDE_FN u32 get(u32 c) const { return ((c & 1 ? odd : even) >> (c & 2 ? 16 : 0)) & 0xffff; }
  TPDE_FN void add(u32 c, u32 v) {
    v <<= (c & 2) * 8;
    if (c & 1) odd += v; else even += v;
  }
};

// What a lane knows of its block.
template <typename Word>
struct Block {
  const Word* base;  // global memory; nullptr: all zero
  Word* dst;         // global memory; may be base
  u32 words;
  bool aligned;      // base and dst are 16-byte aligned
};

// Loads the 16 bytes from word `first` on, or what is left of the block.
template <typename Word>
TPDE_FN Group load_group(const Block<Word>& b, u32 first) {
  const u32 n = 16 / sizeof(Word);
  Group g = {{0, 0, 0, 0}};
  if (!b.base) return g;
#ifdef __CUDA_ARCH__
  if (b.aligned && first + n <= b.words) {
    uint4 v = *reinterpret_cast<const uint4*>(b.base + first);
    g.w[0] = v.x, g.w[1] = v.y, g.w[2] = v.z, g.w[3] = v.w;
    return g;
  }
#endif
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

// Moves the lowest word of a group out and `in` into the highest place.
template <typename Word>
TPDE_FN void rotate(Group& g, Word in) {
  if (sizeof(Word) == 8) {
    g.w[0] = g.w[2], g.w[1] = g.w[3];
    g.w[2] = (u32)in, g.w[3] = (u32)((u64)in >> 32);
  } else if (sizeof(Word) == 4) {
    g.w[0] = g.w[1], g.w[1] = g.w[2], g.w[2] = g.w[3], g.w[3] = (u32)in;
  } else {
    const u32 s = 8 * sizeof(Word);
    g.w[0] = g.w[0] >> s | g.w[1] << (32 - s);
    g.w[1] = g.w[1] >> s | g.w[2] << (32 - s);
    g.w[2] = g.w[2] >> s | g.w[3] << (32 - s);
    g.w[3] = g.w[3] >> s | (u32)in << (32 - s);
  }
}

template <typename Word>
TPDE_FN Word lowest(const Group& g) {
  return sizeof(Word) == 8 ? (Word)((u64)g.w[1] << 32 | g.w[0]) : (Word)g.w[0];
}

// Decodes the bit string of a lane, from bit `start` of the strings, and
// writes the lane's target words. Returns false for a string that no encoder
// writes; `deltas` counts the changed words. `tables` is in shared memory.
template <typename Word>
TPDE_FN bool decode_lane(const Block<Word>& b, u32 lane, const Tables& tables, const u32* strings,
                         u32 string_words, u32 start, u32 end, u32& deltas) {
  const u32 n = 16 / sizeof(Word);
  const u32 row = n * kLanes;
  const bool in_place = b.base == b.dst;
  const u32 shift = tables.shift;
  Bits bits;
  bits.start(strings, string_words, start);
  Counters left = {0x80008000u, 0x80008000u};
  for (u32 c = 0; c < tables.classes; c++) left.add(c, read_gap(bits, tables.gap[c]));

  for (u32 first = lane * n; first < b.words; first += row) {
    Group g = load_group(b, first);
    u32 count = b.words - first;
    if (count >= n) {
      Counters after = left.minus(count_classes<Word>(g, tables.step, shift));
      if (after.none_below()) {
        left = after;
        if (!in_place) store_group(b, first, g);
        continue;
      }
      count = n;
    }
#pragma unroll 1
    for (u32 j = 0; j < n; j++) {
      Word w = lowest<Word>(g);
      if (j < count) {
        u32 context = (u32)((u64)w >> shift) & 31;
        left = left.minus(tables.step[context]);
        if (!left.none_below()) {
          u32 code = tables.code[context];
          Word v = read_value<Word>(bits, code);
          w = (Word)(w + v);
          deltas += v != 0;
          u32 c = code >> 8 & 3;
          // The counter stands at 2^15 - 1.
          left.add(c, 1 + (c == kDense ? 0 : read_gap(bits, code >> 16 & 0xff)));
        }
      }
      rotate<Word>(g, w);
    }
    store_group(b, first, g);
  }
  return bits.position() == end && left.even == 0x80008000u && left.odd == 0x80008000u;
}

}  // namespace elias
