// rice_near.cuh - shared memory by its own addresses, which have 32 bits: what is
// found by a few steps along them takes an instruction for each.
#pragma once

#include "bits.cuh"

namespace rice {

// x += d where `bits` are not all zero. The compiler makes a sum and a choice of it.
TPDE_FN void add_if_any(u32& x, u32 d, u32 bits) {
#ifdef __CUDA_ARCH__
  asm("{ .reg .pred p; setp.ne.u32 p, %2, 0; @p add.u32 %0, %0, %1; }" : "+r"(x) : "r"(d), "r"(bits));
#else
  if (bits != 0) x += d;
#endif
}

// What it points to is loaded when it is asked for: behind barriers before, and
// not only when it is needed.
struct Near {
#ifdef __CUDA_ARCH__
  u32 address;

  static TPDE_FN Near of(const void* p) { return Near{(u32)__cvta_generic_to_shared(p)}; }
  TPDE_FN u32 byte() const {
    u32 v;
    asm volatile("ld.shared.u8 %0, [%1];" : "=r"(v) : "r"(address));
    return v;
  }
  TPDE_FN u32 half() const {
    u32 v;
    asm volatile("ld.shared.u16 %0, [%1];" : "=r"(v) : "r"(address));
    return v;
  }
  TPDE_FN u32 word() const {
    u32 v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(address));
    return v;
  }
  TPDE_FN void set_half(u32 v) const {
    asm volatile("st.shared.u16 [%0], %1;" ::"r"(address), "h"((u16)v) : "memory");
  }
#else
  const u8* address;

  static TPDE_FN Near of(const void* p) { return Near{static_cast<const u8*>(p)}; }
  TPDE_FN u32 byte() const { return *address; }
  TPDE_FN u32 half() const { return *reinterpret_cast<const u16*>(address); }
  TPDE_FN u32 word() const { return *reinterpret_cast<const u32*>(address); }
  TPDE_FN void set_half(u32 v) const { *reinterpret_cast<u16*>(const_cast<u8*>(address)) = (u16)v; }
#endif
  TPDE_FN bool operator!=(Near other) const { return address != other.address; }
  // Goes on by d bytes if a is at most b.
  TPDE_FN void step_if(u32 d, u32 a, u32 b) {
#ifdef __CUDA_ARCH__
    asm("{ .reg .pred p; setp.le.u32 p, %2, %3; @p add.u32 %0, %0, %1; }" : "+r"(address) : "r"(d), "r"(a), "r"(b));
#else
    if (a <= b) address += d;
#endif
  }
  TPDE_FN Near plus(u32 bytes) const { return Near{address + bytes}; }
  TPDE_FN u32 minus(Near other) const { return (u32)(address - other.address); }
  TPDE_FN Near up_to(Near last) const { return address < last.address ? *this : last; }
};

// The strings of a chunk in shared memory: words in the byte order of numbers,
// and two zeros. Whatever the bit asked for, nothing else is read.
struct NearStrings {
  static const u32 kBehind = 2;
  Near first;
  u32 words;

  // 32 bits from bit `at` on.
  TPDE_FN u32 window(u32 at) const {
    const Near word = first.plus(4 * min_u32(at / 32, words));
    return bits_between(word.word(), word.plus(4).word(), at);
  }
};

// The same in global memory; there is at least one word.
struct FarStrings {
  const u32* data;
  u32 words;

  TPDE_FN u32 window(u32 at) const { return bits_at(data, words, at, 32); }
};

// A reader of strings from front to back.
template <typename Strings>
struct Reader {
  Strings strings;
  u32 position;

  TPDE_FN u32 peek() const { return strings.window(position); }
  TPDE_FN void skip(u32 n) { position += n; }
  // Reads n bits, 0 to 32.
  TPDE_FN u32 take(u32 n) {
    const u32 v = n ? peek() >> (32 - n) : 0;
    skip(n);
    return v;
  }
};

}  // namespace rice
