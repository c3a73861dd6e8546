"""Whole checkpoints: pack, unpack, verify, inspect.

The format stands in core/checkpoint/FORMAT.md, the algorithms in the core; this module opens what it is given, passes
it on and types what comes back.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, overload

from tpde import _compressed, _deltas, _jobs, _options
from tpde._core import core
from tpde._deltas import Delta
from tpde._reports import CompressedReport, DeltaReport, UnpackReport
from tpde._sources import (
    TORCH_SUFFIXES,
    Checkpoint,
    PathLike,
    Source,
    open_compressed_base,
    open_source,
    refuse_inputs,
)
from tpde._status import ArgumentError, ExistsError, NotFoundError

if TYPE_CHECKING:
    import torch
    from typing_extensions import Unpack

_ONE_FILE = 2**62  # bytes: larger than any shard


class PackOptions(TypedDict, total=False):
    """The keywords of `pack`."""

    codec: str
    residual: str
    level: str
    workers: int
    num_chunks: int
    chunk_bytes: int
    max_shard_size: int | str
    overwrite: bool
    progress: bool | None


class UnpackOptions(TypedDict, total=False):
    """The keywords of `unpack` beside out."""

    device: torch.device | str | None
    workers: int
    overwrite: bool
    progress: bool | None


@overload
def pack(base: Checkpoint | None, target: Checkpoint, out: PathLike, **options: Unpack[PackOptions]) -> DeltaReport: ...
@overload
def pack(
    base: Checkpoint | None, target: Checkpoint, out: None = None, **options: Unpack[PackOptions]
) -> dict[str, torch.Tensor]: ...
def pack(
    base: Checkpoint | None,
    target: Checkpoint,
    out: PathLike | None = None,
    *,
    codec: str = "auto",
    residual: str = "bit",
    level: str = "default",
    workers: int = 0,
    num_chunks: int = 0,
    chunk_bytes: int = 0,
    max_shard_size: int | str = "5GB",
    overwrite: bool = False,
    progress: bool | None = None,
) -> DeltaReport | dict[str, torch.Tensor]:
    """Packs target against base.

    base, target: a safetensors file, a folder of them, a .pt/.pth/.bin state dict, or a dict of names and tensors (see
        `tpde._sources` for the rules). base None codes everything against nothing.
    out: path of the delta file, written under a temporary name and renamed. None returns the delta as a dict of
        tensors, which `unpack`, `verify` and `inspect` accept; it goes through a file in Python's temporary folder.
    codec: "auto" picks the smallest per tensor by trial, or "raw", "zstd", "elias", "prefix", "rice".
    residual: "bit" (difference of the bit patterns) or "add" (a float to add; float dtypes only).
    level: "default", "fast" or "small".
    workers: cores to use, 0 for all. The result does not depend on it.
    num_chunks, chunk_bytes: chunks per tensor, or bytes of target per chunk; 0 lets the codec decide.
    max_shard_size: a delta above it is split into several files with an index; "5GB", "512MiB" or bytes.
    overwrite: replace out if it exists, instead of ExistsError.
    progress: True or False; None shows a bar where stderr is a terminal.

    Returns what the delta holds, or the delta itself if out is None.
    Raises ArgumentError, NotFoundError, ExistsError, UnsupportedError, CorruptError or ReadWriteError. After an error
    or KeyboardInterrupt nothing is left of the output.
    """
    for what, name, names in (
        ("codec", codec, _options.CODECS),
        ("residual", residual, _options.RESIDUALS),
        ("level", level, _options.LEVELS),
    ):
        _options.choose(what, name, names)
    options = {
        "codec": codec,
        "residual": residual,
        "level": level,
        "workers": _options.workers(workers),
        "num_chunks": _options.count("num_chunks", num_chunks),
        "chunk_bytes": _options.count("chunk_bytes", chunk_bytes),
        "max_shard_bytes": _options.size_in_bytes("max_shard_size", max_shard_size),
        "overwrite": bool(overwrite),
    }
    if target is None:
        raise ArgumentError("target: expected a path or a dict of names and tensors, got None")
    with open_source(base, "base") as base_source, open_source(target, "target") as target_source:
        if out is not None:
            return _pack(base_source, target_source, os.fspath(out), options, progress)
        with _deltas.temporary_folder() as folder:
            path = Path(folder) / "delta.safetensors"
            _pack(base_source, target_source, str(path), {**options, "max_shard_bytes": _ONE_FILE}, progress)
            return _deltas.load(path)


def _pack(base: Source, target: Source, out: str, options: dict[str, Any], progress: bool | None) -> DeltaReport:
    refuse_inputs(out, base, target)
    arguments = (base.handle, target.handle, out, json.dumps(options))
    return DeltaReport.of(_jobs.run(core().pack_start, arguments, "pack", progress))


def pack_chain(folder: PathLike, out_dir: PathLike, **options: Unpack[PackOptions]) -> list[DeltaReport]:
    """Packs every checkpoint of a folder against the one before it.

    folder: holds the checkpoints as subfolders or as .safetensors/.pt/.pth/.bin files, two or more; they are taken in
        natural order (epoch_2 before epoch_10). Deltas, out_dir and names that begin with a dot are passed over.
    out_dir: gets one delta per checkpoint but the first: `epoch_2.safetensors` and so on. Made if missing.
    options: as of `pack`.

    The first checkpoint is the base that the deltas start from: `unpack(first, *deltas, out=...)` with the deltas in
    the same order gives the last. Returns a report per delta. Raises as `pack`; ArgumentError if the folder is itself
    one checkpoint. After an error, deltas that were finished stay: each is complete.
    """
    out_dir = Path(out_dir)
    steps = _chain(Path(folder), out_dir)
    outs = [out_dir / f"{step.name if step.is_dir() else step.stem}.safetensors" for step in steps[1:]]
    if len(set(outs)) != len(outs):
        raise ArgumentError(f"{folder}: two checkpoints have the same name apart from the suffix")
    if not options.get("overwrite"):
        for out in outs:
            if out.exists():
                raise ExistsError(f"{out}: exists already")
    is_new = not out_dir.exists()
    out_dir.mkdir(parents=True, exist_ok=True)
    try:
        return [pack(base, target, out, **options) for base, target, out in zip(steps, steps[1:], outs, strict=False)]
    except BaseException:
        if is_new and not any(out_dir.iterdir()):
            out_dir.rmdir()
        raise


def _chain(folder: Path, out_dir: Path) -> list[Path]:
    if not folder.is_dir():
        raise NotFoundError(f"{folder}: no such folder of checkpoints")
    visible = [p for p in folder.iterdir() if not p.name.startswith(".")]
    suffixes = (".safetensors", *TORCH_SUFFIXES)
    files = [p for p in visible if p.is_file() and p.suffix.lower() in suffixes and not _deltas.is_delta(p)]
    if any(p.name.endswith(".index.json") for p in visible) or (files and (folder / "config.json").exists()):
        raise ArgumentError(f"{folder}: is one checkpoint, expected a folder of checkpoints; give base, target and out")
    folders = [p for p in visible if p.is_dir() and p.resolve() != out_dir.resolve()]
    steps = [p for p in folders if _holds_checkpoint(p)] + files
    if len(steps) < 2:
        raise ArgumentError(f"{folder}: expected two or more checkpoints (subfolders or files), found {len(steps)}")
    return sorted(steps, key=lambda path: (_natural(path), path.name))


def _holds_checkpoint(folder: Path) -> bool:
    return any(p.suffix == ".safetensors" for p in folder.iterdir())


def _natural(path: Path) -> list[tuple[int, int | str]]:
    """Sort key under which epoch_2 comes before epoch_10."""
    parts = re.split(r"(\d+)", path.stem if path.is_file() else path.name)
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts if part]


@overload
def unpack(
    base: Checkpoint | None, *deltas: Delta, out: PathLike, **options: Unpack[UnpackOptions]
) -> UnpackReport: ...
@overload
def unpack(
    base: Checkpoint | None, *deltas: Delta, out: None = None, **options: Unpack[UnpackOptions]
) -> UnpackReport | dict[str, torch.Tensor]: ...
def unpack(
    base: Checkpoint | None,
    *deltas: Delta,
    out: PathLike | None = None,
    device: torch.device | str | None = None,
    workers: int = 0,
    overwrite: bool = False,
    progress: bool | None = None,
) -> UnpackReport | dict[str, torch.Tensor]:
    """Rebuilds the target of the last delta, bit for bit.

    base: what the first delta was packed against (paths and dicts as for `pack`). Or a compressed model: then deltas
        may be left out, `unpack(folder, "restored")` restores the model, and those that are given apply to it.
    deltas: paths or dicts, in order; each knows its base, so a gap or a wrong order is refused. The last argument is
        `out` instead if it is a path that is no delta: `unpack(base, delta, "restored")`.
    out: where the target goes: a file for a checkpoint of one file, else a folder. The state dict of a .pt file comes
        back as safetensors, tensor for tensor; a name such as "restored.pt" is refused. Every file is compared with the
        sha256 that was recorded when it was packed. None returns a dict of names and tensors instead.
    device: where tensors are rebuilt: None or "cpu", or a CUDA device, where a dict then stays. With out, files are
        the same as from the CPU, and proven by the same sha256. A dict on the CPU is compared with the recorded
        digests. For a dict on a CUDA device the digests of base tensors, and of tensors that deltas store as they are,
        are compared on the host, in the memory from which they are copied; the checksums of all chunks are compared on
        the device before they are decoded, and what it finds is raised at the end. Digests of rebuilt tensors are not
        compared there; that of a quantised base neither, which only its dequantised elements have. What the device
        cannot rebuild is an error, never left to the CPU.
    workers, overwrite, progress: as for `pack`.

    Returns an `UnpackReport`, or the tensors if there is no out.
    Raises BaseMismatchError (a wrong base, before anything is written), ChainError, CorruptError, ChecksumError,
    VersionError, TargetMismatchError, NotFoundError, ExistsError, ReadWriteError; UnsupportedError for a device that is
    not there, or codecs that it does not decode. Nothing is left of the output then.
    """
    compressed = _compressed.is_compressed(base)
    if out is None and len(deltas) > (0 if compressed else 1) and not _deltas.is_delta(deltas[-1]):
        *rest, last = deltas
        if isinstance(last, Mapping):
            raise ArgumentError("delta: the last dict is not one that tpde.pack(..., out=None) returned")
        deltas, out = tuple(rest), last
    if not deltas and not compressed:
        raise ArgumentError("unpack: expected at least one delta, or a compressed model")
    options = {"workers": _options.workers(workers), "overwrite": bool(overwrite)}
    gpu = _gpu(device)
    with _open_start(base) as (base_source, first), _deltas.as_paths([*first, *deltas]) as paths:
        if gpu is not None:
            return _unpack_on_gpu(base_source, paths, out, options, gpu, progress)
        if out is None:
            return _read_all(base_source, paths, options["workers"])
        arguments = (base_source.handle, paths, _destination(out, base_source), json.dumps(options))
        return UnpackReport.of(_jobs.run(core().unpack_start, arguments, "unpack", progress))


def _destination(out: PathLike, base: Source) -> str:
    """Returns where to unpack to. Refuses inputs, and names under which nobody would look for safetensors."""
    path = os.fspath(out)
    refuse_inputs(path, base)
    if path.lower().endswith(TORCH_SUFFIXES) and not os.path.isdir(path):
        raise ArgumentError(f"out: expected a name that ends in .safetensors, which is what is written, got {path}")
    return path


@contextmanager
def _open_start(base: Checkpoint | None) -> Iterator[tuple[Source, list[str]]]:
    """Opens what deltas start from; gives the deltas that come first, too: that of a compressed model."""
    if isinstance(base, (str, os.PathLike)) and _compressed.is_compressed(base):
        with open_compressed_base(base) as source:
            yield source, [_compressed.residual(base)]
        return
    with open_source(base, "base") as source:
        yield source, []


def _gpu(device: torch.device | str | None) -> torch.device | None:
    """Returns the CUDA device that is meant, None for the CPU."""
    if device is None or str(device) == "cpu":
        return None
    from tpde import cuda

    return cuda.require_device(device)


def _unpack_on_gpu(
    base: Source, deltas: list[str], out: PathLike | None, options: dict[str, Any], device: torch.device,
    progress: bool | None,
) -> UnpackReport | dict[str, torch.Tensor]:  # fmt: skip
    from tpde import _gpu_unpack

    if out is None:
        return _gpu_unpack.to_tensors(base.handle, deltas, device, options["workers"], progress)
    destination = _destination(out, base)
    return UnpackReport.of(_gpu_unpack.to_files(base.handle, deltas, destination, options, device, progress))


def _read_all(base: Source, deltas: list[str], workers: int) -> dict[str, torch.Tensor]:
    import torch

    from tpde import _dtypes, _memory

    tensors: dict[str, torch.Tensor] = {}
    handles: list[int] = []
    try:
        target = _jobs.hold(handles, core().source_apply, base.handle, deltas)
        for row in json.loads(core().source_manifest(target))["tensors"]:
            dtype = _dtypes.torch_of_name(row["dtype"])
            shape = _dtypes.torch_shape(_dtypes.number_of(dtype), row["shape"])
            tensor = torch.empty(shape, dtype=dtype, device="cpu")
            core().source_read(*_memory.pointer(tensor), target, row["name"], workers)
            tensors[row["name"]] = tensor
        return tensors
    finally:
        for handle in handles:
            core().source_free(handle)


def verify(
    base: Checkpoint | None,
    *deltas: Delta,
    target: Checkpoint | None = None,
    workers: int = 0,
    progress: bool | None = None,
) -> UnpackReport:
    """Proves, without writing anything, that deltas rebuild their target from base.

    base, deltas, workers, progress: as for `unpack`, a compressed model included; everything that unpack would write
        is rebuilt and compared with the recorded digests and sha256.
    target: compared with the rebuilt tensors, bit for bit, if it is given.

    Returns the files with their sha256. Raises as `unpack`; TargetMismatchError if the target differs.
    """
    if not deltas and not _compressed.is_compressed(base):
        raise ArgumentError("verify: expected at least one delta, or a compressed model")
    options = json.dumps({"workers": _options.workers(workers), "overwrite": False})
    with ExitStack() as stack:
        base_source, first = stack.enter_context(_open_start(base))
        paths = stack.enter_context(_deltas.as_paths([*first, *deltas]))
        handle = 0 if target is None else stack.enter_context(open_source(target, "target")).handle
        arguments = (base_source.handle, paths, handle, options)
        return UnpackReport.of(_jobs.run(core().verify_start, arguments, "verify", progress))


def inspect(delta: Delta) -> DeltaReport:
    """Returns what a delta (a path, or a dict that `pack` returned) or a compressed model (a `CompressedReport`) holds;
    only indices are read.

    Raises NotFoundError, CorruptError, VersionError.
    """
    if _compressed.is_compressed(delta):
        return CompressedReport.of(json.loads(core().inspect(os.fspath(delta))))  # type: ignore[arg-type]
    with _deltas.as_paths([delta]) as paths:
        return DeltaReport.of(json.loads(core().inspect(paths[0])))
