// kernel.cc - the additions of kernels/floats.cuh on the CPU, for
// kernel_test.go. A request is u32 dtype (core/dtype), u32 words, base words and
// residual words; the answer is their sums.
#include <stdio.h>

#include <vector>

#include "floats.cuh"

static bool get(void* p, size_t n) { return fread(p, 1, n, stdin) == n; }

template <typename Float>
static void sums(u32 words) {
  std::vector<typename Float::Bits> base(words), residual(words);
  if (!get(base.data(), words * sizeof base[0]) || !get(residual.data(), words * sizeof base[0])) return;
  for (u32 i = 0; i < words; i++) base[i] = Float::add(base[i], residual[i]);
  fwrite(base.data(), sizeof base[0], words, stdout);
}

int main() {
  for (u32 head[2]; get(head, sizeof head);) {
    switch (head[0]) {
      case 10: sums<F16>(head[1]); break;
      case 11: sums<BF16>(head[1]); break;
      case 12: sums<F32>(head[1]); break;
      case 13: sums<F64>(head[1]); break;
      case 15: sums<F8E4M3>(head[1]); break;
      case 16: sums<F8E5M2>(head[1]); break;
      case 18: sums<F8E4M3FNUZ>(head[1]); break;
      case 19: sums<F8E5M2FNUZ>(head[1]); break;
      default: return 1;
    }
  }
}
