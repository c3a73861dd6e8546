"""Whole checkpoints, rebuilt on a CUDA device: what `tpde.unpack(..., device="cuda")` does.

The core says what tensors are made of and copies that into pinned memory, hashing bases on the way (`Parts`); the
order of things is that of `_gpu_schedule`; `Device` here carries it out with torch's streams. Nothing is rebuilt on the
CPU: what the GPU cannot do is an error.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from tpde import _core, _cuda, _jobs, _memory, _parts
from tpde._gpu_schedule import Job, Layer, Move, Schedule, Span, Step, buffer_bytes_for, window_bytes_for
from tpde._parts import PackedLayer, Parts, Row
from tpde._status import EXCEPTIONS, TpdeError, UnsupportedError

WINDOW_BYTES = 64 << 20
"""Of pinned memory, twice."""
_BUFFER_BYTES = 64 << 20  # for blobs on the device, twice, or what the largest blob takes
_BATCH_BYTES = 256 << 20  # of tensors to a launch: more would not make kernels faster
_GROUP_BYTES = 1 << 30  # of tensors that are on the device at once on their way to a file
_IMAGE_ALIGN = 512
_DESCRIPTOR = 128  # bytes
_ZSTD = 2
_QUANTISED = 1  # TPDE_GPU_QUANTISED_BASE of tpde.h


@contextmanager
def _opened(source: int, deltas: list[str], workers: int) -> Iterator[Parts]:
    """Gives what deltas make of a source."""
    binding = _core.core()
    sources: list[int] = []
    try:
        target = _jobs.hold(sources, binding.source_apply, source, deltas)
        with _parts.opened(target, workers) as parts:
            yield parts
    finally:
        for handle in sources:
            binding.source_free(handle)


# ---- torch's side of a schedule ---------------------------------------------------


class Streams:
    """A stream for copies beside the current one, and how the two wait for each other."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._compute = torch.cuda.current_stream(device)
        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._copies.wait_stream(self._compute)  # what was allocated may still be in use there
        self._copied = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]
        self._launched = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]

    def copying(self) -> AbstractContextManager[Any]:
        """A context in which copies are queued."""
        return torch.cuda.stream(self._copies)

    def window_copied(self, window: int) -> None:
        """Marks the end of what was queued on the stream of copies."""
        self._copied[window].record(self._copies)

    def wait_window(self, window: int) -> None:
        """Makes the host wait for the last mark of window."""
        self._copied[window].synchronize()

    def before_launch(self) -> None:
        """Makes what is launched from now on wait for all copies so far."""
        self._compute.wait_stream(self._copies)

    def launched(self, buffer: int) -> None:
        """Marks the end of what was launched."""
        self._launched[buffer].record(self._compute)

    def reuse(self, buffer: int) -> None:
        """Makes copies wait for the last mark of buffer."""
        self._copies.wait_event(self._launched[buffer])

    def finish(self) -> None:
        """Makes the host wait for both streams."""
        self._copies.synchronize()
        self._compute.synchronize()


