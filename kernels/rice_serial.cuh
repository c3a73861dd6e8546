// rice_serial.cuh - decodes chunks of the rice codec that have more events than
// shared memory holds: tile by tile, one thread for a class.
//
// Of a tile, the list holds the events of all classes, since it has as many
// entries as the tile has words: a part for each class, with ranks that count
// from the start of the tile. The values of a class follow those of the class
// before it, so where they start must be known first: that takes a pass over
// the chunk for each class with values but the last, in which nothing is
// written. In place, what has been written is not looked at again.
#pragma once

#include "rice_tile.cuh"
#include "rice_values.cuh"

namespace rice {

// Moves on to the next event. False if there is none although there should be, or
// none in the chunk.
template <typename Word>
TPDE_FN bool next_event(const Shared<Word>& s, const u32* data, u32 words, u32 c, u64 least, Distances& d) {
  const Head& h = s.head;
  const u32 k = s.classes[c].low, string_words = h.bits / 32;
  u64 zeros = 0;
  for (;;) {
    if (d.quotient >= h.bits) return false;
    const u32 run = leading_zeros(bits_at(data, string_words, d.quotient, 32));
    zeros += run;
    if (run < 32) {
      d.quotient += run + 1;
      break;
    }
    d.quotient += 32;
  }
  const u64 rank = least + (zeros << k) + bits_at(data, string_words, d.low, k);
  d.low += k;
  d.rank = (u32)rank;
  return rank < words;
}

// Starts class c from the beginning of the chunk.
template <typename Word>
TPDE_FN void restart(Shared<Word>& s, const u32* data, u32 words, u32 c, Cursor& x) {
  const Head& h = s.head;
  s.progress[c] = Progress{0, 0, 0, 0};
  x.value = s.value_bit[c];
  x.next_lane = 1;
  while (x.next_lane < h.lanes && first_value(h, x.next_lane) < h.values_at[c]) x.next_lane++;
  x.distances = Distances{kBits, c == kDense ? 0 : h.events[c], h.low_at[c], h.quotient_at[c]};
  if (x.distances.left > 0 && !next_event(s, data, words, c, 0, x.distances)) {
    x.distances.rank = kBits;
    raise(&s.bad);
  }
}

// Lists the events of class c in the tile, whose words are counted. Its part of
// the list starts at `from`.
template <typename Word>
TPDE_FN void list_class(Shared<Word>& s, const u32* data, u32 words, u32 c, u32 from, Cursor& x) {
  const Head& h = s.head;
  Progress& p = s.progress[c];
  s.found[c] = Found{from, 0, s.classes[c].kind == kValued ? kPosition : kSign, h.sign_at[c] + p.done};
  p.first = p.done;
  u32 n = 0;
  if (c == kDense) {
    n = p.passed - p.begin;
    if (p.passed > h.events[c]) {
      n = 0;
      raise(&s.bad);
    }
  } else {
    Distances& d = x.distances;
    while (d.rank < p.passed) {  // ranks ascend: no more than the tile has words of the class
      s.list[from + n++] = (u16)(d.rank - p.begin);
      const u64 least = (u64)d.rank + 1;
      d.rank = kBits;
      if (--d.left > 0 && !next_event(s, data, words, c, least, d)) {
        d.rank = kBits;
        raise(&s.bad);
      }
    }
  }
  p.done += n;
  s.events[c] = n;
}

// Reads the values of class c in the tile that starts at word `first`; the list
// has the positions of their words in it. Applies them if `write`.
template <typename Word>
TPDE_FN void read_class(Shared<Word>& s, const Block<Word>& b, const Tables& tables, const u32* data, u32 first, u32 c,
                        bool write, Cursor& x) {
  const Head& h = s.head;
  const Progress& p = s.progress[c];
  const u8* code_of = tables.at<u8>(tables.code_at);
  Bits bits;
  bits.start(data, h.bits / 32, x.value);
  u32 changed = 0;
  for (u32 i = 0; i < s.events[c]; i++) {
    const u32 number = h.values_at[c] + p.first + i;
    if (x.next_lane < h.lanes && number == first_value(h, x.next_lane)) {
      if (bits.position() != s.lane_start[x.next_lane]) raise(&s.bad);
      x.next_lane++;
    }
    const u32 at = s.list[s.found[c].from + i];
    const Word w = tile_word(s, at);
    const CodeInfo& code = tables.codes[code_of[key_of_word(tables, w)]];
    Word v = read_value<Word>(bits, tables, code);
    if (c == kDense && h.exceptions > 0 && is_exception(h, data, first + at, b.words)) {
      if (v != (Word)code.placeholder) raise(&s.bad);
      v = 0;
    } else if (c != kDense && v == 0) {
      raise(&s.bad);
    }
    if (write && v != 0) {
      b.dst[first + at] = apply<Word>(w, v);
      changed += c == kDense;  // events of gap classes have been counted
    }
    if (bits.position() > h.bits) {
      raise(&s.bad);
      break;
    }
  }
  x.value = bits.position();
  if (changed) add_shared(&s.deltas, changed);
}

// Whether thread t is the one that works for class c.
TPDE_FN bool serves(u32 t, u32 c) { return t == c % kWarps * 32; }

// One pass over the chunk. With `only` a class with values, it finds where they
// end and writes nothing; with kClasses it decodes the chunk. It is no part of
// the kernel's own code, so that it takes no registers from what is fast.
template <typename Word>
TPDE_SLOW void serial_pass(Shared<Word>& s, const Block<Word> b, const Tables& tables, const u32* data, u32 only) {
  const bool write = only == kClasses;
  const Head& h = s.head;
  const Steps<Word, false> steps(s, tables);
  EACH_THREAD(t, kThreads) {
    for (u32 c = 0; c < kClasses; c++) {
      if (serves(t, c)) restart(s, data, b.words, c, s.notes.serial[c]);
    }
  }
  barrier();
#pragma unroll 1
  for (u32 first = 0; first < b.words; first += Shape<Word>::kTileWords) {
    EACH_THREAD(t, kThreads) {
      Ahead<Word> a = {};
      load_tile(b, first, t, a);
      stage_tile(s, b, first, t, a, write && !b.in_place());
    }
    count_tile(s, steps);
    barrier();
    EACH_WARP(w, kWarps) {
      for (u32 c = w; c < kClasses; c += kWarps) {
        const u32 begin = s.progress[c].passed;
        const u32 words = class_words(s, b, first, c);
        sync_warp();
        if (is_leader()) s.progress[c].begin = begin, s.progress[c].passed = begin + words;
      }
    }
    barrier();
    EACH_THREAD(t, kThreads) {
      u32 from = 0;
#pragma unroll 1
      for (u32 c = 0; c < kClasses; c++) {
        if (serves(t, c)) list_class(s, data, b.words, c, from, s.notes.serial[c]);
        from += s.progress[c].passed - s.progress[c].begin;
      }
    }
    barrier();
    EACH_THREAD(t, kThreads) {
      const Numbering numbering(s);
#pragma unroll 1
      for (u32 n = t; n < numbering.all(); n += kThreads) {
        u32 i = n;
        const u32 c = numbering.class_of(i);
        if (!write && c != only) continue;
        const Found f = s.found[c];
        const Place<Word> place = locate_event(s, steps, c, i);
        if (f.note == kSign) {
          apply_sign(b, first, place, bit_at(data, h.bits / 32, f.at + i));
        } else {
          s.list[f.from + i] = (u16)place.at;
        }
      }
    }
    barrier();
    EACH_THREAD(t, kThreads) {
#pragma unroll 1
      for (u32 c = 0; c < kClasses; c++) {
        if (serves(t, c) && s.classes[c].kind == kValued && (write || c == only)) {
          read_class(s, b, tables, data, first, c, write, s.notes.serial[c]);
        }
      }
    }
    barrier();
  }
}

// Decodes all but the exceptions of a chunk.
template <typename Word>
TPDE_SLOW void decode_serially(Shared<Word>& s, const Block<Word> b, const Tables& tables, const u32* data) {
  const Head& h = s.head;
  EACH_THREAD(t, kThreads) {
    if (t == 0) {
      sum_lanes(s);
      s.value_end = h.quotient_at[kDense];
    }
  }
  u32 last = kClasses;  // the class whose values are next
#pragma unroll 1
  for (u32 c = 0; c <= kClasses; c++) {
    if (c < kClasses && (s.classes[c].kind != kValued || h.events[c] == 0)) continue;
    if (last < kClasses && c < kClasses) {
      barrier();
      serial_pass<Word>(s, b, tables, data, last);
    }
    EACH_THREAD(t, kThreads) {
      if (t == 0) {
        if (last < kClasses && c < kClasses) s.value_end = s.notes.serial[last].value;
        if (c < kClasses) s.value_bit[c] = s.value_end;
      }
    }
    if (c < kClasses) last = c;
  }
  barrier();
  serial_pass<Word>(s, b, tables, data, kClasses);
  EACH_THREAD(t, kThreads) {
    if (t == 0 && !ends_at(h, data, last < kClasses ? s.notes.serial[last].value : s.value_end)) raise(&s.bad);
  }
}

}  // namespace rice
