"""Where the parts of a streamed model are, and the backend of a schedule that works on the CPU.

`Memory` holds bases, residuals that are resident, weights that are whole, ring and buffers, and moves them about when
the plan changes. What it is worth on a CPU: the same plan, schedule and modules run there, one step after the other,
which is how they are tested. `_stream_cuda.CudaMemory` does it with CUDA's streams and kernels.
"""

from __future__ import annotations

import math
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from tpde import _arena, _ops, _tensors
from tpde._arena import Arena, Reader
from tpde._residency import LayerSize, Plan, Residency, aligned
from tpde._status import ArgumentError
from tpde._stream_schedule import Item, Move
from tpde.quant import QuantizedTensor

AnyBase = torch.Tensor | QuantizedTensor | None


@dataclass
class Layer:
    """A weight, packed. base is on the device, or in host memory while the weight is whole."""

    name: str
    block: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    base: AnyBase
    index_map: torch.Tensor
    """In host memory."""
    at: int
    """First byte of its record in the arena: what a decoder reads beside the blob, then the blob."""
    blob_at: int
    """First byte of the blob, in the record."""
    blob_bytes: int
    status_bytes: int = 0
    """Of the device's memory, always."""
    descriptor_bytes: int = 0
    """Of the device's memory, with the base."""

    @property
    def weight_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def record_bytes(self) -> int:
        return self.blob_at + self.blob_bytes


