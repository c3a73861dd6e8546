"""Times of what a GPU does, and of what its host does; used by bench_gpu.py."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

WARM_UP = 3
# What the GPU sleeps while the host queues the calls to time: about 10 ms.
_HEAD_START_CYCLES = 20_000_000

Work = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Seconds of the median call; spread is (slowest - fastest) / median."""

    seconds: float
    spread: float

    @classmethod
    def of(cls, times: Sequence[float]) -> Timing:
        median = statistics.median(times)
        return cls(median, (max(times) - min(times)) / median)

    def text(self, unit: float = 1e-3) -> str:
        """In milliseconds, or another unit given in seconds, with half the spread."""
        return f"{self.seconds / unit:.3f} ±{50 * self.spread:.0f}%"


def on_device(works: Sequence[Work], repeats: int, restore: Work = lambda: None) -> Timing:
    """Times calls between two CUDA events each, taking works in turn, so that memory of one is not in a cache.

    restore: called before each round of works, and not timed.

    The GPU sleeps first: while it does, the host runs ahead, and what calls cost the host is left out of the times.
    """
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(WARM_UP + repeats)]
    torch.cuda.synchronize()
    for i, (start, end) in enumerate(events):
        if i == WARM_UP:
            torch.cuda._sleep(_HEAD_START_CYCLES)
        if i % len(works) == 0:
            restore()
        start.record()
        works[i % len(works)]()
        end.record()
    torch.cuda.synchronize()
    return Timing.of([start.elapsed_time(end) * 1e-3 for start, end in events[WARM_UP:]])


def until_done(work: Work, repeats: int) -> Timing:
    """Times calls on the host until the GPU has finished, as a user waits for them."""
    times = []
    for i in range(WARM_UP + repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        if i >= WARM_UP:
            times.append(time.perf_counter() - start)
    return Timing.of(times)


def on_host(work: Work, calls: int) -> Timing:
    """Times what a call costs the host. The spread is that of the middle nine tenths: the host has other work."""
    times = []
    for i in range(calls + WARM_UP):
        if i % 50 == 0:
            torch.cuda.synchronize()  # a full queue would make the host wait
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    torch.cuda.synchronize()
    times = sorted(times[WARM_UP:])
    cut = len(times) // 20
    return Timing.of(times[cut : len(times) - cut])


def replayed(work: Work, calls: int, repeats: int, batch: int) -> Timing:
    """Times one call in a CUDA graph of so many calls, replayed batch times without waiting in between."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            work()

    def replays() -> None:
        for _ in range(batch):
            graph.replay()

    timing = until_done(replays, repeats)
    return Timing(timing.seconds / (batch * calls), timing.spread)


def gpu_environment() -> dict[str, str]:
    """GPU, driver and PCIe link, as the driver tells them."""
    fields = "driver_version,pcie.link.gen.current,pcie.link.width.current"
    try:
        command = [
            "nvidia-smi",
            f"--query-gpu={fields}",
            "--format=csv,noheader",
            f"--id={torch.cuda.current_device()}",
        ]
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
        driver, generation, width = (field.strip() for field in answer.strip().split(","))
        link = f"generation {generation} x{width}"
    except (OSError, ValueError, subprocess.SubprocessError):
        driver = link = "not told by nvidia-smi"
    device = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "GPU": device.name,
        "memory": f"{device.total_memory / 2**30:.0f} GiB",
        "driver": driver,
        "PCIe": link,
        "CUDA of torch": str(torch.version.cuda),
    }
