"""Single tensors: encode, reconstruct, scatter_add, and their files.

A packed tensor is an index map (header and one record per chunk) and a data blob (the compressed chunks), both 1-D
uint8 tensors; core/container/FORMAT.md specifies them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from tpde import _cuda_rebuild, _cuda_scatter, _dtypes, _memory, _ops, _options
from tpde._core import core
from tpde._sources import PathLike
from tpde._status import ArgumentError, ExistsError, NotFoundError
from tpde.quant import QuantizedTensor

INDEX_SUFFIX = ".tpde-index"
BLOB_SUFFIX = ".tpde-blob"


@dataclass(frozen=True)
class IndexInfo:
    """The header of an index map."""

    dtype: torch.dtype
    shape: list[int]
    codec: str
    residual: str
    has_base: bool
    """False: packed against nothing."""
    words: int
    """Units that the codecs see: elements, but for complex and packed types."""
    deltas: int
    """Words that are stored."""
    chunks: int
    target_bytes: int
    blob_bytes: int
    base_digest: str
    target_digest: str


def read_index(index_map: torch.Tensor) -> IndexInfo:
    """Returns what an index map (1-D uint8) says. Raises CorruptError or VersionError."""
    raw = core().index_read(*_memory.pointer(_memory.require_bytes(index_map, "index_map")))
    return IndexInfo(
        dtype=_dtypes.torch_of(raw["dtype"]),
        shape=_dtypes.torch_shape(raw["dtype"], list(raw["shape"])),
        codec=_name(raw["codec"], _options.CODECS),
        residual=_name(raw["residual"], _options.RESIDUALS),
        has_base=bool(raw["has_base"]),
        words=raw["words"],
        deltas=raw["deltas"],
        chunks=raw["chunks"],
        target_bytes=raw["target_bytes"],
        blob_bytes=raw["blob_bytes"],
        base_digest=raw["base_digest"].hex(),
        target_digest=raw["target_digest"].hex(),
    )


def _name(number: int, names: dict[str, int]) -> str:
    return next((name for name, n in names.items() if n == number), str(number))


def encode(
    base: torch.Tensor | QuantizedTensor | None,
    target: torch.Tensor,
    *,
    codec: str = "auto",
    residual: str = "bit",
    level: str = "default",
    workers: int = 0,
    num_chunks: int = 0,
    chunk_words: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Packs one tensor against another of the same shape and dtype.

    base, target: torch tensors (any device) or numpy arrays, of every dtype that safetensors knows; base None codes
        against nothing. A QuantizedTensor stands for what it dequantises to, bit for bit; it can be the base of
        float32, float16 and bfloat16. residual="add" against one is rebuilt on the CPU alone.
    codec, residual, level, workers, num_chunks: as for `tpde.pack`. chunk_words: words per chunk.

    Returns (index_map, data_blob), 1-D uint8 CPU tensors. Raises ArgumentError, UnsupportedError.
    """
    binding = core()
    target = _memory.host(target, "target")
    if base is not None:
        if isinstance(base, QuantizedTensor):
            base = base.to("cpu").dequantize()
        base = _memory.host(base, "base")
        if base.dtype != target.dtype or base.shape != target.shape:
            raise ArgumentError(
                f"base: expected {target.dtype} of shape {list(target.shape)}, as the target; "
                f"got {base.dtype} of shape {list(base.shape)}"
            )
    handle = binding.encode(
        *_memory.pointer(base),
        *_memory.pointer(target),
        _dtypes.number_of(target.dtype),
        _dtypes.element_shape(target),
        _options.choose("codec", codec, _options.CODECS),
        _options.choose("residual", residual, _options.RESIDUALS),
        _options.choose("level", level, _options.LEVELS),
        _options.workers(workers),
        _options.count("num_chunks", num_chunks),
        _options.count("chunk_words", chunk_words),
    )
    try:
        index_bytes, blob_bytes = binding.encoded_bytes(handle)
        index_map = torch.empty(index_bytes, dtype=torch.uint8, device="cpu")
        data_blob = torch.empty(blob_bytes, dtype=torch.uint8, device="cpu")
        binding.encoded_copy(*_memory.pointer(index_map), *_memory.pointer(data_blob), handle)
    finally:
        binding.encoded_free(handle)
    return index_map, data_blob


