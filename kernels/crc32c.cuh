// crc32c.cuh - CRC-32C (Castagnoli) of a chunk record and its data, computed
// by 32 lanes at once (core/container/FORMAT.md, "checksum").
//
// The message is seen as 32-bit words. Lane l takes words l, l+32, l+64, ...:
// its remainder is multiplied by x^1024 between two of its words, and at the
// end by x^(32 (32 - l)), after which the sum of all lanes is the remainder of
// the whole. Zeros in front of a message do not change it, so the first row is
// filled up from the front; the initial value is XORed into the first word.
#pragma once

#include "common.cuh"

namespace crc32c {

const u32 kPolynomial = 0x82f63b78u;  // reflected: bit 31 is x^0

// a * b modulo the polynomial, both reflected.
TPDE_FN u32 multiply(u32 a, u32 b) {
  u32 sum = 0;
  for (u32 bit = 0x80000000u; bit; bit >>= 1) {
    if (a & bit) sum ^= b;
    b = b & 1 ? b >> 1 ^ kPolynomial : b >> 1;
  }
  return sum;
}

// x^n modulo the polynomial.
TPDE_FN u32 power(u32 n) {
  u32 result = 0x80000000u, square = 0x40000000u;  // 1 and x
  for (; n; n >>= 1) {
    if (n & 1) result = multiply(result, square);
    square = multiply(square, square);
  }
  return result;
}

// Entry i of the tables that multiply by x^1024: entry 256 k + b is the
// product for byte k of value b. 1024 entries in all.
TPDE_FN u32 table_entry(u32 i) { return multiply((i & 255) << (i >> 8) * 8, power(1024)); }

TPDE_FN u32 times_x1024(u32 v, const u32* table) {
  return table[v & 255] ^ table[256 + (v >> 8 & 255)] ^ table[512 + (v >> 16 & 255)] ^ table[768 + (v >> 24)];
}

// The remainder of lane's share of the message: `head` words of `first`, then
// `count` words of `rest`.
TPDE_FN u32 lane_sum(u32 lane, const u32* first, u32 head, const u32* rest, u32 count, const u32* table) {
  const u32 total = head + count;
  const u32 lead = (0u - total) & 31;  // zeros in front
  u32 sum = 0;
  for (u32 i = lane; i < total + lead; i += 32) {
    sum = times_x1024(sum, table);
    if (i >= lead) {
      const u32 at = i - lead;
      u32 w = at < head ? first[at] : rest[at - head];
      sum ^= at == 0 ? ~w : w;
    }
  }
  return multiply(sum, power(32 * (32 - lane)));
}

}  // namespace crc32c
