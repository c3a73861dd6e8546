"""The benchmark of `make bench-gpu`: decode and rebuild on a GPU, verified bit for bit before it is timed.

    python tests/bench/bench_gpu.py [--json FILE] [--plot FILE] [--markdown] [--quick]

Takes the study's data (../shared/data) where it is, else the pieces in tests/data, repeated to tensors of 4096x4096.
A set is 512 MiB of them, each with memory of its own. Times on the GPU are medians between CUDA events, with the
spread as ± half of (slowest - fastest) / median; GB are 10^9 bytes. "output" counts the bytes of the tensors that were
rebuilt; "moved" what must be read and written for that (base, residual, output). A copy of the same size runs beside.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from bench_gpu_checkpoint import checkpoint
from bench_gpu_peers import peers
from bench_gpu_quantised import quantised
from bet_plot import Bar, svg
from gpu_sets import (
    CODECS,
    SIDE,
    Packed,
    Settings,
    TensorSet,
    real_pairs,
    rebuild,
    rebuild_all,
    rebuild_in_place,
    require_same_bits,
)
from gpu_timing import Timing, Work, gpu_environment, on_device, on_host, replayed, until_done

import bench
import tpde
from tpde._bench import Pair

# ---- sections: each prints a table and returns its figures ------------------


def decode(s: Settings) -> list[dict[str, Any]]:
    """Decode and rebuild of sets and of single tensors, beside a copy."""
    figures: list[dict[str, Any]] = []
    for pair in real_pairs():
        rows: list[tuple[str, ...]] = []
        for codec in CODECS:
            try:
                one_codec(s, pair, codec, figures, rows)
            except tpde.UnsupportedError as error:
                print(f"note: {codec} was left out: {error}")
        print(f"\n{pair.name}: decode and rebuild\n")
        s.table(("what", "ratio", "ms", "output GB/s", "moved GB/s", "of a copy"), rows)
    return figures


def one_codec(s: Settings, pair: Pair, codec: str, figures: list[dict[str, Any]], rows: list[tuple[str, ...]]) -> None:
    work = TensorSet(pair, codec)
    work.check(f"{pair.name}, {codec}")

    def add(what: str, size: int, moved: int, timing: Timing, copied: Timing) -> None:
        ratio = f"{work.ratio:.2f}" if timing is not copied else ""
        rates = [f"{n / timing.seconds / 1e9:.0f}" for n in (size, moved)]
        rows.append((what, ratio, timing.text(), *rates, f"{100 * copied.seconds / timing.seconds:.0f}%"))
        line = {"data": pair.name, "what": what, "ratio": work.ratio, "output_bytes": size, "moved_bytes": moved}
        figures.append({**line, **dataclasses.asdict(timing), "copy_seconds": copied.seconds})

    def line(what: str, size: int, works: Sequence[Work], copied: Timing, restore: Work = lambda: None) -> None:
        moved = 2 * size + size * work.stored_bytes // work.tensor_bytes
        timing = on_device(works, s.repeats, restore)
        tpde.cuda.synchronize()  # raises failures: a decoder that gives up is fast
        add(what, size, moved, timing, copied)

    def restore() -> None:  # residuals are decoded with the base in sight: a rebuilt tensor is none
        work.outs.copy_(work.bases)

    tensors, live = work.tensors, work.in_place
    size = work.bytes
    copied = on_device([restore], s.repeats)
    if codec == CODECS[0]:
        add("512 MiB: copy", size, 2 * size, copied, copied)
    line(f"512 MiB: {codec}", size, [lambda: rebuild_all(tensors)], copied)
    line(f"512 MiB: {codec}, checksums verified", size, [lambda: rebuild_all(tensors, verify=True)], copied)
    line(f"512 MiB: {codec}, in place", size, [lambda: rebuild_in_place(live)], copied, restore)

    one, size = f"{SIDE}x{SIDE}", work.tensor_bytes
    copied = on_device([lambda p=p, q=q: q.base.copy_(p.base) for p, q in zip(tensors, live, strict=True)], s.repeats)
    if codec == CODECS[0]:
        add(f"{one}: copy", size, 2 * size, copied, copied)
    line(
        f"{one}: {codec}",
        size,
        [lambda p=p, q=q: rebuild(p, q.base) for p, q in zip(tensors, live, strict=True)],
        copied,
    )
    line(f"{one}: {codec}, in place", size, [lambda q=q: rebuild(q, q.base) for q in live], copied, restore)


def scatter(s: Settings) -> list[dict[str, Any]]:
    """V1.0: base + (indices, values), a tenth of 8192x8192 fp32."""
    g = torch.Generator("cuda").manual_seed(0)
    base = torch.randn(8192, 8192, generator=g, device="cuda")
    indices = (torch.rand(base.numel(), generator=g, device="cuda") < 0.1).nonzero().flatten()
    values = 0.01 * torch.randn(indices.numel(), generator=g, device="cuda")
    expected = base.clone()
    expected.view(-1).scatter_add_(0, indices, values)
    out, live = torch.empty_like(base), base.clone()
    require_same_bits("scatter_add", tpde.scatter_add(base, indices, values, out=out), expected)
    require_same_bits("scatter_add in place", tpde.scatter_add(live, indices, values, out=live), expected)

    size = base.numel() * base.element_size()
    read = indices.numel() * (indices.element_size() + values.element_size())
    touched = 2 * indices.numel() * base.element_size()  # at the least: memory is read and written in 32 bytes
    lines: tuple[tuple[str, int, Callable[[], object]], ...] = (
        ("tpde.scatter_add", 2 * size + read, lambda: tpde.scatter_add(base, indices, values, out=out)),
        ("torch clone + scatter_add_", 2 * size + touched + read,
         lambda: base.clone().view(-1).scatter_add_(0, indices, values)),
        ("clone alone", 2 * size, base.clone),
        ("tpde.scatter_add in place", touched + read,
         lambda: tpde.scatter_add(live, indices, values, out=live)),
        ("torch scatter_add_ in place", touched + read, lambda: live.view(-1).scatter_add_(0, indices, values)),
    )  # fmt: skip
    figures, rows = [], []
    for what, moved, work in lines:
        timing = on_device([work], s.repeats)
        tpde.cuda.synchronize()  # raises failures
        rows.append((what, timing.text(), f"{moved / timing.seconds / 1e9:.0f}"))
        figures.append({"what": what, "moved_bytes": moved, **dataclasses.asdict(timing)})
    print(f"\nscatter-add, 8192x8192 fp32 ({size / 2**20:.0f} MiB), {indices.numel()} values\n")
    s.table(("what", "ms", "moved GB/s"), rows)
    return figures


def launch(s: Settings) -> list[dict[str, Any]]:
    """What a call on a tiny tensor costs the host, and in a replayed graph."""
    base = torch.randn(32, 32, dtype=torch.bfloat16)
    target = base.clone()
    target[0] += 1
    index_map, blob = tpde.encode(base, target, codec="elias")
    p = Packed(base.cuda(), index_map, blob.cuda())
    out = torch.empty_like(p.base)
    require_same_bits("a tiny tensor", rebuild(p, out), target.cuda())
    calls = 200 if s.quick else 2000
    works: tuple[tuple[str, Callable[[], object]], ...] = (
        ("tpde.reconstruct, checksums verified", lambda: rebuild(p, verify=True)),
        ("tpde.reconstruct", lambda: rebuild(p)),
        ("tpde.reconstruct, out=", lambda: rebuild(p, out)),
        ("torch.add, out=", lambda: torch.add(p.base, p.base, out=out)),
    )
    figures = []
    for what, work in works:
        host = on_host(work, calls)
        graphs = [replayed(work, n, 5, 200 if n == 1 else 4) for n in (1, 100)]
        figures.append({"what": what, "host": host, "graph of 1": graphs[0], "graph of 100": graphs[1]})
    print("\nLaunch cost, 32x32 bf16, elias: microseconds of the host per call; per call in a replayed graph\n")
    keys = ("host", "graph of 1", "graph of 100")
    s.table(("what", *keys), [(str(f["what"]), *(f[key].text(1e-6) for key in keys)) for f in figures])
    return [{"what": f["what"], **{key: dataclasses.asdict(f[key]) for key in keys}} for f in figures]


def bet(s: Settings) -> list[dict[str, Any]]:
    """The prototype's bet: T(copy of the residual) + T(decode and rebuild) < T(copy of the full tensor)."""
    figures = [
        bet_once(TensorSet(pair, codec), pair.name, codec, memory, 3 if s.quick else 7)
        for pair in real_pairs()
        if "bf16" in pair.name
        for codec in ("elias", "raw")
        for memory in ("pinned", "pageable")
    ]
    print("\nThe bet: 512 MiB, copy of the residual and rebuild against a copy of the full tensors, milliseconds\n")
    head = ("data, memory, codec", "ratio", "copy full", "copy residual", "rebuild", "both, measured", "faster")
    s.table(head, [bet_row(f) for f in figures])
    if s.plot:
        s.plot.write_text(bet_picture(figures))
        print(f"\nplot: {s.plot}")
    return figures


