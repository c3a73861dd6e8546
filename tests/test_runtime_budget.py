"""Budgets, failures and memory of streamed models, on the CPU."""

from __future__ import annotations

import copy
import gc
import io
import weakref

import pytest
import torch
from torch import nn

import tpde
from streaming import budget, engine_of, offloaded, packed
from support import assert_same_bits
from tiny_models import Llama, made, tokens
from tpde import _stream_ops
from tpde._residency import Residency
from tpde.runtime import PackedLayer


def test_a_hot_change_of_the_budget():
    model = made(Llama)
    expected = model(tokens()).detach()
    runtime = offloaded(model)
    for share in (1.0, 0.0, 0.5, 0.9, 0.1, 1.0, 0.0):
        plan = runtime.set_vram(budget(runtime, share), reserve=0)
        assert plan == runtime.plan or plan.rates != runtime.plan.rates
        memory = engine_of(runtime).memory
        assert memory.held_bytes() + plan.fixed_bytes == plan.peak_bytes <= runtime.vram
        for _ in range(2):
            assert_same_bits(model(tokens()).detach(), expected)


def test_the_budget_is_kept_while_it_changes(monkeypatch):
    model = made(Llama)
    runtime = offloaded(model)
    memory = engine_of(runtime).memory
    seen = []
    rebuild, on_host = memory.rebuild, memory.rebuild_on_host

    def watched(number):
        layer = memory.layers[number]
        assert memory.held_bytes() + layer.weight_bytes + layer.record_bytes <= runtime_budget - fixed
        seen.append("device")
        return rebuild(number)

    def watched_on_host(number):
        seen.append("host")
        return on_host(number)

    monkeypatch.setattr(memory, "rebuild", watched)
    monkeypatch.setattr(memory, "rebuild_on_host", watched_on_host)
    fixed = runtime.plan.fixed_bytes
    for share in (0.4, 1.0):
        runtime_budget = budget(runtime, share)
        runtime.set_vram(runtime_budget, reserve=0)
    assert seen.count("host") < seen.count("device")


def test_the_budget_changes_between_forward_and_backward():
    model = made(Llama)
    x = torch.randn(2, 5, 64, dtype=torch.bfloat16)
    results = []
    for streamed in (False, True):
        runtime = offloaded(model) if streamed else None
        leaf = x.clone().requires_grad_()
        out = model.layers[1](model.layers[0](leaf))
        if runtime:
            runtime.set_vram(budget(runtime, 0.8), reserve=0)
        out.float().sum().backward()
        results.append(leaf.grad)
    assert_same_bits(results[1], results[0])


def test_an_exception_in_the_middle_of_a_pass():
    model = made(Llama)
    expected = model(tokens()).detach()
    runtime = offloaded(model)
    model(tokens())
    changes = runtime.measured().order_changes

    def fail(module, args):
        raise RuntimeError("in the middle")

    for at in (model.layers[1].o_proj, model.layers[2], model.norm):
        handle = at.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="middle"):
            model(tokens())
        handle.remove()
        for _ in range(2):
            assert_same_bits(model(tokens()).detach(), expected)
    assert runtime.measured().order_changes == changes
    with pytest.raises(RuntimeError):  # inside a use
        model.lm_head(torch.zeros(2, 3, dtype=torch.bfloat16))
    assert_same_bits(model(tokens()).detach(), expected)


def test_a_failure_to_decode_or_copy(monkeypatch):
    model = made(Llama)
    expected = model(tokens()).detach()
    memory = engine_of(offloaded(model)).memory
    for what in ("copy", "decode"):
        with monkeypatch.context() as patch:
            calls, works = [], getattr(memory, what)

            def fail(*arguments, what=what, real=works, calls=calls):
                calls.append(what)
                if len(calls) == 3:
                    raise OSError(what)
                return real(*arguments)

            patch.setattr(memory, what, fail)
            with pytest.raises(OSError, match=what):
                model(tokens())
        assert_same_bits(model(tokens()).detach(), expected)


