// rice_head.cuh - the head of a chunk of the rice codec, and its exceptions.
#pragma once

#include "rice_state.cuh"

namespace rice {

const u32 kMaxZeros = 28;            // of an exp-Golomb code
const u32 kMaxLaneBits = 1u << 29;   // more than any chunk has
const u32 kLeastOrder = 8, kWidthBits = 5;

// The value of an exp-Golomb code from its first one on, which is at bit `at`,
// behind `zeros` zeros, at most kMaxZeros.
template <typename Strings>
TPDE_FN u64 gamma_at(const Strings& strings, u32 at, u32 zeros, u32 order) {
  const u32 n = zeros + 1 + order;  // at most 53
  return (((u64)strings.window(at) << 32 | strings.window(at + 32)) >> (64 - n)) - ((u64)1 << order);
}

// Reads an exp-Golomb code; false if no encoder writes it.
template <typename Strings>
TPDE_FN bool read_gamma(Reader<Strings>& bits, u32 order, u64& v) {
  const u32 zeros = leading_zeros(bits.peek());
  if (zeros > kMaxZeros) return false;
  v = gamma_at(bits.strings, bits.position + zeros, zeros, order);
  bits.skip(2 * zeros + 1 + order);
  return true;
}

// Reads the number of events of each class, each at most `words`; false if a code
// is too long. A warp does it: where a code ends is all that the next one waits
// for, so that is found first, by all lanes; then each lane reads one.
template <typename Word, typename Strings>
TPDE_FN bool read_counts(Shared<Word>& s, Reader<Strings>& bits, u32 words) {
  Private<u32, 32> at, zeros;
  bool good = true;
#pragma unroll 1
  for (u32 c = 0; c < kClasses; c++) {
    const u32 found = leading_zeros(bits.peek()), most = min_u32(found, kMaxZeros);
    EACH_LANE(l) {
      if (l == c) at[l] = bits.position + most, zeros[l] = most;
    }
    if (s.classes[c].kind == kAbsent) continue;
    good = good && found <= kMaxZeros;
    bits.skip(2 * most + 1 + s.classes[c].order);
  }
  EACH_LANE(l) {
    if (l < kClasses) {
      const ClassInfo info = s.classes[l];
      u32 n = 0;
      if (info.kind != kAbsent) {
        const u64 z = gamma_at(bits.strings, at[l], zeros[l], info.order);
        const u64 v = (u64)info.mean + ((z >> 1) ^ (0 - (z & 1)));  // huge if negative
        if (v <= words) n = (u32)v; else raise(&s.bad);
      }
      s.head.events[l] = n;
    }
  }
  sync_warp();
  return good;
}

TPDE_FN u32 position_bytes(u32 words) { return words <= kShortWords ? 2 : 4; }

// Finds where the sections of a chunk start, whose data the strings are, from the
// events of each class and what is behind their counts. Returns false for a head
// that no encoder writes; then nothing else of it is used.
template <typename Strings>
TPDE_FN bool find_sections(const ClassInfo* classes, Reader<Strings> bits, u32 words, u32 word_bytes, Head& h) {
  const u32 data_words = bits.strings.words;
  u32 sum = 0, gap_events = 0, values = 0;
#pragma unroll
  for (u32 c = 0; c < kClasses; c++) {
    const u32 n = h.events[c];
    sum += n;
    h.start[c] = gap_events;
    h.values_at[c] = values;
    if (c != kDense) gap_events += n;
    if (classes[c].kind == kValued) values += n;
  }
  if (sum > words) return false;
  h.gap_events = gap_events;
  h.values = values;
  h.exceptions = 0;
  u32 listed = 0;  // 32-bit words
  if (bits.take(1)) {
    u64 n;
    if (!read_gamma(bits, 0, n) || n >= words) return false;
    h.exceptions = (u32)n + 1;
    const u64 need = ((u64)h.exceptions * position_bytes(words) + 3) / 4 + ((u64)h.exceptions * word_bytes + 3) / 4;
    if (need >= data_words) return false;
    listed = (u32)need;
  }
  h.exceptions_at = (data_words - listed) * 4;
  h.bits = (data_words - listed) * 32;

  u32 lanes = min_u32((values + kLaneValues - 1) / kLaneValues, kMaxLanes), width = 0;
  if (lanes == 0) lanes = 1;
  h.least = 0;
  if (lanes > 1) {
    u64 least;
    if (!read_gamma(bits, kLeastOrder, least) || least >= kMaxLaneBits) return false;
    h.least = (u32)least;
    width = bits.take(kWidthBits);
  }
  h.lanes = lanes;
  h.width = width;
  h.lane_table = bits.position;

  // At most 25 bits for each of at most 2^25 words: no sum overflows.
  u32 low_bits[kDense], signs[kDense];
#pragma unroll
  for (u32 c = 0; c < kDense; c++) {
    const u32 n = h.events[c];
    low_bits[c] = n * classes[c].low;
    signs[c] = classes[c].kind == kUnit ? n : 0;
  }
  u32 at = bits.position + (lanes - 1) * width;
#pragma unroll
  for (u32 c = 0; c < kDense; c++) {
    h.low_at[c] = at;
    at += low_bits[c];
  }
#pragma unroll
  for (u32 c = 0; c < kDense; c++) {
    h.sign_at[c] = at;
    at += signs[c];
  }
  h.low_at[kDense] = h.sign_at[kDense] = h.quotients = at;
  return at <= h.bits;
}

// Reads the head of a chunk, or raises its flag. A warp does it, and all others
// wait.
template <typename Word, typename Strings>
TPDE_FN void read_head(Shared<Word>& s, const Strings& strings, u32 words) {
  Reader<Strings> bits = {strings, 0};
  const bool good = strings.words > 0 && read_counts(s, bits, words);
  if (is_leader() && !(good && find_sections(s.classes, bits, words, sizeof(Word), s.head))) raise(&s.bad);
}

// The position of exception i.
TPDE_FN u32 exception_at(const Head& h, const u32* data, u32 i, u32 words) {
  const u8* list = reinterpret_cast<const u8*>(data) + h.exceptions_at;
  return words <= kShortWords ? reinterpret_cast<const u16*>(list)[i] : reinterpret_cast<const u32*>(list)[i];
}

// The number of the first exception at a position or behind.
TPDE_FN u32 find_exception(const Head& h, const u32* data, u32 position, u32 words) {
  u32 lo = 0, hi = h.exceptions;
  while (lo < hi) {
    const u32 mid = (lo + hi) / 2;
    if (exception_at(h, data, mid, words) < position) lo = mid + 1; else hi = mid;
  }
  return lo;
}

// Whether the word at a position is listed.
TPDE_FN bool is_exception(const Head& h, const u32* data, u32 position, u32 words) {
  const u32 i = find_exception(h, data, position, words);
  return i < h.exceptions && exception_at(h, data, i, words) == position;
}

// Applies exceptions t, t + kThreads and so on. Nothing else is written to the
// words that they are at; positions ascend, or the chunk is corrupt.
template <typename Word>
TPDE_FN void apply_exceptions(Shared<Word>& s, const Block<Word>& b, const u32* data, u32 t) {
  const Head& h = s.head;
  const u8* words = reinterpret_cast<const u8*>(data) + h.exceptions_at + (h.exceptions * position_bytes(b.words) + 3) / 4 * 4;
  u32 changed = 0;
  for (u32 i = t; i < h.exceptions; i += kThreads) {
    const u32 p = exception_at(h, data, i, b.words);
    if (p >= b.words || (i > 0 && exception_at(h, data, i - 1, b.words) >= p)) {
      raise(&s.bad);
      break;
    }
    Word v;
    if (sizeof(Word) == 8) {  // only 4-byte aligned
      const u32* half = reinterpret_cast<const u32*>(words) + 2 * i;
      v = (Word)((u64)half[1] << 32 | half[0]);
    } else {
      v = reinterpret_cast<const Word*>(words)[i];
    }
    b.dst[p] = apply<Word>(base_word(b, p), v);
    changed += v != 0;
  }
  if (changed) add_shared(&s.deltas, changed);
}

}  // namespace rice
