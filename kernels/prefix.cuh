// prefix.cuh - decoder of the prefix codec (core/codec/prefix/FORMAT.md).
//
// One warp decodes one block; a thread is a lane of the format. A lane takes
// its words of a row, 8 or 16 of them, as 16-bit coded parts, two to a
// register, decodes those with one look-up each, and makes words of them again.
// Lanes need nothing of each other but the starts of their bit strings.
#pragma once

#include "prefix_block.cuh"
#include "prefix_memory.cuh"
#include "prefix_rows.cuh"
#include "stage.cuh"

namespace prefix {

const u32 kPairBits = 16;  // codes up to this long: two to a refill

// w << (n & 31), which is one instruction, where C++ has to mask.
TPDE_FN u32 shift_left(u32 w, u32 n) {
#ifdef __CUDA_ARCH__
  return __funnelshift_l(0, w, n);
#else
  return w << (n & 31);
#endif
}

// The sums of both halves, each modulo 2^16.
TPDE_FN u32 add_halves(u32 a, u32 b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  u32 v;
  asm("add.u16x2 %0, %1, %2;" : "=r"(v) : "r"(a), "r"(b));
  return v;
#else
  return ((a & 0x7fff7fffu) + (b & 0x7fff7fffu)) ^ ((a ^ b) & 0x80008000u);
#endif
}

const u32 kInBoth = 0x10001;  // times a number: that number in both halves

// The sums of both halves of a and b, but at least 0 and at most those of `most`. Halves
// are less than 2^13 and not negative, but for those of b, which are not positive and both
// the same.
TPDE_FN u32 add_clamped(u32 a, u32 b, u32 most) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  u32 v;
  asm("{ .reg .b32 sum; add.s16x2 sum, %1, %2; min.relu.s16x2 %0, sum, %3; }" : "=r"(v) : "r"(a), "r"(b), "r"(most));
  return v;
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  // As 16-bit floats such numbers are in the same order.
  const u32 from = ((0 - b) & 0xffff) * kInBoth;
  u32 v;
  asm("{ .reg .b32 m; max.f16x2 m, %1, %2; sub.u32 m, m, %2; min.f16x2 %0, m, %3; }" : "=r"(v) : "r"(a), "r"(from), "r"(most));
  return v;
#else
  const u32 sum = add_halves(a, b);
  const int low = (short)sum, high = (int)sum >> 16;
  return (high < 0 ? 0 : min_u32(high, most >> 16)) << 16 | (low < 0 ? 0 : min_u32(low, most & 0xffff));
#endif
}

// How contexts are found: there is one; by arithmetic, as they are a ramp; or, whatever
// they are, by a look-up.
enum Contexts : u32 { kOne, kRamp, kAny };

// c plus the products of both halves of a, which are not signed, with n, less than 256.
TPDE_FN u32 add_products(u32 a, u32 n, u32 c) {
#ifdef __CUDA_ARCH__
  u32 v;
  asm("dp2a.lo.u32.u32 %0, %1, %2, %3;" : "=r"(v) : "r"(a), "r"(n * 0x101), "r"(c));
  return v;
#else
  return ((a & 0xffff) + (a >> 16)) * (n & 0xff) + c;
#endif
}

// The tables in shared memory. A context is a byte, so that those of 128 keys lie in
// 32 banks, and no two of them collide; they are aligned to all of them, so that no
// key, however large the part is, is looked up elsewhere. Between the entries of two
// contexts there is a gap of one, so that those of the same number lie in different
// banks: where most words have not changed, most lanes look for the same one. Of few
// entries there are copies, one behind the other word by word, so that lanes that look
// for different ones find them in different banks.
struct Decoding {
  struct alignas(8) Two {
    u32 first, second;
  };

