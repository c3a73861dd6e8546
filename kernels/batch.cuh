// batch.cuh - how a list of tensors reaches a kernel: by value, as its only
// argument, so that a launch needs no copy and a CUDA graph captures it whole.
#pragma once

#include "common.cuh"

// One tensor. All pointers are device memory.
struct Item {
  const void* base;       // target bytes of base words; null without a base
  void* dst;              // target bytes; may be base
  const u8* blob;         // 8-byte aligned
  const Record* records;  // flat records, `chunks` of them
  const void* tables;     // expanded codec tables; null if the codec has none
  u32* status;            // ChunkStatus of each chunk; written by every launch
  u32 chunks;
  u32 first_block;        // first thread block that works on the tensor, or first unit
};

const u32 kMaxItems = 56;

struct Batch {
  u32 items;
  u32 units;  // of all items: thread blocks, or what these share
  Item item[kMaxItems];
};
static_assert(sizeof(Item) == 56 && sizeof(Batch) <= 4096, "kernel arguments are at most 4 KiB");

// The number of the tensor that a thread block works on, or that has a unit; of
// a Batch or what is like one.
template <typename AnyBatch>
TPDE_FN u32 find_item_number(const AnyBatch& batch, u32 block) {
  u32 lo = 0, hi = batch.items;  // the item is in [lo, hi)
  while (hi - lo > 1) {
    u32 mid = (lo + hi) / 2;
    if (batch.item[mid].first_block <= block) lo = mid; else hi = mid;
  }
  return lo;
}

template <typename AnyBatch>
TPDE_FN auto find_item(const AnyBatch& batch, u32 block) -> decltype((batch.item[0])) {
  return batch.item[find_item_number(batch, block)];
}
