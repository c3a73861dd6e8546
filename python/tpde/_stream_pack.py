"""From an ordinary module to a streamed one: what of it is streamed, and how its weights get into the arena."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tpde import _streamed, _tensors, quant
from tpde._arena import Arena, Reader
from tpde._residency import LayerSize, aligned
from tpde._status import ArgumentError, NotFoundError
from tpde._stream_engine import Engine
from tpde._stream_memory import AnyBase, Memory
from tpde._stream_ops import Entry
from tpde._stream_order import Order

GROUP = 64
"""Elements that share a scale in the bases that `offload` makes."""

_SPARE = 64 << 20
"""Addresses that are reserved for what is not weights."""


class PackedLayer(NamedTuple):
    """A linear layer as a loader gives it.

    name: of the module, as `named_modules` calls it; of modules that share a weight any one. base: of the weight's
    shape and dtype, on any device, or None. index_map, data_blob: 1-D uint8 in host memory, from `tpde.encode`; the
    weight is [out_features, in_features], for Conv1D of transformers [in_features, out_features]. The blob may be a
    `Reader` of one. bias: [out_features]; None keeps the module's.
    """

    name: str
    base: AnyBase
    index_map: Tensor
    data_blob: Tensor | Reader
    bias: Tensor | None = None


@dataclass
class Group:
    """Modules that share a weight."""

    weight: nn.Parameter
    names: list[str] = field(default_factory=list)
    linears: list[nn.Module] = field(default_factory=list)
    embeddings: list[nn.Embedding] = field(default_factory=list)


def block_of(name: str) -> str:
    """Returns the block that a layer belongs to: "model.layers.3" for "model.layers.3.mlp.up_proj".

    A layer outside of numbered blocks is its own.
    """
    parts = name.split(".")
    for i, part in enumerate(parts[:-1]):
        if part.isdigit():
            return ".".join(parts[: i + 1])
    return name


def groups_of(module: nn.Module, embeddings: bool) -> dict[int, Group]:
    """Returns the modules inside a module that can be streamed, by the identity of their weights."""
    groups: dict[int, Group] = {}
    for name, one in module.named_modules():
        linear = _streamed.is_streamable(one)
        if not linear and not (embeddings and _streamed.is_streamable_embedding(one)):
            continue
        weight = one._parameters["weight"]
        assert isinstance(weight, nn.Parameter)
        group = groups.setdefault(id(weight), Group(weight))
        if linear:
            group.names.append(name)
            group.linears.append(one)
        elif isinstance(one, nn.Embedding):
            group.embeddings.append(one)
    return groups


class Builder:
    """Fills an engine with the layers of a module."""

    def __init__(self, module: nn.Module, device: torch.device, embeddings: bool) -> None:
        if not isinstance(module, nn.Module):
            raise ArgumentError(f"module: expected an nn.Module, got {type(module).__name__}")
        if _streamed.is_streamable(module) or _streamed.is_streamable_embedding(module):
            raise ArgumentError("module: is itself a layer; expected a model that contains some, or nn.Sequential(it)")
        if _streamed.streamed_modules(module):
            raise ArgumentError("module: is streamed already; Runtime.set_vram changes its budget")
        self.module, self.device = module, device
        self.groups = groups_of(module, embeddings)
        self.by_name = {name: group for group in self.groups.values() for name in group.names}
        devices = [group.weight.device for group in self.groups.values() if not group.weight.is_meta]
        self._home = devices[0] if devices else torch.device("cpu")
        total = sum(group.weight.nbytes for group in self.groups.values())
        self.arena = Arena(3 * total + _SPARE)
        self.engine = Engine(_memory(device, self.arena), self.arena)
        self._ready: list[tuple[nn.Module, Entry]] = []
        self._biases: list[tuple[nn.Module, Tensor]] = []
        self._taken: list[Group] = []
        self._numbers: dict[int, int] = {}  # of a layer, by id of its group

    def add(self, layer: PackedLayer, verify: bool) -> None:
        """Takes a packed weight for all linear layers that share it."""
        group = self.by_name.get(layer.name)
        if group is None:
            raise NotFoundError(f"{layer.name}: the module has no linear layer of this name")
        if id(group) in self._numbers:
            raise ArgumentError(f"{layer.name}: is there twice, or shares its weight with a layer that was there")
        info = _tensors.read_index(layer.index_map)
        if info.shape != list(group.weight.shape):
            raise ArgumentError(
                f"{layer.name}: expected a weight of shape {list(group.weight.shape)}, the index says {info.shape}"
            )
        if layer.bias is not None:
            transposed = not isinstance(group.linears[group.names.index(layer.name)], nn.Linear)
            want = info.shape[1:] if transposed else info.shape[:1]
            if not isinstance(layer.bias, Tensor) or list(layer.bias.shape) != want:
                got = list(layer.bias.shape) if isinstance(layer.bias, Tensor) else type(layer.bias).__name__
                raise ArgumentError(f"{layer.name}: expected a bias of shape {want}, got {got}")
        memory = self.engine.memory
        memory.add(layer.name, block_of(group.names[0]), layer.base, layer.index_map, layer.data_blob)
        number = self._numbers[id(group)] = len(memory.layers) - 1
        if verify:  # checks the digests; the result is dropped
            base = None if layer.base is None else layer.base.to("cpu")
            _tensors.reconstruct(base, *memory.packed(number))
        for one in group.linears:
            transposed = not isinstance(one, nn.Linear)
            self._ready.append((one, Entry(self.engine, number, id(group), transposed)))
        if layer.bias is not None:
            self._biases.append((self.module.get_submodule(layer.name), layer.bias))
        self._taken.append(group)

    def add_embeddings(self, group: Group, reader: Reader | None = None) -> None:
        """Takes the rows of embeddings that share a weight. reader: reads them; without it, one without data stays."""
        if group.weight.is_meta and reader is None:
            return
        tables: dict[int | None, int] = {}
        for one in group.embeddings:
            if one.padding_idx not in tables:
                tables[one.padding_idx] = self.engine.add_table(group.weight, one.padding_idx, reader)
            self._ready.append((one, Entry(self.engine, tables[one.padding_idx], id(group))))
        if not group.linears:
            self._taken.append(group)

    def replace(self) -> None:
        """Makes modules streamed whose weights were taken. Nothing here refers to their weights after that."""
        while self._ready:
            _streamed.stream(*self._ready.pop())
        while self._biases:
            module, bias = self._biases.pop()
            module.bias = nn.Parameter(bias.to(self.device), requires_grad=False)
        while self._taken:
            group = self._taken.pop()
            group.weight = nn.Parameter(group.weight.detach().to("meta"), requires_grad=False)

    @contextlib.contextmanager
    def undone_by_failures(self) -> Iterator[None]:
        """Gives modules that were made streamed their weights back if something fails inside."""
        try:
            yield
        except BaseException:
            self.replace()
            left = {id(group): group.weight for group in self.groups.values() if not group.weight.is_meta}
            restore_all(self.module, self.engine, self._home, left)
            raise

    def finish(self, pin: bool | None) -> Engine:
        """Puts everything else of the module on the device. Returns the engine, which has no plan yet.

        What may fail comes first, and weights go last.
        """
        self.arena.seal(pin, self.device)
        self.engine.map_tables()
        going = {id(module._parameters["weight"]) for module, _ in self._ready}
        for one in self.module.modules():
            for tensor in one._parameters.values():
                if tensor is not None and id(tensor) not in going and not tensor.is_meta:
                    tensor.data = tensor.data.to(self.device)
            for name, buffer in one._buffers.items():
                if buffer is not None and not buffer.is_meta:
                    one._buffers[name] = buffer.to(self.device)
        self.replace()
        # Until a pass has shown another: the order in which modules were made.
        order = ((name, self.by_name.get(name)) for name, _ in self.module.named_modules())
        numbers = [self._numbers[id(group)] for _, group in order if group is not None and id(group) in self._numbers]
        self.engine.order = Order(list(dict.fromkeys(numbers)))
        return self.engine


def fixed_bytes(module: nn.Module, memory: Memory | None = None) -> int:
    """Returns what parameters and buffers of a module take of the device: of a streamed one, all but its weights.

    memory: knows better than their sizes what they take.
    """
    seen: dict[int, int] = {}
    for one in module.modules():
        for tensor in (*one._parameters.values(), *one._buffers.values()):
            if tensor is not None:
                seen[id(tensor)] = aligned(tensor.nbytes) if memory is None else memory.taken_bytes(tensor)
    return sum(seen.values())


def restore_all(
    module: nn.Module, engine: Engine, device: torch.device, known: dict[int, nn.Parameter] | None = None
) -> None:
    """Makes all streamed modules inside a module ordinary ones, their weights on a device, and closes the engine.

    known: weights that are still there, by `Entry.tie`.
    """
    weights = dict(known or {})
    for one in _streamed.streamed_modules(module):
        entry = one._entry
        if entry.tie not in weights:
            if isinstance(one, nn.Embedding):
                weight = engine.host_table(entry.number).clone()
            else:
                weight = engine.memory.rebuild_on_host(entry.number)
            weights[entry.tie] = nn.Parameter(weight.to(device), requires_grad=one._trainable)
        _streamed.restore(one, weights[entry.tie])
    engine.close()


def least_sizes(groups: dict[int, Group], bits: int | None) -> list[LayerSize]:
    """What the planner would be told if residuals took nothing: a plan for less cannot be."""
    sizes = []
    for group in groups.values():
        if group.linears:
            n, base = group.weight.numel(), 0
            if bits is not None and group.weight.dtype in quant._TARGETS:
                base = aligned(-(-n * bits // 32) * 4) + aligned(2 * -(-n // GROUP))
            sizes.append(LayerSize(group.names[0], block_of(group.names[0]), group.weight.nbytes, base, 0))
    return sizes


def _memory(device: torch.device, arena: Arena) -> Memory:
    if device.type == "cpu":
        return Memory(device, arena)
    from tpde._stream_cuda import CudaMemory

    return CudaMemory(device, arena)
