"""Running a model that does not fit: its linear layers are streamed through a GPU's memory, bit for bit.

    model = tpde.load("compressed", vram="6GiB")                 # what `tpde compress` wrote, as a transformers model
    runtime = tpde.runtime.of(model)
    runtime = tpde.offload(model, base="int4", vram="6GiB")      # or a model that is there
    print(runtime.report())
    model(inputs)                       # an ordinary forward pass
    print(runtime.measured())
    runtime.set_vram("4GiB")            # at any time

Every linear layer becomes a base that stays in VRAM and a residual in one arena of pinned host memory. The planner
(`tpde._residency`) keeps in VRAM what the budget allows; the rest is copied on a stream of its own, a few layers ahead,
and decoded just before it is used (`tpde._stream_schedule`). Weights are frozen; gradients flow to inputs and biases,
so that adapters on top can be trained. On device="cpu" the same runs without streams, for tests.

A forward pass of the whole model can be captured in a CUDA graph, once one has run, and is then streamed by the GPU
alone. Capture with `torch.cuda.graph`, which waits for the device first, as is needed; replay on the stream that other
passes run on; capture again after `Runtime.set_vram`.
"""

from __future__ import annotations

import functools
import os
import re
import warnings
import weakref
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from tpde import _budget, _forecast, _hf, _load, _memory, _options, _stream_pack, _tensors, quant
from tpde._residency import BudgetError, Plan, Rates, aligned, amount, no_plan, smallest_budget
from tpde._sources import PathLike
from tpde._status import ArgumentError, HandleError, UnsupportedError
from tpde._stream_engine import Engine, Measured
from tpde._stream_memory import AnyBase
from tpde._stream_pack import Builder, PackedLayer

__all__ = ["BudgetError", "Measured", "PackedLayer", "Plan", "Rates", "Runtime", "load", "load_into", "of", "offload"]

_ATTRIBUTE = "_tpde_runtime"

F = TypeVar("F", bound=Callable[..., Any])


