"""The order in which layers are streamed, on a device that takes every liberty with time that a GPU has."""

from __future__ import annotations

import contextlib
import gc
import random
from collections import defaultdict
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpde._residency import ALIGN, LayerSize, Plan, Residency, make_plan, smallest_budget
from tpde._stream_order import Order
from tpde._stream_schedule import Schedule, _Place


class Device:
    """Queues whose work is done in any order that the waits allow, one queue at a time.

    A residual is a byte for each layer, a weight another; whatever reads memory checks that the right thing is there.
    """

    def __init__(self, plan: Plan, seed: int = 0) -> None:
        self.plan, self.random = plan, random.Random(seed)
        self.ring = bytearray(b"\xee" * plan.ring_bytes)
        self.buffers = [bytearray(b"\xdd" * plan.buffer_bytes) for _ in range(2)]
        self.queues: dict[str, list] = defaultdict(list)
        self.done: dict[str, int] = defaultdict(int)
        self.speed: dict[str, float] = defaultdict(
            lambda: 10 ** self.random.uniform(0, 3)
        )  # so that some lag far behind
        self.current = "main"
        self.copies: list[tuple[int, ...]] = []
        self.launches: list[tuple[int, ...]] = []
        self.fail: str | None = None
        self.replays = 0

    # ---- Backend --------------------------------------------------------------------

    def queue(self) -> str:
        return self.current

    def copy(self, buffer, moves) -> None:
        self._fail("copy")
        end = 0
        for layer, to in moves:
            size = self.plan.layers[layer].residual_bytes
            assert to >= end and to + size <= self.plan.buffer_bytes
            end = to + size
        self.copies.append(tuple(layer for layer, _ in moves))

        def work() -> None:
            for layer, to in moves:
                size = self.plan.layers[layer].residual_bytes
                self.buffers[buffer][to : to + size] = bytes([layer]) * size

        self.queues["copies"].append(work)

    def decode(self, buffer, items) -> None:
        self._fail("decode")
        self.launches.append(tuple(item.layer for item in items))
        for layer, _, source in items:
            assert (self.plan.residency[layer] is Residency.STREAMED) == (source is not None)

        def work() -> None:
            for layer, to, source in items:
                n = self.plan.layers[layer]
                if source is not None:
                    assert set(self.buffers[buffer][source : source + n.residual_bytes]) <= {layer}, "another residual"
                assert to + n.weight_bytes <= self.plan.ring_bytes
                self.ring[to : to + n.weight_bytes] = bytes([100 + layer]) * n.weight_bytes

        self.queues[self.current].append(work)

    def record(self, copies, queue=None):
        name = "copies" if copies else queue or self.current
        return name, len(self.queues[name])

    def wait(self, copies, mark) -> None:
        self.queues["copies" if copies else self.current].append(mark)

    # ---- CUDA graphs ------------------------------------------------------------------

    @contextlib.contextmanager
    def capture(self):
        """What is queued meanwhile makes a graph, which is yielded: queues, whose marks are of the same graph."""
        graph: dict[str, list] = defaultdict(list)
        everything, self.queues = self.queues, graph
        yield graph
        self.queues = everything
        main = graph["main"]
        for name, work in graph.items():
            if name != "main":
                assert not callable(work[0]), "work beside the graph"
                assert (name, len(work)) in main, "work that the graph does not wait for"

    def replay(self, graph: dict[str, list]) -> None:
        """Queues a graph on the current queue."""
        self.replays += 1
        began = self.record(False)
        names = {name: f"{name} of replay {self.replays}" for name in graph}
        for name, work in graph.items():
            moved = [one if callable(one) else (names[one[0]], one[1] + 1) for one in work]
            self.queues[names[name]] = [began, *moved]
        for name in names.values():
            self.queues[self.current].append((name, len(self.queues[name])))

    # ---- what a program does ----------------------------------------------------------

    def use(self, layer: int, at: int) -> None:
        size = self.plan.layers[layer].weight_bytes

        def work() -> None:
            assert set(self.ring[at : at + size]) <= {100 + layer}, "another weight"

        self.queues[self.current].append(work)

    def finish(self) -> None:
        while True:
            ready = []
            for name, work in self.queues.items():
                at = self.done[name]
                if at < len(work) and (callable(work[at]) or self.done[work[at][0]] >= work[at][1]):
                    ready.append(name)
            if not ready:
                break
            (name,) = self.random.choices(ready, [self.speed[name] for name in ready])
            work = self.queues[name][self.done[name]]
            if callable(work):
                work()
            self.done[name] += 1
        assert all(self.done[name] == len(work) for name, work in self.queues.items()), "queues wait for each other"

    def _fail(self, what: str) -> None:
        if self.fail == what:
            self.fail = None
            raise OSError(f"{what} failed")


