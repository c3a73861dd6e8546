// Decodes prefix chunks with the code of kernels/prefix.cuh, built for the CPU:
// lane after lane, as a warp does at once. -DADD=F32 and the like build it for
// the add residual, -DQUANT=quant::kBF16 for quantised bases without zero
// points: in place of the base then come its QuantBase, codes and scales.
//
// Reads requests from standard input until it ends: struct Request, the
// expanded tables, the chunk and the base, each padded to 4 bytes. Answers with
// 1 or 0 for well formed or not, and the target. Everything lies in memory of
// exactly its size, so that the sanitizers see what goes further.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "prefix.cuh"

using namespace prefix;

struct Request {
  u32 word_bytes, words, table_bytes, chunk_bytes;
  u32 has_base, in_place;
  u32 data_shift;              // 32-bit words that the chunk lies behind a multiple of 16 bytes
  u32 base_shift, dst_shift;   // words
  u32 room_words;              // of shared memory, for a block
  u32 queue_bytes;             // that the host counts for rows
};

static bool read_bytes(void* p, size_t n) {
  u32 padding = 0;
  return fread(p, 1, n, stdin) == n && fread(&padding, 1, -n & 3, stdin) == (-n & 3);
}

// n bytes that lie `shift` bytes behind a multiple of 16, which malloc gives.
struct Memory {
  std::unique_ptr<u8, void (*)(void*)> all;
  u8* p;
  Memory(size_t n, size_t shift) : all(static_cast<u8*>(malloc(n + shift)), free), p(all.get() + shift) {}
};

// One block, as decode_block of kernels/prefix.cu.
template <typename Word>
static bool decode_block(Block<Word>& b, Cursor& c, const Tables& tables, const Decoding& d, u32 room_words) {
  b.sign_extended = tables.sign_extended;
  if (!take_planes(c, b)) return false;
  const u32 copied = min_u32(c.left, room_words);
  Memory room(4 * (copied + 3), 0), rows(4 * Shape<Word>::kQueueWords, 0);
  std::vector<Queue<Word>> queue;
  for (u32 lane = 0; lane < kLanes; lane++) {
    stage(reinterpret_cast<u32*>(room.p), c.data, copied, lane, kLanes);
    queue.emplace_back(reinterpret_cast<u32*>(rows.p), lane);
    if (room_words > 0 && is_aligned(b) && b.words >= Shape<Word>::kRow) {
      queue[lane].start(b, b.words / Shape<Word>::kRow, lane * Shape<Word>::kWords);
    }
  }
  const u32* copy = reinterpret_cast<u32*>(room.p) + stage_shift(c.data);
  Head h;
  if (!take_head(c, copied >= min_u32(c.left, kMostHead) ? copy : c.data, b, h)) return false;
  u32 start[kLanes + 1] = {0};
  for (u32 lane = 0; lane < kLanes; lane++) start[lane + 1] = start[lane] + lane_bits(h, lane);
  Parts p;
  if (!take_strings(c, b, start[kLanes], p)) return false;
  const bool near = c.used <= copied && is_aligned(b) && d.index == kIndex;
  const u32* from = near ? copy : c.data;
  set_exceptions(b, from, p);
  c.next();
  if (p.string_words == 0) p.strings = 0, p.string_words = 1;
  bool good = true;
  for (u32 lane = 0; lane < kLanes; lane++) {
    good &= decode_lane<Word>(tables, b, lane, d, near, from + p.strings, p.string_words, start[lane], start[lane + 1],
                              queue[lane]);
  }
  if (!good) return false;
  for (u32 lane = 0; lane < kLanes; lane++) good &= finish_exceptions(b, lane);
  return good;
}

template <typename Word>
static void answer(const Request& r) {
#ifndef QUANT
  if (r.queue_bytes != 4 * Shape<Word>::kQueueWords) exit(4);
#endif
  const size_t bytes = r.words * sizeof(Word), padded = (bytes + 3) / 4 * 4;
  Memory tables(r.table_bytes, 0), data(r.chunk_bytes, 4 * r.data_shift), base(bytes, r.base_shift * sizeof(Word));
  Memory dst(bytes, r.dst_shift * sizeof(Word));
  if (!read_bytes(tables.p, r.table_bytes) || !read_bytes(data.p, r.chunk_bytes)) exit(1);
#ifdef QUANT
  quant::QuantBase q;
  if (!read_bytes(&q, sizeof(q))) exit(1);
  const size_t scale_bytes = (q.elems + q.group - 1) / q.group * (q.scale_type == quant::kF32 ? 4 : 2);
  Memory packed(q.packed_bytes, 0), scale(scale_bytes, 0);
  q.packed = reinterpret_cast<u32*>(packed.p), q.scale = scale.p, q.zero = nullptr;
  if (!read_bytes(packed.p, q.packed_bytes) || !read_bytes(scale.p, scale_bytes)) exit(1);
#else
  if (!read_bytes(base.p, bytes)) exit(1);
#endif
  memset(dst.p, 0x5a, bytes);
  Memory& to = r.in_place ? base : dst;

  const Tables& t = *reinterpret_cast<Tables*>(tables.p);
  if (sizeof(Tables) + 4 * t.words() != r.table_bytes) exit(2);
  Memory shared(4 * t.shared_words(), 0);
  const Decoding d(t, reinterpret_cast<u32*>(shared.p), r.words);  // the copy of some lane: all are the same
  d.stage_tables(t, t.behind(), 0, 1);
  Exceptions<Word> replaced;
  u32 good = parse_exceptions(data.p, r.chunk_bytes, r.words, replaced);
  Cursor c = {};
  if (good) {
    c.data = reinterpret_cast<u32*>(data.p + replaced.bytes);
    c.left = (r.chunk_bytes - replaced.bytes) / 4;
  }
  for (u32 done = 0; done < r.words && good; done += kBlockWords) {
    Block<Word> b;
    b.words = min_u32(r.words - done, kBlockWords);
    b.dst = reinterpret_cast<Word*>(to.p) + done;
#ifdef QUANT
    b.base = nullptr;
    b.quantised = &q;
    b.first = done;
    b.regular = quant::open_run<QUANT>(*b.quantised, b.first, b.words, b.run);
#else
    b.base = r.has_base ? reinterpret_cast<Word*>(base.p) + done : nullptr;
#endif
    b.aligned = ((reinterpret_cast<u64>(b.dst) | reinterpret_cast<u64>(b.base)) & 15) == 0;
    good = decode_block(b, c, t, d, r.room_words);
  }
  good = good && c.left == 0;
  for (u32 i = 0; i < replaced.count && good; i++) {
    good = good_exception(replaced, i, r.words);
    if (good) reinterpret_cast<Word*>(to.p)[replaced.at[i]] = exception_word(replaced, i);
  }
  fwrite(&good, 4, 1, stdout);
  fwrite(to.p, 1, bytes, stdout);
  const u32 zero = 0;
  fwrite(&zero, 1, padded - bytes, stdout);
}

int main() {
  Request r;
  while (fread(&r, sizeof(r), 1, stdin) == 1) {
    switch (r.word_bytes) {
#ifdef ADD
      case sizeof(ADD::Bits): answer<ADD::Bits>(r); break;
#else
      case 2: answer<u16>(r); break;
      case 4: answer<u32>(r); break;
#ifndef QUANT
      case 1: answer<u8>(r); break;
      case 8: answer<u64>(r); break;
#endif
#endif
      default: return 3;
    }
  }
  return 0;
}
