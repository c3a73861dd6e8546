"""What a compressed model would do within a budget of VRAM, found out without loading it: `tpde plan`.

Sizes are exact: they are in the files. What the allocator of torch takes beyond them, and a few bytes of status, are
counted as the planner counts them before anything is there. How fast a pass is follows from two rates, of copying to
the GPU and of decoding there, which are measured where there is a GPU, in a moment and on the model's own layers.
"""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tpde import _allocator, _arena, _budget, _cuda, _hf, _load, _options, _stream_pack
from tpde._core import gpu_core
from tpde._residency import (
    ALIGN,
    BudgetError,
    LayerSize,
    Plan,
    Rates,
    Residency,
    aligned,
    amount,
    make_plan,
    resident_bytes,
    smallest_budget,
)
from tpde._sources import PathLike
from tpde._status import ArgumentError, NotFoundError, UnsupportedError

_MEASURED_BYTES = 256 << 20  # of weights that are decoded, and of pinned memory that is copied, to find out rates
_LINK = {1: 0.25, 2: 0.5, 3: 0.985, 4: 1.969, 5: 3.938, 6: 7.563}  # GB/s a lane, by generation of PCIe
# As the core knows them (core/checkpoint/quantise.go): the last part of the name of an embedding's module.
_EMBEDDINGS = {
    "embed_tokens", "wte", "wpe", "embed_in", "tok_embeddings", "shared", "word_embeddings", "position_embeddings",
    "token_type_embeddings", "embed_positions", "embeddings", "token_embedding", "position_embedding", "embed",
}  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """A compressed model as the planner sees it. fixed_bytes: of the device, for all that is not streamed.
    host_bytes: pinned. packed: the tensor that each layer is."""

    layers: tuple[LayerSize, ...]
    fixed_bytes: int
    host_bytes: int
    packed: tuple[str, ...]
    by: str
    """How layers were told from other tensors."""


