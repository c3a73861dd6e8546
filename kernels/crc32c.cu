// crc32c.cu - verifies the checksum of every chunk: one warp a chunk.
//
// launch: threads=256 chunks_per_block=8
#include "batch.cuh"
#include "crc32c.cuh"

// At most 128 registers a thread: a lane holds a block of rows and loads the
// next one, 4 KiB for a warp, so that 16 warps keep 64 KiB on their way.
extern "C" __global__ void __launch_bounds__(256, 2) crc32c_check(const __grid_constant__ Batch batch) {
  await_stream();
  __shared__ u32 step[1024];
  for (u32 i = threadIdx.x; i < 1024; i += blockDim.x) step[i] = crc32c::kTables.step[i];
  __syncthreads();
  const Item& item = find_item(batch, blockIdx.x);
  const u32 lane = threadIdx.x & 31;
  const u32 chunk = (blockIdx.x - item.first_block) * 8 + threadIdx.x / 32;
  if (chunk >= item.chunks) return;

  const Record* r = item.records + chunk;
  const u32* data = reinterpret_cast<const u32*>(item.blob + r->data_offset);
  u32 sum = crc32c::lane_sum(lane, reinterpret_cast<const u32*>(r), data, r->compressed_bytes / 4, step,
                             crc32c::kTables.last[lane]);
#pragma unroll
  for (u32 d = 16; d > 0; d /= 2) sum ^= __shfl_xor_sync(0xffffffffu, sum, d);
  if (lane == 0) item.status[chunk] = ~sum == r->checksum ? kOk : kChecksum;
}
