"""tpde's own rows of bench_offload.py: packing on all cores, one model at several budgets, and a giant one."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from llama_shape import Runner, empty_model, logits_layer_by_layer, matrix, prompt, put
from offload_measure import (
    PROMPT,
    TRACED,
    Figures,
    Marks,
    Reference,
    Settings,
    allocated,
    done,
    forget_peak,
    measure,
    measure_generation,
    peak,
    require_logits,
)
from offload_peers import HostWeights
from torch import Tensor, nn
from trained_model import DRAFTS, tokens_per_pass

import tpde
from tpde._residency import Residency, make_plan
from tpde.runtime import BudgetError, PackedLayer, Runtime

CODEC = "prefix"
"""What auto takes for such weights, without looking for it in each."""
_GROUP = 64
_LARGE = 256 << 20
"""Bytes of a weight that is packed on all cores by itself; of others each core packs one."""
_WAITING = 16 << 30
"""Bytes of weights and bases in host memory that wait to be packed, at most."""

Weight = Callable[[str], Tensor]


@dataclass
class Packing:
    """What packing took. Bytes of weights, and of bases and residuals that were made of them."""

    weight_bytes: int = 0
    packed_bytes: int = 0
    base_bytes: int = 0
    seconds: float = 0.0
    distinct: int = 0

    @property
    def ratio(self) -> float:
        return self.weight_bytes / self.packed_bytes

    def text(self) -> str:
        cores = os.cpu_count() or 1
        rate = self.weight_bytes / self.seconds / 1e6
        bits = 16 * self.packed_bytes / self.weight_bytes
        return (
            f"{self.weight_bytes / 1e9:.1f} GB of {self.distinct} linear layers packed in {self.seconds:.1f} s, "
            f"{rate:.0f} MB/s ({rate / cores:.0f} a core of {cores}), quantising and copying to the arena included; "
            f"{bits:.2f} bits per weight, {16 * self.base_bytes / self.weight_bytes:.2f} of them resident"
        )


def packed(s: Settings, base: str, weight: Weight, packing: Packing) -> Iterator[PackedLayer]:
    """Yields all linear layers, lm_head first. Weights are quantised on the device and packed on all cores, some ahead
    of what is taken.

    weight: returns a weight by the name of its module, on any device. Layers that are repeated are packed once.
    """
    bits = None if base == "none" else int(base.removeprefix("int"))
    cores = os.cpu_count() or 1
    began, known = time.perf_counter(), dict[str, PackedLayer]()
    names = [name for name in s.shape.matrices() if name != "model.embed_tokens"]
    names.sort(key=lambda name: name != "lm_head")
    waiting: deque[tuple[str, int, Future[PackedLayer] | None]] = deque()
    size = 0

    def taken() -> PackedLayer:
        nonlocal size
        name, held, future = waiting.popleft()
        size -= held
        if future is None:
            return known[s.shape.same(name)]._replace(name=name)
        layer = future.result()
        if s.shape.repeat:
            known[name] = layer
        base_bytes = layer.base.nbytes() if layer.base is not None else 0
        packing.base_bytes += base_bytes
        packing.packed_bytes += base_bytes + layer.index_map.numel() + layer.data_blob.numel()
        packing.distinct += 1
        return layer

    with ThreadPoolExecutor(cores) as pool:
        for name in names:
            if s.shape.same(name) != name:
                waiting.append((name, 0, None))
                continue
            w = weight(name)
            packing.weight_bytes += w.nbytes
            workers = 0 if w.nbytes >= _LARGE else 1
            on_device = w.to(s.device, non_blocking=True)
            quantised = None if bits is None else tpde.quantize(on_device, bits, _GROUP)
            dense = None if quantised is None else to_host(quantised.dequantize())
            target = to_host(on_device) if w.device.type != "cpu" else w
            held = target.nbytes * (1 if dense is None else 2)
            del on_device, w
            done(s.device)
            job = pool.submit(_pack, name, None if quantised is None else quantised.to("cpu"), dense, target, workers)
            waiting.append((name, held, job))
            size += held
            del quantised, dense, target, job
            while len(waiting) > 2 * cores or size > _WAITING:
                yield taken()
        while waiting:
            yield taken()
    packing.seconds = time.perf_counter() - began


def to_host(tensor: Tensor) -> Tensor:
    """Copies to pinned memory, which torch uses again and again; the caller waits for the device."""
    if tensor.device.type == "cpu":
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)


def _pack(name: str, base: Any, dense: Tensor | None, target: Tensor, workers: int) -> PackedLayer:
    # The base as it is dequantised is packed against: the same bits and digest as the base itself.
    return PackedLayer(name, base, *tpde.encode(dense, target, codec=CODEC, workers=workers))


def release_pinned() -> None:
    """Gives back what torch keeps of pinned memory."""
    with contextlib.suppress(AttributeError):
        torch._C._host_emptyCache()


def streamed(s: Settings, base: str, weight: Weight, rows: Tensor) -> tuple[nn.Module, Runtime, int, Packing]:
    """Returns a model without a plan, its runtime, and the smallest budget. rows: of the embedding, in host memory."""
    model = empty_model(s.shape, s.kind)
    put(model, "model.embed_tokens", rows)
    packing = Packing()
    began = time.perf_counter()
    try:
        tpde.load_into(model, packed(s, base, weight, packing), vram=1, device=s.device, verify=False)
    except BudgetError as error:  # on purpose: it tells what it takes, and the model waits for a budget
        smallest = error.smallest
    else:
        raise tpde.InternalError("a budget of one byte held a model")
    release_pinned()
    print(f"base {base}: {packing.text()}; {time.perf_counter() - began:.1f} s with page-locking", flush=True)
    return model, tpde.runtime.of(model), smallest, packing


@torch.no_grad()
def agreement(s: Settings, model: nn.Module, weights: HostWeights, bases: Sequence[str]) -> dict[str, Any]:
    """What bases are worth as drafts of a resident model: how often they choose what it does where it continues a
    prompt greedily, and the tokens that a pass yields with so many drafted. The model keeps the last base's weights."""
    tokens = 192
    ids = prompt(s.shape, PROMPT, s.device)
    runner = Runner(model, s.shape, s.device, PROMPT + tokens)
    said = [runner(ids)[:, -1:].argmax(-1)]
    while len(said) < tokens:
        said.append(runner(said[-1])[:, -1:].argmax(-1))
    full = torch.cat((ids, *said), 1)
    figures = {}
    for base in bases:
        for name in s.shape.matrices():
            if name != "model.embed_tokens":
                weight = weights.matrix(name).to(s.device)
                bits = int(base.removeprefix("int"))
                put(model, name, tpde.quantize(weight, bits, _GROUP).dequantize())
        chosen = Runner(model, s.shape, s.device, full.shape[1])(full[:, :-1])[:, PROMPT - 1 :].argmax(-1)
        same = (chosen == full[:, PROMPT:]).tolist()
        yields = {k: tokens_per_pass(same, k)[0] for k in DRAFTS}
        figures[base] = {"agreement": sum(same[0]) / tokens, "tokens_per_pass": yields}
        text = ", ".join(f"{yields[k]:.2f} with k={k}" for k in DRAFTS)
        print(
            f"draft {base}: agrees on {figures[base]['agreement']:.1%} of {tokens} tokens; a pass yields {text}",
            flush=True,
        )
    return figures