def reconstruct(
    base: torch.Tensor | QuantizedTensor | None,
    index_map: torch.Tensor,
    data_blob: torch.Tensor,
    *,
    out: torch.Tensor | None = None,
    verify: bool = True,
    check: bool = False,
    workers: int = 0,
) -> torch.Tensor:
    """Rebuilds a packed tensor, bit for bit, where data_blob is: on the CPU or on a CUDA device.

    base: the tensor that it was packed against (same shape and dtype, beside data_blob), or None if there was none. A
        QuantizedTensor is dequantised by the kernel that rebuilds, without a copy in between; on the CPU, before.
    index_map, data_blob: 1-D uint8 tensors. On CUDA the index map may be on the CPU, and is remembered: pass the same
        tensor again, since every new one is copied and expanded, which waits for the GPU.
    out: contiguous tensor beside data_blob to write to; base itself rebuilds in place. None makes a new tensor.
    verify: on the CPU, compare base and result with the recorded digests; a wrong base is refused before out is
        touched. On CUDA, compare the checksums of the chunks of data_blob; digests only with check=True.
    check: on CUDA, wait for the result and raise what is wrong with it. Without it the call waits for nothing, and
        damaged data is reported by `tpde.cuda.synchronize`. On the CPU everything is checked at once anyway.

    On CUDA everything runs on the current stream. Raises ArgumentError, BaseMismatchError, ChecksumError, CorruptError,
    TargetMismatchError, VersionError, UnsupportedError.
    """
    codes = base.packed if isinstance(base, QuantizedTensor) else base
    if any(isinstance(tensor, torch.Tensor) and tensor.is_cuda for tensor in (data_blob, codes, out)):
        return _reconstruct_on_cuda(base, index_map, data_blob, out, verify, check)
    index_map = _memory.require_bytes(index_map, "index_map")
    data_blob = _memory.require_bytes(data_blob, "data_blob")
    if base is not None and not isinstance(base, QuantizedTensor):
        base = _memory.require_cpu(_memory.as_tensor(base, "base"), "base")
    if out is None:
        raw = core().index_read(*_memory.pointer(index_map))
        dtype, shape = _dtypes.torch_of(raw["dtype"]), _dtypes.torch_shape(raw["dtype"], raw["shape"])
        if workers == 0:
            return _ops.rebuild(base, index_map, data_blob, shape, dtype, verify)
        out = torch.empty(shape, dtype=dtype, device="cpu")
    _memory.require_cpu(output(out), "out")
    _ops.reconstruct_into(out, base, index_map, data_blob, verify, _options.workers(workers))
    return out


def _reconstruct_on_cuda(
    base: torch.Tensor | QuantizedTensor | None,
    index_map: torch.Tensor,
    data_blob: torch.Tensor,
    out: torch.Tensor | None,
    verify: bool,
    check: bool,
) -> torch.Tensor:
    if not (isinstance(data_blob, torch.Tensor) and data_blob.is_cuda):
        where = data_blob.device if isinstance(data_blob, torch.Tensor) else "the CPU"
        raise ArgumentError(f"data_blob: is on {where}, expected it on the CUDA device of the other tensors")
    if not (isinstance(index_map, torch.Tensor) and index_map.is_cuda):
        index_map = _memory.require_bytes(index_map, "index_map")
    if type(base) is not torch.Tensor or base.requires_grad:
        base = plain_base(base)
    if verify and check:
        _cuda_rebuild.check_base(base, index_map, data_blob)
    # Not through the operator, which a third of the time would go to: a compiler could not trace this function anyway.
    out = _cuda_rebuild.reconstruct(base, index_map, data_blob, verify, None if out is None else output(out))
    if check:
        _cuda_rebuild.check_results([(out, index_map, data_blob)], digests=verify)
    return out