def layers_of(blocks: int = 3, each: int = 3, seed: int = 0) -> list[LayerSize]:
    r = random.Random(seed)
    return [
        LayerSize(f"{b}.{i}", f"{b}", ALIGN * r.randrange(4, 9) - 3, ALIGN, ALIGN * r.randrange(1, 4) - 5)
        for b in range(blocks)
        for i in range(each)
    ]


def started(layers, extra: int = 0, seed: int = 0, ring: int = 0, buffer: int = 0) -> tuple[Device, Schedule]:
    """extra: bytes of the budget beyond the smallest; ring, buffer: bytes beyond what the plan gives them."""
    plan = make_plan(layers, smallest_budget(layers) + extra)
    plan = replace(plan, ring_bytes=plan.ring_bytes + ring, buffer_bytes=plan.buffer_bytes + buffer)
    device = Device(plan, seed)
    schedule = Schedule(device, plan, Order(range(len(layers))))
    schedule.prime()
    return device, schedule


def any_model(data) -> tuple[Device, Schedule, st.SearchStrategy]:
    """Any model and budget, and orders in which its layers may be used."""
    layers = layers_of(data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4)), data.draw(st.integers(0, 99)))
    rooms = [data.draw(st.integers(0, 30)) * ALIGN for _ in range(3)]
    device, schedule = started(layers, rooms[0], data.draw(st.integers(0, 99)), *rooms[1:])
    some = st.lists(st.integers(0, len(layers) - 1), max_size=12)
    return device, schedule, st.one_of(some, st.just(range(len(layers))), st.just(range(len(layers) - 1, -1, -1)))


def run(device: Device, schedule: Schedule, uses, queues=("main",), begin: bool = True) -> None:
    if begin:
        schedule.begin()
    for i, layer in enumerate(uses):
        device.current = queues[i % len(queues)]
        at = schedule.acquire(layer)
        if at is None:
            assert device.plan.residency[layer] is Residency.WHOLE
            continue
        device.use(layer, at)
        schedule.release(layer)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_use_finds_anything_but_its_weight(data):
    """Any model, budget, order, number of queues and interleaving; orders change, and passes break off."""
    device, schedule, orders = any_model(data)
    for _ in range(data.draw(st.integers(1, 6))):
        uses = data.draw(orders)
        queues = data.draw(st.sampled_from([("main",), ("main", "side"), ("side",), ("a", "a", "b", "c")]))
        device.fail = data.draw(st.sampled_from([None, None, None, "copy", "decode"]))
        with contextlib.suppress(OSError):
            run(device, schedule, uses, queues, data.draw(st.booleans()))
        device.fail = None
    device.finish()


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_captured_passes_are_replayed_between_others(data):
    """Any model, budget and order; graphs of several passes, replayed in any order between passes and single uses."""
    device, schedule, orders = any_model(data)
    graphs = []
    for _ in range(data.draw(st.integers(1, 8))):
        what = data.draw(st.sampled_from(["capture", "replay", "pass", "pass", "uses"]))
        device.current = "main"
        if what == "capture":
            device.finish()  # as torch.cuda.graph does
            captured = schedule.captured()
            with device.capture() as graph:
                run(device, captured, data.draw(orders))
                captured.end()
            graphs.append(graph)
        elif what == "replay":
            for graph in graphs:
                device.replay(graph)
        elif what == "pass":
            run(device, schedule, data.draw(orders), data.draw(st.sampled_from([("main",), ("main", "side")])))
            device.current = "main"
            schedule.end()
        else:  # layers by themselves; what they compute with comes from the main queue, and goes there
            device.current = data.draw(st.sampled_from(["main", "side"]))
            device.wait(False, ("main", len(device.queues["main"])))
            run(device, schedule, data.draw(orders), (device.current,), begin=False)
            done = device.record(False)
            device.current = "main"
            device.wait(False, done)
    device.finish()