# ---- rows ---------------------------------------------------------------------------


class Streamed:
    """A model of which each row has another budget."""

    def __init__(self, s: Settings, base: str, weights: HostWeights, reference: Reference) -> None:
        self.s, self.base, self.reference = s, base, reference
        self.before = allocated(s.device)
        began = time.perf_counter()
        made = streamed(s, base, weights.matrix, weights.matrix("model.embed_tokens"))
        self.model, self.runtime, self.smallest, self.packing = made
        self.setup_seconds = time.perf_counter() - began

    def row(self, budget: str) -> Figures:
        """budget: "base", "compressed", "all", or GiB."""
        s, runtime = self.s, self.runtime
        row = self.planned(budget)
        print(f"\n{row.what}\n" + "\n".join(runtime.report().splitlines()[-6:]), flush=True)
        measure(s, row, self.model, self.reference, self.before, partial(traced, s, row, runtime), capture=True)
        return self._done(row)

    def speculated(self, budget: str) -> Figures:
        """A row of self-speculation, which wants a model of transformers."""
        row = self.planned(budget, ", self-speculation")
        speculation = tpde.SelfSpeculation(self.model)

        def generate(model: nn.Module, ids: Tensor, n: int) -> tuple[Tensor, int]:
            before = self.runtime.measured().passes
            mask = torch.ones_like(ids)
            said = speculation.generate(input_ids=ids, attention_mask=mask, max_new_tokens=n, do_sample=False)
            return said[:, ids.shape[1] :], self.runtime.measured().passes - before

        self.generated(row, generate)
        counts = speculation.counts
        row.add_note(f"{counts.share:.1%} of drafted tokens accepted")
        row.more |= {"rounds": counts.rounds, "drafted": counts.drafted, "accepted": counts.accepted}
        if speculation.why_no_graph and self.s.cuda:
            row.add_note(f"drafts without a CUDA graph: {speculation.why_no_graph}")
        return row

    def generated(self, row: Figures, generate: Callable[[nn.Module, Tensor, int], tuple[Tensor, int]]) -> Figures:
        """Fills in a row of what makes several tokens a pass. generate: as for `measure_generation`, of the streamed
        model."""

        def logits(ids: Tensor) -> Tensor:
            return Runner(self.model, self.s.shape, self.s.device, ids.shape[1])(ids)

        measure_generation(
            self.s, row, lambda ids, n: generate(self.model, ids, n), logits, self.reference, self.before
        )
        return self._done(row)

    def planned(self, budget: str, more: str = "") -> Figures:
        """Moves the model to a budget. Returns the row for it."""
        began = time.perf_counter()
        bytes_, reserve = self._budget(budget)
        forget_peak(self.s)
        self.runtime.set_vram(bytes_, reserve=reserve)
        planning_peak = peak(self.s, self.before)
        names = {"base": "base alone resident", "compressed": "all resident, compressed", "all": "all resident"}
        what = f"tpde, base {self.base}{more}: {names.get(budget, f'{budget} GiB')}"
        row = Figures(what, "yes", budget_bytes=self.runtime.vram, ratio=self.packing.ratio)
        row.setup_seconds = self.setup_seconds + time.perf_counter() - began
        row.more["planning_peak_bytes"] = planning_peak
        return row

    def _done(self, row: Figures) -> Figures:
        self.runtime.synchronize()
        plan = self.runtime.plan
        row.more["streamed_bytes"], row.more["decoded_bytes"] = plan.streamed_bytes, plan.decoded_bytes
        row.more["predicted_seconds"], row.more["limit"] = plan.seconds, plan.limit
        if row.peak_bytes is not None and row.peak_bytes > self.runtime.vram:
            row.add_note(f"over its budget by {(row.peak_bytes - self.runtime.vram) / 2**20:.0f} MiB")
        return row

    def _budget(self, budget: str) -> tuple[int, int | None]:
        if budget == "base":
            return self.smallest, None
        if budget not in ("compressed", "all"):
            return int(float(budget) * 2**30), None
        with contextlib.suppress(tpde.UnsupportedError):
            return self._whole(budget)
        self.runtime.set_vram(self.smallest)  # there is no plan yet
        return self._whole(budget)

    def _whole(self, budget: str) -> tuple[int, int]:
        """The smallest budget that streams nothing, and a block of layers in the ring; or that decodes nothing."""
        plan, reserve = self.runtime.plan, 512 << 20
        low, high = 0, 2 * (plan.fixed_bytes + sum(n.weight_bytes + n.residual_bytes for n in plan.layers))
        while high - low > max(high >> 12, 512):
            middle = (low + high) // 2
            try:
                other = make_plan(plan.layers, middle, plan.fixed_bytes)
                enough = not (other.streamed_bytes if budget == "compressed" else other.decoded_bytes)
            except BudgetError:
                enough = False
            low, high = (low, middle) if enough else (middle, high)
        tight = make_plan(plan.layers, high, plan.fixed_bytes)
        blocks = Counter[str]()
        for n, kind in zip(tight.layers, tight.residency, strict=True):
            blocks[n.block] += n.weight_bytes if kind is not Residency.WHOLE else 0
        more = max(max(blocks.values()) - tight.ring_bytes, 0)
        if make_plan(plan.layers, high + more, plan.fixed_bytes).ring_bytes > tight.ring_bytes:
            high += more
        return high + reserve, reserve


