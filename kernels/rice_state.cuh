// rice_state.cuh - what a thread block knows while it decodes a chunk of the
// rice codec (core/codec/rice/FORMAT.md).
#pragma once

#include "bits.cuh"
#include "group.cuh"
#include "residual.cuh"
#include "rice_near.cuh"
#include "threads.cuh"
#ifdef QUANT
#include "dequant.cuh"
#endif

namespace rice {

const u32 kThreads = 256;  // of a block, which decodes one chunk, as rice.cu says: 256 or 512
const u32 kWarps = kThreads / 32;
const u32 kClasses = 8;
const u32 kDense = 7;           // the class in which every word has a value
const u32 kMaxCodes = 64;       // of interval codes
const u32 kMaxLanes = 32;
const u32 kLaneValues = 64;     // of a lane at most, unless that takes more than kMaxLanes
const u32 kShortWords = 65536;  // positions in chunks of at most so many words have 16 bits
const u32 kNearKeys = 256;      // keys whose steps fit into shared memory
static_assert(kThreads >= kNearKeys, "a thread loads a key");
static_assert(kWarps >= kClasses, "a warp has a class");
const u32 kMaxList = 8192;      // events that a list in shared memory holds
const u32 kMaxWords = 1 << 18;  // of a chunk with such a list: the sum of its distances has 31 bits
const u32 kPageWords = 65536;   // words whose numbers differ in their low 16 bits
const u32 kPages = kMaxWords / kPageWords;
const u32 kFar = 32768;         // a distance at which low 16 bits do not tell how far
const u32 kMaxFar = kMaxWords / kFar;
const u32 kSegmentWords = 256;  // at most so many words are counted in bytes
const u32 kBits = 0xffffffffu;  // a number of bits that no string has

// A number for each class in its byte: even classes in one word, odd ones in
// the other. So it is made of a step's half bytes with a mask.
struct alignas(8) Counts {
  u32 even, odd;
};

TPDE_FN Counts operator+(Counts a, Counts b) { return Counts{a.even + b.even, a.odd + b.odd}; }

enum Kind : u32 { kUnit = 0, kValued = 1, kAbsent = 2 };

struct ClassInfo {
  u32 low;          // low bits of a distance
  u32 kind;         // kValued: events have values in interval codes, else a sign
  u32 order, mean;  // of the code of the number of events
};

struct CodeInfo {
  u32 lookup;       // number of the first entry
  u32 peek;         // bits that an entry is found by, at most 10
  u64 placeholder;  // residual word that stands for an exception in the dense class
};

// Parameters of a tensor, expanded on the host from the codec tables, in global
// memory. Behind them, at multiples of 16 bytes:
//
//   u32 step[keys]      1 in the half byte of the key's class
//   u8 code[keys]       interval code of the key's context
//   u64 symbol[]        first residual word of each interval
//   u32 entry[]         for each code 2^peek. Words of up to 16 bits: bits of code
//                       and plain bits in bits 0-4, and in bits 16-31 what they,
//                       as a number, are less than the word. Others: those bits in
//                       bits 0-6, plain bits in bits 7-12, symbol in bits 16-31
struct Tables {
  u32 shift;        // key of a word: word >> shift & (keys - 1); of 64-bit words, of the upper half
  u32 keys;         // a power of two, at most 4096
  u32 zero_class;   // class of key 0
  u32 entries;
  u32 step_at, code_at, symbol_at, entry_at;  // bytes from here
  ClassInfo classes[kClasses];
  CodeInfo codes[kMaxCodes];

