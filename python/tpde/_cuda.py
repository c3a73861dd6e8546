"""Rebuilding on CUDA devices: what stands between torch tensors and the GPU functions of the core.

A packed tensor needs three things beside its blob to be rebuilt on a GPU: its index, validated and expanded
(`tpde_prepare`), the copy of that expansion on the device (the image), and a word of status for each chunk, into which
kernels write. They are made at the first use of an index map with a blob and kept in a `Slot` for as long as the two
tensors live. Later calls find the slot by the storages of the two: they allocate nothing but the result, wait for
nothing, and can be captured in a CUDA graph.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from tpde import _dtypes, _memory
from tpde._core import gpu_core
from tpde._status import (
    EXCEPTIONS,
    ArgumentError,
    BaseMismatchError,
    ForkedError,
    TargetMismatchError,
    TpdeError,
    UnsupportedError,
)

# (base, index_map, data_blob)
Packed = tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]


_ZSTD = 2

# Untyped in torch.
_weak: Any = StorageWeakRef


class Prepared:
    """An index map, validated and expanded. Immutable."""

    def __init__(self, index_map: torch.Tensor) -> None:
        binding = gpu_core()
        copy = _memory.require_bytes(index_map.cpu(), "index_map")
        self.info = binding.index_read(*_memory.pointer(copy))
        self.dtype = _dtypes.torch_of(self.info["dtype"])
        self.shape = torch.Size(_dtypes.torch_shape(self.info["dtype"], self.info["shape"]))
        self.has_base: bool = self.info["has_base"]
        self.blob_bytes: int = self.info["blob_bytes"]
        self.chunks: int = self.info["chunks"]
        self.handle: int = binding.prepare(*_memory.pointer(copy))
        self._free = binding.prepared_free
        self.image = torch.empty(binding.prepared_image_bytes(self.handle), dtype=torch.uint8, device="cpu")
        binding.prepared_image(*_memory.pointer(self.image), self.handle)

    def __del__(self) -> None:
        if getattr(self, "_free", None) is not None:
            with contextlib.suppress(ForkedError):  # in a child it was never there
                self._free(self.handle)


class Slot:
    """An index map and a blob on one device, ready for kernels."""

    def __init__(self, prepared: Prepared, index_map: torch.Tensor, data_blob: torch.Tensor) -> None:
        device = data_blob.device
        self.prepared = prepared
        self.handle = prepared.handle
        self.dtype, self.shape, self.has_base = prepared.dtype, prepared.shape, prepared.has_base
        self.zstd = prepared.info["codec"] == _ZSTD  # needs scratch memory; is always verified before nvCOMP sees it
        self.version = _version(index_map)
        self.storages = [_weak(t.untyped_storage()) for t in (index_map, data_blob)]
        # A blocking copy: complete for every stream when it returns.
        self.image = prepared.image.to(device)
        # Chunks as the last verification found them, then as the last rebuild did. Zeroed for every stream: see _make.
        self.status = torch.zeros(2 * prepared.chunks, dtype=torch.int32, device=device)
        self.image_ptr = self.image.data_ptr()
        self.verify_ptr = self.status.data_ptr()
        self.status_ptr = self.verify_ptr + 4 * prepared.chunks
        self.ready = [False, False]  # kernels loaded: to rebuild, to verify
        self.streams = {_stream(device.index)}  # that use image and status
        self.name = f"{str(self.dtype).removeprefix('torch.')} tensor of shape {list(self.shape)}"

    def expired(self) -> bool:
        return any(storage.expired() for storage in self.storages)

    def use_on(self, stream: int, device: torch.device) -> None:
        """Keeps the allocator from handing out the slot's memory, once freed, before the stream is done with it."""
        for tensor in (self.image, self.status):
            if tensor.numel():
                tensor.record_stream(torch.cuda.current_stream(device))
        self.streams.add(stream)

    def failures(self) -> list[TpdeError]:
        """Reads the status words, waiting for the current stream; forgets what they say."""
        words = self.status.cpu()
        bad = words.nonzero().view(-1).tolist()
        if not bad:
            return []
        chunks = self.prepared.chunks
        first: int = bad[0]
        status = int(words[first])
        self.status.zero_()
        exception = EXCEPTIONS.get(status, EXCEPTIONS[20])
        what = "its data does not have the checksum of the index" if status == 21 else "its data violates the format"
        count = len({number % chunks for number in bad})
        more = f" (and {count - 1} of its {chunks} chunks more)" if count > 1 else ""
        return [exception(f"{self.name} on {self.status.device}: chunk {first % chunks}: {what}{more}")]


