"""Makes an index with right sums for chunks that a test made or damaged."""

from __future__ import annotations

from dataclasses import replace

from .container import MAGIC, VERSION, Chunk, Index, chunk_checksum
from .dtypes import DTYPES
from .sums import crc32c


def uvarint(number: int) -> bytes:
    octets = []
    while number >= 0x80:
        octets.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*octets, number])


def seal(index: Index, chunks: list[tuple[bytes, int]]) -> tuple[bytes, bytes]:
    """Returns index and blob of a tensor like `index`, made of these chunks: their data and deltas."""
    records = b""
    offset = first_word = 0
    for data, deltas in chunks:
        words = min(index.chunk_words, index.words - first_word)
        chunk = Chunk(offset, len(data), words, deltas, 0, first_word)
        records += chunk_checksum(chunk, index.dtype, data).to_bytes(4, "little")
        records += uvarint(len(data) // 4) + uvarint(deltas)
        offset += len(data)
        first_word += words
    return index_bytes(replace(index, blob_bytes=offset), len(chunks), records), b"".join(data for data, _ in chunks)


def index_bytes(index: Index, chunks: int, records: bytes) -> bytes:
    number = {dtype.name: code for code, dtype in DTYPES.items()}[index.dtype.name]
    head = MAGIC + VERSION.to_bytes(2, "little")
    head += bytes([number, index.codec, index.residual, index.has_base, len(index.shape), 0])
    head += b"".join(field.to_bytes(8, "little") for field in (index.words, index.blob_bytes, index.chunk_words))
    head += b"".join(field.to_bytes(4, "little") for field in (chunks, len(index.tables), len(records)))
    tail = index.base_digest + index.target_digest + b"".join(size.to_bytes(8, "little") for size in index.shape)
    tail += index.tables + records
    return head + crc32c(head + bytes(4) + tail).to_bytes(4, "little") + tail