  u32* contexts;
  u32* entries;
  Shared context, entry;  // the lane's copy of the first one
  u32 shift, mask, index;
  u32 less, last;  // of the ramp, the negative of its first key and its last context, in both halves
  u32 stride;      // bytes from one entry of a copy to the next
  u32 zero;        // that of Tables

  // `room` is shared memory, t.shared_words() words.
  TPDE_FN Decoding(const Tables& t, u32* room, u32 lane) {
    const u64 size = t.keys;  // a power of two
    contexts = room + ((0 - (u64)Shared::of(room).address) & (size - 1)) / 4;
    entries = contexts + t.keys / 4;
    stride = 4 * t.copies;
    context = Shared::of(contexts), entry = Shared::of(entries + (lane & (t.copies - 1)));
    shift = t.shift;
    mask = t.mask * kInBoth;
    index = t.index;
    zero = t.zero;
    less = ((0 - t.first) & 0xffff) * kInBoth, last = t.last * kInBoth;
  }
  // Thread i of `threads` copies its share; `behind` is what lies behind Tables.
  TPDE_FN void stage_tables(const Tables& t, const u32* behind, u32 i, u32 threads) const {
    stage(contexts, behind, t.keys / 4, i, threads);
    behind += t.keys / 4;
    if (t.copies == 1) {
      stage(entries, behind, t.entries, i, threads);
    } else {  // by way of registers: a copy past them would take a turn for each word
      const u32 shift = 31 - leading_zeros(t.copies);
#pragma unroll 8
      for (; i < t.copies * t.entries / 2; i += threads) {
        const u32 e = behind[2 * i >> shift];
        *reinterpret_cast<Two*>(entries + 2 * i) = Two{e, e};
      }
    }
  }
  // The contexts of the parts in both halves of x, in the same halves.
  template <Contexts How>
  TPDE_FN u32 contexts_of(u32 x) const {
    const u32 keys = x >> shift & mask;
    if (How == kOne) return 0;
    if (How == kRamp) return add_clamped(keys, less, last);
    return context_of(keys & 0xffff) | context_of(keys >> 16) << 16;
  }
  TPDE_FN u32 context_of(u32 key) const {
#ifdef __CUDA_ARCH__
    return Shared{key | context.address}.byte();
#else
    return context.plus(key).byte();
#endif
  }
  // The entry of a window and the context in the low half of `contexts`, or in the
  // high one. Near: the index has kIndex bits.
  template <bool Near>
  TPDE_FN u32 find(u32 contexts, bool high, u32 window) const {
    if (!Near) {
      const u32 c = contexts >> 16 * high & 0xff;
      return entry.plus(((c << index) + c + top_bits(window, index)) * stride).word();
    }
    // The low half is the number, the high one c << 8 | c: so many entries and gaps lie
    // before those of context c.
    const u32 n = permute(window, contexts, high ? 0x6653 : 0x4453);
#ifdef __CUDA_ARCH__
    return Shared{add_products(n, stride, entry.address)}.word();
#else
    return entry.plus(add_products(n, stride, 0)).word();
#endif
  }
};

// A reader of a lane's bit string, most significant bit first. One word is
// loaded ahead, so that nobody waits for it for long. Wherever damaged data send it, it
// reads no word but 0 to the last one.
template <typename Memory>
struct Bits {
  Memory last;
  Memory next;  // the word that `ahead` holds
  // Bits read since the start of the lane's first word, in bits 0-15: what
  // tables allow, and so any string that is well formed, is shorter. The bits
  // above are what biases of entries add up to, and mean nothing.
  u32 position;
  u32 high, low;  // the word that the next bit is in, and the one behind it
  u32 ahead;      // the next one, as in memory
  u32 window;     // the next 32 bits

