"""What the benchmarks of GPUs share: settings, sets of real tensors in memory of their own, comparisons on bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import bench
import tpde
from tpde import _reports
from tpde._bench import Pair

SIDE = 4096
SET_BYTES = 512 << 20
CODECS = ("elias", "raw", "prefix", "rice", "zstd")
_ALIGN = 256  # bytes, of every blob in the allocation that holds them all


@dataclass(frozen=True)
class Packed:
    """A packed tensor and its base, on the GPU but for the index map."""

    base: torch.Tensor
    index_map: torch.Tensor
    data_blob: torch.Tensor


@dataclass(frozen=True)
class Settings:
    quick: bool
    markdown: bool
    plot: Path | None

    @property
    def repeats(self) -> int:
        return 5 if self.quick else 25

    def table(self, head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
        if self.markdown:
            rows = [tuple("---" if i == 0 else "---:" for i in range(len(head))), *rows]
            print("\n".join("| " + " | ".join(row) + " |" for row in (head, *rows)), flush=True)
        else:
            print(_reports.table(head, rows), flush=True)


# ---- what is called ---------------------------------------------------------


def rebuild(p: Packed, out: torch.Tensor | None = None, verify: bool = False) -> torch.Tensor:
    return tpde.reconstruct(p.base, p.index_map, p.data_blob, out=out, verify=verify)


def rebuild_all(tensors: Sequence[Packed], verify: bool = False) -> list[torch.Tensor]:
    return tpde.cuda.reconstruct_many([(p.base, p.index_map, p.data_blob) for p in tensors], verify=verify)


def rebuild_in_place(tensors: Sequence[Packed]) -> None:
    items = [(p.base, p.index_map, p.data_blob) for p in tensors]
    tpde.cuda.reconstruct_many(items, verify=False, in_place=True)


# ---- data -------------------------------------------------------------------


def real_pairs() -> list[Pair]:
    """RL one and eight steps, fine-tune in bf16 and in fp32, each as one tensor of 4096x4096."""
    wanted = [title for title, *_ in bench.REAL if "pretraining" not in title]
    return [tile(title, pairs) for title, pairs, _ in bench.scenarios() if title in wanted]


def tile(title: str, pairs: Iterable[Pair]) -> Pair:
    def repeat(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
        flat = torch.cat([t.flatten() for t in tensors])
        return flat.repeat(-(-SIDE * SIDE // flat.numel()))[: SIDE * SIDE].view(SIDE, SIDE)

    pairs = list(pairs)
    return Pair(title, repeat(p.base for p in pairs), repeat(p.target for p in pairs))


class TensorSet:
    """512 MiB of one tensor, over and over, in memory of their own: bases, blobs, outputs and targets."""

    def __init__(self, pair: Pair, codec: str) -> None:
        self.target = pair.target.cuda()
        self.tensor_bytes = self.target.numel() * self.target.element_size()
        copies = SET_BYTES // self.tensor_bytes
        self.index_map, blob = tpde.encode(pair.base, pair.target, codec=codec)
        self.stored_bytes = self.index_map.numel() + blob.numel()
        # One allocation for all blobs, as a receiver has that copies them to the GPU at once; index maps go along.
        stride = -(-blob.numel() // _ALIGN) * _ALIGN
        self.residuals = torch.zeros(copies * (stride + self.index_map.numel()), dtype=torch.uint8)
        for i in range(copies):
            self.residuals[i * stride :][: blob.numel()] = blob
        self.residuals_gpu = self.residuals.cuda()
        self.bases = pair.base.cuda().repeat(copies, 1, 1)
        self.outs = torch.empty_like(self.bases)
        self.tensors = [
            Packed(base, self.index_map, self.residuals_gpu[i * stride :][: blob.numel()])
            for i, base in enumerate(self.bases)
        ]

    @property
    def bytes(self) -> int:
        return len(self.tensors) * self.tensor_bytes

    @property
    def ratio(self) -> float:
        return self.tensor_bytes / self.stored_bytes

    @property
    def in_place(self) -> list[Packed]:
        """The same tensors, based on the outputs."""
        return [dataclasses.replace(p, base=out) for p, out in zip(self.tensors, self.outs, strict=True)]

    def require_rebuilt(self, what: str, outs: Iterable[torch.Tensor]) -> None:
        tpde.cuda.synchronize()
        for i, out in enumerate(outs):
            require_same_bits(f"{what}, tensor {i}", out, self.target)

    def check(self, what: str) -> None:
        """Rebuilds in every way that is timed."""
        for verify in (False, True):
            self.require_rebuilt(f"{what}, together", rebuild_all(self.tensors, verify))
        self.outs.fill_(-1)
        for p, out in zip(self.tensors, self.outs, strict=True):
            rebuild(p, out)
        self.require_rebuilt(f"{what}, one by one", self.outs)
        self.outs.copy_(self.bases)
        rebuild_in_place(self.in_place)
        self.require_rebuilt(f"{what}, in place", self.outs)


def require_same_bits(what: str, got: torch.Tensor, expected: torch.Tensor) -> None:
    if not torch.equal(got.reshape(-1).view(torch.uint8), expected.reshape(-1).view(torch.uint8)):
        raise tpde.InternalError(f"{what}: not rebuilt bit for bit; no time is taken")
