// raw.cu - rebuilds tensors of the raw codec (core/codec/raw/FORMAT.md). A
// thread block works on a tile of a chunk: it brings the base to shared memory,
// meanwhile finds the residuals that are for its tile, adds them there and stores
// the result, in one pass over global memory.
//
// launch: threads=256 chunk_bytes_per_block=16384, 32768 with QUANT
// Compiled for each word size, -DWORD=u8|u16|u32|u64, and, for the add
// residual, each dtype of it, -DADD=F32|F16|BF16|F64. With
// -DQUANT=quant::kF32|kF16|kBF16 the base is quantised: item.base is a
// QuantBase, and its values in that dtype are the base words.
#include "chunk.cuh"
#include "residual.cuh"

namespace {

const u32 kThreads = 256;
// Bytes of a tile, as the launch line says, and thread blocks of a
// multiprocessor: what registers allow without spilling. A thread asks so much
// before it can dequantise that it should dequantise more.
#ifdef QUANT
const u32 kTileBytes = 32768;
const u32 kBlocks = 5;
#elif defined(ADD)
const u32 kTileBytes = 16384;
const u32 kBlocks = 5;
#else
const u32 kTileBytes = 16384;
const u32 kBlocks = sizeof(WORD) == 2 || sizeof(WORD) == 4 ? 8 : 5;
#endif
const u32 kTile = kTileBytes / sizeof(WORD);     // words
const u32 kPer = 16 / sizeof(WORD);              // words of a group of 16 bytes
const u32 kGroups = kTileBytes / 16 / kThreads;  // groups of a tile that are a thread's
const u32 kAhead = 4;                            // deltas, or groups, that a thread loads at once

// A tile: as a chunk of its own, with what is asked of its base.
struct Tile {
  Chunk c;
  u32 groups;  // whole ones, that are loaded and stored at once
  u32 fast;    // of those, the ones that Base loads: all or, of few quantised bases, none
#ifdef QUANT
  quant::Run run;
#endif
};

__device__ Tile open_tile(const Chunk& chunk, u32 first) {
  Tile t;
  t.c = chunk;
  t.c.words = min_u32(chunk.words - first, kTile);
  t.c.dst += first;
  if (chunk.base) t.c.base += first;
  t.groups = aligned(t.c) ? t.c.words / kPer : 0;
  t.fast = t.groups;
#ifdef QUANT
  t.c.first += first;
  if (!quant::open_run<QUANT>(*t.c.quantised, t.c.first, t.groups * kPer, t.run)) t.fast = 0;
#endif
  return t;
}

// Groups of base words of a thread: load asks for one, get waits for it.
// kPlain: the quantised base is so.
template <u32 N, bool kPlain>
struct Base {
#ifdef QUANT
  quant::Fetched f[N];
#else
  uint4 g[N];
#endif

  // Group i of the tile, if it has so many, to place k.
  __device__ __forceinline__ void load(const Tile& t, u32 i, u32 k) {
#ifdef QUANT
    if (t.fast > 0) f[k] = quant::fetch_run<QUANT, kPlain>(t.run, min_u32(i, t.fast - 1) * kPer);
#else
    g[k] = make_uint4(0, 0, 0, 0);
    if (i < t.fast && t.c.base) g[k] = reinterpret_cast<const uint4*>(t.c.base)[i];
#endif
  }

