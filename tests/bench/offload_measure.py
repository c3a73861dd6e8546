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
TRACED = 6
"""Forwards that `traced` of `measure` may make."""
_CAPTURED = 8
"""Tokens of a CUDA graph after which logits are compared."""
_CAPACITY = 256
_ALONE = 8
"""Forwards that are waited for one by one, at most; the first two learn the order of layers."""
_TIE = 3
"""Steps of bf16 between two logits that may change places where a product of another size rounds otherwise."""


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
    resident_host_seconds: float | None = None
    """The same of the resident model."""
    captured_seconds: float | None = None
    """Of a forward pass that makes one token, replayed as a CUDA graph; the host does nothing else."""
    captured_host_seconds: float | None = None
    copy_busy: float | None = None
    """Share of the time from one forward to the next in which the copy engine worked."""
    ratio: float | None = None
    setup_seconds: float | None = None
    tokens_per_pass: float = 1.0
    note: str = ""
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def tokens_per_second(self) -> float | None:
        return self.tokens_per_pass / self.seconds if self.seconds else None

    @property
    def captured_tokens_per_second(self) -> float | None:
        return 1 / self.captured_seconds if self.captured_seconds else None

    def add_note(self, text: str) -> None:
        self.note = "; ".join(filter(None, (self.note, text)))


@dataclass(frozen=True)
class Reference:
    """What the resident model says to the prompt."""

    ids: Tensor
    logits: Tensor
    """[1, PROMPT, vocabulary], in host memory."""
    tokens: list[int]
    """That follow greedily."""
    host_seconds: float
    captured_logits: Tensor | None = None
    """[1, 1, vocabulary], in host memory, behind _CAPTURED tokens of a CUDA graph."""


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


class Greedy:
    """A prompt, and the tokens that follow it greedily, one forward each. logits: of the prompt, in host memory."""

    def __init__(self, s: Settings, model: nn.Module, ids: Tensor) -> None:
        self._runner = Runner(model, s.shape, s.device, ids.shape[1] + s.most_steps + _ALONE + TRACED)
        logits = self._runner(ids)
        self._said = [logits[:, -1:].argmax(-1)]
        self.logits = logits.cpu()

    def step(self) -> None:
        """Makes one more token, without waiting for it."""
        self._said.append(self._runner(self._said[-1])[:, -1:].argmax(-1))

    def tokens(self) -> list[int]:
        return [int(token) for token in self._said]


@torch.no_grad()
def measure(
    s: Settings,
    row: Figures,
    model: nn.Module,
    reference: Reference | None,
    before: int,
    traced: Callable[[Callable[[], None]], None] | None = None,
    capture: bool = False,
) -> Reference:
    """Fills in a row, and returns what the model said.

    reference: to compare with; None: this is it. A row that is not exact is compared, too, and says how far it is off.
    before: bytes that were allocated before the row's model was made. traced: called at the end, with what makes one
        more token, TRACED times at most. capture: measure CUDA graphs, too, of plain models.
    """
    ids = prompt(s.shape, PROMPT, s.device)
    forget_peak(s)
    greedy = Greedy(s, model, ids)
    if reference is not None and row.exact == "yes":
        require_logits(row.what, greedy.logits, reference.logits)
    row.host_seconds, took = alone(s, greedy.step)
    row.steps = max(2, min(s.most_steps, int(s.seconds / max(took, 1e-6))))
    marks = Marks(s.device)
    marks.mark()
    for _ in range(row.steps):
        greedy.step()
        marks.mark()
    times = marks.intervals()
    row.seconds = statistics.median(times)
    row.spread = (max(times) - min(times)) / row.seconds
    row.peak_bytes = peak(s, before)
    if traced is not None:
        traced(greedy.step)
    graph = captured(s, row, model, ids) if capture and s.kind == "plain" else None
    said = Reference(ids, greedy.logits, greedy.tokens(), row.host_seconds, graph)
    if reference is not None:
        row.resident_host_seconds = reference.host_seconds
        compare(row, said, reference)
    return said


@torch.no_grad()
def captured(s: Settings, row: Figures, model: nn.Module, ids: Tensor) -> Tensor:
    """Fills in what the row's model does as a CUDA graph that makes a token. Returns logits behind _CAPTURED tokens.

    On a CPU, where there are no graphs, the same forward runs again and again.
    """
    runner = Runner(model, s.shape, s.device, _CAPACITY)  # the same for all rows: attention looks at all of it
    token = runner(ids)[:, -1:].argmax(-1)
    runner.fix()
    logits = runner(token)

    def step() -> None:
        out = runner(token)
        logits.copy_(out)
        token.copy_(out.argmax(-1))

    replay = step
    if s.cuda:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        replay = graph.replay
    for _ in range(_CAPTURED):
        replay()
    said = logits.to("cpu", copy=True)
    row.captured_host_seconds, _ = alone(s, replay)  # one that is queued behind another may have CUDA spin
    marks = Marks(s.device)
    marks.mark()
    for _ in range(min(row.steps, _CAPACITY - ids.shape[1] - _CAPTURED - _ALONE - 3)):
        replay()
        marks.mark()
    row.captured_seconds = statistics.median(marks.intervals())
    return said


