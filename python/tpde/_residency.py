"""Which weights of a model stay in VRAM, which are rebuilt from what is there, and which are streamed to it.

Every linear layer has a base that is always in VRAM, and a residual. Within a budget a layer is one of

- whole: its weight is in VRAM, its base is not; nothing is copied or decoded,
- resident: base and residual are in VRAM; the weight is decoded at each use,
- streamed: the base is in VRAM; the residual is copied from host memory at each use, then decoded.

Beside them lie the ring, into which weights are decoded, and two buffers, into which residuals are copied: while one is
decoded, the other is filled. The ring holds the largest weight that is decoded, a buffer the largest residual that is
streamed, so that what is done about the largest layer (often lm_head) decides about the room of all others.

The planner minimises the bytes that are copied in a pass, which is what a pass takes time for until nearly nothing is
streamed (a residual takes about ten times as long to copy as to decode), then the time that decoding takes: bytes, and
launches, which are fewer if the ring holds a block of layers. For each size of ring and buffers that is worth a try,
what is too large for them is made whole or resident, and the rest of the budget goes to layers in order of bytes saved
a byte of VRAM, the larger ones first, passing over what no longer fits. Such a greedy choice saves at most one layer's
residual less than the best one; and since whatever it saves beyond the first layer that only the larger of two budgets
can afford is worth less than that layer, a larger budget never streams more. What is left enlarges ring and buffers, up
to a block of layers.

Nothing here knows torch. Sizes are in bytes, rates in 10^9 bytes a second.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tpde._status import ArgumentError, UnsupportedError

ALIGN = 512
"""What every allocation is rounded up to: torch's allocator does so."""

_STEP = 0.93  # sizes of ring and buffers that are tried differ by this factor at least
_LAUNCH = 24 << 20
"""Bytes decoded in the time that one more launch takes: 11 us of an H200, and several times that of its host."""


def no_plan() -> UnsupportedError:
    """Returns what to raise where a plan is needed and there is none."""
    return UnsupportedError("the streamed model has no plan: the last one failed; call Runtime.set_vram")


class BudgetError(ArgumentError):
    """A budget that no plan keeps.

    budget: the bytes that were given. smallest: the bytes that it takes at least.
    """

    def __init__(self, budget: int, smallest: int, what: str = "") -> None:
        super().__init__(
            f"vram: {amount(budget)} cannot hold the model{what}; the smallest budget that can is {amount(smallest)} "
            f"({smallest} bytes)"
        )
        self.budget, self.smallest = budget, smallest


class Residency(enum.Enum):
    """What of a layer is in VRAM between two uses."""

    WHOLE = "whole"
    RESIDENT = "resident"
    STREAMED = "streamed"


@dataclass(frozen=True)
class LayerSize:
    """A linear layer. weight_bytes: rebuilt. base_bytes: in VRAM unless the layer is whole. residual_bytes: index and
    blob. calls: how often a pass uses it. block: layers of one block follow each other and may share a launch.
    weight_extra, residual_extra: what the allocator takes beyond a weight or a residual that stays in VRAM, and its
    rounding to ALIGN; base_bytes has it in it."""

    name: str
    block: str
    weight_bytes: int
    base_bytes: int
    residual_bytes: int
    calls: int = 1
    weight_extra: int = 0
    residual_extra: int = 0


@dataclass(frozen=True)
class Rates:
    """How fast bytes go from host memory to the GPU (of residuals), and out of the decoder (of weights), in GB/s."""

    copy: float = 50.0
    decode: float = 600.0


