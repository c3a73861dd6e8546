// prefix_rows.cuh - rows of a block on their way: base words and planes to the lanes
// that own them, ahead of their decoding, and target words back to memory.
#pragma once

#include "prefix_block.cuh"
#include "prefix_memory.cuh"
#include "stage.cuh"
#include "threads.cuh"

namespace prefix {

// Base words and planes of what a lane owns of a row.
template <typename Word>
struct Row {
#ifdef QUANT
  quant::Fetched fetched[Shape<Word>::kVectors];
#endif
  Group base[Shape<Word>::kVectors];
  Group plane[Shape<Word>::kPlanes + 1];  // the last is never used
};

// Loads `count` words from word `first` on, 1 to Shape::kWords. Whole: all of
// those, and base, target and planes are aligned. Plain (here and below): the run
// of the quantised base is plain, or else, there is no base.
template <bool Whole, bool Plain, typename Word>
TPDE_FN void load_row(const Block<Word>& b, u32 first, u32 count, Row<Word>& row) {
  const u32 per = 16 / sizeof(Word);
#pragma unroll
  for (u32 v = 0; v < Shape<Word>::kVectors; v++) {
    Group g = {{0, 0, 0, 0}};
    const u32 left = Whole ? per : count > v * per ? min_u32(count - v * per, per) : 0;
#ifdef QUANT
    if (Whole) {
      row.fetched[v] = quant::fetch_run<QUANT, Plain>(b.run, first + v * per);
    } else if (left > 0) {
      row.fetched[v] = quant::fetch<QUANT>(*b.quantised, b.first + first + v * per, left);
    }
#else
    if (b.base && left > 0) {
      const Word* from = b.base + first + v * per;
      g = Whole || (b.aligned && left == per) ? load_whole(from) : load_words<Word>(from, left);
    }
#endif
    row.base[v] = g;
  }
  if (Shape<Word>::kPlanes == 0 || b.sign_extended) return;
#pragma unroll
  for (u32 p = 0; p < Shape<Word>::kPlanes; p++) {  // padded to whole groups
    const u32* from = b.planes + p * b.plane_words + first / 2;
    if (Whole || b.wide_planes) {
      row.plane[p] = load_whole(from);
    } else {
#pragma unroll
      for (u32 i = 0; i < 4; i++) row.plane[p].w[i] = from[i];
    }
  }
}

#ifdef QUANT
// Makes base words of what was loaded, `count` from word `first` on.
template <bool Whole, bool Plain, typename Word>
TPDE_FN void dequant_row(const Block<Word>& b, u32 first, u32 count, Row<Word>& row) {
  const u32 per = 16 / sizeof(Word);
#pragma unroll
  for (u32 v = 0; v < Shape<Word>::kVectors; v++) {
    const u32 left = Whole ? per : count > v * per ? min_u32(count - v * per, per) : 0;
    if (Whole) {
      row.base[v] = quant::dequant_run<QUANT, Plain>(b.run, row.fetched[v], first + v * per);
    } else if (left > 0) {
      const quant::Values values = quant::values_of(*b.quantised);
      row.base[v] = quant::dequant_any<QUANT>(values, row.fetched[v], (u32)b.first + first + v * per, left);
    }
  }
}
#endif

// Stores `count` words from `first` on. Whole: all of those that a lane owns of a
// row, and aligned.
template <bool Whole, typename Word>
TPDE_FN void store_row(const Block<Word>& b, u32 first, u32 count, const Group* out) {
  const u32 per = 16 / sizeof(Word);
#pragma unroll
  for (u32 v = 0; v < Shape<Word>::kVectors; v++) {
    Word* to = b.dst + first + v * per;
    if (Whole || (b.aligned && count >= (v + 1) * per)) {
      store_whole(to, out[v]);
    } else if (count > v * per) {
      store_words<Word>(to, min_u32(count - v * per, per), out[v]);
    }
  }
}

// Rows that are on their way to a lane, of a block whose rows are aligned. start()
// asks for the first ones, before it is known where bit strings are.
//
// If nothing goes through shared memory, for a lane loads at most 16 bytes of a row,
// there is one on its way, to registers; those behind it are brought to the L2 cache.
template <typename Word, bool InShared = (Shape<Word>::kQueueWords > 0)>
struct Queue {
#ifdef QUANT
  static const u32 kPlaces = 1;
#else
  static const u32 kPlaces = 2;  // by turns, so that nothing is moved from one to the other
#endif
  static const bool kRefillFirst = true;  // there is a free place once a row is taken
  Row<Word> row[kPlaces];