  template <typename T>
  TPDE_FN const T* at(u32 bytes) const {
    return reinterpret_cast<const T*>(reinterpret_cast<const u8*>(this) + bytes);
  }
};
static_assert(sizeof(Tables) == 32 + 128 + 1024, "layout is shared with the host");

// How the words of a tile are dealt out. A thread counts the words of a stretch
// of groups; several threads a segment; all a tile.
template <typename Word>
struct Shape {
  static const u32 kPer = 16 / sizeof(Word);                          // words of a group
  static const u32 kLimit = kMaxList / kThreads / kPer;
  static const u32 kStretch = kLimit < 4 ? kLimit : 4;                // groups that a thread counts
  static_assert(kStretch <= 4, "as it is swizzled");
  static const u32 kGroups = kThreads * kStretch;                     // of a tile
  static const u32 kTileWords = kGroups * kPer;
  static const u32 kSegmentGroups = kSegmentWords / kPer;
  static const u32 kSegmentThreads = kSegmentGroups / kStretch;       // at most 32
  static const u32 kSegments = kTileWords / kSegmentWords;
  static const u32 kSegmentStride = kSegmentGroups + 1;               // words of 4 bytes that a count of each takes
  static_assert(kTileWords <= kMaxList && kPageWords % kTileWords == 0, "the list has a tile; a tile is in one page");
  static_assert(kSegmentThreads <= 32, "a warp sums up a segment");
};

// What a thread knows of its chunk.
template <typename Word>
struct Block {
  const Word* base;  // global memory; nullptr: all zero; unused with QUANT
  Word* dst;         // global memory; may be base
  u32 words;
  bool aligned;      // base and dst are 16-byte aligned
#ifdef QUANT
  const quant::QuantBase* quantised;  // shared memory
  u64 first;                          // element of the tensor that word 0 is
#endif

  TPDE_FN bool in_place() const { return base == dst; }
};

// Where the parts of a chunk are. Bits and bytes count from the start of data.
struct Head {
  u32 events[kClasses];
  u32 start[kClasses];     // number of the first event of each gap class; of the dense class, their number
  u32 values_at[kClasses]; // number of the first value of each class
  u32 low_at[kClasses];    // bit of the first low bits
  u32 sign_at[kClasses];   // bit of the first sign
  u32 quotients;           // bit
  u32 gap_events;          // of all gap classes
  u32 values;              // events that have one
  u32 lanes;
  u32 lane_table;          // bit
  u32 least, width;        // of the lane table
  u32 exceptions;
  u32 exceptions_at;       // byte
  u32 bits;                // of the strings, a multiple of 32 and at least that
  u32 quotient_at[kClasses];  // bit of the first quotient of each gap class; [kDense]: of the values
};

// Where a class stands in a tile.
struct Progress {
  u32 passed;  // words of the class in the tiles so far, this one included
  u32 begin;   // and without this one
  u32 done;    // events in the tiles so far, this one included
  u32 first;   // and without this one
};

// What becomes of a word that is found.
enum Note : u32 { kSign, kPosition, kValue };

// Where the events of a class in a tile are.
struct alignas(16) Found {
  u32 from;  // entry of the list that the first one has
  u32 bias;  // of ranks in the list: the rank of the tile's first word
  u32 note;  // a Note
  u32 at;    // the number of the first one's sign, or of its value
};

// The next event of a gap class. Of no more events, the rank is kBits.
struct Distances {
  u32 rank;
  u32 left;      // events, this one included
  u32 low;       // bit of the low bits of the one behind it
  u32 quotient;  // bit of its quotient
};

// Where the decoder of a class stands, in chunks that are decoded serially.
struct Cursor {
  Distances distances;
  u32 value;      // bit of its next value
  u32 next_lane;  // the first lane that does not start before its next value
};

// An event that is far behind the one before it in its class.
struct Far {
  u32 event;
  u32 rank;
};

// Where the events of a class start in a chunk.
struct alignas(16) Origin {
  u32 from, note, at;  // as in Found
  u32 end;             // of its part of the list
};

// What is kept for chunks whose events fit into the list, and for others.
union Notes {
  struct {
    u32 low_before[kClasses];    // sum of low bits and ones before the first event of a class
    u16 page[kClasses][kPages];  // events of a class before a page; 65535 where there is none
    Far far[kMaxFar];
  } listed;
  Cursor serial[kClasses];
};

template <typename Word>
struct Shared {
  alignas(16) Group tile[Shape<Word>::kGroups];  // base words, swizzled; at last Word values[kTileWords]
  // Words of each class in the segment before the group: those of the even classes
  // of all groups, then those of the odd ones. Events that search side by side are
  // in different segments; what is between those puts them into different banks.
  u32 before[2][Shape<Word>::kSegments * Shape<Word>::kSegmentStride];
  alignas(sizeof(u32) * kNearKeys) u32 step[kNearKeys];
  u8 code[kNearKeys];                   // of each key, if all of them fit
  u32 slot[kMaxCodes];                  // of each code, as Room has it of each value
  // Of the events of gap classes the low 16 bits of their ranks, and in chunks that
  // are walked, then of their positions. In others the positions of all values
  // follow, and a byte for the code of each.
  u16 list[kMaxList];
  u32 signs[kMaxList / 32];             // of the events of unit classes, the first one in the highest bit
  alignas(16) u16 total[Shape<Word>::kSegments][kClasses];  // words of each class, in the order of total_index
  u16 segment[kClasses][Shape<Word>::kSegments];  // words of each class in the tile before the segment
  ClassInfo classes[kClasses];
  Progress progress[kClasses];
  Found found[kClasses];
  Origin origin[kClasses];
  alignas(16) u32 events[kClasses];     // in the tile
  u32 value_bit[kClasses];              // where the values of a class start, and the last ones found end
  u32 value_end;
  Notes notes;
  u32 sums[kWarps];
  u32 lane_start[kMaxLanes];            // bits of the lane before, then the bit of its own first value
  u32 lane_value[kMaxLanes + 1];        // its first value, if values are listed
  u32 lane_word[kMaxLanes];             // its first dense word, if it walks
  Head head;
  u32 far_events;
  u32 too_wide;                         // not 0: the list does not hold the quotients
  u32 shift, keys;                      // of the tables, and what follows
  u32 zero_class;
  u32 entries;
  u32 deltas;
  u32 bad;                              // not 0: the chunk is corrupt
};

// Where a group of a tile lies: threads that read their stretches hit different
// banks of shared memory. Group g of a stretch lies where its first does, but for
// the bits of g; and 32 groups further on is 32 further on.
template <typename Word>
TPDE_FN u32 swizzle(u32 group) {
  return group ^ (group >> 3 & (Shape<Word>::kStretch - 1));
}

// Stores 16 bytes in shared memory, aligned to as many.
TPDE_FN void store_shared(void* p, const Group& g) {
#ifdef __CUDA_ARCH__
  *static_cast<uint4*>(p) = make_uint4(g.w[0], g.w[1], g.w[2], g.w[3]);
#else
  require_16(p);
  __builtin_memcpy(p, &g, 16);
#endif
}

// A thread's share in bringing strings to shared memory, in the byte order of
// numbers, every kThreads-th word. The first ones are loaded before any of them is
// waited for; more are hardly ever needed.
struct StringsAhead {
  static const u32 kAtOnce = 2;
  u32 word[kAtOnce];