def plain_base(base: torch.Tensor | QuantizedTensor | None) -> torch.Tensor | QuantizedTensor | None:
    """Returns base without subclasses and gradients. Raises ArgumentError, UnsupportedError."""
    if base is None or isinstance(base, QuantizedTensor):
        return base
    return _memory.as_tensor(base, "base")


def output(out: torch.Tensor) -> torch.Tensor:
    """Refuses tensors that cannot be written through a pointer."""
    if not isinstance(out, torch.Tensor):
        raise ArgumentError(f"out: expected a torch.Tensor, got {type(out).__name__}")
    if not out.is_contiguous() or out.is_conj() or out.is_neg():
        raise ArgumentError("out: expected a contiguous tensor")
    if out.requires_grad and torch.is_grad_enabled():
        raise ArgumentError("out: requires grad and would be changed behind autograd's back; use torch.no_grad()")
    return out


def scatter_add(
    base: torch.Tensor,
    indices: torch.Tensor,
    values: torch.Tensor,
    chunk_map: torch.Tensor | None = None,
    *,
    out: torch.Tensor | None = None,
    assume_sorted: bool = True,
    check: bool = False,
) -> torch.Tensor:
    """Returns base with values[i] added at flat element indices[i].

    Equal to `base.flatten().scatter_add_(0, indices, values)` on unique indices, bit for bit, but for the payload of
    a NaN, in which torch's own operators differ from each other.

    base: tensor of any shape, of a float or integer dtype; on CUDA float16, bfloat16, float32 or float64. The other
        tensors are on the same device.
    indices: int64 [n], each once; sorted first if they are not increasing. values: [n], of base's dtype.
    chunk_map: int64 [chunks + 1], where each chunk of work starts in indices (`tpde.chunk_map` makes one); it spreads
        the work over cores and does not change the result. None: 64 even chunks. CUDA does not need it.
    out: contiguous tensor like base to write to; base itself adds in place.
    assume_sorted: CUDA only, where looking would mean waiting: False sorts indices first.
    check: CUDA only: wait, and raise now if indices are out of range or not strictly increasing. Otherwise
        `tpde.cuda.synchronize` raises that. The sums in question are left out, the others are made.

    Raises ArgumentError (shapes, dtypes, duplicates, indices out of range), UnsupportedError. On the CPU nothing is
    written then.
    """
    given = base
    if out is not None:
        output(out)
    base = _memory.as_tensor(base, "base")
    indices = _memory.as_tensor(indices, "indices").contiguous()
    values = _memory.as_tensor(values, "values").contiguous()
    if base.is_cuda and out is given and not base.is_contiguous():
        raise ArgumentError("out: expected a contiguous tensor")
    base = base.contiguous()
    if not base.is_cuda:
        for what, tensor in (("base", base), ("indices", indices), ("values", values)):
            _memory.require_cpu(tensor, what)
        if out is not None:
            _memory.require_cpu(out, "out")
    if base.is_cuda:
        _ops.check_deltas(base, indices, values)
        return _scatter_add_on_cuda(base, indices, values, out, assume_sorted, check)
    if chunk_map is None:
        chunk_map = _even_chunks(indices)
    chunk_map = _memory.require_cpu(_memory.as_tensor(chunk_map, "chunk_map"), "chunk_map").contiguous()
    _ops.check_scatter(base, indices, values, chunk_map)
    indices, values = _increasing(indices, values)
    if out is None:
        return _ops.scatter_add(base, indices, values, chunk_map)
    _ops.scatter_add_into(_like(base, out), base, indices, values, chunk_map)
    return out


