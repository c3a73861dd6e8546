"""A trained model, streamed: its perplexity is the resident model's to the last bit, and its base is a good draft.

    python tests/bench/trained_model.py [--seconds 75] [--tiny] [--device cpu] [--json FILE] [--markdown]

Trains a model of Llama's shape, byte by byte, on the sources and texts of the installed Python packages: bf16 weights,
fp32 masters, AdamW. Then packs it with each base and runs it from the smallest budget, everything streamed: logits on
held-out files and tokens that are generated are compared on bits. What a draft is worth is counted with the weights
that the base stands for: how often its greedy choice is the full model's on held-out text; and, where the full model
continues held-out text greedily, the tokens that a pass of it yields when k of them are drafted.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import hashlib
import json
import math
import sys
import sysconfig
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_timing import gpu_environment
from llama_shape import Cache, Llama, Shape
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import bench
import tpde
from tpde import _reports, _streamed
from tpde.runtime import BudgetError

SHAPE = Shape(hidden=768, layers=8, inner=2048, heads=12, kv_heads=4, vocabulary=256)
TINY = Shape(hidden=64, layers=2, inner=160, heads=4, kv_heads=2, vocabulary=256)
BASES = ("int2", "int3", "int4", "none")
DRAFTS = (2, 4, 8, 16)
_SUFFIXES = {".py", ".pyi", ".md", ".rst", ".txt"}


@dataclass(frozen=True)
class Sizes:
    """Of training and of what is compared: sequences of `length` bytes."""

    shape: Shape
    batch: int
    length: int
    text_bytes: int
    held_out: int
    """Sequences."""
    continued: int
    """Tokens that each of some sequences is continued by."""


FULL = Sizes(SHAPE, batch=64, length=512, text_bytes=64 << 20, held_out=128, continued=256)
SMALL = Sizes(TINY, batch=8, length=64, text_bytes=1 << 20, held_out=8, continued=24)


# ---- text ---------------------------------------------------------------------------


def text(most_bytes: int) -> tuple[Tensor, Tensor]:
    """Returns bytes to train on and, of other files, a fiftieth of that to hold out. The same for the same packages."""
    root = Path(sysconfig.get_path("purelib"))
    folders = {root, Path(torch.__file__).parents[1], Path(sysconfig.get_path("stdlib"))}
    names = sorted({path for folder in folders for path in folder.rglob("*") if path.suffix in _SUFFIXES})
    names.sort(key=lambda path: hashlib.sha256(path.name.encode()).digest())
    train, held_out = bytearray(), bytearray()
    for path in names:
        if len(train) >= most_bytes and len(held_out) >= most_bytes // 50:
            break
        try:
            content = path.read_bytes()[: 1 << 18]
        except OSError:
            continue
        (held_out if len(held_out) < most_bytes // 50 and len(train) > 40 * len(held_out) else train).extend(content)
    return torch.frombuffer(train, dtype=torch.uint8), torch.frombuffer(held_out, dtype=torch.uint8)


def batch_of(data: Tensor, batch: int, length: int, g: torch.Generator) -> Tensor:
    """Returns [batch, length + 1] bytes from anywhere."""
    starts = torch.randint(0, len(data) - length - 1, (batch, 1), generator=g, device=data.device)
    return data[starts + torch.arange(length + 1, device=data.device)].long()


# ---- training -----------------------------------------------------------------------


def prompt_logits(model: nn.Module, shape: Shape, ids: Tensor) -> Tensor:
    out: Tensor = model(ids, Cache(shape, ids.shape[1], ids.device, batch=0))
    return out


def trained(sizes: Sizes, data: Tensor, seconds: float, most_steps: int | None, device: torch.device) -> nn.Module:
    """Returns a model in bf16, trained for so long."""
    torch.manual_seed(0)
    shape = sizes.shape
    model = Llama(shape).to(device)
    for p in model.parameters():
        if p.dim() == 2:
            nn.init.normal_(p, std=0.02)
    data = data.to(device)
    weights = list(model.parameters())
    masters = [p.detach().float() for p in weights]
    optimizer = torch.optim.AdamW(masters, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=device.type == "cuda")
    g = torch.Generator(device).manual_seed(1)
    began = time.perf_counter()
    step, share = 0, 0.0
    while share < 1:
        ids = batch_of(data, sizes.batch, sizes.length, g)
        logits = prompt_logits(model, shape, ids[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
        loss.backward()
        for master, p in zip(masters, weights, strict=True):
            assert p.grad is not None
            master.grad, p.grad = p.grad.float(), None
        nn.utils.clip_grad_norm_(masters, 1.0)
        rate = 1e-3 * min(1.0, (step + 1) / 100) * (0.1 + 0.45 * (1 + math.cos(math.pi * share)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(weights, masters)
        step += 1
        if step % 20 == 0 or most_steps is not None:  # the host runs ahead of the device otherwise
            shown = loss.item()
            share = step / most_steps if most_steps is not None else (time.perf_counter() - began) / seconds
            if step % 200 == 0:
                print(f"step {step}, {time.perf_counter() - began:.0f} s: loss {shown:.3f}", flush=True)
    seen = step * sizes.batch * sizes.length
    count = sum(p.numel() for p in weights)
    took = time.perf_counter() - began
    print(f"{count / 1e6:.1f} M parameters, {step} steps, {seen / 1e6:.1f} MB of text in {took:.0f} s", flush=True)
    return model.requires_grad_(False).eval()


# ---- what is compared -----------------------------------------------------------------


def reproducible() -> AbstractContextManager[None]:
    """Keeps attention from cuDNN, whose result differs from call to call (H200, torch 2.11, also with deterministic
    algorithms): of one new token for each of 32 sequences, one number of 24,576 in a third of the calls."""
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


@torch.no_grad()
def perplexity(model: nn.Module, shape: Shape, held_out: Tensor, batch: int = 16) -> tuple[float, str, Tensor]:
    """Returns the perplexity per byte, a digest of all logits' bits, and the greedy choices."""
    total, choices, digest = 0.0, [], hashlib.sha256()
    for first in range(0, len(held_out), batch):
        ids = held_out[first : first + batch]
        logits = prompt_logits(model, shape, ids[:, :-1])
        digest.update(logits.cpu().view(torch.int16).numpy().tobytes())
        total += F.cross_entropy(logits.flatten(0, 1).double(), ids[:, 1:].flatten(), reduction="sum").item()
        choices.append(logits.argmax(-1))
    return math.exp(total / held_out[:, 1:].numel()), digest.hexdigest(), torch.cat(choices)