@dataclass(frozen=True)
class Plan:
    """What is where. All sizes are in bytes; those of passes count a layer as often as it is called."""

    layers: tuple[LayerSize, ...]
    residency: tuple[Residency, ...]
    budget: int
    fixed_bytes: int
    """Of everything that is not a linear layer's weight."""
    ring_bytes: int
    buffer_bytes: int
    """Of each of the two."""
    rates: Rates = field(default=Rates())

    @property
    def peak_bytes(self) -> int:
        """What is in VRAM at once, at most."""
        weights = sum(map(resident_bytes, self.layers, self.residency))
        return self.fixed_bytes + weights + self.ring_bytes + 2 * self.buffer_bytes

    @property
    def streamed_bytes(self) -> int:
        """Copied in a pass."""
        return sum(n.residual_bytes * n.calls for n in self._that_are(Residency.STREAMED))

    @property
    def decoded_bytes(self) -> int:
        """Of weights, rebuilt in a pass."""
        kinds = Residency.STREAMED, Residency.RESIDENT
        return sum(n.weight_bytes * n.calls for n in self._that_are(*kinds))

    @property
    def copy_seconds(self) -> float:
        """Predicted for a pass; copies run beside decoding."""
        return self.streamed_bytes / self.rates.copy / 1e9

    @property
    def decode_seconds(self) -> float:
        """Predicted for a pass."""
        return self.decoded_bytes / self.rates.decode / 1e9

    @property
    def seconds(self) -> float:
        """What a pass takes at least, without the computation itself."""
        return max(self.copy_seconds, self.decode_seconds)

    @property
    def limit(self) -> str:
        """What a pass waits for: "copy", "decode", or "none" where every weight is whole."""
        if not self.decoded_bytes:
            return "none"
        return "copy" if self.copy_seconds >= self.decode_seconds else "decode"

    def count(self, kind: Residency) -> int:
        return sum(one is kind for one in self.residency)

    def report(self) -> str:
        """A table of all layers, in which equal neighbours share a line, and what the plan comes to."""
        lines = [f"{'layers':<44} {'':<9} {'in VRAM':>11} {'copied':>11} {'copy ms':>8} {'decode ms':>9}"]
        for first, last, kind in self._runs():
            some = self.layers[first : last + 1]
            streamed = sum(n.residual_bytes * n.calls for n in some) if kind is Residency.STREAMED else 0
            decoded = sum(n.weight_bytes * n.calls for n in some) if kind is not Residency.WHOLE else 0
            name = some[0].name if first == last else f"{some[0].name} ... {some[-1].name} ({len(some)})"
            held = sum(resident_bytes(n, kind) for n in some)
            lines.append(
                f"{name:<44} {kind.value:<9} {amount(held):>11} {amount(streamed):>11} "
                f"{1e3 * streamed / self.rates.copy / 1e9:>8.3f} {1e3 * decoded / self.rates.decode / 1e9:>9.3f}"
            )
        rooms = f"ring {amount(self.ring_bytes)}, buffers 2 x {amount(self.buffer_bytes)}"
        counts = ", ".join(f"{self.count(kind)} {kind.value}" for kind in Residency)
        lines += [
            f"layers: {counts}; other tensors {amount(self.fixed_bytes)}, {rooms}",
            f"VRAM: {amount(self.peak_bytes)} of {amount(self.budget)}",
            f"a pass: {amount(self.streamed_bytes)} copied at {self.rates.copy:.1f} GB/s, "
            f"{amount(self.decoded_bytes)} decoded at {self.rates.decode:.0f} GB/s",
            f"predicted: {1e3 * self.seconds:.3f} ms and the computation; limit: {self.limit}",
        ]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """What the report says, for json.dumps. Sizes in bytes, times in seconds, rates in 10^9 bytes a second."""
        layers = []
        for n, kind in zip(self.layers, self.residency, strict=True):
            copied = n.residual_bytes * n.calls if kind is Residency.STREAMED else 0
            decoded = n.weight_bytes * n.calls if kind is not Residency.WHOLE else 0
            layers.append(
                {
                    "name": n.name,
                    "block": n.block,
                    "residency": kind.value,
                    "weight_bytes": n.weight_bytes,
                    "base_bytes": n.base_bytes,
                    "residual_bytes": n.residual_bytes,
                    "vram_bytes": resident_bytes(n, kind),
                    "copied_bytes": copied,
                    "copy_seconds": copied / self.rates.copy / 1e9,
                    "decode_seconds": decoded / self.rates.decode / 1e9,
                }
            )
        names = ("budget", "peak_bytes", "fixed_bytes", "ring_bytes", "buffer_bytes", "streamed_bytes", "decoded_bytes")
        more = ("copy_seconds", "decode_seconds", "seconds", "limit")
        rates = {"copy": self.rates.copy, "decode": self.rates.decode}
        return {name: getattr(self, name) for name in (*names, *more)} | {"rates": rates, "layers": layers}

    def _that_are(self, *kinds: Residency) -> Iterable[LayerSize]:
        return (n for n, kind in zip(self.layers, self.residency, strict=True) if kind in kinds)

    def _runs(self) -> list[tuple[int, int, Residency]]:
        """First and last number of neighbours of the same block and kind."""
        runs: list[tuple[int, int, Residency]] = []
        for i, (n, kind) in enumerate(zip(self.layers, self.residency, strict=True)):
            if runs and runs[-1][2] is kind and self.layers[runs[-1][0]].block == n.block:
                runs[-1] = (runs[-1][0], i, kind)
            else:
                runs.append((i, i, kind))
        return runs


