// prefix.cu - entry point of the prefix decoder: one warp a chunk.
//
// launch: threads=768 chunks_per_block=24 staged
// Compiled for each word size, -DWORD=u8|u16|u32|u64, and, for the add
// residual, each dtype of it, -DADD=F32|F16|BF16|F64. With
// -DQUANT=quant::kF32|kF16|kBF16 the base is quantised: item.base is a
// QuantBase, and its values in that dtype are the base words.
//
// The thread blocks share the units of the batch evenly: those of an item are
// its chunks, and some for the time that its tables take to load. A thread block
// loads the tables of a tensor into shared memory, and its warps take chunk
// after chunk of its share. The host says how many warps there are: each has an
// equal part of what is left of shared memory, to which it brings a chunk. A
// block whose bit strings do not fit is decoded from global memory, more slowly.
#include "batch.cuh"
#include "prefix.cuh"
#include "threads.cuh"

namespace {

const u32 kThreads = 768;  // the most of a thread block: 80 registers a thread

// Dynamic shared memory of the launch.
__device__ u32 shared_bytes() {
  u32 n;
  asm("mov.u32 %0, %%dynamic_smem_size;" : "=r"(n));
  return n;
}

// Decodes the block that c is at, of which `words`, `base` and `dst` are set.
// `room` is the warp's part of shared memory, of room_words words.
__device__ bool decode_block(prefix::Block<WORD>& b, prefix::Cursor& c, const prefix::Tables& tables,
                             const prefix::Decoding& d, u32 lane, u32* room, u32 room_words) {
  using namespace prefix;
  b.sign_extended = tables.sign_extended;
  if (!take_planes(c, b)) return false;
  const u32 copied = min_u32(c.left, room_words);
  __syncwarp();  // nobody reads the block before any more
  stage(room, c.data, copied, lane, kLanes);
  Row<WORD> queue[Shape<WORD>::kAhead];
  load_first(b, lane, queue);
  wait_copies();
  __syncwarp();
  const u32* copy = room + stage_shift(c.data);
  Head h;
  if (!take_head(c, copied >= min_u32(c.left, kMostHead) ? copy : c.data, b, h)) return false;
  const u32 length = lane_bits(h, lane);
  const u32 end = scan_warp(length);
  Parts p;
  if (!take_strings(c, b, __shfl_sync(0xffffffffu, end, 31), p)) return false;
  const bool near = c.used <= copied && is_aligned(b) && d.index == kIndex;
  const u32* from = near ? copy : c.data;
  set_exceptions(b, from, p);
  c.next();
  // Codes of no bits: what is read does not matter, but that there is a word.
  if (p.string_words == 0) p.strings = 0, p.string_words = 1;
  if (!__all_sync(0xffffffffu, decode_lane<WORD>(tables, b, lane, d, near, from + p.strings, p.string_words,
                                                 end - length, end, queue))) {
    return false;
  }
  if (b.exceptions == 0) return true;
  __syncwarp();  // they replace words that other lanes have stored
  return __all_sync(0xffffffffu, finish_exceptions(b, lane));
}

// Decodes chunk `r` of an item, and returns whether it is well formed.
__device__ bool decode_chunk(const Item& item, const Record& r, const prefix::Tables& tables,
                             const prefix::Decoding& d, const void* quantised, u32 lane, u32* room, u32 room_words) {
  const u32 all = r.uncompressed_bytes / sizeof(WORD);
  const u8* data = item.blob + r.data_offset;
  Exceptions<WORD> replaced;
  if (r.deltas != all || !parse_exceptions(data, r.compressed_bytes, all, replaced)) return false;
  prefix::Cursor c;
  c.data = reinterpret_cast<const u32*>(data + replaced.bytes);
  c.left = (r.compressed_bytes - replaced.bytes) / 4;
  c.used = 0;
  WORD* dst = static_cast<WORD*>(item.dst) + r.output_word;
  for (u32 done = 0; done < all; done += prefix::kBlockWords) {
    prefix::Block<WORD> b;
    b.words = min_u32(all - done, prefix::kBlockWords);
    b.dst = dst + done;
#ifdef QUANT
    b.base = nullptr;
    b.quantised = static_cast<const quant::QuantBase*>(quantised);
    b.first = r.output_word + done;
    b.regular = quant::open_run(*b.quantised, b.first, b.words, b.run);
#else
    b.base = item.base ? static_cast<const WORD*>(item.base) + r.output_word + done : nullptr;
#endif
    b.aligned = ((reinterpret_cast<u64>(b.dst) | reinterpret_cast<u64>(b.base)) & 15) == 0;
    if (!decode_block(b, c, tables, d, lane, room, room_words)) return false;
  }
  if (c.left != 0) return false;
#ifdef ADD
  if (replaced.count > 0) {
    __syncwarp();
    bool good = true;
    for (u32 i = lane; i < replaced.count; i += 32) {
      const bool fine = good_exception(replaced, i, all);
      good = good && fine;
      if (fine) dst[replaced.at[i]] = exception_word(replaced, i);
    }
    return __all_sync(0xffffffffu, good);
  }
#endif
  return true;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads, 1) prefix_decode(const __grid_constant__ Batch batch) {
  extern __shared__ uint4 room[];
  __shared__ u32 next;  // chunk of the item that no warp has begun
  u32* shared = reinterpret_cast<u32*>(room);
  const u32 lane = threadIdx.x & 31, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  u32 unit = (u32)((u64)batch.units * blockIdx.x / gridDim.x);
  const u32 last = (u32)((u64)batch.units * (blockIdx.x + 1) / gridDim.x);
  for (u32 i = find_item_number(batch, unit); unit < last; i++) {
    const Item& item = batch.item[i];
    const u32 behind = min_u32(last, i + 1 < batch.items ? batch.item[i + 1].first_block : batch.units);
    const u32 first = unit - item.first_block, end = min_u32(item.chunks, behind - item.first_block);
    unit = behind;
    if (first >= end) continue;
    __syncthreads();  // nobody uses the tables before any more
    const prefix::Tables tables = *static_cast<const prefix::Tables*>(item.tables);
    const prefix::Decoding d(tables, shared, lane);
    d.stage_tables(tables, static_cast<const prefix::Tables*>(item.tables)->behind(), threadIdx.x, blockDim.x);
    const void* quantised = nullptr;
#ifdef QUANT
    __shared__ quant::QuantBase base;
    for (u32 k = threadIdx.x; k < sizeof(base) / 4; k += blockDim.x) {
      reinterpret_cast<u32*>(&base)[k] = reinterpret_cast<const u32*>(item.base)[k];
    }
    quantised = &base;
#endif
    if (threadIdx.x == 0) next = first + warps;
    wait_copies();
    __syncthreads();
    const u32 part = (shared_bytes() / 4 - tables.shared_words()) / warps & ~3u;  // words
    u32* mine = shared + tables.shared_words() + warp * part;
    for (u32 chunk = first + warp; chunk < end;) {
      // A copy lies up to 3 words behind the start of its room.
      const bool good = decode_chunk(item, item.records[chunk], tables, d, quantised, lane, mine, part > 3 ? part - 3 : 0);
      if (lane == 0) {
        item.status[chunk] = good ? kOk : kCorrupt;
        chunk = atomicAdd(&next, 1);
      }
      chunk = __shfl_sync(0xffffffffu, chunk, 0);
    }
  }
}