def test_a_plan_that_cannot_be_applied(monkeypatch):
    model = made(Llama)
    expected = model(tokens()).detach()
    runtime = offloaded(model, 0.5)
    memory = engine_of(runtime).memory
    for share in (0.0, 1.0):
        with monkeypatch.context() as patch:

            def fail(*arguments):
                raise torch.OutOfMemoryError("out of memory")

            patch.setattr(memory, "host_record" if share else "_rooms_made", fail)
            with pytest.raises(torch.OutOfMemoryError):
                runtime.set_vram(budget(runtime, share), reserve=0)
        with pytest.raises(tpde.UnsupportedError, match="set_vram"):
            model(tokens())
        with pytest.raises(tpde.UnsupportedError, match="set_vram"):
            runtime.report()
        runtime.set_vram(runtime.vram, reserve=0)
        assert_same_bits(model(tokens()).detach(), expected)


def test_dropping_the_model_gives_everything_back():
    gc.collect()
    before = len(_stream_ops._entries)
    model = made(Llama)
    runtime = offloaded(model)
    model(tokens())
    engine = engine_of(runtime)
    gone = [weakref.ref(one) for one in (engine, engine.memory, engine.memory.arena, engine.memory.ring)]
    del engine, model
    gc.collect()
    assert [one() for one in gone] == [None] * 4
    assert len(_stream_ops._entries) == before
    with pytest.raises(tpde.HandleError, match="gone"):
        runtime.report()


def test_a_budget_that_is_too_small():
    model = made(Llama)
    weights = {id(p) for p in model.parameters()}
    with pytest.raises(tpde.BudgetError, match="nothing was packed") as refused:
        tpde.offload(model, vram=1000, device="cpu")
    assert {id(p) for p in model.parameters()} == weights and refused.value.budget == 1000
    expected = model(tokens()).detach()
    with pytest.raises(tpde.BudgetError) as too_small:
        tpde.offload(model, vram=refused.value.smallest, device="cpu")
    smallest = too_small.value.smallest
    runtime = tpde.runtime.of(model)  # packed, and waiting for a budget
    with pytest.raises(tpde.UnsupportedError, match="set_vram"):
        model(tokens())
    runtime.set_vram(smallest)
    assert_same_bits(model(tokens()).detach(), expected)
    with pytest.raises(tpde.BudgetError, match=f"{smallest} bytes"):
        runtime.set_vram(smallest - 1)
    assert_same_bits(model(tokens()).detach(), expected)  # with the plan that it had
    assert runtime.vram == smallest
    with pytest.raises(tpde.ArgumentError, match="vram"):
        runtime.set_vram("much")
    for wrong in ({"vram": "much"}, {"reserve": -1}):
        untouched = made(Llama)
        with pytest.raises(tpde.ArgumentError, match=next(iter(wrong))):
            tpde.offload(untouched, lambda name, weight: None, device="cpu", **wrong)
        assert type(untouched.lm_head) is nn.Linear


def test_the_reserve():
    model = made(Llama)
    runtime = offloaded(model, None)
    runtime.set_vram("64MiB")
    assert runtime.reserve == 8 << 20 and runtime.plan.budget == 56 << 20
    runtime.set_vram("64MiB", reserve="1MiB")
    assert runtime.plan.budget == 63 << 20
    runtime.set_vram("64GiB")
    assert runtime.reserve == 512 << 20


def test_weights_are_freed_one_by_one():
    model = made(Llama)
    alive = [weakref.ref(m.weight) for m in model.modules() if isinstance(m, nn.Linear)]
    counts = []

    def base(name, weight):
        counts.append(sum(ref() is not None for ref in alive))
        return tpde.quantize(weight, 4)

    offloaded(model, base=base)
    assert counts == list(range(len(alive), 0, -1))


@pytest.mark.parametrize("failing", [0, 5, 20])
def test_what_fails_while_layers_are_packed_changes_nothing(failing):
    model = made(Llama, tied=True)
    expected = model(tokens()).detach()
    names = [name for name, _ in model.named_parameters()]
    count = 0

    def base(name, weight):
        nonlocal count
        count += 1
        if count > failing:
            raise KeyboardInterrupt
        return tpde.quantize(weight, 4)

    with pytest.raises(KeyboardInterrupt):
        tpde.offload(model, base, device="cpu")
    assert [name for name, _ in model.named_parameters()] == names
    assert all(type(m) is nn.Linear for m in model.modules() if isinstance(m, nn.Linear))
    assert all(p.requires_grad for p in model.parameters())
    assert_same_bits(model(tokens()).detach(), expected)
    offloaded(model)
    assert_same_bits(model(tokens()).detach(), expected)


