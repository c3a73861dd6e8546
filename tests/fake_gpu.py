"""A stand-in for a GPU: kernels that run on the CPU, on tensors on the CPU.

Tests of what runs on the host when tensors are on a GPU take the fixture `gpu` (conftest.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import struct
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

import tpde
from tpde import _core, _cuda, _cuda_base, _gpu_unpack, _memory, quant
from tpde._core import gpu_core

DTYPE_OF = {10: torch.float16, 11: torch.bfloat16, 12: torch.float32}


def dequantised(address: int, dtype: torch.dtype) -> torch.Tensor:
    """What the descriptor at an address stands for."""
    fields = struct.unpack("<7Q4BI16f", ctypes.string_at(address, 128))
    packed, scale, zero, n, packed_bytes, group, _, kind, bits, scale_type, _, _, *code = fields
    groups = -(-n // group)
    kind_name = next(name for name, number in quant.KINDS.items() if number == kind)

    def read(at: int, count: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.frombuffer(bytearray(ctypes.string_at(at, count * dtype.itemsize)), dtype=dtype)

    return quant.QuantizedTensor(
        read(packed, packed_bytes, torch.uint8), read(scale, groups, DTYPE_OF[scale_type]),
        read(zero, groups, torch.uint8) if zero else None, bits, group, (n,), dtype, kind_name,
        torch.tensor(code) if kind_name == "codebook" else None,
    ).dequantize()  # fmt: skip


class CPU:
    """The core with a GPU that is the CPU."""

    def __init__(self) -> None:
        self.core = gpu_core()
        self.index: dict[int, torch.Tensor] = {}
        self.calls: list[tuple[str, int]] = []

    def __getattr__(self, name: str):
        return getattr(self.core, name)

    def prepare(self, address: int, n: int) -> int:
        handle = self.core.prepare(address, n)
        self.index[handle] = torch.frombuffer(bytearray(ctypes.string_at(address, n)), dtype=torch.uint8)
        return handle

    def prepared_free(self, handle: int) -> None:
        self.core.prepared_free(handle)
        del self.index[handle]

    def _run(self, name: str, items, write: bool) -> None:
        self.calls.append((name, len(items)))
        for handle, base, dst, blob, _, status, flags in items:
            index = _memory.pointer(self.index[handle])
            info = self.core.index_read(*index)
            room = torch.empty(info["target_bytes"] or 1, dtype=torch.uint8)
            words = (ctypes.c_uint32 * info["chunks"]).from_address(status)
            size = info["target_bytes"]
            if flags & 1:
                words_of_base = dequantised(base, DTYPE_OF[info["dtype"]])
                assert words_of_base.numel() * words_of_base.element_size() == size
                base = words_of_base.data_ptr()
            try:
                self.core.reconstruct(
                    dst if write else room.data_ptr(), size, base, size if base else 0, *index, blob,
                    info["blob_bytes"], 3,
                )  # fmt: skip
                words[:] = [0] * len(words)
            except tpde.TpdeError as error:
                words[-1] = error.status

    def gpu_verify(self, items, stream: int) -> None:
        self._run("verify", items, False)

    def gpu_reconstruct(self, items, scratch: int, scratch_bytes: int, stream: int) -> None:
        self._run("reconstruct", items, True)


@contextlib.contextmanager
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[CPU]:
    """Puts the stand-in where the package looks for GPUs."""
    fake = CPU()
    fake.capturing = False
    stream = SimpleNamespace(synchronize=lambda: None, cuda_stream=0)
    monkeypatch.setattr(_core, "gpu_core", lambda: fake)
    monkeypatch.setattr(_cuda, "stream", lambda device: 0)
    monkeypatch.setattr(_cuda, "_slots", {})
    monkeypatch.setattr(_cuda, "_reports", [])
    monkeypatch.setattr(_cuda_base, "_descriptors", {})
    monkeypatch.setattr(_gpu_unpack, "Streams", Streams)
    monkeypatch.setattr(_memory, "pinned", lambda n: torch.full((n,), 0xDD, dtype=torch.uint8))
    monkeypatch.setattr(_cuda, "_sweep_at", 8)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: fake.capturing)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: stream)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    yield fake
    _cuda._slots.clear()
    gc.collect()
    assert fake.index == {}, "prepared tensors are left"


class Streams:
    """Streams on which everything is done at once."""

    def __init__(self, device: torch.device) -> None:
        pass

    def copying(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def __getattr__(self, name: str):
        return lambda *arguments: None
