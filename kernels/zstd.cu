// zstd.cu - what comes before and after nvCOMP for tensors of the zstd codec
// (core/codec/zstd/FORMAT.md). zstd_gather reads the directories and fills the
// batch for nvCOMP; zstd_join puts planes together and adds them to the base.
//
// The size of nvCOMP's batch is fixed by the chunk records, since the host does
// not see blobs. Planes that need no decompression, and those of corrupt
// chunks, therefore get a tiny frame to decompress into their own buffer.
//
// nvCOMP's behaviour is undefined for corrupt frames. So chunks whose checksum
// is wrong are kept from it, and the layout of every frame is checked.
//
// Compiled for each word size, -DWORD=u8|u16|u32|u64, and, for the add
// residual, each dtype of it, -DADD=F32|F16|BF16|F64. With
// -DQUANT=quant::kF32|kF16|kBF16 the base is quantised: item.base is a
// QuantBase, and its values in that dtype are the base words.
#include "chunk.cuh"
#include "residual.cuh"
#include "zstd.cuh"

namespace {

using namespace zstd;

// A frame of one block of one byte, as it is.
__device__ const uint4 kTinyFrame = {0xfd2fb528u, 0x00090120u, 0x00000000u, 0};
const u32 kTinyFrameBytes = 10;

const u32 kLanes = 16;  // threads for the planes of a chunk

// Whether crc32c_check found the chunk to be damaged.
__device__ u32 status_before(const ZstdItem& item, u32 chunk) { return item.checked ? item.status[chunk] : 0; }

__device__ Stream gather(const ZstdItem& item, u32 chunk, u32 planes, u32 k, const u8*& data) {
  const Record r = item.records[chunk];
  const Stream bad = {kBad, 0, 0};
  Exceptions<WORD> exceptions;
  data = item.blob + r.data_offset;
  const u32 words = r.uncompressed_bytes / sizeof(WORD);
  if ((reinterpret_cast<u64>(data) & 7) != 0 || status_before(item, chunk) != kOk) return bad;
  if (!parse_exceptions(data, r.compressed_bytes, words, exceptions)) return bad;
  data += exceptions.bytes;
  return read_entry(data, r.compressed_bytes - exceptions.bytes, planes, k, r.deltas);
}

}  // namespace

// A thread for each plane.
//
// launch: threads=128 chunks_per_block=8
extern "C" __global__ void __launch_bounds__(128) zstd_gather(const __grid_constant__ ZstdBatch batch) {
  await_stream();
  const ZstdItem& item = find_item(batch, blockIdx.x);
  const u32 chunk = (blockIdx.x - item.first_block) * (128 / kLanes) + threadIdx.x / kLanes;
  const u32 k = threadIdx.x % kLanes;
  if (chunk >= item.chunks) return;
  const Place place = static_cast<const Place*>(item.tables)[chunk];
  if (k >= place.planes) return;
  const u8* data;
  const Stream s = gather(item, chunk, place.planes, k, data);

  const u32 deltas = item.records[chunk].deltas;
  u8* buffer = reinterpret_cast<u8*>(item.buffers + place.buffer + (u64)k * ((deltas + 15) / 16 * 16));
  const u32 slot = item.slots + place.slot + k;
  const Slots& slots = batch.slots;
  const bool frame = s.kind == kFrame;
  slots.frames[slot] = frame ? data + s.at : reinterpret_cast<const u8*>(&kTinyFrame);
  slots.frame_bytes[slot] = frame ? s.value : kTinyFrameBytes;
  slots.buffers[slot] = buffer;
  slots.buffer_bytes[slot] = deltas;
  slots.actual_bytes[slot] = 0;
  slots.statuses[slot] = ~0u;  // nobody has decompressed it yet
  slots.planes[slot] = {frame ? buffer : data + s.at, s.kind, s.value};
}