  TPDE_FN void load(const u32* data, u32 words, u32 t) {
#pragma unroll
    for (u32 j = 0; j < kAtOnce; j++) word[j] = t + j * kThreads < words ? data[t + j * kThreads] : 0;
  }
  // Stores them and the rest, and zeros up to word `end`.
  TPDE_FN void store(u32* to, u32 end, const u32* data, u32 words, u32 t) const {
#pragma unroll
    for (u32 j = 0; j < kAtOnce; j++) {
      if (t + j * kThreads < end) to[t + j * kThreads] = byte_swap(word[j]);
    }
#pragma unroll 1
    for (u32 i = t + kAtOnce * kThreads; i < end; i += kThreads) to[i] = i < words ? byte_swap(data[i]) : 0;
  }
};

template <typename Word>
TPDE_FN Word tile_word(const Shared<Word>& s, u32 i) {
  const u32 per = Shape<Word>::kPer;
  return reinterpret_cast<const Word*>(s.tile)[swizzle<Word>(i / per) * per + i % per];
}

// Whether the chunk has been found corrupt: the same for all threads, and told
// before any of them goes on. The barrier tells what a warp sees to the others.
template <typename Word>
TPDE_FN bool failed(Shared<Word>& s) {
#ifdef __CUDACC__
  return __syncthreads_or(is_raised(&s.bad));
#else
  return is_raised(&s.bad);
#endif
}

// The key of a word of which x is, or is the upper half.
TPDE_FN u32 key_of(const Tables& tables, u32 x) { return x >> tables.shift & (tables.keys - 1); }

template <typename Word>
TPDE_FN u32 key_of_word(const Tables& tables, Word w) {
  return key_of(tables, sizeof(Word) == 8 ? (u32)((u64)w >> 32) : (u32)w);
}

#ifdef QUANT
// One copy of the code, which is large.
TPDE_SLOW Group dequant(const quant::QuantBase& q, u64 first, u32 count) {
  return quant::dequant_any<QUANT>(q, first, count);
}
#endif

template <typename Word>
TPDE_FN Word base_word(const Block<Word>& b, u32 i) {
#ifdef QUANT
  return (Word)dequant(*b.quantised, b.first + i, 1).w[0];
#else
  return b.base ? b.base[i] : (Word)0;
#endif
}

}  // namespace rice
