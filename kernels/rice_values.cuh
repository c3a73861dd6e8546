// rice_values.cuh - the values in interval codes of a chunk of the rice codec.
//
// Once the positions of all events with values are known, the codes of their
// contexts are looked up, all at once; then each lane reads its values, one
// after the other; then all of them are added to their words, at once.
#pragma once

#include "rice_head.cuh"

namespace rice {

const u32 kListed = 64;  // flag of a code: the word is an exception

// The first value of a lane; `lanes` for l gives their number.
TPDE_FN u32 first_value(const Head& h, u32 l) { return l * h.values / h.lanes; }

// Reads a residual word.
template <typename Word>
TPDE_FN Word read_value(Bits& bits, const Tables& tables, const CodeInfo& code) {
  const u32 head = bits.peek();
  const u32 window = code.peek ? head >> (32 - code.peek) : 0;
#ifdef __CUDA_ARCH__
  const u32 entry = __ldg(tables.at<u32>(tables.entry_at) + code.lookup + window);
#else
  const u32 entry = tables.at<u32>(tables.entry_at)[code.lookup + window];
#endif
  const u32 total = entry & 127, raw = entry >> 7 & 63, length = total - raw;
  const Word start = (Word)tables.at<u64>(tables.symbol_at)[entry >> 16];
  if (sizeof(Word) <= 2 || total <= 32) {  // at most 26 bits for 16-bit words
    bits.skip(total);
    return start + (Word)(raw ? head << length >> (32 - raw) : 0);
  }
  bits.skip(length);
  const u64 high = raw > 32 ? bits.take(raw - 32) : 0;
  return start + (Word)(high << 32 | bits.take(min_u32(raw, 32)));
}

// Sums up the lane table. The values start at `at`.
TPDE_FN void read_lane_table(const Head& h, const u32* data, u32 at, u32* lane_start) {
  for (u32 l = 0; l < h.lanes; l++) {
    lane_start[l] = at;
    if (l + 1 == h.lanes) break;
    // At most 2^29 + 2^31 bits a lane; a sum beyond the data stays there.
    const u64 next = (u64)at + h.least + bits_at(data, h.bits / 32, h.lane_table + l * h.width, h.width);
    at = next < kBits ? (u32)next : kBits;
  }
}

// Whether the strings of a chunk may end at a bit: all that follows is zeros, of
// less than a word.
TPDE_FN bool ends_at(const Head& h, const u32* data, u32 bit) {
  return bit <= h.bits && h.bits - bit < 32 && bits_at(data, h.bits / 32, bit, h.bits - bit) == 0;
}

// Whether the string of lane l may end at a bit: the next one starts there.
template <typename Word>
TPDE_FN bool lane_ends(const Shared<Word>& s, const u32* data, u32 l, u32 bit) {
  return l + 1 == s.head.lanes ? ends_at(s.head, data, bit) : bit == s.lane_start[l + 1];
}

// The lane that a thread reads. Neighbouring ones are in different warps, which
// then run side by side.
TPDE_FN u32 lane_of(u32 t) { return t / 32 + t % 32 * kWarps; }

template <typename Word>
TPDE_FN Word* values_of(Shared<Word>& s) {
  return reinterpret_cast<Word*>(s.tile);
}

// The position of event i of class c, once the list has its low bits.
template <typename Word>
TPDE_FN u32 position_of(const Shared<Word>& s, u32 c, u32 i) {
  u32 page = 0;
#pragma unroll
  for (u32 k = 1; k < kPages; k++) page += i >= s.notes.listed.page[c][k];
  return page * kPageWords + s.list[s.head.start[c] + i];
}

// Looks up the codes of thread t's values. The list has the positions of all
// events with values.
template <typename Word>
TPDE_FN void look_up_codes(Shared<Word>& s, const Block<Word>& b, const Tables& tables, const u32* data, u32 t) {
  const Head& h = s.head;
  const u8* code = tables.at<u8>(tables.code_at);
  for (u32 c = 0; c < kClasses; c++) {
    if (s.classes[c].kind != kValued) continue;
    for (u32 i = t; i < h.events[c]; i += kThreads) {
      const u32 p = position_of(s, c, i);
      u32 number = code[key_of_word(tables, base_word(b, p))];
      if (c == kDense && h.exceptions > 0 && is_exception(h, data, p, b.words)) number |= kListed;
      values_of(s)[h.values_at[c] + i] = (Word)number;
    }
  }
}

// Replaces the codes of a lane by its values.
template <typename Word>
TPDE_FN void read_lane(Shared<Word>& s, const Tables& tables, const u32* data, u32 l) {
  const Head& h = s.head;
  const u32 end = first_value(h, l + 1);
  u32 i = first_value(h, l);
  if (s.lane_start[l] > h.bits) {
    raise(&s.bad);
    return;
  }
  Bits bits;
  bits.start(data, h.bits / 32, s.lane_start[l]);
  Word* values = values_of(s);
  // The code of a value does not depend on the values before: it is looked up
  // while they are read.
  u32 number = i < end ? (u32)values[i] : 0;
  CodeInfo code = tables.codes[number % kListed];
  for (; i < end; i++) {
    const u32 next_number = i + 1 < end ? (u32)values[i + 1] : 0;
    const CodeInfo next = tables.codes[next_number % kListed];
    const Word v = read_value<Word>(bits, tables, code);
    const bool listed = number >= kListed;
    if (listed && v != (Word)code.placeholder) raise(&s.bad);
    values[i] = listed ? (Word)0 : v;
    number = next_number;
    code = next;
  }
  if (!lane_ends(s, data, l, bits.position())) raise(&s.bad);
}

// Adds thread t's values to their words.
template <typename Word>
TPDE_FN void apply_values(Shared<Word>& s, const Block<Word>& b, u32 t) {
  const Head& h = s.head;
  u32 changed = 0;
  for (u32 c = 0; c < kClasses; c++) {
    if (s.classes[c].kind != kValued) continue;
    for (u32 i = t; i < h.events[c]; i += kThreads) {
      const Word v = values_of(s)[h.values_at[c] + i];
      if (v != 0) {
        const u32 p = position_of(s, c, i);
        b.dst[p] = apply<Word>(base_word(b, p), v);
        changed += c == kDense;  // events of gap classes have been counted
      } else if (c != kDense) {
        raise(&s.bad);  // an unchanged word has no event
      }
    }
  }
  if (changed) add_shared(&s.deltas, changed);
}

// Reads and applies all values of a chunk that has at most kMaxList events and
// kTileWords values.
template <typename Word>
TPDE_FN void decode_values(Shared<Word>& s, const Block<Word>& b, const Tables& tables, const u32* data) {
  const Head& h = s.head;
  EACH_THREAD(t, kThreads) {
    if (t == 0) read_lane_table(h, data, h.quotient_at[kDense], s.lane_start);
    look_up_codes(s, b, tables, data, t);
  }
  barrier();
  EACH_THREAD(t, kThreads) {
    const u32 l = lane_of(t);
    if (l < h.lanes) read_lane(s, tables, data, l);
  }
  barrier();
  EACH_THREAD(t, kThreads) { apply_values(s, b, t); }
}

}  // namespace rice