@pytest.mark.parametrize("missing", ["_forget", "_join"])
def test_replays_are_noticed(missing):
    """The test above would notice if passes relied on what is in ring and buffers, or did not end together."""
    found = 0
    for seed in range(100):
        device, schedule = started(layers_of(), 0, seed)
        run(device, schedule, range(9))
        device.finish()
        captured = schedule.captured()
        with device.capture() as graph:
            run(device, captured, range(8, -1, -1))
            captured.end()
        setattr(schedule, missing, lambda: None)
        for _ in range(3):
            run(device, schedule, range(4))
            schedule.end()
            device.replay(graph)
        try:
            device.finish()
        except AssertionError:
            found += 1
    assert found > 10


def test_nothing_grows_where_passes_are_not_told():
    """As in a compiled model, which runs no hooks."""
    _, schedule = started(layers_of())

    def kept(passes: int) -> int:
        for layer in [*range(9)] * passes:
            if schedule.acquire(layer) is not None:
                schedule.release(layer)
        gc.collect()
        return sum(type(one) is _Place for one in gc.get_objects())

    assert kept(3) == kept(50)


def test_a_captured_pass_copies_what_it_needs_and_nothing_else():
    device, schedule = started(layers_of())
    run(device, schedule, range(9))
    captured = schedule.captured()
    device.copies.clear()
    with device.capture():
        run(device, captured, range(9))
        captured.end()
    assert [layer for copy in device.copies for layer in copy] == list(range(9))
    device.copies.clear()
    run(device, schedule, range(9))
    schedule.end()
    assert [layer for copy in device.copies for layer in copy] == list(range(9))


@pytest.mark.parametrize("missing", ["copy before decode", "decode before copy", "use before decode", "marks of uses"])
def test_the_device_finds_missing_waits(missing):
    """The test above would notice if the schedule did not wait."""
    found = 0
    for seed in range(40):
        device, schedule = started(layers_of(), 0, seed)

        def skip(copies, mark, wait=device.wait):
            kind = "copy before decode" if mark[0] == "copies" else "use before decode"
            if missing != ("decode before copy" if copies else kind):
                wait(copies, mark)

        device.wait = skip
        if missing == "marks of uses":
            schedule._mark_uses = lambda: None
        for _ in range(3):
            run(device, schedule, range(9), ("main", "side") if "use" in missing else ("main",))
        try:
            device.finish()
        except AssertionError:
            found += 1
    assert found > 20


def test_what_is_left_of_a_weight_is_waited_for():
    """A small weight takes the place of a large one; the next one takes what is left of that, on a third queue."""
    sizes = (8, 3, 5)
    layers = tuple(LayerSize(str(i), str(i), n * ALIGN, 0, ALIGN) for i, n in enumerate(sizes))
    plan = Plan(layers, (Residency.STREAMED,) * 3, 1 << 20, 0, 8 * ALIGN, ALIGN)
    for seed in range(50):
        device = Device(plan, seed)
        schedule = Schedule(device, plan, Order(range(3)))
        run(device, schedule, [0, 1, 2], ("a", "b", "c"))
        device.finish()


def test_a_residual_that_is_decoded_twice_is_waited_for_twice():
    """Two queues decode out of one buffer before it is filled again."""
    layers = tuple(LayerSize(str(i), str(i), 4 * ALIGN, 0, ALIGN) for i in range(5))
    plan = Plan(layers, (Residency.STREAMED,) * 5, 1 << 20, 0, 8 * ALIGN, ALIGN)
    for seed in range(50):
        device = Device(plan, seed)
        schedule = Schedule(device, plan, Order([0, 1]))
        schedule.prime()
        for layer, queue in ((0, "a"), (1, "b"), (2, "c"), (0, "d"), (3, "d")):
            run(device, schedule, [layer], (queue,), begin=False)
        device.finish()


def test_batches_follow_blocks():
    layers = [replace(n, block=n.block) for n in layers_of(3, 3)]
    ring = sum(4096 for _ in range(3))
    plan = Plan(tuple(layers), (Residency.STREAMED,) * 9, 1 << 20, 0, ring, 3 * 2048)
    device = Device(plan)
    schedule = Schedule(device, plan, Order(range(9)))
    schedule.prime()
    for _ in range(3):
        run(device, schedule, range(9))
    blocks = [(0, 1, 2), (3, 4, 5), (6, 7, 8)]
    assert device.launches == blocks * 3
    assert device.copies == blocks * 3 + blocks[:2], "two batches ahead, and not one more"
    device.finish()
    counts = schedule.pass_counts()
    assert counts.copied_bytes == plan.streamed_bytes and counts.decoded_bytes == plan.decoded_bytes
    assert (counts.launches, counts.copies, counts.uses) == (3, 3, 9)


