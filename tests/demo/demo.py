"""The demo: packs the real deltas in tests/data, rebuilds them, proves it, and compares with XOR + zstd-1.

make demo        or: python tests/demo/demo.py
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from safetensors.torch import load_file

import tpde
from tpde import _peers
from tpde._reports import size, table

Result = TypeVar("Result")

DATA = Path(__file__).resolve().parents[1] / "data"
DELTAS = (
    ("RL, 1 step, bf16", "rl/step20", "rl/step21"),
    ("RL, 7 steps, bf16", "rl/step21", "rl/step28"),
    ("fine-tune, bf16", "sft_bf16/base", "sft_bf16/lr1e-5_step300"),
    ("fine-tune, fp32", "sft_fp32/base", "sft_fp32/lr1e-5_step300"),
    ("pretraining, 50 steps, fp32", "pretrain_fp32/step1000", "pretrain_fp32/step1050"),
)


def main() -> None:
    peers, missing = _peers.available()
    peer = next((p for p in peers if "dense" in p.name), None)
    rows: list[tuple[str, ...]] = []
    with tempfile.TemporaryDirectory() as folder:
        delta, out = Path(folder) / "delta.safetensors", Path(folder) / "out.safetensors"
        for what, base_name, target_name in DELTAS:
            base, target = (DATA / f"{name}.safetensors" for name in (base_name, target_name))
            report = tpde.pack(base, target, delta, overwrite=True)
            tpde.unpack(base, delta, out=out, overwrite=True)
            proof = sha256(out)
            if proof != sha256(target):
                raise SystemExit(f"{target_name}: the rebuilt file differs from the original")
            (old,), (new,) = load_file(base).values(), load_file(target).values()
            rows.append((what, "tpde", *figures(new, report.totals.file_bytes, *measure_tpde(old, new)), proof[:16]))
            if peer:
                rows.append((what, "XOR + zstd-1", *figures(new, *measure_peer(peer, old, new)), ""))
    print(table(("delta", "with", "target", "delta size", "ratio", "pack MB/s", "unpack MB/s", "sha256"), rows, left=2))
    print("Size of tpde: the whole delta file, with all that restores the checkpoint's file byte for byte.")
    print("Speed of both: the tensor, in memory, on one core. sha256: of the rebuilt file, equal to the original's.")
    for note in missing:
        print(f"note: {note}")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def figures(target: torch.Tensor, stored: int, pack_s: float, unpack_s: float) -> tuple[str, ...]:
    count = target.numel() * target.element_size()
    speeds = (f"{count / seconds / 1e6:.0f}" for seconds in (pack_s, unpack_s))
    return size(count), size(stored), f"{count / stored:.2f}", *speeds


def measure_tpde(base: torch.Tensor, target: torch.Tensor) -> tuple[float, float]:
    pack_s, packed = best(lambda: tpde.encode(base, target, workers=1))
    unpack_s, rebuilt = best(lambda: tpde.reconstruct(base, *packed, workers=1))
    if not torch.equal(rebuilt.view(torch.uint8), target.view(torch.uint8)):
        raise SystemExit("tpde: the rebuilt tensor differs from the original")
    return pack_s, unpack_s


def measure_peer(peer: _peers.Peer, base: torch.Tensor, target: torch.Tensor) -> tuple[int, float, float]:
    word_bytes = target.element_size()
    before, after = (t.reshape(-1).view(torch.uint8).numpy() for t in (base, target))
    pack_s, parts = best(lambda: peer.pack(before, after, word_bytes))
    unpack_s, rebuilt = best(lambda: peer.unpack(before, parts, word_bytes))
    if not np.array_equal(rebuilt, after):
        raise SystemExit(f"{peer.name}: the rebuilt tensor differs from the original")
    return sum(map(len, parts)), pack_s, unpack_s


def best(work: Callable[[], Result], repeats: int = 7) -> tuple[float, Result]:
    """Returns the shortest time of a few runs, and the last result."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - start)
    return min(seconds), result


if __name__ == "__main__":
    main()