  TPDE_FN Bits(const u32* words, u32 count, u32 bit) {
    const Memory first = Memory::of(words);
    const u32 at = min_u32(bit >> 5, count - 1) * 4, end = 4 * (count - 1);
    last = first.plus(end);
    next = first.plus(min_u32(at + 8, end));
    position = bit & 31;
    high = byte_swap(first.plus(at).word());
    low = byte_swap(first.plus(min_u32(at + 4, end)).word());
    ahead = next.word();
    window = bits_between(high, low, position);
  }
  // The next 32 bits.
  TPDE_FN u32 peek() const { return window; }
  // Goes on by the low 16 bits of n, at most 32. Both: the windows on this side and
  // behind the end of a word are both made, since it takes long to tell which it is.
  template <bool Both>
  TPDE_FN void skip(u32 n) {
    const u32 to = position + n;
    u32 here = Both ? bits_between(high, low, to) : 0;
    const u32 there = Both ? bits_between(low, byte_swap(ahead), to) : 0;
    if ((to ^ position) & 32) {
      high = low;
      low = byte_swap(ahead);
      next = before_of(next.plus(4), last);
      ahead = next.word();
      if (Both) here = there;
    }
    window = Both ? here : bits_between(high, low, to);
    position = to;
  }
  // Whether `bits` bits have been read, from bit `start` of the strings on.
  TPDE_FN bool read(u32 start, u32 bits) const {
    return bits <= kMaxLaneBits && (position & 0xffff) == (start & 31) + bits;
  }
};

// Decodes the coded parts of 8 words, two to a register. Pair: no code is longer
// than kPairBits. Part: only the first `count` words exist.
template <Contexts How, bool Pair, bool Part, typename Memory>
TPDE_FN void decode_parts(u32* parts, Bits<Memory>& bits, const Decoding& d, u32 count) {
#ifdef QUANT
  const bool kBoth = false;  // lanes have enough to do, and it would be more
#else
  const bool kBoth = Pair;
#endif
#pragma unroll
  for (u32 i = 0; i < 4; i++) {
    const u32 x = parts[i];
    const u32 contexts = d.contexts_of<How>(x);
    const u32 window = bits.peek();
    u32 a = d.find<Memory::kNear>(contexts, false, window);
    if (Part && 2 * i >= count) a = 0;
    u32 behind;
    if (Pair) {
      behind = shift_left(window, a);
    } else {
      bits.template skip<false>(a);
      behind = bits.peek();
    }
    u32 b = d.find<Memory::kNear>(contexts, true, behind);
    if (Part && 2 * i + 1 >= count) b = 0;
    bits.template skip<kBoth>(Pair ? a + b : b);
    const u32 plain = permute(top_bits(window, a), top_bits(behind, b), kLowHalves);
    parts[i] = add_halves(add_halves(x, permute(a, b, kHighHalves)), plain);
  }
}

// The coded parts of 8 words of a row: of all, or of half of bytes.
template <typename Word>
TPDE_FN void take_parts(const Block<Word>& b, const Row<Word>& row, u32 half, u32* parts) {
#pragma unroll
  for (u32 i = 0; i < 4; i++) {
    if (sizeof(Word) == 1) {
      parts[i] = permute(row.base[0].w[2 * half + i / 2], 0, i % 2 ? 0x4342 : 0x4140);
    } else if (sizeof(Word) == 2) {
      parts[i] = row.base[0].w[i];
    } else if (b.sign_extended) {
      parts[i] = 0;
    } else if (sizeof(Word) == 4) {
      const Group& g = row.base[(i / 2) % Shape<Word>::kVectors];
      parts[i] = permute(g.w[2 * (i % 2)], g.w[2 * (i % 2) + 1], kHighHalves);
    } else {
      const Group& g = row.base[i % Shape<Word>::kVectors];
      parts[i] = permute(g.w[1], g.w[3], kHighHalves);
    }
  }
}

