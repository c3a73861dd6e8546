"""Parts of files on their way to a CUDA device: read to pinned memory, and copied while the next are read.

Read to pageable memory they would cost a page fault for each 4 KiB, then one more copy, by the driver, which the host
waits for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tpde import _memory
from tpde._parts import Part, Parts
from tpde._stream_memory import rooms_in_one_piece

_WINDOW_BYTES = 32 << 20
"""Of pinned memory, twice."""


class Upload:
    """Copies on the current stream of a device. room: bytes of the device that it may still take."""

    def __init__(self, device: torch.device, room: int) -> None:
        self.device, self.room = device, room
        self._next = 0
        self._windows: list[tuple[torch.Tensor, torch.cuda.Event]] = []  # pinned memory, and when it is free

    def takes(self, parts: Sequence[Part]) -> bool:
        """Whether there is room for parts. Counts them, if there is."""
        size = sum(part.bytes for part in parts)
        if size > self.room:
            return False
        self.room -= size
        return True

    def read(self, source: Parts, parts: Sequence[Part]) -> list[torch.Tensor]:
        """Returns parts as 1-D uint8 on the device, in one allocation, once the current stream is so far."""
        rooms = rooms_in_one_piece([part.bytes for part in parts], self.device)
        with torch.cuda.device(self.device):
            for part, room in zip(parts, rooms, strict=True):
                for at in range(0, part.bytes, _WINDOW_BYTES):
                    size = min(_WINDOW_BYTES, part.bytes - at)
                    window, copied = self._window()
                    copied.synchronize()
                    source.gather(window, [(part.number, at, size, 0)])
                    room[at : at + size].copy_(window[:size], non_blocking=True)
                    copied.record()
        return rooms

    def _window(self) -> tuple[torch.Tensor, torch.cuda.Event]:
        if not self._windows:
            windows = _memory.pinned(2 * _WINDOW_BYTES).view(2, _WINDOW_BYTES)
            self._windows = [(window, torch.cuda.Event()) for window in windows]  # type: ignore[no-untyped-call]
        self._next ^= 1
        return self._windows[self._next]
