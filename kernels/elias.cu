// elias.cu - entry point of the elias decoder: one warp a chunk.
//
// launch: threads=128 chunks_per_block=4
// Compiled for each word size, -DWORD=u8|u16|u32|u64, and, for the add
// residual, each dtype of it, -DADD=F32|F16|BF16|F64. With
// -DQUANT=quant::kF32|kF16|kBF16 the base is quantised: item.base is a
// QuantBase, and its values in that dtype are the base words.
#include "batch.cuh"
#include "elias.cuh"
#include "threads.cuh"

namespace {

const u32 kWarps = 4;  // chunks that a thread block works on
// Thread blocks of a multiprocessor: 64 registers a thread, measured fastest
// (48 and 40 spill the counters, 72 leave too few warps), more where a group
// has 16 words.
const u32 kBlocks = sizeof(WORD) == 1 ? 6 : 8;

}  // namespace

extern "C" __global__ void __launch_bounds__(kWarps * 32, kBlocks) elias_decode(const __grid_constant__ Batch batch) {
  await_stream();
  using namespace elias;
  __shared__ Tables tables;
  const Item& item = find_item(batch, blockIdx.x);
  for (u32 i = threadIdx.x; i < sizeof(Tables) / 4; i += blockDim.x) {
    reinterpret_cast<u32*>(&tables)[i] = reinterpret_cast<const u32*>(item.tables)[i];
  }
#ifdef QUANT
  __shared__ quant::QuantBase quantised;
  for (u32 i = threadIdx.x; i < sizeof(quantised) / 4; i += blockDim.x) {
    reinterpret_cast<u32*>(&quantised)[i] = reinterpret_cast<const u32*>(item.base)[i];
  }
#endif
  __syncthreads();
  const u32 lane = threadIdx.x & 31;
  const u32 chunk = (blockIdx.x - item.first_block) * kWarps + threadIdx.x / 32;
  if (chunk >= item.chunks) return;

  const Record r = item.records[chunk];
  const u32* data = reinterpret_cast<const u32*>(item.blob + r.data_offset);
  u32 left = r.compressed_bytes / 4;  // words of data not yet used
  u32 words = r.uncompressed_bytes / sizeof(WORD);
  u64 first = r.output_word;
  u32 deltas = 0;
  Exceptions<WORD> replaced;
  bool good = parse_exceptions(item.blob + r.data_offset, r.compressed_bytes, words, replaced);
  data += replaced.bytes / 4;
  left -= replaced.bytes / 4;
  while (words > 0 && good) {
    Block<WORD> b;
    b.words = min_u32(words, kBlockWords);
    b.dst = static_cast<WORD*>(item.dst) + first;
#ifdef QUANT
    b.base = nullptr;
    b.quantised = &quantised;
    b.first = first;
#else
    b.base = item.base ? static_cast<const WORD*>(item.base) + first : nullptr;
#endif
    b.aligned = ((reinterpret_cast<u64>(b.dst) | reinterpret_cast<u64>(b.base)) & 15) == 0;

    // The head. Every size is checked before it is used.
    if (left < 1) { good = false; break; }
    u32 head = data[0], least = head & 0xffffff, width = head >> 24 & 0x7f;
    u32 exceptions = 0, used = 1;
    if (head >> 31) {
      if (left < 2) { good = false; break; }
      exceptions = data[1];
      used = 2;
    }
    if (width > 24 || exceptions > b.words || left < used + width) { good = false; break; }
    u32 length = least + bits_at(data + used, width, lane * width, width);
    used += width;
    u32 start = scan_warp(length) - length;
    u32 end = start + length;
    u32 string_words = (__shfl_sync(0xffffffffu, end, 31) + 31) / 32;
    u32 exception_words = exceptions + (exceptions * (u32)sizeof(WORD) + 3) / 4;
    if (string_words > left - used || exception_words > left - used - string_words) { good = false; break; }

    good = string_words > 0 && decode_lane(b, lane, tables, data + used, string_words, start, end, deltas);
    good = __all_sync(0xffffffffu, good);
    used += string_words;
    if (exceptions > 0 && good) {
      __syncwarp();
      const u32* at = data + used;
      const WORD* values = reinterpret_cast<const WORD*>(at + exceptions);
      for (u32 i = lane; i < exceptions; i += 32) {
        u32 p = at[i];
        bool ok = p < b.words && (i == 0 || at[i - 1] < p);
        good = good && ok;
        if (ok) {
          WORD v;
          if (sizeof(WORD) == 8) {
            const u32* h = reinterpret_cast<const u32*>(values + i);
            v = (WORD)((u64)h[1] << 32 | h[0]);
          } else {
            v = values[i];
          }
          b.dst[p] = apply<WORD>(b.dst[p], v);
        }
      }
      if (lane == 0) deltas += exceptions;
      good = __all_sync(0xffffffffu, good);
      used += exception_words;
    }
    data += used;
    left -= used;
    words -= b.words;
    first += b.words;
  }
  if (replaced.count > 0 && good) {
    __syncwarp();
    const u32 all = r.uncompressed_bytes / sizeof(WORD);
    WORD* dst = static_cast<WORD*>(item.dst) + r.output_word;
    for (u32 i = lane; i < replaced.count; i += 32) {
      const bool ok = good_exception(replaced, i, all);
      good = good && ok;
      if (ok) dst[replaced.at[i]] = exception_word(replaced, i);
    }
    good = __all_sync(0xffffffffu, good);
  }
  for (u32 d = 16; d > 0; d /= 2) deltas += __shfl_down_sync(0xffffffffu, deltas, d);
  if (lane == 0) item.status[chunk] = good && left == 0 && deltas == r.deltas ? kOk : kCorrupt;
}