def test_small_rings_split_blocks():
    layers = layers_of(3, 3)
    device, schedule = started(layers)
    for _ in range(3):
        run(device, schedule, range(9))
    assert len({layer for batch in device.launches for layer in batch}) == 9 - device.plan.count(Residency.WHOLE)
    assert len(device.launches) % 3 == 0
    assert schedule.pass_counts().copied_bytes == device.plan.streamed_bytes
    device.finish()


def test_copies_are_queued_before_they_are_needed():
    device, schedule = started(layers_of(4, 2))
    for number in range(3):
        schedule.begin()
        for layer in range(8):
            copied = len(device.copies)
            at = schedule.acquire(layer)
            if at is not None:
                new = device.copies[copied:]
                assert all(layer not in batch for batch in new) or number == 0
                schedule.release(layer)


def test_the_order_is_learnt():
    device, schedule = started(layers_of(3, 2))
    strange = [4, 5, 0, 1, 1, 2, 3]
    for _ in range(4):
        run(device, schedule, strange)
    assert schedule.order.uses == strange and schedule.order.changes == 1
    before = schedule.counts.copied_bytes
    run(device, schedule, strange)
    run(device, schedule, strange)
    assert schedule.counts.copied_bytes - before == 2 * device.plan.streamed_bytes
    run(device, schedule, strange[:2])  # broke off: nothing is learnt from that
    run(device, schedule, strange)
    assert schedule.order.changes == 1
    for _ in range(3):
        run(device, schedule, strange[:4])  # but from that
    assert schedule.order.changes == 2 and schedule.order.uses == strange[:4]
    device.finish()


@pytest.mark.parametrize("uses", [[0, 1, 2, 3], [3, 1, 0, 2], [0, 1, 0, 1, 2, 3], [1, 1, 0], [2, 2, 2]])
def test_cycles_are_found_without_being_told(uses):
    order = Order(range(4))
    for _ in range(6):
        for layer in uses:
            order.note(layer)
    changes = order.changes
    for layer in uses * 5:
        before = order._at
        position, _ = order.note(layer)
        assert position in (before, 0) and order.uses[position] == layer
    assert order.changes == changes


def test_a_backward_pass_belongs_to_the_pass():
    device, schedule = started(layers_of(3, 2))
    uses = [*range(6), *reversed(range(6))]
    for _ in range(4):
        run(device, schedule, uses)
    assert schedule.order.uses == uses and schedule.order.changes == 1
    run(device, schedule, uses)
    assert schedule.pass_counts().copied_bytes <= 2 * device.plan.streamed_bytes
    device.finish()


def test_repeated_blocks_are_decoded_once_if_they_fit():
    layers = layers_of(1, 3)
    plan = Plan(tuple(layers), (Residency.STREAMED,) * 3, 1 << 20, 0, 3 * 4096, 3 * 2048)
    device = Device(plan)
    schedule = Schedule(device, plan, Order(range(3)))
    for _ in range(3):
        run(device, schedule, [0, 1, 2] * 5)
    assert len(device.launches) == 1 and len(device.copies) == 1
    device.finish()


def test_a_pass_that_nobody_begins_any_more_is_not_kept():
    order = Order(range(3))
    order.begin()
    for _ in range(5000):
        for layer in range(3):
            order.note(layer)
    assert len(order._seen) < 2000 and order.uses == [0, 1, 2]


def test_nothing_grows():
    device, schedule = started(layers_of(3, 3))
    sizes = set()
    for number in range(12):
        run(device, schedule, range(9), ("main", "side"))
        if number > 3:
            marks = sum(len(place.used) for place in schedule._places)
            sizes.add((len(schedule._places), len(schedule._where), len(schedule.order._seen), marks))
    assert len(sizes) <= 3


@pytest.mark.parametrize("what", ["copy", "decode"])
def test_failures_leave_everything_in_order(what):
    for seed in range(20):
        device, schedule = started(layers_of(3, 3), seed=seed)
        run(device, schedule, range(9))
        device.fail = what
        with pytest.raises(OSError, match=what):
            run(device, schedule, range(9), ("side",))
        run(device, schedule, range(9), ("main", "side"))
        run(device, schedule, range(9))
        device.finish()
        assert schedule.order.changes == 0
