// rice_values.cuh - the values in interval codes of a chunk of the rice codec.
//
// Once the positions of all events with values are known, and the codes of their
// contexts, each lane reads its values, one after the other; then all of them are
// added to their words, at once. What a lane waits for at each value is the table
// of its code: tables and strings are brought to shared memory before.
#pragma once

#include "rice_head.cuh"

namespace rice {

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
  if (sizeof(Word) <= 2) {
    bits.skip(entry & 31);
    return (Word)(top_bits(head, entry) + (entry >> 16));
  }
  const u32 total = entry & 127, raw = entry >> 7 & 63, length = total - raw;
  const Word start = (Word)tables.at<u64>(tables.symbol_at)[entry >> 16];
  if (total <= 32) {
    bits.skip(total);
    return start + (Word)(raw ? head << length >> (32 - raw) : 0);
  }
  bits.skip(length);
  const u64 high = raw > 32 ? bits.take(raw - 32) : 0;
  return start + (Word)(high << 32 | bits.take(min_u32(raw, 32)));
}

// Reads what the lane table has for lane t: at most 2^29 + 2^31 bits.
template <typename Word, typename Strings>
TPDE_FN void read_lane_length(Shared<Word>& s, const Strings& strings, u32 t) {
  const Head& h = s.head;  // the width is at most 31
  if (t + 1 < h.lanes) s.lane_start[t + 1] = h.least + top_bits(strings.window(h.lane_table + t * h.width), h.width);
}