@torch.no_grad()
def warmed(s: Settings, model: nn.Module) -> None:
    """Makes as many tokens as a row does at most: attention plans each length when it sees it first, which takes a
    millisecond a layer."""
    greedy = Greedy(s, model, prompt(s.shape, PROMPT, s.device))
    for _ in range(s.most_steps + _ALONE + TRACED):
        greedy.step()


def alone(s: Settings, step: Callable[[], None]) -> tuple[float, float]:
    """Returns how long a forward keeps its thread busy, and how long it takes if it is waited for."""
    busy, took = [], 0.0
    while len(busy) < _ALONE and took < 1:  # slow peers learn nothing, and their time is dear
        done(s.device)
        began, began_busy = time.perf_counter(), time.thread_time()
        step()
        busy.append(time.thread_time() - began_busy)
        done(s.device)
        took = time.perf_counter() - began
    return statistics.median(busy[2:] or busy), took


def compare(row: Figures, said: Reference, reference: Reference) -> None:
    """Raises InternalError unless an exact row said the reference's tokens. Another row notes how far off it is."""
    if row.exact != "yes":
        off = (said.logits.float() - reference.logits.float()).abs().max()
        row.add_note(f"logits are off by up to {off:.3g}")
    elif same_prefix(said.tokens, reference.tokens) < min(len(said.tokens), len(reference.tokens)):
        raise tpde.InternalError(f"{row.what}: expected the tokens {reference.tokens}, got {said.tokens}")
    elif said.captured_logits is not None and reference.captured_logits is not None:
        require_logits(f"{row.what}, in a CUDA graph", said.captured_logits, reference.captured_logits)


@torch.no_grad()
def measure_generation(
    s: Settings,
    row: Figures,
    generate: Callable[[Tensor, int], tuple[Tensor, int]],
    logits: Callable[[Tensor], Tensor],
    reference: Reference,
    before: int,
) -> None:
    """Fills in a row of what makes several tokens a pass, as speculation does. The prompt's pass counts, too.

    generate: returns the tokens [1, n] that follow a prompt [1, length], and the passes of the verifying model that
        they took. logits: of that model, [1, length, vocabulary], without what makes several tokens.
    """
    count = min(len(reference.tokens), s.most_steps * 4)
    forget_peak(s)
    require_logits(row.what, logits(reference.ids), reference.logits)
    generate(reference.ids, count)  # learns how much to draft, captures graphs
    times, passes, busy = [], 0, 0.0
    while not times or (sum(times) < s.seconds and len(times) < 8):
        marks, began = Marks(s.device), time.thread_time()
        marks.mark()
        tokens, took = generate(reference.ids, count)
        marks.mark()
        busy += time.thread_time() - began
        times += marks.intervals()
        passes += took
    row.peak_bytes = peak(s, before)
    row.seconds, row.steps = sum(times) / passes, passes
    row.spread = (max(times) - min(times)) / statistics.median(times)
    row.tokens_per_pass, row.host_seconds = len(times) * count / passes, busy / passes
    row.add_note(f"{row.tokens_per_pass:.2f} tokens a pass, prompt included")
    if tokens.shape != (1, count):
        raise tpde.InternalError(f"{row.what}: expected {count} tokens, got {list(tokens.shape)}")
    require_tokens(row, tokens, logits, reference)


def require_tokens(row: Figures, tokens: Tensor, logits: Callable[[Tensor], Tensor], reference: Reference) -> None:
    """Raises InternalError unless tokens [1, n] are the reference's, and notes that they are.

    A forward over several tokens may round otherwise than those over one that the reference made. So from the first
    difference on each token must be as good as the largest logit behind those before it, within _TIE steps of bf16.
    """
    said = tokens.flatten().tolist()
    same = same_prefix(said, reference.tokens)
    if same == len(said):
        row.add_note(f"all {same} tokens are the resident model's")
        return
    behind = logits(torch.cat((reference.ids, tokens), 1))[0, reference.ids.shape[1] - 1 : -1].float()
    largest = behind.max(-1).values
    missing = largest - behind.gather(1, tokens.flatten()[:, None]).flatten()
    steps = float((missing / torch.exp2(torch.frexp(largest).exponent - 8.0)).max())
    if steps > _TIE:
        raise tpde.InternalError(f"{row.what}: expected the tokens {reference.tokens[: len(said)]}, got {said}")
    row.add_note(f"the first {same} of {len(said)} tokens are the resident model's, then two logits were a tie")


def forget_peak(s: Settings) -> None:
    if s.cuda:
        torch.cuda.synchronize(s.device)
        torch.cuda.reset_peak_memory_stats(s.device)


def peak(s: Settings, before: int) -> int | None:
    """Bytes that were allocated at most since `forget_peak`, less those that were `before`. Waits for the device."""
    done(s.device)
    return torch.cuda.max_memory_allocated(s.device) - before if s.cuda else None


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
