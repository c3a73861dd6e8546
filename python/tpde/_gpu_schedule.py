"""In which order the bytes of many tensors go to a GPU and are worked on there, so that nobody waits for nothing.

Bytes go from files to a window of pinned memory (by the host), from there to the device (by a copy engine), where
kernels rebuild tensors (on a second stream). There are two windows and two buffers for blobs on the device: while one
is filled, the other is emptied. Tensors are rebuilt in batches, in place: the base of a tensor is copied to where the
tensor is to be, which therefore takes its own memory and no more.

Nothing here knows torch or CUDA: what is done stands behind `Backend`, so that the order can be tested without a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

PAGE = 4096
"""Bases are read in whole pages of so many bytes, as the core wants them (digest.PageBytes)."""

_ALIGN = 256  # bytes, of everything in windows and buffers


class Layer(NamedTuple):
    """A blob that takes a tensor one delta further."""

    blob: int
    """Number of the part."""
    bytes: int
    beside: tuple[tuple[int, int], ...] = ()
    """Number and bytes of more parts that its step reads: a quantised base. They lie behind the blob in a buffer."""

    def places(self) -> list[tuple[int, int, int]]:
        """Number, bytes and place of each part, counted from the layer's place in a buffer."""
        at, found = 0, []
        for part, size in ((self.blob, self.bytes), *self.beside):
            found.append((part, size, at))
            at += _aligned(size)
        return found

    @property
    def room(self) -> int:
        """Bytes of a buffer that it takes."""
        return _aligned(self.bytes) + sum(_aligned(size) for _, size in self.beside)


class Job(NamedTuple):
    """A tensor to make."""

    bytes: int
    base: int | None
    """Number of the part that it starts from, `bytes` bytes; None: it starts from nothing."""
    layers: Sequence[Layer]


class Span(NamedTuple):
    """Bytes of a part and where they go in a window; tpde_span of tpde.h."""

    part: int
    offset: int
    bytes: int
    to: int


class Move(NamedTuple):
    """Bytes of a window and where they go on the device."""

    at: int
    """First byte in the window."""
    bytes: int
    job: int | None
    """Number of the job whose tensor they belong to; None: they go to the blob buffer."""
    to: int
    """First byte there."""


class Step(NamedTuple):
    """A layer of a job, whose blob is at a byte of a blob buffer."""

    job: int
    layer: int
    at: int


class Backend(Protocol):
    """What a schedule makes use of. A window and a buffer are called by number, 0 or 1."""

    def wait_window(self, window: int) -> None:
        """Makes the host wait until everything was copied out of a window."""

    def fill(self, window: int, spans: list[Span]) -> None:
        """Reads spans into a window, on the host. It may raise."""

    def copy(self, window: int, buffer: int, moves: list[Move]) -> None:
        """Queues copies out of a window, to tensors and to a blob buffer."""

    def reuse(self, buffer: int) -> None:
        """Makes copies that are queued from now on wait for the steps that were launched on a blob buffer."""

    def launch(self, buffer: int, steps: list[Step]) -> None:
        """Queues steps behind everything that was copied so far. They are of different jobs: their order is free."""

    def done(self, bytes: int) -> None:
        """Takes note that so many bytes of tensors are on their way."""


@dataclass
class _Window:
    number: int = 0
    used: int = 0
    spans: list[Span] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)


@dataclass
class _Batch:
    buffer: int = 0
    used: int = 0
    target_bytes: int = 0
    steps: list[Step] = field(default_factory=list)


class Schedule:
    """Runs jobs on a backend. For one use.

    window_bytes: of each of the two windows, a multiple of PAGE. buffer_bytes: of each of the two blob buffers
    (`buffer_bytes_for`). batch_bytes: about how many bytes of tensors are rebuilt by one launch.
    """

    def __init__(self, backend: Backend, window_bytes: int, buffer_bytes: int, batch_bytes: int) -> None:
        assert window_bytes % PAGE == 0 and window_bytes > 0
        self._backend = backend
        self._window_bytes = window_bytes
        self._buffer_bytes = buffer_bytes
        self._batch_bytes = batch_bytes
        self._window = _Window()
        self._batch = _Batch()

    def run(self, jobs: Sequence[Job]) -> None:
        """Queues everything that jobs take, in order. Returns before the device has done it."""
        for number, job in enumerate(jobs):
            if job.base is not None:
                self._move(job.base, job.bytes, number, 0)
            for layer, parts in enumerate(job.layers):
                if self._batch.used + parts.room > self._buffer_bytes:
                    self._flush_batch()
                step = Step(number, layer, self._batch.used)
                self._batch.used += parts.room
                for part, size, at in parts.places():
                    self._move(part, size, None, step.at + at)
                self._batch.steps.append(step)
            self._batch.target_bytes += job.bytes
            if self._batch.target_bytes >= self._batch_bytes:
                self._flush_batch()
        self._flush_batch()

    def _move(self, part: int, size: int, job: int | None, to: int) -> None:
        """Sends a part to the device, through as many windows as it takes."""
        offset = 0
        while offset < size:
            room = self._window_bytes - self._window.used
            piece = size - offset
            if piece > room:
                piece = room // PAGE * PAGE
            if piece <= 0:
                self._flush_window()
                continue
            window = self._window
            window.spans.append(Span(part, offset, piece, window.used))
            window.moves.append(Move(window.used, piece, job, to + offset))
            window.used = min(_aligned(window.used + piece), self._window_bytes)
            offset += piece

    def _flush_window(self) -> None:
        window = self._window
        if not window.spans:
            return
        self._backend.wait_window(window.number)
        self._backend.fill(window.number, window.spans)
        self._backend.copy(window.number, self._batch.buffer, window.moves)
        self._window = _Window(1 - window.number)

    def _flush_batch(self) -> None:
        self._flush_window()
        batch = self._batch
        # A layer waits for the one before it: each goes to its own launch, with those of other jobs.
        rounds: list[list[Step]] = []
        first: dict[int, int] = {}
        for step in batch.steps:
            turn = step.layer - first.setdefault(step.job, step.layer)
            if turn == len(rounds):
                rounds.append([])
            rounds[turn].append(step)
        for steps in rounds:
            self._backend.launch(batch.buffer, steps)
        self._backend.done(batch.target_bytes)
        if not batch.steps:  # the buffer holds nothing
            batch.target_bytes = 0
            return
        self._batch = _Batch(1 - batch.buffer)
        self._backend.reuse(self._batch.buffer)


def buffer_bytes_for(jobs: Sequence[Job], wanted: int) -> int:
    """Returns the size of a blob buffer that holds any blob of jobs, and is `wanted` bytes where that makes sense.

    It is aligned, so that the second buffer may lie behind the first.
    """
    blobs = [layer.room for job in jobs for layer in job.layers]
    return max(max(blobs, default=0), min(_aligned(wanted), sum(blobs)))


def window_bytes_for(jobs: Sequence[Job], wanted: int) -> int:
    """Returns the size of a window: `wanted` bytes, or less where one would take everything."""
    total = sum(_aligned(job.bytes) * (job.base is not None) + sum(one.room for one in job.layers) for job in jobs)
    return max(min(wanted, _aligned(total, PAGE)), PAGE)


def _aligned(n: int, to: int = _ALIGN) -> int:
    return -(-n // to) * to
