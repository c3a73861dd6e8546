"""nvCOMP 6, called directly: what its decoders alone take. For benchmarks; signatures are those of its headers."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import tpde

_CHAR, _BITS = 0, 0xFF  # nvcompType_t
ANS_ALIGN = 16


class _ZstdOptions(ctypes.Structure):
    _fields_ = (("backend", ctypes.c_int), ("reserved", ctypes.c_char * 60))


class _AnsPackOptions(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int), ("data_type", ctypes.c_int), ("max_sub_chunk_count", ctypes.c_uint8),
        ("states_per_lane", ctypes.c_uint8), ("histogram_reduction_log2", ctypes.c_uint8),
        ("reserved", ctypes.c_char * 53),
    )  # fmt: skip


class _AnsOptions(ctypes.Structure):
    _fields_ = (
        ("backend", ctypes.c_int), ("data_type", ctypes.c_int), ("max_sub_chunk_count", ctypes.c_uint8),
        ("states_per_lane", ctypes.c_uint8), ("skip_validate", ctypes.c_uint8), ("reserved", ctypes.c_char * 53),
    )  # fmt: skip


for _options in (_ZstdOptions, _AnsPackOptions, _AnsOptions):
    assert ctypes.sizeof(_options) == 64


class Nvcomp:
    """The library. Raises UnsupportedError where there is none of version 6."""

    def __init__(self) -> None:
        found = [Path(p) / "nvidia/libnvcomp/lib64/libnvcomp.so.6" for p in sys.path]
        path = next((p for p in found if p.is_file()), None)
        if path is None:
            raise tpde.UnsupportedError("nvCOMP 6 is in no site-packages: pip install nvidia-libnvcomp-cu13")
        self._library = ctypes.CDLL(str(path))
        properties = (ctypes.c_uint32 * 2)()
        self._call("nvcompGetProperties", properties)
        if properties[0] // 1000 != 6:
            raise tpde.UnsupportedError(f"{path}: has version {properties[0]}, expected 6000 to 6999")

    def _call(self, name: str, *arguments: object) -> None:
        function = getattr(self._library, name)
        function.restype = ctypes.c_int
        status = function(*arguments)
        if status != 0:
            raise tpde.InternalError(f"{name}: nvCOMP status {status}")

    def zstd_decoder(self, frames: Batch, out: Batch) -> Callable[[], None]:
        """Returns what decompresses zstd frames to out, on the current stream."""
        return self._decoder("Zstd", _ZstdOptions(), frames, out)

    def ans_decoder(self, chunks: Batch, out: Batch) -> Callable[[], None]:
        """Returns what decompresses ANS chunks to out."""
        return self._decoder("ANS", _AnsOptions(data_type=_BITS), chunks, out)

    def _decoder(self, codec: str, options: ctypes.Structure, source: Batch, out: Batch) -> Callable[[], None]:
        temp_bytes = ctypes.c_size_t()
        self._call(
            f"nvcompBatched{codec}DecompressGetTempSize", ctypes.c_size_t(len(source)), ctypes.c_size_t(max(out.sizes)),
            options, ctypes.byref(temp_bytes), ctypes.c_size_t(sum(out.sizes)), _stream(),
        )  # fmt: skip
        temp = torch.empty(temp_bytes.value, dtype=torch.uint8, device="cuda")
        actual = torch.zeros(len(source), dtype=torch.int64, device="cuda")
        statuses = torch.full((len(source),), -1, dtype=torch.int32, device="cuda")

        def run() -> None:
            self._call(
                f"nvcompBatched{codec}DecompressAsync", _at(source.pointers), _at(source.bytes), _at(out.bytes),
                _at(actual), ctypes.c_size_t(len(source)), _at(temp), temp_bytes, _at(out.pointers), options,
                _at(statuses), _stream(),
            )  # fmt: skip

        run()
        if int(statuses.count_nonzero()) or not torch.equal(actual, out.bytes):
            raise tpde.InternalError(f"nvCOMP does not decompress what it was given as {codec}")
        return run

    def ans_compress(self, data: torch.Tensor, chunk_bytes: int) -> tuple[Batch, int]:
        """Compresses uint8 data on the GPU. Returns chunks, each in room for the largest, and what they take in all."""
        options = _AnsPackOptions(data_type=_CHAR)
        source = Batch.of_pieces(data, chunk_bytes)
        most, temp_bytes = ctypes.c_size_t(), ctypes.c_size_t()
        self._call(
            "nvcompBatchedANSCompressGetMaxOutputChunkSize", ctypes.c_size_t(chunk_bytes), options, ctypes.byref(most)
        )
        self._call(
            "nvcompBatchedANSCompressGetTempSize", ctypes.c_size_t(len(source)), ctypes.c_size_t(chunk_bytes), options,
            ctypes.byref(temp_bytes), ctypes.c_size_t(data.numel()), _stream(),
        )  # fmt: skip
        stride = -(-most.value // ANS_ALIGN) * ANS_ALIGN
        room = torch.empty(len(source) * stride, dtype=torch.uint8, device="cuda")
        out = Batch([room.data_ptr() + i * stride for i in range(len(source))], [stride] * len(source), room)
        temp = torch.empty(temp_bytes.value, dtype=torch.uint8, device="cuda")
        statuses = torch.full((len(source),), -1, dtype=torch.int32, device="cuda")
        self._call(
            "nvcompBatchedANSCompressAsync", _at(source.pointers), _at(source.bytes), ctypes.c_size_t(chunk_bytes),
            ctypes.c_size_t(len(source)), _at(temp), temp_bytes, _at(out.pointers), _at(out.bytes), options,
            _at(statuses), _stream(),
        )  # fmt: skip
        if int(statuses.count_nonzero()):
            raise tpde.InternalError("nvCOMP does not compress with ANS")
        return out, int(out.bytes.sum())


class Batch:
    """Pieces of GPU memory: arrays of their addresses and sizes, on the GPU."""

    def __init__(self, pointers: Sequence[int], sizes: Sequence[int], owner: object) -> None:
        self.sizes, self._owner = sizes, owner
        self.pointers = torch.tensor(pointers, dtype=torch.int64, device="cuda")
        self.bytes = torch.tensor(sizes, dtype=torch.int64, device="cuda")

    def __len__(self) -> int:
        return len(self.sizes)

    @classmethod
    def of_pieces(cls, data: torch.Tensor, piece: int) -> Batch:
        """Cuts a contiguous uint8 tensor."""
        starts = range(0, data.numel(), piece)
        return cls([data.data_ptr() + i for i in starts], [min(piece, data.numel() - i) for i in starts], data)


def _at(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _stream() -> ctypes.c_void_p:
    return ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
