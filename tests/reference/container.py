"""The tensor format: core/container/FORMAT.md. All codecs but zstd."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from . import elias, floats, prefix, raw, rice
from .bits import ByteReader, require, strictly_ascending
from .dtypes import DTYPES, Dtype
from .sums import crc32c, digest

CODECS = {1: raw, 3: elias, 4: prefix, 5: rice}
MAGIC = b"TPDEIDX\0"
VERSION = 1
LARGEST_CHUNK = 32 << 20


@dataclass
class Chunk:
    """A flat record."""

    offset: int
    size: int
    words: int
    deltas: int
    checksum: int
    first_word: int


@dataclass
class Index:
    dtype: Dtype
    codec: int
    residual: int
    has_base: bool
    shape: list[int]
    words: int
    blob_bytes: int
    chunk_words: int
    base_digest: bytes
    target_digest: bytes
    tables: bytes
    chunks: list[Chunk]


def parse_index(data: bytes) -> Index:
    reader = ByteReader(data)
    require(reader.take(8) == MAGIC, "no index")
    require(reader.number(2) == VERSION, "a version that is not known")
    dtype_code, codec, residual, flags, dimensions, reserved = (reader.number(1) for _ in range(6))
    require(dtype_code in DTYPES, "a dtype that is not known")
    dtype = DTYPES[dtype_code]
    require(codec in (1, 2, 3, 4, 5), "a codec that is not known")
    require(residual in (0, 1), "a residual that is not known")
    require(residual == 0 or dtype.is_float, "the add residual is for floats")
    require(flags <= 1 and reserved == 0, "reserved bits are not zero")
    require(dimensions <= 32, "too many dimensions")
    words, blob_bytes, chunk_words = (reader.number(8) for _ in range(3))
    number_of_chunks, table_bytes, record_bytes, checksum = (reader.number(4) for _ in range(4))
    require(crc32c(data[:52] + bytes(4) + data[56:]) == checksum, "the checksum of the index differs")
    base_digest, target_digest = reader.take(16), reader.take(16)
    require(flags == 1 or not any(base_digest), "a digest of no base")
    shape = reader.numbers(8, dimensions)
    require(words * dtype.word_bits == prod(shape) * dtype.element_bits, "the words are not those of the shape")
    require(words < 1 << 64, "too many words")
    require(chunk_words * dtype.word_bytes <= LARGEST_CHUNK, "chunks are too large")
    require((chunk_words == 0) == (words == 0), "chunks of no words, or no words but chunks")
    require(number_of_chunks == (-(-words // chunk_words) if words else 0), "not as many chunks as words need")
    require(table_bytes <= 65536, "the tables are too large")
    tables, records = reader.take(table_bytes), ByteReader(reader.take(record_bytes))
    reader.finish()

    chunks: list[Chunk] = []
    offset = 0
    for number in range(number_of_chunks):
        first_word = number * chunk_words
        count = min(chunk_words, words - first_word)
        checksum, size, deltas = records.number(4), 4 * records.uvarint(), records.uvarint()
        require(size <= 2 * count * (4 + dtype.word_bytes) + 1024, "a chunk has too many bytes")
        require(deltas <= count, "more deltas than words")
        chunks.append(Chunk(offset, size, count, deltas, checksum, first_word))
        offset += size
    records.finish()
    require(offset == blob_bytes, "the chunks do not fill the blob")
    sizes = words, blob_bytes, chunk_words
    return Index(dtype, codec, residual, flags == 1, shape, *sizes, base_digest, target_digest, tables, chunks)


def chunk_checksum(chunk: Chunk, dtype: Dtype, data: bytes) -> int:
    """The CRC-32C of the flat record with a zero checksum, and of the chunk's data."""
    sizes = ((chunk.offset, 8), (chunk.size, 4), (chunk.words * dtype.word_bytes, 4), (chunk.deltas, 4), (0, 4))
    record = b"".join(number.to_bytes(size, "little") for number, size in (*sizes, (chunk.first_word, 8)))
    return crc32c(record + data)


def words_of(data: bytes, dtype: Dtype) -> list[int]:
    return ByteReader(data).numbers(dtype.word_bytes, len(data) // dtype.word_bytes)


def bytes_of(words: list[int], dtype: Dtype) -> bytes:
    return b"".join(word.to_bytes(dtype.word_bytes, "little") for word in words)


def reconstruct(
    base: bytes | None, index_map: bytes, blob: bytes, *, checksums: bool = True, digests: bool = True
) -> bytes:
    """Returns the bytes of the target. Raises CorruptError.

    checksums, digests: False leaves out those of the chunks, or those of base and target.
    """
    index = parse_index(index_map)
    dtype, size = index.dtype, index.words * index.dtype.word_bytes
    require(index.codec in CODECS, "a codec that this reader does not read")
    require((base is not None) == index.has_base, "a base where none was used, or none")
    require(base is None or len(base) == size, "a base of another size")
    require(len(blob) == index.blob_bytes, "a blob of another size")
    if base is not None and digests:
        require(digest(base) == index.base_digest, "another base")
    base_words = words_of(base, dtype) if base is not None else [0] * index.words
    codec = CODECS[index.codec]
    tables = codec.parse_tables(index.tables, dtype)
    target: list[int] = []
    for chunk in index.chunks:
        data = blob[chunk.offset : chunk.offset + chunk.size]
        if checksums:
            require(chunk_checksum(chunk, dtype, data) == chunk.checksum, "the checksum of a chunk differs")
        part = base_words[chunk.first_word : chunk.first_word + chunk.words]
        if index.residual == 0:
            residual = codec.decode_chunk(tables, data, part, chunk.deltas, dtype)
            target += [(old + change) % (1 << dtype.word_bits) for old, change in zip(part, residual, strict=True)]
        else:
            exceptions, data = split_exceptions(data, chunk.words, dtype)
            residual = codec.decode_chunk(tables, data, part, chunk.deltas, dtype)
            new = floats.add(part, residual, dtype)
            for position, word in exceptions:
                new[position] = word
            target += new
    result = bytes_of(target, dtype)
    require(not digests or digest(result) == index.target_digest, "another target")
    return result


def split_exceptions(data: bytes, words: int, dtype: Dtype) -> tuple[list[tuple[int, int]], bytes]:
    """The exceptions of a chunk with the add residual, and the data of the codec."""
    reader = ByteReader(data)
    count = reader.number(4)
    positions = reader.numbers(4, count)
    targets = reader.numbers(dtype.word_bytes, count)
    reader.pad(8)
    require(strictly_ascending(positions), "exceptions do not ascend")
    require(all(position < words for position in positions), "an exception is beyond the chunk")
    return list(zip(positions, targets, strict=True)), data[reader.position :]
