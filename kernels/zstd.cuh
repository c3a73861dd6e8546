// zstd.cuh - the zstd codec (core/codec/zstd/FORMAT.md) around nvCOMP, which
// decompresses the frames: reading directories and frame headers before it,
// gaps and values of byte planes after it. All of it compiles for the host.
#pragma once

#include "batch.cuh"
#include "residual.cuh"

namespace zstd {

const u32 kMaxPlanes = 12;  // 4 of gaps, 8 of values

// What a plane is. kBad is anything that no packer writes.
enum Kind : u32 { kBad = 0, kStored, kFrame, kFill };

// Where the planes of a chunk go, made on the host: buffers and slots are those
// of all chunks before it in the tensor. A slot is an entry of nvCOMP's batch.
struct Place {
  u64 buffer;  // bytes; each plane takes `deltas` rounded up to 16
  u32 slot;    //
  u32 planes;  // 0 without deltas, the word's bytes if dense, else also those of a gap
};
static_assert(sizeof(Place) == 16, "layout is shared with the host");

// A plane as it is joined.
struct Plane {
  const u8* data;  // 8-byte aligned: in the blob if stored, in scratch if a frame
  u32 kind;
  u32 fill;  // the byte, if kFill
};
static_assert(sizeof(Plane) == 16, "scratch is laid out by the host");

// The batch for nvCOMP and what goes with it, arrays of one entry a slot in
// scratch.
struct Slots {
  const u8** frames;
  u64* frame_bytes;
  u8** buffers;
  u64* buffer_bytes;
  u64* actual_bytes;  // nvCOMP writes it
  Plane* planes;
  u32* statuses;  // nvCOMP writes it: 0 is success
};

// A run of chunks of a tensor: records, tables and status of the Item are
// those of the first chunk of the run; tables are its Places.
struct ZstdItem : Item {
  u64 buffers;  // plus Place::buffer is the address of a chunk's buffers
  u32 slots;    // plus Place::slot, modulo 2^32, is the number of its first slot
  u32 checked;  // status holds the result of crc32c_check
};

const u32 kMaxZstdItems = (4096 - 8 - sizeof(Slots)) / sizeof(ZstdItem);

struct ZstdBatch {
  u32 items;
  u32 reserved;
  Slots slots;
  ZstdItem item[kMaxZstdItems];
};
static_assert(sizeof(ZstdBatch) <= 4096, "kernel arguments are at most 4 KiB");

// A directory entry: its kind, and the size and place of its stream in the
// chunk, or the byte that fills the plane.
struct Stream {
  u32 kind;
  u32 value;
  u32 at;
};

const u32 kMaxBlockBytes = 128 << 10;

// Whether `bytes` bytes are laid out as exactly one frame of `content` bytes.
// What the blocks hold is left to nvCOMP; sizes are all that it may trust.
TPDE_FN bool good_frame(const u8* p, u32 bytes, u32 content) {
  const u32 code = content < 256 ? 0 : content < 256 + 65536 ? 1 : 2;
  const u32 size = code == 0 ? content : code == 1 ? content - 256 : content;
  u32 at = 5 + (1u << code);
  if (bytes < at) return false;
  bool good = p[0] == 0x28 && p[1] == 0xb5 && p[2] == 0x2f && p[3] == 0xfd && p[4] == (0x20 | code << 6);
  for (u32 i = 0; i < 1u << code; i++) good = good && p[5 + i] == (size >> 8 * i & 0xff);
  if (!good) return false;
  u32 plain = 0;  // bytes of content in blocks without compression
  for (;;) {
    if (bytes - at < 3) return false;
    const u32 h = p[at] | p[at + 1] << 8 | p[at + 2] << 16;
    const u32 kind = h >> 1 & 3, length = h >> 3;
    if (kind == 3 || length > kMaxBlockBytes) return false;
    if (kind < 2 && (plain += length) > content) return false;
    const u32 stored = kind == 1 ? 1 : length;  // 1 is a repeated byte
    at += 3;
    if (stored > bytes - at) return false;
    at += stored;
    if (h & 1) return at == bytes;
  }
}

TPDE_FN u64 pad8(u64 n) { return (n + 7) / 8 * 8; }

// Reads entry k of the directory of a chunk of `bytes` bytes, 8-byte aligned,
// with `planes` planes of `deltas` bytes. Together, the entries cover all that
// there is to check of a chunk.
TPDE_FN Stream read_entry(const u8* chunk, u32 bytes, u32 planes, u32 k, u32 deltas) {
  const Stream bad = {kBad, 0, 0};
  const u32* entry = reinterpret_cast<const u32*>(chunk);
  u64 at = pad8(4 * planes);
  if (bytes < at) return bad;
  for (u32 i = 0; i < k; i++) {
    if (entry[i] >> 30 != 2) at += pad8(entry[i] & 0x3fffffff);
  }
  const u32 kind = entry[k] >> 30, value = entry[k] & 0x3fffffff;
  u64 end = at;
  if (kind == 2) {
    if (value > 255) return bad;
  } else {
    end += pad8(value);
  }
  const bool last = k == planes - 1;
  if (kind == 3 || end > bytes || (last && end != bytes)) return bad;
  if (last && planes % 2 == 1 && entry[planes] != 0) return bad;
  if (kind == 2) return {kFill, value, (u32)at};
  for (u64 i = at + value; i < end; i++) {
    if (chunk[i] != 0) return bad;
  }
  if (kind == 0) return {value == deltas ? kStored : kBad, value, (u32)at};
  return {good_frame(chunk + at, value, deltas) ? kFrame : kBad, value, (u32)at};
}

// Adds distances; what is too far for any chunk stays there.
const u32 kFar = 1u << 30;
TPDE_FN u32 add_distance(u32 a, u32 b) { return min_u32(a + b, kFar); }

// From a changed word, or the start, to the next one.
TPDE_FN u32 distance(u32 gap) { return min_u32(gap, kFar - 1) + 1; }

// Integer j of up to eight, whose byte k is byte j of planes[k].
template <typename Integer, u32 Planes>
TPDE_FN Integer join(const u64 (&planes)[Planes], u32 j) {
  Integer v = 0;
#pragma unroll
  for (u32 k = 0; k < Planes; k++) v = (Integer)(v | (Integer)(planes[k] >> 8 * j & 0xff) << 8 * k);
  return v;
}

}  // namespace zstd