  __device__ __forceinline__ uint4 get(const Tile& t, u32 i, u32 k) const {
#ifdef QUANT
    const Group w = quant::dequant_run<QUANT, kPlain>(t.run, f[k], i * kPer);
    return make_uint4(w.w[0], w.w[1], w.w[2], w.w[3]);
#else
    return g[k];
#endif
  }
};

// The words of a 32-bit register, one by one; WORD has at most 32 bits.
__device__ u32 apply_packed(u32 base, u32 residual) {
  u32 out = 0;
#pragma unroll
  for (u32 bit = 0; bit < 32; bit += 8 * sizeof(WORD)) {
    out |= (u32)apply<WORD>((WORD)(base >> bit), (WORD)(residual >> bit)) << bit;
  }
  return out;
}

// Those of two.
__device__ uint2 apply_pair(u32 low, u32 high, uint2 residual) {
  if (sizeof(WORD) < 8) return make_uint2(apply_packed(low, residual.x), apply_packed(high, residual.y));
  const u64 w = (u64)apply<WORD>((WORD)((u64)high << 32 | low), (WORD)((u64)residual.y << 32 | residual.x));
  return make_uint2((u32)w, (u32)(w >> 32));
}

__device__ uint4 apply_group(uint4 base, uint2 low, uint2 high) {
  const uint2 a = apply_pair(base.x, base.y, low), b = apply_pair(base.z, base.w, high);
  return make_uint4(a.x, a.y, b.x, b.y);
}

// Every word has a residual. Residuals lie at multiples of 8 bytes.
template <bool kPlain>
__device__ void decode_dense(const Tile& t, const WORD* residual) {
  const uint2* add = reinterpret_cast<const uint2*>(residual);
  uint4* to = reinterpret_cast<uint4*>(t.c.dst);
  const u32 n = 2;  // groups whose loads are on their way together; a group is loaded before it is stored
#pragma unroll 1
  for (u32 from = threadIdx.x; from < t.fast; from += n * kThreads) {
    Base<n, kPlain> base;
    uint2 low[n], high[n];
#pragma unroll
    for (u32 k = 0; k < n; k++) {
      const u32 i = from + k * kThreads;
      base.load(t, i, k);
      if (i < t.fast) low[k] = add[2 * i], high[k] = add[2 * i + 1];
    }
#pragma unroll
    for (u32 k = 0; k < n; k++) {
      const u32 i = from + k * kThreads;
      if (i < t.fast) to[i] = apply_group(base.get(t, i, k), low[k], high[k]);
    }
  }
#ifdef QUANT
#pragma unroll 1
  for (u32 i = t.fast + threadIdx.x; i < t.groups; i += kThreads) {
    to[i] = apply_group(base_group(t.c, i), add[2 * i], add[2 * i + 1]);
  }
#endif
#pragma unroll 1
  for (u32 i = t.groups * kPer + threadIdx.x; i < t.c.words; i += kThreads) {
    t.c.dst[i] = apply<WORD>(base_word(t.c, i), residual[i]);
  }
}

// The first of number[0..n) that is not below `word`, found by one warp: every
// step narrows the range to a 128th. Numbers that do not ascend give any of 0 to n.
__device__ u32 lower_bound(const u32* number, u32 n, u32 word) {
  const u32 ways = 4;  // numbers that a lane looks at
  u32 lo = 0, len = n;  // the answer is in [lo, lo + len]
  while (len > 0) {
    const u32 step = (len + 32 * ways - 1) / (32 * ways);
    bool below[ways];
#pragma unroll
    for (u32 k = 0; k < ways; k++) {
      const u32 at = ((threadIdx.x & 31) + 32 * k + 1) * step - 1;
      below[k] = at < len && number[lo + at] < word;
    }
    u32 steps = 0;
#pragma unroll
    for (u32 k = 0; k < ways; k++) steps += __popc(__ballot_sync(0xffffffffu, below[k]));
    const u32 skip = steps * step;
    lo += skip;
    len = len > skip ? min_u32(len - skip, step - 1) : 0;
  }
  return lo;
}

// Two warps find the ascending numbers that are of a tile: those from range[0] to
// before range[1], after the next barrier. What lies at an end of the chunk is
// not searched for, above all in chunks of one tile.
__device__ void find_range(u32* range, const u32* number, u32 n, u32 first, u32 behind, u32 words) {
  const u32 warp = threadIdx.x / 32;
  if (warp >= 2) return;
  u32 at;
  if (warp == 0) {
    at = first == 0 ? 0 : lower_bound(number, n, first);
  } else {
    at = behind == words ? n : lower_bound(number, n, behind);
  }
  if ((threadIdx.x & 31) == 0) range[warp] = at;
}

// Whether the numbers of all deltas of a chunk ascend within it and no residual
// is zero; each thread looks at some. Numbers are padded to 8 bytes.
__device__ bool good_deltas(const Chunk& c, const u32* number, const WORD* residual, u32 deltas) {
  const u32 n = 2;  // pairs that are on their way at once
  bool good = true;
#pragma unroll 1
  for (u32 begin = 2 * threadIdx.x; begin < deltas; begin += n * 2 * kThreads) {
    uint2 at[n];
    u32 before[n];
    WORD value[n][2];
#pragma unroll
    for (u32 k = 0; k < n; k++) {
      const u32 i = begin + k * 2 * kThreads;
      at[k] = make_uint2(0, 0), before[k] = 0, value[k][0] = value[k][1] = 1;
      if (i < deltas) at[k] = *reinterpret_cast<const uint2*>(number + i), value[k][0] = residual[i];
      if (i < deltas && i > 0) before[k] = number[i - 1];
      if (i + 1 < deltas) value[k][1] = residual[i + 1];
    }
#pragma unroll
    for (u32 k = 0; k < n; k++) {
      const u32 i = begin + k * 2 * kThreads;
      const bool ascend = i == 0 || i >= deltas || before[k] < at[k].x;
      const bool fit = i + 1 < deltas ? at[k].x < at[k].y && at[k].y < c.words : at[k].x < c.words;
      good = good && ascend && fit && value[k][0] != 0 && value[k][1] != 0;
    }
  }
  return good;
}

// The deltas that a thread adds at once, loaded together; where there is none, `at`
// is beyond every chunk.
struct Deltas {
  u32 at[kAhead];
  WORD value[kAhead];