class Device:
    """Carries out a schedule for some rows: the `Backend` of `_gpu_schedule`. All tensors are `tensors` at the end."""

    def __init__(
        self,
        parts: Parts,
        rows: Sequence[Row],
        device: torch.device,
        done: Callable[[int], None],
        handles: list[int],
    ) -> None:
        """handles: gets what prepare of the core returns; the caller frees them, whatever happens."""
        self.jobs = [_job(row) for row in rows]
        self.window_bytes = window_bytes_for(self.jobs, WINDOW_BYTES)
        self.buffer_bytes = buffer_bytes_for(self.jobs, _BUFFER_BYTES)
        self.done = done
        self._parts, self._rows, self._device, self._handles = parts, rows, device, handles
        self._codes = [self._code(row) for row in rows]
        self._prepared = [[self._prepare(row, layer) for layer in row.layers] for row in rows]
        self._place()
        self.tensors = [torch.empty(row.shape, dtype=row.dtype, device=device) for row in rows]
        self._octets = [_memory.octets(tensor) for tensor in self.tensors]
        self._windows = _memory.pinned(2 * self.window_bytes).view(2, self.window_bytes)
        self._buffers = torch.empty(2, self.buffer_bytes, dtype=torch.uint8, device=device)
        self._images = self._upload_images()
        # Where quantised bases are is known once their parts are on the way.
        based = sum(row.quantised is not None for row in rows)
        self._host_descriptors = _memory.pinned(based * _DESCRIPTOR).view(based, _DESCRIPTOR)
        self._descriptors = torch.empty(based, _DESCRIPTOR, dtype=torch.uint8, device=device)
        self._described = 0
        # For each layer its chunks as verification found them, then as the rebuild did.
        self._status = torch.zeros(2 * self._chunks, dtype=torch.int32, device=device)
        self._streams = Streams(device)

    def _prepare(self, row: Row, layer: PackedLayer) -> _Prepared:
        binding = _core.gpu_core()
        index = self._parts.index(layer)
        info = binding.index_read(*_memory.pointer(index))
        try:
            handle = _jobs.hold(self._handles, binding.prepare, *_memory.pointer(index))
        except UnsupportedError as error:
            raise UnsupportedError(f'tensor "{row.name}": {error}') from None
        zstd = info["codec"] == _ZSTD
        return _Prepared(handle, info["chunks"], zstd, binding.prepared_image_bytes(handle))

    def _code(self, row: Row) -> list[float] | None:
        """Returns the code book of a quantised base."""
        if row.quantised is None or row.quantised.code is None:
            return None
        code = torch.empty(16, dtype=torch.float32, device="cpu")
        self._parts.read(row.quantised.code.number, _memory.octets(code))
        return code.tolist()

    def _describe(self, job: int, at: int) -> bytes:
        """Returns the descriptor of the quantised base of a job, whose first layer is at an address."""
        base = self._rows[job].quantised
        assert base is not None
        addresses = [at + place for _, _, place in self.jobs[job].layers[0].places()[1:]]
        packed, scale, zero = (*addresses, 0)[:3]
        return base.descriptor(packed, scale, zero, self._codes[job], self._rows[job].numel())

    def _place(self) -> None:
        """Gives every layer its place among the images and the status words."""
        self._image_bytes = self._chunks = 0
        for prepared in self._all_prepared():
            prepared.image_at, prepared.status_at = self._image_bytes, 2 * self._chunks
            self._image_bytes += -(-prepared.image_bytes // _IMAGE_ALIGN) * _IMAGE_ALIGN
            self._chunks += prepared.chunks

    def _all_prepared(self) -> Iterator[_Prepared]:
        for layers in self._prepared:
            yield from layers

    def _upload_images(self) -> torch.Tensor:
        images = _memory.pinned(self._image_bytes)
        for prepared in self._all_prepared():
            room = images[prepared.image_at :][: prepared.image_bytes]
            _core.gpu_core().prepared_image(*_memory.pointer(room), prepared.handle)
        return images.to(self._device, non_blocking=True)

    def wait_window(self, window: int) -> None:
        self._streams.wait_window(window)

    def fill(self, window: int, spans: list[Span]) -> None:
        self._parts.gather(self._windows[window], spans)

    def copy(self, window: int, buffer: int, moves: list[Move]) -> None:
        source = self._windows[window]
        with self._streams.copying():
            for at, size, job, to in moves:
                room = self._buffers[buffer] if job is None else self._octets[job]
                room[to : to + size].copy_(source[at : at + size], non_blocking=True)
        self._streams.window_copied(window)

    def reuse(self, buffer: int) -> None:
        self._streams.reuse(buffer)

    def launch(self, buffer: int, steps: list[Step]) -> None:
        binding = _core.gpu_core()
        self._streams.before_launch()
        rebuilds, checks = [], []
        first = self._described
        for step in steps:
            prepared = self._prepared[step.job][step.layer]
            if not prepared.chunks:  # an empty tensor
                continue
            out = self.tensors[step.job].data_ptr()
            blob = self._buffers[buffer].data_ptr() + step.at
            base, flags = 0, 0
            if self._rows[step.job].quantised is not None and not step.layer:
                made = torch.frombuffer(bytearray(self._describe(step.job, blob)), dtype=torch.uint8)
                self._host_descriptors[self._described].copy_(made)
                base, flags = self._descriptors[self._described].data_ptr(), _QUANTISED
                self._described += 1
            elif self.jobs[step.job].base is not None or step.layer:
                base = out
            image = self._images.data_ptr() + prepared.image_at
            status = self._status.data_ptr() + 4 * prepared.status_at
            if not prepared.zstd:  # zstd is verified before nvCOMP sees it, in any case
                checks.append((prepared.handle, base, out, blob, image, status, flags))
            rebuilds.append((prepared.handle, base, out, blob, image, status + 4 * prepared.chunks, flags))
        if self._described > first:
            new = slice(first, self._described)
            self._descriptors[new].copy_(self._host_descriptors[new], non_blocking=True)
        stream = _cuda.stream(self._device.index)
        if checks:
            binding.gpu_verify(checks, stream)
        scratch = torch.empty(0, dtype=torch.uint8, device=self._device)
        if len(checks) < len(rebuilds):
            scratch = torch.empty(binding.gpu_scratch_bytes(rebuilds), dtype=torch.uint8, device=self._device)
        if rebuilds:
            binding.gpu_reconstruct(rebuilds, scratch.data_ptr(), scratch.numel(), stream)
        self._streams.launched(buffer)

    def raise_failures(self) -> None:
        """Waits for everything and raises the first failure that the GPU found."""
        self._streams.finish()
        status = self._status.cpu()
        if not status.any():
            return
        failures = []
        for row, layers in zip(self._rows, self._prepared, strict=True):
            for layer, prepared in zip(row.layers, layers, strict=True):
                words = status[prepared.status_at :][: 2 * prepared.chunks]
                numbers = words.nonzero().view(-1).tolist()
                if numbers:
                    failures.append(_failure(row, layer, prepared, numbers, int(words[numbers[0]])))
        more = f"; {len(failures) - 1} more tensors failed: {failures[1]}" if len(failures) > 1 else ""
        raise type(failures[0])(f"{failures[0]}{more}")

    def close(self) -> None:
        """Waits for the device, so that memory can be given back."""
        self._streams.finish()


def _job(row: Row) -> Job:
    layers = [Layer(layer.blob, layer.blob_bytes) for layer in row.layers]
    if row.quantised is not None:
        beside = tuple((part.number, part.bytes) for name, part, _ in row.quantised.parts() if name != "code")
        layers[0] = layers[0]._replace(beside=beside)
    return Job(row.bytes, row.base, layers)


class _Prepared:
    """A layer, ready for kernels."""

    def __init__(self, handle: int, chunks: int, zstd: bool, image_bytes: int) -> None:
        self.handle, self.chunks, self.zstd, self.image_bytes = handle, chunks, zstd, image_bytes
        self.image_at = self.status_at = 0


def _failure(row: Row, layer: PackedLayer, prepared: _Prepared, numbers: list[int], status: int) -> TpdeError:
    chunks = {number % prepared.chunks for number in numbers}
    what = "its data does not have the checksum of the index" if status == 21 else "its data violates the format"
    more = f" (and {len(chunks) - 1} of its {prepared.chunks} chunks more)" if len(chunks) > 1 else ""
    exception = EXCEPTIONS.get(status, EXCEPTIONS[20])
    return exception(f'{layer.delta}: tensor "{row.name}": chunk {numbers[0] % prepared.chunks}: {what}{more}')


def _rebuild(
    parts: Parts, rows: Sequence[Row], device: torch.device, done: Callable[[int], None]
) -> list[torch.Tensor]:
    """Returns the tensors of rows on device, complete for every stream."""
    handles: list[int] = []
    try:
        made = Device(parts, rows, device, done, handles)
        try:
            Schedule(made, made.window_bytes, made.buffer_bytes, _BATCH_BYTES).run(made.jobs)
            made.raise_failures()
            return made.tensors
        finally:
            made.close()
    finally:
        for handle in handles:
            _core.gpu_core().prepared_free(handle)


# ---- what unpack calls -------------------------------------------------------------


def to_tensors(
    source: int, deltas: list[str], device: torch.device, workers: int, progress: bool | None
) -> dict[str, torch.Tensor]:
    """Returns the checkpoint that deltas make of a source as tensors on device."""
    with _opened(source, deltas, workers) as parts, torch.cuda.device(device):
        own = [row for row in parts.rows if row.same_as is None]
        total = sum(row.bytes for row in own)
        ready = 0
        with _jobs.bar("unpack", progress) as move:

            def done(size: int) -> None:
                nonlocal ready
                ready += size
                move(ready, total)

            made = dict(zip((row.name for row in own), _rebuild(parts, own, device, done), strict=True))
        tensors = {}
        for row in parts.rows:
            tensor = made[row.same_as or row.name]
            if row.same_as is not None:  # as a file has it: twice
                tensor = _memory.octets(tensor.clone()).view(row.dtype).reshape(row.shape)
            tensors[row.name] = tensor
        torch.cuda.current_stream(device).synchronize()  # complete for every stream, copies included
        return tensors


def to_files(
    source: int, deltas: list[str], out: str, options: dict[str, Any], device: torch.device, progress: bool | None
) -> dict[str, Any]:
    """Writes the checkpoint that deltas make of a source to out, and returns the core's report.

    The core writes the files, proves them with SHA-256 and takes whatever no delta rebuilds from where it is stored;
    what deltas rebuild comes from the device, group by group.
    """

    def feed(job: int, tick: Callable[[], None]) -> None:
        for group in _groups(parts.rows):
            tick()  # raises if the job has failed
            for row, tensor in zip(group, _rebuild(parts, group, device, lambda _: tick()), strict=True):
                host = tensor.cpu()
                _core.core().job_supply(job, row.name, *_memory.pointer(host))
                tick()

    with _opened(source, deltas, options["workers"]) as parts, torch.cuda.device(device):
        arguments = (source, deltas, out, json.dumps(options))
        return _jobs.run(_core.core().unpack_supplied_start, arguments, "unpack", progress, feed)


def _groups(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Gives rows that deltas rebuild, in file order, as many at a time as may be on the device at once."""
    by_name = {row.name: row for row in rows}
    group: list[Row] = []
    size = 0
    for row in rows:
        if row.same_as is not None:  # a file has it twice, and so it is rebuilt twice
            of = by_name[row.same_as]
            row = row._replace(base=of.base, quantised=of.quantised, layers=of.layers)
        if not row.layers:
            continue
        if group and size + row.bytes > _GROUP_BYTES:
            yield group
            group, size = [], 0
        group.append(row)
        size += row.bytes
    if group:
        yield group
