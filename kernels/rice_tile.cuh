// rice_tile.cuh - finds the words of given ranks in a tile of a chunk.
//
// A tile lies in shared memory. Its words are counted by class, group by group,
// in bytes: a key's step has a one in the byte of its class. What the groups of
// a segment have before them is kept in bytes, too, what segments have before
// them in 16 bits. An event then searches for its segment, its group and its
// word, in a handful of steps each, and all events of a tile do so at once.
#pragma once

#include "rice_state.cuh"

namespace rice {

// The groups that a thread loads.
template <typename Word>
struct Ahead {
  Group g[Shape<Word>::kStretch];
};

// Whether the tile at word `first` is moved 16 bytes at a time: all of it is in
// the chunk, and base and target are aligned.
template <typename Word>
TPDE_FN bool is_whole(const Block<Word>& b, u32 first) {
  return b.aligned && b.words >= Shape<Word>::kTileWords && first <= b.words - Shape<Word>::kTileWords;
}

// The first group of a tile that thread t loads; the others follow, 32 apart. A
// warp loads what it counts, so that it waits for no other.
template <typename Word>
TPDE_FN u32 first_group(u32 t) { return t / 32 * (32 * Shape<Word>::kStretch) + t % 32; }

// Loads thread t's groups of the tile at word `first`, if it is a whole one; they
// have been zeros, and stay so without a base. A quantised base is not loaded ahead.
template <typename Word>
TPDE_FN void load_tile(const Block<Word>& b, u32 first, u32 t, Ahead<Word>& a) {
#ifndef QUANT
  if (!is_whole(b, first) || !b.base) return;
  const Word* from = b.base + (first + first_group<Word>(t) * Shape<Word>::kPer);
#pragma unroll
  for (u32 j = 0; j < Shape<Word>::kStretch; j++) a.g[j] = load_whole(from + j * 32 * Shape<Word>::kPer);
#endif
}

// Puts them into shared memory, and with `copy` into the target. The words of
// other tiles are loaded here, one by one, with zeros behind the last.
template <typename Word>
TPDE_FN void stage_tile(Shared<Word>& s, const Block<Word>& b, u32 first, u32 t, const Ahead<Word>& a, bool copy) {
  const u32 per = Shape<Word>::kPer, group = first_group<Word>(t);
  if (is_whole(b, first)) {
    Word* to = b.dst + (first + group * per);
    Group* slot = s.tile + swizzle<Word>(group);
#ifdef QUANT
#pragma unroll 1
#else
#pragma unroll
#endif
    for (u32 j = 0; j < Shape<Word>::kStretch; j++) {
#ifdef QUANT
      const Group g = dequant(*b.quantised, b.first + first + (group + j * 32) * per, per);
#else
      const Group g = a.g[j];
#endif
      store_shared(slot + j * 32, g);
      if (copy) store_whole(to + j * 32 * per, g);
    }
    return;
  }
  Word* tile = reinterpret_cast<Word*>(s.tile);
#pragma unroll 1
  for (u32 n = 0; n < Shape<Word>::kStretch * per; n++) {
    const u32 i = t / 32 * (32 * Shape<Word>::kStretch * per) + n * 32 + t % 32;
    const bool inside = i < b.words - first;
    const Word w = inside ? base_word(b, first + i) : (Word)0;
    tile[swizzle<Word>(i / per) * per + i % per] = w;
    if (inside && copy) b.dst[first + i] = w;
  }
}

// Steps are in shared memory, unless words are so large that exponents, which
// the encoder takes for keys, have 11 bits.
template <typename Word>
constexpr bool kNear = sizeof(Word) < 8;

// The steps of keys: in shared memory, unless there are many. An offset is that
// of a key's step in bytes; it comes from a rotated word, of which all other
// bits are masked off.
template <typename Word, bool InShared>
struct Steps {
  const u32* steps;  // shared memory if InShared, else global memory
  const u8* codes;   // the same
  u32 near;          // address in shared memory: a multiple of the size of the steps
  u32 rotate;
  u32 mask;