@torch.no_grad()
def continued(model: nn.Module, shape: Shape, prompts: Tensor, tokens: int) -> Tensor:
    """Returns greedy continuations [batch, tokens] of prompts [batch, length]."""
    cache = Cache(shape, prompts.shape[1] + tokens, prompts.device, batch=len(prompts))
    said = [model(prompts, cache)[:, -1:].argmax(-1)]
    while len(said) < tokens:
        said.append(model(said[-1], cache)[:, -1:].argmax(-1))
    return torch.cat(said, 1)


@torch.no_grad()
def accepted(draft: nn.Module, shape: Shape, prompts: Tensor, said: Tensor) -> list[list[bool]]:
    """Returns for each token of continuations whether the draft, shown all before it, chooses the same."""
    ids = torch.cat((prompts, said), 1)
    choices = prompt_logits(draft, shape, ids[:, :-1])[:, prompts.shape[1] - 1 :].argmax(-1)
    same: list[list[bool]] = (choices == said).tolist()
    return same


def tokens_per_pass(same: Sequence[Sequence[bool]], k: int) -> tuple[float, float]:
    """Returns the tokens that a pass yields, and those that it accepts, if k are drafted for each. A pass yields what
    it accepts and one of its own."""
    passes = tokens = taken = 0
    for row in same:
        at = 0
        while at + k < len(row):
            accepted = next((i for i in range(k) if not row[at + i]), k)
            at += accepted + 1
            passes, tokens, taken = passes + 1, tokens + accepted + 1, taken + accepted
    return (tokens / passes, taken / passes) if passes else (math.nan, math.nan)


def drafted(model: nn.Module, bits: int) -> nn.Module:
    """Returns a copy whose linear layers have the weights that their bases stand for, as `tpde.offload` makes them."""
    draft = copy.deepcopy(model)
    for module in draft.modules():
        if _streamed.is_streamable(module):
            weight: Any = module.weight
            module.weight = nn.Parameter(tpde.quantize(weight.detach(), bits, 64).dequantize(), requires_grad=False)
    return draft


def streamed(model: nn.Module, base: str, device: torch.device) -> tuple[nn.Module, tpde.runtime.Runtime]:
    """Returns a streamed copy with the smallest budget."""
    other = copy.deepcopy(model)
    runtime = tpde.offload(other, base=base, device=device)
    try:
        runtime.set_vram(1)
    except BudgetError as error:
        runtime.set_vram(error.smallest)
    return other, runtime


# ---- the run ------------------------------------------------------------------------