def bet_once(work: TensorSet, title: str, codec: str, memory: str, repeats: int) -> dict[str, Any]:
    """The host waits for each. "both" is measured, not added: one stream, rebuilding starts when the copy has ended."""
    full, residuals = work.target.cpu().repeat(len(work.tensors), 1, 1), work.residuals
    if memory == "pinned":
        full, residuals = full.pin_memory(), residuals.pin_memory()

    def copy_residuals() -> None:
        work.residuals_gpu.copy_(residuals, non_blocking=True)

    def both() -> list[torch.Tensor]:
        copy_residuals()
        return rebuild_all(work.tensors)

    work.residuals_gpu.zero_()
    work.require_rebuilt(f"{title}, {codec}, from {memory} memory", both())
    timings = {
        "full": until_done(lambda: work.outs.copy_(full, non_blocking=True), repeats),
        "residual": until_done(copy_residuals, repeats),
        "decode": until_done(lambda: rebuild_all(work.tensors), repeats),
        "both": until_done(both, repeats),
    }
    return {
        "data": title,
        "codec": codec,
        "memory": memory,
        "ratio": work.ratio,
        "full_bytes": work.bytes,
        "residual_bytes": residuals.numel(),
        **{key: timing.seconds for key, timing in timings.items()},
    }


def bet_row(f: dict[str, Any]) -> tuple[str, ...]:
    times = (f"{f[key] * 1e3:.2f}" for key in ("full", "residual", "decode", "both"))
    return (f"{f['data']}, {f['memory']}, {f['codec']}", f"{f['ratio']:.2f}", *times, f"{f['full'] / f['both']:.1f}x")


