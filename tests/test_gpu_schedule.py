"""The order in which unpack uses a GPU, on a device that takes every liberty with time that a GPU has."""

from __future__ import annotations

import itertools
import random

import pytest

from tpde._gpu_schedule import PAGE, Job, Layer, Schedule, Step, buffer_bytes_for, window_bytes_for


class Device:
    """Two queues, of copies and of launches. Work is done as late as the waits allow (lazy), or as early.

    A layer's blob is XORed to its tensor and the result shifted, so that no step can be left out, done twice or moved.
    """

    def __init__(self, parts: list[bytes], jobs: list[Job], window: int, buffer: int, lazy: bool) -> None:
        self.parts, self.jobs, self.lazy = parts, jobs, lazy
        self.windows = [bytearray(window) for _ in range(2)]
        self.buffers = [bytearray(buffer) for _ in range(2)]
        self.tensors = [bytearray(b"\xee" * job.bytes if job.base is None else job.bytes) for job in jobs]
        self.queues: dict[str, list] = {"copy": [], "launch": []}
        self.at = {"copy": 0, "launch": 0}  # what of a queue is done
        self.copied, self.launched = [0, 0], [0, 0]  # where in its queue each window and buffer was used last
        self.filled: set[int] = set()
        self.bytes, self.launches = 0, []

    def _run(self, queue: str, upto: int) -> None:
        while self.at[queue] < upto:
            other, wait, work = self.queues[queue][self.at[queue]]
            self._run(other, wait)
            self.at[queue] += 1
            work()

    def _queue(self, queue: str, other: str, wait: int, work) -> int:
        self.queues[queue].append((other, wait, work))
        if not self.lazy:
            self._run(queue, len(self.queues[queue]))
        return len(self.queues[queue])

    def wait_window(self, window: int) -> None:
        self._run("copy", self.copied[window])

    def fill(self, window: int, spans) -> None:
        room = self.windows[window]
        room[:] = b"\xdd" * len(room)
        for part, offset, size, to in spans:
            assert size > 0 and to + size <= len(room)
            assert offset % PAGE == 0, "bases are read in whole pages"
            assert size % PAGE == 0 or offset + size == len(self.parts[part])
            room[to : to + size] = self.parts[part][offset : offset + size]

    def reuse(self, buffer: int) -> None:
        self._queue("copy", "launch", self.launched[buffer], lambda: None)

    def copy(self, window: int, buffer: int, moves) -> None:
        def work() -> None:
            for at, size, job, to in moves:
                room = self.buffers[buffer] if job is None else self.tensors[job]
                assert to + size <= len(room)
                room[to : to + size] = self.windows[window][at : at + size]

        self.copied[window] = self._queue("copy", "launch", 0, work)

    def launch(self, buffer: int, steps: list[Step]) -> None:
        assert len({step.job for step in steps}) == len(steps), "two layers of a tensor in one launch"
        self.launches.append(steps)

        def work() -> None:
            for job, layer, at in random.Random(len(steps)).sample(steps, len(steps)):
                places = self.jobs[job].layers[layer].places()
                blob = b"".join(bytes(self.buffers[buffer][at + to : at + to + size]) for _, size, to in places)
                self.tensors[job][:] = applied(bytes(self.tensors[job]), blob)

        self.launched[buffer] = self._queue("launch", "copy", len(self.queues["copy"]), work)

    def done(self, size: int) -> None:
        self.bytes += size

    def finish(self) -> None:
        for queue in ("copy", "launch"):
            self._run(queue, len(self.queues[queue]))


def applied(tensor: bytes, blob: bytes) -> bytes:
    out = bytearray(tensor)
    for i, b in zip(range(len(out)), itertools.cycle(blob or b"\x01"), strict=False):
        out[i] ^= b
    return bytes(out[1:] + out[:1])


