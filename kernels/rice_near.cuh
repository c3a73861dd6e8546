// rice_near.cuh - shared memory by its own addresses, which have 32 bits: what is
// found by a few steps along them takes an instruction for each.
#pragma once

#include "common.cuh"

namespace rice {

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
#else
  const u8* address;

  static TPDE_FN Near of(const void* p) { return Near{static_cast<const u8*>(p)}; }
  TPDE_FN u32 byte() const { return *address; }
  TPDE_FN u32 half() const { return *reinterpret_cast<const u16*>(address); }
  TPDE_FN u32 word() const { return *reinterpret_cast<const u32*>(address); }
#endif
  TPDE_FN Near plus(u32 bytes) const { return Near{address + bytes}; }
  TPDE_FN u32 minus(Near other) const { return (u32)(address - other.address); }
  TPDE_FN Near up_to(Near last) const { return address < last.address ? *this : last; }
};

}  // namespace rice
