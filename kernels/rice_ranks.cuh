// rice_ranks.cuh - turns the distances of a chunk of the rice codec into ranks,
// all of them at once.
//
// With zeros(i) the number of zeros before the one of event i in the quotients,
// and low(i) its low bits, the rank of event i of a class that starts with event
// s is ((zeros(i) - zeros before the class) << k) + the sum of low(j) + 1 for j
// from s to i, less 1: one scan over the bits and one over the events.
#pragma once

#include "rice_state.cuh"

namespace rice {

const u32 kPieceBits = 16;  // of the quotients, that a thread looks at

// The class of an event of a gap class: the last that starts with it or before.
TPDE_FN u32 class_of_event(const Head& h, u32 event) {
  u32 c = 0;
#pragma unroll
  for (u32 k = 1; k < kDense; k++) c += event >= h.start[k];
  return c;
}

// What a thread needs of the class that its events are in.
struct GapClass {
  u32 number;
  u32 first, end;  // events
  u32 low_at, low;  // bit of the first low bits, and how many an event has

  template <typename Word>
  TPDE_FN void enter(const Shared<Word>& s, u32 c) {
    const Head& h = s.head;
    number = c;
    first = h.start[c];
    end = first + h.events[c];
    low_at = h.low_at[c];
    low = s.classes[c].low;
  }
  // Goes on to the class of an event that is not before this one.
  template <typename Word>
  TPDE_FN void follow(const Shared<Word>& s, u32 event) {
    while (event >= end) enter(s, number + 1);
  }
};

// The piece of the quotients at a bit, in the upper half of a word.
template <typename Strings>
TPDE_FN u32 quotient_piece(const Head& h, const Strings& strings, u32 at) {
  if (at >= h.bits) return 0;
  const u32 n = min_u32(h.bits - at, kPieceBits);
  return strings.window(at) >> (32 - n) << (32 - n);
}

// The number of bits up to one k of a piece, that one included; k counts from 0.
TPDE_FN u32 end_of_one(u32 piece, u32 k) {
  for (; k > 0; k--) piece &= ~(0x80000000u >> leading_zeros(piece));
  return leading_zeros(piece) + 1;
}

// Finds where the quotients of each class start, and with `list` the zeros
// before each event, or that they are too many.
template <typename Word, typename Strings>
TPDE_FN void scan_quotients(Shared<Word>& s, const Strings& strings, bool list) {
  Head& h = s.head;
  Private<u32, kThreads> index;
  EACH_THREAD(t, kThreads) {
    if (t < kClasses) h.quotient_at[t] = h.quotients;  // written again behind the barriers of a scan
  }
  const u32 events = h.gap_events, quotients = h.quotients;
  u32 found = 0;
  for (u32 at = quotients; found < events && at < h.bits; at += kThreads * kPieceBits) {
    EACH_THREAD(t, kThreads) { index[t] = count_ones(quotient_piece(h, strings, at + t * kPieceBits)); }
    const u32 ones = scan_block<kThreads>(index, s.sums);
    EACH_THREAD(t, kThreads) {
      const u32 start = at + t * kPieceBits;
      u32 piece = quotient_piece(h, strings, start);
      u32 i = found + index[t];
      const u32 n = count_ones(piece);
      u32 here = 0;  // classes that start behind a one of this piece, each in its bit
#pragma unroll
      for (u32 c = 0; c < kClasses; c++) here |= (h.start[c] - i - 1 < n ? 1u : 0u) << c;
      while (here != 0) {
        const u32 c = 31 - leading_zeros(here);
        here ^= 1u << c;
        h.quotient_at[c] = start + end_of_one(piece, h.start[c] - i - 1);
      }
      if (list) {
        u32 zeros = 0;  // before an event, at last before the last one: bits less ones
#pragma unroll 1
        for (; piece != 0 && i < events; i++) {
          const u32 at_one = leading_zeros(piece);
          piece ^= 0x80000000u >> at_one;
          zeros = start + at_one - quotients - i;
          s.list[i] = (u16)zeros;
        }
        if (zeros > 0xffff) raise(&s.too_wide);
      }
    }
    sync_warp();  // else threads with fewer ones go on by themselves
    found += ones;
  }
  EACH_THREAD(t, kThreads) {
    if (t == 0 && found < events) raise(&s.bad);
  }
}

// Keeps the signs of a chunk whose events are listed; the strings will be gone.
template <typename Word, typename Strings>
TPDE_FN void keep_signs(Shared<Word>& s, const Strings& strings) {
  const u32 first = s.head.sign_at[0], words = (s.head.quotients - first + 31) / 32;
  EACH_THREAD(t, kThreads) {
    for (u32 i = t; i < words; i += kThreads) s.signs[i] = strings.window(first + 32 * i);
  }
}

// The low bits of an event of class c, and one; more than the chunk has words
// count as so many.
template <typename Strings>
TPDE_FN u32 low_and_one(const GapClass& c, const Strings& strings, u32 words, u32 event) {
  return min_u32(top_bits(strings.window(c.low_at + (event - c.first) * c.low), c.low), words) + 1;
}

// Replaces the zeros before each event by the low 16 bits of its rank, and lists
// the events that are far behind others. The chunk has at most kMaxWords words.
template <typename Word, typename Strings>
TPDE_FN void make_ranks(Shared<Word>& s, const Strings& strings, u32 words) {
  const Head& h = s.head;
  const u32 each = (h.gap_events + kThreads - 1) / kThreads;
  Private<u32, kThreads> sum, zeros, start;
  EACH_THREAD(t, kThreads) {
    u32 n = 0;
    const u32 end = min_u32((t + 1) * each, h.gap_events);
    u32 i = min_u32(t * each, end);
    zeros[t] = i > 0 ? s.list[i - 1] : 0;  // before another thread replaces it
    GapClass c;
    c.enter(s, start[t] = class_of_event(h, i));
#pragma unroll 1
    for (; i < end; i++) {
      c.follow(s, i);
      if (i == c.first) s.notes.listed.low_before[c.number] = n;  // of this thread
      n += low_and_one(c, strings, words, i);
    }
    sum[t] = n;
  }
  scan_block<kThreads>(sum, s.sums);
  EACH_THREAD(t, kThreads) {  // the thread that has the first event of a class adds those of others
    const u32 end = min_u32((t + 1) * each, h.gap_events), begin = min_u32(t * each, end);
#pragma unroll 1
    for (u32 c = start[t]; c < kDense && h.start[c] < end; c++) {
      if (h.events[c] > 0 && h.start[c] >= begin) s.notes.listed.low_before[c] += sum[t];
    }
  }
  barrier();
  EACH_THREAD(t, kThreads) {
    const u32 end = min_u32((t + 1) * each, h.gap_events);
    u32 n = sum[t], before = zeros[t];
    GapClass c;
    c.enter(s, start[t]);
#pragma unroll 1
    for (u32 i = min_u32(t * each, end); i < end; i++) {
      c.follow(s, i);
      const u32 low = low_and_one(c, strings, words, i);
      const u32 class_zeros = h.quotient_at[c.number] - h.quotients - c.first, here = s.list[i];
      n += low;
      const u64 rank = ((u64)(here - class_zeros) << c.low) + (n - s.notes.listed.low_before[c.number] - 1);
      if (rank >= words) {
        raise(&s.bad);
      } else if (((u64)(here - before) << c.low) + low > kFar) {  // no zeros are between two classes
        const u32 slot = add_shared(&s.far_events, 1);
        if (slot < kMaxFar) s.notes.listed.far[slot] = Far{i, (u32)rank}; else raise(&s.bad);
      }
      s.list[i] = (u16)rank;
      before = here;
    }
  }
}

}  // namespace rice
