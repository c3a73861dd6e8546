"""Checkpoints as the core sees them: files that it maps, or tensors in memory that it points to.

What a checkpoint may be, everywhere in this package:

- a path of a safetensors file, or of a folder of them (a Hugging Face folder);
- a path of a compressed model (`tpde.compress`), which stands for the full model;
- a path of a PyTorch state dict (.pt, .pth, .bin), read with `weights_only=True` and mapped into memory;
- a dict of names and tensors (torch, on any device, or numpy).

**Where the state dict is in a .pt file or dict**: if all values are tensors, it is the dict itself. Otherwise it is
the value of the first of the keys "state_dict", "model_state_dict", "model", "module" that holds a dict; what lies
beside it (an optimizer, an epoch) is left out with a warning that names it. An entry of the state dict that is no
tensor is an error, because it could not be restored.
"""

from __future__ import annotations

import contextlib
import os
import warnings
import zipfile
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

from tpde import _compressed, _jobs
from tpde._core import core
from tpde._status import ArgumentError, ExistsError, NotFoundError, TpdeError, UnsupportedError

if TYPE_CHECKING:
    import torch

PathLike: TypeAlias = "str | os.PathLike[str]"
Checkpoint: TypeAlias = "PathLike | Mapping[str, torch.Tensor]"

TORCH_SUFFIXES = (".pt", ".pth", ".bin")
# Both together make a dict a delta (see _deltas).
METADATA_KEY = "__tpde_metadata__"
MANIFEST_KEY = "__tpde__"
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")


class Source(AbstractContextManager["Source"]):
    """A checkpoint that is open in the core. Owns the handle and the tensors that the core points to."""

    def __init__(self, handle: int, keep: Any = None) -> None:
        self.handle = handle
        self.below: list[int] = []
        """Handles that the core uses as long as it uses this one, the lowest first; this one may stand above them."""
        self.torch_file: str | None = None
        """The .pt file that it was read from; the core, which only sees tensors, does not know of it."""
        self._keep = keep

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What goes wrong already, Ctrl-C between two frees say, is what the caller has to see.
        with contextlib.suppress(TpdeError) if error is not None else contextlib.nullcontext():
            self.close()

    def close(self) -> None:
        """Frees the handle, then lets go of the tensors. A second call does nothing."""
        handle, self.handle = self.handle, 0
        if handle and handle not in self.below:
            core().source_free(handle)
        while self.below:
            core().source_free(self.below.pop())
        self._keep = None


def open_source(checkpoint: Checkpoint | None, what: str) -> Source:
    """Opens a checkpoint; None is an empty one. `what` ("base", "target") names it in errors."""
    if checkpoint is None:
        return Source(core().source_new("no base"))
    if isinstance(checkpoint, Mapping):
        return _of_tensors(_find_state_dict(checkpoint, what), what)
    if not isinstance(checkpoint, (str, os.PathLike)):
        raise ArgumentError(
            f"{what}: expected a path or a dict of names and tensors, got {type(checkpoint).__name__}"
            + ("; pass its state_dict()" if hasattr(checkpoint, "state_dict") else "")
        )
    path = os.fspath(checkpoint)
    if path.lower().endswith(TORCH_SUFFIXES) and not os.path.isdir(path):
        source = _of_tensors(_find_state_dict(load_torch(path), path), path)
        source.torch_file = path
        return source
    if _compressed.is_compressed(path):
        return _open_compressed(path)
    return Source(core().source_open(path))


def open_compressed_base(folder: PathLike) -> Source:
    """Opens the base of a compressed model, which its delta applies to."""
    return Source(_compressed.open_base(folder))


def _open_compressed(folder: str) -> Source:
    source = Source(0)
    try:
        base = _jobs.hold(source.below, core().source_open_base, folder)
        source.handle = _jobs.hold(source.below, core().source_apply, base, [_compressed.residual(folder)])
    except BaseException:
        source.close()
        raise
    return source


def refuse_inputs(out: str, *sources: Source) -> None:
    """Refuses an output that is, or contains, a PyTorch file that is read. The core does so for the files it opens."""
    for source in sources:
        if source.torch_file is None or not os.path.exists(out):
            continue
        inside = Path(os.path.realpath(source.torch_file)).is_relative_to(os.path.realpath(out))
        if inside or os.path.samefile(out, source.torch_file):
            raise ExistsError(f"the output {out} is or contains the input {source.torch_file}")


def load_torch(path: str) -> Any:
    """Returns what a PyTorch file holds, mapped. Raises NotFoundError or UnsupportedError."""
    import torch

    if not os.path.exists(path):
        raise NotFoundError(f"{path}: no such file")
    if not os.path.isfile(path):
        raise UnsupportedError(f"{path}: is not a regular file")
    mapped = zipfile.is_zipfile(path)  # files of torch before 1.6 are no zip archives and cannot be mapped
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch raises pickle's, zipfile's and struct's errors, too
        raise UnsupportedError(
            f"{path}: cannot be read as a PyTorch state dict with weights_only=True: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _find_state_dict(loaded: Any, label: str) -> Mapping[str, Any]:
    """Applies the rule in the module's docstring."""
    if not isinstance(loaded, Mapping):
        raise ArgumentError(f"{label}: expected a state dict, got {type(loaded).__name__}")
    if not all(_is_tensor(value) for value in loaded.values()):
        key = next((key for key in _WRAPPERS if isinstance(loaded.get(key), Mapping)), None)
        if key is not None:
            left_out = ", ".join(repr(other) for other in loaded if other != key)
            if left_out:
                warnings.warn(f"{label}: packing the state dict under {key!r}; left out: {left_out}", stacklevel=4)
            loaded = loaded[key]
    if METADATA_KEY in loaded and MANIFEST_KEY in loaded:
        raise ArgumentError(f"{label}: is a delta, expected a checkpoint")
    state: Mapping[str, Any] = loaded
    for name, value in state.items():
        if not isinstance(name, str):
            raise ArgumentError(f"{label}: expected names as keys of the state dict, got {name!r}")
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ArgumentError(f"{label}: {name!r} cannot name a tensor: it is not valid Unicode") from None
        if not _is_tensor(value):
            raise ArgumentError(
                f"{label}: entry {name!r} is a {type(value).__name__}, not a tensor, and could not be restored; "
                "pack a dict without it"
            )
    return state


def _is_tensor(value: Any) -> bool:
    import numpy as np
    import torch

    return isinstance(value, (torch.Tensor, np.ndarray))


def _of_tensors(tensors: Mapping[str, Any], label: str) -> Source:
    """Points the core at tensors. Only those that are not contiguous in host memory are copied."""
    from tpde import _dtypes, _memory

    binding = core()
    keep: list[torch.Tensor] = []
    source = Source(binding.source_new(label), keep)
    try:
        for name, value in tensors.items():
            tensor = _memory.host(value, f"{label}: tensor {name!r}")
            try:
                number = _dtypes.number_of(tensor.dtype)
                shape = _dtypes.element_shape(tensor)
                pointer = _memory.pointer(tensor)
            except UnsupportedError as error:
                raise UnsupportedError(f"{label}: tensor {name!r}: {error}") from None
            keep.append(tensor)
            binding.source_add(source.handle, name, number, shape, *pointer)
    except BaseException:
        source.close()
        raise
    return source
