// crc32c.cu - verifies the checksum of every chunk: one warp a chunk.
//
// launch: threads=256 chunks_per_block=8
#include "batch.cuh"
#include "crc32c.cuh"

extern "C" __global__ void __launch_bounds__(256) crc32c_check(const __grid_constant__ Batch batch) {
  __shared__ u32 table[1024];
  for (u32 i = threadIdx.x; i < 1024; i += blockDim.x) table[i] = crc32c::table_entry(i);
  __syncthreads();
  const Item& item = find_item(batch, blockIdx.x);
  const u32 lane = threadIdx.x & 31;
  const u32 chunk = (blockIdx.x - item.first_block) * 8 + threadIdx.x / 32;
  if (chunk >= item.chunks) return;

  const Record* r = item.records + chunk;
  u32 head[sizeof(Record) / 4];
#pragma unroll
  for (u32 i = 0; i < sizeof(Record) / 4; i++) head[i] = reinterpret_cast<const u32*>(r)[i];
  const u32 want = r->checksum;
  head[5] = 0;  // the checksum itself
  const u32* data = reinterpret_cast<const u32*>(item.blob + r->data_offset);
  u32 sum = crc32c::lane_sum(lane, head, sizeof(Record) / 4, data, r->compressed_bytes / 4, table);
#pragma unroll
  for (u32 d = 16; d > 0; d /= 2) sum ^= __shfl_xor_sync(0xffffffffu, sum, d);
  if (lane == 0) item.status[chunk] = ~sum == want ? kOk : kChecksum;
}
