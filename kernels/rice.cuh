// rice.cuh - decoder of the rice codec (core/codec/rice/FORMAT.md).
//
// A thread block decodes a chunk. First the distances of all events become ranks
// (rice_ranks.cuh). Then it goes through the base in tiles, each loaded while the
// one before is worked on: it counts the words of each class, and finds the
// events of the tile by their ranks (rice_tile.cuh). Changes of one unit are
// made at once; of events with values the positions and the codes are noted, and
// their values are read at the end, lane by lane (rice_values.cuh). So the base is
// read once, and written to the target once; changed words are written again.
//
// All of that is in shared memory, which is enough for what sparse changes take.
// If there are more values than fit, their lanes walk along the base
// (rice_walk.cuh). Chunks with more changed words, or very long ones, are decoded
// tile by tile (rice_serial.cuh). The data may be anything: each read and write is bounded,
// and so is the work.
#pragma once

#include "rice_head.cuh"
#include "rice_ranks.cuh"
#include "rice_serial.cuh"
#include "rice_state.cuh"
#include "rice_tile.cuh"
#include "rice_values.cuh"
#include "rice_walk.cuh"

namespace rice {

// How a chunk is decoded, by what of it shared memory holds.
enum Way : u32 {
  kAllListed,  // all events, and all values
  kWalked,     // the events of gap classes
  kSerially,   // neither
};

template <typename Word>
TPDE_FN Way way_of(const Head& h, const Tables& tables, u32 words) {
  if ((kNear<Word> && tables.keys > kNearKeys) || words > kMaxWords || h.gap_events > kMaxList) return kSerially;
  // No sum overflows: there are no more events than words.
  const bool listed = 2 * h.gap_events + 3 * h.values <= 2 * kMaxList;
  return listed && h.values <= Shape<Word>::kTileWords ? kAllListed : kWalked;
}

// Notes which of the events of class c are in the tile at word `first`; the list
// has the ranks of all of them. A warp does it. If the chunk is walked, dense
// words are counted only.
template <typename Word, bool Walk>
TPDE_FN void find_range(Shared<Word>& s, const Block<Word>& b, const Steps<Word, kNear<Word>>& steps, u32 first, u32 c,
                        u32 far_events) {
  const u32 begin = s.progress[c].passed, done = s.progress[c].done;
  const Origin o = s.origin[c];
  const u32 from = o.from + done, end = o.end;
  if (c != kDense && from == end) {  // nobody asks for the class any more
    if (is_leader()) s.events[c] = 0;
    return;
  }
  const u32 count = class_words(s, b, first, c);
  u32 n = count;
  if (c != kDense) {
    n = count_within(s, from, end, begin, count, far_events);
  } else if (n > end - from) {
    n = 0;  // more words than the chunk counts: told at the end
  }
  if (Walk && c == kDense) find_lanes(s, steps, first, begin, n);
  sync_warp();
  if (is_leader()) {
    s.progress[c] = Progress{begin + count, begin, done + n, done};
    s.events[c] = Walk && c == kDense ? 0 : n;
    s.found[c] = Found{from, begin, o.note, o.at + done};
    if (first % kPageWords == 0) s.notes.listed.page[c][first / kPageWords] = (u16)done;
  }
}

// Goes through the tiles of a chunk: applies the events of unit classes, and
// notes the positions of the others in the list. If the chunk is walked, it
// notes those of all gap classes.
template <typename Word, bool Walk>
TPDE_FN void decode_tiles(Shared<Word>& s, const Block<Word>& b, const Tables& tables,
                          Private<Ahead<Word>, kThreads>& ahead) {
  const Steps<Word, kNear<Word>> steps(s, tables);
  const bool copy = !b.in_place();
  const Head& h = s.head;
  const u32 far_events = s.far_events;
  u16* positions = positions_of(s);
  u8* codes = codes_of(s);
  EACH_THREAD(t, kThreads) {  // read behind a barrier
    if (t < kClasses) {
      const bool sign = s.classes[t].kind != kValued;
      s.origin[t] = Origin{h.start[t], Walk ? kPosition : sign ? kSign : kValue,
                           sign ? h.sign_at[t] - h.sign_at[0] : h.values_at[t], h.start[t] + h.events[t]};
    }
  }
#pragma unroll 1
  for (u32 first = 0; first < b.words; first += Shape<Word>::kTileWords) {
    EACH_THREAD(t, kThreads) {
      stage_tile(s, b, first, t, ahead[t], copy);
      load_tile(b, first + Shape<Word>::kTileWords, t, ahead[t]);
    }
    count_tile(s, steps);
    barrier();
    EACH_WARP(w, kWarps) {
      if (w < kClasses) find_range<Word, Walk>(s, b, steps, first, w, far_events);
    }
    barrier();  // the copy, too, is written before the events
    EACH_THREAD(t, kThreads) {
      const Numbering numbering(s);
#pragma unroll 1
      for (u32 n = t; n < numbering.all(); n += kThreads) {
        u32 i = n;
        const u32 c = numbering.class_of(i);
        const Found f = s.found[c];
        const Place<Word> place = locate_event(s, steps, c, i);
        if (f.note == kSign) {
          apply_sign(b, first, place, sign_of(s, f.at + i));
        } else {
          (Walk ? s.list + f.from : positions + f.at)[i] = (u16)(first + place.at);
          if (!Walk) codes[f.at + i] = steps.code(place.word);
        }
      }
    }
    barrier();
  }
}

// Notes whether every event was found. Dense words beyond what the chunk counts
// have none.
template <typename Word>
TPDE_FN void check_found(Shared<Word>& s) {
  EACH_THREAD(t, kThreads) {
    if (t < kClasses && s.progress[t].done != s.head.events[t]) raise(&s.bad);
  }
}

template <typename Word>
TPDE_FN void decode_events(Shared<Word>& s, const Block<Word>& b, const Tables& tables, const u32* data, Way way,
                           Private<Ahead<Word>, kThreads>& ahead) {
  if (way == kSerially) {
    decode_serially<Word>(s, b, tables, data);
    check_found(s);
    return;
  }
  if (way == kWalked) {
    decode_tiles<Word, true>(s, b, tables, ahead);
  } else {
    decode_tiles<Word, false>(s, b, tables, ahead);
  }
  check_found(s);
  if (failed(s)) return;  // the list is not all positions
  if (way == kWalked) {
    walk_values<Word>(s, b, tables, data);
  } else {
    decode_values(s, b, tables, data);
  }
}

// Reads the head of a chunk, finds out how to decode it, and lists its events.
// Returns false for one that no encoder writes.
template <typename Word, typename Strings>
TPDE_FN bool read_events(Shared<Word>& s, const Tables& tables, const Strings& strings, u32 words, Way& way) {
  EACH_WARP(w, kWarps) {
    if (w == 0) {
      read_head(s, strings, words);
      if (is_leader()) s.deltas = s.head.gap_events;
    }
  }
  if (failed(s)) return false;
  EACH_THREAD(t, kThreads) { read_lane_length(s, strings, t); }
  way = way_of<Word>(s.head, tables, words);
  scan_quotients(s, strings, way != kSerially);
  if (failed(s)) return false;
  if (s.too_wide) way = kSerially;
  if (way != kSerially) {
    make_ranks(s, strings, words);
    if (way == kAllListed) keep_signs(s, strings);
  }
  return !failed(s);
}

// The same of strings that shared memory does not hold; not part of the kernel's
// own code.
template <typename Word>
TPDE_SLOW bool read_far_events(Shared<Word>& s, const Tables& tables, FarStrings strings, u32 words, Way& way) {
  return read_events(s, tables, strings, words, way);
}

// Decodes a chunk of data_words 32-bit words that should change `deltas` words.
// All threads of a block call it. Returns false for data that no encoder writes.
template <typename Word>
TPDE_FN bool decode_chunk(Shared<Word>& s, const Block<Word>& b, const Tables& tables, const u32* data, u32 data_words,
                          u32 deltas) {
  Private<Ahead<Word>, kThreads> ahead = {};
  const bool near = data_words <= sizeof(s.tile) / 4 - NearStrings::kBehind;
  EACH_THREAD(t, kThreads) {
    // All is loaded before any of it is waited for.
    const u32 step_at = tables.step_at, code_at = tables.code_at, zero_class = tables.zero_class, entries = tables.entries;
    const u32 shift = tables.shift, keys = tables.keys;
    const bool has_key = t < min_u32(keys, kNearKeys), has_class = t < kClasses, has_code = t < kMaxCodes;
    load_tile(b, 0, t, ahead[t]);
    StringsAhead strings;
    strings.load(data, data_words, t);
    const u32 step = has_key ? tables.at<u32>(step_at)[t] : 0;
    const u8 code = has_key ? tables.at<u8>(code_at)[t] : 0;
    const ClassInfo info = has_class ? tables.classes[t] : ClassInfo{0, 0, 0, 0};
    const u32 slot = has_code ? slot_of(tables.codes[t]) : 0;
    // They are where the tile will be.
    if (near) strings.store(reinterpret_cast<u32*>(s.tile), data_words + NearStrings::kBehind, data, data_words, t);
    if (has_key) s.step[t] = step, s.code[t] = code;
    if (has_code) s.slot[t] = slot;
    if (has_class) {
      s.classes[t] = info;
      s.progress[t] = Progress{0, 0, 0, 0};
      for (u32 i = 0; i < kPages; i++) s.notes.listed.page[t][i] = 0xffff;
    }
    if (t == 0) {
      s.shift = shift;
      s.keys = keys;
      s.zero_class = zero_class;
      s.entries = entries;
      s.far_events = s.too_wide = s.bad = 0;
    }
  }
  barrier();
  Way way;
  const bool good = near ? read_events(s, tables, NearStrings{Near::of(s.tile), data_words}, b.words, way)
                         : read_far_events(s, tables, FarStrings{data, data_words}, b.words, way);
  if (!good) return false;
  decode_events(s, b, tables, data, way, ahead);
  if (failed(s)) return false;
  if (s.head.exceptions > 0) {
    EACH_THREAD(t, kThreads) { apply_exceptions(s, b, data, t); }
    if (failed(s)) return false;
  }
  return s.deltas == deltas;
}

}  // namespace rice
