// stage.cuh - brings words of global memory to shared memory without holding
// them in registers, so that all of a chunk is on its way at once.
#pragma once

#include "common.cuh"

// cp.async came with sm_80; elsewhere a copy has ended when it returns.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#define TPDE_ASYNC 1
#endif

// Copies 16 bytes; both addresses are multiples of it.
TPDE_FN void copy_16(u32* to, const u32* from) {
#ifdef TPDE_ASYNC
  // .cg: past the L1 cache, which nothing reads them from again.
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((u32)__cvta_generic_to_shared(to)), "l"(from)
               : "memory");
#else
  require_16(to);
  require_16(from);
  for (u32 i = 0; i < 4; i++) to[i] = from[i];
#endif
}

TPDE_FN void copy_4(u32* to, const u32* from) {
#ifdef TPDE_ASYNC
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"((u32)__cvta_generic_to_shared(to)), "l"(from)
               : "memory");
#else
  *to = *from;
#endif
}

// Waits for what this thread copied. Other threads see it after the next
// barrier.
TPDE_FN void wait_copies() {
#ifdef TPDE_ASYNC
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// Ends a group of this thread's copies, and waits for all but the last n groups.
TPDE_FN void commit_copies() {
#ifdef TPDE_ASYNC
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

template <u32 n>
TPDE_FN void wait_copies_but() {
#ifdef TPDE_ASYNC
  asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory");
#endif
}

// Where word 0 of a copy lies behind its start: as far behind a multiple of 16
// bytes as the original.
TPDE_FN u32 stage_shift(const u32* from) { return (u32)((u64)from >> 2) & 3; }

// Thread t of `threads` copies its share of n words to `to` + stage_shift(from).
// `to` is shared memory, 16-byte aligned, with room for n + 3 words; `from` is
// global memory, 4-byte aligned, and nothing is read outside of its n words.
TPDE_FN void stage(u32* to, const u32* from, u32 n, u32 t, u32 threads) {
  const u32 shift = stage_shift(from);
  const u32 head = min_u32((0 - shift) & 3, n);
  to += shift;
  if (t < head) copy_4(to + t, from + t);
  const u32 units = (n - head) / 4, done = head + 4 * units;
#pragma unroll 4
  for (u32 i = t; i < units; i += threads) copy_16(to + head + 4 * i, from + head + 4 * i);
  if (t < n - done) copy_4(to + done + t, from + done + t);
}
