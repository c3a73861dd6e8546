// prefix.cu - entry point of the prefix decoder: one warp a chunk.
//
// launch: threads=384 chunks_per_block=12 staged
// Compiled for each word size, -DWORD=u8|u16|u32|u64, and, for the add
// residual, each dtype of it, -DADD=F32|F16|BF16|F64. With
// -DQUANT=quant::kF32|kF16|kBF16 the base is quantised: item.base is a
// QuantBase, and its values in that dtype are the base words.
//
// How many warps a thread block has, and how many chunks each of them decodes,
// is up to the host, which knows how much shared memory they take: first the
// expanded tables of the tensor, for all of them, then for every warp an equal
// part of what is left, to which it brings the bit strings of a block. A block
// whose strings do not fit is decoded from global memory, more slowly.
#include "batch.cuh"
#include "prefix.cuh"
#include "stage.cuh"

namespace {

const u32 kThreads = 384;  // the most of a thread block
// Of that size, on a multiprocessor: 56 registers a thread, or 80 or 168 where a row
// takes more of them.
const u32 kBlocks = sizeof(WORD) <= 2 ? 3 : sizeof(WORD) == 4 ? 2 : 1;

// Dynamic shared memory of the launch.
__device__ u32 shared_bytes() {
  u32 n;
  asm("mov.u32 %0, %%dynamic_smem_size;" : "=r"(n));
  return n;
}

// Inclusive prefix sum over the warp.
__device__ u32 scan(u32 v, u32 lane) {
#pragma unroll
  for (u32 d = 1; d < 32; d *= 2) {
    const u32 up = __shfl_up_sync(0xffffffffu, v, d);
    if (lane >= d) v += up;
  }
  return v;
}

// Decodes the block that c is at, of which `words`, `base` and `dst` are set.
// `room` is the warp's part of shared memory, of room_words words.
__device__ bool decode_block(prefix::Block<WORD>& b, prefix::Cursor& c, const prefix::Tables& tables,
                             const prefix::Decoding& d, u32 lane, u32* room, u32 room_words) {
  using namespace prefix;
  b.sign_extended = tables.sign_extended;
  if (!take_planes(c, b)) return false;
  Row<WORD> queue[Shape<WORD>::kAhead];
  load_first(b, lane, queue);
  Head h;
  const u32* before = c.data;
  if (!take_head(c, b, h)) return false;
  const u32 length = lane_bits(h, lane);
  const u32 end = scan(length, lane);
  const u32* strings;
  u32 string_words;
  if (!take_strings(c, b, __shfl_sync(0xffffffffu, end, 31), strings, string_words)) return false;
  const u32* words = strings;
  if (string_words == 0) {  // codes of no bits: what is read does not matter
    words = before;
    string_words = 1;
  } else if (string_words + 3 <= room_words) {
    __syncwarp();  // nobody reads the block before any more
    stage(room, strings, string_words, lane, kLanes);
    wait_copies();
    __syncwarp();
    words = room + stage_shift(strings);
  }
  const bool good = decode_lane<WORD>(tables, b, lane, d, words, string_words, end - length, end, queue);
  if (!__all_sync(0xffffffffu, good)) return false;
  if (b.exceptions == 0) return true;
  __syncwarp();  // they replace words that other lanes have stored
  return __all_sync(0xffffffffu, finish_exceptions(b, lane));
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads, kBlocks) prefix_decode(const __grid_constant__ Batch batch) {
  extern __shared__ uint4 room[];
  const Item& item = find_item(batch, blockIdx.x);
  const prefix::Tables tables = *static_cast<const prefix::Tables*>(item.tables);
  u32* shared = reinterpret_cast<u32*>(room);
  stage(shared, static_cast<const u32*>(item.tables) + sizeof(tables) / 4, tables.words(), threadIdx.x, blockDim.x);
#ifdef QUANT
  __shared__ quant::QuantBase quantised;
  for (u32 i = threadIdx.x; i < sizeof(quantised) / 4; i += blockDim.x) {
    reinterpret_cast<u32*>(&quantised)[i] = reinterpret_cast<const u32*>(item.base)[i];
  }
#endif
  wait_copies();
  __syncthreads();
  const u32 lane = threadIdx.x & 31, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const prefix::Decoding d = prefix::decoding(tables, shared);
  const u32 room_words = (shared_bytes() / 4 - tables.words()) / warps & ~3u;
  u32* mine = shared + tables.words() + warp * room_words;

  const u32 first = (blockIdx.x - item.first_block) * batch.chunks_per_block;
  const u32 behind = min_u32(item.chunks, first + batch.chunks_per_block);
  for (u32 chunk = first + warp; chunk < behind; chunk += warps) {
    const Record r = item.records[chunk];
    const u32 all = r.uncompressed_bytes / sizeof(WORD);
    const u8* data = item.blob + r.data_offset;
    Exceptions<WORD> replaced;
    bool good = r.deltas == all && parse_exceptions(data, r.compressed_bytes, all, replaced);
    prefix::Cursor c;
    if (good) {
      c.data = reinterpret_cast<const u32*>(data + replaced.bytes);
      c.left = (r.compressed_bytes - replaced.bytes) / 4;
    }
    WORD* dst = static_cast<WORD*>(item.dst) + r.output_word;
    for (u32 done = 0; done < all && good; done += prefix::kBlockWords) {
      prefix::Block<WORD> b;
      b.words = min_u32(all - done, prefix::kBlockWords);
      b.dst = dst + done;
#ifdef QUANT
      b.base = nullptr;
      b.quantised = &quantised;
      b.first = r.output_word + done;
#else
      b.base = item.base ? static_cast<const WORD*>(item.base) + r.output_word + done : nullptr;
#endif
      b.aligned = ((reinterpret_cast<u64>(b.dst) | reinterpret_cast<u64>(b.base)) & 15) == 0;
      good = decode_block(b, c, tables, d, lane, mine, room_words);
    }
    good = good && c.left == 0;
#ifdef ADD
    if (good && replaced.count > 0) {
      __syncwarp();
      for (u32 i = lane; i < replaced.count; i += 32) {
        const bool fine = good_exception(replaced, i, all);
        good = good && fine;
        if (fine) dst[replaced.at[i]] = exception_word(replaced, i);
      }
      good = __all_sync(0xffffffffu, good);
    }
#endif
    if (lane == 0) item.status[chunk] = good ? kOk : kCorrupt;
  }
}
