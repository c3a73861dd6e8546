"""What runs a streamed model: memory, plan and schedule under one lock, and the rows of its embeddings."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch.nn import functional as F

from tpde._arena import Arena, Reader
from tpde._residency import LayerSize, Plan, Rates, Residency, amount, make_plan, no_plan
from tpde._status import UnsupportedError
from tpde._stream_draft import is_drafting
from tpde._stream_memory import Memory
from tpde._stream_order import Order
from tpde._stream_schedule import Counts, Schedule

_ROUNDS = 4  # of better plans, at most
_TIMES = 4  # copies and launches that are timed together


@dataclass(frozen=True)
class Measured:
    """What happened in the last pass, beside what was predicted. Bytes and seconds.

    seconds: of the last forward pass, on the device; copy_seconds, decode_seconds: of the last pass that was traced;
    None: not known. prediction: the plan.
    """

    prediction: Plan
    passes: int
    copied_bytes: int
    decoded_bytes: int
    seconds: float | None
    copy_seconds: float | None
    decode_seconds: float | None
    order_changes: int

    def __str__(self) -> str:
        plan = self.prediction

        def ms(seconds: float | None) -> str:
            return "-" if seconds is None else f"{1e3 * seconds:.3f} ms"

        rows = [
            ("", "predicted", "measured"),
            ("copied", amount(plan.streamed_bytes), amount(self.copied_bytes)),
            ("decoded", amount(plan.decoded_bytes), amount(self.decoded_bytes)),
            ("copying", ms(plan.copy_seconds), ms(self.copy_seconds)),
            ("decoding", ms(plan.decode_seconds), ms(self.decode_seconds)),
            ("pass", f"{ms(plan.seconds)} ({plan.limit})", ms(self.seconds)),
        ]
        lines = [f"{what:<10} {predicted:>20} {measured:>14}" for what, predicted, measured in rows]
        return "\n".join([*lines, f"passes: {self.passes}, order learnt again {self.order_changes} times"])


class Engine:
    """Runs layers on a `Memory`. Any thread may call it."""

    def __init__(self, memory: Memory, arena: Arena) -> None:
        self.memory = memory
        self.lock = threading.RLock()
        self.plan: Plan | None = None
        self.order: Order | None = None
        self.schedule: Schedule | None = None
        self._captured: Schedule | None = None  # of the pass that is captured
        self.small: dict[int, torch.Tensor] = {}
        """Weights without a base that drafts use: see `_stream_draft`."""
        self._arena = arena
        self._tables: list[tuple[torch.Tensor, int | None]] = []  # rows of embeddings in the arena, padding index
        self._device_tables: list[torch.Tensor | None] = []  # the same memory as the device sees it
        self._stamps: list[Any] = [None, None]
        self._tracing = False
        self._traced: list[tuple[str, Any, Any]] = []

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise UnsupportedError(
            "a streamed model cannot be copied or pickled: its weights are in host memory of its own; keep what it was "
            "loaded from, or call Runtime.unload() first"
        )

    # ---- layers -------------------------------------------------------------------

    def run(self, number: int, use: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Returns what `use` makes of a layer's weight, which is only good until it returns.

        Raises UnsupportedError if there is no plan, or if it is captured in a CUDA graph outside of a whole pass.
        """
        with self.lock:
            schedule = self.schedule
            if schedule is None:
                raise no_plan()
            if self.memory.capturing():
                if schedule.plan.residency[number] is Residency.WHOLE:
                    return use(self.memory.weight(number, None))
                if self._captured is None:
                    raise UnsupportedError(
                        "a streamed layer cannot be captured in a CUDA graph by itself: capture the forward pass of "
                        "the whole model"
                    )
                schedule = self._captured
            at = schedule.acquire(number)
            try:
                return use(self.memory.weight(number, at))
            finally:
                if at is not None:
                    schedule.release(number)

    def rebuild(self, number: int) -> torch.Tensor:
        """Returns a weight in memory of its own, on the device."""
        with self.lock:
            self._refuse_capture("rebuilding a streamed weight to keep")
            return self.memory.rebuild(number)

    def _refuse_capture(self, what: str) -> None:
        if self.memory.capturing():
            raise UnsupportedError(f"{what} cannot be captured in a CUDA graph")

    # ---- embeddings -----------------------------------------------------------------

    def add_table(self, weight: torch.Tensor, padding_index: int | None, reader: Reader | None = None) -> int:
        """Copies the rows of an embedding to the arena. Returns their number. reader: reads them there instead."""
        at = self._arena.add([reader or weight.detach().contiguous()])[0]
        octets = self._arena.tensor[at : at + weight.nbytes]
        self._tables.append((octets.view(weight.dtype).view(weight.shape), padding_index))
        self._device_tables.append(None)
        return len(self._tables) - 1

    def table(self, number: int) -> torch.Tensor:
        """The rows, where the device can read them; in host memory if it cannot."""
        found = self._device_tables[number]
        return self._tables[number][0] if found is None else found

    def host_table(self, number: int) -> torch.Tensor:
        """The rows, in host memory."""
        return self._tables[number][0]

    def map_tables(self) -> None:
        """Makes rows in pinned memory readable for kernels, so that only those that are looked up cross the link."""
        for number, (table, _) in enumerate(self._tables):
            self._device_tables[number] = self.memory.map_host(table)

    def rows(self, number: int, indices: torch.Tensor) -> torch.Tensor:
        """Returns rows [*indices.shape, width] on the device of indices."""
        table, padding = self.table(number), self._tables[number][1]
        if table.device == indices.device:
            return F.embedding(indices, table, padding)
        self._refuse_capture("looking up rows in memory that is not page-locked")
        # Pageable memory: the host looks the rows up, for which it waits for the indices.
        return F.embedding(indices.cpu(), table, padding).to(indices.device)

    # ---- plans --------------------------------------------------------------------

    def apply(self, budget: int, fixed_bytes: int, rates: Rates | None) -> Plan:
        """Plans for a budget and moves everything. Raises BudgetError, and changes nothing then.

        fixed_bytes: of everything that is not streamed.

        What the allocator takes is known of what is there; of what is not, only how much it is at most. So a plan is
        carried out, and another made with what was left of that, until nothing more fits.
        """
        with self.lock:
            calls: Counter[int] = Counter()
            if self.order is not None and self.schedule is not None and self.schedule.counts.passes:
                calls.update(self.order.uses)
            fixed = fixed_bytes + self.memory.fixed_bytes()
            plan = make_plan(self._sizes(calls), budget, fixed, rates)
            self.plan = self.schedule = None
            self.memory.apply(plan)  # waits for whoever uses what is dropped
            self.small.clear()
            for _ in range(_ROUNDS):
                if not self.memory.survey():
                    break
                plan = replace(plan, layers=tuple(self._sizes(calls)))
                better = make_plan(plan.layers, budget, fixed, rates)
                if _worth(better) >= _worth(plan):
                    break
                plan = better
                self.memory.apply(plan)
            self.order = self.order or Order(range(len(plan.layers)))
            self.schedule = Schedule(self.memory, plan, self.order)
            if rates is None:
                plan = replace(plan, rates=self._measure(self.schedule))
            self.plan = plan
            self.schedule.prime()
            return plan

    def _sizes(self, calls: Counter[int]) -> list[LayerSize]:
        return [self.memory.size(i, max(calls[i], 1)) for i in range(len(self.memory.layers))]

    def _measure(self, schedule: Schedule) -> Rates:
        """Times copies and launches of the largest batch, several at once: a single one waits for the host, too."""
        rates = Rates()
        batches = [batch for batch in schedule.batches() if batch.layers]
        if not batches:
            return rates
        memory, batch = self.memory, max(batches, key=lambda batch: (len(batch.streamed), batch.weight_bytes))
        moves, items = schedule.moves(batch), schedule.items(batch, 0)
        buffer = 0 if moves else None
        copied = sum(schedule.plan.layers[i].residual_bytes for i in batch.streamed)
        decoded = sum(schedule.plan.layers[i].weight_bytes for i in batch.layers)
        for times in (1, _TIMES):  # the first time loads kernels
            if moves:
                begin = memory.stamp(True)
                for _ in range(times):
                    memory.copy(0, moves)
                end = memory.stamp(True)
                rates = replace(rates, copy=times * copied / max(memory.seconds(begin, end), 1e-9) / 1e9)
            begin = memory.stamp(False)
            for _ in range(times):
                memory.decode(buffer, items)
            end = memory.stamp(False)
            rates = replace(rates, decode=times * decoded / max(memory.seconds(begin, end), 1e-9) / 1e9)
        memory.wait_for_all()
        memory.check()
        return rates

    # ---- passes and figures -----------------------------------------------------------

    def begin(self) -> None:
        """Notes that a forward pass begins. Raises UnsupportedError if a CUDA graph is captured that cannot hold it."""
        with self.lock:
            if self.schedule is None or is_drafting(self):
                return
            if self.memory.capturing():
                self._begin_captured(self.schedule)
                return
            self.schedule.begin()
            self._traced = self.memory.spans or []
            self.memory.spans = [] if self._tracing else None
            self._stamps = [self.memory.stamp(False), None]

    def end(self) -> None:
        """Notes that a forward pass ends."""
        with self.lock:
            if is_drafting(self):
                return
            captured, self._captured = self._captured, None
            if self.memory.capturing():
                if captured is not None:
                    captured.end()
                return
            if self.schedule is not None:
                self.schedule.end()
            if self._stamps[0] is not None:
                self._stamps[1] = self.memory.stamp(False)

    def _begin_captured(self, schedule: Schedule) -> None:
        self._captured = None
        if all(kind is Residency.WHOLE for kind in schedule.plan.residency):
            return
        if not schedule.counts.uses:
            raise UnsupportedError("run the streamed model once before it is captured in a CUDA graph")
        if not self._arena.pinned and Residency.STREAMED in schedule.plan.residency:
            raise UnsupportedError(
                "a model that is streamed from memory that is not page-locked cannot be captured in a CUDA graph"
            )
        self.memory.spans = None
        self._captured = schedule.captured()
        self._captured.begin()

    def trace(self, on: bool) -> None:
        """Has every copy and launch timed, or not."""
        self._tracing = on

    def spans(self) -> list[tuple[str, float, float]]:
        """What was traced since the last pass began, or in it: "copy" or "decode", from when to when, in seconds.

        Times count from the first copy or launch. Waits for the device.
        """
        spans = self.memory.spans or self._traced
        if not spans:
            return []
        zero = spans[0][1]
        return [(k, self.memory.seconds(zero, begin), self.memory.seconds(zero, end)) for k, begin, end in spans]

    def measured(self) -> Measured:
        """Waits for the device."""
        with self.lock:
            plan, schedule = self.plan, self.schedule
            if plan is None or schedule is None:
                raise no_plan()
            counts: Counts = schedule.pass_counts()
            begin, end = self._stamps
            spans = self.spans()
            took = {
                what: sum(end - begin for kind, begin, end in spans if kind == what) if spans else None
                for what in ("copy", "decode")
            }
            return Measured(
                plan,
                schedule.counts.passes,
                counts.copied_bytes,
                counts.decoded_bytes,
                None if end is None else self.memory.seconds(begin, end),
                took["copy"],
                took["decode"],
                schedule.order.changes,
            )

    def close(self) -> None:
        """Gives all memory back; layers that are run after that raise UnsupportedError."""
        with self.lock:
            self.plan = self.schedule = None
            self.small.clear()
            self._tables, self._device_tables = [], []
            self.memory.close()


def _worth(plan: Plan) -> tuple[int, int, int]:
    """The less, the better a plan is."""
    return plan.streamed_bytes, plan.decoded_bytes, -plan.ring_bytes - 2 * plan.buffer_bytes