  TPDE_FN Queue(u32*, u32) {}
  // Asks for what the lane loads of a row, words from `first` on.
  template <bool Plain>
  TPDE_FN static void prefetch(const Block<Word>& b, u32 first) {
#ifdef QUANT
    quant::prefetch_codes<Plain>(b.run, first);
#else
    prefetch_if(b.base && first * sizeof(Word) % 128 == 0, b.base + first);  // for all lanes that share the 128 bytes
#endif
  }
  TPDE_FN void start(const Block<Word>& b, u32 rows, u32 own) {
    for (u32 i = 1; i < Shape<Word>::kFetch; i++) {
      prefetch<false>(b, min_u32(i, rows - 1) * Shape<Word>::kRow + own);
    }
#ifdef QUANT
    if constexpr (quant::kPlainRuns<QUANT>) {
      if (b.run.plain) return load_row<true, true>(b, own, Shape<Word>::kWords, row[0]);
    }
#endif
    load_row<true, false>(b, own, Shape<Word>::kWords, row[0]);
  }
  // Asks for the row behind the one in place k, words from `first` on, if it exists.
  // What is loaded counts on one counter: whoever waits for either row would wait
  // for both, and so the address depends on words of the row before. zero: 0, which
  // the compiler does not know.
  template <bool Plain>
  TPDE_FN void fetch(const Block<Word>& b, u32 k, u32 first, bool exists, u32 zero) {
#ifndef QUANT
    if (Plain) return;
    first += row[k].base[0].w[3] & zero;
#endif
    if (exists) load_row<true, Plain>(b, first, Shape<Word>::kWords, row[(k + 1) % kPlaces]);
    sync_warp();  // else the compiler loads where the row is used
  }
  // The row in place k, words from `first` on; those of the last one start at `last`.
  template <bool Plain>
  TPDE_FN Row<Word> take(const Block<Word>& b, u32 k, u32 first, u32 last) {
#ifndef QUANT
    if (Plain) return Row<Word>{};
#endif
    prefetch<Plain>(b, min_u32(first + Shape<Word>::kFetch * Shape<Word>::kRow, last));
#ifdef QUANT
    dequant_row<true, Plain>(b, first, Shape<Word>::kWords, row[k]);
#endif
    return row[k];
  }
  TPDE_FN void store(const Block<Word>& b, u32 first, const Group* out) const {
    store_row<true>(b, first, Shape<Word>::kWords, out);
  }
};

#ifndef QUANT
// Else they lie in shared memory. What is loaded to registers counts on few
// counters, and so a warp that waits for one row has been seen to wait for all.
//
// Lanes that lie 32 bytes or more apart would ask for each 32 bytes of memory
// twice: the warp copies a row and stores it 512 bytes at a time, and what lanes
// own changes hands in shared memory. There the 16 bytes are so ordered that eight
// lanes in a row find theirs in different banks, either way.
template <typename Word>
struct Queue<Word, true> {
  static const u32 kPlaces = 1;            // that the loop knows of
  static const bool kRefillFirst = false;  // look-ups behind a copy would wait for it to be issued
#ifdef __CUDACC__
  static const bool kTogether = true;  // lanes load and store for each other
#else
  static const bool kTogether = false;  // they run one after the other
#endif
  u32* room;       // kQueueWords of shared memory
  u32 lane;
  u32 head, tail;  // words from there to the place of the next row to take, and to fetch