def resident_bytes(layer: LayerSize, kind: Residency) -> int:
    """What a layer takes between two uses."""
    if kind is Residency.WHOLE:
        return aligned(layer.weight_bytes) + layer.weight_extra
    residual = aligned(layer.residual_bytes) + layer.residual_extra
    return layer.base_bytes + (residual if kind is Residency.RESIDENT else 0)


def make_plan(layers: Sequence[LayerSize], budget: int, fixed_bytes: int = 0, rates: Rates | None = None) -> Plan:
    """Returns the plan for a budget. Raises BudgetError."""
    problem = _Problem(layers, fixed_bytes)
    smallest, rooms = problem.smallest()
    if budget < smallest:
        raise BudgetError(budget, smallest)
    choices = [problem.fill(ring, budget, rooms) for ring in problem.rings(rooms[0])]
    _, _, residency = min((one for some in choices for one in some), key=lambda one: one[:2])
    ring, buffer = problem.rooms(residency, budget)
    return Plan(tuple(layers), tuple(residency), budget, fixed_bytes, ring, buffer, rates or Rates())


def smallest_budget(layers: Sequence[LayerSize], fixed_bytes: int = 0) -> int:
    """Returns the smallest budget for which there is a plan."""
    return _Problem(layers, fixed_bytes).smallest()[0]


