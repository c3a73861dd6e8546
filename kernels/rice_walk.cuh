// rice_walk.cuh - the values of chunks of the rice codec of which most are those
// of dense words: more than shared memory holds, but a lane comes upon its words
// by walking along the base.
//
// The tiles are gone through before, which finds the positions of the events of
// gap classes and the word that each lane starts at, and writes nothing. So all
// keys are those of the base: a lane looks at a dense word before it changes it,
// and at those of no other lane. Words of gap classes, which all lanes pass by,
// are changed when they are done; their values are read once more.
#pragma once

#include "rice_tile.cuh"
#include "rice_values.cuh"

namespace rice {

// The lane that a thread reads. Neighbouring ones are in different warps, which
// then run side by side.
TPDE_FN u32 lane_of(u32 t) { return t / 32 + t % 32 * kWarps; }

// The position of event i of class c.
template <typename Word>
TPDE_FN u32 walked_position(const Shared<Word>& s, u32 c, u32 i) {
  return page_of(s, c, i) + s.list[s.head.start[c] + i];
}

// Finds the lanes whose first dense word is in a tile, of which `count` words
// from rank `begin` on are dense. A warp does it.
template <typename Word, bool InShared>
TPDE_FN void find_lanes(Shared<Word>& s, const Steps<Word, InShared>& steps, u32 first, u32 begin, u32 count) {
  const Head& h = s.head;
  sync_warp();  // for the segments
  EACH_LANE(l) {
    if (l < h.lanes) {
      const u32 value = first_value(h, l), dense = h.values_at[kDense];
      const u32 rank = value > dense ? value - dense : 0;
      if (rank - begin < count) s.lane_word[l] = first + locate(s, steps, kDense, rank - begin).at;
    }
  }
}

// Reads those values of lane l that are of gap classes, and applies them if
// `write`. Returns the number of the value behind them.
template <typename Word>
TPDE_FN u32 read_gap_values(Shared<Word>& s, const Block<Word>& b, const Tables& tables, const u32* data, u32 l, bool write, Bits& bits) {
  const Head& h = s.head;
  const u8* code_of = tables.at<u8>(tables.code_at);
  const u32 end = first_value(h, l + 1);
  u32 i = first_value(h, l);
  bits.start(data, h.bits / 32, s.lane_start[l]);
#pragma unroll 1
  for (u32 c = 0; c < kDense; c++) {
    if (s.classes[c].kind != kValued) continue;
    for (; i < end && i - h.values_at[c] < h.events[c]; i++) {
      const u32 p = walked_position(s, c, i - h.values_at[c]);
      const Word w = base_word(b, p);
      const Word v = read_value<Word>(bits, tables, tables.codes[code_of[key_of_word(tables, w)]]);
      if (v == 0) raise(&s.bad);
      if (write) b.dst[p] = apply<Word>(w, v);
    }
  }
  return i;
}

// Reads the values of lane l and applies those of dense words.
template <typename Word>
TPDE_FN void walk_lane(Shared<Word>& s, const Block<Word>& b, const Tables& tables, const u32* data, u32 l) {
  const Head& h = s.head;
  if (s.lane_start[l] > h.bits) {
    raise(&s.bad);
    return;
  }
  Bits bits;
  u32 i = read_gap_values(s, b, tables, data, l, false, bits);
  const u32 end = first_value(h, l + 1);
  u32 changed = 0;
  if (i < end) {
    const u8* code_of = tables.at<u8>(tables.code_at);
    const u32* steps = tables.at<u32>(tables.step_at);
    u32 p = s.lane_word[l];
    u32 x = find_exception(h, data, p, b.words);
    Word next = base_word(b, p);
    const u32 limit = l + 1 < h.lanes ? s.lane_word[l + 1] : b.words;
    for (; p < limit && i < end; p++) {
      const Word w = next;
      if (p + 1 < limit) next = base_word(b, p + 1);
      const u32 key = key_of_word(tables, w);
      if (steps[key] >> 4 * kDense == 0) continue;
      const CodeInfo& code = tables.codes[code_of[key]];
      Word v = read_value<Word>(bits, tables, code);
      while (x < h.exceptions && exception_at(h, data, x, b.words) < p) x++;
      if (x < h.exceptions && exception_at(h, data, x, b.words) == p) {
        if (v != (Word)code.placeholder) raise(&s.bad);
        v = 0;
      }
      if (v != 0) {
        b.dst[p] = apply<Word>(w, v);
        changed++;
      }
      i++;
    }
  }
  if (changed) add_shared(&s.deltas, changed);
  if (i < end || !lane_ends(s, data, l, bits.position())) raise(&s.bad);
}

// Reads and applies all values and signs.
template <typename Word>
TPDE_SLOW void walk_values(Shared<Word>& s, const Block<Word> b, const Tables& tables, const u32* data) {
  const Head& h = s.head;
  EACH_THREAD(t, kThreads) {
    if (t == 0) sum_lanes(s);
  }
  barrier();
  EACH_THREAD(t, kThreads) {
    const u32 l = lane_of(t);
    if (l < h.lanes) walk_lane(s, b, tables, data, l);
  }
  if (failed(s)) return;
  EACH_THREAD(t, kThreads) {
    const u32 l = lane_of(t);
    Bits bits;
    if (l < h.lanes) read_gap_values(s, b, tables, data, l, true, bits);
#pragma unroll 1
    for (u32 c = 0; c < kDense; c++) {
      if (s.classes[c].kind != kUnit) continue;
      for (u32 i = t; i < h.events[c]; i += kThreads) {
        const u32 p = walked_position(s, c, i);
        apply_sign(b, 0, Place<Word>{p, base_word(b, p)}, bit_at(data, h.bits / 32, h.sign_at[c] + i));
      }
    }
  }
}

}  // namespace rice
