// raw.cu - rebuilds tensors of the raw codec (core/codec/raw/FORMAT.md): one
// thread block a chunk copies the base and adds the residuals.
//
// launch: threads=256 chunks_per_block=1
// Compiled for each word size, -DWORD=u8|u16|u32|u64, and, for the add
// residual, each dtype of it, -DADD=F32|F16|BF16|F64. With
// -DQUANT=quant::kF32|kF16|kBF16 the base is quantised: item.base is a
// QuantBase, and its values in that dtype are the base words.
#include "chunk.cuh"
#include "residual.cuh"

namespace {

const u32 kThreads = 256;
const u32 kAhead = 4;  // deltas that a thread loads before the copy

// The words of a 32-bit register, one by one; WORD has at most 32 bits.
__device__ u32 apply_packed(u32 base, u32 residual) {
  u32 out = 0;
#pragma unroll
  for (u32 bit = 0; bit < 32; bit += 8 * sizeof(WORD)) {
    out |= (u32)apply<WORD>((WORD)(base >> bit), (WORD)(residual >> bit)) << bit;
  }
  return out;
}

// Every word has a residual. Residuals lie at multiples of 8 bytes.
__device__ void decode_dense(const Chunk& c, const WORD* residual) {
  u32 done = 0;
  if (sizeof(WORD) < 8 && aligned(c)) {
    const u32 per = 16 / sizeof(WORD);
    const u32 groups = c.words / per;
    const uint2* add = reinterpret_cast<const uint2*>(residual);
    uint4* to = reinterpret_cast<uint4*>(c.dst);
#pragma unroll 4
    for (u32 i = threadIdx.x; i < groups; i += kThreads) {
      const uint4 b = base_group(c, i);
      const uint2 low = add[2 * i], high = add[2 * i + 1];
      to[i] = make_uint4(apply_packed(b.x, low.x), apply_packed(b.y, low.y), apply_packed(b.z, high.x),
                         apply_packed(b.w, high.y));
    }
    done = groups * per;
  }
  for (u32 i = done + threadIdx.x; i < c.words; i += kThreads) c.dst[i] = apply<WORD>(base_word(c, i), residual[i]);
}

// One delta: checks it and adds it to its word of dst, which holds the base.
// Numbers ascend strictly, so each word is changed by one thread.
__device__ bool put_delta(const Chunk& c, u32 at, u32 before, bool first, WORD residual) {
  const bool good = at < c.words && (first || before < at) && residual != 0;
  if (good) c.dst[at] = apply<WORD>(c.dst[at], residual);
  return good;
}

// Only the listed words have a residual. The first deltas are loaded before
// the base is copied, so that the two overlap.
__device__ bool decode_sparse(const Chunk& c, const u32* number, const WORD* residual, u32 deltas) {
  u32 at[kAhead], before[kAhead];
  WORD value[kAhead];
#pragma unroll
  for (u32 k = 0; k < kAhead; k++) {
    const u32 i = threadIdx.x + k * kThreads;
    if (i < deltas) {
      at[k] = number[i];
      before[k] = i > 0 ? number[i - 1] : 0;
      value[k] = residual[i];
    }
  }
  if (c.base != c.dst) {
    copy_base<kThreads>(c);
    __syncthreads();  // a delta is written after the copy of its word
  }
  bool good = true;
#pragma unroll
  for (u32 k = 0; k < kAhead; k++) {
    const u32 i = threadIdx.x + k * kThreads;
    if (i < deltas) good &= put_delta(c, at[k], before[k], i == 0, value[k]);
  }
  for (u32 i = threadIdx.x + kAhead * kThreads; i < deltas; i += kThreads) {
    good &= put_delta(c, number[i], number[i - 1], false, residual[i]);
  }
  return good;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads) raw_decode(const __grid_constant__ Batch batch) {
  const Item& item = find_item(batch, blockIdx.x);
  const u32 chunk = blockIdx.x - item.first_block;
  const Record r = item.records[chunk];
  const Chunk c = open_chunk<kThreads>(item, r);
  const u8* data = item.blob + r.data_offset;
  Exceptions<WORD> exceptions;
  bool good = parse_exceptions(data, r.compressed_bytes, c.words, exceptions);
  data += exceptions.bytes;

  const bool dense = r.deltas == c.words;
  const u64 number_bytes = dense ? 0 : ((u64)r.deltas * 4 + 7) / 8 * 8;
  const u64 need = number_bytes + ((u64)r.deltas * sizeof(WORD) + 7) / 8 * 8;
  // Residuals are loaded 8 bytes at a time; the packer puts them at such offsets.
  good = good && r.data_offset % 8 == 0 && r.deltas <= c.words && need == r.compressed_bytes - exceptions.bytes;
  if (good) {
    const WORD* residual = reinterpret_cast<const WORD*>(data + number_bytes);
    if (dense) {
      decode_dense(c, residual);
    } else {
      good = decode_sparse(c, reinterpret_cast<const u32*>(data), residual, r.deltas);
    }
  }
  if (exceptions.count > 0) {
    __syncthreads();
    for (u32 i = threadIdx.x; good && i < exceptions.count; i += kThreads) {
      good = good_exception(exceptions, i, c.words);
      if (good) c.dst[exceptions.at[i]] = exception_word(exceptions, i);
    }
  }
  good = __syncthreads_and(good);
  if (threadIdx.x == 0) item.status[chunk] = good ? kOk : kCorrupt;
}