  __device__ __forceinline__ void load(const u32* number, const WORD* residual, u32 begin, u32 end) {
#pragma unroll
    for (u32 k = 0; k < kAhead; k++) {
      const u32 i = begin + k * kThreads;
      at[k] = ~0u;
      if (i < end) at[k] = number[i], value[k] = residual[i];
    }
  }
};

// Only the listed words have a residual: those from range[0] to before range[1]
// are for the tile, once `find` was called. The base is on its way while it is.
// `tile` is shared memory, 16-byte aligned, for kTile words.
template <bool kPlain, typename Find, typename Check>
__device__ bool decode_sparse(WORD* tile, const Tile& t, u32 first, const u32* number, const WORD* residual,
                              const u32* range, Find find, Check check) {
  Base<kAhead, kPlain> base;
#pragma unroll
  for (u32 k = 0; k < kAhead; k++) base.load(t, threadIdx.x + k * kThreads, k);
  find();
#pragma unroll 1
  for (u32 from = threadIdx.x; from < kGroups * kThreads; from += kAhead * kThreads) {
#pragma unroll
    for (u32 k = 0; k < kAhead; k++) {
      const u32 i = from + k * kThreads, next = i + kAhead * kThreads;
      if (i < t.fast) reinterpret_cast<uint4*>(tile)[i] = base.get(t, i, k);
      if (kGroups > kAhead && next < t.fast) base.load(t, next, k);
    }
  }
#ifdef QUANT
#pragma unroll 1
  for (u32 i = t.fast + threadIdx.x; i < t.groups; i += kThreads) {
    reinterpret_cast<uint4*>(tile)[i] = base_group(t.c, i);
  }
#endif
  const bool good = check();
#pragma unroll 1
  for (u32 i = t.groups * kPer + threadIdx.x; i < t.c.words; i += kThreads) tile[i] = base_word(t.c, i);
  __syncthreads();
#pragma unroll 1
  for (u32 begin = range[0] + threadIdx.x; begin < range[1]; begin += kAhead * kThreads) {
    Deltas d;
    d.load(number, residual, begin, range[1]);
#pragma unroll
    for (u32 k = 0; k < kAhead; k++) {
      const u32 at = d.at[k] - first;  // no chunk reaches from there to ~0u
      if (at < t.c.words) tile[at] = apply<WORD>(tile[at], d.value[k]);
    }
  }
  __syncthreads();
#pragma unroll
  for (u32 k = 0; k < kGroups; k++) {
    const u32 i = threadIdx.x + k * kThreads;
    if (i < t.groups) reinterpret_cast<uint4*>(t.c.dst)[i] = reinterpret_cast<const uint4*>(tile)[i];
  }
#pragma unroll 1
  for (u32 i = t.groups * kPer + threadIdx.x; i < t.c.words; i += kThreads) t.c.dst[i] = tile[i];
  return good;
}

template <bool kPlain, typename Find, typename Check>
__device__ bool decode(bool dense, WORD* tile, const Tile& t, u32 first, const u32* number, const WORD* residual,
                       const u32* range, Find find, Check check) {
  if (!dense) return decode_sparse<kPlain>(tile, t, first, number, residual, range, find, check);
  decode_dense<kPlain>(t, residual + first);
  return true;
}

// What decode_sparse does, where dst is the base, for deltas from `from` to before `to` of a
// chunk: only words that change are touched. Numbers ascend, so each word is
// changed by one thread.
__device__ void add_in_place(const Chunk& c, const u32* number, const WORD* residual, u32 from, u32 to) {
#pragma unroll 1
  for (u32 begin = from + threadIdx.x; begin < to; begin += kAhead * kThreads) {
    Deltas d;
    WORD old[kAhead];
    d.load(number, residual, begin, to);
#pragma unroll
    for (u32 k = 0; k < kAhead; k++) if (d.at[k] < c.words) old[k] = c.dst[d.at[k]];
#pragma unroll
    for (u32 k = 0; k < kAhead; k++) if (d.at[k] < c.words) c.dst[d.at[k]] = apply<WORD>(old[k], d.value[k]);
  }
}

}  // namespace

