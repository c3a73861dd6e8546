"""The benchmark of `make bench`: ratio and speed of every codec beside the peers, verified bit for bit first.

    python tests/bench/bench.py [--json FILE] [--markdown] [--quick]

Takes the study's data (../shared/data) where it is, else the pieces in tests/data. Speeds are medians in MB (10^6) of
target per second, with the spread as ± half of (slowest - fastest) / median.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from safetensors.torch import load_file

import tpde
from tpde import _bench
from tpde._bench import Pair

ROOT = Path(__file__).resolve().parents[2]
STUDY = ROOT.parent / "shared" / "data"
PIECES = ROOT / "tests" / "data"

# title, file of the study, base and target in it; the pieces have a folder per file.
REAL = (
    ("RL, one step, bf16", "rl_bf16", "rl", "step20", "step21"),
    ("RL, eight steps, bf16", "rl_bf16", "rl", "step20", "step28"),
    ("fine-tune lr 1e-5, bf16", "sft_bf16", "sft_bf16", "base", "lr1e-5_step300"),
    ("fine-tune lr 1e-5, fp32", "sft_fp32", "sft_fp32", "base", "lr1e-5_step300"),
    ("pretraining, 50 steps, fp32", "pretrain_fp32", "pretrain_fp32", "step1000", "step1050"),
)
# Matrices of models have tens of megabytes: what is timed is repeated up to this, as one tensor. Sizes are those of the
# data as they are.
TIMED_BYTES = 32 << 20


def scenarios() -> Iterator[tuple[str, list[Pair], int]]:
    """Yields title, tensors and the number of chunks, 0 for the codec's own choice."""
    for title, file, folder, base, target in REAL:
        if (STUDY / f"{file}.safetensors").exists():
            tensors = load_file(STUDY / f"{file}.safetensors")
            pairs = [
                Pair(name, tensor, tensors[f"{target}/{name.split('/', 1)[1]}"])
                for name, tensor in tensors.items()
                if name.startswith(f"{base}/")
            ]
        else:
            old, new = (load_file(PIECES / folder / f"{step}.safetensors") for step in (base, target))
            pairs = [Pair(name, old[name], new[name]) for name in old]
        yield title, pairs, 0
    for title, rows, columns, std in (
        ("prototype: c_attn 768x2304 fp32, 10% + randn*0.01", 768, 2304, C_ATTN_STD),
        ("prototype: 1024x4096 fp32, 10% + randn*0.01", 1024, 4096, 1.0),
        ("prototype: layer-norm bias 768 fp32", 1, 768, C_ATTN_STD),
    ):
        yield title, [prototype(rows, columns, std)], 0
    yield "prototype: c_attn 768x2304 fp32, 64 chunks", [prototype(768, 2304, C_ATTN_STD)], 64


# About the standard deviation of GPT-2's trained c_attn weights. It decides how many bits a change of 0.01 has.
C_ATTN_STD = 0.14


def prototype(rows: int, columns: int, std: float) -> Pair:
    """Weights of randn * std, a tenth of them changed by randn * 0.01, as tests/test_ratios.py has them."""
    g = torch.Generator().manual_seed(0)
    base = std * torch.randn(rows, columns, generator=g)
    changed = torch.rand(rows, columns, generator=g) < 0.1
    return Pair("weight", base, torch.where(changed, base + 0.01 * torch.randn(rows, columns, generator=g), base))


def enlarge(pairs: list[Pair]) -> list[Pair]:
    """Repeats tensors, each as one flat tensor, until there is enough to time.

    Each repeat starts elsewhere: at one period, evenly spread samples would all see the same weights.
    """
    total = sum(p.target.numel() * p.target.element_size() for p in pairs)
    times = max(1, TIMED_BYTES // max(total, 1))

    def repeated(tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor.flatten().roll(100_003 * i) for i in range(times)])

    return [Pair(p.name, repeated(p.base), repeated(p.target)) for p in pairs]


def commit() -> str:
    """That of the source tree, or of the bundle of `make gpu-bundle`."""
    told = ROOT / "COMMIT"
    if told.exists():
        return told.read_text().strip()
    git = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip() or "?"


def environment() -> dict[str, str]:
    """Says what was measured, and on what."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "?")
    versions = {}
    for package in ("torch", "numpy", "zstandard", "zipnn"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "cpu": cpu,
        "commit": commit(),
        "tpde": tpde.__version__,
        "python": platform.python_version(),
        **versions,
        "data": str(STUDY if STUDY.exists() else PIECES),
    }


def call_cost() -> float:
    """Returns the median microseconds of a scatter_add of one value through torch operator, Python and C ABI."""
    base, index, value, chunk_map = torch.zeros(1), torch.tensor([0]), torch.ones(1), torch.tensor([0, 1])
    tpde.scatter_add(base, index, value, chunk_map)
    times = []
    for _ in range(2000):
        start = time.perf_counter()
        tpde.scatter_add(base, index, value, chunk_map, out=base)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--markdown", action="store_true", help="print Markdown tables")
    parser.add_argument("--quick", action="store_true", help="fewer repeats: a check that everything runs")
    arguments = parser.parse_args()
    about = environment()
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    results = {}
    for title, pairs, num_chunks in scenarios():
        lines, notes = _bench.measure(
            pairs, enlarge(pairs), workers=(1, 2), repeats=2 if arguments.quick else 7, num_chunks=num_chunks
        )
        results[title] = [dataclasses.asdict(line) for line in lines]
        print(f"\n### {title}\n" if arguments.markdown else f"\n{title}")
        print(as_markdown(lines) if arguments.markdown else _bench.as_table(lines), flush=True)
    for note in notes:
        print(f"note: {note}")
    cost = call_cost()
    print(f"\na call of scatter_add on one element, all layers: {cost:.1f} microseconds")
    if arguments.json:
        figures = {"environment": about, "scenarios": results, "call_microseconds": cost}
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def as_markdown(lines: list[_bench.Line]) -> str:
    head = ("codec", "cores", "ratio", "pack MB/s", "unpack MB/s")
    rows = [head, ("---", "---:", "---:", "---:", "---:")]
    for x in lines:
        rows.append((x.name, str(x.workers), f"{x.ratio:.2f}", f"{x.pack:.0f}", f"{x.unpack:.0f}"))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


if __name__ == "__main__":
    main()
