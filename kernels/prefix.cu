// prefix.cu - entry point of the prefix decoder: one warp a chunk.
//
// launch: threads=640 chunks_per_block=20 staged
// Compiled for each word size, -DWORD=u8|u16|u32|u64, and, for the add
// residual, each dtype of it, -DADD=F32|F16|BF16|F64. With
// -DQUANT=quant::kF32|kF16|kBF16 the base is quantised: item.base is a
// QuantBase, and its values in that dtype are the base words.
//
// The thread blocks share the units of the batch evenly: those of an item are
// its chunks, and some for the time that its tables take to load. A thread block
// loads the tables of a tensor into shared memory, and its warps take chunk
// after chunk of its share. The host says how many warps there are: each has an
// equal part of what is left of shared memory, to which it brings a chunk, and
// rows of wide words ahead. A block whose bit strings do not fit is decoded from
// global memory, more slowly.
#include "batch.cuh"
#include "prefix.cuh"
#include "threads.cuh"

namespace {

const u32 kThreads = 640;  // the most of a thread block: 96 registers a thread

// Dynamic shared memory of the launch.
__device__ u32 shared_bytes() {
  u32 n;
  asm("mov.u32 %0, %%dynamic_smem_size;" : "=r"(n));
  return n;
}

// A warp's part of shared memory.
struct Room {
  u32* queue;  // of rows, prefix::Shape::kQueueWords
  u32* copy;   // of a block
  u32 words;   // that it has room for; 0: nor for the queue

  __device__ Room(u32* part, u32 size) : queue(part) {
    const u32 rows = prefix::Shape<WORD>::kQueueWords;
    const u32 taken = rows + 3;  // a copy lies up to 3 words behind its start
    copy = part + rows;
    words = size > taken ? size - taken : 0;
  }
};

// The tables of a thread block, which it asks for behind its first chunks.
struct Staging {
  const prefix::Tables* tables;  // global memory
  u32* room;                     // for them
  bool ended;

  // Waits for what the warp copied to shared memory and, the first time, for what
  // the thread block did.
  __device__ void wait() {
    if (ended) {
      wait_copies();
      __syncwarp();
    } else {
      // They are loaded again: to keep them would take registers from all chunks.
      const prefix::Tables t = *tables;
      prefix::Decoding(t, room, 0).stage_tables(t, tables->behind(), threadIdx.x, blockDim.x);
      wait_copies();
      __syncthreads();
      ended = true;
    }
  }
};

// Decodes the block that c is at, of which `words`, `base` and `dst` are set.
__device__ bool decode_block(prefix::Block<WORD>& b, prefix::Cursor& c, const prefix::Tables& tables,
                             const prefix::Decoding& d, u32 lane, const Room& room, Staging& staging) {
  using namespace prefix;
  b.sign_extended = tables.sign_extended;
  if (!take_planes(c, b)) return false;
  const u32 copied = min_u32(c.left, room.words);
  __syncwarp();  // nobody reads the block before any more
  stage(room.copy, c.data, copied, lane, kLanes);
  Queue<WORD> queue(room.queue, lane);
  if (room.words > 0 && is_aligned(b) && b.words >= Shape<WORD>::kRow) {
    queue.start(b, b.words / Shape<WORD>::kRow, lane * Shape<WORD>::kWords);
  }
  staging.wait();
  const u32* copy = room.copy + stage_shift(c.data);
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
                             const prefix::Decoding& d, const void* quantised, u32 lane, const Room& room,
                             Staging& staging) {
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
    b.regular = quant::open_run<QUANT>(*b.quantised, b.first, b.words, b.run);
#else
    b.base = item.base ? static_cast<const WORD*>(item.base) + r.output_word + done : nullptr;
#endif
    b.aligned = ((reinterpret_cast<u64>(b.dst) | reinterpret_cast<u64>(b.base)) & 15) == 0;
    if (!decode_block(b, c, tables, d, lane, room, staging)) return false;
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
  await_stream();
  extern __shared__ uint4 room[];
  __shared__ u32 next;  // chunk of the item that no warp has begun
  u32* shared = reinterpret_cast<u32*>(room);
  const u32 lane = threadIdx.x & 31, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const u32 share = batch.units / gridDim.x, more = batch.units % gridDim.x;  // the first ones have one more
  u32 unit = share * blockIdx.x + min_u32(blockIdx.x, more);
  const u32 last = unit + share + (blockIdx.x < more);
  for (u32 i = find_item_number(batch, unit); unit < last; i++) {
    const Item& item = batch.item[i];
    const u32 behind = min_u32(last, i + 1 < batch.items ? batch.item[i + 1].first_block : batch.units);
    const u32 first = unit - item.first_block, end = min_u32(item.chunks, behind - item.first_block);
    unit = behind;
    if (first >= end) continue;
    __syncthreads();  // nobody uses the tables before any more
    // The head of the tables and a record, then a chunk and the tables: what a
    // thread block waits for comes in two steps.
    u32 chunk = first + warp;
    Record record = item.records[min_u32(chunk, end - 1)];
    const prefix::Tables tables = *static_cast<const prefix::Tables*>(item.tables);
    const prefix::Decoding d(tables, shared, lane);
    const void* quantised = nullptr;
#ifdef QUANT
    __shared__ quant::QuantBase base;
    for (u32 k = threadIdx.x; k < sizeof(base) / 4; k += blockDim.x) {
      reinterpret_cast<u32*>(&base)[k] = reinterpret_cast<const u32*>(item.base)[k];
    }
    quantised = &base;
    __syncthreads();
#endif
    if (threadIdx.x == 0) next = first + warps;
    Staging staging{static_cast<const prefix::Tables*>(item.tables), shared, false};
    const u32 part = (shared_bytes() / 4 - tables.shared_words()) / warps & ~3u;  // words
    const Room mine(shared + tables.shared_words() + warp * part, part);
    while (true) {
      const bool good = chunk < end && decode_chunk(item, record, tables, d, quantised, lane, mine, staging);
      // Every warp has come here before `next` is read, also one without a chunk,
      // or whose first chunk was refused.
      if (!staging.ended) staging.wait();
      if (chunk >= end) break;
      if (lane == 0) {
        item.status[chunk] = good ? kOk : kCorrupt;
        chunk = atomicAdd(&next, 1);
      }
      chunk = __shfl_sync(0xffffffffu, chunk, 0);
      record = item.records[min_u32(chunk, end - 1)];
    }
  }
}
