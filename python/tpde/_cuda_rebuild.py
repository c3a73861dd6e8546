"""Launching rebuilds on CUDA devices: one tensor, or many with one launch for each kind of kernel.

Nothing here waits for the GPU but the checks that say so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from tpde import _core, _cuda, _cuda_base, _memory
from tpde._status import ArgumentError, BaseMismatchError, TargetMismatchError, UnsupportedError
from tpde.quant import QuantizedTensor

AnyBase = torch.Tensor | QuantizedTensor | None
# (base, index_map, data_blob)
Packed = tuple[AnyBase, torch.Tensor, torch.Tensor]

# TPDE_GPU_VERIFIED_BLOB of tpde.h.
_VERIFIED = 2


def reconstruct(
    base: AnyBase,
    index_map: torch.Tensor,
    data_blob: torch.Tensor,
    verify: bool,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Rebuilds one tensor on the current stream of data_blob's device. Raises nothing that the device finds out."""
    s = _cuda.slot(index_map, data_blob)
    device = data_blob.device
    read = _cuda_base.require(base, s, device)
    if out is None:
        out = torch.empty(s.shape, dtype=s.dtype, device=device)
    else:
        _cuda_base.require_like(out, s, device, "out")
        if isinstance(base, QuantizedTensor):
            _require_apart([out], [(base, index_map, data_blob)])
    blob = _aligned(data_blob)
    _launch([s], [(read, out, blob)], verify, False, device)
    return out


def _launch(
    slots: Sequence[_cuda.Slot],
    tensors: Sequence[tuple[_cuda_base.Base, torch.Tensor, torch.Tensor]],
    verify: bool,
    verified: bool,
    device: torch.device,
) -> None:
    """Launches on all (base, out, blob), which are checked and on one device.

    zstd tensors are verified whatever `verify` says, since nvCOMP must not see damage, unless `verified` says that they
    were before.
    """
    binding = _core.gpu_core()
    stream = _cuda.stream(device.index)
    items = []
    for s, (base, out, blob) in zip(slots, tensors, strict=True):
        if not (s.ready[0] and (s.ready[1] or not verify)):
            _cuda.refuse_capture(f"the kernels for a {s.name} are")
        if stream not in s.streams:
            s.use_on(stream, device)
        flags = base.flags | (_VERIFIED if verified else 0)
        items.append((s.handle, base.pointer, out.data_ptr(), blob.data_ptr(), s.image_ptr, s.status_ptr, flags))
    if verify:
        checks = [(*item[:5], s.verify_ptr, item[6]) for s, item in zip(slots, items, strict=True) if not s.zstd]
        if checks:
            binding.gpu_verify(checks, stream)
    if any(s.zstd for s in slots):
        scratch = _scratch(items, device)
        binding.gpu_reconstruct(items, scratch.data_ptr(), scratch.numel(), stream)
    else:
        binding.gpu_reconstruct(items, 0, 0, stream)
    for s in slots:
        s.ready[0] = True
        s.ready[1] |= verify


def _scratch(items: Sequence[tuple[int, ...]], device: torch.device) -> torch.Tensor:
    """Returns the memory in which nvCOMP works, from torch's allocator, which keeps it for the current stream."""
    try:
        n: int = _core.gpu_core().gpu_scratch_bytes(items)
    except UnsupportedError as error:
        raise UnsupportedError(f"{error}; tensors packed with another codec than 'zstd' need no nvCOMP") from None
    return torch.empty(n, dtype=torch.uint8, device=device)