namespace {

const u32 kThreads = 512;
const u32 kWarps = kThreads / 32;
const u32 kEach = 8;  // deltas that a thread takes at a time

// Bytes i to i + N - 1 of a plane; i is a multiple of N.
template <u32 N>
__device__ u64 plane_bytes(const Plane& p, u32 i) {
  if (p.kind == kFill) return p.fill * 0x0101010101010101ull;
  if (N == 8) return *reinterpret_cast<const u64*>(p.data + i);
  if (N == 4) return *reinterpret_cast<const u32*>(p.data + i);
  return *reinterpret_cast<const u16*>(p.data + i);
}

// Every word has a residual.
__device__ void join_dense(const Chunk& c, const Plane* values) {
  const u32 per = 16 / sizeof(WORD);
  const u32 part = per < 8 ? per : 8;  // words whose bytes of a plane are loaded at once
  u32 done = 0;
  if (aligned(c)) {
    const u32 groups = c.words / per;
#pragma unroll 2
    for (u32 i = threadIdx.x; i < groups; i += kThreads) {
      union {
        uint4 group;
        WORD word[per];
      } g;
      g.group = base_group(c, i);
#pragma unroll
      for (u32 h = 0; h < per; h += part) {
        u64 bytes[sizeof(WORD)];
#pragma unroll
        for (u32 k = 0; k < sizeof(WORD); k++) bytes[k] = plane_bytes<part>(values[k], i * per + h);
#pragma unroll
        for (u32 j = 0; j < part; j++) {
          g.word[h + j] = apply<WORD>(g.word[h + j], unzigzag(join<WORD>(bytes, j)));
        }
      }
      reinterpret_cast<uint4*>(c.dst)[i] = g.group;
    }
    done = groups * per;
  }
  for (u32 i = done + threadIdx.x; i < c.words; i += kThreads) {
    WORD z = 0;
#pragma unroll
    for (u32 k = 0; k < sizeof(WORD); k++) {
      const u32 byte = values[k].kind == kFill ? values[k].fill : values[k].data[i];
      z = (WORD)(z | (WORD)byte << 8 * k);
    }
    c.dst[i] = apply<WORD>(base_word(c, i), unzigzag(z));
  }
}

// Prefix sums of distances over the thread block, inclusive in the thread's
// own. `sums` is used again by the call after the next.
__device__ u32 scan_distances(u32 own, u32* sums, u32& all) {
  const u32 lane = threadIdx.x & 31, warp = threadIdx.x / 32;
  u32 sum = own;
#pragma unroll
  for (u32 d = 1; d < 32; d *= 2) {
    const u32 up = __shfl_up_sync(0xffffffffu, sum, d);
    if (lane >= d) sum = add_distance(sum, up);
  }
  if (lane == 31) sums[warp] = sum;
  __syncthreads();
  u32 before = 0;
  all = 0;
#pragma unroll
  for (u32 i = 0; i < kWarps; i++) {
    if (i == warp) before = all;
    all = add_distance(all, sums[i]);
  }
  return add_distance(before, sum);
}

// Gaps say which words have a residual; dst holds the base. A word number is
// the sum of distances up to it, less 1, so that numbers ascend by themselves
// and each word is changed by one thread.
__device__ bool join_sparse(const Chunk& c, const Plane* gaps, u32 gap_planes, const Plane* values, u32 deltas) {
  __shared__ u32 sums[2][kWarps];
  bool good = true;
  u32 before = 0;  // distance covered by the tiles before
  for (u32 tile = 0; tile * (kThreads * kEach) < deltas; tile++) {
    const u32 i = tile * (kThreads * kEach) + threadIdx.x * kEach;
    const u32 count = i < deltas ? min_u32(deltas - i, kEach) : 0;
    u64 gap[4] = {0, 0, 0, 0}, value[sizeof(WORD)];
    if (count > 0) {  // planes are padded to 8 bytes
#pragma unroll
      for (u32 k = 0; k < 4; k++) if (k < gap_planes) gap[k] = plane_bytes<8>(gaps[k], i);
#pragma unroll
      for (u32 k = 0; k < sizeof(WORD); k++) value[k] = plane_bytes<8>(values[k], i);
    }
    u32 upto[kEach], own = 0;
#pragma unroll
    for (u32 j = 0; j < kEach; j++) {
      if (j < count) own = add_distance(own, distance(join<u32>(gap, j)));
      upto[j] = own;
    }
    u32 all;
    const u32 sum = scan_distances(own, sums[tile & 1], all);
    // Of a sum that stays at kFar nothing can be taken off; such a thread is
    // beyond the chunk from its first delta or comes to it on its way.
    const u32 start = sum < kFar ? sum - own : kFar;
    good = good && sum < kFar;
    // All words are loaded before the first is stored: nobody else has them, but
    // the compiler cannot know.
    WORD word[kEach];
    bool ok[kEach];
#pragma unroll
    for (u32 j = 0; j < kEach; j++) {
      upto[j] = add_distance(add_distance(before, start), upto[j]) - 1;
      ok[j] = j < count && upto[j] < c.words && join<WORD>(value, j) != 0;
      if (ok[j]) word[j] = c.dst[upto[j]];
      good = good && (ok[j] || j >= count);
    }
#pragma unroll
    for (u32 j = 0; j < kEach; j++) {
      if (ok[j]) c.dst[upto[j]] = apply<WORD>(word[j], unzigzag(join<WORD>(value, j)));
    }
    before = add_distance(before, all);
  }
  return good;
}

}  // namespace

