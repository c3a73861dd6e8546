"""The format documents against the library.

tests/reference has readers that were written from the FORMAT.md files alone. Here they read what the library writes,
they and the library read what random writers make of the same documents, and both take or refuse the same damage.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch

import tpde
from reference import container, elias, floats, prefix, random_elias, random_prefix, random_rice, rice
from reference.bits import CorruptError
from reference.dtypes import DTYPES, Dtype
from reference.sealing import index_bytes, seal
from reference.sums import crc32c
from support import bits
from tpde._core import core

DTYPES_OF_TORCH = [
    torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.int8, torch.int32, torch.int64, torch.bool, torch.complex64,
]  # fmt: skip
CODECS = ["raw", "elias", "prefix", "rice"]
KINDS = ["same", "sparse", "dense", "random", "sign", "nan"]
RANDOM = {"elias": (3, elias, random_elias), "prefix": (4, prefix, random_prefix), "rice": (5, rice, random_rice)}
FORMAT = Path(__file__).parents[1] / "core" / "container" / "FORMAT.md"


def pair(dtype: torch.dtype, kind: str, count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A base like weights, and a target."""
    g = torch.Generator().manual_seed(1000 * count + seed)
    if dtype is torch.bool:
        base = torch.rand(count, generator=g) > 0.5
        rate = {"same": 0, "sparse": 0.02, "dense": 0.4}.get(kind, 0.9)
        return base, base ^ (torch.rand(count, generator=g) < rate)
    is_float = dtype.is_floating_point or dtype.is_complex
    wide = torch.complex128 if dtype.is_complex else torch.float64
    values = torch.randn(count, generator=g, dtype=wide) * (0.02 if is_float else 40)
    base = values.to(dtype)
    octets = base.clone().view(torch.uint8).reshape(count, dtype.itemsize)
    some = torch.rand(count, generator=g) < 0.1
    if kind == "sparse":
        octets[some, 0] ^= 1
    elif kind == "dense":
        noise = torch.randn(count, generator=g, dtype=wide)
        octets = (values + noise * (0.001 if is_float else 4)).to(dtype).view(torch.uint8).reshape(octets.shape)
    elif kind == "random":
        octets = torch.randint(0, 256, octets.shape, generator=g, dtype=torch.uint8)
    elif kind == "sign":
        octets[some, -1] ^= 0x80
    elif kind == "nan":
        octets[some] = 0xFF
        octets[some, 0] = torch.randint(0, 256, (int(some.sum()),), generator=g, dtype=torch.uint8)
    return base, octets.reshape(-1).view(dtype)


def octets_of(tensor: torch.Tensor | None) -> bytes | None:
    return None if tensor is None else bits(tensor).numpy().tobytes()


def encode(base: torch.Tensor | None, target: torch.Tensor, **options: object) -> tuple[bytes, bytes]:
    index_map, blob = tpde.encode(base, target, **options)
    return octets_of(index_map), octets_of(blob)


