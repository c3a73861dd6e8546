// common.cuh - what every kernel family shares: integer types, the records and
// batch descriptors, bit-level helpers.
//
// The decoders compile for the host too (CI has no GPU): TPDE_FN marks code
// that runs on both. No CUDA header is included, so that NVRTC needs none.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#ifdef __CUDACC__
#define TPDE_FN __device__ __forceinline__
#else
#define TPDE_FN inline
#endif

// One chunk, as core/container/FORMAT.md specifies the flat record.
struct Record {
  u64 data_offset;         // bytes into the blob
  u32 compressed_bytes;    //
  u32 uncompressed_bytes;  //
  u32 deltas;              // words stored
  u32 checksum;            //
  u64 output_word;         // first word of the chunk in the tensor
};
static_assert(sizeof(Record) == 32, "flat records are 32 bytes");

// What a kernel reports of a chunk. 0 is success.
enum ChunkStatus : u32 {
  kOk = 0,
  kCorrupt = 20,   // TPDE_CORRUPT
  kChecksum = 21,  // TPDE_CHECKSUM
};

// Waits for what is before the kernel in its stream: the first statement of every
// kernel, since the engine lets thread blocks start before that (programmatic dependent
// launch). No kernel lets the next one start early: it may take weights for
// constants, and read them before it waits.
TPDE_FN void await_stream() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Sixteen bytes of words, as a lane loads them at once.
struct Group {
  u32 w[4];
};

// Ends a program on the CPU where a GPU would fault: 16 bytes at once need to be
// aligned to 16.
TPDE_FN void require_16(const void* p) {
#ifndef __CUDA_ARCH__
  if ((u64)p & 15) __builtin_trap();
#endif
}

// The number of leading zeros of x, 32 for 0.
TPDE_FN u32 leading_zeros(u32 x) {
#ifdef __CUDA_ARCH__
  return __clz((int)x);
#else
  return x ? __builtin_clz(x) : 32;
#endif
}

// Reverses the bytes of x: bit strings are big-endian byte sequences.
TPDE_FN u32 byte_swap(u32 x) {
#ifdef __CUDA_ARCH__
  return __byte_perm(x, 0, 0x0123);
#else
  return __builtin_bswap32(x);
#endif
}

// Selectors of permute: the low halves of a and b, b's above, and the high ones.
const u32 kLowHalves = 0x5410, kHighHalves = 0x7632;

// Bytes of a (0 to 3) and b (4 to 7), chosen by the digits of `selector`.
TPDE_FN u32 permute(u32 a, u32 b, u32 selector) {
#ifdef __CUDA_ARCH__
  return __byte_perm(a, b, selector);
#else
  const u64 both = (u64)b << 32 | a;
  u32 out = 0;
  for (u32 i = 0; i < 4; i++) out |= (u32)(both >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
  return out;
#endif
}

// The n & 31 high bits of w as a number.
TPDE_FN u32 top_bits(u32 w, u32 n) {
#ifdef __CUDA_ARCH__
  return __funnelshift_l(w, 0, n);
#else
  n &= 31;
  return n ? w >> (32 - n) : 0;
#endif
}

// 32 bits of high and low, from bit n & 31 of high on.
TPDE_FN u32 bits_between(u32 high, u32 low, u32 n) {
#ifdef __CUDA_ARCH__
  return __funnelshift_l(low, high, n);
#else
  n &= 31;
  return n ? high << n | low >> (32 - n) : high;
#endif
}

// x << n, and 0 where n is 32 or more.
TPDE_FN u32 shift_left_out(u32 x, u32 n) {
#ifdef __CUDA_ARCH__
  return __funnelshift_lc(0, x, n);
#else
  return n < 32 ? x << n : 0;
#endif
}

// x rotated right by n & 31 bits.
TPDE_FN u32 rotate_right(u32 x, u32 n) {
#ifdef __CUDA_ARCH__
  return __funnelshift_r(x, x, n);
#else
  n &= 31;
  return n ? x >> n | x << (32 - n) : x;
#endif
}

TPDE_FN u32 min_u32(u32 a, u32 b) { return a < b ? a : b; }
