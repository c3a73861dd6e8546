"""The raw codec: core/codec/raw/FORMAT.md."""

from __future__ import annotations

from .bits import ByteReader, require, strictly_ascending
from .dtypes import Dtype


def parse_tables(data: bytes, dtype: Dtype) -> None:
    require(not data, "the raw codec has no tables")


def decode_chunk(tables: None, data: bytes, base: list[int], deltas: int, dtype: Dtype) -> list[int]:
    """Returns the residual words of a chunk."""
    count, reader = len(base), ByteReader(data)
    if deltas == count:
        residual = reader.numbers(dtype.word_bytes, count)
    else:
        positions = reader.numbers(4, deltas)
        reader.pad(8)
        values = reader.numbers(dtype.word_bytes, deltas)
        require(strictly_ascending(positions), "word numbers do not ascend")
        require(all(position < count for position in positions), "a word number is beyond the chunk")
        require(all(values), "a residual word of zero")
        residual = [0] * count
        for position, value in zip(positions, values, strict=True):
            residual[position] = value
    reader.pad(8)
    reader.finish()
    return residual
