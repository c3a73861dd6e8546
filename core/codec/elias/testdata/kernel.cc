// Decodes elias blocks with the code of kernels/elias.cuh, built for the CPU.
//
// Reads requests from standard input until it ends; 32-bit words, little-endian:
// word bytes, words, bytes of bit strings, then struct Tables, the start of each
// of the 32 lanes and the end of the last, the base and the bit strings, each
// padded to 4 bytes. Answers with 1 or 0 for well formed or not, the number of
// deltas, and the target.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "elias.cuh"

static bool read_words(void* p, size_t n) { return fread(p, 4, n, stdin) == n; }

template <typename Word>
static void answer(u32 words, u32 string_bytes) {
  elias::Tables tables;
  u32 starts[elias::kLanes + 1];
  const size_t padded = (words * sizeof(Word) + 3) / 4;
  std::vector<u32> base(padded), strings(string_bytes / 4), target(padded);
  if (!read_words(&tables, sizeof(tables) / 4) || !read_words(starts, elias::kLanes + 1) ||
      !read_words(base.data(), base.size()) || !read_words(strings.data(), strings.size())) {
    exit(1);
  }
  elias::Block<Word> b;
  b.base = reinterpret_cast<const Word*>(base.data());
  b.dst = reinterpret_cast<Word*>(target.data());
  b.words = words;
  b.aligned = false;
  u32 good = 1, deltas = 0;
  for (u32 lane = 0; lane < elias::kLanes; lane++) {
    good &= elias::decode_lane(b, lane, tables, strings.data(), (u32)strings.size(), starts[lane], starts[lane + 1], deltas);
  }
  fwrite(&good, 4, 1, stdout);
  fwrite(&deltas, 4, 1, stdout);
  fwrite(target.data(), 4, target.size(), stdout);
}

int main() {
  u32 head[3];
  while (read_words(head, 3)) {
    switch (head[0]) {
      case 1: answer<u8>(head[1], head[2]); break;
      case 2: answer<u16>(head[1], head[2]); break;
      case 4: answer<u32>(head[1], head[2]); break;
      case 8: answer<u64>(head[1], head[2]); break;
      default: return 1;
    }
  }
  return 0;
}