def _outside(function: F) -> F:
    """Has no tensors made that are only good in inference mode, wherever it is called."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with torch.inference_mode(False), torch.no_grad():
            return function(*args, **kwargs)

    return cast(F, call)


BaseMaker = Callable[[str, Tensor], AnyBase]


class Runtime:
    """What streams a model: its plan, its figures, and its budget. Dropping the model gives all memory back."""

    def __init__(self, module: nn.Module, engine: Engine, rates: Rates | None) -> None:
        self._module = weakref.ref(module)
        self._engine = weakref.ref(engine)
        self._rates = rates
        self.vram = 0
        """Budget, in bytes."""
        self.reserve = 0
        """What of it is left for activations and caches, in bytes."""
        hook = _PassHook(engine)
        self._hooks = [
            module.register_forward_pre_hook(hook.begin),
            module.register_forward_hook(hook.end, always_call=True),
        ]
        module.__dict__[_ATTRIBUTE] = self

    @_outside
    def set_vram(self, vram: int | str | None = None, *, reserve: int | str | None = None) -> Plan:
        """Plans for another budget, and moves to VRAM or out of it what that takes. Waits for the device.

        vram: bytes, "6GiB", "6GB"; None: what is free, or on a CPU what everything takes. reserve: of it, for
            activations, key-value caches and other models; None: an eighth, 512 MiB at most.
        Returns the plan. Raises BudgetError, which names the smallest budget that works, and changes nothing then.
        CUDA graphs that passes were captured in before are of no use afterwards: weights are elsewhere.
        """
        engine, module = self._alive()
        kept = _budget.kept(reserve)
        engine.memory.survey()
        fixed = _stream_pack.fixed_bytes(module, engine.memory)
        budget = _everything(engine, fixed, kept) if vram is None else _options.size_in_bytes("vram", vram)
        left = _budget.left(budget, kept)
        try:
            plan = engine.apply(left, fixed, self._rates)
        except BudgetError as error:
            raise _budget.in_total(error, budget, kept) from None
        self.vram, self.reserve = budget, budget - left
        return plan

    @property
    def plan(self) -> Plan:
        """What is where, and what that predicts. `plan.budget` is the budget less the reserve."""
        plan = self._alive()[0].plan
        if plan is None:
            raise no_plan()
        return plan

    def report(self) -> str:
        """A table of all layers: resident or streamed, bytes and predicted time of a pass, and what limits it.

        After a pass, what was measured stands beside what was predicted; for that it waits for the device.
        """
        engine, _ = self._alive()
        lines = [self.plan.report(), f"beside it {amount(self.reserve)} are left for activations and caches"]
        host = f"host memory: {amount(engine.memory.arena.used)}"
        lines.append(f"{host}, page-locked" if engine.memory.arena.pinned else f"{host}, pageable")
        if engine.schedule is not None and engine.schedule.counts.uses:
            lines += ["", str(engine.measured())]
        return "\n".join(lines)

    def measured(self) -> Measured:
        """What the last pass did, beside what was predicted. Waits for the device; printing it makes a table."""
        return self._alive()[0].measured()

    def trace(self, on: bool = True) -> None:
        """Has copies and launches timed one by one, from the next pass on: see `spans`, `measured`."""
        self._alive()[0].trace(on)

    def spans(self) -> list[tuple[str, float, float]]:
        """What the last traced pass did: ("copy" or "decode", begin, end) in seconds. Waits for the device."""
        engine, _ = self._alive()
        with engine.lock:
            return engine.spans()

    def synchronize(self) -> None:
        """Waits for the device and raises what went wrong there: CorruptError or ChecksumError, which name a layer."""
        self._alive()[0].memory.check()

    @_outside
    def unload(self, device: torch.device | str = "cpu") -> None:
        """Makes the model an ordinary one on a device, with the weights it was made from, and gives all memory back.

        It takes the memory of all weights there.
        """
        engine, module = self._alive()
        for hook in self._hooks:
            hook.remove()
        with engine.lock:
            _stream_pack.restore_all(module, engine, torch.device(device))
        module.__dict__.pop(_ATTRIBUTE, None)
        module.to(device)

    def _alive(self) -> tuple[Engine, nn.Module]:
        engine, module = self._engine(), self._module()
        if engine is None or module is None:
            raise HandleError("the streamed model is gone")
        return engine, module


class _PassHook:
    """Tells an engine when a pass begins and ends. torch.compile leaves it out."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def begin(self, module: nn.Module, inputs: Any) -> None:
        if not torch.compiler.is_compiling():
            self._engine.begin()

    def end(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if not torch.compiler.is_compiling():
            self._engine.end()


@_outside
def load_into(
    module: nn.Module,
    layers: PathLike | Iterable[PackedLayer | tuple[Any, ...]],
    vram: int | str | None = None,
    *,
    device: torch.device | str | None = None,
    reserve: int | str | None = None,
    embeddings: bool = True,
    verify: bool | None = None,
    pin: bool | None = None,
    rates: Rates | None = None,
) -> Runtime:
    """Replaces the weights of linear layers by packed ones, which are streamed.

    module: any model; its linear layers may be on the meta device. Those that are not in layers stay as they are, on
        the device, like everything else.
    layers: the folder of a compressed model (`tpde.compress`): all parameters and buffers that it has are loaded from
        there, by their names; linear layers and embeddings as they are stored, without packing anything again.
        Or `PackedLayer`s, or tuples like them, in any order; taken one by one, so that a generator need hold only one.
        (What is on the meta device and not among them stays there; load it afterwards.)
    vram, reserve: see `Runtime.set_vram`.
    device: None: the current CUDA device, the CPU without one.
    embeddings: keep embeddings in host memory, and copy the rows that are looked up.
    verify: compare the digests of bases and weights, which rebuilds each weight on the CPU once. None: those of layers
        that are given, not those of a folder, for which there is `tpde verify`.
    pin: page-lock the arena; True raises UnsupportedError where that fails, None warns, False does not try.
    rates: for predictions; None measures a copy and a launch.

    Raises BudgetError, after which the model is streamed and waits for a `set_vram` that works (`of(module)`);
    ArgumentError, NotFoundError (also for what has no data and is not in the folder), BaseMismatchError, ChecksumError,
    CorruptError, UnsupportedError, after which it is as it was.
    """
    _budget.check(vram, reserve)
    if isinstance(layers, (str, os.PathLike)):
        with _load.opened(layers) as model:
            builder = Builder(module, _device(device), embeddings)
            return _loaded(builder, _load.Matched(module, model), bool(verify), vram, reserve, pin, rates)
    builder = Builder(module, _device(device), embeddings)
    for layer in layers:
        try:
            given = PackedLayer(*layer)  # its index may be a view of a large file, and is kept
        except TypeError:
            fields = ", ".join(PackedLayer._fields)
            raise ArgumentError(f"layers: expected tuples ({fields}), got {type(layer).__name__}") from None
        builder.add(given._replace(index_map=_memory.host(given.index_map, "index_map").clone()), verify is not False)
    for group in builder.groups.values():
        builder.add_embeddings(group)
    return _started(module, builder.finish(pin), vram, reserve, rates)


@_outside
def load(
    folder: PathLike,
    vram: int | str | None = None,
    *,
    device: torch.device | str | None = None,
    reserve: int | str | None = None,
    embeddings: bool = True,
    verify: bool = False,
    pin: bool | None = None,
    rates: Rates | None = None,
    model_class: Any = None,
) -> Any:
    """Returns a compressed model as an ordinary model of transformers, in eval mode, whose linear layers are streamed.

    folder: what `tpde compress` or `tpde.compress` wrote of a folder in the layout of transformers. Weights keep the
        dtype that they have there, bit for bit. Residuals are read straight into pinned host memory.
    model_class: the model's class; None: the one that config.json names, of transformers itself.
    The others: see `load_into`; `tpde.runtime.of(model)` is its runtime, with plan, figures and `set_vram`.

    Raises UnsupportedError where transformers, or the class, is missing; BudgetError before anything is read (`tpde
    plan` says what fits); otherwise as `load_into`.
    """
    _budget.check(vram, reserve)
    where = _device(device)
    _hf.require_transformers()
    with _load.opened(folder) as packed:
        model = _hf.skeleton(packed.folder, packed.dtype(), model_class)
        matched = _hf.matched(model, packed)
        if vram is not None:
            _forecast.require_fits(packed, matched, model, embeddings, where.type == "cuda", vram, reserve)
        _loaded(Builder(model, where, embeddings), matched, verify, vram, reserve, pin, rates)
    return model


def _loaded(
    builder: Builder, matched: _load.Matched, verify: bool, vram: int | str | None, reserve: int | str | None,
    pin: bool | None, rates: Rates | None,
) -> Runtime:  # fmt: skip
    room = 0
    if builder.device.type == "cuda" and not verify:
        room = torch.cuda.mem_get_info(builder.device)[0] // 2
        if vram is not None:  # bases fit in any budget for which there is a plan
            room = min(room, _budget.left(_options.size_in_bytes("vram", vram), _budget.kept(reserve)))
    place = _load.fill(builder, matched, verify, room)
    engine = builder.finish(pin)
    place()
    return _started(builder.module, engine, vram, reserve, rates)


@_outside
def offload(
    module: nn.Module,
    base: str | BaseMaker | None = "int4",
    vram: int | str | None = None,
    *,
    device: torch.device | str | None = None,
    reserve: int | str | None = None,
    embeddings: bool = True,
    codec: str = "auto",
    level: str = "default",
    workers: int = 0,
    pin: bool | None = None,
    rates: Rates | None = None,
) -> Runtime:
    """Packs the linear layers of a live model one by one and streams them; each weight is freed once it is packed.

    base: "int4", "int2", "int3", "int8": quantised in groups of 64. "none" or None: no base; everything is in the
        residual, two thirds of a weight. Or a function of (name, weight) that returns a base or None.
    codec, level, workers: as for `tpde.encode`; on a GPU "auto" is one that is decoded there.
    The others: see `load_into`. Weights of dtypes that cannot be quantised get no base.

    Raises BudgetError: before anything is packed, if not even the bases fit; afterwards see `load_into`. Whatever else
    fails while layers are packed leaves the model with all its weights.
    """
    _budget.check(vram, reserve)
    bits = _bits(base)
    # auto may choose what the device does not decode; then the others follow, for this layer and the rest.
    codecs = ["auto", "prefix", "elias"] if codec == "auto" else [codec]
    builder = Builder(module, _device(device), embeddings)
    if vram is not None and not callable(base):
        _require_bases_fit(builder, module, bits, vram, reserve)
    with builder.undone_by_failures():
        for group in builder.groups.values():
            builder.add_embeddings(group)
            if group.linears:
                name, weight = group.names[0], group.weight.detach()
                if weight.is_meta:
                    raise ArgumentError(f"{name}: has no data, it is on the meta device; see load_into")
                made = base(name, weight) if callable(base) else _quantised(weight, bits)
                while True:
                    index_map, data_blob = _tensors.encode(made, weight, codec=codecs[0], level=level, workers=workers)
                    try:
                        builder.add(PackedLayer(name, made, index_map, data_blob), verify=False)
                    except UnsupportedError:
                        if len(codecs) == 1:
                            raise
                        del codecs[0]
                        continue
                    break
                del weight, made, index_map, data_blob
            builder.replace()
        engine = builder.finish(pin)
    return _started(module, engine, vram, reserve, rates)


def of(module: nn.Module) -> Runtime:
    """Returns the runtime of a streamed model, or of one that contains it. Raises ArgumentError."""
    if not isinstance(module, nn.Module):
        raise ArgumentError(f"module: expected an nn.Module, got {type(module).__name__}")
    for one in module.modules():
        found = one.__dict__.get(_ATTRIBUTE)
        if found is not None:
            return cast(Runtime, found)
    raise ArgumentError("module: is not streamed, and contains nothing that is")


def _started(
    module: nn.Module, engine: Engine, vram: int | str | None, reserve: int | str | None, rates: Rates | None
) -> Runtime:
    runtime = Runtime(module, engine, rates)
    if engine.memory.arena.why_not:
        warnings.warn(
            f"{engine.memory.arena.why_not}. Residuals are copied from pageable memory: at 10 to 16 GB/s instead of "
            "the link's full speed (55 with PCIe 5), the host waiting for each copy",
            RuntimeWarning,
            stacklevel=4,  # who called load_into or offload
        )
    runtime.set_vram(vram, reserve=reserve)
    return runtime


def _device(device: torch.device | str | None) -> torch.device:
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = _memory.parse_device(device, "a CUDA device or the CPU")
    if chosen.type == "cuda":
        from tpde.cuda import require_device

        return require_device(chosen)
    if chosen.type != "cpu":
        raise ArgumentError(f"device: expected a CUDA device or the CPU, got {chosen}")
    return torch.device("cpu")


def _bits(base: str | BaseMaker | None) -> int | None:
    if base is None or base == "none" or callable(base):
        return None
    match = re.fullmatch(r"int([2348])", base) if isinstance(base, str) else None
    if match is None:
        raise ArgumentError(f"base: expected 'int2', 'int3', 'int4', 'int8', 'none' or a function, got {base!r}")
    return int(match[1])


def _quantised(weight: Tensor, bits: int | None) -> AnyBase:
    if bits is None or weight.dtype not in quant._TARGETS:
        return None
    return quant.quantize(weight, bits, _stream_pack.GROUP)


def _require_bases_fit(
    builder: Builder, module: nn.Module, bits: int | None, vram: int | str, reserve: int | str | None
) -> None:
    """Raises BudgetError where it is known without packing."""
    budget = _options.size_in_bytes("vram", vram)
    kept = _budget.kept(reserve)
    weights = sum(aligned(group.weight.nbytes) for group in builder.groups.values())
    fixed = _stream_pack.fixed_bytes(module) - weights
    least = smallest_budget(_stream_pack.least_sizes(builder.groups, bits), fixed)
    if _budget.left(budget, kept) < least:
        raise _budget.in_total(BudgetError(budget, least), budget, kept, " (nothing was packed yet; it may take more)")


def _everything(engine: Engine, fixed: int, reserve: int | None) -> int:
    """Returns the budget that is there."""
    fixed += engine.memory.fixed_bytes()
    device = engine.memory.device
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return engine.memory.held_bytes() + fixed + torch.cuda.mem_get_info(device)[0] + cached
    least = fixed + sum(aligned(layer.weight_bytes) for layer in engine.memory.layers)
    return _budget.with_reserve(least, reserve)