def test_load_into_a_model_without_weights():
    model = made(Llama)
    expected = model(tokens()).detach()
    layers = list(packed(model))
    with torch.device("meta"):
        empty = Llama().bfloat16()
    rest = {name: p for name, p in model.state_dict().items() if "proj" not in name and "lm_head" not in name}
    empty.load_state_dict(rest, strict=False, assign=True)
    runtime = tpde.load_into(empty, reversed(layers), device="cpu", reserve=0)
    assert runtime.plan.count(Residency.WHOLE) == len(layers)
    assert_same_bits(empty(tokens()).detach(), expected)
    runtime.set_vram(budget(runtime, 0), reserve=0)
    assert_same_bits(empty(tokens()).detach(), expected)
    assert "in_features=64" in repr(empty)
    assert not [name for name, _ in empty.named_parameters() if "proj" in name]


def test_load_into_refuses_what_does_not_fit():
    model = made(Llama)
    layers = [PackedLayer(*one) for one in packed(model)]
    expected = model(tokens()).detach()
    other = tpde.quantize(torch.randn(64, 64).bfloat16(), 4)
    damaged = layers[0].data_blob.clone()
    damaged[damaged.numel() // 2] ^= 8
    for wrong, error, match in (
        ([layers[0]._replace(name="layers.9.q_proj")], tpde.NotFoundError, "layers.9"),
        ([layers[0], layers[0]], tpde.ArgumentError, "twice"),
        ([layers[0]._replace(name="layers.0.up_proj")], tpde.ArgumentError, "shape"),
        ([layers[0]._replace(base=None)], tpde.ArgumentError, "base"),
        ([layers[0]._replace(base=other)], tpde.BaseMismatchError, "base"),
        ([layers[0]._replace(data_blob=damaged)], tpde.TpdeError, "."),
        ([layers[0]._replace(data_blob=damaged[:-1])], tpde.TpdeError, "."),
    ):
        with pytest.raises(error, match=match):
            tpde.load_into(model, wrong, device="cpu")
        assert_same_bits(model(tokens()).detach(), expected)
    runtime = tpde.load_into(model, layers[:3], device="cpu", embeddings=False)  # some layers alone
    assert type(model.embed_tokens) is nn.Embedding and len(runtime.plan.layers) == 3
    assert_same_bits(model(tokens()).detach(), expected)
    with pytest.raises(tpde.ArgumentError, match="already"):
        tpde.offload(model, device="cpu")
    with pytest.raises(tpde.ArgumentError, match="itself a layer"):
        tpde.offload(nn.Linear(4, 4), device="cpu")
    with pytest.raises(tpde.ArgumentError, match="int4"):
        tpde.offload(made(Llama), "int5", device="cpu")
    with pytest.raises(tpde.ArgumentError, match="not streamed"):
        tpde.runtime.of(made(Llama))


def test_biases_come_with_layers():
    model = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 4, bias=False))
    bias = torch.randn(8)
    layers = [PackedLayer(*one) for one in packed(model)]
    tpde.load_into(model, [layers[0]._replace(bias=bias), layers[1]], device="cpu")
    assert_same_bits(model[0].bias.detach(), bias)


def test_what_a_streamed_model_refuses():
    model = made(Llama)
    expected = model(tokens()).detach()
    runtime = offloaded(model)
    with pytest.raises(tpde.UnsupportedError, match="copied"):
        copy.deepcopy(model)
    with pytest.raises(tpde.UnsupportedError, match="pickled"):
        torch.save(model, io.BytesIO())
    for convert in (lambda: model.half(), lambda: model.to("meta")):
        with pytest.raises(TypeError, match="unload"):
            convert()
    assert_same_bits(model.to("cpu").bfloat16()(tokens()).detach(), expected)
    del runtime


def test_figures():
    model = made(Llama)
    runtime = offloaded(model)
    text = runtime.report()
    assert "layers.0.q_proj ... layers.0.down_proj (7)" in text and "streamed" in text and "limit" in text
    runtime.trace()
    for _ in range(3):
        model(tokens())
    measured = runtime.measured()
    assert measured.copied_bytes == runtime.plan.streamed_bytes and measured.seconds > 0
    assert 0 < measured.copy_seconds + measured.decode_seconds <= measured.seconds * 1.5
    kinds = [kind for kind, begin, end in runtime.spans()]
    assert "copy" in kinds and "decode" in kinds
    assert "predicted" in str(measured)