def proven(model: nn.Module, sizes: Sizes, held_out: Tensor, base: str, expected: Sequence[Any]) -> dict[str, Any]:
    """Runs the model from a base and residuals. Raises InternalError unless every bit is the resident model's."""
    shape, device = sizes.shape, held_out.device
    value, digest, choices, prompts, said = expected
    other, runtime = streamed(model, base, device)
    got = perplexity(other, shape, held_out)
    if got[:2] != (value, digest):
        raise tpde.InternalError(f"base {base}: expected perplexity {value!r} ({digest}), got {got[0]!r} ({got[1]})")
    if not torch.equal(continued(other, shape, prompts, sizes.continued), said):
        raise tpde.InternalError(f"base {base}: expected the resident model's tokens")
    runtime.synchronize()
    layers = runtime.plan.layers
    weights, bases, residuals = (
        sum(getattr(n, f"{part}_bytes") for n in layers) for part in ("weight", "base", "residual")
    )
    figures: dict[str, Any] = {
        "base": base,
        "perplexity": got[0],
        "ratio": weights / (bases + residuals),
        "resident_bits": 16 * bases / weights,
        "streamed_bits": 16 * residuals / weights,
        "streamed_layers": sum(kind.value == "streamed" for kind in runtime.plan.residency),
        "layers": len(layers),
    }
    del other, runtime
    if base != "none":
        draft = drafted(model, int(base.removeprefix("int")))
        draft_value, _, draft_choices = perplexity(draft, shape, held_out)
        same = accepted(draft, shape, prompts, said)
        figures["draft_perplexity"] = draft_value
        figures["agreement"] = (draft_choices == choices).double().mean().item()
        figures["agreement_on_continuations"] = sum(map(sum, same)) / said.numel()
        figures["tokens_per_pass"] = {k: tokens_per_pass(same, k)[0] for k in DRAFTS}
        figures["accepted"] = {k: tokens_per_pass(same, k)[1] for k in DRAFTS}
    return figures


def run(sizes: Sizes, seconds: float, most_steps: int | None, device: torch.device) -> list[dict[str, Any]]:
    train, held = text(sizes.text_bytes)
    print(f"text: {len(train) / 1e6:.1f} MB of installed packages, {len(held) / 1e6:.2f} MB held out", flush=True)
    model = trained(sizes, train, seconds, most_steps, device)
    held_out = batch_of(held.to(device), sizes.held_out, sizes.length, torch.Generator(device).manual_seed(2))
    prompts = held_out[: max(sizes.held_out // 4, 1), : sizes.length // 2]
    with reproducible():
        said = continued(model, sizes.shape, prompts, sizes.continued)
        if not torch.equal(continued(model, sizes.shape, prompts, sizes.continued), said):
            raise RuntimeError(
                "the resident model's own tokens differ from run to run: there is nothing to compare with"
            )
        expected = (*perplexity(model, sizes.shape, held_out), prompts, said)
        print(f"held out: perplexity {expected[0]:.4f} a byte, {math.log2(expected[0]):.3f} bits", flush=True)
        rows = []
        for base in BASES:
            began = time.perf_counter()
            rows.append(proven(model, sizes, held_out, base, expected))
            print(f"base {base}: the same bits; {time.perf_counter() - began:.1f} s", flush=True)
    return rows


def table(rows: Sequence[dict[str, Any]], markdown: bool) -> str:
    head = (
        *("base", "ratio", "resident + streamed bits", "perplexity", "of the base alone", "same choice, held-out text"),
        *(f"tokens a pass, k={k}" for k in DRAFTS),
    )
    lines = [
        (
            row["base"],
            f"{row['ratio']:.3f}",
            f"{row['resident_bits']:.2f} + {row['streamed_bits']:.2f}",
            f"{row['perplexity']:.6f}, exact",
            f"{row['draft_perplexity']:.4f}" if "draft_perplexity" in row else "-",
            f"{row['agreement']:.2%}" if "agreement" in row else "-",
            *(f"{row['tokens_per_pass'][k]:.2f}" if "tokens_per_pass" in row else "-" for k in DRAFTS),
        )
        for row in rows
    ]
    if not markdown:
        return _reports.table(head, lines)
    lines = [tuple("---" if i == 0 else "---:" for i in range(len(head))), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, *lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=75, help="of training (75)")
    parser.add_argument("--steps", type=int, help="of training, instead of seconds")
    parser.add_argument("--tiny", action="store_true", help="a model of no worth, for a check that everything runs")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("trained_model: torch finds no CUDA device on this machine; --device cpu --tiny walks through it here")
    about = {**bench.environment(), **(gpu_environment() if arguments.device == "cuda" else {})}
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    sizes = SMALL if arguments.tiny else FULL
    rows = run(sizes, arguments.seconds, arguments.steps, torch.device(arguments.device))
    print("\n" + table(rows, arguments.markdown), flush=True)
    if arguments.json:
        sizes_told = dataclasses.asdict(sizes)
        arguments.json.write_text(
            json.dumps({"environment": about, "sizes": sizes_told, "rows": rows}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
