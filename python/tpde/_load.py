"""From the folder of a compressed model to a streamed module: bases and residuals are read as they are stored, blobs
straight into the arena; nothing is packed again, and nothing is in host memory twice.
"""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tpde import _compressed, _core, _memory, _parts, _sources, _tensors
from tpde._arena import Reader
from tpde._parts import Parts, Row
from tpde._sources import PathLike
from tpde._status import ArgumentError, NotFoundError, UnsupportedError
from tpde._stream_memory import AnyBase
from tpde._stream_pack import Builder, Group, PackedLayer
from tpde._upload import Upload


class PackedModel:
    """The tensors of a compressed model, by name."""

    def __init__(self, folder: str, source: int, parts: Parts) -> None:
        self.folder = folder
        self.rows = {row.name: row for row in parts.rows}
        self._source, self._parts = source, parts

    def made_of(self, name: str) -> Row:
        """Returns what a tensor is made of: where it has the bytes of another one, what that is made of."""
        row = self.rows[name]
        if row.same_as is None:
            return row
        of = self.rows[row.same_as]
        return row._replace(base=of.base, quantised=of.quantised, layers=of.layers if of.shape == row.shape else [])

    def are_equal(self, name: str, other: str) -> bool:
        """Whether two tensors are the same, bit for bit. Reads them where it is not known."""
        first, second = (self.rows[one] for one in (name, other))
        if (first.same_as or name) == (second.same_as or other):
            return True
        if first.dtype != second.dtype or first.shape != second.shape:
            return False
        return torch.equal(*(_memory.octets(self.read(one)) for one in (name, other)))

    def is_packed(self, name: str) -> bool:
        """Whether a tensor is a residual to a quantised base or to none, which is what can be streamed."""
        row = self.made_of(name)
        return len(row.layers) == 1 and row.base is None

    def dtype(self) -> torch.dtype:
        """The dtype of most of the packed weights, by bytes. Raises ArgumentError where nothing is packed."""
        bytes_of: Counter[torch.dtype] = Counter()
        for name, row in self.rows.items():
            if row.dtype.is_floating_point and self.is_packed(name):
                bytes_of[row.dtype] += row.bytes
        if not bytes_of:
            raise ArgumentError(f"{self.folder}: none of its tensors is packed; load the model itself")
        return bytes_of.most_common(1)[0][0]

    def read_into(self, name: str, room: Tensor) -> None:
        """Rebuilds a tensor to room, contiguous and of its bytes in host memory. Its digests are compared."""
        _core.core().source_read(*_memory.pointer(room), self._source, name, 0)

    def read(self, name: str) -> Tensor:
        """Returns a tensor, rebuilt, in host memory."""
        row = self.rows[name]
        tensor = torch.empty(row.shape, dtype=row.dtype, device="cpu")
        self.read_into(name, tensor)
        return tensor

    def rows_of(self, name: str) -> Reader:
        """Returns what reads a tensor."""
        return Reader(self.rows[name].bytes, lambda room: self.read_into(name, room))

    def index(self, name: str) -> Tensor:
        """Returns the index of a packed tensor."""
        return self._parts.index(self.made_of(name).layers[0])

    def base(self, name: str, upload: Upload | None = None) -> AnyBase:
        """Returns the base of a packed tensor: on the device of an upload that has room for it, or in host memory."""
        row = self.made_of(name)
        if row.quantised is None:
            return None
        if upload is None or not upload.takes([part for _, part, _ in row.quantised.parts()]):
            return self._parts.quantised(row)
        return self._parts.quantised(row, lambda parts: upload.read(self._parts, parts))

    def blob(self, name: str) -> Reader:
        """Returns what reads the blob of a packed tensor."""
        layer = self.made_of(name).layers[0]
        return Reader(layer.blob_bytes, lambda room: self._parts.read(layer.blob, room))


