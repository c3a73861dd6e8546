// rice_units.cuh - finds the words of all ranks of a chunk at once.
//
// A unit is what a warp loads at a time, 16 bytes a lane. Warps go through the
// base on their own, and count the words of each class in bytes, four lanes
// together: a row. Sums over rows and units give every unit the words before it.
// Then an event searches for its unit, its row and its word; the row's words are
// loaded again, from a cache that has just had them.
#pragma once

#include "rice_tile.cuh"
#include "rice_values.cuh"

namespace rice {

const u32 kMaxUnits = 256;  // a thread sums up one
static_assert(kMaxUnits <= kThreads, "");
const u32 kRowLanes = 4;
const u32 kUnitRows = 32 / kRowLanes;

template <typename Word>
struct UnitShape {
  static const u32 kWords = 32 * Shape<Word>::kPer;           // of a unit
  static const u32 kRowWords = kRowLanes * Shape<Word>::kPer;
  static const u32 kLimit = kMaxUnits * kWords;
  static const u32 kChunkWords = kLimit < kPageWords ? kLimit : kPageWords;  // ranks have 16 bits
  static const u32 kCounts = kChunkWords / kWords * (kUnitRows + 1);
  static_assert(kRowWords <= 255, "bytes hold the counts of a row");
  static_assert(kCounts * sizeof(Counts) + kClasses * kMaxUnits * sizeof(u16) <=
                sizeof(Shared<Word>::tile) + sizeof(Shared<Word>::before), "what the tile and its counts take is free");
  static_assert(kWarps * sizeof(Group) <= sizeof(Shared<Word>::total), "");
};

// Whether a chunk can be decoded in units.
template <typename Word>
TPDE_FN bool has_units(const Block<Word>& b) {
  return b.aligned && b.words <= UnitShape<Word>::kChunkWords;
}

// The counts of a row. Between units there is a place that is not used, so that
// events which look at different units hit different banks.
template <typename Word>
TPDE_FN Counts* counts_of(Shared<Word>& s, u32 row) { return reinterpret_cast<Counts*>(s.tile) + row + row / kUnitRows; }

// The words of a class before each unit, behind those.
template <typename Word>
TPDE_FN u16* units_before(Shared<Word>& s, u32 c) {
  return reinterpret_cast<u16*>(reinterpret_cast<Counts*>(s.tile) + UnitShape<Word>::kCounts) + c * kMaxUnits;
}

// How many words of the group at word `first` the chunk has, those in the base,
// and zeros. None behind its end.
template <typename Word>
TPDE_FN u32 words_from(const Block<Word>& b, u32 first) {
  return first < b.words ? min_u32(b.words - first, Shape<Word>::kPer) : 0;
}
template <typename Word>
TPDE_FN Group base_group(const Block<Word>& b, u32 first) {
  return b.base ? load_words<Word>(b.base + first, words_from(b, first)) : Group{{0, 0, 0, 0}};
}

// The rows that a chunk has.
template <typename Word>
TPDE_FN u32 rows_in(const Block<Word>& b) {
  return (b.words + UnitShape<Word>::kRowWords - 1) / UnitShape<Word>::kRowWords;
}

// Sums up over the lanes of each row.
TPDE_FN void sum_rows(Private<Counts, kThreads>& v) {
#ifdef __CUDACC__
#pragma unroll
  for (u32 d = 1; d < kRowLanes; d *= 2) {
    v.value = v.value + Counts{__shfl_xor_sync(0xffffffffu, v.value.even, d), __shfl_xor_sync(0xffffffffu, v.value.odd, d)};
  }
#else
  for (u32 t = 0; t < kThreads; t += kRowLanes) {
    Counts sum = {0, 0};
    for (u32 i = 0; i < kRowLanes; i++) sum = sum + v[t + i];
    for (u32 i = 0; i < kRowLanes; i++) v[t + i] = sum;
  }
#endif
}

// Counts the words of the rows of the tile at word `first`, whose groups are in
// `tile` if it is a whole one, and with `copy` copies it to the target.
template <bool Whole, typename Word, bool InShared>
TPDE_FN void count_rows(Shared<Word>& s, const Block<Word>& b, const Steps<Word, InShared>& steps, u32 first, bool copy,
                        Private<Ahead<Word>, kThreads>& tile) {
  const u32 per = Shape<Word>::kPer;
#pragma unroll
  for (u32 j = 0; j < Shape<Word>::kStretch; j++) {
    Private<Counts, kThreads> sum;
    EACH_THREAD(t, kThreads) {
      const u32 word = first + (first_group<Word>(t) + j * 32) * per;
      const u32 count = Whole ? per : words_from(b, word);
      const Group g = Whole ? tile[t].g[j] : base_group(b, word);
      sum[t] = Counts{0, 0};
      count_group(steps, g, count, sum[t]);
      if (copy && Whole) store_whole(b.dst + word, g);
      if (copy && !Whole) store_words<Word>(b.dst + word, count, g);
    }
    sum_rows(sum);
    EACH_THREAD(t, kThreads) {
      const u32 group = first / per + first_group<Word>(t) + j * 32;
      if (t % kRowLanes == 0 && (Whole || group * per < b.words)) *counts_of(s, group / kRowLanes) = sum[t];
    }
  }
}

// The same for all of them. The first tile is in `ahead`.
template <typename Word, bool InShared>
TPDE_FN void count_chunk(Shared<Word>& s, const Block<Word>& b, const Steps<Word, InShared>& steps, bool copy,
                         Private<Ahead<Word>, kThreads>& ahead) {
  const u32 words = Shape<Word>::kTileWords, tiles = b.words / words;
#pragma unroll 1
  for (u32 i = 0; i < tiles; i++) {
    Private<Ahead<Word>, kThreads> now;
    EACH_THREAD(t, kThreads) {
      now[t] = ahead[t];
      load_tile(b, (i + 1) * words, t, ahead[t]);
    }
    count_rows<true>(s, b, steps, i * words, copy, now);
  }
  if (tiles * words < b.words) count_rows<false>(s, b, steps, tiles * words, copy, ahead);
}

// The words of each class in a unit, two numbers of 16 bits a word: of classes 0
// and 4, 2 and 6, 1 and 5, 3 and 7.
template <typename Word>
TPDE_FN Group unit_words(Shared<Word>& s, u32 unit, u32 rows) {
  const u32 bytes = 0x00ff00ff;
  Group sum = {{0, 0, 0, 0}};
#pragma unroll
  for (u32 k = 0; k < kUnitRows; k++) {
    if (unit * kUnitRows + k >= rows) break;
    const Counts n = *counts_of(s, unit * kUnitRows + k);
    sum.w[0] += n.even & bytes;
    sum.w[1] += n.even >> 8 & bytes;
    sum.w[2] += n.odd & bytes;
    sum.w[3] += n.odd >> 8 & bytes;
  }
  return sum;
}

// Replaces v by the sum of those of the threads before. It holds a barrier. The
// sum of all may not fit, but nobody has that.
template <typename Word>
TPDE_FN void scan_units(Shared<Word>& s, Private<Group, kThreads>& v) {
#ifdef __CUDACC__
  const u32 lane = threadIdx.x & 31, warp = threadIdx.x / 32;
  Group* const sums = reinterpret_cast<Group*>(s.total);
  Group sum = v.value;
#pragma unroll
  for (u32 i = 0; i < 4; i++) sum.w[i] = scan_warp(sum.w[i]);
  if (lane == 31) store_shared(sums + warp, sum);
  barrier();
#pragma unroll
  for (u32 i = 0; i < 4; i++) v.value.w[i] = sum.w[i] - v.value.w[i];
#pragma unroll
  for (u32 w = 0; w + 1 < kWarps; w++) {
    const Group g = load_whole(sums + w);
#pragma unroll
    for (u32 i = 0; i < 4; i++) v.value.w[i] += w < warp ? g.w[i] : 0;
  }
#else
  Group sum = {{0, 0, 0, 0}};
  for (u32 t = 0; t < kThreads; t++) {
    const Group n = v[t];
    v[t] = sum;
    for (u32 i = 0; i < 4; i++) sum.w[i] += n.w[i];
  }
#endif
}

// Notes what is before each unit, and that a chunk is corrupt which has another
// number of dense words.
template <typename Word>
TPDE_FN void sum_units(Shared<Word>& s, const Block<Word>& b) {
  const u32 rows = rows_in(b), units = (rows + kUnitRows - 1) / kUnitRows;
  Private<Group, kThreads> own, before;
  EACH_THREAD(t, kThreads) { before[t] = own[t] = unit_words(s, t, rows); }
  scan_units(s, before);
  EACH_THREAD(t, kThreads) {
    const Group n = before[t];
#pragma unroll
    for (u32 c = 0; c < kClasses; c++) {
      const u32 half = n.w[c % 2 * 2 + c / 2 % 2] >> c / 4 * 16;
      if (t < kMaxUnits) units_before(s, c)[t] = t < units ? (u16)half : (u16)0xffff;
    }
    const u32 dense = (n.w[3] >> 16) + (own[t].w[3] >> 16);
    if (t + 1 == units && dense != s.head.events[kDense]) raise(&s.bad);
  }
}

// The position of word number n of class c, or kBits if there is none.
template <typename Word, bool InShared>
TPDE_FN u32 find_word(Shared<Word>& s, const Block<Word>& b, const Steps<Word, InShared>& steps, u32 c, u32 n) {
  const Near units = Near::of(units_before(s, c));
  Near unit = units;
#pragma unroll
  for (u32 d = kMaxUnits / 2; d > 0; d /= 2) {
    unit.step_if(d * (u32)sizeof(u16), unit.plus(d * (u32)sizeof(u16)).half(), n);
  }
  n -= unit.half();
  const u32 first_row = unit.minus(units) / (u32)sizeof(u16) * kUnitRows, all = rows_in(b);
  if (first_row >= all) return kBits;
  const u32 rows = min_u32(all - first_row, kUnitRows);  // those behind have not been counted
  const Near counts = Near::of(counts_of(s, first_row)).plus(c % 2 * (u32)sizeof(u32) + c / 2);
  u32 sum = 0, row = 0, before = 0;
#pragma unroll
  for (u32 k = 0; k < kUnitRows; k++) {
    sum += k < rows ? counts.plus(k * (u32)sizeof(Counts)).byte() : 0;
    if (sum <= n) row = k + 1, before = sum;
  }
  if (row >= rows) return kBits;
  n -= before;
  const u32 first = (first_row + row) * UnitShape<Word>::kRowWords, bit = 1u << 4 * c;
  const u32 per = Shape<Word>::kPer;
  const bool whole = b.base && b.words - first >= UnitShape<Word>::kRowWords;
  Group g[kRowLanes];
#pragma unroll
  for (u32 j = 0; j < kRowLanes; j++) {
    g[j] = whole ? load_whole(b.base + first + j * per) : base_group(b, first + j * per);
  }
  u32 word = UnitShape<Word>::kRowWords;
#pragma unroll
  for (u32 j = 0; j < kRowLanes; j++) {
#pragma unroll
    for (u32 i = 0; i < per; i++) {
      add_if_any(n, 0xffffffff, steps.step(g[j], i) & bit);  // negative once the word has been passed
      word += (u32)((int)n >> 31);
    }
  }
  return first + word;
}

// Goes through a chunk all of whose values are listed, as decode_tiles does.
template <typename Word>
TPDE_FN void decode_units(Shared<Word>& s, const Block<Word>& b, const Tables& tables, const u32* data,
                          Private<Ahead<Word>, kThreads>& ahead) {
  const Steps<Word, kNear<Word>> steps(s, tables);
  const bool copy = !b.in_place();
  const Head& h = s.head;
  const u32 string_words = h.bits / 32;
  u16* positions = positions_of(s);
  u8* codes = codes_of(s);
  EACH_THREAD(t, kThreads) {  // read behind a barrier
    if (t < kClasses) {
      const Origin o = origin_of(s, t, false);
      s.found[t] = Found{o.from, 0, o.note, o.at};
      s.events[t] = s.progress[t].done = h.events[t];
    }
  }
  count_chunk(s, b, steps, copy, ahead);
  barrier();
  sum_units(s, b);
  barrier();  // the copy, too, is written before the events
  EACH_THREAD(t, kThreads) {
    const Numbering numbering(s);
#pragma unroll 1
    for (u32 n = t; n < numbering.all(); n += kThreads) {
      const Event e(s, numbering, n);
      const Found& f = e.found;
      const u32 i = e.number;
      // Loaded before it is needed, and of other classes in vain.
      const u32 sign = bit_at(data, string_words, f.at + i);
      const u32 at = find_word(s, b, steps, e.c, e.c == kDense ? i : s.list[f.from + i]);
      if (at >= b.words) {
        raise(&s.bad);
        break;
      }
      if (f.note != kSign) {
        positions[f.at + i] = (u16)at;
        codes[f.at + i] = steps.code(base_word(b, at));
      } else if (copy) {
        b.dst[at] = apply<Word>(base_word(b, at), unit_change<Word>(sign));
      } else {
        s.list[f.from + i] = (u16)at;  // words of the base are looked at until the last event is found
      }
    }
  }
  if (copy || failed(s)) return;
  EACH_THREAD(t, kThreads) {
    const Numbering numbering(s);
#pragma unroll 1
    for (u32 n = t; n < numbering.all(); n += kThreads) {
      const Event e(s, numbering, n);
      if (e.found.note != kSign) continue;
      const u32 at = s.list[e.found.from + e.number];
      b.dst[at] = apply<Word>(b.dst[at], unit_change<Word>(bit_at(data, string_words, e.found.at + e.number)));
    }
  }
}

}  // namespace rice
