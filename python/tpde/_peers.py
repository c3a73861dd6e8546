"""What others do with the same bytes: the peers that benchmarks show beside our codecs.

Each peer packs base and target, 1-D uint8 numpy arrays of equal size with words of `word_bytes`, and rebuilds target.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tpde._status import UnsupportedError

Bytes = npt.NDArray[np.uint8]
_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


@dataclass(frozen=True)
class Peer:
    """A way to pack a tensor: pack(base, target, word_bytes) -> parts, unpack(base, parts, word_bytes) -> target."""

    name: str
    pack: Callable[[Bytes, Bytes, int], list[bytes]]
    unpack: Callable[[Bytes, list[bytes], int], Bytes]


def available() -> tuple[list[Peer], list[str]]:
    """Returns the peers that this environment can run and, for each that it cannot, a line that says why."""
    peers: list[Peer] = []
    missing: list[str] = []
    for make in (_zstd_peers, _zipnn_peers):
        try:
            peers += make()
        except UnsupportedError as error:
            missing.append(str(error))
    return peers, missing


def _zstd_peers() -> list[Peer]:
    try:
        import zstandard
    except ImportError:
        raise UnsupportedError("XOR + zstd needs the package zstandard: pip install zstandard") from None

    def compress(data: npt.NDArray[Any], level: int) -> bytes:
        return zstandard.ZstdCompressor(level=level).compress(np.ascontiguousarray(data).tobytes())

    def decompress(frame: bytes) -> bytes:
        return zstandard.ZstdDecompressor().decompress(frame)

    def pack_dense(base: Bytes, target: Bytes, word_bytes: int) -> list[bytes]:
        planes = (base ^ target).reshape(-1, word_bytes).T
        return [compress(plane, 1) for plane in planes]

    def unpack_dense(base: Bytes, parts: list[bytes], word_bytes: int) -> Bytes:
        out = np.empty((base.size // word_bytes, word_bytes), np.uint8)
        for i, part in enumerate(parts):
            out[:, i] = np.frombuffer(decompress(part), np.uint8)
        flat: Bytes = out.reshape(-1)
        flat ^= base
        return flat

    def pack_sparse(base: Bytes, target: Bytes, word_bytes: int) -> list[bytes]:
        words = _WORDS[word_bytes]
        old, new = base.view(words), target.view(words)
        positions = np.flatnonzero(old != new)
        gaps = np.diff(positions, prepend=0).astype(np.int32)
        return [compress(gaps, 3), compress(new[positions] - old[positions], 3)]

    def unpack_sparse(base: Bytes, parts: list[bytes], word_bytes: int) -> Bytes:
        words = _WORDS[word_bytes]
        out: Bytes = base.copy()
        positions = np.cumsum(np.frombuffer(decompress(parts[0]), np.int32), dtype=np.int64)
        out.view(words)[positions] += np.frombuffer(decompress(parts[1]), words)
        return out

    return [
        Peer("XOR + zstd-1, byte planes, dense", pack_dense, unpack_dense),
        Peer("int32 position gaps + values, zstd-3", pack_sparse, unpack_sparse),
    ]


def _zipnn_peers() -> list[Peer]:
    try:
        from zipnn import ZipNN
    except ImportError:
        raise UnsupportedError("ZipNN needs the package zipnn: pip install zipnn") from None
    formats = {2: "bfloat16", 4: "float32"}

    def coder(word_bytes: int) -> Any:
        return ZipNN(input_format="byte", bytearray_dtype=formats.get(word_bytes, "float32"), threads=1)

    def pack(base: Bytes, target: Bytes, word_bytes: int) -> list[bytes]:
        return [bytes(coder(word_bytes).compress((base ^ target).tobytes()))]

    def unpack(base: Bytes, parts: list[bytes], word_bytes: int) -> Bytes:
        out: Bytes = np.frombuffer(coder(word_bytes).decompress(parts[0]), np.uint8) ^ base
        return out

    return [Peer("XOR + ZipNN", pack, unpack)]