  TPDE_FN Steps(const Shared<Word>& s, const Tables& tables) {
    steps = InShared ? s.step : tables.at<u32>(tables.step_at);
    codes = InShared ? s.code : tables.at<u8>(tables.code_at);
#ifdef __CUDA_ARCH__
    near = (u32)__cvta_generic_to_shared(s.step);
#endif
    // Not those of the tables: to load them takes long, and what is made of them is
    // made in each turn of a loop, which then waits for all that was loaded since.
    rotate = (s.shift - 2) & 31;
    mask = (s.keys - 1) * (u32)sizeof(u32);
  }
  // The code of a word's context.
  TPDE_FN u8 code(Word w) const {
    const u32 x = sizeof(Word) == 8 ? (u32)((u64)w >> 32) : (u32)w;
    return codes[(rotate_right(x, rotate) & mask) / sizeof(u32)];
  }
  // The step of word j of a group; j is known when this is compiled.
  TPDE_FN u32 step(const Group& g, u32 j) const {
    const u32 per = sizeof(Word) < 4 ? 4 / sizeof(Word) : 1;
    const u32 x = sizeof(Word) == 8 ? g.w[(2 * j + 1) & 3] : g.w[j / per];
    const u32 rotated = rotate_right(x, rotate + j % per * 8 * (u32)sizeof(Word));
#ifdef __CUDA_ARCH__
    if (InShared) {  // mask and address in one instruction
      u32 v;
      asm("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"((rotated & mask) | near));
      return v;
    }
    return __ldg(steps + (rotated & mask) / 4);
#else
    return steps[(rotated & mask) / 4];
#endif
  }
};

// Adds the words of each class in a group.
template <typename Word, bool InShared>
TPDE_FN void count_group(const Steps<Word, InShared>& steps, const Group& g, Counts& sum) {
#pragma unroll
  for (u32 part = 0; part < Shape<Word>::kPer; part += 8) {  // half a byte holds no more
    u32 n = 0;
#pragma unroll
    for (u32 i = part; i < part + 8 && i < Shape<Word>::kPer; i++) n += steps.step(g, i);
    sum = sum + Counts{n & 0x0f0f0f0f, n >> 4 & 0x0f0f0f0f};
  }
}

// What thread t counts in its stretch: sum.g[j] in the groups before group j,
// sum.all in all.
template <typename Word>
struct Stretch {
  Counts g[Shape<Word>::kStretch];
  Counts all;
};

template <typename Word, bool InShared>
TPDE_FN void count_stretch(const Shared<Word>& s, const Steps<Word, InShared>& steps, u32 t, Stretch<Word>& sum) {
  const u32 own = swizzle<Word>(t * Shape<Word>::kStretch);
  sum.all = Counts{0, 0};
#pragma unroll
  for (u32 j = 0; j < Shape<Word>::kStretch; j++) {
    sum.g[j] = sum.all;
    count_group(steps, load_whole(&s.tile[own ^ j]), sum.all);
  }
}

// Sums up over the threads of each segment: v becomes what those before count.
// That is at most kSegmentWords less a group, so bytes hold it; what the last
// thread adds in between may not fit, but goes away again.
TPDE_FN void scan_segments(Private<Counts, kThreads>& v, u32 width) {
#ifdef __CUDACC__
  const u32 lane = threadIdx.x & (width - 1);
  Counts sum = v.value;
#pragma unroll
  for (u32 d = 1; d < width; d *= 2) {
    const Counts up = Counts{__shfl_up_sync(0xffffffffu, sum.even, d), __shfl_up_sync(0xffffffffu, sum.odd, d)};
    if (lane >= d) sum = sum + up;
  }
  v.value = Counts{sum.even - v.value.even, sum.odd - v.value.odd};
#else
  for (u32 t = 0; t < kThreads; t += width) {
    Counts sum = {0, 0};
    for (u32 i = t; i < t + width; i++) {
      const Counts n = v[i];
      v[i] = sum;
      sum = sum + n;
    }
  }
#endif
}

// Where in a row of Shared.total the total of a class is: the even and the odd
// bytes of both words of Counts.
TPDE_FN u32 total_index(u32 c) { return c % 2 * 4 + c / 2 % 2 * 2 + c / 4; }

// Stores the counts of thread t; `before` is what the threads of its segment
// before it count.
template <typename Word>
TPDE_FN void store_counts(Shared<Word>& s, u32 t, const Stretch<Word>& sum, Counts before) {
  const u32 bytes = 0x00ff00ff, segment = t / Shape<Word>::kSegmentThreads;
  const u32 at = t * Shape<Word>::kStretch + segment * (Shape<Word>::kSegmentStride - Shape<Word>::kSegmentGroups);
#pragma unroll
  for (u32 j = 0; j < Shape<Word>::kStretch; j++) {
    s.before[0][at + j] = before.even + sum.g[j].even;
    s.before[1][at + j] = before.odd + sum.g[j].odd;
  }
  if (t % Shape<Word>::kSegmentThreads != Shape<Word>::kSegmentThreads - 1) return;
  Group all;
  all.w[0] = (before.even & bytes) + (sum.all.even & bytes);
  all.w[1] = (before.even >> 8 & bytes) + (sum.all.even >> 8 & bytes);
  all.w[2] = (before.odd & bytes) + (sum.all.odd & bytes);
  all.w[3] = (before.odd >> 8 & bytes) + (sum.all.odd >> 8 & bytes);
  store_shared(s.total[segment], all);
}

// Counts the words of a tile. It holds no barriers; each warp has staged its part
// of the tile, and the counts are read after one.
template <typename Word, bool InShared>
TPDE_FN void count_tile(Shared<Word>& s, const Steps<Word, InShared>& steps) {
  Private<Stretch<Word>, kThreads> sum;
  Private<Counts, kThreads> before;
  sync_warp();
  EACH_THREAD(t, kThreads) {
    count_stretch(s, steps, t, sum[t]);
    before[t] = sum[t].all;
  }
  scan_segments(before, Shape<Word>::kSegmentThreads);
  EACH_THREAD(t, kThreads) { store_counts(s, t, sum[t], before[t]); }
}

// A warp sums up the segments' words of class c and returns how many the tile
// has.
template <typename Word>
TPDE_FN u32 scan_class(Shared<Word>& s, u32 c) {
  const u32 n = Shape<Word>::kSegments, at = total_index(c);
  u32 all = 0;
#ifdef __CUDACC__
  const u32 lane = threadIdx.x & 31;
#pragma unroll
  for (u32 i = 0; i < n; i += 32) {
    const u32 v = i + lane < n ? s.total[(i + lane) & (n - 1)][at] : 0;
    u32 sum = v;
#pragma unroll
    for (u32 d = 1; d < 32; d *= 2) {
      const u32 up = __shfl_up_sync(0xffffffffu, sum, d);
      if (lane >= d) sum += up;
    }
    if (i + lane < n) s.segment[c][i + lane] = (u16)(all + sum - v);
    all += __shfl_sync(0xffffffffu, sum, 31);
  }
#else
  for (u32 i = 0; i < n; i++) {
    s.segment[c][i] = (u16)all;
    all += s.total[i][at];
  }
#endif
  return all;
}

// A warp does this for class c of the tile at word `first`. What was counted
// behind the end of the chunk are zeros.
template <typename Word>
TPDE_FN u32 class_words(Shared<Word>& s, const Block<Word>& b, u32 first, u32 c) {
  const u32 words = min_u32(b.words - first, Shape<Word>::kTileWords);
  return scan_class(s, c) - (c == s.zero_class ? Shape<Word>::kTileWords - words : 0);
}

// By how much the rank of an event of the list is above `begin`, if it is not
// below it.
template <typename Word>
TPDE_FN u32 rank_above(const Shared<Word>& s, u32 event, u32 begin, u32 far_events) {
  u32 above = (u16)(s.list[event] - begin);
  // Where distances are large, low bits do not tell.
#pragma unroll 1
  for (u32 k = 0; k < far_events; k++) {
    if (s.notes.listed.far[k].event == event) above = s.notes.listed.far[k].rank - begin;
  }
  return above;
}

// A warp counts the events from `from` up to `end` that are among the `count`
// words of their class from rank `begin` on: all of them up to one that is not.
template <typename Word>
TPDE_FN u32 count_within(const Shared<Word>& s, u32 from, u32 end, u32 begin, u32 count, u32 far_events) {
  u32 n = 0;
#ifdef __CUDACC__
  const u32 lane = threadIdx.x & 31;
  for (;;) {
    const u32 i = from + n + lane;
    const u32 others = __ballot_sync(0xffffffffu, i >= end || rank_above(s, i, begin, far_events) >= count);
    if (others != 0) return n + __ffs(others) - 1;
    n += 32;
  }
#else
  while (from + n < end && rank_above(s, from + n, begin, far_events) < count) n++;
  return n;
#endif
}

// A word of a tile.
template <typename Word>
struct Place {
  u32 at;
  Word word;
};

// The word of the tile that is number n of class c in it; it has more than n.
template <typename Word, bool InShared>
TPDE_FN Place<Word> locate(const Shared<Word>& s, const Steps<Word, InShared>& steps, u32 c, u32 n) {
  typedef Shape<Word> Sh;
  const Near segments = Near::of(s.segment[c]), counts = Near::of(s.before[c % 2]).plus(c / 2);
  const u32 half = sizeof(u16), each = sizeof(u32);
  Near segment = segments;
#pragma unroll
  for (u32 d = Sh::kSegments / 2; d > 0; d /= 2) {
    segment.step_if(d * half, segment.plus(d * half).half(), n);
  }
  n -= segment.half();
  const u32 segment_number = segment.minus(segments) / half;
  const Near own = counts.plus(segment_number * (Sh::kSegmentStride * each));
  Near before = own;
#pragma unroll
  for (u32 d = Sh::kSegmentGroups / 2; d > 0; d /= 2) {
    before.step_if(d * each, before.plus(d * each).byte(), n);
  }
  n -= before.byte();
  const u32 group = segment_number * Sh::kSegmentGroups + before.minus(own) / each;
  const Group* slot = s.tile + swizzle<Word>(group);
  const Group g = load_whole(slot);
  const u32 bit = 1u << 4 * c;
  u32 word = Sh::kPer;
#pragma unroll
  for (u32 j = 0; j < Sh::kPer; j++) {
    add_if_any(n, 0xffffffff, steps.step(g, j) & bit);  // negative once the word has been passed
    word += (u32)((int)n >> 31);
  }
  return Place<Word>{group * Sh::kPer + word, reinterpret_cast<const Word*>(slot)[word]};
}

// The events of a tile are numbered, class by class.
struct Numbering {
  u32 end[kClasses];  // number of the event behind the last one of each class

