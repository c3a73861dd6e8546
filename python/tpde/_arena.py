"""One piece of host memory for everything of a model that is copied to a GPU, page-locked once.

Copies from page-locked (pinned) memory run at the speed of the link, beside everything else. From other (pageable)
memory the driver first copies to memory of its own: two to five times slower, and the host waits.

torch's pinned allocator rounds each request up to a power of two. An arena reserves addresses instead, which take no
memory until they are written to, and has what was written page-locked with cudaHostRegister when it is complete.
"""

from __future__ import annotations

import contextlib
import mmap
import resource
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from tpde import _memory
from tpde._residency import aligned, amount
from tpde._status import LimitError, UnsupportedError

PART_ALIGN = 256
"""What every part of a record starts at a multiple of: kernels read words of 8 and 16 bytes."""

_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)
_PORTABLE = 1  # cudaHostRegisterPortable: pinned for every GPU


class Reader(NamedTuple):
    """Bytes that are elsewhere, in a file say, and how many. read: writes them to a 1-D uint8 tensor of that size in
    host memory."""

    nbytes: int
    read: Callable[[torch.Tensor], None]


class Arena:
    """Records of bytes, one behind the other. Not thread-safe until it is sealed.

    tensor: uint8, everything; pinned: whether it is page-locked; why_not: the reason, if that failed.
    """

    def __init__(self, most_bytes: int) -> None:
        """most_bytes: more than this cannot be added. Raises LimitError."""
        most_bytes = aligned(max(most_bytes, 1), mmap.PAGESIZE)
        try:
            room = mmap.mmap(-1, most_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)
        except OSError as error:
            raise LimitError(f"cannot reserve addresses for {amount(most_bytes)} of host memory: {error}") from None
        with contextlib.suppress(OSError, AttributeError):  # fewer pages are locked faster
            room.madvise(mmap.MADV_HUGEPAGE)
        self.tensor = torch.frombuffer(room, dtype=torch.uint8)
        self.used = 0
        self.pinned = False
        self.why_not = ""
        self._release: Callable[[], object] | None = None

    def add(self, parts: Sequence[torch.Tensor | Reader]) -> list[int]:
        """Puts contiguous tensors on any device, or what is read, in as one record. Returns where each starts.

        Raises LimitError, and what a reader raises.
        """
        begin = aligned(self.used)
        sizes = [part.nbytes for part in parts]
        starts = [begin + offset for offset in offsets(sizes)]
        end = starts[-1] + sizes[-1] if parts else begin
        if end > self.tensor.numel():
            raise LimitError(f"the model takes more than the {amount(self.tensor.numel())} that were reserved for it")
        for start, part in zip(starts, parts, strict=True):
            room = self.tensor[start : start + part.nbytes]
            if isinstance(part, Reader):
                part.read(room)
            elif part.numel():
                room.copy_(_memory.octets(part.detach()))
        self.used = end
        return starts

    def seal(self, pin: bool | None, device: torch.device) -> None:
        """Page-locks what was added, if it is for a GPU. Nothing is added afterwards.

        pin: True raises UnsupportedError where that fails; None goes on without, and says so in `why_not`; False does
            not try.
        """
        if pin is False or device.type != "cuda" or not self.used:
            return
        address = self.tensor.data_ptr()
        failure = _lock(address, aligned(self.used, mmap.PAGESIZE), device)
        if failure is None:
            self.pinned = True
            # The tensor is an argument so that its memory lives until it is unlocked.
            self._release = weakref.finalize(self, _unlock, address, self.tensor)
            return
        limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
        limited = "unlimited" if limit == resource.RLIM_INFINITY else amount(limit)
        self.why_not = (
            f"cannot page-lock {amount(self.used)} of host memory: {failure}. The limit on locked memory is {limited} "
            "(ulimit -l; in a container --ulimit memlock=-1 and enough memory)"
        )
        if pin:
            raise UnsupportedError(
                f"{self.why_not}. pin=None goes on from pageable memory, at 10 to 16 GB/s instead of the link's full "
                "speed (55 with PCIe 5), the host waiting for each copy"
            )

    def close(self) -> None:
        """Unlocks the memory; it goes back with the last tensor that refers to it."""
        if self._release is not None:
            self._release()
        self.pinned = False


def offsets(sizes: Sequence[int]) -> list[int]:
    """Returns where in a record parts of so many bytes start."""
    starts, end = [], 0
    for size in sizes:
        starts.append(aligned(end, PART_ALIGN))
        end = starts[-1] + size
    return starts


def _lock(address: int, n: int, device: torch.device) -> str | None:
    """Returns why memory cannot be page-locked, None if it is."""
    with torch.cuda.device(device):
        code = int(_runtime().cudaHostRegister(address, n, _PORTABLE))
        if code == 0:
            return None
        text = f"cudaHostRegister says: {torch.cuda.CudaError(code)}"
        # CUDA reports the error once more, to whoever launches the next kernel: better here than to them.
        with contextlib.suppress(RuntimeError):
            torch.zeros(1, device=device)
        return text


def _unlock(address: int, tensor: torch.Tensor) -> None:
    with contextlib.suppress(Exception):  # the process may be ending, CUDA with it
        _runtime().cudaHostUnregister(address)


def _runtime() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]
