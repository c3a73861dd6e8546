"""The planner: budgets are kept, used, and refused where nothing fits."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpde import ArgumentError
from tpde._residency import (
    ALIGN,
    BudgetError,
    LayerSize,
    Plan,
    Rates,
    Residency,
    aligned,
    make_plan,
    resident_bytes,
    smallest_budget,
)


def llama(blocks: int = 4, hidden: int = 256, bits: float = 4.25, residual: float = 7.05) -> list[LayerSize]:
    shapes = {
        "q": (1, 1),
        "k": (0.25, 1),
        "v": (0.25, 1),
        "o": (1, 1),
        "gate": (3.5, 1),
        "up": (3.5, 1),
        "down": (1, 3.5),
    }
    layers = []
    for block, (name, (rows, columns)) in itertools.product(range(blocks), shapes.items()):
        n = int(rows * hidden) * int(columns * hidden)
        sizes = 2 * n, aligned(int(n * bits / 8)), int(n * residual / 8) + 13 * block
        layers.append(LayerSize(f"layers.{block}.{name}", f"layers.{block}", *sizes))
    n = 16 * hidden * hidden
    layers.append(LayerSize("lm_head", "lm_head", 2 * n, aligned(int(n * bits / 8)), int(n * residual / 8)))
    return layers


def check(plan: Plan) -> None:
    assert plan.peak_bytes <= plan.budget
    for n, kind in zip(plan.layers, plan.residency, strict=True):
        if kind is not Residency.WHOLE:
            assert n.weight_bytes <= plan.ring_bytes
        if kind is Residency.STREAMED:
            assert n.residual_bytes <= plan.buffer_bytes
    assert plan.ring_bytes % ALIGN == plan.buffer_bytes % ALIGN == 0


@st.composite
def models(draw: st.DrawFn) -> list[LayerSize]:
    size = st.integers(0, 40).map(lambda n: n * 300)
    base = st.integers(0, 12).map(lambda n: n * ALIGN)
    count = draw(st.integers(1, 9))
    extra = st.sampled_from([0, 0, ALIGN, 5 * ALIGN])
    return [
        LayerSize(
            f"l{i}", f"b{draw(st.integers(0, 3))}", draw(size), draw(base), draw(size), draw(st.integers(1, 3)),
            draw(extra), draw(extra),
        )
        for i in range(count)
    ]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(models(), st.integers(0, 60_000), st.lists(st.integers(0, 150_000), min_size=2, max_size=6))
def test_within_the_budget_and_monotone(layers, fixed, extras):
    smallest = smallest_budget(layers, fixed)
    with pytest.raises(BudgetError) as refused:
        make_plan(layers, smallest - 1, fixed)
    assert (refused.value.budget, refused.value.smallest) == (smallest - 1, smallest)
    before = None
    for budget in sorted(smallest + extra for extra in (0, *extras)):
        plan = make_plan(layers, budget, fixed)
        check(plan)
        assert plan == make_plan(layers, budget, fixed)
        if before is not None:
            assert plan.streamed_bytes <= before.streamed_bytes
        before = plan


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(0, 6), st.integers(1, 30)), min_size=1, max_size=5), st.data()
)
def test_not_far_from_the_best(sizes, data):
    """All choices for a few layers: the plan streams at most one layer's residual more than the best of them."""
    layers = [LayerSize(f"l{i}", "b", *(n * ALIGN for n in one)) for i, one in enumerate(sizes)]
    budget = smallest_budget(layers) + data.draw(st.integers(0, 60)) * ALIGN
    best = None
    for residency in itertools.product(Residency, repeat=len(layers)):
        decoded = [n.weight_bytes for n, kind in zip(layers, residency, strict=True) if kind is not Residency.WHOLE]
        streamed = [n.residual_bytes for n, kind in zip(layers, residency, strict=True) if kind is Residency.STREAMED]
        peak = sum(map(resident_bytes, layers, residency)) + max(decoded, default=0) + 2 * max(streamed, default=0)
        if peak <= budget and (best is None or sum(streamed) < best):
            best = sum(streamed)
    assert best is not None
    assert make_plan(layers, budget).streamed_bytes <= best + max(n.residual_bytes for n in layers)


