"""Deltas as files and as dicts: telling a delta from a checkpoint, moving one into memory and back.

A delta in memory is a dict of the tensors that the file holds (uint8, but for new tensors that are stored as they
are) plus the file's metadata, JSON text as uint8 under METADATA_KEY, so that it survives being copied, pickled or sent
as a plain dict.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

from tpde._sources import MANIFEST_KEY, METADATA_KEY, PathLike
from tpde._status import ArgumentError, CorruptError

if TYPE_CHECKING:
    import torch

Delta: TypeAlias = "PathLike | Mapping[str, torch.Tensor]"

_INDEX_SUFFIX = ".index.json"
# Far above what any header needs; a length beyond it is not one of ours.
_MAX_HEADER_BYTES = 100_000_000


def is_delta(value: Any) -> bool:
    """Reports whether value is a delta: a dict made by pack, or a path of an existing delta, sharded or not."""
    if isinstance(value, Mapping):
        return MANIFEST_KEY in value
    path = Path(value)
    if not path.exists() and not path.name.endswith(_INDEX_SUFFIX):
        path = path.with_name(path.name + _INDEX_SUFFIX)  # what pack calls the index of a sharded delta
    if not path.is_file():  # reading a pipe would wait
        return False
    if path.name.endswith(_INDEX_SUFFIX):
        return any(_header_is_delta(p) for p in _shards(path)[:1])
    return _header_is_delta(path)


def _shards(index: Path) -> list[Path]:
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
        return [index.parent / name for name in sorted(set(weight_map.values()))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []


def _header_is_delta(path: Path) -> bool:
    try:
        return path.is_file() and read_metadata(path).get("format") == "tpde"
    except (OSError, CorruptError):
        return False


def read_metadata(path: Path) -> dict[str, str]:
    """Returns the metadata in the header of a safetensors file."""
    with path.open("rb") as file:
        metadata = _read_header(file, path).get("__metadata__", {})
    return {str(key): str(value) for key, value in metadata.items()}


def _read_header(file: BinaryIO, path: Path) -> dict[str, Any]:
    """Reads the header of a safetensors file; file stands at the first tensor then."""
    length = int.from_bytes(file.read(8), "little")
    if length > _MAX_HEADER_BYTES:
        raise CorruptError(f"{path}: not a safetensors file: header of {length} bytes")
    try:
        header = json.loads(file.read(length))
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"{path}: not a safetensors file: {error}") from None
    if not isinstance(header, dict) or not isinstance(header.get("__metadata__", {}), dict):
        raise CorruptError(f"{path}: not a safetensors file: its header or its metadata are no object")
    return header


def load(path: Path) -> dict[str, torch.Tensor]:
    """Returns a delta file (one file, not sharded, just written by pack) as a dict."""
    # Not with safetensors' own functions: they do not read every dtype that they write.
    import numpy as np
    import torch

    from tpde import _dtypes

    tensors: dict[str, torch.Tensor] = {}
    with path.open("rb") as file:
        header = _read_header(file, path)
        metadata = json.dumps(header.pop("__metadata__"), sort_keys=True).encode()
        for name, row in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            begin, end = row["data_offsets"]
            dtype = _dtypes.torch_of_name(row["dtype"])
            octets = torch.empty(end - begin, dtype=torch.uint8, device="cpu")
            file.readinto(octets.numpy().data)
            shape = _dtypes.torch_shape(_dtypes.number_of(dtype), row["shape"])
            tensors[name] = octets.view(dtype).reshape(shape)
    tensors[METADATA_KEY] = torch.from_numpy(np.frombuffer(bytearray(metadata), dtype=np.uint8))
    return tensors


def save(delta: Mapping[str, torch.Tensor], path: Path) -> None:
    """Writes a delta that load returned to a file that the core reads."""
    from tpde import _dtypes, _memory

    if METADATA_KEY not in delta or MANIFEST_KEY not in delta:
        raise ArgumentError(
            f"delta: expected a dict that tpde.pack(..., out=None) returned, with {MANIFEST_KEY!r} and {METADATA_KEY!r}"
        )
    try:
        metadata = _memory.require_bytes(delta[METADATA_KEY], f"delta: {METADATA_KEY!r}")
        header: dict[str, Any] = {"__metadata__": json.loads(metadata.numpy().tobytes())}
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CorruptError(f"delta: {METADATA_KEY!r} is damaged: {error}") from None
    if not all(isinstance(name, str) for name in delta):
        raise ArgumentError("delta: expected a dict whose keys are all names")
    tensors = {name: _memory.host(t, f"delta: {name!r}") for name, t in delta.items() if name != METADATA_KEY}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        dtype = _dtypes.name_of(_dtypes.number_of(tensor.dtype))
        header[name] = {"dtype": dtype, "shape": _dtypes.element_shape(tensor), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(_memory.octets(tensor).numpy().data)


@contextmanager
def as_paths(deltas: Sequence[Delta]) -> Iterator[list[str]]:
    """Gives the paths of deltas; those in memory go through a temporary folder (see `tempfile.tempdir`)."""
    with ExitStack() as stack:
        paths: list[str] = []
        for delta in deltas:
            if isinstance(delta, Mapping):
                path = Path(stack.enter_context(temporary_folder())) / "delta.safetensors"
                save(delta, path)
                paths.append(str(path))
            elif isinstance(delta, (str, os.PathLike)):
                paths.append(os.fspath(delta))
            else:
                raise ArgumentError(f"delta: expected a path or a dict, got {type(delta).__name__}")
        yield paths


@contextmanager
def temporary_folder() -> Iterator[str]:
    """Gives a new folder for a delta on its way into or out of memory, and removes it with the files in it."""
    folder = tempfile.mkdtemp(prefix="tpde-")
    try:
        yield folder
    finally:
        try:
            _remove(folder)
        except KeyboardInterrupt:
            _remove(folder)
            raise


def _remove(folder: str) -> None:
    """Removes a folder of files; what cannot be removed stays."""
    # Not by shutil.rmtree: interrupted, it may close a descriptor twice and raise OSError over the KeyboardInterrupt.
    with suppress(OSError):
        for name in os.listdir(folder):
            os.unlink(os.path.join(folder, name))
        os.rmdir(folder)
