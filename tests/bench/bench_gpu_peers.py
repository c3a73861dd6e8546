"""bench_gpu's section "peers": nvCOMP's decoders alone beside the whole calls that use them, or compete with them."""

from __future__ import annotations

import dataclasses
import struct
from itertools import accumulate
from typing import Any

import torch
from gpu_sets import Settings, TensorSet, real_pairs, rebuild_all, require_same_bits
from gpu_timing import Timing, on_device
from nvcomp_peer import Batch, Nvcomp

import tpde
from tpde import _memory
from tpde._core import core

ANS_CHUNK_BYTES = 262_144


@dataclasses.dataclass(frozen=True)
class Plane:
    """A plane of a zstd chunk that is a frame of its own."""

    at: int
    """First byte in the blob."""
    frame_bytes: int
    plane_bytes: int
    content: torch.Tensor
    """What it decompresses to, uint8."""


def planes_of(base: torch.Tensor, target: torch.Tensor, index_map: torch.Tensor, blob: torch.Tensor) -> list[Plane]:
    """Reads the directories of all chunks (core/codec/zstd/FORMAT.md) of a tensor of 2-byte words."""
    records = torch.empty(32 * tpde.read_index(index_map).chunks, dtype=torch.uint8)
    core().index_records(*_memory.pointer(records), *_memory.pointer(index_map))
    words = [t.reshape(-1).view(torch.int16).int() for t in (base, target)]
    residual = ((words[1] - words[0]) << 16) >> 16
    zigzag = ((residual << 1) ^ (residual >> 31)) & 0xFFFF
    data = blob.numpy()
    planes = []
    for offset, _, size, deltas, _, first in struct.iter_unpack("<QIIIIQ", records.numpy().tobytes()):
        n = size // 2
        changed = zigzag[first : first + n].nonzero().view(-1)
        gap_planes = 0 if deltas in (0, n) else 1 if n <= 256 else 2 if n <= 65_536 else 4
        values = zigzag[first : first + n] if deltas == n else zigzag[first : first + n][changed]
        gaps = torch.diff(changed, prepend=torch.tensor([-1])) - 1
        count = 0 if deltas == 0 else gap_planes + 2
        at = offset + -(-4 * count // 8) * 8
        for k in range(count):
            (entry,) = struct.unpack_from("<I", data, offset + 4 * k)
            kind, length = entry >> 30, entry & 0x3FFFFFFF
            if kind == 1:
                integers, byte = (gaps, k) if k < gap_planes else (values, k - gap_planes)
                planes.append(Plane(at, length, deltas, (integers >> 8 * byte & 0xFF).to(torch.uint8)))
            if kind != 2:
                at += -(-length // 8) * 8
    return planes


def peers(s: Settings) -> list[dict[str, Any]]:
    """zstd: the whole call against nvCOMP's own time for the same frames. ANS: the closed coder to beat, on XOR."""
    nvcomp = Nvcomp()
    figures: list[dict[str, Any]] = []
    rows: list[tuple[str, ...]] = []
    for pair in real_pairs():
        if "bf16" not in pair.name:
            continue

        def line(what: str, ratio: float, size: int, timing: Timing, name: str = pair.name) -> None:
            rows.append((f"{name}: {what}", f"{ratio:.2f}", timing.text(), f"{size / timing.seconds / 1e9:.0f}"))
            figures.append(
                {"data": name, "what": what, "ratio": ratio, "output_bytes": size, **dataclasses.asdict(timing)}
            )

        for codec in ("elias", "zstd"):
            work = TensorSet(pair, codec)
            work.require_rebuilt(f"{pair.name}, {codec}", rebuild_all(work.tensors))
            whole = on_device([lambda tensors=work.tensors: rebuild_all(tensors)], s.repeats)
            tpde.cuda.synchronize()
            line(f"tpde {codec}, decode and rebuild", work.ratio, work.bytes, whole)
        alone = zstd_alone(s, nvcomp, work, pair.base, pair.target)
        line(f"nvCOMP zstd alone, the same frames (the whole call: {whole.seconds / alone.seconds:.2f} x)",
             work.ratio, work.bytes, alone)  # fmt: skip
        ratio, timing = ans_alone(s, nvcomp, work)
        line("nvCOMP ANS of base XOR target, decode alone", ratio, work.bytes, timing)
        del work
    print("\nnvCOMP alone, 512 MiB of targets\n")
    s.table(("what", "ratio", "ms", "output GB/s"), rows)
    return figures


def zstd_alone(s: Settings, nvcomp: Nvcomp, work: TensorSet, base: torch.Tensor, target: torch.Tensor) -> Timing:
    """Times nvCOMP on the frames of all tensors of a set; planes that are no frames are left out."""
    planes = planes_of(base, target, work.index_map, work.tensors[0].data_blob.cpu())
    sizes = [-(-plane.plane_bytes // 16) * 16 for plane in planes]
    starts = [0, *accumulate(sizes)][:-1]
    out = torch.empty(sum(sizes) * len(work.tensors), dtype=torch.uint8, device="cuda")
    frames = Batch(
        [p.data_blob.data_ptr() + plane.at for p in work.tensors for plane in planes],
        [plane.frame_bytes for plane in planes] * len(work.tensors),
        work,
    )
    room = Batch(
        [out.data_ptr() + i * sum(sizes) + start for i in range(len(work.tensors)) for start in starts],
        [plane.plane_bytes for plane in planes] * len(work.tensors),
        out,
    )
    run = nvcomp.zstd_decoder(frames, room)
    for i in (0, len(work.tensors) - 1):
        got = out[i * sum(sizes) :][: sum(sizes)].cpu()
        for plane, start in zip(planes, starts, strict=True):
            require_same_bits("a plane from nvCOMP", got[start : start + plane.plane_bytes], plane.content)
    return on_device([run], s.repeats)


def ans_alone(s: Settings, nvcomp: Nvcomp, work: TensorSet) -> tuple[float, Timing]:
    """Compresses base XOR target of a set with ANS and times its decoder. Returns the ratio, too."""
    xor = torch.cat([(p.base.view(torch.int16) ^ work.target.view(torch.int16)).view(-1) for p in work.tensors])
    octets = xor.view(torch.uint8)
    chunks, stored = nvcomp.ans_compress(octets, ANS_CHUNK_BYTES)
    out = torch.empty_like(octets)
    run = nvcomp.ans_decoder(chunks, Batch.of_pieces(out, ANS_CHUNK_BYTES))
    require_same_bits("ANS", out, octets)
    return octets.numel() / stored, on_device([run], s.repeats)