class Memory:
    """The memory of a model on the CPU, and a `Backend` that does everything at once."""

    def __init__(self, device: torch.device, arena: Arena) -> None:
        self.device = device
        self.arena = arena
        self.layers: list[Layer] = []
        self.whole: list[torch.Tensor | None] = []
        self.resident: list[torch.Tensor | None] = []
        self._drop_rooms()
        self.spans: list[tuple[str, Any, Any]] | None = None
        """If it is a list: what was copied and decoded, from one stamp to another."""

    # ---- layers -------------------------------------------------------------------

    def add(
        self, name: str, block: str, base: AnyBase, index_map: torch.Tensor, data_blob: torch.Tensor | Reader
    ) -> Layer:
        """Copies a packed weight to the arena, or reads it there. base and index_map are kept, not copied.

        Raises ArgumentError for a base that does not fit, UnsupportedError for what the device cannot decode.
        """
        info = _tensors.read_index(index_map)
        if data_blob.nbytes != info.blob_bytes:
            raise ArgumentError(f"{name}: expected a blob of {info.blob_bytes} bytes, got {data_blob.nbytes}")
        if (base is not None) != info.has_base:
            raise ArgumentError(f"{name}: was packed {'against a base' if info.has_base else 'without a base'}")
        if base is not None and (base.dtype != info.dtype or list(base.shape) != info.shape):
            raise ArgumentError(
                f"{name}: expected a base of {info.dtype} and shape {info.shape}, got {base.dtype}, {list(base.shape)}"
            )
        if isinstance(base, torch.Tensor):
            base = base.detach().contiguous()
        head, status_bytes = self._head(name, index_map)
        blob_at = _arena.offsets([head.nbytes, data_blob.nbytes])[1]
        at = self.arena.add([head, data_blob])[0]
        layer = Layer(
            name, block, tuple(info.shape), info.dtype, base, index_map, at, blob_at, data_blob.nbytes,
            status_bytes, self._descriptor_bytes(base),
        )  # fmt: skip
        self.layers.append(layer)
        self.whole.append(None)
        self.resident.append(None)
        return layer

    def _head(self, name: str, index_map: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Returns what the decoder reads beside the blob, and the bytes that a layer takes of the device always."""
        return index_map, 0

    def _descriptor_bytes(self, base: AnyBase) -> int:
        return 0

    def host_record(self, number: int) -> torch.Tensor:
        """The record of a layer in the arena."""
        layer = self.layers[number]
        return self.arena.tensor[layer.at : layer.at + layer.record_bytes]

    # ---- sizes --------------------------------------------------------------------

    def most_bytes(self, n: int) -> int:
        """What the device's allocator takes at most for n bytes."""
        return aligned(n)

    def taken_bytes(self, tensor: torch.Tensor, nbytes: int | None = None) -> int:
        """What a tensor takes of the device: as far as it is known, and otherwise at most.

        nbytes: of everything that is in one allocation with it.
        """
        return aligned(tensor.nbytes if nbytes is None else nbytes)

    def survey(self) -> bool:
        """Finds out what tensors really take of the device. Returns whether that may be less than was planned for."""
        return False

    def size(self, number: int, calls: int = 1) -> LayerSize:
        """What the planner is told of a layer."""
        layer, whole, resident = self.layers[number], self.whole[number], self.resident[number]
        weight = self.most_bytes(layer.weight_bytes) if whole is None else self.taken_bytes(whole)
        residual = self.most_bytes(layer.record_bytes) if resident is None else self.taken_bytes(resident)
        return LayerSize(
            layer.name, layer.block, layer.weight_bytes, self._base_bytes(layer.base) + layer.descriptor_bytes,
            layer.record_bytes, calls, weight - aligned(layer.weight_bytes), residual - aligned(layer.record_bytes),
        )  # fmt: skip

    def _base_bytes(self, base: AnyBase) -> int:
        """What a base takes of the device, or would take there."""
        parts = base_parts(base)
        if not parts:
            return 0
        together = sum(aligned(part.nbytes) for part in parts)
        if parts[0].device != self.device:
            return self.most_bytes(together)
        if len({part.untyped_storage().data_ptr() for part in parts}) == 1:
            return self.taken_bytes(parts[0], together)
        return sum(self.taken_bytes(part) for part in parts)

    def fixed_bytes(self) -> int:
        """What layers take of the device whatever the plan is."""
        return sum(layer.status_bytes for layer in self.layers)

    def held_bytes(self) -> int:
        """What layers, ring and buffers take of the device besides."""
        held = sum(self.taken_bytes(t) for t in (*self.whole, *self.resident, self._rooms) if t is not None)
        for layer, whole in zip(self.layers, self.whole, strict=True):
            # On a CPU, a base that is not needed stays where it is.
            if _is_on(layer.base, self.device) and (whole is None or self.device.type != "cpu"):
                held += self._base_bytes(layer.base)
            if whole is None:
                held += layer.descriptor_bytes
        return held

    # ---- plans --------------------------------------------------------------------

    def apply(self, plan: Plan) -> None:
        """Moves everything to where a plan wants it, without taking more than its budget at any time.

        It waits for the device. If it fails, no plan is applied; another call may succeed.
        """
        self.wait_for_all()
        with torch.inference_mode(False), torch.no_grad():
            self._drop_rooms()
            for number, kind in enumerate(plan.residency):
                if kind is not Residency.WHOLE:
                    self.whole[number] = None
                if kind is not Residency.RESIDENT:
                    self.resident[number] = None
            self.wait_for_all()  # what other streams used is free when they are done, and not before
            self.survey()
            for number, kind in enumerate(plan.residency):
                if kind is not Residency.WHOLE:
                    self._move_base(number, self.device)
            left = plan.budget - plan.fixed_bytes - self.held_bytes()
            for number, kind in enumerate(plan.residency):
                if kind is Residency.WHOLE and self.whole[number] is None:
                    left -= self._make_whole(number, left)
            for number, kind in enumerate(plan.residency):
                if kind is Residency.RESIDENT and self.resident[number] is None:
                    self.resident[number] = self.host_record(number).to(self.device, copy=True)
            self._make_rooms(plan.ring_bytes, plan.buffer_bytes)
            self._rooms_made(plan)
        self.wait_for_all()

    def _drop_rooms(self) -> None:
        self._make_rooms(0, 0)

    def _make_rooms(self, ring: int, buffer: int) -> None:
        """Makes ring and buffers, of so many bytes, in one allocation: it is rounded up once."""
        self._rooms = torch.empty(ring + 2 * buffer, dtype=torch.uint8, device=self.device)
        self.ring = self._rooms[:ring]
        self.buffers = [self._rooms[at : at + buffer] for at in (ring, ring + buffer)]
        self._typed: dict[torch.dtype, torch.Tensor] = {}

    def _rooms_made(self, plan: Plan) -> None:
        """Is called when ring and buffers are there."""

    def _move_base(self, number: int, device: torch.device) -> None:
        layer = self.layers[number]
        if isinstance(layer.base, QuantizedTensor):
            if layer.base.device != device:
                layer.base = in_one_piece(layer.base, device)
        elif layer.base is not None:
            layer.base = layer.base.to(device)

    def _make_whole(self, number: int, left: int) -> int:
        """Rebuilds a weight for good, taking no more than `left` bytes meanwhile. Returns what it takes in the end."""
        size = self.size(number)
        base_is_here = _is_on(self.layers[number].base, self.device)
        takes = self.most_bytes(size.weight_bytes)
        if takes + self.most_bytes(size.residual_bytes) + (0 if base_is_here else size.base_bytes) <= left:
            self._move_base(number, self.device)
            self.whole[number] = self.rebuild(number)
            self._move_base(number, torch.device("cpu"))
        else:  # slower, but takes nothing of the device but the weight
            self._move_base(number, torch.device("cpu"))
            self.whole[number] = self.rebuild_on_host(number).to(self.device)
        return takes - (size.base_bytes if base_is_here else 0)

    # ---- weights ------------------------------------------------------------------

    def weight(self, number: int, at: int | None) -> torch.Tensor:
        """Returns a weight that is whole, or lies in the ring. Not a copy."""
        layer = self.layers[number]
        if at is None:
            whole = self.whole[number]
            assert whole is not None
            return whole
        typed = self._typed.get(layer.dtype)
        if typed is None:
            size = layer.dtype.itemsize
            typed = self._typed[layer.dtype] = self.ring[: self.ring.numel() // size * size].view(layer.dtype)
        return torch.as_strided(typed, layer.shape, strides(layer.shape), at // layer.dtype.itemsize)

    def rebuild(self, number: int) -> torch.Tensor:
        """Returns a weight in memory of its own, on the device. It takes memory beside the plan's."""
        whole = self.whole[number]
        if whole is not None:
            return whole.clone()
        layer, resident = self.layers[number], self.resident[number]
        record = self.host_record(number).to(self.device) if resident is None else resident
        out = torch.empty(layer.shape, dtype=layer.dtype, device=self.device)
        self._decode([(number, out, record)])
        return out

    def rebuild_on_host(self, number: int) -> torch.Tensor:
        """Returns a weight in host memory, rebuilt there."""
        layer = self.layers[number]
        base = layer.base.to("cpu") if layer.base is not None else None
        out = torch.empty(layer.shape, dtype=layer.dtype, device="cpu")
        _ops.reconstruct_into(out, base, *self.packed(number), False, 0)
        return out

    def packed(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Index map and blob of a layer, in host memory. The blob is a view of the arena."""
        return self.layers[number].index_map, self._blob(number, self.host_record(number))

    def _blob(self, number: int, record: torch.Tensor) -> torch.Tensor:
        layer = self.layers[number]
        return record[layer.blob_at : layer.record_bytes]

    def _decode(self, items: Sequence[tuple[int, torch.Tensor, torch.Tensor]]) -> None:
        """Rebuilds layers to tensors, each from its record on the device."""
        for number, out, record in items:
            layer = self.layers[number]
            _ops.reconstruct_into(out, layer.base, layer.index_map, self._blob(number, record), False, 0)

    # ---- Backend ------------------------------------------------------------------

    def queue(self) -> Hashable:
        return 0

    def copy(self, buffer: int, moves: Sequence[Move]) -> None:
        begin = self.stamp(True) if self.spans is not None else None
        for first, to, size in self._runs(moves):
            self.buffers[buffer][to : to + size].copy_(self.arena.tensor[first : first + size], non_blocking=True)
        if self.spans is not None:
            self.spans.append(("copy", begin, self.stamp(True)))

    def _runs(self, moves: Sequence[Move]) -> list[tuple[int, int, int]]:
        """First byte in the arena, first byte in the buffer, and bytes, of moves that follow each other in both."""
        runs: list[tuple[int, int, int]] = []
        for number, to in moves:
            layer = self.layers[number]
            if runs and layer.at - runs[-1][0] == to - runs[-1][1] == aligned(runs[-1][2]):
                runs[-1] = (*runs[-1][:2], layer.at - runs[-1][0] + layer.record_bytes)
            else:
                runs.append((layer.at, to, layer.record_bytes))
        return runs

    def decode(self, buffer: int | None, items: Sequence[Item]) -> None:
        begin = self.stamp(False) if self.spans is not None else None
        self._decode_items(buffer, items)
        if self.spans is not None:
            self.spans.append(("decode", begin, self.stamp(False)))

    def _decode_items(self, buffer: int | None, items: Sequence[Item]) -> None:
        todo = []
        for number, to, source in items:
            record = self.resident[number]
            if source is not None:
                assert buffer is not None
                record = self.buffers[buffer][source : source + self.layers[number].record_bytes]
            assert record is not None
            todo.append((number, self.weight(number, to), record))
        self._decode(todo)

    def record(self, copies: bool, queue: Hashable = None) -> Any:
        return None

    def wait(self, copies: bool, mark: Any) -> None:
        pass

    # ---- time and end ---------------------------------------------------------------

    def capturing(self) -> bool:
        """Whether a CUDA graph is captured on the current queue."""
        return False

    def map_host(self, table: torch.Tensor) -> torch.Tensor | None:
        """Returns memory of the arena as the device sees it; None if it does not."""
        return table

    def wait_for_all(self) -> None:
        """Makes the host wait for the device."""

    def check(self) -> None:
        """Waits, and raises what went wrong on the device since the last call."""

    def stamp(self, copies: bool) -> Any:
        """Returns a point in time: when copies, or the current queue, are as far as now."""
        return time.perf_counter()

    def seconds(self, begin: Any, end: Any) -> float:
        """Returns the time between two stamps. Waits for them."""
        return float(end - begin)

    def close(self) -> None:
        """Gives everything back."""
        self.whole = []
        self.resident = []
        self.layers = []
        self._drop_rooms()
        self.arena.close()


def base_parts(base: AnyBase) -> list[torch.Tensor]:
    """Returns the tensors that a base is made of."""
    return base.parts() if isinstance(base, QuantizedTensor) else [] if base is None else [base]


def in_one_piece(base: QuantizedTensor, device: torch.device) -> QuantizedTensor:
    """Returns a base on another device, its parts in one allocation, each aligned."""
    named = {name: getattr(base, name) for name in ("packed", "scale", "zero", "code")}
    parts = {name: part for name, part in named.items() if part is not None}
    rooms = rooms_in_one_piece([part.nbytes for part in parts.values()], device)
    moved: dict[str, Any] = {
        name: room.view(part.dtype).copy_(part) for (name, part), room in zip(parts.items(), rooms, strict=True)
    }
    return replace(base, **moved)


def rooms_in_one_piece(sizes: Sequence[int], device: torch.device) -> list[torch.Tensor]:
    """Returns so many bytes each, uint8, in one allocation, each aligned."""
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + aligned(size))
    everything = torch.empty(starts[-1], dtype=torch.uint8, device=device)
    return [everything[start : start + size] for start, size in zip(starts, sizes, strict=False)]


def _is_on(base: AnyBase, device: torch.device) -> bool:
    parts = base_parts(base)
    return bool(parts) and parts[0].device == device


def strides(shape: Sequence[int]) -> list[int]:
    """Returns the strides of a contiguous tensor."""
    out = [1] * len(shape)
    for i in range(len(shape) - 2, -1, -1):
        out[i] = out[i + 1] * max(shape[i + 1], 1)
    return out
