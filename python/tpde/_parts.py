"""What the tensors of a target are made of, read from files as it is stored: bases, indices and blobs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from tpde import _core, _dtypes, _jobs, _memory, quant
from tpde.quant import QuantizedTensor


class Part(NamedTuple):
    """Bytes in a file, by number."""

    number: int
    bytes: int

    @classmethod
    def of(cls, raw: dict[str, int]) -> Part:
        return cls(raw["part"], raw["bytes"])


@dataclass(frozen=True)
class PackedLayer:
    """One delta of a tensor."""

    delta: str
    index: int
    index_bytes: int
    blob: int
    blob_bytes: int


@dataclass(frozen=True)
class QuantisedBase:
    """A quantised base, in parts: `tpde.quant.QuantizedTensor`."""

    kind: str
    bits: int
    group_size: int
    scale_dtype: torch.dtype
    packed: Part
    scale: Part
    zero: Part | None
    code: Part | None

    @classmethod
    def of(cls, raw: dict[str, Any]) -> QuantisedBase:
        parts = {name: raw[name] and Part.of(raw[name]) for name in ("packed", "scale", "zero", "code")}
        return cls(raw["kind"], raw["bits"], raw["group_size"], _dtypes.torch_of_name(raw["scale_dtype"]), **parts)

    def parts(self) -> list[tuple[str, Part, torch.dtype]]:
        """Name, part and dtype of what there is."""
        named = (
            ("packed", self.packed, torch.uint8),
            ("scale", self.scale, self.scale_dtype),
            ("zero", self.zero, torch.uint8),
            ("code", self.code, torch.float32),
        )
        return [(name, part, dtype) for name, part, dtype in named if part is not None]

    def descriptor(self, packed: int, scale: int, zero: int, code: list[float] | None, n: int) -> bytes:
        """Returns what a kernel reads of n elements whose parts are at these addresses (FORMAT.md, "Descriptor")."""
        kind, scale_type = quant.KINDS[self.kind], _dtypes.number_of(self.scale_dtype)
        return quant.make_descriptor(
            packed, scale, zero, n, self.packed.bytes, self.group_size, kind, self.bits, scale_type, code
        )

    def tensor(self, tensors: dict[str, torch.Tensor], shape: Sequence[int], dtype: torch.dtype) -> QuantizedTensor:
        """Returns the base whose parts are given by name."""
        return QuantizedTensor(
            tensors["packed"], tensors["scale"], tensors.get("zero"), self.bits, self.group_size, tuple(shape), dtype,
            self.kind, tensors.get("code"),
        )  # fmt: skip


class Row(NamedTuple):
    """One tensor of the target: what tpde_parts_list says of it. At most one of base and quantised is there."""

    name: str
    dtype: torch.dtype
    shape: list[int]
    bytes: int
    same_as: str | None
    base: int | None
    quantised: QuantisedBase | None
    layers: list[PackedLayer]

    def numel(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @classmethod
    def of(cls, raw: dict[str, Any]) -> Row:
        dtype = _dtypes.torch_of_name(raw["dtype"])
        layers = [
            PackedLayer(delta, index["part"], index["bytes"], blob["part"], blob["bytes"])
            for delta, index, blob in ((one["delta"], one["index"], one["blob"]) for one in raw["layers"])
        ]
        shape = _dtypes.torch_shape(_dtypes.number_of(dtype), raw["shape"])
        base = None if raw["base"] is None else raw["base"]["part"]
        quantised = QuantisedBase.of(raw["quantised"]) if raw.get("quantised") else None
        return cls(raw["name"], dtype, shape, raw["bytes"], raw.get("same_as"), base, quantised, layers)


class Parts:
    """What a target is made of, as the core gives it out."""

    def __init__(self, handle: int, workers: int) -> None:
        self.handle = handle
        self._workers = workers
        self.rows = [Row.of(raw) for raw in json.loads(_core.core().parts_list(handle))["tensors"]]

    def gather(self, room: torch.Tensor, spans: Sequence[tuple[int, int, int, int]]) -> None:
        """Copies spans to room, a 1-D uint8 tensor in host memory. Raises BaseMismatchError for a wrong base."""
        _core.core().parts_gather(*_memory.pointer(room), self.handle, spans, self._workers)

    def read(self, number: int, room: torch.Tensor) -> None:
        """Copies a part, all of it, to room, a 1-D uint8 tensor of its size in host memory."""
        if room.numel():
            self.gather(room, [(number, 0, room.numel(), 0)])

    def index(self, layer: PackedLayer) -> torch.Tensor:
        """Returns the index of a layer, 1-D uint8 in host memory."""
        return self._to_host(Part(layer.index, layer.index_bytes))

    def quantised(
        self, row: Row, read: Callable[[Sequence[Part]], Sequence[torch.Tensor]] | None = None
    ) -> QuantizedTensor:
        """Returns the quantised base of a row. read: returns its parts, 1-D uint8 each; None: to host memory."""
        assert row.quantised is not None
        names, parts, dtypes = zip(*row.quantised.parts(), strict=True)
        octets = map(self._to_host, parts) if read is None else read(parts)
        tensors = {name: one.view(dtype) for name, one, dtype in zip(names, octets, dtypes, strict=True)}
        return row.quantised.tensor(tensors, row.shape, row.dtype)

    def _to_host(self, part: Part) -> torch.Tensor:
        room = torch.empty(part.bytes, dtype=torch.uint8, device="cpu")
        self.read(part.number, room)
        return room


@contextmanager
def opened(source: int, workers: int) -> Iterator[Parts]:
    """Gives the parts of a source that deltas were applied to."""
    parts: list[int] = []
    try:
        yield Parts(_jobs.hold(parts, _core.core().parts_open, source), workers)
    finally:
        for handle in parts:
            _core.core().parts_free(handle)