@dataclass(frozen=True)
class Forecast:
    """A plan for a compressed model, and what it rests on. Printing it makes a table.

    vram, reserve: the budget in bytes, and what of it is left for activations and caches. smallest, everything: budgets
    that work at all, and that hold all weights as they are. rates_from: how the rates were found. gpu: what `tpde info`
    says of the GPU, None without one. host_bytes: pinned host memory.
    """

    folder: str
    plan: Plan
    vram: int
    reserve: int
    smallest: int
    everything: int
    host_bytes: int
    rates_from: str
    layers_by: str
    gpu: dict[str, Any] | None

    def __str__(self) -> str:
        lines = [f"{self.folder}: {len(self.plan.layers)} layers, told from other tensors by {self.layers_by}"]
        if self.gpu is not None:
            lines.append(_gpu_line(self.gpu, self.vram))
        lines += [
            f"rates: {self.rates_from}",
            self.plan.report(),
            f"beside it {amount(self.reserve)} are left for activations and caches: {amount(self.vram)} in all",
            f"host memory: {amount(self.host_bytes)}, page-locked",
            f"smallest budget: {amount(self.smallest)}; everything whole: {amount(self.everything)}",
        ]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Everything, for json.dumps: sizes in bytes, times in seconds, rates in 10^9 bytes a second."""
        names = ("folder", "vram", "reserve", "smallest", "everything", "host_bytes", "rates_from", "layers_by", "gpu")
        return {name: getattr(self, name) for name in names} | {"plan": self.plan.to_dict()}


def forecast(
    folder: PathLike,
    vram: int | str | None = None,
    *,
    reserve: int | str | None = None,
    embeddings: bool = True,
    copy: float | None = None,
    decode: float | None = None,
    device: torch.device | str | None = None,
) -> Forecast:
    """Plans for a compressed model on a GPU, which need not be there.

    vram, reserve, embeddings: as for `tpde.load`; vram None: what is free on the GPU.
    copy, decode: rates in 10^9 bytes a second, of residuals to the GPU and of rebuilt weights; None: measured on the
        GPU in a moment, or assumed without one.
    device: the GPU, "cpu": none, whatever is there; None: the current one, if there is one.

    Raises BudgetError, which names the smallest budget that works; ArgumentError; as `tpde.load` for the folder.
    """
    _budget.check(vram, reserve)
    for what, rate in (("copy", copy), ("decode", decode)):
        if rate is not None and not 0 < rate < float("inf"):
            raise ArgumentError(f"{what}: expected a rate in GB/s above 0, got {rate}")
    where = _gpu(device)
    info = None if where is None else _info(where)
    if vram is None and where is None:
        raise ArgumentError("vram: expected a size such as '6GiB': there is no GPU that says what is free")
    kept = _budget.kept(reserve)
    with _load.opened(folder) as model:
        sizes = sizes_of(model, _skeleton(model), embeddings, cuda=True)
        if vram is not None:
            budget = _options.size_in_bytes("vram", vram)
        else:
            assert where is not None
            budget = (info and info["memory_free"]) or torch.cuda.mem_get_info(where)[0]
        plan = plan_for(sizes, budget, kept)
        rates, rates_from = Rates(), "assumed; --copy and --decode say others"
        if copy is not None and decode is not None:
            rates_from = "as given"
        elif where is not None:
            rates, rates_from = _measured(model, plan, sizes, where), f"measured on {torch.cuda.get_device_name(where)}"
    rates = Rates(rates.copy if copy is None else copy, rates.decode if decode is None else decode)
    plan = Plan(
        plan.layers, plan.residency, plan.budget, plan.fixed_bytes, plan.ring_bytes, plan.buffer_bytes, rates
    )  # fmt: skip
    whole = sizes.fixed_bytes + sum(resident_bytes(n, Residency.WHOLE) for n in sizes.layers)
    smallest = smallest_budget(sizes.layers, sizes.fixed_bytes)
    return Forecast(
        model.folder, plan, budget, _budget.reserved(budget, kept), _budget.with_reserve(smallest, kept),
        _budget.with_reserve(whole, kept), sizes.host_bytes, rates_from, sizes.by, info,
    )  # fmt: skip


def plan_for(sizes: Sizes, budget: int, reserve: int | None) -> Plan:
    """Returns the plan for a budget. Raises BudgetError, with the reserve in it."""
    try:
        return make_plan(sizes.layers, _budget.left(budget, reserve), sizes.fixed_bytes)
    except BudgetError as error:
        raise _budget.in_total(error, budget, reserve) from None


def require_fits(
    model: _load.PackedModel,
    matched: _load.Matched,
    module: nn.Module,
    embeddings: bool,
    cuda: bool,
    vram: int | str,
    reserve: int | str | None,
) -> None:
    """Raises BudgetError for a budget that is too small for a model, before anything of it is read."""
    budget, kept = _options.size_in_bytes("vram", vram), _budget.kept(reserve)
    left = _budget.left(budget, kept)
    rough = sizes_of(model, (matched, module), embeddings, cuda, exact=False)
    if left < smallest_budget(rough.layers, rough.fixed_bytes):
        sizes = sizes_of(model, (matched, module), embeddings, cuda)
        smallest = smallest_budget(sizes.layers, sizes.fixed_bytes)
        if left < smallest:
            raise _budget.in_total(BudgetError(left, smallest), budget, kept)


# ---- sizes ------------------------------------------------------------------------------


def sizes_of(
    model: _load.PackedModel,
    known: tuple[_load.Matched, nn.Module] | None,
    embeddings: bool,
    cuda: bool,
    exact: bool = True,
) -> Sizes:
    """Returns what the planner has to know of a model. known: a module and what is what in it; None: names and shapes
    have to tell.

    exact: otherwise no index is read, and residuals are taken for larger than they are.
    """
    if known is None:
        streamed, fixed, tables = _by_names(model, embeddings)
        by = "names and shapes (transformers, which would know, is missing or has no such model)"
    else:
        matched, module = known
        streamed, fixed, tables = _by_module(matched, module, embeddings)
        by = f"the modules of {type(module).__name__}"
    layers, statuses, records = [], 0, 0
    for name, row in streamed:
        layer, status = _layer(model, name, row, cuda, exact)
        layers.append(layer)
        statuses += status
        records += layer.residual_bytes
    if not layers:
        raise ArgumentError(f"{model.folder}: has no layer that could be streamed")
    rooms = sum(n.weight_bytes + 2 * n.residual_bytes for n in layers)
    extra = _allocator.most_bytes(rooms) - aligned(rooms) if cuda else 0
    return Sizes(
        tuple(layers), fixed + statuses + extra, aligned(records) + tables, tuple(row for _, row in streamed), by
    )  # fmt: skip


def _by_module(matched: _load.Matched, module: nn.Module, embeddings: bool) -> tuple[list[tuple[str, str]], int, int]:
    groups = _stream_pack.groups_of(module, embeddings)
    streamed, tables, gone = {}, 0, set()
    for key, group in groups.items():
        is_streamed = matched.is_streamed(group)
        if is_streamed:
            streamed[group.names[0]] = matched.row(group)
        if group.embeddings:
            tables += aligned(group.weight.nbytes)
        if is_streamed or not group.linears:
            gone.add(key)
    order = [(name, streamed[name]) for name, _ in module.named_modules() if name in streamed]
    tensors = {id(t): t for one in module.modules() for t in (*one._parameters.values(), *one._buffers.values())}
    fixed = sum(aligned(t.nbytes) for key, t in tensors.items() if t is not None and key not in gone)
    return order, fixed, tables


def _by_names(model: _load.PackedModel, embeddings: bool) -> tuple[list[tuple[str, str]], int, int]:
    streamed, fixed, tables = [], 0, 0
    for name, row in model.rows.items():
        if row.same_as is not None or ":" in name:
            continue
        module = name.removesuffix(".weight")
        is_matrix = len(row.shape) == 2 and row.dtype.is_floating_point and model.is_packed(name)
        is_embedding = embeddings and len(row.shape) == 2 and module.rpartition(".")[2] in _EMBEDDINGS
        if is_embedding:
            tables += aligned(row.bytes)
        # An embedding has a base where it is the output matrix, too.
        if is_matrix and name != module and (not is_embedding or row.quantised is not None):
            streamed.append((module, name))
        elif not is_embedding:
            fixed += aligned(row.bytes)
    return sorted(streamed, key=lambda one: _natural(one[0])), fixed, tables


def _natural(name: str) -> list[tuple[int, int | str]]:
    """Sort key under which layer 2 comes before layer 10."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", name) if part]