def _like(base: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    if out.dtype != base.dtype or out.shape != base.shape:
        raise ArgumentError(
            f"out: expected {base.dtype} of shape {list(base.shape)}; got {out.dtype} of shape {list(out.shape)}"
        )
    return out


_NO_CHUNKS = torch.empty(0, dtype=torch.int64, device="cpu")


def _scatter_add_on_cuda(
    base: torch.Tensor,
    indices: torch.Tensor,
    values: torch.Tensor,
    out: torch.Tensor | None,
    assume_sorted: bool,
    check: bool,
) -> torch.Tensor:
    if not assume_sorted:
        indices, order = indices.sort()
        values = values[order]
    if out is None and not check:
        return _ops.scatter_add(base, indices, values, _NO_CHUNKS)
    out = torch.empty(base.shape, dtype=base.dtype, device=base.device) if out is None else _like(base, out)
    _cuda_scatter.scatter_add(out, base, indices, values, check)
    return out


def _increasing(indices: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sorts indices and their values unless they are sorted; refuses duplicates."""
    if indices.numel() < 2 or bool((indices[1:] > indices[:-1]).all()):
        return indices, values
    indices, order = indices.sort()
    duplicate = indices[1:][indices[1:] == indices[:-1]]
    if duplicate.numel():
        raise ArgumentError(f"indices: expected each element once, but {int(duplicate[0])} comes twice or more")
    return indices, values[order]


def chunk_map(deltas: int | torch.Tensor, n_chunks: int = 64) -> torch.Tensor:
    """Returns a chunk map that splits deltas (their number, or the indices) into n_chunks even parts.

    The result is int64 [n_chunks + 1]: chunk c covers deltas result[c] up to result[c + 1].
    """
    count = deltas.numel() if isinstance(deltas, torch.Tensor) else _options.count("deltas", deltas)
    n_chunks = _options.count("n_chunks", n_chunks)
    if n_chunks < 1:
        raise ArgumentError(f"n_chunks: expected 1 or more, got {n_chunks}")
    return torch.arange(n_chunks + 1, dtype=torch.int64, device="cpu") * count // n_chunks


# scatter_add has a parameter of that name.
_even_chunks = chunk_map


def save_tensor(
    stem: PathLike, index_map: torch.Tensor, data_blob: torch.Tensor, *, overwrite: bool = False
) -> tuple[Path, Path]:
    """Writes a packed tensor to `stem.tpde-index` and `stem.tpde-blob`, each under a temporary name first.

    Raises ExistsError if one exists and overwrite is False. Returns the two paths.
    """
    paths = Path(f"{os.fsdecode(stem)}{INDEX_SUFFIX}"), Path(f"{os.fsdecode(stem)}{BLOB_SUFFIX}")
    contents = _memory.require_bytes(index_map, "index_map"), _memory.require_bytes(data_blob, "data_blob")
    for path in paths:
        if path.exists() and not overwrite:
            raise ExistsError(f"{path}: exists already")
    for path, content in reversed(list(zip(paths, contents, strict=True))):  # blob first: an index is never alone
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                file.write(content.numpy().data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    return paths


def load_tensor(stem: PathLike) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (index_map, data_blob) that `save_tensor` wrote."""
    return load_bytes(f"{os.fsdecode(stem)}{INDEX_SUFFIX}"), load_bytes(f"{os.fsdecode(stem)}{BLOB_SUFFIX}")


def load_bytes(path: PathLike) -> torch.Tensor:
    """Returns the content of a file as a 1-D uint8 tensor."""
    path = Path(path)
    if not path.is_file():
        raise NotFoundError(f"{path}: no such file")
    out = torch.empty(path.stat().st_size, dtype=torch.uint8, device="cpu")
    with path.open("rb") as file:
        if file.readinto(out.numpy().data) != out.numel():
            raise NotFoundError(f"{path}: became shorter while it was read")
    return out