@contextmanager
def opened(folder: PathLike) -> Iterator[PackedModel]:
    """Opens a compressed model. Raises NotFoundError, ArgumentError for what is none, CorruptError."""
    path = os.fspath(folder)
    if not os.path.isdir(path):
        raise NotFoundError(f"{path}: no such folder; expected one that `tpde compress` wrote")
    if not _compressed.is_compressed(path):
        raise ArgumentError(f"{path}: is no compressed model, expected a folder that `tpde compress` wrote")
    with _sources.open_source(path, "model") as source, _parts.opened(source.handle, 0) as parts:
        yield PackedModel(path, source.handle, parts)


@dataclass
class _Slot:
    """A tensor of a module: its names, and where it stands in which dict."""

    tensor: Tensor
    names: list[str] = field(default_factory=list)
    places: list[tuple[dict[str, Tensor | None], str]] = field(default_factory=list)
    row: str = ""
    """The tensor of the compressed model that it is; "" if there is none."""


class Matched:
    """Which tensor of a compressed model each parameter and buffer of a module is, found before anything is read.

    prefix: of the module's names, which those of the model may have or lack (transformers' base_model_prefix).
    ignored: patterns of names that the module need not have.
    widen: linear layers that the module has in a wider dtype are not streamed, but converted; otherwise they are
        refused.
    Raises NotFoundError for what has no data and is not in the model; ArgumentError for shapes that differ, and for one
    tensor of the module that is several in the model. Warns of tensors that the module does not have, or rounds.
    """

    def __init__(
        self, module: nn.Module, model: PackedModel, prefix: str = "", ignored: Sequence[str] = (), widen: bool = False
    ) -> None:
        self.model = model
        self._widen = widen
        self.slots: dict[int, _Slot] = {}
        for path, one in module.named_modules(remove_duplicate=False):
            left_out = one._non_persistent_buffers_set
            self._note(path, one._parameters, set())
            self._note(path, one._buffers, left_out)
        by_name = {name: slot for slot in self.slots.values() for name in slot.names}
        unexpected = []
        for name in model.rows:
            known = next((n for n in _aliases(name, prefix) if n in by_name), None)
            if known is None:
                # ":" is in names of files beside those that make up the model.
                if ":" not in name and not any(re.search(pattern, name) for pattern in ignored):
                    unexpected.append(name)
            else:
                slot = by_name[known]
                if slot.row and not model.are_equal(slot.row, name):
                    raise ArgumentError(
                        f"{slot.row}, {name}: are one tensor in the module, and differ in {model.folder}; expected a "
                        "module that does not tie them (in config.json: tie_word_embeddings)"
                    )
                if not slot.row or not model.is_packed(slot.row):
                    slot.row = name  # of tied weights, one that is packed
        missing = [slot.names[0] for slot in self.slots.values() if slot.tensor.is_meta and not slot.row]
        if missing:
            raise NotFoundError(
                f"{model.folder}: has no {_some(missing)}, which the module has without data"
                + (f"; it has {_some(unexpected)}, which the module lacks" if unexpected else "")
            )
        for slot in self.slots.values():
            if slot.row and (want := list(slot.tensor.shape)) != (got := model.rows[slot.row].shape):
                raise ArgumentError(f"{slot.row}: expected shape {want}, as the module has it, got {got}")
        rounded = [slot for slot in self.slots.values() if slot.row and not _holds(slot.tensor, model.rows[slot.row])]
        if rounded:
            warnings.warn(
                f"{model.folder}: {_some([slot.row for slot in rounded])}: rounded from "
                f"{model.rows[rounded[0].row].dtype} to {rounded[0].tensor.dtype}, as the module has it",
                stacklevel=6,
            )
        if unexpected:
            warnings.warn(f"{model.folder}: the module lacks {_some(unexpected)}: not loaded", stacklevel=6)

    def _note(self, path: str, tensors: dict[str, Tensor | None], left_out: set[str]) -> None:
        for leaf, tensor in tensors.items():
            if tensor is None or leaf in left_out:
                continue
            slot = self.slots.setdefault(id(tensor), _Slot(tensor))
            slot.names.append(f"{path}.{leaf}" if path else leaf)
            slot.places.append((tensors, leaf))

    def is_streamed(self, group: Group) -> bool:
        """Whether the weight of linear layers is one that can be streamed. Raises ArgumentError for another dtype."""
        row = self.row(group)
        if not row or not group.linears or not self.model.is_packed(row):
            return False
        if (got := self.model.rows[row].dtype) != group.weight.dtype:
            if self._widen and _holds(group.weight, self.model.rows[row]):
                return False
            raise ArgumentError(
                f"{row}: is {got} in {self.model.folder}, {group.weight.dtype} in the module: expected a module with "
                f"weights of {got}"
            )
        return True

    def row(self, group: Group) -> str:
        """The name of the tensor that is the weight of a group, "" if there is none."""
        slot = self.slots.get(id(group.weight))
        return slot.row if slot else ""