def _layer(model: _load.PackedModel, name: str, row: str, cuda: bool, exact: bool) -> tuple[LayerSize, int]:
    """Returns a layer and the bytes of its status words."""
    made = model.made_of(row)
    blob_bytes, index_bytes = made.layers[0].blob_bytes, made.layers[0].index_bytes
    parts = [] if made.quantised is None else [part.bytes for _, part, _ in made.quantised.parts()]
    base, block = sum(map(aligned, parts)), _stream_pack.block_of(name)
    if not cuda:
        record = _arena.offsets([index_bytes, blob_bytes])[1] + blob_bytes
        return LayerSize(name, block, made.bytes, base, record), 0
    if exact:
        prepared = _cuda.Prepared(model.index(row))
        head, chunks = prepared.image.numel(), prepared.chunks
    else:  # tables, and 32 bytes of each chunk, which takes a byte of the index at least
        head, chunks = (1 << 17) + 32 * index_bytes, index_bytes
    record = _arena.offsets([head, blob_bytes])[1] + blob_bytes
    base = _allocator.most_bytes(base) + ALIGN if parts else 0
    beyond = [_allocator.most_bytes(n) - aligned(n) for n in (made.bytes, record)]
    return LayerSize(name, block, made.bytes, base, record, 1, *beyond), aligned(4 * chunks)