// Makes lengths starts. A sum beyond the data stays there.
template <typename Word>
TPDE_FN void sum_lanes(Shared<Word>& s) {
  const u32 lanes = s.head.lanes;
  u32 at = s.lane_start[0] = s.head.quotient_at[kDense];
  u32 length = s.lane_start[1];
#pragma unroll 1
  for (u32 l = 1; l < lanes; l++) {
    const u64 next = (u64)at + length;
    length = s.lane_start[min_u32(l + 1, kMaxLanes - 1)];  // before others are stored
    s.lane_start[l] = at = next < kBits ? (u32)next : kBits;
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

// The low 16 bits of the positions of all values, unless the chunk is walked.
template <typename Word>
TPDE_FN u16* positions_of(Shared<Word>& s) {
  return s.list + s.head.gap_events;
}

// Their codes.
template <typename Word>
TPDE_FN u8* codes_of(Shared<Word>& s) {
  return reinterpret_cast<u8*>(positions_of(s) + s.head.values);
}

// What the tile and its counts leave when all of them are done. First a word for
// each value, whose low half the value replaces: its slot. Then what lanes need.
struct Room {
  u32 strings;  // word: those behind the quotients follow, in the byte order of numbers, and a zero
  u32 entries;  // word, a multiple of 4
  u32 first;    // word of the data that the strings start with
  u32 last;     // number of the zero
  bool fits;

  template <typename Word>
  TPDE_FN explicit Room(const Shared<Word>& s) {
    const u32 words = sizeof(s.tile) / 4 + sizeof(s.before) / 4;
    first = s.head.quotient_at[kDense] / 32;
    last = s.head.bits / 32 - first;
    strings = s.head.values;
    entries = (strings + last + 1 + 3) & ~3u;
    fits = sizeof(Word) <= 2 && last < words && s.entries < words && entries + ((s.entries + 3) & ~3u) <= words;
  }
};

// What a lane is told of a value's code: bits that its entry is found by, and
// from bit 16 the bytes from the first entry of all to that of the code.
TPDE_FN u32 slot_of(const CodeInfo& code) { return code.lookup << 18 | code.peek; }

template <typename Word>
TPDE_FN u32* room_of(Shared<Word>& s) {
  return reinterpret_cast<u32*>(s.tile);
}

// The values of words that the room has none for.
template <typename Word>
TPDE_FN Word* values_of(Shared<Word>& s) {
  return reinterpret_cast<Word*>(s.tile);
}

// Thread t's share in filling the room. All is loaded before any of it is waited
// for, unless it is much.
template <typename Word>
TPDE_FN void fill_room(Shared<Word>& s, const Room& room, const Tables& tables, const u32* data, u32 t) {
  const u32 kEntries = 4;  // groups
  u32* const to = room_of(s);
  const u32* entries = tables.at<u32>(tables.entry_at);  // there are zeros behind the last
  const u32 count = s.entries, values = s.head.values;
  Group entry[kEntries];
#pragma unroll
  for (u32 j = 0; j < kEntries; j++) {
    const u32 i = 4 * (t + j * kThreads);
    if (i < count) entry[j] = load_whole(entries + i);
  }
  StringsAhead strings;
  strings.load(data + room.first, room.last, t);
  const u8* codes = codes_of(s);
  for (u32 n = t; n < values; n += kThreads) to[n] = s.slot[codes[n]];
#pragma unroll
  for (u32 j = 0; j < kEntries; j++) {
    const u32 i = 4 * (t + j * kThreads);
    if (i < count) store_shared(to + room.entries + i, entry[j]);
  }
  strings.store(to + room.strings, room.last + 1, data + room.first, room.last, t);
#pragma unroll 1
  for (u32 i = 4 * (t + kEntries * kThreads); i < count; i += 4 * kThreads) {
    store_shared(to + room.entries + i, load_whole(entries + i));
  }
}

// The first word of the page that event i of class c is in.
template <typename Word>
TPDE_FN u32 page_of(const Shared<Word>& s, u32 c, u32 i) {
  u32 page = 0;
#pragma unroll
  for (u32 k = 1; k < kPages; k++) page += i >= s.notes.listed.page[c][k];
  return page * kPageWords;
}

// The position of value n of a chunk that is not walked.
template <typename Word>
TPDE_FN u32 position_of(Shared<Word>& s, u32 words, u32 n) {
  const u32 low = positions_of(s)[n];
  if (words <= kPageWords) return low;
  u32 c = 0;
  for (u32 k = 1; k < kClasses; k++) {
    if (n >= s.head.values_at[k]) c = k;
  }
  return low + page_of(s, c, n - s.head.values_at[c]);
}

// Reads the values of a lane.
template <typename Word>
TPDE_FN void read_lane(Shared<Word>& s, const Tables& tables, const u32* data, u32 l) {
  const Head& h = s.head;
  const u8* codes = codes_of(s);
  Word* values = values_of(s);
  Bits bits;
  bits.start(data, h.bits / 32, s.lane_start[l]);
  const u32 end = s.lane_value[l + 1];
  for (u32 i = s.lane_value[l]; i < end; i++) values[i] = read_value<Word>(bits, tables, tables.codes[codes[i]]);
  if (!lane_ends(s, data, l, bits.position())) raise(&s.bad);
}

// The same from the room. What is loaded in a turn but the entry is for later ones.
template <typename Word>
TPDE_FN void read_near_lane(Shared<Word>& s, const Room& room, const u32* data, u32 l) {
  const u32 start = s.lane_start[l] - room.first * 32;
  const Near entries = Near::of(room_of(s) + room.entries), strings = Near::of(room_of(s) + room.strings);
  const Near last = strings.plus(4 * room.last);
  Near next = strings.plus(4 * min_u32(start / 32, room.last));
  u32 high = next.word();
  next = next.plus(4).up_to(last);
  u32 low = next.word();
  next = next.plus(4).up_to(last);
  // Bits from the start of a word on, in bits 0-15: a lane has at most 256 values
  // of at most 26 bits. Above, biases add up to what means nothing.
  u32 position = start & 31;
  Near slot = Near::of(room_of(s) + s.lane_value[l]);
  const Near end = Near::of(room_of(s) + s.lane_value[l + 1]);
  bool more = slot != end;
  u32 code_after = more ? slot.word() : 0;
#pragma unroll 2
  while (more) {
    const Near here = slot;
    const u32 code = code_after, ahead = next.word();
    slot = slot.plus(4);
    more = slot != end;
    if (more) code_after = slot.word();
    const u32 window = bits_between(high, low, position);
    const u32 entry = entries.plus(code >> 16).plus(4 * top_bits(window, code)).word();
    here.set_half(top_bits(window, entry) + (entry >> 16));
    const u32 to = position + entry;
    if ((to ^ position) & 32) {
      high = low;
      low = ahead;
      next = next.plus(4).up_to(last);
    }
    position = to;
  }
  if (!lane_ends(s, data, l, s.lane_start[l] + (position & 0xffff) - (start & 31))) raise(&s.bad);
}

// Words that a thread adds values to, several at a time, since it waits for them.
template <typename Word>
struct Bases {
  static const u32 kCount = 4;
  u32 at[kCount];
  Word word[kCount];
};

// Loads those of value n and each kThreads further on.
template <typename Word>
TPDE_FN void load_bases(Shared<Word>& s, const Block<Word>& b, u32 n, Bases<Word>& bases) {
#pragma unroll
  for (u32 j = 0; j < Bases<Word>::kCount; j++, n += kThreads) {
    if (n >= s.head.values) break;
    bases.at[j] = position_of(s, b.words, n);
    bases.word[j] = base_word(b, bases.at[j]);
  }
}

// Adds the values to them, and returns how many dense words change.
template <typename Word>
TPDE_FN u32 apply_values(Shared<Word>& s, const Room& room, const Block<Word>& b, const Tables& tables, const u32* data,
                         u32 n, const Bases<Word>& bases) {
  const Head& h = s.head;
  u32 changed = 0;
#pragma unroll
  for (u32 j = 0; j < Bases<Word>::kCount; j++, n += kThreads) {
    if (n >= h.values) break;
    const bool dense = n >= h.values_at[kDense];
    const Word v = room.fits ? (Word)room_of(s)[n] : values_of(s)[n];
    if (dense && h.exceptions > 0 && is_exception(h, data, bases.at[j], b.words)) {
      if (v != (Word)tables.codes[codes_of(s)[n]].placeholder) raise(&s.bad);
    } else if (v != 0) {
      b.dst[bases.at[j]] = apply<Word>(bases.word[j], v);
      changed += dense;  // events of gap classes have been counted
    } else if (!dense) {
      raise(&s.bad);  // an unchanged word has no event
    }
  }
  return changed;
}

// Reads and applies all values of a chunk whose list has them, and whose values
// the tile holds.
template <typename Word>
TPDE_FN void decode_values(Shared<Word>& s, const Block<Word>& b, const Tables& tables, const u32* data) {
  const Room room(s);
  EACH_THREAD(t, kThreads) {
    if (t == kThreads - 1) sum_lanes(s);  // whose warp has fewer values than others
    if (t <= s.head.lanes) s.lane_value[t] = first_value(s.head, t);
    if (room.fits) fill_room(s, room, tables, data, t);
  }
  barrier();
  Private<Bases<Word>, kThreads> bases;
  // The lanes of a warp take little longer than one of them. Others load meanwhile.
  EACH_THREAD(t, kThreads) {
    if (t < s.head.lanes) {
      if (s.lane_start[t] > s.head.bits) {
        raise(&s.bad);
      } else if (room.fits) {
        read_near_lane(s, room, data, t);
      } else {
        read_lane(s, tables, data, t);
      }
    }
    load_bases(s, b, t, bases[t]);
  }
  barrier();
  EACH_THREAD(t, kThreads) {
    u32 changed = 0;
#pragma unroll 1
    for (u32 n = t; n < s.head.values; n += Bases<Word>::kCount * kThreads) {
      if (n != t) load_bases(s, b, n, bases[t]);
      changed += apply_values(s, room, b, tables, data, n, bases[t]);
    }
    if (changed) add_shared(&s.deltas, changed);
  }
}

}  // namespace rice