  template <typename Word>
  TPDE_FN explicit Numbering(const Shared<Word>& s) {
    const Group low = load_whole(s.events), high = load_whole(s.events + 4);
    u32 sum = 0;
#pragma unroll
    for (u32 c = 0; c < kClasses; c++) end[c] = sum += c < 4 ? low.w[c & 3] : high.w[c & 3];
  }
  TPDE_FN u32 all() const { return end[kClasses - 1]; }
  // The class of event n, below all(); n becomes its number in the class.
  TPDE_FN u32 class_of(u32& n) const {
    u32 c = 0, before = 0;
#pragma unroll
    for (u32 k = 0; k + 1 < kClasses; k++) {
      if (n >= end[k]) c = k + 1, before = end[k];
    }
    n -= before;
    return c;
  }
};

// The word of the tile that event i of class c is at. A dense word's number is
// its rank.
template <typename Word, bool InShared>
TPDE_FN Place<Word> locate_event(const Shared<Word>& s, const Steps<Word, InShared>& steps, u32 c, u32 i) {
  const Found& f = s.found[c];
  return locate(s, steps, c, c == kDense ? i : (u16)(s.list[f.from + i] - f.bias));
}

// The sign bit of an event, by its number in Shared.signs.
template <typename Word>
TPDE_FN u32 sign_of(const Shared<Word>& s, u32 n) { return s.signs[n / 32] >> (31 - n % 32) & 1; }

// Moves a word of the tile at word `first` by one unit, as a sign bit says.
template <typename Word>
TPDE_FN void apply_sign(const Block<Word>& b, u32 first, const Place<Word>& place, u32 sign) {
  b.dst[first + place.at] = apply<Word>(place.word, (Word)((Word)1 - (Word)(sign << 1)));
}

}  // namespace rice
