"""The benchmark of `make bench-offload`: ways to run a model that does not fit into VRAM, one model, one run.

    python tests/bench/bench_offload.py [--size 8b] [--budgets base 6 8 ...] [--only ...] [--json FILE] [--plot FILE]
    python tests/bench/bench_offload.py --giant [--giant-gib 16] [--repeat-layers N]

The model has Llama's shape and random weights whose bits are distributed as a trained model's (llama_shape.py). Each
row is verified first: logits of a prompt of 16 tokens are the resident model's, bit for bit, and so are the tokens that
follow; rows that are lossy say how far they are off. Then tokens are made greedily, batch 1, without a wait between
them. Time is the median between tokens, on the device; GB/s are the bf16 bytes of all matrices by that time. VRAM is
the most that torch allocated from the prompt on, without what cuBLAS keeps for itself (some 40 MiB in every row). Host
CPU is the time that a forward keeps its thread busy, of that of a forward, and what of it the resident model does not
take: what offloading adds. The copy engine's share is that of the time from one forward to the next, of passes whose
copies are timed. A forward of the plain model that makes one token is also captured in a CUDA graph where the row
allows it, in a cache of fixed size, and replayed; logits are compared again. GB are 10^9 bytes, GiB 2^30.

Rows of self-speculation generate with transformers, the time of the prompt and of all drafts included; they stand
beside accelerate's row of the same model, whose time has no prompt in it. Their host CPU is that of a pass and its
drafts, waiting for tokens included, for which CUDA keeps the thread busy. Tokens are the resident model's, or differ
from where two logits are a tie. How many drafts are right is a matter of the weights: see --clear. How often the
draft's choice is the model's is counted in the same run.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import offload_peers
import offload_plot
import torch
from gpu_timing import gpu_environment
from llama_shape import HOW, SIZES, filled
from offload_loading import Loading
from offload_measure import (
    Figures,
    Reference,
    Settings,
    allocated,
    captured,
    limited,
    link_gigabytes,
    measure,
    require_logits,
    warmed,
)
from offload_peers import HostWeights
from offload_tpde import Streamed, agreement, giant
from torch import nn

import bench
from tpde import _reports

Peer = Callable[[Settings, HostWeights], AbstractContextManager[nn.Module]]

# With whether it is exact, and what it is called.
PEERS: dict[str, tuple[Peer, str, str]] = {
    "accelerate": (offload_peers.accelerate_offload, "yes", "accelerate cpu_offload"),
    "dfloat11": (offload_peers.dfloat11, "yes", "DFloat11, all in VRAM"),
    "diffusers": (offload_peers.diffusers_blocks, "yes", "diffusers group offload, by block"),
    "diffusers-leaf": (offload_peers.diffusers_leaves, "yes", "diffusers group offload, by layer"),
    "pinned": (offload_peers.pinned_stream, "yes", "pinned double-buffered bf16 stream"),
    "bnb8": (offload_peers.bitsandbytes_8bit, "no", "bitsandbytes int8, all in VRAM"),
    "bnb4": (offload_peers.bitsandbytes_4bit, "no", "bitsandbytes NF4, all in VRAM"),
}
CAPTURED = ("dfloat11", "bnb8", "bnb4")  # CUDA graphs are tried; the others wait, or copy ahead from pass to pass
OURS = ("int4", "none")
NOTHING_STREAMED = ("compressed", "all")
ORDER = (
    *("accelerate", "speculation"),  # before the weights are page-locked, which accelerate does not do
    *("diffusers", "diffusers-leaf", "pinned"),
    *OURS,
    *("bnb8", "bnb4", "dfloat11"),  # kernels of others last: one that fails may take the CUDA context along
)
HEAD = (
    "", "exact", "VRAM GiB", "GB/s", "tokens/s", "host CPU", "beyond resident", "copy engine", "tokens/s in a graph",
    "its host CPU", "note",
)  # fmt: skip


class Table:
    """Rows, printed as soon as there are some, and written to a file each time."""

    def __init__(self, about: dict[str, Any], arguments: argparse.Namespace, model_bytes: int) -> None:
        self.about, self.json, self.markdown = about, arguments.json, arguments.markdown
        self.model_bytes = model_bytes
        self.rows: list[Figures] = []

    def add(self, row: Figures) -> None:
        self.rows.append(row)
        print(" | ".join(filter(None, cells(row, self.model_bytes))), flush=True)
        if self.json:
            rows = [dataclasses.asdict(one) | {"tokens_per_second": one.tokens_per_second} for one in self.rows]
            text = json.dumps({"environment": self.about, "model_bytes": self.model_bytes, "rows": rows}, indent=2)
            self.json.write_text(text + "\n")

    def print(self) -> None:
        rows = [cells(row, self.model_bytes) for row in self.rows]
        if self.markdown:
            rows = [("---", *("---:" for _ in HEAD[1:-1]), "---"), *rows]
            print("\n" + "\n".join("| " + " | ".join(row) + " |" for row in (HEAD, *rows)), flush=True)
        else:
            print("\n" + _reports.table(HEAD, rows), flush=True)


def cells(row: Figures, model_bytes: int) -> tuple[str, ...]:
    def text(value: float | None, how: str) -> str:
        return "-" if value is None else format(value, how)

    def host(seconds: float | None, all_seconds: float | None = row.seconds) -> str:
        return "-" if seconds is None or not all_seconds else f"{1e3 * seconds:.1f} ms, {seconds / all_seconds:.1%}"

    gigabytes = model_bytes / row.seconds / 1e9 if row.seconds else None
    tokens = row.tokens_per_second
    rate = "-" if tokens is None else f"{tokens:.3g}" + (f" ±{50 * row.spread:.0f}%" if row.spread is not None else "")
    added = None
    if row.host_seconds is not None and row.resident_host_seconds is not None:
        added = row.host_seconds - row.resident_host_seconds
    ratio = f"ratio {row.ratio:.3f}" if row.ratio else ""
    return (
        row.what,
        row.exact,
        text(None if row.peak_bytes is None else row.peak_bytes / 2**30, ".2f"),
        text(gigabytes, ".1f"),
        rate,
        host(row.host_seconds),
        host(added),
        text(row.copy_busy, ".1%"),
        text(row.captured_tokens_per_second, ".3g"),
        host(row.captured_host_seconds, row.captured_seconds),
        "; ".join(filter(None, (ratio, row.note))),
    )


def guarded(table: Table, s: Settings, what: str, make: Callable[[], Figures], exact: str = "-") -> bool:
    """Adds a row, or says in one why there is none. The other rows are worth their time on a lent machine."""
    began = time.perf_counter()
    try:
        with limited(s.row_seconds, what):
            row = make()
    except ModuleNotFoundError as error:
        table.add(Figures(what, exact, note=f"left out: {error.name} is not installed"))
        return False
    except Exception as error:
        traceback.print_exc()
        traceback.clear_frames(error.__traceback__)  # what they hold of VRAM goes
        table.add(Figures(what, "-", note=f"failed: {type(error).__name__}: {str(error).splitlines()[0][:160]}"))
        return False
    finally:
        print(f"[{what}: {time.perf_counter() - began:.1f} s]", flush=True)
    table.add(row)
    return True


# ---- rows ---------------------------------------------------------------------------


def resident(s: Settings, what: str, make: Callable[[], nn.Module]) -> tuple[Figures, Reference, nn.Module]:
    before = allocated(s.device)
    began = time.perf_counter()
    model = make()
    row = Figures(what, "yes", setup_seconds=time.perf_counter() - began)
    longer = dataclasses.replace(s, most_steps=4 * s.most_steps)
    warmed(longer, model)
    reference = measure(longer, row, model, None, before, capture=True)
    return row, reference, model


def peer(s: Settings, name: str, weights: HostWeights, reference: Reference, suffix: str = "") -> Figures:
    make, exact, what = PEERS[name]
    before = allocated(s.device)
    row = Figures(what + suffix, exact)
    began = time.perf_counter()
    with make(s, weights) as model:
        row.setup_seconds = time.perf_counter() - began
        row.ratio = getattr(model, "ratio", None)
        allocated(s.device)
        measure(s, row, model, reference, before)
        if name in CAPTURED and s.kind == "plain":
            try:
                logits = captured(s, row, model, reference.ids)
                if exact == "yes" and reference.captured_logits is not None:
                    require_logits(f"{row.what}, in a CUDA graph", logits, reference.captured_logits)
            except Exception as error:
                row.captured_seconds = row.captured_host_seconds = None
                row.add_note(f"not in a CUDA graph: {str(error).splitlines()[0][:160]}")
    return row


def ours(
    table: Table,
    s: Settings,
    what: str,
    budgets: Sequence[str],
    make: Callable[[], Streamed],
    row: Callable[[Streamed, str], Figures] = Streamed.row,
) -> None:
    """A row for each budget, of one model."""
    made: list[Streamed] = []

    def at(budget: str) -> Figures:
        if not made:
            made.append(make())
        return row(made[0], budget)

    for budget in budgets:
        if not guarded(table, s, f"{what}: {budget}", lambda budget=budget: at(budget)) and not made:
            return
        gc.collect()


def speculation(
    table: Table, s: Settings, budgets: Sequence[str], weights: HostWeights, reference: Reference, agrees: float
) -> None:
    """Rows of self-speculation, at budgets that stream. It wants a model of transformers: in a run of the plain one,
    there are rows of such a model with the same weights before them. agrees: the share of tokens for which int4 chooses
    what the model does."""
    if s.kind != "transformers":
        s = dataclasses.replace(s, kind="transformers")
        weights = weights.of(s)
        told = with_transformers(table, s, weights)
        if told is None:
            return
        reference = told
    accelerate = next((row for row in reversed(table.rows) if row.what.startswith(PEERS["accelerate"][2])), None)

    def speculated(streamed: Streamed, budget: str) -> Figures:
        row = streamed.speculated(budget)
        if accelerate is not None and accelerate.tokens_per_second and row.tokens_per_second:
            row.more["times_accelerate"] = row.tokens_per_second / accelerate.tokens_per_second
            row.add_note(f"{row.more['times_accelerate']:.1f} x {accelerate.what}")
        row.more["agreement"] = agrees
        row.add_note(f"random weights, --clear {s.shape.clear:g}: int4 chooses what bf16 does {agrees:.1%} of the time")
        return row

    streaming = [budget for budget in budgets if budget not in NOTHING_STREAMED]
    what = "tpde, base int4, self-speculation"
    ours(table, s, what, streaming, lambda: Streamed(s, "int4", weights, reference), speculated)


def with_transformers(table: Table, s: Settings, weights: HostWeights) -> Reference | None:
    """Rows of transformers' model: resident, which is returned, and accelerate's."""
    suffix = ", transformers"
    told: list[Reference] = []

    def whole() -> Figures:
        row, said, _ = resident(s, f"resident bf16{suffix}", lambda: weights.model().to(s.device))
        told.append(said)
        return row

    if not guarded(table, s, f"resident bf16{suffix}", whole):
        return None
    allocated(s.device)
    what = PEERS["accelerate"][2] + suffix
    guarded(table, s, what, lambda: peer(s, "accelerate", weights, told[0], suffix))
    allocated(s.device)
    return told[0]


def loading(table: Table, s: Settings, base: str, folder: Path, weights: HostWeights) -> None:
    """Rows that say when the first token is there, from files in the page cache."""
    made: list[Loading] = []

    def first() -> Figures:
        made.append(Loading(s, weights, base, folder))
        return made[0].bf16()

    if not guarded(table, s, "load bf16 safetensors", first):
        return
    for gib in (6, 12):
        allocated(s.device)
        guarded(table, s, f"tpde.load, base {base}, {gib} GiB", lambda gib=gib: made[0].ours(gib << 30))


# ---- the run ------------------------------------------------------------------------


def compared(
    table: Table, s: Settings, only: Sequence[str], budgets: Sequence[str], drafts: Sequence[str], folder: Path | None
) -> None:
    made: list[tuple[Reference, HostWeights]] = []

    def first() -> Figures:
        row, reference, model = resident(s, "resident bf16", lambda: filled(s.shape, s.kind, s.device))
        began = time.perf_counter()
        weights = HostWeights(s, model)
        print(f"weights copied to host memory in {time.perf_counter() - began:.1f} s", flush=True)
        if drafts:
            row.more["drafts"] = agreement(s, model, weights, drafts)
        made.append((reference, weights))
        return row

    if not guarded(table, s, "resident bf16", first):
        return
    reference, weights = made[0]
    allocated(s.device)
    for name in ORDER:
        if name not in only:
            continue
        if name == "speculation":
            agrees = table.rows[0].more["drafts"]["int4"]["agreement"]
            speculation(table, s, budgets, weights, reference, agrees)
        elif name in OURS:
            at = budgets if name == "int4" else ("compressed",)
            ours(table, s, f"tpde, base {name}", at, lambda name=name: Streamed(s, name, weights, reference))
        else:
            _, exact, what = PEERS[name]
            guarded(table, s, what, lambda name=name: peer(s, name, weights, reference), exact)
        allocated(s.device)
    if folder is not None:
        with tempfile.TemporaryDirectory(dir=folder) as name:
            loading(table, s, "int4", Path(name), weights)


def pictured(table: Table, s: Settings, path: Path) -> None:
    points = []
    for row in table.rows:
        if row.tokens_per_second and (row.peak_bytes or row.budget_bytes):
            name, _, budget = row.what.partition(": ")
            mine = row.what.startswith("tpde")
            vram = row.peak_bytes or row.budget_bytes or 0
            label = budget if mine and "int4" in name else row.what
            points.append(offload_plot.Point(label, vram / 2**30, row.tokens_per_second, name if mine else ""))
    if points:
        where = torch.cuda.get_device_name() if s.cuda else "CPU"
        size = s.shape.model_bytes / 1e9
        path.write_text(offload_plot.svg(f"A bf16 model of {size:.0f} GB, tokens a second, batch 1 ({where})", points))
        print(f"plot: {path}")


def budget(text: str) -> str:
    """A budget of the command line: a word that Streamed knows, or GiB."""
    if text not in ("base", "compressed", "all") and not float(text) > 0:
        raise ValueError
    return text


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, help="of the model (8b; of --giant 40b)")
    parser.add_argument("--layers", type=int, help="of the model, instead of what the size has")
    parser.add_argument("--model", choices=("plain", "transformers"), default="plain", help="whose modules (plain)")
    parser.add_argument(
        "--budgets", nargs="+", type=budget, default=["base", "6", "8", "10", "12", "compressed", "all"], metavar="GIB",
        help='GiB, "base" (the smallest that works), "compressed" (nothing is streamed), "all" (nothing is decoded)',
    )  # fmt: skip
    parser.add_argument("--only", choices=ORDER, nargs="+", default=[*ORDER], help="rows beside resident")
    parser.add_argument(
        "--clear", type=float, metavar="X",
        help="have lm_head prefer one token, X times the largest of the other logits (0: random; without it, so much "
        "that int4 agrees with bf16 on some 95%% of tokens)",
    )  # fmt: skip
    parser.add_argument(
        "--drafts", nargs="+", default=[], metavar="BASE", help="count what int2, int3, int4 are worth as drafts"
    )
    parser.add_argument(
        "--loading", type=Path, metavar="FOLDER", help="load the model from files there, too (/dev/shm)"
    )
    parser.add_argument("--giant", action="store_true", help="instead: 81 GB of weights within --giant-gib of VRAM")
    parser.add_argument("--giant-gib", type=float, default=16, metavar="GIB")
    parser.add_argument("--giant-base", default="int2", choices=("int2", "int3", "int4", "int8", "none"))
    parser.add_argument(
        "--repeat-layers", type=int, default=0, metavar="N", help="only N different layers, again and again"
    )
    parser.add_argument("--seconds", type=float, default=4, help="to spend on the tokens of a row (4)")
    parser.add_argument("--steps", type=int, default=24, help="tokens of a row, at most (24)")
    parser.add_argument("--row-seconds", type=int, default=150, help="after which a row is given up (150)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too, after each row")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw tokens a second against VRAM there, as SVG")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    arguments = parser.parse_args()
    # Rows take minutes; what they are written to is looked at before.
    for option, folder in (
        ("--loading", arguments.loading),
        ("--json", arguments.json and arguments.json.parent),
        ("--plot", arguments.plot and arguments.plot.parent),
    ):
        if folder is not None and not folder.is_dir():
            parser.error(f"{option}: {folder} is no folder")
    if arguments.steps < 2:
        parser.error(f"--steps: expected two tokens or more, got {arguments.steps}")
    return arguments


def chosen_device(name: str) -> torch.device:
    if name == "cuda":
        if not torch.cuda.is_available():
            sys.exit(
                "bench_offload: torch finds no CUDA device on this machine; `make gpu-bundle` takes it to one that has "
                "one, --device cpu --size tiny walks through it here"
            )
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(name)


def settings(arguments: argparse.Namespace, device: torch.device) -> Settings:
    shape = SIZES[arguments.size or ("40b" if arguments.giant else "8b")]
    clear = shape.clear if arguments.clear is None else arguments.clear
    changes = {"layers": arguments.layers or shape.layers, "repeat": arguments.repeat_layers, "clear": clear}
    shape = dataclasses.replace(shape, **changes)
    row_seconds = arguments.row_seconds * (3 if arguments.giant else 1)
    return Settings(shape, arguments.model, device, arguments.seconds, arguments.steps, row_seconds)


def introduced(s: Settings) -> dict[str, Any]:
    """Prints, and returns, what the figures depend on."""
    shape = s.shape
    about: dict[str, Any] = {**bench.environment(), **(gpu_environment() if s.cuda else {})}
    about |= {"command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]), "shape": dataclasses.asdict(shape)}
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print(f"{s.kind} model, {shape.model_bytes / 1e9:.2f} GB in bf16; {HOW}", end="")
    print(f"; lm_head prefers a token's successor, {shape.clear} x" if shape.clear else "", end="")
    print(f"; {shape.repeat} distinct layers are repeated" if shape.repeat else "")
    link = link_gigabytes(s.device)
    if link is not None:
        about["pinned_copy_gigabytes_per_second"] = link
        print(f"a copy from pinned memory: {link:.1f} GB/s, {shape.model_bytes / link / 1e9:.3f} s for the model")
    return about


def main() -> None:
    arguments = parsed()
    s = settings(arguments, chosen_device(arguments.device))
    table = Table(introduced(s), arguments, s.shape.model_bytes)
    some = torch.ones(64, 64, dtype=torch.bfloat16, device=s.device)
    torch.mm(some, some)  # what cuBLAS keeps for itself is there before anything is counted
    try:
        if arguments.giant:
            budget = int(arguments.giant_gib * 2**30)
            what = f"giant, base {arguments.giant_base}"
            guarded(table, s, what, lambda: giant(s, arguments.giant_base, budget, enforced=True))
        else:
            drafts = dict.fromkeys([*arguments.drafts, *(["int4"] if "speculation" in arguments.only else [])])
            compared(table, s, arguments.only, arguments.budgets, [*drafts], arguments.loading)
    finally:
        table.print()
    if arguments.plot:
        pictured(table, s, arguments.plot)
    if any(row.note.startswith("failed") for row in table.rows):
        sys.exit("bench_offload: some rows failed")


if __name__ == "__main__":
    main()
