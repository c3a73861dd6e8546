"""How bench_offload.py measures a way to run a model: bits first, then time between tokens, memory and the host."""

from __future__ import annotations

import contextlib
import gc
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from llama_shape import Runner, Shape, prompt
from torch import Tensor, nn

import tpde

PROMPT = 16


@dataclass
class Figures:
    """A row of the table. None: not measured."""

    what: str
    exact: str
    budget_bytes: int | None = None
    """That was asked for."""
    peak_bytes: int | None = None
    """Most that torch allocated, from the row's first forward on."""
    seconds: float | None = None
    """Of a forward pass that makes one token: the median between tokens."""
    spread: float | None = None
    steps: int = 0
    host_seconds: float | None = None
    """Of the thread that calls the forward, on a processor."""
    copy_busy: float | None = None
    """Share of a traced pass in which the copy engine worked."""
    ratio: float | None = None
    setup_seconds: float | None = None
    tokens_per_pass: float = 1.0
    note: str = ""
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def tokens_per_second(self) -> float | None:
        return self.tokens_per_pass / self.seconds if self.seconds else None


@dataclass(frozen=True)
class Reference:
    """What the resident model says to the prompt."""

    ids: Tensor
    logits: Tensor
    """[1, PROMPT, vocabulary], in host memory."""
    tokens: list[int]
    """That follow greedily."""


@dataclass(frozen=True)
class Settings:
    shape: Shape
    kind: str
    device: torch.device
    seconds: float
    """To spend on the tokens of a row."""
    most_steps: int
    row_seconds: int

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"


def done(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def allocated(device: torch.device) -> int:
    """Collects garbage, gives cached memory back and returns what is allocated."""
    gc.collect()
    if device.type != "cuda":
        return 0
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated(device)


def require_logits(what: str, got: Tensor, expected: Tensor) -> None:
    """Raises InternalError unless logits are the same, bit for bit."""
    got = got.cpu()
    if got.shape != expected.shape or not torch.equal(got.view(torch.int16), expected.view(torch.int16)):
        wrong = (got.float() - expected.float()).abs().max() if got.shape == expected.shape else got.shape
        raise tpde.InternalError(
            f"{what}: expected the resident model's logits, bit for bit; the largest difference is {wrong}"
        )


class Marks:
    """Points in time, on the device's current stream where it has streams."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._marks = device, []  # type: ignore[var-annotated]

    def mark(self) -> None:
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def intervals(self) -> list[float]:
        """Seconds from each mark to the next. Waits for the device."""
        pairs = list(zip(self._marks, self._marks[1:], strict=False))
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            return [begin.elapsed_time(end) / 1e3 for begin, end in pairs]
        return [end - begin for begin, end in pairs]


@torch.no_grad()
def measure(
    s: Settings,
    row: Figures,
    model: nn.Module,
    reference: Reference | None,
    before: int,
    traced: Callable[[Callable[[], None]], None] | None = None,
) -> Reference:
    """Fills in a row, and returns what the model said.

    reference: to compare with; None: this is it. A row that is not exact is compared, too, and says how far it is off.
    before: bytes that were allocated before the row's model was made. traced: called at the end, with what makes one
        more token.
    """
    most = s.most_steps
    ids = prompt(s.shape, PROMPT, s.device)
    if s.cuda:
        torch.cuda.synchronize(s.device)
        torch.cuda.reset_peak_memory_stats(s.device)
    runner = Runner(model, s.shape, s.device, PROMPT + most + 8)
    logits = runner(ids)
    said = [logits[:, -1:].argmax(-1)]
    if reference is not None and row.exact == "yes":
        require_logits(row.what, logits, reference.logits)
    kept = logits.cpu()
    del logits

    def step() -> None:
        said.append(runner(said[-1])[:, -1:].argmax(-1))

    took = host = 0.0
    for _ in range(4):  # the first one learns the order of layers
        done(s.device)
        began, busy = time.perf_counter(), time.thread_time()
        step()
        host = time.thread_time() - busy
        done(s.device)
        took = time.perf_counter() - began
        if took > 1:  # slow peers know no order, and their time is dear
            break
    row.host_seconds = host
    steps = max(2, min(most, int(s.seconds / max(took, 1e-6))))
    marks = Marks(s.device)
    marks.mark()
    for _ in range(steps):
        step()
        marks.mark()
    times = marks.intervals()
    row.seconds, row.steps = statistics.median(times), steps
    row.spread = (max(times) - min(times)) / row.seconds

    done(s.device)
    if s.cuda:
        row.peak_bytes = torch.cuda.max_memory_allocated(s.device) - before
    if traced is not None:
        traced(step)
    tokens = [int(token) for token in said]
    if reference is not None:
        same = same_prefix(tokens, reference.tokens)
        if row.exact == "yes" and same < min(len(tokens), len(reference.tokens)):
            raise tpde.InternalError(f"{row.what}: expected the tokens {reference.tokens}, got {tokens}")
        if row.exact != "yes":
            off = (kept.float() - reference.logits.float()).abs().max()
            row.note = "; ".join(filter(None, (row.note, f"logits are off by up to {off:.3g}")))
    return Reference(ids, kept, tokens)


@torch.no_grad()
def measure_generation(
    s: Settings, row: Figures, generate: Callable[[Tensor, int], tuple[Tensor, int]], reference: Reference, before: int
) -> None:
    """Fills in a row of what makes several tokens a pass, as speculation does.

    generate: returns the tokens [1, n] that follow a prompt [1, length], and the passes of the verifying model that
        they took. They are compared with what the resident model says.
    """
    count = min(len(reference.tokens), s.most_steps * 4)
    if s.cuda:
        torch.cuda.synchronize(s.device)
        torch.cuda.reset_peak_memory_stats(s.device)
    generate(reference.ids, min(count, 4))
    marks, busy = Marks(s.device), time.thread_time()
    marks.mark()
    tokens, passes = generate(reference.ids, count)
    marks.mark()
    busy = time.thread_time() - busy
    said = tokens.flatten().tolist()
    if said != reference.tokens[:count]:
        raise tpde.InternalError(f"{row.what}: expected the tokens {reference.tokens[:count]}, got {said}")
    row.seconds, row.steps = sum(marks.intervals()) / passes, passes
    row.tokens_per_pass, row.host_seconds = count / passes, busy / passes
    row.note = "; ".join(filter(None, (row.note, f"{row.tokens_per_pass:.2f} tokens a pass, prompt included")))
    if s.cuda:
        row.peak_bytes = torch.cuda.max_memory_allocated(s.device) - before


def same_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens are the same before the first that is not."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


@contextlib.contextmanager
def limited(seconds: int, what: str) -> Iterator[None]:
    """Raises TimeoutError inside, once Python runs again after so many seconds."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"{what}: took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def link_gigabytes(device: torch.device) -> float | None:
    """What a copy from pinned memory reaches, GB/s."""
    if device.type != "cuda":
        return None
    host = torch.empty(512 << 20, dtype=torch.uint8, pin_memory=True)
    there = torch.empty_like(host, device=device)
    marks = Marks(device)
    for _ in range(6):
        marks.mark()
        there.copy_(host, non_blocking=True)
    marks.mark()
    return host.numel() / min(marks.intervals()) / 1e9