// The words that decoded parts stand for.
template <typename Word>
TPDE_FN void put_parts(const Block<Word>& b, const Row<Word>& row, u32 half, const u32* parts, Group* out) {
  const u32 per = 16 / sizeof(Word);
  if (sizeof(Word) == 1) {
    out[0].w[2 * half] = permute(parts[0], parts[1], 0x6420);
    out[0].w[2 * half + 1] = permute(parts[2], parts[3], 0x6420);
  } else if (sizeof(Word) == 2) {
#pragma unroll
    for (u32 i = 0; i < 4; i++) out[0].w[i] = parts[i];
  } else if (b.sign_extended) {
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
      const Word residual = (Word)(long long)(short)(parts[i / 2] >> 16 * (i % 2));
      set_group_word<Word>(out[i / per], i % per, (Word)(group_word<Word>(row.base[i / per], i % per) + residual));
    }
  } else if (sizeof(Word) == 4) {
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
      out[i / per].w[i % per] = permute(row.plane[0].w[i / 2], parts[i / 2], i % 2 ? kHighHalves : kLowHalves);
    }
  } else {
    const u32 planes = Shape<Word>::kPlanes + 1;
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
      const u32 halves = i % 2 ? kHighHalves : kLowHalves;
      u32* w = out[i / per].w + 2 * (i % per);
      w[0] = permute(row.plane[0].w[i / 2], row.plane[1 % planes].w[i / 2], halves);
      w[1] = permute(row.plane[2 % planes].w[i / 2], parts[i / 2], halves);
    }
  }
}

// Puts the exceptions among words `first` to first + count - 1 in their place.
// Needed where what comes out is not the target itself, so that a word that is
// already stored cannot be mended: the add residual in place.
template <typename Word>
TPDE_FN void put_exceptions(const Block<Word>& b, u32 first, u32 count, Group* out) {
  const u32 per = 16 / sizeof(Word);
  u32 lo = 0, hi = b.exceptions;  // the first exception at or behind `first` is in [lo, hi]
  while (lo < hi) {
    const u32 mid = (lo + hi) / 2;
    if (b.at[mid] < first) lo = mid + 1; else hi = mid;
  }
#pragma unroll 1
  for (u32 k = 0; k < count && lo + k < b.exceptions; k++) {
    const u32 j = b.at[lo + k] - first;
    if (j >= count) break;
    const Word v = exception_value(b, lo + k);
#pragma unroll
    for (u32 i = 0; i < Shape<Word>::kVectors; i++) if (j / per == i) replace_at<Word>(out[i], j % per, v);
  }
}

// Decodes what a lane owns of a row, `count` words from `first` on. Part: they
// may be less than all.
template <typename Word, Contexts How, bool Pair, bool Part, typename Memory>
TPDE_FN void decode_row(const Block<Word>& b, const Row<Word>& row, Bits<Memory>& bits, const Decoding& d, u32 first,
                        u32 count, Group* out) {
#pragma unroll
  for (u32 half = 0; half < Shape<Word>::kWords / 8; half++) {
    u32 parts[4];
    take_parts(b, row, half, parts);
    decode_parts<How, Pair, Part>(parts, bits, d, count > 8 * half ? count - 8 * half : 0);
    put_parts(b, row, half, parts, out);
  }
#ifdef ADD
  if (b.exceptions > 0) put_exceptions(b, first, count, out);
  const u32 per = 16 / sizeof(Word);
#pragma unroll
  for (u32 i = 0; i < Shape<Word>::kWords; i++) {
    const Word from = group_word<Word>(row.base[i / per], i % per);
    const Word residual = (Word)(group_word<Word>(out[i / per], i % per) - from);
    set_group_word<Word>(out[i / per], i % per, apply<Word>(from, residual));
  }
#endif
}

// Decodes and stores what a lane owns of a row that may not be whole.
template <typename Word, Contexts How, bool Pair, typename Memory>
TPDE_FN void decode_part(const Block<Word>& b, Bits<Memory>& bits, const Decoding& d, u32 first, u32 count) {
  Row<Word> row;
  load_row<false, false>(b, first, count, row);
#ifdef QUANT
  dequant_row<false, false>(b, first, count, row);
#endif
  Group out[Shape<Word>::kVectors];
  decode_row<Word, How, Pair, true>(b, row, bits, d, first, count, out);
  store_row<false>(b, first, count, out);
}

