"""Measures our codecs beside the peers, on the same tensors in the same run. Bits are verified before time is taken."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tpde import _dtypes, _memory, _peers, _reports, _tensors
from tpde._core import core
from tpde._sources import Checkpoint, Source, open_source
from tpde._status import InternalError

CODECS = ("auto", "prefix", "rice", "elias", "zstd", "raw")


@dataclass(frozen=True)
class Pair:
    """A tensor before and after."""

    name: str
    base: torch.Tensor
    target: torch.Tensor


@dataclass(frozen=True)
class Line:
    """One way to pack, summed over the tensors. Speeds are medians in MB (10^6) of target per second."""

    name: str
    workers: int
    stored_bytes: int
    ratio: float
    pack: float
    unpack: float
    pack_spread: float
    """(slowest - fastest) / median of the times, 0 to ..."""
    unpack_spread: float


def read_pairs(base: Checkpoint, target: Checkpoint, limit_bytes: int) -> tuple[list[Pair], int]:
    """Returns the tensors that changed, up to limit_bytes of them, and the number of those that were passed over."""
    pairs: list[Pair] = []
    skipped = taken = 0
    with open_source(base, "base") as old, open_source(target, "target") as new:
        before = _rows(old)
        for name, row in _rows(new).items():
            twin = before.get(name)
            if twin is None or (twin["dtype"], twin["shape"]) != (row["dtype"], row["shape"]) or not row["bytes"]:
                continue
            if taken + row["bytes"] > limit_bytes:
                skipped += 1
                continue
            pair = Pair(name, _read(old, row), _read(new, row))
            if not torch.equal(_memory.octets(pair.base), _memory.octets(pair.target)):
                pairs.append(pair)
                taken += row["bytes"]
    return pairs, skipped


def _rows(source: Source) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in json.loads(core().source_manifest(source.handle))["tensors"] or ()}


def _read(source: Source, row: dict[str, Any]) -> torch.Tensor:
    dtype = _dtypes.torch_of_name(row["dtype"])
    tensor = torch.empty(_dtypes.torch_shape(_dtypes.number_of(dtype), row["shape"]), dtype=dtype, device="cpu")
    core().source_read(*_memory.pointer(tensor), source.handle, row["name"], 0)
    return tensor


def measure(
    pairs: Sequence[Pair],
    timed: Sequence[Pair] | None = None,
    *,
    codecs: Iterable[str] = CODECS,
    workers: Sequence[int] = (1,),
    repeats: int = 5,
    num_chunks: int = 0,
) -> tuple[list[Line], list[str]]:
    """Returns a line per codec and number of workers and a line per peer, and a note per peer that is not installed.

    timed: what the speeds are taken of, if not of pairs, whose sizes are stated. num_chunks: as for `tpde.encode`.
    """
    timed = pairs if timed is None else timed
    lines = [_measure_codec(pairs, timed, codec, n, repeats, num_chunks) for codec in codecs for n in workers]
    peers, notes = _peers.available()
    return lines + [_measure_peer(pairs, timed, peer, repeats) for peer in peers], notes


def _measure_codec(
    pairs: Sequence[Pair], timed: Sequence[Pair], codec: str, workers: int, repeats: int, num_chunks: int
) -> Line:
    def encode(p: Pair) -> tuple[torch.Tensor, torch.Tensor]:
        return _tensors.encode(p.base, p.target, codec=codec, workers=workers, num_chunks=num_chunks)

    stored = sum(index_map.numel() + data_blob.numel() for index_map, data_blob in map(encode, pairs))
    packed = [encode(p) for p in timed]
    outputs = [torch.empty_like(p.target) for p in timed]

    def pack() -> None:
        for p in timed:
            encode(p)

    def unpack() -> None:
        for p, out, (index_map, data_blob) in zip(timed, outputs, packed, strict=True):
            _tensors.reconstruct(p.base, index_map, data_blob, out=out, workers=workers)

    unpack()
    _require_equal(f"tpde {codec}", timed, outputs)
    return _line(f"tpde {codec}", workers, stored, pairs, timed, pack, unpack, repeats)


def _measure_peer(pairs: Sequence[Pair], timed: Sequence[Pair], peer: _peers.Peer, repeats: int) -> Line:
    stored = sum(len(part) for p in pairs for part in peer.pack(*_arrays(p)))
    arrays = [_arrays(p) for p in timed]
    packed = [peer.pack(*array) for array in arrays]

    def pack() -> None:
        for array in arrays:
            peer.pack(*array)

    def unpack() -> list[torch.Tensor]:
        return [
            torch.from_numpy(np.array(peer.unpack(base, parts, word_bytes), copy=False))
            for (base, _, word_bytes), parts in zip(arrays, packed, strict=True)
        ]

    _require_equal(peer.name, timed, unpack())
    return _line(peer.name, 1, stored, pairs, timed, pack, unpack, repeats)


def _arrays(p: Pair) -> tuple[_peers.Bytes, _peers.Bytes, int]:
    """What a peer takes: the bytes of base and target, and the size of a word."""
    return _memory.octets(p.base).numpy(), _memory.octets(p.target).numpy(), _word_bytes(p.target)


def _line(
    name: str,
    workers: int,
    stored: int,
    pairs: Sequence[Pair],
    timed: Sequence[Pair],
    pack: Callable[[], object],
    unpack: Callable[[], object],
    repeats: int,
) -> Line:
    ratio = _total_bytes(pairs) / stored
    speed = _total_bytes(timed) / 1e6
    pack_s, pack_spread = _time(pack, repeats)
    unpack_s, unpack_spread = _time(unpack, repeats)
    return Line(name, workers, stored, ratio, speed / pack_s, speed / unpack_s, pack_spread, unpack_spread)


def _total_bytes(pairs: Sequence[Pair]) -> int:
    return sum(_memory.octets(p.target).numel() for p in pairs)


def _time(work: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Returns median seconds and the relative spread, after one run to warm up."""
    times = []
    work()
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    median = statistics.median(times)
    return median, (max(times) - min(times)) / median


def _require_equal(name: str, pairs: Sequence[Pair], rebuilt: Sequence[torch.Tensor]) -> None:
    for pair, tensor in zip(pairs, rebuilt, strict=True):
        if not torch.equal(_memory.octets(tensor), _memory.octets(pair.target)):
            raise InternalError(f"{name}: tensor {pair.name!r} was not rebuilt bit for bit; no time is taken")


def _word_bytes(tensor: torch.Tensor) -> int:
    return tensor.element_size() // (2 if tensor.dtype.is_complex else 1)


def as_table(lines: Sequence[Line]) -> str:
    """Returns lines as a table of text."""
    rows = [
        (
            line.name, str(line.workers), _reports.size(line.stored_bytes), f"{line.ratio:.2f}",
            f"{line.pack:.0f} ±{50 * line.pack_spread:.0f}%", f"{line.unpack:.0f} ±{50 * line.unpack_spread:.0f}%",
        )
        for line in lines
    ]  # fmt: skip
    return _reports.table(("codec", "cores", "stored", "ratio", "pack MB/s", "unpack MB/s"), rows)
