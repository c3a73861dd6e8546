"""Bases as kernels read them: words in memory, or the descriptor of a quantised base.

A kernel finds the parts of a quantised base through 128 bytes in device memory (core/quant/FORMAT.md, "Descriptor").
They are made at the first use of a quantised base and kept for as long as its parts live, so that later calls copy
nothing, wait for nothing, and can be captured in a CUDA graph.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from tpde import _cuda
from tpde._status import ArgumentError
from tpde.quant import QuantizedTensor

# TPDE_GPU_QUANTISED_BASE of tpde.h.
_QUANTISED = 1


class Base(NamedTuple):
    """What a kernel is told of a base."""

    pointer: int
    """0: there is none."""
    flags: int
    """Of tpde_gpu_item."""
    owner: object
    """Keeps the memory alive."""


_NONE = Base(0, 0, None)


class Descriptor:
    """The descriptor of a quantised base on its device."""

    def __init__(self, q: QuantizedTensor) -> None:
        _cuda.refuse_capture("this quantised base is")
        device = q.device
        self.storages = [_cuda.weak(part.untyped_storage()) for part in q.parts()]
        self.code_version = _code_version(q)
        with torch.inference_mode(False), torch.no_grad():
            host = torch.frombuffer(bytearray(q.descriptor()), dtype=torch.uint8)
            # A blocking copy: complete for every stream when it returns.
            self.tensor = host.to(device, copy=True)
        self.pointer = self.tensor.data_ptr()
        self.streams = {_cuda.stream(device.index)}

    def expired(self) -> bool:
        return any(storage.expired() for storage in self.storages)

    def use_on(self, stream: int, device: torch.device) -> None:
        """Keeps the allocator from handing out the memory, once freed, before the stream is done with it."""
        self.tensor.record_stream(torch.cuda.current_stream(device))
        self.streams.add(stream)


_descriptors: dict[tuple[Any, ...], Descriptor] = {}
_sweep_at = 256


def require(base: torch.Tensor | QuantizedTensor | None, s: _cuda.Slot, device: torch.device) -> Base:
    """Returns base as kernels read it, if it fits what the index in s says. Raises ArgumentError."""
    if base is None:
        if s.has_base:
            raise ArgumentError("base: is None, but the tensor was packed against a base")
        return _NONE
    if not s.has_base:
        raise ArgumentError("base: expected None, the tensor was packed against nothing")
    if isinstance(base, QuantizedTensor):
        require_like(base, s, device, "base")
        return _of_quantised(base, device)
    require_like(base, s, device, "base")
    if not base.is_contiguous() or base.is_conj() or base.is_neg():
        base = base.detach().resolve_conj().resolve_neg().contiguous()
    return Base(base.data_ptr(), 0, base)


def require_like(tensor: torch.Tensor | QuantizedTensor, s: _cuda.Slot, device: torch.device, what: str) -> None:
    """Raises ArgumentError unless tensor has the dtype and shape that the index in s says, and is on device."""
    if tensor.dtype != s.dtype or tensor.shape != s.shape:
        raise ArgumentError(
            f"{what}: expected {s.dtype} of shape {list(s.shape)}, as the index says; "
            f"got {tensor.dtype} of shape {list(tensor.shape)}"
        )
    if tensor.device != device:
        raise ArgumentError(f"{what}: is on {tensor.device}, expected {device}, where data_blob is")


def _of_quantised(q: QuantizedTensor, device: torch.device) -> Base:
    # Addresses, not storages: they stand in the descriptor. Codes and scales may change behind them, a code book not.
    key = (
        device.index,
        *(0 if part is None else part.data_ptr() for part in (q.packed, q.scale, q.zero, q.code)),
        q.scale.dtype,
        q.numel(),
        q.bits,
        q.group_size,
        q.kind,
    )
    found = _descriptors.get(key)
    # Memory that was freed may have been given to another base with another code book.
    if found is None or found.code_version != _code_version(q) or found.expired():
        found = _make(key, q)
    stream = _cuda.stream(device.index)
    if stream not in found.streams:
        found.use_on(stream, device)
    return Base(found.pointer, _QUANTISED, (q, found))


def _make(key: tuple[Any, ...], q: QuantizedTensor) -> Descriptor:
    global _sweep_at
    with _cuda.lock:
        if len(_descriptors) >= _sweep_at:
            for old in [old for old, d in _descriptors.items() if d.expired()]:
                del _descriptors[old]
            _sweep_at = max(256, 2 * len(_descriptors))
        made = _descriptors[key] = Descriptor(q)
        return made


def _code_version(q: QuantizedTensor) -> int:
    return -1 if q.code is None else _cuda.version(q.code)
