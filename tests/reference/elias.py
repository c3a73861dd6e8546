"""The elias codec: core/codec/elias/FORMAT.md."""

from __future__ import annotations

from dataclasses import dataclass

from .bits import BitReader, ByteReader, require, strictly_ascending, zigzag_inverse
from .dtypes import Dtype

BLOCK = 1 << 19
LANES = 32
DENSE, SIGN, VERBATIM = 3, 0xFE, 0xFF
EXPONENTS = {
    "BF16": (7, 31),
    "F16": (10, 31),
    "F32": (23, 31),
    "C64": (23, 31),
    "F64": (52, 31),
    "F8_E4M3": (3, 15),
    "F8_E4M3FNUZ": (3, 15),
    "F8_E5M2": (2, 31),
    "F8_E5M2FNUZ": (2, 31),
}


@dataclass
class Tables:
    gap_parameters: list[int]
    contexts: list[tuple[int, int]]  # class and value code of each
    shift: int
    mask: int

    def context_of(self, base: int) -> tuple[int, int]:
        return self.contexts[base >> self.shift & self.mask]


def parse_tables(data: bytes, dtype: Dtype) -> Tables:
    reader = ByteReader(data)
    classes = reader.number(1)
    require(classes <= 3, "too many gap classes")
    parameters = reader.numbers(1, classes)
    require(all(parameter <= 14 for parameter in parameters), "a gap parameter is too large")
    shift, mask = EXPONENTS.get(dtype.name, (0, 0))
    contexts: list[tuple[int, int]] = []
    while len(contexts) <= mask:
        run, value_code = reader.number(1), reader.number(1)
        which = run >> 5
        require(which < classes or which == DENSE, "a class that is not there")
        allowed = value_code < dtype.word_bits or value_code == VERBATIM or (value_code == SIGN and which != DENSE)
        require(allowed, "a value code that is not allowed")
        contexts += [(which, value_code)] * ((run & 31) + 1)
    require(len(contexts) == mask + 1, "a context is named twice")
    reader.finish()
    return Tables(parameters, contexts, shift, mask)


def decode_chunk(tables: Tables, data: bytes, base: list[int], deltas: int, dtype: Dtype) -> list[int]:
    """Returns the residual words of a chunk."""
    residual: list[int] = []
    for first in range(0, len(base), BLOCK):
        words, data = _decode_block(tables, data, base[first : first + BLOCK], dtype)
        residual += words
    require(not data, "bytes follow the last block")
    require(deltas == sum(word != 0 for word in residual), "the deltas are not the words that change")
    return residual


def lane_words(lane: int, count: int, dtype: Dtype) -> list[int]:
    """The words of a block of count words that a lane owns."""
    group = 128 // dtype.word_bits
    rows = range(group * lane, count, LANES * group)
    return [word for first in rows for word in range(first, min(first + group, count))]


def _decode_block(tables: Tables, data: bytes, base: list[int], dtype: Dtype) -> tuple[list[int], bytes]:
    """Returns the residual words and the data behind the block."""
    count = len(base)
    reader = ByteReader(data)
    head = reader.number(4)
    least, width, exceptions = head & 0xFFFFFF, head >> 24 & 127, head >> 31
    require(width <= 24, "the lane table is too wide")
    if exceptions:
        exceptions = reader.number(4)
        require(1 <= exceptions <= min(BLOCK, count), "not that many exceptions")
    table = BitReader(reader.take(4 * width))
    lengths = [least + table.read(width) for _ in range(LANES)]

    strings = reader.take((sum(lengths) + 7) // 8)
    require(BitReader(strings, sum(lengths)).read(-sum(lengths) % 8) == 0, "padding is not zero")
    reader.pad(4)
    residual = [0] * count
    start = 0
    for lane, length in enumerate(lengths):
        bits = BitReader(strings, start, start + length)
        _decode_lane(tables, bits, base, lane_words(lane, count, dtype), residual, dtype)
        bits.finish()
        start += length

    positions = reader.numbers(4, exceptions)
    words = reader.numbers(dtype.word_bytes, exceptions)
    reader.pad(4)
    require(strictly_ascending(positions), "exceptions do not ascend")
    require(all(position < count for position in positions), "an exception is beyond the block")
    for position, word in zip(positions, words, strict=True):
        require(word != 0, "an exception that changes nothing")
        require(residual[position] == 0, "an exception that has a value")
        residual[position] = word
    return residual, data[reader.position :]


def _decode_lane(
    tables: Tables, bits: BitReader, base: list[int], words: list[int], residual: list[int], dtype: Dtype
) -> None:
    gaps = [bits.gamma(parameter) for parameter in tables.gap_parameters]
    for word in words:
        which, value_code = tables.context_of(base[word])
        if which == DENSE:
            residual[word] = _read_value(bits, value_code, True, dtype)
        elif gaps[which] > 0:
            gaps[which] -= 1
        else:
            residual[word] = _read_value(bits, value_code, False, dtype)
            require(residual[word] != 0, "an event that changes nothing")
            gaps[which] = bits.gamma(tables.gap_parameters[which])
    require(not any(gaps), "a gap leads beyond the lane")


def _read_value(bits: BitReader, value_code: int, dense: bool, dtype: Dtype) -> int:
    ring = 1 << dtype.word_bits
    if value_code == SIGN:
        return ring - 1 if bits.read(1) else 1
    if value_code == VERBATIM:
        return bits.read(dtype.word_bits)
    zeros = 0
    while zeros < 8 and bits.read(1) == 0:
        zeros += 1
    if zeros == 8:
        return bits.read(dtype.word_bits)
    number = ((1 << (zeros + value_code)) | bits.read(zeros + value_code)) - (1 << value_code)
    number = (number if dense else number + 1) % ring
    return zigzag_inverse(number) % ring