// launch: threads=512 chunks_per_block=1
extern "C" __global__ void __launch_bounds__(kThreads) zstd_join(const __grid_constant__ ZstdBatch batch) {
  await_stream();
  __shared__ Plane planes[kMaxPlanes];
  const ZstdItem& item = find_item(batch, blockIdx.x);
  const u32 chunk = blockIdx.x - item.first_block;
  const Record r = item.records[chunk];
  const Place place = static_cast<const Place*>(item.tables)[chunk];
  const Chunk c = open_chunk<kThreads>(item, r);
  const u32 damaged = status_before(item, chunk);
  const u8* data = item.blob + r.data_offset;
  Exceptions<WORD> exceptions;
  bool good = damaged == kOk && r.deltas <= c.words && parse_exceptions(data, r.compressed_bytes, c.words, exceptions);
  if (place.planes == 0) good = good && r.compressed_bytes == exceptions.bytes;
  if (threadIdx.x < place.planes) {
    const u32 slot = item.slots + place.slot + threadIdx.x;
    const Plane p = batch.slots.planes[slot];
    planes[threadIdx.x] = p;
    good = good && p.kind != kBad;
    if (p.kind == kFrame) good = good && batch.slots.statuses[slot] == 0 && batch.slots.actual_bytes[slot] == r.deltas;
  }
  good = __syncthreads_and(good);
  if (good) {
    const u32 gap_planes = place.planes - min_u32(place.planes, sizeof(WORD));
    if (r.deltas == c.words) {
      join_dense(c, planes);
    } else {
      if (c.base != c.dst) {
        copy_base<kThreads>(c);
        __syncthreads();  // a delta is added after its word was copied
      }
      good = join_sparse(c, planes, gap_planes, planes + gap_planes, r.deltas);
    }
#ifdef ADD
    __syncthreads();
    for (u32 i = threadIdx.x; good && i < exceptions.count; i += kThreads) {
      good = good_exception(exceptions, i, c.words);
      if (good) c.dst[exceptions.at[i]] = exception_word(exceptions, i);
    }
#endif
  }
  good = __syncthreads_and(good);
  if (threadIdx.x == 0) item.status[chunk] = good ? kOk : damaged != kOk ? damaged : kCorrupt;
}