// Decodes the bit string of a lane, which is bits `start` to `end` - 1 of
// `count` words at `words`, which are in that memory, and writes the lane's
// target words. Returns false if it ends elsewhere. Near: rows are aligned, and
// `queue` has been started. Plain: as in load_row. The tables are in shared memory.
template <typename Word, Contexts How, bool Pair, bool Near, bool Plain, typename Memory>
TPDE_FN bool decode_lane(const Block<Word>& b, u32 lane, const Decoding& d, const u32* words, u32 count, u32 start,
                         u32 end, Queue<Word>& queue) {
  const u32 own = Shape<Word>::kWords, row = Shape<Word>::kRow;
  Bits<Memory> bits(words, count, start);
  u32 first = lane * own;
  if (Near) {
    const u32 rows = b.words / row, ahead = Shape<Word>::kAhead, last = (rows - 1) * row + lane * own;
#pragma unroll 1
    for (u32 i = 0; i < rows;) {
#pragma unroll
      for (u32 k = 0; k < Queue<Word>::kPlaces; k++) {
        const Row<Word> whole = queue.template take<Plain>(b, k, first, last);
        const u32 next = first + ahead * row;
        if (Queue<Word>::kRefillFirst) queue.template fetch<Plain>(b, k, next, i + ahead < rows, d.zero);
        Group out[Shape<Word>::kVectors];
        decode_row<Word, How, Pair, false>(b, whole, bits, d, first, own, out);
        queue.store(b, first, out);
        if (!Queue<Word>::kRefillFirst) queue.template fetch<Plain>(b, k, next, i + ahead < rows, d.zero);
        first += row;
        if (++i >= rows) break;
      }
    }
    if (first < b.words) decode_part<Word, How, Pair>(b, bits, d, first, min_u32(b.words - first, own));
  } else {
#pragma unroll 1
    for (; first < b.words; first += row) {
      decode_part<Word, How, Pair>(b, bits, d, first, min_u32(b.words - first, own));
    }
  }
  return bits.read(start, end - start);
}

// The same, by what the tables are like. Near: rows are aligned, the words are in
// shared memory, and the index has kIndex bits; else they are in global memory. One
// loop decodes any tables: there is no other for blocks that are not near, and
// with the add residual, whose arithmetic takes long to compile.
template <typename Word>
TPDE_FN bool decode_lane(const Tables& t, const Block<Word>& b, u32 lane, const Decoding& d, bool near,
                         const u32* words, u32 count, u32 start, u32 end, Queue<Word>& queue) {
  if (!near) return decode_lane<Word, kAny, false, false, false, Global>(b, lane, d, words, count, start, end, queue);
#ifndef ADD
  const bool pairs = t.longest <= kPairBits;
#ifdef QUANT
  if constexpr (quant::kPlainRuns<QUANT>) {
    if (pairs && t.ramp && b.run.plain) {
      return decode_lane<Word, kRamp, true, true, true, Shared>(b, lane, d, words, count, start, end, queue);
    }
  }
#else
  if (!b.base) {  // words of zero have one key
    return pairs ? decode_lane<Word, kOne, true, true, true, Shared>(b, lane, d, words, count, start, end, queue)
                 : decode_lane<Word, kOne, false, true, true, Shared>(b, lane, d, words, count, start, end, queue);
  }
#endif
  if (pairs && t.ramp) {
    return decode_lane<Word, kRamp, true, true, false, Shared>(b, lane, d, words, count, start, end, queue);
  }
#endif
  return decode_lane<Word, kAny, false, true, false, Shared>(b, lane, d, words, count, start, end, queue);
}

}  // namespace prefix
