"""How fast few rows are multiplied by quantised weights, as a share of the speed of memory.

    python tests/bench/bench_gpu_matvec.py [--rows 1 2 4 8] [--bits 4] [--repeats 20] [--shapes 4096x4096 ...]

Verified against float64 first. A set is so many weights of one shape that their codes fill 512 MiB, more than any L2
cache; one CUDA graph multiplies by each of them once, and its time by their number is a product's, launch included.
"read" counts the codes, scales and zero points, x and y: what has to cross the memory's wires. Beside it: a graph of
reductions over as many bytes of float32 each, which only read; and torch's own product with the bf16 weight.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from gpu_timing import gpu_environment, until_done

import bench
import tpde

SET_BYTES = 512 << 20
SHAPES = [(4096, 4096), (1024, 4096), (6144, 4096), (14336, 4096), (4096, 14336), (28672, 4096)]


def captured(works: Sequence[Callable[[], object]], repeats: int) -> float:
    """Seconds of one of works, all of them in one CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for work in works[:2]:
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for work in works:
            work()
    return until_done(graph.replay, repeats).seconds / len(works)


def one(outs: int, ins: int, bits: int, rows: int, group: int, repeats: int) -> None:
    g = torch.Generator("cuda").manual_seed(0)
    weight = torch.randn(outs, ins, generator=g, device="cuda", dtype=torch.bfloat16)
    q = tpde.quantize(weight, bits, group)
    x = torch.randn(rows, ins, generator=g, device="cuda", dtype=torch.bfloat16)
    exact = x.double() @ q.dequantize().double().T
    off = float((tpde.quantised_linear(x, q).double() - exact).norm() / exact.norm())
    assert off < 2**-8, f"off by {off}"
    moved = q.nbytes() + 2 * (x.numel() + rows * outs)
    count = max(SET_BYTES // q.nbytes(), 2)
    copies = [replace(q, packed=q.packed.clone(), scale=q.scale.clone()) for _ in range(count)]
    ours = captured([lambda c=c: tpde.quantised_linear(x, c) for c in copies], repeats)
    del copies
    buffers = [torch.zeros(moved // 4, device="cuda") for _ in range(count)]
    reading = captured([lambda b=b: torch.sum(b) for b in buffers], repeats)
    del buffers
    weights = [weight.clone() for _ in range(max(SET_BYTES // (2 * weight.numel()), 2))]
    theirs = captured([lambda w=w: torch.nn.functional.linear(x, w) for w in weights], repeats)
    print(
        f"{f'{outs} x {ins}':>14} {bits:>4} {rows:>4} {1e6 * ours:>8.2f} {moved / 1e6:>9.2f} "
        f"{moved / ours / 1e9:>7.0f} {1e6 * reading:>9.2f} {1e6 * theirs:>9.2f} {theirs / ours:>6.2f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 8, 3, 2])
    parser.add_argument("--group", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--shapes", nargs="+", default=[f"{a}x{b}" for a, b in SHAPES])
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("bench_gpu_matvec: torch finds no CUDA device on this machine")
    for what, value in {**gpu_environment(), "commit": bench.commit()}.items():
        print(f"{what}: {value}")
    print(
        f"\n{'outs x ins':>14} {'bits':>4} {'rows':>4} {'us':>8} {'read MB':>9} {'GB/s':>7} {'sum us':>9} "
        f"{'bf16 us':>9} {'faster':>6}"
    )
    for bits in arguments.bits:
        for shape in arguments.shapes:
            outs, ins = map(int, shape.split("x"))
            for rows in arguments.rows if bits == 4 else arguments.rows[:1]:
                one(outs, ins, bits, rows, arguments.group, arguments.repeats)


if __name__ == "__main__":
    main()
