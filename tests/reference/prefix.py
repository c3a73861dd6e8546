"""The prefix codec: core/codec/prefix/FORMAT.md."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from .bits import BitReader, ByteReader, require, strictly_ascending
from .dtypes import Dtype
from .interval import IntervalCode, read_code

BLOCK = 65536
LANES = 32


@dataclass
class Tables:
    shift: int
    first_keys: list[int]
    codes: list[IntervalCode]


def coded_bits(dtype: Dtype) -> int:
    return min(dtype.word_bits, 16)


def planes(dtype: Dtype) -> int:
    """The number of 16-bit planes below the coded part."""
    return dtype.word_bits // 16 - 1 if dtype.name in ("F32", "C64", "F64") else 0


def is_low_part(dtype: Dtype) -> bool:
    """Whether the coded part is the low bits of the residual word, not the high bits of the target word."""
    return dtype.word_bits > 16 and not planes(dtype)


def parse_tables(data: bytes, dtype: Dtype) -> Tables:
    reader = BitReader(data)
    size = coded_bits(dtype)
    contexts = reader.read(6) + 1
    shift, first_keys = 0, [0]
    if contexts > 1:
        require(dtype.is_float, "several contexts, but words without keys")
        shift = reader.read(4)
        require(shift <= size - 1, "shift is too large")
        key_bits = size - 1 - shift
        require(key_bits <= 12, "keys have more than 12 bits")
        for _ in range(contexts - 1):
            first_keys.append(first_keys[-1] + 1 + reader.gamma(0))
            require(first_keys[-1] < 1 << key_bits, "a first key is too large")
    codes = [read_code(reader, size) for _ in range(contexts)]
    reader.pad(8)
    reader.finish()
    for code in codes:
        require(all(s.length + s.plain <= 24 for s in code.symbols), "a code with its plain bits is too long")
    require(contexts << max(code.longest for code in codes) <= 16384, "a decoder's table would be too large")
    return Tables(shift, first_keys, codes)


def decode_chunk(tables: Tables, data: bytes, base: list[int], deltas: int, dtype: Dtype) -> list[int]:
    """Returns the residual words of a chunk."""
    require(deltas == len(base), "every word is stored, but the deltas are not the words")
    target: list[int] = []
    for first in range(0, len(base), BLOCK):
        words, data = _decode_block(tables, data, base[first : first + BLOCK], dtype)
        target += words
    require(not data, "bytes follow the last block")
    ring = 1 << dtype.word_bits
    return [(new - old) % ring for new, old in zip(target, base, strict=True)]


def lane_words(lane: int, count: int, dtype: Dtype) -> list[int]:
    """The words of a block of count words that a lane owns."""
    group = 16 if dtype.word_bits == 8 else 8
    rows = range(group * lane, count, LANES * group)
    return [word for first in rows for word in range(first, min(first + group, count))]


def _decode_block(tables: Tables, data: bytes, base: list[int], dtype: Dtype) -> tuple[list[int], bytes]:
    """Returns the target words and the data behind the block."""
    count = len(base)
    reader = ByteReader(data)
    low_bits = [0] * count
    for plane in range(planes(dtype)):
        for word, number in enumerate(reader.numbers(2, count)):
            low_bits[word] |= number << (16 * plane)
        reader.pad(16)

    head = reader.number(4)
    least, width, exceptions = head & 0xFFFF, head >> 16 & 31, head >> 21
    require(width <= 16, "the lane table is too wide")
    if exceptions == 2047:
        exceptions = reader.number(4)
        require(exceptions >= 2047, "a number of exceptions is longer than needed")
    require(exceptions <= count, "more exceptions than words")
    table = BitReader(reader.take(4 * width))
    lengths = [least + table.read(width) for _ in range(LANES)]

    strings = reader.take((sum(lengths) + 7) // 8)
    require(BitReader(strings, sum(lengths)).read(-sum(lengths) % 8) == 0, "padding is not zero")
    reader.pad(4)
    target = [0] * count
    start = 0
    for lane, length in enumerate(lengths):
        bits = BitReader(strings, start, start + length)
        for word in lane_words(lane, count, dtype):
            target[word] = _read_word(tables, bits, base[word], dtype) | low_bits[word]
        bits.finish()
        start += length

    positions = reader.numbers(2, exceptions)
    reader.pad(4)
    require(strictly_ascending(positions), "exceptions do not ascend")
    require(all(position < count for position in positions), "an exception is beyond the block")
    for position, word in zip(positions, reader.numbers(dtype.word_bytes, exceptions), strict=True):
        target[position] = word
    reader.pad(16 if planes(dtype) else 4)
    return target, data[reader.position :]


def code_of(tables: Tables, base: int, dtype: Dtype) -> IntervalCode:
    """The code of the context of a base word."""
    size, key = coded_bits(dtype), 0
    if dtype.is_float:
        part = base >> (dtype.word_bits - size)
        key = (part & ((1 << (size - 1)) - 1)) >> tables.shift
    return tables.codes[bisect_right(tables.first_keys, key) - 1]


def _read_word(tables: Tables, bits: BitReader, base: int, dtype: Dtype) -> int:
    """A target word, without its planes."""
    size = coded_bits(dtype)
    residual = code_of(tables, base, dtype).read(bits)
    if is_low_part(dtype):
        signed = residual - (1 << size) if residual >> (size - 1) else residual
        return (base + signed) % (1 << dtype.word_bits)
    high = dtype.word_bits - size  # bits below the coded part
    return ((base >> high) + residual) % (1 << size) << high
