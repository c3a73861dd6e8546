// crc32c.cuh - CRC-32C (Castagnoli) of a chunk record and its data, computed
// by 32 lanes at once (core/container/FORMAT.md, "checksum").
//
// The message is seen as rows of 32 words of 32 bits; lane l has word l of each
// row, and a row is worth x^1024 =: y times the one behind it. Zeros in front
// of a message do not change it, so it is filled up from the front to whole
// blocks of 32 rows; the initial value is XORed into the first word.
//
// Folding needs neither tables nor shifts. Let P be the polynomial. Modulo P,
// P(y) = P(x^1024) = P(x)^1024 = 0, so y^32 is the sum of y^e over the lower
// terms x^e of P: a row may be taken away if its words are XORed into the 17
// rows that come 32 - e behind it, each word into that of its own lane. So long
// messages cost 17 XORs a word, in registers, and their last 32 rows remain.
// Those are reduced by Horner's rule with tables that multiply by y; lane l's
// remainder is multiplied by x^(32 (32 - l)); and the sum of all lanes is the
// remainder of the whole.
#pragma once

#include "common.cuh"

#ifdef __CUDACC__
#define TPDE_CONSTEXPR __device__ constexpr
#define TPDE_TABLE static __device__ constexpr
#else
#define TPDE_CONSTEXPR constexpr
#define TPDE_TABLE static constexpr
#endif

namespace crc32c {

const u32 kPolynomial = 0x82f63b78u;  // reflected: bit 31 - e is x^e; x^32 is not in it
const u32 kRows = 32;                 // of a block: the degree of the polynomial
const u32 kHead = sizeof(Record) / 4;  // words of the record
const u32 kChecksumWord = 5;           // of the record: counts as zero

// a * b modulo the polynomial, both reflected.
TPDE_CONSTEXPR u32 multiply(u32 a, u32 b) {
  u32 sum = 0;
  for (u32 bit = 0x80000000u; bit; bit >>= 1) {
    if (a & bit) sum ^= b;
    b = b & 1 ? b >> 1 ^ kPolynomial : b >> 1;
  }
  return sum;
}

// x^n modulo the polynomial.
TPDE_CONSTEXPR u32 power(u32 n) {
  u32 result = 0x80000000u, square = 0x40000000u;  // 1 and x
  for (; n; n >>= 1) {
    if (n & 1) result = multiply(result, square);
    square = multiply(square, square);
  }
  return result;
}

struct Tables {
  u32 step[1024];  // entry 256 k + b is y times byte k of value b
  u32 last[32];    // x^(32 (32 - lane))
};

TPDE_CONSTEXPR Tables make_tables() {
  Tables t = {};
  const u32 y = power(1024);
  for (u32 k = 0; k < 4; k++) {
    for (u32 bit = 0; bit < 8; bit++) {
      // Products are linear: those of a byte are sums of those of its bits.
      const u32 product = multiply(1u << (8 * k + bit), y);
      for (u32 b = 0; b < 1u << bit; b++) t.step[256 * k + (1u << bit) + b] = t.step[256 * k + b] ^ product;
    }
  }
  for (u32 lane = 0; lane < 32; lane++) t.last[lane] = power(32 * (32 - lane));
  return t;
}

// Made by the compiler.
TPDE_TABLE Tables kTables = make_tables();

TPDE_FN u32 times_y(u32 v, const u32* step) {
  return step[v & 255] ^ step[256 + (v >> 8 & 255)] ^ step[512 + (v >> 16 & 255)] ^ step[768 + (v >> 24)];
}

// Takes row k of a block away and puts a row of the next block in its place. k
// is known to the compiler.
TPDE_FN void fold(u32 (&row)[kRows], u32 k, u32 next) {
  const u32 v = row[k];
  row[k] = next ^ v;
#pragma unroll
  for (u32 e = 1; e < kRows; e++) {
    if (kPolynomial >> (31 - e) & 1) row[(k - e) % kRows] ^= v;
  }
}

// Word `at` of the message: the record, then the data.
TPDE_FN u32 word_of(const u32* record, const u32* data, u32 at) {
  const u32 w = *(at >= kHead ? data + (at - kHead) : record + at);
  return at == 0 ? ~w : at == kChecksumWord ? 0 : w;
}

// The remainder of lane's share of the message. `step` is a copy of
// kTables.step, where look-ups are fast; `last` is kTables.last[lane].
TPDE_FN u32 lane_sum(u32 lane, const u32* record, const u32* data, u32 data_words, const u32* step, u32 last) {
  const u32 block = 32 * kRows;
  const u32 total = kHead + data_words;
  const u32 blocks = (total + block - 1) / block;
  const u32 lead = blocks * block - total;  // zeros in front
  u32 row[kRows];
#pragma unroll
  for (u32 k = 0; k < kRows; k++) {
    const u32 i = 32 * k + lane;
    row[k] = i < lead ? 0 : word_of(record, data, i - lead);
  }
  for (u32 b = 1; b < blocks; b++) {
    u32 next[kRows];  // all loads are on their way before the first is used
    const u32 first = b * block + lane - lead;
    if (b == 1) {  // the record may end in it
#pragma unroll
      for (u32 k = 0; k < kRows; k++) next[k] = word_of(record, data, first + 32 * k);
    } else {
#pragma unroll
      for (u32 k = 0; k < kRows; k++) next[k] = data[first + 32 * k - kHead];
    }
#pragma unroll
    for (u32 k = 0; k < kRows; k++) fold(row, k, next[k]);
  }
  const u32 empty = blocks == 1 ? lead / 32 : 0;  // rows of zeros in front of a short message
  u32 sum = 0;
#pragma unroll
  for (u32 k = 0; k < kRows; k++) {
    if (k >= empty) sum = times_y(sum, step) ^ row[k];
  }
  return multiply(sum, last);
}

}  // namespace crc32c
