// kernel.cc - runs what the GPU does with a chunk on the CPU, for
// kernel_test.go. Requests and answers are sequences of u32 and bytes:
//
//   0, planes, deltas, bytes, chunk                  the directory of a chunk:
//     kind, value, at of each plane
//   1, word bytes, words, gap planes, deltas, planes (each padded to 8 bytes)
//     1 and the residual words, or 0
#include <stdio.h>

#include <vector>

#include "zstd.cuh"

static bool get(void* p, size_t n) { return fread(p, 1, n, stdin) == n; }
static void put(const void* p, size_t n) { fwrite(p, 1, n, stdout); }

static void directory() {
  u32 head[3];
  get(head, sizeof head);
  std::vector<u64> chunk(head[2] / 8 + 1, ~0ull);  // what follows is not zero
  get(chunk.data(), head[2]);
  for (u32 k = 0; k < head[0]; k++) {
    const zstd::Stream s = zstd::read_entry(reinterpret_cast<const u8*>(chunk.data()), head[2], head[0], k, head[1]);
    put(&s, sizeof s);
  }
}

template <typename Word>
static void join(u32 words, u32 gap_planes, u32 deltas) {
  const u32 rows = (deltas + 7) / 8;
  std::vector<u64> planes((gap_planes + sizeof(Word)) * rows);
  get(planes.data(), 8 * planes.size());
  std::vector<Word> out(words);
  u32 good = 1, sum = 0;
  for (u32 i = 0; i < rows; i++) {
    u64 gap[4] = {0, 0, 0, 0}, value[sizeof(Word)];
    for (u32 k = 0; k < gap_planes; k++) gap[k] = planes[k * rows + i];
    for (u32 k = 0; k < sizeof(Word); k++) value[k] = planes[(gap_planes + k) * rows + i];
    for (u32 j = 0; j < 8 && 8 * i + j < deltas; j++) {
      sum = zstd::add_distance(sum, zstd::distance(gap_planes ? zstd::join<u32>(gap, j) : 0));
      const Word z = zstd::join<Word>(value, j);
      if (sum > words || (gap_planes && z == 0)) good = 0; else out[sum - 1] = unzigzag(z);
    }
  }
  put(&good, 4);
  if (good) put(out.data(), words * sizeof(Word));
}

int main() {
  for (u32 what, a[4]; get(&what, 4);) {
    if (what == 0) { directory(); continue; }
    get(a, sizeof a);
    if (a[0] == 1) join<u8>(a[1], a[2], a[3]);
    if (a[0] == 2) join<u16>(a[1], a[2], a[3]);
    if (a[0] == 4) join<u32>(a[1], a[2], a[3]);
    if (a[0] == 8) join<u64>(a[1], a[2], a[3]);
  }
}