def bet_picture(figures: Sequence[dict[str, Any]]) -> str:
    bars: list[Bar] = []
    for f in figures:
        label = f"{f['data']}, {f['memory']}"
        if not any(bar.label == f"{label}: full" for bar in bars):
            bars.append(Bar(f"{label}: full", {"copy of the full tensor": f["full"] * 1e3}))
        parts = {"copy of the residual": f["residual"] * 1e3, "decode and rebuild": f["decode"] * 1e3}
        bars.append(Bar(f"{label}: {f['codec']}", parts))
    gpu = torch.cuda.get_device_name()
    return svg(f"512 MiB to the GPU: the full tensors, or residuals that are rebuilt there ({gpu})", bars)


SECTIONS = {
    "decode": decode,
    "peers": peers,
    "quantised": quantised,
    "scatter": scatter,
    "launch": launch,
    "bet": bet,
    "checkpoint": checkpoint,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the bet there, as SVG")
    parser.add_argument("--markdown", action="store_true", help="print Markdown tables")
    parser.add_argument("--quick", action="store_true", help="fewer repeats: a check that everything runs")
    parser.add_argument("--only", choices=SECTIONS, nargs="+", default=[*SECTIONS], help="sections to run")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit(
            "bench_gpu: torch finds no CUDA device on this machine; `make gpu-bundle` takes it to one that has one"
        )
    about = {**bench.environment(), **gpu_environment(), "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])}
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    settings = Settings(arguments.quick, arguments.markdown, arguments.plot)
    results, failed = {}, []
    for name in arguments.only:
        try:
            results[name] = SECTIONS[name](settings)
        except Exception:  # the other sections are worth their time on a lent machine
            traceback.print_exc()
            failed.append(name)
        if arguments.json:
            arguments.json.write_text(json.dumps({"environment": about, **results}, indent=2) + "\n")
    if failed:
        sys.exit(f"bench_gpu: failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
