"""The operators torch.ops.tpde.*, so that torch.compile, export and profilers see through them.

Shape and dtype of a rebuilt tensor are arguments, because they stand inside the index, which a compiler cannot read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from tpde import _cuda, _cuda_rebuild, _cuda_scatter, _dtypes, _memory, quant
from tpde._core import core
from tpde._status import ArgumentError
from tpde.quant import QuantizedTensor

SKIP_BASE_DIGEST = 1
SKIP_TARGET_DIGEST = 2

_library: Any = torch.library.Library("tpde", "DEF")  # type: ignore[no-untyped-call]
_library.define(
    "reconstruct(Tensor? base, Tensor index_map, Tensor data_blob, SymInt[] shape, ScalarType dtype, bool verify=True)"
    " -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define(
    "reconstruct_(Tensor(a!) base, Tensor index_map, Tensor data_blob, bool verify=True) -> ()",
    tags=(torch.Tag.pt2_compliant_tag,),
)
# A quantised base is passed as its parts. group_size: one above 2^63 - 1 is cut to that, which changes no group.
_library.define(
    "reconstruct_quantized(Tensor packed, Tensor scale, Tensor? zero, Tensor? code, str kind, int bits, int group_size,"
    " Tensor index_map, Tensor data_blob, SymInt[] shape, ScalarType dtype, bool verify=True) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define(
    "scatter_add(Tensor base, Tensor indices, Tensor values, Tensor chunk_map) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def reconstruct_into(
    dst: torch.Tensor,
    base: torch.Tensor | QuantizedTensor | None,
    index_map: torch.Tensor,
    data_blob: torch.Tensor,
    verify: bool,
    workers: int,
) -> None:
    """Rebuilds into dst, a contiguous CPU tensor. Raises ArgumentError unless dst and base fit the index.

    A quantised base is dequantised first.
    """
    binding = core()
    index_map = _memory.require_bytes(index_map, "index_map")
    data_blob = _memory.require_bytes(data_blob, "data_blob")
    info = binding.index_read(*_memory.pointer(index_map))
    dtype = _dtypes.torch_of(info["dtype"])
    shape = _dtypes.torch_shape(info["dtype"], info["shape"])
    _require(dst, dtype, shape, "output")
    if base is None and info["has_base"]:
        raise ArgumentError("base: is None, but the tensor was packed against a base")
    if base is not None and not info["has_base"]:
        raise ArgumentError("base: expected None, the tensor was packed against nothing")
    if base is not None:
        _require(base, dtype, shape, "base")
        if isinstance(base, QuantizedTensor):
            if not base.packed.is_cpu:
                raise ArgumentError(f"base: is on {base.device}, expected the CPU, where data_blob is")
            base = base.dequantize()
        base = _memory.require_cpu(_memory.as_tensor(base, "base"), "base").contiguous()
    flags = 0 if verify else SKIP_BASE_DIGEST | SKIP_TARGET_DIGEST
    binding.reconstruct(
        *_memory.pointer(dst),
        *_memory.pointer(base),
        *_memory.pointer(index_map),
        *_memory.pointer(data_blob),
        flags,
        workers,
    )


def check_scatter(base: torch.Tensor, indices: torch.Tensor, values: torch.Tensor, chunk_map: torch.Tensor) -> None:
    """Refuses tensors that do not fit together; the core gets pointers and could not tell. Raises ArgumentError."""
    check_deltas(base, indices, values)
    if chunk_map.dtype is not torch.int64 or chunk_map.dim() != 1 or chunk_map.numel() < 2:
        raise ArgumentError(
            f"chunk_map: expected 1-D torch.int64 of two or more starts, got {chunk_map.dtype} "
            f"of shape {list(chunk_map.shape)}"
        )


def check_deltas(base: torch.Tensor, indices: torch.Tensor, values: torch.Tensor) -> None:
    """The part of check_scatter that concerns GPUs, too."""
    if indices.dtype is not torch.int64 or indices.dim() != 1:
        raise ArgumentError(f"indices: expected 1-D torch.int64, got {indices.dtype} of shape {list(indices.shape)}")
    if values.dtype != base.dtype or values.shape != indices.shape:
        raise ArgumentError(
            f"values: expected {base.dtype} of shape {list(indices.shape)}; "
            f"got {values.dtype} of shape {list(values.shape)}"
        )


def scatter_add_into(
    dst: torch.Tensor, base: torch.Tensor, indices: torch.Tensor, values: torch.Tensor, chunk_map: torch.Tensor
) -> None:
    """Writes base plus values at strictly increasing indices to dst; all are contiguous CPU tensors.

    dst is like base; the others have passed check_scatter.
    """
    core().scatter_add(
        *_memory.pointer(dst),
        *_memory.pointer(base),
        _dtypes.number_of(base.dtype),
        _memory.pointer(indices)[0],
        _memory.pointer(values)[0],
        indices.numel(),
        _memory.pointer(chunk_map)[0],
        chunk_map.numel() - 1,
    )


def _require(tensor: torch.Tensor | QuantizedTensor, dtype: torch.dtype, shape: Sequence[int], what: str) -> None:
    if tensor.dtype != dtype or list(tensor.shape) != list(shape):
        raise ArgumentError(
            f"{what}: expected {dtype} of shape {list(shape)}, as the index says; "
            f"got {tensor.dtype} of shape {list(tensor.shape)}"
        )


@torch.library.impl(_library, "reconstruct", "CPU")
def _reconstruct(
    base: torch.Tensor | None,
    index_map: torch.Tensor,
    data_blob: torch.Tensor,
    shape: Sequence[int],
    dtype: torch.dtype,
    verify: bool = True,
) -> torch.Tensor:
    out = torch.empty(shape, dtype=dtype, device="cpu")
    reconstruct_into(out, base, index_map, data_blob, verify, 0)
    return out


@torch.library.register_fake("tpde::reconstruct", lib=_library)  # type: ignore[untyped-decorator]
def _reconstruct_fake(
    base: torch.Tensor | None,
    index_map: torch.Tensor,
    data_blob: torch.Tensor,
    shape: Sequence[int],
    dtype: torch.dtype,
    verify: bool = True,
) -> torch.Tensor:
    return data_blob.new_empty(shape, dtype=dtype)  # the index may be in host memory


@torch.library.impl(_library, "reconstruct", "CUDA")
def _reconstruct_cuda(
    base: torch.Tensor | None,
    index_map: torch.Tensor,
    data_blob: torch.Tensor,
    shape: Sequence[int],
    dtype: torch.dtype,
    verify: bool = True,
) -> torch.Tensor:
    _require_blob_on_device(base, index_map, data_blob)
    return _rebuild_on_cuda(base, index_map, data_blob, shape, dtype, verify)


def _rebuild_on_cuda(
    base: torch.Tensor | QuantizedTensor | None,
    index_map: torch.Tensor,
    data_blob: torch.Tensor,
    shape: Sequence[int],
    dtype: torch.dtype,
    verify: bool,
) -> torch.Tensor:
    slot = _cuda.slot(index_map, data_blob)
    if dtype != slot.dtype or list(shape) != list(slot.shape):
        raise ArgumentError(
            f"output: expected {slot.dtype} of shape {list(slot.shape)}, as the index says; "
            f"got {dtype} of shape {list(shape)}"
        )
    return _cuda_rebuild.reconstruct(base, index_map, data_blob, verify)


def _require_blob_on_device(base: torch.Tensor | None, index_map: torch.Tensor, data_blob: torch.Tensor) -> None:
    if not data_blob.is_cuda:
        other = index_map if base is None else base
        raise ArgumentError(
            f"data_blob: is on {data_blob.device}, expected {other.device}, where the other tensors are"
        )


@torch.library.impl(_library, "reconstruct_", "CPU")
def _reconstruct_in_place(
    base: torch.Tensor, index_map: torch.Tensor, data_blob: torch.Tensor, verify: bool = True
) -> None:
    reconstruct_into(_in_place(base), base, index_map, data_blob, verify, 0)


@torch.library.impl(_library, "reconstruct_", "CUDA")
def _reconstruct_in_place_cuda(
    base: torch.Tensor, index_map: torch.Tensor, data_blob: torch.Tensor, verify: bool = True
) -> None:
    _require_blob_on_device(base, index_map, data_blob)
    _cuda_rebuild.reconstruct(base, index_map, data_blob, verify, out=_in_place(base))


@torch.library.register_fake("tpde::reconstruct_", lib=_library)  # type: ignore[untyped-decorator]
def _reconstruct_in_place_fake(
    base: torch.Tensor, index_map: torch.Tensor, data_blob: torch.Tensor, verify: bool = True
) -> None:
    return None


@torch.library.impl(_library, "reconstruct_quantized", "CPU")
def _reconstruct_quantized(
    packed: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    code: torch.Tensor | None,
    kind: str,
    bits: int,
    group_size: int,
    index_map: torch.Tensor,
    data_blob: torch.Tensor,
    shape: Sequence[int],
    dtype: torch.dtype,
    verify: bool = True,
) -> torch.Tensor:
    base = QuantizedTensor(packed, scale, zero, bits, group_size, tuple(shape), dtype, kind, code)
    out = torch.empty(shape, dtype=dtype, device="cpu")
    reconstruct_into(out, base, index_map, data_blob, verify, 0)
    return out


@torch.library.impl(_library, "reconstruct_quantized", "CUDA")
def _reconstruct_quantized_cuda(
    packed: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    code: torch.Tensor | None,
    kind: str,
    bits: int,
    group_size: int,
    index_map: torch.Tensor,
    data_blob: torch.Tensor,
    shape: Sequence[int],
    dtype: torch.dtype,
    verify: bool = True,
) -> torch.Tensor:
    _require_blob_on_device(packed, index_map, data_blob)
    base = QuantizedTensor(packed, scale, zero, bits, group_size, tuple(shape), dtype, kind, code)
    return _rebuild_on_cuda(base, index_map, data_blob, shape, dtype, verify)


@torch.library.register_fake("tpde::reconstruct_quantized", lib=_library)  # type: ignore[untyped-decorator]
def _reconstruct_quantized_fake(
    packed: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    code: torch.Tensor | None,
    kind: str,
    bits: int,
    group_size: int,
    index_map: torch.Tensor,
    data_blob: torch.Tensor,
    shape: Sequence[int],
    dtype: torch.dtype,
    verify: bool = True,
) -> torch.Tensor:
    return data_blob.new_empty(shape, dtype=dtype)


def rebuild(
    base: torch.Tensor | QuantizedTensor | None,
    index_map: torch.Tensor,
    data_blob: torch.Tensor,
    shape: Sequence[int],
    dtype: torch.dtype,
    verify: bool,
) -> torch.Tensor:
    """Calls the operator for the kind of base."""
    if not isinstance(base, QuantizedTensor):
        return reconstruct(base, index_map, data_blob, shape, dtype, verify)
    _require(base, dtype, shape, "base")  # the operator takes both from the index
    q, group_size = base, min(base.group_size, quant.MAX_GROUP)
    return reconstruct_quantized(
        q.packed, q.scale, q.zero, q.code, q.kind, q.bits, group_size, index_map, data_blob, shape, dtype, verify
    )


def _in_place(base: torch.Tensor) -> torch.Tensor:
    if not base.is_contiguous() or base.is_conj() or base.is_neg():
        raise ArgumentError("base: expected a contiguous tensor, to be changed in place")
    return base


@torch.library.impl(_library, "scatter_add", "CPU")
def _scatter_add(
    base: torch.Tensor, indices: torch.Tensor, values: torch.Tensor, chunk_map: torch.Tensor
) -> torch.Tensor:
    check_scatter(base, indices, values, chunk_map)
    out = torch.empty(base.shape, dtype=base.dtype, device="cpu")
    scatter_add_into(out, *(_memory.host(t, "scatter_add") for t in (base, indices, values, chunk_map)))
    return out


@torch.library.register_fake("tpde::scatter_add", lib=_library)  # type: ignore[untyped-decorator]
def _scatter_add_fake(
    base: torch.Tensor, indices: torch.Tensor, values: torch.Tensor, chunk_map: torch.Tensor
) -> torch.Tensor:
    return base.new_empty(base.shape)


@torch.library.impl(_library, "scatter_add", "CUDA")
def _scatter_add_cuda(
    base: torch.Tensor, indices: torch.Tensor, values: torch.Tensor, chunk_map: torch.Tensor
) -> torch.Tensor:
    check_deltas(base, indices, values)
    out = torch.empty(base.shape, dtype=base.dtype, device=base.device)
    _cuda_scatter.scatter_add(out, base.contiguous(), indices.contiguous(), values.contiguous())
    return out


# (base, index_map, data_blob, shape, dtype, verify) -> tensor
reconstruct: Callable[..., torch.Tensor] = torch.ops.tpde.reconstruct.default
# (packed, scale, zero, code, kind, bits, group_size, index_map, data_blob, shape, dtype, verify) -> tensor
reconstruct_quantized: Callable[..., torch.Tensor] = torch.ops.tpde.reconstruct_quantized.default
# (base, index_map, data_blob, verify): base becomes the target
reconstruct_: Callable[..., None] = torch.ops.tpde.reconstruct_.default
# (base, indices, values, chunk_map) -> tensor
scatter_add: Callable[..., torch.Tensor] = torch.ops.tpde.scatter_add.default