// The thread blocks of a chunk share its status, and nobody clears it before a
// launch: there is no order in which they could combine what they find. So the
// block of the first tile alone writes it, and checks all of the chunk, 6 bytes a
// delta of BF16, while its part of the base is on its way; the others touch
// nothing but words of the chunk, whatever they read.
extern "C" __global__ void __launch_bounds__(kThreads, kBlocks) raw_decode(const __grid_constant__ Batch batch) {
  await_stream();
  __shared__ __align__(16) WORD tile[kTile];
  __shared__ u32 range[2], replaced[2];
  const u32 which = find_item_number(batch, blockIdx.x);
  const Item& item = batch.item[which];
  // All chunks of a tensor have as many blocks: those of the last may be too many.
  const u32 end = which + 1 < batch.items ? batch.item[which + 1].first_block : batch.units;
  const u32 blocks = (end - item.first_block) / item.chunks;
  const u32 chunk = (blockIdx.x - item.first_block) / blocks;
  const u32 number_of_tile = blockIdx.x - item.first_block - chunk * blocks;
  const u32 first = number_of_tile * kTile;
  const Record r = item.records[chunk];
  if (first >= r.uncompressed_bytes / sizeof(WORD)) return;
  const Chunk c = open_chunk<kThreads>(item, r);
  const u32 behind = min_u32(first + kTile, c.words);

  const u8* data = item.blob + r.data_offset;
  Exceptions<WORD> exceptions;
  bool good = parse_exceptions(data, r.compressed_bytes, c.words, exceptions);
  data += exceptions.bytes;
  const bool dense = r.deltas == c.words;
  const u64 number_bytes = dense ? 0 : ((u64)r.deltas * 4 + 7) / 8 * 8;
  const u64 need = number_bytes + ((u64)r.deltas * sizeof(WORD) + 7) / 8 * 8;
  // Residuals are loaded 8 bytes at a time; the packer puts them at such offsets.
  good = good && r.data_offset % 8 == 0 && r.deltas <= c.words && need == r.compressed_bytes - exceptions.bytes;
  if (good) {  // the same for all threads
    const u32* number = reinterpret_cast<const u32*>(data);
    const WORD* residual = reinterpret_cast<const WORD*>(data + number_bytes);
    auto find = [&] { find_range(range, number, r.deltas, first, behind, c.words); };
    auto check = [&] { return number_of_tile > 0 || good_deltas(c, number, residual, r.deltas); };
    if (dense || c.base != c.dst) {
      const Tile t = open_tile(c, first);
      bool plain = false;
#ifdef QUANT
      if constexpr (quant::kPlainRuns<QUANT>) {
        plain = t.run.plain;
        if (plain) good = decode<true>(dense, tile, t, first, number, residual, range, find, check);
      }
#endif
      if (!plain) good = decode<false>(dense, tile, t, first, number, residual, range, find, check);
    } else {
      // The blocks of a chunk share its deltas evenly, without a search. But what an
      // exception replaces is of its tile's block.
      const u32 tiles = (c.words + kTile - 1) / kTile, share = (r.deltas + tiles - 1) / tiles;
      u32 from = number_of_tile * share, to = min_u32(from + share, r.deltas);
      if (exceptions.count > 0) {
        find();
        __syncthreads();
        from = range[0], to = range[1];
      }
      add_in_place(c, number, residual, from, to);
      good = check();
    }
    if (exceptions.count > 0) {
      find_range(replaced, exceptions.at, exceptions.count, first, behind, c.words);
      __syncthreads();  // a word is replaced after its residual was added
      for (u32 i = replaced[0] + threadIdx.x; i < replaced[1]; i += kThreads) {
        const u32 at = exceptions.at[i];
        if (at - first < behind - first) c.dst[at] = exception_word(exceptions, i);
      }
      for (u32 i = threadIdx.x; number_of_tile == 0 && i < exceptions.count; i += kThreads) {
        good = good && good_exception(exceptions, i, c.words);
      }
    }
  }
  if (number_of_tile == 0) {
    good = __syncthreads_and(good);
    if (threadIdx.x == 0) item.status[chunk] = good ? kOk : kCorrupt;
  }
}