def case(sizes, layers, seed=0):
    """Jobs and the parts that they are made of; every third starts from nothing."""
    r = random.Random(seed)
    parts: list[bytes] = []

    def part(n: int) -> int:
        parts.append(r.randbytes(n))
        return len(parts) - 1

    jobs = []
    for i, size in enumerate(sizes):
        base = None if i % 3 == 2 and layers else part(size)
        blobs = [r.choice((0, 1, 7, 100, size // 3, size)) for _ in range(layers)]
        made = [Layer(part(n), n) for n in blobs]
        if i % 5 == 2 and layers:
            made[0] = made[0]._replace(beside=tuple((part(n), n) for n in (size // 4, 3)))
        jobs.append(Job(size, base, made))
    return jobs, parts


def expected(job: Job, parts: list[bytes]) -> bytes:
    tensor = b"\xee" * job.bytes if job.base is None else parts[job.base]
    for layer in job.layers:
        tensor = applied(tensor, b"".join(parts[number] for number, _, _ in layer.places()))
    return tensor


def run(jobs, parts, window, wanted_buffer, batch, lazy) -> Device:
    buffer = buffer_bytes_for(jobs, wanted_buffer)
    device = Device(parts, jobs, window, buffer, lazy)
    Schedule(device, window, buffer, batch).run(jobs)
    device.finish()
    for job, tensor in zip(jobs, device.tensors, strict=True):
        assert bytes(tensor) == expected(job, parts)
    assert device.bytes == sum(job.bytes for job in jobs)
    return device


@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize("layers", [0, 1, 3])
@pytest.mark.parametrize("window", [PAGE, 3 * PAGE, 1 << 20])
@pytest.mark.parametrize("batch", [1, 10_000, 1 << 30])
def test_every_tensor_comes_out(lazy, layers, window, batch):
    sizes = [0, 1, 255, 256, 257, PAGE - 1, PAGE, PAGE + 1, 5 * PAGE + 3, 40_000, 0, 7] * 2
    for wanted in (0, 5000, 1 << 20):
        run(*case(sizes, layers), window, wanted, batch, lazy)


def test_any_case():
    for seed in range(150):
        r = random.Random(seed)
        sizes = [r.choice((0, 1, 100, PAGE, 10_000, 30_000)) + r.randrange(3) for _ in range(r.randrange(12))]
        jobs, parts = case(sizes, r.randrange(4), seed)
        run(jobs, parts, PAGE * r.randrange(1, 6), r.randrange(50_000), r.randrange(1, 60_000), r.random() < 0.5)


def test_a_launch_is_for_many_tensors():
    jobs, parts = case([1000] * 200, 1)
    device = run(jobs, parts, 1 << 20, 1 << 20, 1 << 30, True)
    assert [len(steps) for steps in device.launches] == [200]
    device = run(jobs, parts, 1 << 20, 1 << 20, 50_000, True)
    assert [len(steps) for steps in device.launches] == [50] * 4


def test_layers_of_a_chain_go_one_after_the_other():
    jobs, parts = case([1000] * 20, 4)
    device = run(jobs, parts, 1 << 20, 1 << 20, 1 << 30, True)
    assert [(len(steps), {step.layer for step in steps}) for steps in device.launches] == [
        (20, {layer}) for layer in range(4)
    ]


def test_the_host_waits_for_the_last_but_one_window_alone():
    """With more to do than both windows hold, one is filled while the other is being copied."""
    jobs, parts = case([100 * PAGE], 0)
    device = Device(parts, jobs, 10 * PAGE, 0, True)
    pending = []
    fill = device.fill

    def counting(window, spans):
        pending.append(len(device.queues["copy"]) - device.at["copy"])
        fill(window, spans)

    device.fill = counting
    Schedule(device, 10 * PAGE, 0, 1 << 30).run(jobs)
    assert pending == [0, *[1] * 9]


def test_a_failure_to_read_stops_everything():
    jobs, parts = case([10_000] * 10, 1)
    device = Device(parts, jobs, 2 * PAGE, buffer_bytes_for(jobs, 1 << 20), True)

    def fail(window, spans):
        raise OSError("the base became shorter")

    device.fill = fail
    with pytest.raises(OSError, match="shorter"):
        Schedule(device, 2 * PAGE, 1 << 20, 1 << 20).run(jobs)
    assert device.launches == []


def test_sizes():
    jobs = [Job(10_000, 0, [Layer(1, 300)]), Job(5, None, [Layer(2, 5000), Layer(3, 1)])]
    assert buffer_bytes_for(jobs, 0) == 5120
    assert buffer_bytes_for(jobs, 5200) == 5376, "the second buffer is aligned"
    assert buffer_bytes_for(jobs, 1 << 30) == 512 + 5120 + 256
    assert buffer_bytes_for([], 1 << 30) == 0
    assert window_bytes_for(jobs, 1 << 30) == 4 * PAGE  # 10,240 of the base and 5,888 of blobs
    assert window_bytes_for(jobs, PAGE) == PAGE
    assert window_bytes_for([], 1 << 20) == PAGE
