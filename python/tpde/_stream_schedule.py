"""When residuals are copied to a GPU and where weights are decoded, so that a layer finds its weight when it runs.

Uses of layers that follow each other in one block form a batch: its residuals are copied together into one of two
buffers, and one launch decodes them into the ring, a piece of memory that is written round and round. The launch is
queued when the first layer of the batch is about to run; behind it, in the buffer that it empties, the batch after the
next is copied. So the queue of copies never runs dry as long as decoding and computing a batch take less time than
copying one, and no memory is needed for weights but those of one batch.

Work is queued, never waited for. There is one queue of copies, and the queue of computation that is current, of which a
program may use several. What must not overtake what:

- a decode waits for the copy into its buffer; a copy waits for the last decode out of its buffer;
- a decode waits for the last use, on every other queue, of the weights whose place in the ring it takes;
- a use on another queue than that of the decode waits for the decode.

A pass can be captured in a CUDA graph, which takes no time of the host when it is replayed. What a graph does to ring
and buffers, and when, is not known here. So a captured pass has a schedule of its own, which starts from nothing and
leaves nothing behind; from then on the passes that are not captured do so, too. They are called alone.

Nothing here knows torch or CUDA: what is done stands behind `Backend`, so that the order can be tested without a GPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

from tpde._residency import Plan, Residency, aligned
from tpde._stream_order import Order


class Move(NamedTuple):
    """The residual of a layer, and where it goes in a buffer."""

    layer: int
    to: int


class Item(NamedTuple):
    """A weight to decode to a byte of the ring, from a byte of a buffer; None: from the residual that is resident."""

    layer: int
    to: int
    source: int | None


class Backend(Protocol):
    """What a schedule makes use of. A buffer is called by number, 0 or 1."""

    def queue(self) -> Hashable:
        """Names the queue of computation that is current."""

    def copy(self, buffer: int, moves: Sequence[Move]) -> None:
        """Queues copies of residuals to a buffer, on the queue of copies."""

    def decode(self, buffer: int | None, items: Sequence[Item]) -> None:
        """Queues decoding, on the current queue."""

    def record(self, copies: bool, queue: Hashable = None) -> Any:
        """Returns a mark behind everything that was queued so far: copies, or on the current queue, or on another one
        that was current before."""

    def wait(self, copies: bool, mark: Any) -> None:
        """Makes what is queued from now on wait for a mark: copies, or on the current queue."""


@dataclass(frozen=True)
class Batch:
    """Layers that are decoded by one launch. streamed: those whose residuals are copied before."""

    layers: tuple[int, ...]
    streamed: tuple[int, ...]
    weight_bytes: int


@dataclass
class Counts:
    """What was queued so far."""

    passes: int = 0
    uses: int = 0
    copies: int = 0
    copied_bytes: int = 0
    launches: int = 0
    decoded_bytes: int = 0

    def since(self, before: Counts) -> Counts:
        """Returns the difference."""
        return Counts(**{name: value - getattr(before, name) for name, value in vars(self).items()})


@dataclass(eq=False)
class _Place:
    """Bytes [at, end) of the ring, which hold a weight."""

    layer: int
    at: int
    end: int
    queue: Hashable  # that decodes it
    decoded: Any  # mark
    used: dict[Hashable, Any] = field(default_factory=dict)  # a mark behind the last use, on each queue
    unmarked: bool = False  # used since, on the queue of the last uses: see _mark_uses


@dataclass
class _Buffer:
    batch: Batch | None = None  # whose residuals are there, or on the way
    copied: Any = None  # mark behind the last copy to it
    drained: dict[Hashable, Any] = field(default_factory=dict)  # mark behind the last decode out of it, on each queue
    taken: bool = True  # what is there was decoded
    turn: int = 0  # when it was filled


class Schedule:
    """Runs the layers of a plan on a backend.

    The caller holds a lock from `acquire` to `release`, and queues the use of the weight between them.
    """

    def __init__(self, backend: Backend, plan: Plan, order: Order, alone: bool = False) -> None:
        self.plan = plan
        self.order = order
        self.counts = Counts()
        self.last_pass = Counts()
        self._pass_began = Counts()
        self._backend = backend
        self._whole = [kind is Residency.WHOLE for kind in plan.residency]
        self._streamed = [kind is Residency.STREAMED for kind in plan.residency]
        self._weights = [aligned(n.weight_bytes) for n in plan.layers]
        self._residuals = [aligned(n.residual_bytes) for n in plan.layers]
        self._places: list[_Place] = []  # of all that is in the ring
        self._where: dict[int, _Place] = {}  # of the weights that are good
        self._cursor = 0
        self._user: Hashable = None  # the queue of the last uses
        self._buffers = [_Buffer(), _Buffer()]
        self._turn = 0
        self._alone = alone
        self._in_pass = False  # known of passes that are alone
        self._rebatch()

    def begin(self) -> None:
        """Notes that a pass begins."""
        if self.order.begin():
            self._rebatch()
        self._count_pass()
        if self._alone:
            self._in_pass = True
            self._forget()
            self.prime()

    def end(self) -> None:
        """Notes that a pass ends: if it is alone, the current queue waits for all that it queued elsewhere."""
        self._mark_uses()
        if self._alone:
            self._in_pass = False
            self._join()

    def captured(self) -> Schedule:
        """Returns the schedule of one pass that is captured, from its begin to its end. From now on, passes are alone.

        The caller sees to it that everything that was queued before is done when the graph is replayed.
        """
        self._alone = True
        return Schedule(self._backend, self.plan, Order(self.order.uses), alone=True)

    def prime(self) -> None:
        """Queues the copies that a pass needs first."""
        if self._streams:
            self._prefetch(-1)

    def acquire(self, layer: int) -> int | None:
        """Returns the byte of the ring where a layer's weight is for what is queued on the current queue next.

        None: the weight is whole. Whatever the backend raises leaves the schedule in order.
        """
        position, changed = self.order.note(layer)
        if changed:
            self._rebatch()
            self._count_pass()
        self.counts.uses += 1
        if self._whole[layer]:
            return None
        queue = self._queue()
        lonely = self._alone and not self._in_pass
        if lonely:
            self._forget()
        place = self._where.get(layer)
        if place is None:
            if position < 0 or lonely:
                self._launch(self._batch_of((layer,)), None)
            else:
                self._launch(self._batches[position], self._stream_number[position])
            place = self._where[layer]
        elif place.queue != queue:
            self._backend.wait(False, place.decoded)
        return place.at

    def release(self, layer: int) -> None:
        """Notes that the use of a weight was queued, on the current queue."""
        place = self._where.get(layer)
        if place is not None:
            self._queue()
            place.unmarked = True
        if self._alone and not self._in_pass:
            self._join()

    def _queue(self) -> Hashable:
        """Returns the current queue. If it was another before, what was used there is marked."""
        queue = self._backend.queue()
        if queue != self._user:
            self._mark_uses()
            self._user = queue
        return queue

    def _mark_uses(self) -> None:
        """Makes one mark behind all uses since the last: nobody but other queues waits for uses, and hardly ever."""
        places = [place for place in self._places if place.unmarked]
        if places:
            mark = self._backend.record(False, self._user)
            for place in places:
                place.used[self._user], place.unmarked = mark, False

    # ---- passes that are alone ------------------------------------------------------

    def _forget(self) -> None:
        """Takes nothing for granted that is in ring and buffers, and leaves alone what the current queue does there."""
        self._wait_for(self._places)
        mark = self._backend.record(False)
        self._where.clear()
        self._places = [_Place(-1, 0, self.plan.ring_bytes, self._queue(), mark)]
        for buffer in self._buffers:
            buffer.batch = None
        if any(self._streamed):
            self._backend.wait(True, mark)

    def _join(self) -> None:
        """Has the current queue wait for the others."""
        if any(self._streamed):
            self._backend.wait(False, self._backend.record(True))
        self._wait_for(self._places)

    def _wait_for(self, places: Sequence[_Place]) -> None:
        """Has the current queue wait for what others did to places of the ring."""
        queue = self._queue()
        for place in places:
            for other, mark in ((place.queue, place.decoded), *place.used.items()):
                if other != queue:
                    self._backend.wait(False, mark)

    # ---- batches ------------------------------------------------------------------

    def _rebatch(self) -> None:
        """Forms batches of the order that is expected. A weight that is whole belongs to none."""
        self._batches: list[Batch] = []  # of each position
        groups: list[list[int]] = []
        spans: list[int] = []  # positions of each group
        seen: set[int] = set()
        weights = residuals = 0
        block = None
        for layer in self.order.uses:
            if self._whole[layer] or layer in seen:
                if not groups:
                    groups.append([])
                    spans.append(0)
                spans[-1] += 1
                continue
            weight, residual = self._weights[layer], self._residuals[layer] if self._streamed[layer] else 0
            if (
                not groups
                or block not in (None, self.plan.layers[layer].block)
                or weights + weight > self.plan.ring_bytes
                or residuals + residual > self.plan.buffer_bytes
            ):
                groups.append([])
                spans.append(0)
                seen.clear()
                weights = residuals = 0
            block = self.plan.layers[layer].block
            groups[-1].append(layer)
            spans[-1] += 1
            seen.add(layer)
            weights, residuals = weights + weight, residuals + residual
        self._streams: list[Batch] = []  # in order, those that are copied
        self._stream_number: list[int | None] = []  # of each position: the last one in _streams up to there
        for group, span in zip(groups, spans, strict=True):
            batch = self._batch_of(tuple(group))
            if batch.streamed:
                self._streams.append(batch)
            self._batches += [batch] * span
            self._stream_number += [len(self._streams) - 1 if self._streams else None] * span

    def _batch_of(self, layers: tuple[int, ...]) -> Batch:
        streamed = tuple(i for i in layers if self._streamed[i])
        return Batch(layers, streamed, sum(self._weights[i] for i in layers))

    def pass_counts(self) -> Counts:
        """What the last pass queued; the one that runs, if it is the first."""
        return self.last_pass if self.last_pass.uses else self.counts.since(self._pass_began)

    def batches(self) -> list[Batch]:
        """Those of the order that is expected, each once."""
        return list(dict.fromkeys(self._batches))

    def moves(self, batch: Batch) -> list[Move]:
        """The residuals of a batch, one behind the other in a buffer."""
        moves: list[Move] = []
        to = 0
        for layer in batch.streamed:
            moves.append(Move(layer, to))
            to += self._residuals[layer]
        return moves

    def items(self, batch: Batch, to: int) -> list[Item]:
        """The weights of a batch, one behind the other from a byte of the ring on."""
        items: list[Item] = []
        source = 0
        for layer in batch.layers:
            items.append(Item(layer, to, source if self._streamed[layer] else None))
            source += self._residuals[layer] if self._streamed[layer] else 0
            to += self._weights[layer]
        return items

    def _count_pass(self) -> None:
        if self.counts.uses == self._pass_began.uses:
            return
        self.counts.passes += 1
        self.last_pass = self.counts.since(self._pass_began)
        self._pass_began = replace(self.counts)

    # ---- copies -------------------------------------------------------------------

    def _holding(self, batch: Batch) -> int | None:
        """Returns the number of the buffer that holds the residuals of a batch."""
        return next((n for n, b in enumerate(self._buffers) if b.batch and b.batch.streamed == batch.streamed), None)

    def _fetch(self, number: int, batch: Batch) -> None:
        buffer = self._buffers[number]
        buffer.batch = None
        for mark in buffer.drained.values():
            self._backend.wait(True, mark)
        self._backend.copy(number, self.moves(batch))
        buffer.copied = self._backend.record(True)
        buffer.drained.clear()
        self._turn += 1
        buffer.batch, buffer.taken, buffer.turn = batch, False, self._turn
        self.counts.copies += 1
        self.counts.copied_bytes += sum(self.plan.layers[i].residual_bytes for i in batch.streamed)

    def _prefetch(self, number: int) -> None:
        """Has the two batches in the buffers that follow one in `_streams`, those of this pass if it is alone."""
        last = len(self._streams) - 1
        follow = [number + k for k in (1, 2) if not self._alone or number + k <= last]
        ahead = [self._streams[n % len(self._streams)] for n in follow]
        wanted = {batch.streamed for batch in ahead}
        for batch in ahead:
            if self._holding(batch) is None:
                free = [n for n, b in enumerate(self._buffers) if b.batch is None or b.batch.streamed not in wanted]
                self._fetch(min(free, key=lambda n: self._buffers[n].turn), batch)

    # ---- the ring -----------------------------------------------------------------

    def _launch(self, batch: Batch, number: int | None) -> None:
        """Decodes a batch, and has copied what follows. number: of it, or of the one before, in `_streams`."""
        buffer = None
        if batch.streamed:
            buffer = self._holding(batch)
            if buffer is None:  # unexpected: better over what was decoded than over what is expected next
                buffer = min((0, 1), key=lambda n: (not self._buffers[n].taken, -self._buffers[n].turn))
                self._fetch(buffer, batch)
            self._backend.wait(False, self._buffers[buffer].copied)
        self._decode(batch, buffer)
        if number is not None:
            self._prefetch(number)

    def _decode(self, batch: Batch, number: int | None) -> None:
        queue = self._queue()
        if self._cursor + batch.weight_bytes > self.plan.ring_bytes:
            self._cursor = 0
        first, end = self._cursor, self._cursor + batch.weight_bytes
        over = [place for place in self._places if place.at < end and first < place.end]
        for place in over:
            if self._where.get(place.layer) is place:
                del self._where[place.layer]
        self._wait_for(over)
        items = self.items(batch, first)
        try:
            self._backend.decode(number, items)
            mark = self._backend.record(False)
        except BaseException:
            # Some of it may have been queued: nobody may write there, or to the buffer, before that is done.
            with contextlib.suppress(Exception):
                mark = self._backend.record(False)
                self._places.append(_Place(-1, first, end, queue, mark))
                if number is not None:
                    self._buffers[number].drained[queue] = mark
            raise
        # What reaches beyond the new weights is still waited for, by who writes there next.
        left = [replace(p, end=first) for p in over if p.at < first] + [replace(p, at=end) for p in over if p.end > end]
        self._places = [place for place in self._places if place not in over] + left
        for item in items:
            place = _Place(item.layer, item.to, item.to + self._weights[item.layer], queue, mark)
            self._places.append(place)
            self._where[item.layer] = place
        self._cursor = end
        if number is not None:
            self._buffers[number].drained[queue] = mark
            self._buffers[number].taken = True
        self.counts.launches += 1
        self.counts.decoded_bytes += sum(self.plan.layers[i].weight_bytes for i in batch.layers)
