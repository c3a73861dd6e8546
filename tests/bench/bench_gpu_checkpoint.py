"""bench_gpu's section "checkpoint": unpack to a GPU beside loading the full file there, both from the page cache."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_sets import Settings, real_pairs, require_same_bits
from gpu_timing import Timing, until_done
from safetensors.torch import load_file, save_file

import tpde

CHECKPOINT_BYTES = 4 << 30
QUICK_BYTES = 512 << 20


def checkpoint(s: Settings) -> list[dict[str, Any]]:
    """A file of 4 GiB: safetensors' load_file(device="cuda") of the target, and tpde.unpack of base and delta."""
    figures: list[dict[str, Any]] = []
    rows: list[tuple[str, ...]] = []
    for pair in real_pairs():
        if "bf16" in pair.name:
            with tempfile.TemporaryDirectory() as folder:
                one(s, pair.name, pair.base, pair.target, Path(folder), figures, rows)
    print("\nA checkpoint from the page cache to the GPU; the host waits for each\n")
    s.table(("what", "ratio", "s", "GB/s", "of load_file"), rows)
    return figures


def one(
    s: Settings, title: str, base: torch.Tensor, target: torch.Tensor, folder: Path, figures: list[dict[str, Any]],
    rows: list[tuple[str, ...]],
) -> None:  # fmt: skip
    wanted = QUICK_BYTES if s.quick else CHECKPOINT_BYTES
    copies = wanted // (base.numel() * base.element_size())
    # As a model has them: large matrices, and a small vector for each.
    paths = folder / "base.safetensors", folder / "target.safetensors"
    for path, tensor in zip(paths, (base, target), strict=True):
        small = tensor.reshape(-1)[:4096]
        state = {f"layers.{i}.weight": tensor.roll(i, 0) for i in range(copies)}
        save_file(state | {f"layers.{i}.norm": small.roll(i) for i in range(copies)}, path)
        del state
    size = paths[1].stat().st_size
    repeats = 3 if s.quick else 5

    def line(what: str, ratio: float, timing: Timing, peer: Timing) -> None:
        share = f"{peer.seconds / timing.seconds:.2f} x"
        rows.append((f"{title}: {what}", f"{ratio:.2f}", timing.text(1), f"{size / timing.seconds / 1e9:.1f}", share))
        figures.append({"data": title, "what": what, "ratio": ratio, "bytes": size, **dataclasses.asdict(timing)})

    load: Callable[[], object] = lambda: load_file(paths[1], device="cuda")  # noqa: E731
    loaded = until_done(load, repeats)
    line("load_file of the full file", 1, loaded, loaded)
    expected = load_file(paths[1], device="cuda")
    for codec in ("elias", "raw", "auto"):
        delta = folder / f"{codec}.safetensors"
        tpde.pack(paths[0], paths[1], delta, codec=codec, progress=False)
        got = tpde.unpack(paths[0], delta, device="cuda")
        for name, tensor in expected.items():
            require_same_bits(f"{title}, {codec}: {name}", got[name], tensor)
        del got
        timing = until_done(lambda delta=delta: tpde.unpack(paths[0], delta, device="cuda"), repeats)
        line(f"unpack, {codec}", size / delta.stat().st_size, timing, loaded)