def reconstruct_many(
    items: Sequence[Packed],
    verify: bool,
    names: Sequence[str] | None,
    outs: Sequence[torch.Tensor | None] | None = None,
    verified: bool = False,
) -> list[torch.Tensor]:
    """Rebuilds tensors, with one launch for each kind of kernel and device.

    outs: contiguous tensors to write to, one for each item; None, and None in it, make new ones.
    """
    slots = [_cuda.slot(index_map, data_blob) for _, index_map, data_blob in items]
    if outs is None:
        outs = [None] * len(items)
    for i, (s, out, (_, _, data_blob)) in enumerate(zip(slots, outs, items, strict=True)):
        if names is not None:
            s.name = names[i]
        if out is not None:
            _cuda_base.require_like(out, s, data_blob.device, f"out of item {i}")
    if any(out is not None for out in outs):
        _require_apart(outs, items)
    results = []
    by_device: dict[torch.device, list[int]] = {}
    tensors = []
    for i, (s, given, (base, _, data_blob)) in enumerate(zip(slots, outs, items, strict=True)):
        device = data_blob.device
        read = _cuda_base.require(base, s, device)
        results.append(torch.empty(s.shape, dtype=s.dtype, device=device) if given is None else given)
        tensors.append((read, results[-1], _aligned(data_blob)))
        by_device.setdefault(device, []).append(i)
    for device, numbers in by_device.items():
        _launch([slots[i] for i in numbers], [tensors[i] for i in numbers], verify, verified, device)
    return results


def _aligned(data_blob: torch.Tensor) -> torch.Tensor:
    """Kernels read blobs in words of 8 bytes; a view into the middle of something may have to be copied."""
    return data_blob if data_blob.data_ptr() % 8 == 0 else data_blob.clone()


def _require_apart(outs: Sequence[torch.Tensor | None], items: Sequence[Packed]) -> None:
    """Refuses outputs that lie in each other or in what another item reads: items are rebuilt in any order.

    An output may be the base of its own item; the core refuses one that overlaps it in part.
    """
    spans: list[tuple[int, int, bool, str]] = []  # first byte, end, written, what it is
    for i, (out, (base, _, data_blob)) in enumerate(zip(outs, items, strict=True)):
        if out is not None:
            spans.append((*_span(out), True, f"out of item {i}"))
        parts = base.parts() if isinstance(base, QuantizedTensor) else [] if base is None else [base]
        for part in parts:
            if out is None or part.data_ptr() != out.data_ptr() or isinstance(base, QuantizedTensor):
                spans.append((*_span(part), False, f"base of item {i}"))
        spans.append((*_span(data_blob), False, f"data_blob of item {i}"))
    last: dict[bool, tuple[int, str]] = {False: (0, ""), True: (0, "")}  # the farthest end so far, of reads and writes
    for first, end, written, what in sorted(spans):
        for other in (True, False) if written else (True,):
            if first < last[other][0] and first < end:
                raise ArgumentError(
                    f"{what}: shares memory with {last[other][1]}; expected outputs that lie in nothing but the base "
                    "of their own item"
                )
        last[written] = max(last[written], (end, what))


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """Returns the first byte of a tensor's elements and the end of them."""
    if not tensor.numel():
        return 0, 0
    reach = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    return tensor.data_ptr(), tensor.data_ptr() + reach * tensor.element_size()


def check_base(base: AnyBase, index_map: torch.Tensor, data_blob: torch.Tensor) -> None:
    """Compares base with the digest in the index, on the host. Raises BaseMismatchError."""
    if base is None:
        return
    s = _cuda.slot(index_map, data_blob)
    _cuda_base.require(base, s, data_blob.device)
    words = base.to("cpu").dequantize() if isinstance(base, QuantizedTensor) else base
    if _digest(words) != s.prepared.info["base_digest"]:
        raise BaseMismatchError(f"base: is not the one that the {s.name} was packed against")


def check_results(items: Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor]], digests: bool) -> None:
    """Waits for (out, index_map, data_blob), which were just launched, and raises what is wrong with them."""
    for out, index_map, data_blob in items:
        s = _cuda.slot(index_map, data_blob)
        with torch.cuda.device(data_blob.device):
            for failure in s.failures():
                raise failure
        if digests and _digest(out) != s.prepared.info["target_digest"]:
            raise TargetMismatchError(f"the rebuilt {s.name} does not have the digest of the target that was packed")


def _digest(tensor: torch.Tensor) -> bytes:
    host = _memory.host(tensor, "tensor")
    result: bytes = _core.gpu_core().digest(*_memory.pointer(host))
    return result