def _skeleton(model: _load.PackedModel) -> tuple[_load.Matched, nn.Module] | None:
    """Returns the module that the folder describes, without data; None where nobody can make it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made: nn.Module = _hf.skeleton(model.folder, model.dtype())
            return _hf.matched(made, model), made
    except (UnsupportedError, NotFoundError):
        return None


# ---- rates ------------------------------------------------------------------------------


def _gpu(device: torch.device | str | None) -> torch.device | None:
    if device is None and not torch.cuda.is_available():
        return None
    if device is not None and str(device) == "cpu":
        return None
    from tpde.cuda import require_device

    return require_device(device)


def _info(device: torch.device) -> dict[str, Any] | None:
    """Returns what `tpde info` says of a GPU."""
    gpus: list[dict[str, Any]] = json.loads(gpu_core().device_info())["gpus"]
    return gpus[device.index] if device.index < len(gpus) else None


def _measured(model: _load.PackedModel, plan: Plan, sizes: Sizes, device: torch.device) -> Rates:
    """Times copies of pinned memory, and launches that rebuild a few layers that the plan does not hold whole."""
    items: list[tuple[Any, torch.Tensor, torch.Tensor]] = []
    weights = 0
    for row, n, kind in zip(sizes.packed, sizes.layers, plan.residency, strict=True):
        if kind is Residency.WHOLE or (items and weights + n.weight_bytes > min(plan.ring_bytes, _MEASURED_BYTES)):
            continue
        blob = model.blob(row)
        room = torch.empty(blob.nbytes, dtype=torch.uint8, device="cpu")
        blob.read(room)
        base = model.base(row)
        items.append((None if base is None else base.to(device), model.index(row), room.to(device)))
        weights += n.weight_bytes
    with torch.cuda.device(device):
        rates = Rates(copy=_copy_rate(max(plan.buffer_bytes, 16 << 20), device))
        if items:
            from tpde.cuda import reconstruct_many

            out = reconstruct_many(items, verify=False)
            seconds = _seconds(lambda: reconstruct_many(items, verify=False, out=out))
            rates = Rates(rates.copy, weights / seconds / 1e9)
        torch.cuda.synchronize()
    return rates


def _copy_rate(n: int, device: torch.device) -> float:
    n = min(n, _MEASURED_BYTES)
    source = torch.ones(n, dtype=torch.uint8, device="cpu", pin_memory=True)
    room = torch.empty(n, dtype=torch.uint8, device=device)
    return n / _seconds(lambda: room.copy_(source, non_blocking=True)) / 1e9


def _seconds(call: Any) -> float:
    """Returns what a call takes on the current stream: the least of five times some, which hide what the first takes
    of the host, after two times to warm up."""
    some = 4
    times: list[float] = []
    for _ in range(7):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        for _ in range(some):
            call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3 / some)
    return max(min(times[2:]), 1e-9)


def _gpu_line(gpu: dict[str, Any], vram: int) -> str:
    parts = [gpu["name"]]
    free = gpu["memory_free"]
    if free is not None:
        parts.append(f"{amount(free)} of {amount(gpu['memory_total'])} free")
        if free < vram:
            parts[-1] += ", LESS THAN THE BUDGET"
    link = gpu["pcie"]
    if link is not None:  # an idle link may be slower than it gets
        most = _LINK.get(link["max_generation"], 0) * link["max_width"]
        at_most = f": {most:.0f} GB/s at most" if most else ""
        parts.append(f"PCIe generation {link['max_generation']}, width {link['max_width']}{at_most}")
    return ", ".join(parts)