def by_library(base: bytes | None, index_map: bytes, blob: bytes, size: int) -> bytes | None:
    """What the library makes of a tensor of any dtype, without looking at digests; None if it refuses."""
    out = np.zeros(size // 8 + 1, np.uint64)  # aligned
    given = [np.frombuffer(part + bytes(8), np.uint8) for part in (base or b"", index_map, blob)]
    base_at, index_at, blob_at = (part.ctypes.data for part in given)
    if base is None:
        base_at = 0
    flags = core().SKIP_BASE_DIGEST | core().SKIP_TARGET_DIGEST
    sizes = len(base or b""), len(index_map), len(blob)
    try:
        core().reconstruct(out.ctypes.data, size, base_at, sizes[0], index_at, sizes[1], blob_at, sizes[2], flags, 1)
    except tpde.TpdeError:
        return None
    return out.tobytes()[:size]


def by_reader(base: bytes | None, index_map: bytes, blob: bytes, **options: bool) -> bytes | None:
    """What the reference reader makes of it, without looking at digests; None if it refuses."""
    try:
        return container.reconstruct(base, index_map, blob, digests=False, **options)
    except CorruptError:
        return None


def assert_agree(base: bytes | None, index_map: bytes, blob: bytes, size: int) -> bytes | None:
    read = by_reader(base, index_map, blob)
    assert by_library(base, index_map, blob, size) == read
    return read


def chunks_of(index: container.Index, blob: bytes) -> list[tuple[bytes, int]]:
    return [(blob[c.offset : c.offset + c.size], c.deltas) for c in index.chunks]


def flipped(rng: Random, data: bytes, among: int | None = None) -> bytes:
    """data with a bit flipped, if there is one, among the first bytes."""
    if not data:
        return data
    at = rng.randrange(min(len(data), among or len(data)))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def damaged(
    rng: Random, index: container.Index, chunks: list[tuple[bytes, int]], times: int
) -> Iterator[tuple[bytes, bytes]]:
    """Tensors like this one with small damage under right checksums: index and blob."""
    for _ in range(times):
        other, some = index, list(chunks)
        if some:
            number = rng.randrange(len(some))
            data, deltas = some[number]
            how = rng.choice(["bit", "bit", "head", "tables", "deltas", "grow", "shrink"])
            at = rng.randrange(len(data) // 4 + 1) * 4
            if how == "bit":
                data = flipped(rng, data)
            elif how == "head":
                data = flipped(rng, data, 12)
            elif how == "deltas":
                deltas = max(deltas + rng.choice([-1, 1]), 0)
            elif how == "grow":
                data = data[:at] + bytes(4) + data[at:]
            elif how == "shrink":
                data = data[:at] + data[at + 4 :]
            some[number] = data, deltas
            if how == "tables":
                other = replace(index, tables=flipped(rng, index.tables))
        yield seal(other, some)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", DTYPES_OF_TORCH, ids=str)
def test_reads_what_the_library_writes(codec, dtype):
    for kind in KINDS:
        for count, chunk_words in [(0, 0), (1, 0), (7, 0), (333, 0), (333, 100)]:
            base, target = pair(dtype, kind, count)
            for given in (base, None):
                index_map, blob = encode(given, target, codec=codec, chunk_words=chunk_words)
                assert container.reconstruct(octets_of(given), index_map, blob) == octets_of(target)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", [d for d in DTYPES_OF_TORCH if d.is_floating_point or d.is_complex], ids=str)
def test_reads_the_add_residual(codec, dtype):
    for kind in KINDS:
        base, target = pair(dtype, kind, 150)
        index_map, blob = encode(base, target, codec=codec, residual="add")
        index = container.parse_index(index_map)
        assert index.residual == 1
        assert container.reconstruct(octets_of(base), index_map, blob) == octets_of(target)


@pytest.mark.parametrize(
    ("codec", "dtype", "count"),
    [
        ("prefix", torch.bfloat16, 65_536),
        ("prefix", torch.bfloat16, 65_537),
        ("prefix", torch.float32, 65_541),
        ("prefix", torch.int8, 131_075),
        ("prefix", torch.int64, 65_600),
        ("rice", torch.bfloat16, 65_536),
        ("rice", torch.bfloat16, 65_537),
        ("rice", torch.int64, 65_600),
        ("elias", torch.int8, (1 << 19) + 1),
    ],
    ids=str,
)
def test_reads_chunks_of_several_blocks(codec, dtype, count):
    base, target = pair(dtype, "sparse", count)
    target[-20:] = pair(dtype, "random", 20)[1]
    index_map, blob = encode(base, target, codec=codec, chunk_words=count)
    assert len(container.parse_index(index_map).chunks) == 1
    assert by_reader(octets_of(base), index_map, blob) == octets_of(target)


def test_checksum_of_every_chunk_byte():
    """A damaged byte of a chunk is found by both before its chunk is decoded."""
    rng = Random(1)
    for codec in CODECS:
        for dtype in DTYPES_OF_TORCH:
            base, target = pair(dtype, "dense", 40)
            index_map, blob = encode(base, target, codec=codec, chunk_words=25)
            for at in range(len(blob)):
                other = blob[:at] + bytes([blob[at] ^ rng.randrange(1, 256)]) + blob[at + 1 :]
                assert assert_agree(octets_of(base), index_map, other, len(octets_of(target))) is None


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", DTYPES_OF_TORCH, ids=str)
def test_agree_on_damage_that_checksums_do_not_show(codec, dtype):
    rng = Random(str(dtype))
    verdicts = set()
    for kind in KINDS:
        for count in (3, 70, 300):
            base, target = pair(dtype, kind, count)
            given, size = octets_of(base), len(octets_of(target))
            index_map, blob = encode(base, target, codec=codec, chunk_words=rng.choice([0, 130]))
            index = container.parse_index(index_map)
            chunks = chunks_of(index, blob)
            assert seal(index, chunks) == (index_map, blob)
            for other in damaged(rng, index, chunks, 12):
                verdicts.add(assert_agree(given, *other, size) is None)
            # And what the reader takes without checksums, the library takes with right ones.
            other = flipped(rng, blob)
            read = by_reader(given, index_map, other, checksums=False)
            assert read == by_library(given, *seal(index, chunks_of(index, other)), size)
    assert verdicts == {False, True}  # some damage makes another tensor


@pytest.mark.parametrize("codec", sorted(RANDOM))
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=lambda dtype: dtype.name)
def test_agree_on_what_random_writers_write(codec, dtype):
    number, module, writers = RANDOM[codec]
    rng = Random(f"{codec} {dtype.name}")
    for count in (1, 24, 258, 258, 516):
        given = random_base(rng, dtype, count) if rng.random() < 0.8 else None
        base = [0] * count if given is None else container.words_of(given, dtype)
        tables = writers.tables(rng, dtype)
        parsed = module.parse_tables(tables, dtype)
        chunk_words = rng.choice([count, 200])
        chunks, target = [], []
        for first in range(0, count, chunk_words):
            data, deltas, words = writers.chunk(rng, parsed, base[first : first + chunk_words], dtype)
            chunks.append((data, deltas))
            target += words
        size = count * dtype.word_bytes
        shape = [8 * size // dtype.element_bits]
        if 8 * size % dtype.element_bits:
            continue
        sums = bytes(16), bytes(16)
        has_base = given is not None
        index = container.Index(dtype, number, 0, has_base, shape, count, 0, chunk_words, *sums, tables, [])
        assert assert_agree(given, *seal(index, chunks), size) == container.bytes_of(target, dtype)
        for other in damaged(rng, index, chunks, 12):
            assert_agree(given, *other, size)


def random_base(rng: Random, dtype: Dtype, count: int) -> bytes:
    """Random words; the highest bytes have few values."""
    high = [rng.randrange(256) for _ in range(rng.choice([1, 2, 256]))]
    words = [rng.randbytes(dtype.word_bytes - 1) + bytes([rng.choice(high)]) for _ in range(count)]
    return b"".join(words)


@pytest.mark.parametrize("dtype", [d for d in DTYPES.values() if d.is_float], ids=lambda dtype: dtype.name)
def test_agree_on_sums_of_floats(dtype):
    rng = Random(dtype.name)
    count = 3000
    base, residual = random_base(rng, dtype, count), random_base(rng, dtype, count)
    exceptions = (0).to_bytes(8, "little")
    shape = [8 * len(base) // dtype.element_bits]
    index = container.Index(dtype, 1, 1, True, shape, count, 0, count, bytes(16), bytes(16), b"", [])
    sealed = seal(index, [(exceptions + residual, count)])
    by_both = by_library(base, *sealed, len(base)), by_reader(base, *sealed)
    parts = [container.words_of(part, dtype) for part in (base, residual, *by_both)]
    known = 0
    for old, change, *totals in zip(*parts, strict=True):
        if not floats.is_open(old, change, dtype):
            known += 1
            assert totals[0] == totals[1], f"{old:#x} + {change:#x}"
    assert known > count // 2


def test_agree_on_damaged_indexes():
    rng = Random(7)
    for codec in CODECS:
        base, target = (tensor.reshape(6, 10) for tensor in pair(torch.float16, "dense", 60))
        for given, residual in ((base, "bit"), (base, "add"), (None, "bit")):
            index_map, blob = encode(given, target, codec=codec, residual=residual, chunk_words=25)
            for at in range(8, len(index_map)):
                for value in {index_map[at] ^ 1 << rng.randrange(8), rng.randrange(256), 0}:
                    head = index_map[:at] + bytes([value]) + index_map[at + 1 :]
                    head = head[:52] + bytes(4) + head[56:]
                    head = head[:52] + crc32c(head).to_bytes(4, "little") + head[56:]
                    if head[11] != 2:  # zstd, which the reader does not read
                        assert_agree(octets_of(given), head, blob, 120)


def test_worked_example_of_the_document():
    text = FORMAT.read_text()
    example = text[text.index("## Worked example") : text.index("## Changes")]
    base, target = (
        np.array([int(word, 16) for word in re.search(rf"{name} +((?:[0-9a-f]{{4}} ?)+)", example)[1].split()], "<u2")
        for name in ("base", "target")
    )
    parts = [
        bytes.fromhex("".join(re.findall(r"^    [0-9a-f]{2}: ((?:[0-9a-f]{2} )*[0-9a-f]{2})", part, re.MULTILINE)))
        for part in (example[example.index("Index:") : example.index("Blob:")], example[example.index("Blob:") :])
    ]
    assert container.reconstruct(base.tobytes(), *parts) == target.tobytes()


def test_sealing_writes_what_the_library_writes():
    base, target = pair(torch.float32, "dense", 500)
    index_map, blob = encode(base.reshape(20, 25), target.reshape(20, 25), codec="prefix", chunk_words=100)
    index = container.parse_index(index_map)
    records = index_map[88 + 16 + len(index.tables) :]
    assert index_bytes(index, len(index.chunks), records) == index_map
    assert seal(index, chunks_of(index, blob)) == (index_map, blob)
