// rice.cu - entry point of the rice decoder: one thread block a chunk.
//
// launch: threads=256 chunks_per_block=1
// Compiled for each word size, -DWORD=u8|u16|u32|u64, and, for the add
// residual, each dtype of it, -DADD=F32|F16|BF16|F64 and the like. With
// -DQUANT=quant::kF32|kF16|kBF16 the base is quantised: item.base is a
// QuantBase, and its values in that dtype are the base words.
#include "batch.cuh"
#include "rice.cuh"

namespace {

// Thread blocks of a multiprocessor: 64 registers a thread, and shared memory
// for as many.
const u32 kBlocks = 1024 / rice::kThreads;

}  // namespace

extern "C" __global__ void __launch_bounds__(rice::kThreads, kBlocks) rice_decode(const __grid_constant__ Batch batch) {
  await_stream();
  using namespace rice;
  __shared__ Shared<WORD> shared;
  const Item& item = find_item(batch, blockIdx.x);
  const u32 chunk = blockIdx.x - item.first_block;
  const Record r = item.records[chunk];
  Block<WORD> b;
  b.words = r.uncompressed_bytes / sizeof(WORD);
  b.dst = static_cast<WORD*>(item.dst) + r.output_word;
#ifdef QUANT
  __shared__ quant::QuantBase quantised;
  for (u32 i = threadIdx.x; i < sizeof(quantised) / 4; i += kThreads) {
    reinterpret_cast<u32*>(&quantised)[i] = reinterpret_cast<const u32*>(item.base)[i];
  }
  __syncthreads();
  b.base = nullptr;
  b.quantised = &quantised;
  b.first = r.output_word;
#else
  b.base = item.base ? static_cast<const WORD*>(item.base) + r.output_word : nullptr;
#endif
  b.aligned = ((reinterpret_cast<u64>(b.dst) | reinterpret_cast<u64>(b.base)) & 15) == 0;

  const u8* data = item.blob + r.data_offset;
  Exceptions<WORD> replaced;
  bool good = parse_exceptions(data, r.compressed_bytes, b.words, replaced);  // the same for all threads
  if (good) {
    const u32* strings = reinterpret_cast<const u32*>(data + replaced.bytes);
    const Tables& tables = *static_cast<const Tables*>(item.tables);
    good = decode_chunk(shared, b, tables, strings, (r.compressed_bytes - replaced.bytes) / 4, r.deltas);
  }
  if (replaced.count > 0) {
    __syncthreads();
    for (u32 i = threadIdx.x; good && i < replaced.count; i += kThreads) {
      good = good_exception(replaced, i, b.words);
      if (good) b.dst[replaced.at[i]] = exception_word(replaced, i);
    }
  }
  good = __syncthreads_and(good);
  if (threadIdx.x == 0) item.status[chunk] = good ? kOk : kCorrupt;
}
