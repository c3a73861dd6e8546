"""What is known of packed tensors on CUDA devices, and the failures that kernels found there.

A packed tensor needs three things beside its blob to be rebuilt on a GPU: its index, validated and expanded
(`tpde_prepare`), the copy of that expansion on the device (the image), and a word of status for each chunk, into which
kernels write. They are made at the first use of an index map with a blob and kept in a `Slot` for as long as the two
tensors live. Later calls find the slot by the storages of the two: they allocate nothing but the result, wait for
nothing, and can be captured in a CUDA graph.
"""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from tpde import _core, _cuda_scatter, _dtypes, _memory
from tpde._status import EXCEPTIONS, ArgumentError, ForkedError, TpdeError, UnsupportedError

_ZSTD = 2

# Untyped in torch.
weak: Any = StorageWeakRef


class Prepared:
    """An index map, validated and expanded. Immutable."""

    def __init__(self, index_map: torch.Tensor) -> None:
        binding = _core.gpu_core()
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
        self.zstd = prepared.info["codec"] == _ZSTD  # needs scratch memory, and care: see tpde._cuda_rebuild
        self.version = version(index_map)
        self.storages = [weak(t.untyped_storage()) for t in (index_map, data_blob)]
        # A blocking copy: complete for every stream when it returns.
        self.image = prepared.image.to(device)
        # Chunks as the last verification found them, then as the last rebuild did. Zeroed for every stream: see _make.
        self.status = torch.zeros(2 * prepared.chunks, dtype=torch.int32, device=device)
        self.image_ptr = self.image.data_ptr()
        self.verify_ptr = self.status.data_ptr()
        self.status_ptr = self.verify_ptr + 4 * prepared.chunks
        self.ready = [False, False]  # kernels loaded: to rebuild, to verify
        self.streams = {stream(device.index)}  # that use image and status
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
lock = threading.RLock()
_sweep_at = 256


def _raw_stream(device: int) -> int:
    return int(torch.cuda.current_stream(device).cuda_stream)


# The same, without making a Stream object: a fifth of the time.
stream: Any = getattr(torch._C, "_cuda_getCurrentRawStream", _raw_stream)


def version(tensor: torch.Tensor) -> int:
    """Returns what changes whenever torch writes to tensor; -1 where torch does not count."""
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
    if found is None or found.version != version(index_map):
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
    refuse_capture("these packed tensors are")
    with lock:
        found = _slots.get(key)
        if found is not None and found.version == version(index_map):
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


def refuse_capture(what: str) -> None:
    if torch.cuda.is_current_stream_capturing():
        raise UnsupportedError(
            f"{what} used for the first time while a CUDA graph is captured, which cannot include copying an index map "
            "or loading a kernel: make the same call once before the capture"
        )


def synchronize(device: torch.device) -> None:
    """Waits for everything on a CUDA device and raises the first failure that was found there since the last call."""
    torch.cuda.synchronize(device)
    with lock, torch.cuda.device(device), torch.inference_mode(False), torch.no_grad():
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
    _cuda_scatter.raise_flag(device.index)