def fill(builder: Builder, matched: Matched, verify: bool, room: int) -> Callable[[], None]:
    """Reads everything that a module has in a compressed model: what can be streamed to the arena, the rest to the
    device. Returns what gives the module the rest, which is for after `builder.finish`.

    verify: compare the digests of bases and weights of what is streamed.
    room: bytes of a CUDA device that bases may take before there is a plan. Those that fit are read straight to it.
    """
    upload = Upload(builder.device, room) if room > 0 else None
    model = matched.model
    taken: set[int] = set()  # weights that no module keeps
    for group in builder.groups.values():
        row = matched.row(group)
        if not row:
            builder.add_embeddings(group)
            continue
        kept = bool(group.linears)
        if matched.is_streamed(group):
            _add(builder, group.names[0], model, row, verify, upload)
            kept = False
        if group.embeddings and model.rows[row].dtype == group.weight.dtype:
            builder.add_embeddings(group, model.rows_of(row))
        elif group.embeddings:
            kept = True
        if not kept:
            taken.add(id(group.weight))
    read: list[tuple[_Slot, Tensor]] = []
    for key, slot in matched.slots.items():
        if slot.row and key not in taken:
            tensor = model.read(slot.row).to(builder.device, slot.tensor.dtype)
            if isinstance(slot.tensor, nn.Parameter):
                tensor = nn.Parameter(tensor, slot.tensor.requires_grad)
            read.append((slot, tensor))

    def place() -> None:
        for slot, tensor in read:
            for tensors, leaf in slot.places:
                if leaf in tensors:
                    tensors[leaf] = tensor

    return place


def _add(builder: Builder, name: str, model: PackedModel, row: str, verify: bool, upload: Upload | None) -> None:
    base, index = model.base(row, upload), model.index(row)
    try:
        builder.add(PackedLayer(name, base, index, model.blob(row)), verify)
    except UnsupportedError:
        # The device does not decode what was best for this one, an unusual weight. It is packed again, in memory.
        if _tensors.read_index(index).codec != "zstd":
            raise
        weight, base = model.read(row), None if base is None else base.to("cpu")
        try:
            packed = _tensors.encode(base, weight, codec="prefix")
        except UnsupportedError:
            packed = _tensors.encode(base, weight, codec="elias")
        builder.add(PackedLayer(name, base, *packed), verify=False)


def _aliases(name: str, prefix: str) -> Iterator[str]:
    yield name
    if prefix:
        yield f"{prefix}.{name}"
        if name.startswith(f"{prefix}."):
            yield name.removeprefix(f"{prefix}.")


def _holds(tensor: Tensor, row: Row) -> bool:
    """Whether a tensor's dtype has all values of a row's."""
    return torch.promote_types(tensor.dtype, row.dtype) == tensor.dtype


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
