// prefix_memory.cuh - addresses of what the prefix decoder reads, in shared memory
// or in global.
#pragma once

#include "group.cuh"

namespace prefix {

// An address of a 32-bit word in shared memory, in the 32 bits that it has there.
// A generic pointer would be one to global memory for the compiler, and what is
// loaded through it would be waited for together with base words that are on
// their way for the rows to come.
struct Shared {
  static const bool kNear = true;
#ifdef __CUDA_ARCH__
  u32 address;

  static TPDE_FN Shared of(const void* p) { return Shared{(u32)__cvta_generic_to_shared(p)}; }
  // Not volatile: nothing is written there after the barrier behind the copy,
  // and what is looked up depends on what is loaded later.
  TPDE_FN u32 word() const {
    u32 v;
    asm("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(address));
    return v;
  }
  TPDE_FN u32 byte() const {
    u32 v;
    asm("ld.shared.u8 %0, [%1];" : "=r"(v) : "r"(address));
    return v;
  }
#else
  const u8* address;

  static TPDE_FN Shared of(const void* p) { return Shared{static_cast<const u8*>(p)}; }
  TPDE_FN u32 word() const { return *reinterpret_cast<const u32*>(address); }
  TPDE_FN u32 byte() const { return *address; }
#endif
  TPDE_FN Shared plus(u32 bytes) const { return Shared{address + bytes}; }
  // 16 bytes, which are written again and again: behind a wait, and before a copy.
  TPDE_FN Group group() const {
    Group g;
#ifdef __CUDA_ARCH__
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(g.w[0]), "=r"(g.w[1]), "=r"(g.w[2]), "=r"(g.w[3])
                 : "r"(address)
                 : "memory");
#else
    g = load_whole(address);
#endif
    return g;
  }
  TPDE_FN void set_group(const Group& g) const {
#ifdef __CUDA_ARCH__
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(g.w[0]), "r"(g.w[1]), "r"(g.w[2]),
                 "r"(g.w[3])
                 : "memory");
#else
    __builtin_memcpy(const_cast<u8*>(address), &g, 16);
#endif
  }
};

// The same for global memory.
struct Global {
  static const bool kNear = false;
  const u8* address;

  static TPDE_FN Global of(const void* p) { return Global{static_cast<const u8*>(p)}; }
  TPDE_FN u32 word() const { return *reinterpret_cast<const u32*>(address); }
  TPDE_FN Global plus(u32 bytes) const { return Global{address + bytes}; }
};

template <typename Memory>
TPDE_FN Memory before_of(Memory a, Memory b) {
  return a.address < b.address ? a : b;
}

}  // namespace prefix
