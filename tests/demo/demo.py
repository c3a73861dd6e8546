"""The demo: packs the real deltas in tests/data, rebuilds them, proves it, and compares with XOR + zstd-1.

make demo        or: python tests/demo/demo.py
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

import tpde
from tpde import _peers
from tpde._reports import size, table

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
        for what, base_name, target_name in DELTAS:
            base, target = (DATA / f"{name}.safetensors" for name in (base_name, target_name))
            delta, out = Path(folder) / "delta.safetensors", Path(folder) / "out.safetensors"
            pack_s, packed = _best(lambda b=base, t=target, d=delta: tpde.pack(b, t, d, overwrite=True, progress=False))
            unpack_s, _ = _best(lambda b=base, d=delta, o=out: tpde.unpack(b, d, out=o, overwrite=True, progress=False))
            proof = hashlib.sha256(out.read_bytes()).hexdigest()
            if proof != hashlib.sha256(target.read_bytes()).hexdigest():
                raise SystemExit(f"{target_name}: the rebuilt file differs from the original")
            count, stored = target.stat().st_size, packed.totals.file_bytes
            figures = size(count), size(stored), f"{count / stored:.2f}", *_speeds(count, pack_s, unpack_s)
            rows.append((what, "tpde", *figures, proof[:16]))
            if peer:
                rows.append((what, "XOR + zstd-1", *_measure_peer(peer, base, target), ""))
    print(table(("delta", "with", "target", "delta size", "ratio", "pack MB/s", "unpack MB/s", "sha256"), rows, left=2))
    print("tpde: whole files, with reading, hashing, syncing and proving sha256. Peer: the tensors alone, in memory.")
    for note in missing:
        print(f"note: {note}")


def _measure_peer(peer: _peers.Peer, base: Path, target: Path) -> tuple[str, ...]:
    (old,), (new,) = load_file(base).values(), load_file(target).values()
    word_bytes = new.element_size()
    before, after = (t.reshape(-1).view(torch.uint8).numpy() for t in (old, new))
    pack_s, parts = _best(lambda: peer.pack(before, after, word_bytes))
    unpack_s, rebuilt = _best(lambda: peer.unpack(before, parts, word_bytes))
    if not np.array_equal(rebuilt, after):
        raise SystemExit(f"{peer.name}: the rebuilt tensor differs from the original")
    stored = sum(map(len, parts))
    return size(after.size), size(stored), f"{after.size / stored:.2f}", *_speeds(after.size, pack_s, unpack_s)


def _speeds(count: int, pack_s: float, unpack_s: float) -> tuple[str, str]:
    return f"{count / pack_s / 1e6:.0f}", f"{count / unpack_s / 1e6:.0f}"


def _best(work, repeats: int = 5):  # type: ignore[no-untyped-def]
    """Returns the shortest time of a few runs, and the last result."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - start)
    return min(seconds), result


if __name__ == "__main__":
    main()