def test_smallest_is_the_smallest_of_all_choices():
    layers = llama(blocks=1)[:4] + llama(blocks=1)[-1:]
    best = None
    for residency in itertools.product(Residency, repeat=len(layers)):
        decoded = [aligned(n.weight_bytes) for n, k in zip(layers, residency, strict=True) if k is not Residency.WHOLE]
        streamed = [
            aligned(n.residual_bytes) for n, k in zip(layers, residency, strict=True) if k is Residency.STREAMED
        ]
        peak = sum(map(resident_bytes, layers, residency)) + max(decoded, default=0) + 2 * max(streamed, default=0)
        best = peak if best is None else min(best, peak)
    assert smallest_budget(layers) == best


def test_every_budget_is_used():
    layers = llama()
    smallest = smallest_budget(layers, 1000)
    whole = 1000 + sum(aligned(n.weight_bytes) for n in layers)
    least = min(n.residual_bytes for n in layers)
    for budget in range(smallest, whole + 1, (whole - smallest) // 40):
        plan = make_plan(layers, budget, 1000)
        check(plan)
        if plan.streamed_bytes:
            assert budget - plan.peak_bytes < aligned(least) + 3 * ALIGN
    plan = make_plan(layers, whole, 1000)
    assert plan.count(Residency.WHOLE) == len(layers)
    assert (plan.seconds, plan.limit, plan.ring_bytes, plan.buffer_bytes) == (0, "none", 0, 0)


def test_room_for_blocks_where_there_is_room():
    """Ring and buffers take a block, where the rest is not worth a layer."""
    layers = [LayerSize(f"a.{i}", f"{i // 2}", 4096, 512, 2560) for i in range(4)]
    plan = make_plan(layers, smallest_budget(layers) + 2048)
    check(plan)
    assert plan.ring_bytes > 4096 or plan.buffer_bytes > 2560 or plan.count(Residency.STREAMED) < 2


def test_few_launches_where_nothing_is_streamed():
    """The ring holds a block then, rather than some more weights that are whole."""
    layers = llama(blocks=32, hidden=4096)
    layers[-1] = replace(layers[-1], weight_bytes=1 << 30)  # larger than a block
    block = sum(n.weight_bytes for n in layers[:7])
    resident = layers[-1].weight_bytes + sum(n.base_bytes + aligned(n.residual_bytes) for n in layers[:-1])
    for more in (1.0, 2.0, 4.0):
        plan = make_plan(layers, resident + int(more * block))
        check(plan)
        decoded = [n for n, kind in zip(layers, plan.residency, strict=True) if kind is not Residency.WHOLE]
        assert plan.streamed_bytes == 0 and len(decoded) > 50
        for name in {n.block for n in decoded}:
            assert sum(n.weight_bytes for n in decoded if n.block == name) <= plan.ring_bytes
    streaming = make_plan(layers, resident)
    assert streaming.streamed_bytes and streaming.ring_bytes < block


def test_predictions_and_report():
    layers = llama()
    rates = Rates(copy=50, decode=500)
    plan = make_plan(layers, smallest_budget(layers), rates=rates)
    assert plan.limit == "copy"
    assert plan.seconds == plan.copy_seconds == pytest.approx(plan.streamed_bytes / 50e9)
    assert plan.decode_seconds == pytest.approx(plan.decoded_bytes / 500e9)
    text = plan.report()
    assert "limit: copy" in text and "lm_head" in text and "layers.0.q ... layers.0.down (7)" in text
    resident = make_plan(layers, sum(n.base_bytes + n.residual_bytes + 512 for n in layers) + layers[-1].weight_bytes)
    assert resident.streamed_bytes == 0 and resident.limit == "decode"


def test_layers_that_are_called_often_stay():
    layers = [LayerSize(f"l{i}", f"l{i}", 4096, 512, 2048, calls=1 + 9 * (i == 2)) for i in range(4)]
    plan = make_plan(layers, smallest_budget(layers) + 4096)
    assert plan.residency[2] is not Residency.STREAMED


def test_refusals_name_the_smallest():
    layers = llama()
    smallest = smallest_budget(layers)
    with pytest.raises(ArgumentError, match=f"{smallest} bytes"):
        make_plan(layers, 1)
    with pytest.raises(ArgumentError, match="at least 0"):
        make_plan([LayerSize("x", "x", -1, 0, 0)], 1)
    assert make_plan([], 0).peak_bytes == 0
