// kernel.cc - the checksum of kernels/crc32c.cuh on the CPU, all lanes one
// after the other, for kernel_test.go. A request is a flat record and the data
// that it speaks of; the answer is the checksum.
#include <stdio.h>

#include <vector>

#include "crc32c.cuh"

static bool get(void* p, size_t n) { return fread(p, 1, n, stdin) == n; }

int main() {
  for (Record r; get(&r, sizeof r);) {
    std::vector<u32> data(r.compressed_bytes / 4);  // exactly: the sanitizer sees what goes further
    if (!get(data.data(), 4 * data.size())) return 1;
    u32 sum = 0;
    for (u32 lane = 0; lane < 32; lane++) {
      sum ^= crc32c::lane_sum(lane, reinterpret_cast<const u32*>(&r), data.data(), (u32)data.size(),
                              crc32c::kTables.step, crc32c::kTables.last[lane]);
    }
    sum = ~sum;
    fwrite(&sum, 4, 1, stdout);
  }
}