# storage, offset and bytes of the index map; storage and offset of the blob
_Key = tuple[Any, ...]

_slots: dict[_Key, Slot] = {}
_reports: list[TpdeError] = []  # of slots that are gone, until synchronize raises them
_lock = threading.RLock()
_sweep_at = 256
_flags: dict[int, torch.Tensor] = {}  # by device: becomes 1 if scatter_add meets bad indices


def _raw_stream(device: int) -> int:
    return int(torch.cuda.current_stream(device).cuda_stream)


# The same, without making a Stream object: a fifth of the time.
_stream: Any = getattr(torch._C, "_cuda_getCurrentRawStream", _raw_stream)


def _version(tensor: torch.Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def slot(index_map: torch.Tensor, data_blob: torch.Tensor) -> Slot:
    """Returns the slot of an index map (on the CPU or beside the blob) and a blob on a CUDA device."""
    _require_bytes(index_map, "index_map")
    _require_bytes(data_blob, "data_blob")
    key = (
        index_map.untyped_storage()._cdata,
        index_map.storage_offset(),
        index_map.numel(),
        data_blob.untyped_storage()._cdata,
        data_blob.storage_offset(),
    )
    found = _slots.get(key)
    # The slot's weak references keep the addresses in the key from being given to other storages.
    if found is None or found.version != _version(index_map):
        found = _make(key, index_map, data_blob)
    if data_blob.numel() != found.prepared.blob_bytes:
        raise ArgumentError(
            f"data_blob: expected {found.prepared.blob_bytes} bytes, as the index says, got {data_blob.numel()}"
        )
    return found


def _make(key: _Key, index_map: torch.Tensor, data_blob: torch.Tensor) -> Slot:
    global _sweep_at
    if not index_map.is_cpu and index_map.device != data_blob.device:
        raise ArgumentError(f"index_map: is on {index_map.device}, expected the CPU or {data_blob.device}")
    _refuse_capture("these packed tensors are")
    with _lock:
        found = _slots.get(key)
        if found is not None and found.version == _version(index_map):
            return found  # another thread was first
        if len(_slots) >= _sweep_at:
            _sweep()
            _sweep_at = max(256, 2 * len(_slots))
        # What an old version has written matters no more.
        with torch.inference_mode(False), torch.no_grad():
            made = Slot(Prepared(index_map), index_map, data_blob)
        torch.cuda.current_stream(data_blob.device).synchronize()  # the status is zero for every stream
        _slots[key] = made
        return made


def _sweep() -> None:
    """Drops slots whose tensors are gone, keeping their failures for synchronize."""
    gone = [key for key, s in _slots.items() if s.expired()]
    for device in {_slots[key].status.device for key in gone}:
        torch.cuda.synchronize(device)
    for key in gone:
        _reports.extend(_slots.pop(key).failures())


def _require_bytes(tensor: torch.Tensor, what: str) -> None:
    if tensor.dtype is not torch.uint8 or tensor.dim() != 1 or not tensor.is_contiguous():
        raise ArgumentError(
            f"{what}: expected a contiguous 1-D uint8 tensor, got {tensor.dtype} of shape {list(tensor.shape)}"
        )


def _refuse_capture(what: str) -> None:
    if torch.cuda.is_current_stream_capturing():
        raise UnsupportedError(
            f"{what} used for the first time while a CUDA graph is captured, which cannot include copying an index map "
            "or loading a kernel: make the same call once before the capture"
        )


def _require_base(base: torch.Tensor | None, s: Slot, device: torch.device) -> torch.Tensor | None:
    """Returns base as kernels read it: contiguous, lazy conjugation and negation carried out."""
    if base is None:
        if s.has_base:
            raise ArgumentError("base: is None, but the tensor was packed against a base")
        return None
    if not s.has_base:
        raise ArgumentError("base: expected None, the tensor was packed against nothing")
    _require_like(base, s, device, "base")
    if base.is_contiguous() and not base.is_conj() and not base.is_neg():
        return base
    return base.detach().resolve_conj().resolve_neg().contiguous()


def _require_like(tensor: torch.Tensor, s: Slot, device: torch.device, what: str) -> None:
    if tensor.dtype != s.dtype or tensor.shape != s.shape:
        raise ArgumentError(
            f"{what}: expected {s.dtype} of shape {list(s.shape)}, as the index says; "
            f"got {tensor.dtype} of shape {list(tensor.shape)}"
        )
    if tensor.device != device:
        raise ArgumentError(f"{what}: is on {tensor.device}, expected {device}, where data_blob is")


def _aligned(data_blob: torch.Tensor) -> torch.Tensor:
    """Kernels read blobs in words of 8 bytes; a view into the middle of something may have to be copied."""
    return data_blob if data_blob.data_ptr() % 8 == 0 else data_blob.clone()


def reconstruct(
    base: torch.Tensor | None,
    index_map: torch.Tensor,
    data_blob: torch.Tensor,
    verify: bool,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Rebuilds one tensor on the current stream of data_blob's device. Raises nothing that the device finds out."""
    s = slot(index_map, data_blob)
    device = data_blob.device
    base = _require_base(base, s, device)
    if out is None:
        out = torch.empty(s.shape, dtype=s.dtype, device=device)
    else:
        _require_like(out, s, device, "out")
    blob = _aligned(data_blob)
    _launch([s], [(base, out, blob)], verify, device)
    return out


def _launch(
    slots: Sequence[Slot],
    tensors: Sequence[tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]],
    verify: bool,
    device: torch.device,
) -> None:
    """Launches on all (base, out, blob), which are checked and on one device."""
    binding = gpu_core()
    stream = _stream(device.index)
    items = []
    for s, (base, out, blob) in zip(slots, tensors, strict=True):
        if not (s.ready[0] and (s.ready[1] or not verify)):
            _refuse_capture(f"the kernels for a {s.name} are")
        if stream not in s.streams:
            s.use_on(stream, device)
        items.append(
            (
                s.handle,
                0 if base is None else base.data_ptr(),
                out.data_ptr(),
                blob.data_ptr(),
                s.image_ptr,
                s.status_ptr,
            )
        )
    if verify:
        checks = [(*item[:5], s.verify_ptr) for s, item in zip(slots, items, strict=True) if not s.zstd]
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
        n: int = gpu_core().gpu_scratch_bytes(items)
    except UnsupportedError as error:
        raise UnsupportedError(f"{error}; tensors packed with codec='elias' or codec='raw' need no nvCOMP") from None
    return torch.empty(n, dtype=torch.uint8, device=device)


def reconstruct_many(items: Sequence[Packed], verify: bool, names: Sequence[str] | None) -> list[torch.Tensor]:
    """Rebuilds tensors, with one launch for each kind of kernel and device."""
    slots = [slot(index_map, data_blob) for _, index_map, data_blob in items]
    results = []
    by_device: dict[torch.device, list[int]] = {}
    tensors = []
    for i, (s, (base, _, data_blob)) in enumerate(zip(slots, items, strict=True)):
        device = data_blob.device
        if names is not None:
            s.name = names[i]
        base = _require_base(base, s, device)
        results.append(torch.empty(s.shape, dtype=s.dtype, device=device))
        tensors.append((base, results[-1], _aligned(data_blob)))
        by_device.setdefault(device, []).append(i)
    for device, numbers in by_device.items():
        _launch([slots[i] for i in numbers], [tensors[i] for i in numbers], verify, device)
    return results


def check_base(base: torch.Tensor | None, index_map: torch.Tensor, data_blob: torch.Tensor) -> None:
    """Compares base with the digest in the index, on the host. Raises BaseMismatchError."""
    if base is None:
        return
    s = slot(index_map, data_blob)
    _require_base(base, s, data_blob.device)
    if _digest(base) != s.prepared.info["base_digest"]:
        raise BaseMismatchError(f"base: is not the one that the {s.name} was packed against")


def check_results(items: Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor]], digests: bool) -> None:
    """Waits for (out, index_map, data_blob), which were just launched, and raises what is wrong with them."""
    for out, index_map, data_blob in items:
        s = slot(index_map, data_blob)
        with torch.cuda.device(data_blob.device):
            for failure in s.failures():
                raise failure
        if digests and _digest(out) != s.prepared.info["target_digest"]:
            raise TargetMismatchError(f"the rebuilt {s.name} does not have the digest of the target that was packed")