class _Problem:
    """Layers with rounded sizes."""

    def __init__(self, layers: Sequence[LayerSize], fixed_bytes: int) -> None:
        for n in layers:
            if min(n.weight_bytes, n.base_bytes, n.residual_bytes, n.weight_extra, n.residual_extra, n.calls) < 0:
                raise ArgumentError(f"{n.name}: expected sizes and calls of at least 0")
        self.layers = layers
        self.weights = [aligned(n.weight_bytes) for n in layers]
        self.residuals = [aligned(n.residual_bytes) for n in layers]
        # What is in VRAM whatever is decided: everything else is counted from here.
        self.least = fixed_bytes + sum(n.base_bytes for n in layers)
        self.whole = [resident_bytes(n, Residency.WHOLE) - n.base_bytes for n in layers]
        self.resident = [resident_bytes(n, Residency.RESIDENT) - n.base_bytes for n in layers]
        # A weight that is no larger than its base takes the place of that.
        self.free = [cost <= 0 for cost in self.whole]

    def cost(self, i: int, ring: int) -> int:
        """The least that it takes for a layer not to be streamed."""
        return min(self.resident[i], self.whole[i]) if self.weights[i] <= ring else self.whole[i]

    def smallest(self) -> tuple[int, tuple[int, int]]:
        """The smallest budget, and the sizes of ring and buffers that go with it."""
        best: tuple[int, tuple[int, int]] | None = None
        for ring in sorted({0, *self.weights}):
            used = self.least + ring
            some: list[int] = []
            for i in range(len(self.layers)):
                if self.free[i] or self.weights[i] > ring:
                    used += self.whole[i]
                else:
                    some.append(i)
            some.sort(key=lambda i: -self.residuals[i])
            for i in some:
                best = _less(best, used + 2 * self.residuals[i], (ring, self.residuals[i]))
                used += self.cost(i, ring)
            best = _less(best, used, (ring, 0))
        assert best is not None
        return best

    def rings(self, smallest: int) -> list[int]:
        some = [i for i, free in enumerate(self.free) if not free]
        blocks = self._blocks(some, self.weights)
        return _thinned([*(self.weights[i] for i in some), *blocks.values()], smallest)

    def fill(self, ring: int, budget: int, rooms: tuple[int, int]) -> list[tuple[int, int, list[Residency]]]:
        """For each size of the buffers, with a ring of this size: bytes that are copied, what decoding takes, in bytes,
        and what becomes of each layer."""
        forced: list[int] = []
        others: list[int] = []
        used = self.least + ring
        for i in range(len(self.layers)):
            if self.free[i] or self.weights[i] > ring:
                forced.append(i)
                used += self.whole[i]
            else:
                others.append(i)
        costs = {i: self.cost(i, ring) for i in others}
        saved = {i: self.layers[i].residual_bytes * self.layers[i].calls for i in others}
        order = sorted(others, key=lambda i: (-saved[i] / costs[i] if costs[i] else 0, -costs[i], i))
        buffers = _thinned((self.residuals[i] for i in others), rooms[1] if rooms[0] == ring else 0)
        results = []
        for buffer in buffers:
            kept = set(forced)
            left = budget - used - 2 * buffer - sum(costs[i] for i in others if self.residuals[i] > buffer)
            if left < 0:
                continue
            kept.update(i for i in others if self.residuals[i] > buffer)
            for i in order:
                if i not in kept and costs[i] <= left:
                    kept.add(i)
                    left -= costs[i]
            results.append(self._whole(kept, set(forced), ring, left))
        return results

    def _whole(self, kept: set[int], whole: set[int], ring: int, left: int) -> tuple[int, int, list[Residency]]:
        """Makes whole what is not streamed and can be."""
        extra: dict[int, int] = {}
        for i in kept - whole:
            extra[i] = self.whole[i] - self.cost(i, ring)
            if extra[i] == 0:
                whole.add(i)
        worth = {i: self.layers[i].weight_bytes * self.layers[i].calls for i in extra}
        for i in sorted(extra.keys() - whole, key=lambda i: (-worth[i] / extra[i], -extra[i], i)):
            if extra[i] <= left:
                whole.add(i)
                left -= extra[i]
        residency = [
            Residency.WHOLE if i in whole else Residency.RESIDENT if i in kept else Residency.STREAMED
            for i in range(len(self.layers))
        ]
        streamed = sum(n.residual_bytes * n.calls for i, n in enumerate(self.layers) if i not in kept)
        return streamed, self._decoding([i for i in range(len(self.layers)) if i not in whole], ring), residency

    def _decoding(self, numbers: Sequence[int], ring: int) -> int:
        """What it takes to decode these layers, in bytes: theirs, and as many as go by while launches begin and end."""
        size = launches = room = 0
        block = None
        for i in numbers:
            n = self.layers[i]
            if n.block != block or self.weights[i] > room:
                block, room = n.block, ring
                launches += n.calls
            room -= self.weights[i]
            size += n.weight_bytes * n.calls
        return size + launches * _LAUNCH

    def rooms(self, residency: Sequence[Residency], budget: int) -> tuple[int, int]:
        """Sizes of ring and buffers: what it takes, and more where the budget has it."""
        decoded = [i for i, kind in enumerate(residency) if kind is not Residency.WHOLE]
        streamed = [i for i, kind in enumerate(residency) if kind is Residency.STREAMED]
        ring = max((self.weights[i] for i in decoded), default=0)
        buffer = max((self.residuals[i] for i in streamed), default=0)
        more_ring = max(self._blocks(decoded, self.weights).values(), default=0) - ring
        more_buffer = max(self._blocks(streamed, self.residuals).values(), default=0) - buffer
        used = self.least + ring + 2 * buffer
        used += sum(resident_bytes(n, kind) - n.base_bytes for n, kind in zip(self.layers, residency, strict=True))
        left, wanted = budget - used, more_ring + 2 * more_buffer
        assert left >= 0
        if wanted <= left:
            return ring + more_ring, buffer + more_buffer
        return (
            ring + more_ring * left // wanted // ALIGN * ALIGN,
            buffer + more_buffer * left // wanted // ALIGN * ALIGN,
        )

    def _blocks(self, numbers: Sequence[int], sizes: Sequence[int]) -> dict[str, int]:
        """What the given layers of each block come to."""
        sums: dict[str, int] = {}
        for i in numbers:
            block = self.layers[i].block
            sums[block] = sums.get(block, 0) + sizes[i]
        return sums


def _less(best: tuple[int, tuple[int, int]] | None, size: int, rooms: tuple[int, int]) -> tuple[int, tuple[int, int]]:
    return (size, rooms) if best is None or size < best[0] else best


def _thinned(sizes: Iterable[int], needed: int) -> list[int]:
    """Returns the largest of sizes, `needed`, 0, and of the others some that differ enough."""
    kept: list[int] = []
    for size in sorted({0, needed, *sizes}, reverse=True):
        if not kept or size <= kept[-1] * _STEP or size in (0, needed):
            kept.append(size)
    return kept


def aligned(n: int, to: int = ALIGN) -> int:
    """Returns n, rounded up to a multiple of `to`."""
    return -(-n // to) * to


def amount(n: int) -> str:
    """Returns a number of bytes as people read it."""
    size = float(n)
    for unit in ("B", "KiB", "MiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"