  TPDE_FN Queue(u32* words, u32 own) : room(words), lane(own), head(0), tail(0) {}
  // Words from a place to the 16 bytes of number n of the row.
  TPDE_FN static u32 place_of(u32 n) { return 4 * (n ^ (n >> 3 & (Shape<Word>::kVectors - 1))); }
  // The number of the v-th 16 bytes that a lane owns, and that it copies and stores.
  TPDE_FN u32 owned(u32 v) const { return lane * Shape<Word>::kVectors + v; }
  TPDE_FN u32 carried(u32 v) const { return kTogether ? v * kLanes + lane : owned(v); }
  // The word of the block that the latter starts at, where `first` is what the lane owns.
  TPDE_FN u32 word_of(u32 v, u32 first) const { return first + (carried(v) - owned(0)) * (16 / (u32)sizeof(Word)); }
  TPDE_FN static void meet() {
    if (kTogether) sync_warp();
  }
  TPDE_FN static void go_on(u32& at) {
    at = at + Shape<Word>::kRowWords == Shape<Word>::kQueueWords ? 0 : at + Shape<Word>::kRowWords;
  }
  TPDE_FN void start(const Block<Word>& b, u32 rows, u32 own) {
#pragma unroll
    for (u32 i = 0; i < Shape<Word>::kAhead; i++) fetch<false>(b, 0, i * Shape<Word>::kRow + own, i < rows, 0);
  }
  // Asks for a row, words from `first` on, if it exists. There is place for kAhead.
  template <bool>
  TPDE_FN void fetch(const Block<Word>& b, u32, u32 first, bool exists, u32) {
    u32* to = room + tail;
    go_on(tail);
    meet();  // nobody reads the place before any more
    if (exists && b.base) {
#pragma unroll
      for (u32 v = 0; v < Shape<Word>::kVectors; v++) {
        copy_16(to + place_of(carried(v)), reinterpret_cast<const u32*>(b.base + word_of(v, first)));
      }
    }
    if (exists && !b.sign_extended) {
#pragma unroll
      for (u32 p = 0; p < Shape<Word>::kPlanes; p++) {
        copy_16(to + ((Shape<Word>::kVectors + p) * kLanes + lane) * 4, b.planes + p * b.plane_words + first / 2);
      }
    }
    commit_copies();
  }
  // The next row. Once it is decoded there is a place for another.
  template <bool>
  TPDE_FN Row<Word> take(const Block<Word>& b, u32, u32, u32) {
    wait_copies_but<Shape<Word>::kAhead - 1>();
    meet();
    const Shared from = Shared::of(room + head);
    go_on(head);
    Row<Word> row;
#pragma unroll
    for (u32 v = 0; v < Shape<Word>::kVectors; v++) {
      row.base[v] = b.base ? from.plus(4 * place_of(owned(v))).group() : Group{{0, 0, 0, 0}};
    }
    if (!b.sign_extended) {
#pragma unroll
      for (u32 p = 0; p < Shape<Word>::kPlanes; p++) {
        row.plane[p] = from.plus(((Shape<Word>::kVectors + p) * kLanes + lane) * 16).group();
      }
    }
    return row;
  }
  // Stores the row that was taken last, through its place.
  TPDE_FN void store(const Block<Word>& b, u32 first, const Group* out) const {
    if (!kTogether) return store_row<true>(b, first, Shape<Word>::kWords, out);
    const Shared place = Shared::of(room + tail);
#pragma unroll
    for (u32 v = 0; v < Shape<Word>::kVectors; v++) place.plus(4 * place_of(owned(v))).set_group(out[v]);
    meet();
#pragma unroll
    for (u32 v = 0; v < Shape<Word>::kVectors; v++) {
      store_whole(b.dst + word_of(v, first), place.plus(4 * place_of(carried(v))).group());
    }
  }
};
#endif

}  // namespace prefix