def traced(s: Settings, row: Figures, runtime: Runtime, step: Callable[[], object]) -> None:
    """Has passes traced that follow each other without a wait, and notes how busy the copy engine was: the time of one
    pass's copies by the time from one pass to the next."""
    runtime.trace()
    marks = Marks(s.device)
    for _ in range(TRACED):
        marks.mark()
        step()
    marks.mark()
    measured, seconds = runtime.measured(), statistics.median(marks.intervals()[2:])
    runtime.trace(False)
    row.more["traced"] = {
        "pass": seconds,
        "copy": measured.copy_seconds,
        "decode": measured.decode_seconds,
        "copied_bytes": measured.copied_bytes,
    }
    if measured.copied_bytes and measured.copy_seconds:
        row.copy_busy = min(measured.copy_seconds / seconds, 1.0)


# ---- the giant ------------------------------------------------------------------------


@contextlib.contextmanager
def heard(model: nn.Module, said: dict[str, Tensor]) -> Iterator[None]:
    """Keeps what each block returns, in host memory."""

    def keep(name: str, out: Tensor) -> None:
        said[name] = out.detach().cpu()

    hooks = [
        layer.register_forward_hook(lambda module, args, out, name=name: keep(f"model.layers.{name}", out))
        for name, layer in model.get_submodule("model.layers").named_children()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def giant(s: Settings, base: str, budget_bytes: int, enforced: bool) -> Figures:
    """A model that is far larger than VRAM, made layer by layer. What each of its blocks returns for the prompt, and
    its logits, are compared with those of resident blocks, bit for bit, after the budget is lifted."""
    before = allocated(s.device)
    row = Figures(f"tpde, base {base}: {s.shape.model_bytes / 1e9:.0f} GB of weights", "yes", budget_bytes=budget_bytes)
    if s.cuda and enforced:
        total = torch.cuda.get_device_properties(s.device).total_memory
        torch.cuda.set_per_process_memory_fraction(budget_bytes / total, s.device)
    try:
        began = time.perf_counter()
        rows = matrix(s.shape, "model.embed_tokens", s.device).cpu()
        model, runtime, smallest, packing = streamed(s, base, lambda name: matrix(s.shape, name, s.device), rows)
        del rows
        allocated(s.device)
        row.ratio = packing.ratio
        # The limit counts what torch's allocator holds, cut into pieces or not: a little less may have to do.
        for part in (1.0, 0.98, 0.96, 0.93, 0.9):
            try:
                runtime.set_vram(int(part * budget_bytes))
                break
            except torch.cuda.OutOfMemoryError as error:
                print(f"{part:.0%} of the budget: {str(error).splitlines()[0]}", flush=True)
                allocated(s.device)
        row.setup_seconds = time.perf_counter() - began
        print("\n".join(runtime.report().splitlines()[-6:]), flush=True)
        print(f"smallest budget: {smallest / 2**30:.2f} GiB", flush=True)
        said: dict[str, Tensor] = {}
        with heard(model, said), torch.no_grad():
            Runner(model, s.shape, s.device, PROMPT)(prompt(s.shape, PROMPT, s.device))
        got = measure(s, row, model, None, before, traced=partial(traced, s, row, runtime))
        runtime.synchronize()
        row.more["reserved_bytes"] = torch.cuda.max_memory_reserved(s.device) if s.cuda else None
        row.more["planned_bytes"] = runtime.vram
    finally:
        if s.cuda and enforced:
            torch.cuda.set_per_process_memory_fraction(1.0, s.device)
    compared = 0
    for name, expected in logits_layer_by_layer(s.shape, got.ids):
        require_logits(name, got.logits if name == "logits" else said[name], expected.cpu())
        compared += 1
    row.note = f"outputs of all {compared - 1} blocks and logits compared on bits"
    return row