def _digest(tensor: torch.Tensor) -> bytes:
    host = _memory.host(tensor, "tensor")
    result: bytes = gpu_core().digest(*_memory.pointer(host))
    return result


def scatter_add(
    out: torch.Tensor, base: torch.Tensor, indices: torch.Tensor, values: torch.Tensor, check: bool = False
) -> None:
    """Writes base plus values at strictly increasing indices to out, on the current stream. All are contiguous."""
    device = base.device
    for what, tensor in (("indices", indices), ("values", values), ("out", out)):
        if tensor.device != device:
            raise ArgumentError(f"{what}: is on {tensor.device}, expected {device}, where base is")
    flag = _flags.get(device.index)
    if flag is None:
        flag = _make_flag(device)
    if check:
        torch.cuda.synchronize(device)
        _raise_flag(device.index)
    gpu_core().gpu_scatter_add(
        out.data_ptr(),
        base.data_ptr(),
        base.numel(),
        _dtypes.number_of(base.dtype),
        indices.data_ptr(),
        values.data_ptr(),
        indices.numel(),
        flag.data_ptr(),
        _stream(device.index),
    )
    if check:
        torch.cuda.current_stream(device).synchronize()
        _raise_flag(device.index)


def _make_flag(device: torch.device) -> torch.Tensor:
    _refuse_capture("scatter_add is")
    with _lock, torch.inference_mode(False):
        if device.index not in _flags:
            flag = torch.zeros(1, dtype=torch.int32, device=device)
            torch.cuda.current_stream(device).synchronize()
            _flags[device.index] = flag  # never freed: every stream may use it
        return _flags[device.index]


def _raise_flag(device: int) -> None:
    flag = _flags.get(device)
    if flag is not None and int(flag):
        flag.zero_()
        torch.cuda.current_stream(device).synchronize()
        raise ArgumentError(
            f"indices: a scatter_add on cuda:{device} met indices that are out of range or not strictly increasing; "
            "their sums were left out"
        )


def synchronize(device: torch.device) -> None:
    """Waits for everything on a CUDA device and raises the first failure that was found there since the last call."""
    torch.cuda.synchronize(device)
    with _lock, torch.cuda.device(device), torch.inference_mode(False), torch.no_grad():
        _sweep()
        mine = [s for s in _slots.values() if s.status.device == device]
        # One copy to the host if all is well, as it nearly always is.
        failed = bool(mine) and bool(torch.cat([s.status for s in mine]).any())
        if failed:
            for s in mine:
                _reports.extend(s.failures())
            torch.cuda.synchronize(device)  # the failures are forgotten, for every stream
        reports = list(_reports)
        _reports.clear()
    if reports:
        if len(reports) > 1:
            raise type(reports[0])(f"{reports[0]}; {len(reports) - 1} more tensors failed: {reports[1]}")
        raise reports[0]
    _raise_flag(device.index)
