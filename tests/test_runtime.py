"""Streamed models against resident ones, on bits, on the CPU: the same scheduler, one step after the other."""

from __future__ import annotations

import copy
import gc
import io
import threading
import weakref

import pytest
import torch
from torch import nn

import tpde
from support import assert_same_bits
from tiny_models import GPT2, Llama, made, tokens
from tpde import _stream_ops
from tpde._residency import Residency, smallest_budget
from tpde.runtime import PackedLayer, Runtime

KINDS = pytest.mark.parametrize("kind", [Llama, GPT2])


def offloaded(model: nn.Module, share: float | None = 0.0, **options) -> Runtime:
    """Streams a model; share: of the budget between the smallest and what holds everything."""
    runtime = tpde.offload(model, device="cpu", reserve=0, workers=1, **options)
    if share is not None:
        runtime.set_vram(budget(runtime, share), reserve=0)
    return runtime


def budget(runtime: Runtime, share: float) -> int:
    plan = runtime.plan
    smallest = smallest_budget(plan.layers, plan.fixed_bytes)
    return smallest + int(share * (plan.fixed_bytes + sum(n.weight_bytes for n in plan.layers) - smallest))


def engine_of(runtime: Runtime):
    return runtime._engine()


@KINDS
@pytest.mark.parametrize("base", ["int4", "int8", "none"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.8, 1.0])
def test_logits_are_those_of_the_resident_model(kind, base, share):
    model = made(kind)
    inputs = [tokens(1), tokens(8), tokens(1, 1)]
    with torch.no_grad():
        expected = [model(ids) for ids in inputs]
    runtime = offloaded(model, share, base=base)
    plan = runtime.plan
    assert (plan.streamed_bytes > 0) == (share < 0.8 or plan.count(Residency.STREAMED) > 0)
    for context in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with context():
            for ids, logits in zip(inputs, expected, strict=True):
                assert_same_bits(model(ids).detach(), logits)
    engine = engine_of(runtime)
    assert engine.memory.held_bytes() + plan.fixed_bytes == plan.peak_bytes <= runtime.vram
    measured = runtime.measured()
    assert (measured.copied_bytes, measured.decoded_bytes) == (plan.streamed_bytes, plan.decoded_bytes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_other_dtypes(dtype):
    model = made(Llama, dtype)
    expected = model(tokens()).detach()
    offloaded(model, 0.2)
    assert_same_bits(model(tokens()).detach(), expected)


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


def gradients(model, ids):
    """Of embeddings, and of what is trained."""
    caught = []

    def keep(module, args, output):
        leaf = output.detach().requires_grad_()
        caught.append(leaf)
        return leaf

    first = getattr(model, "embed_tokens", None) or model.wte
    handle = first.register_forward_hook(keep)
    for parameter in model.parameters():
        parameter.grad = None
    model(ids).float().square().sum().backward()
    handle.remove()
    trained = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return caught[0].grad, trained


@KINDS
@pytest.mark.parametrize("share", [0.0, 0.7])
def test_gradients_are_those_of_the_resident_model(kind, share):
    model = made(kind)
    ids = tokens(2)
    expected, trained = gradients(model, ids)
    runtime = offloaded(model, share)
    for _ in range(3):
        got, mine = gradients(model, ids)
        assert_same_bits(got, expected)
        assert mine and set(mine) <= set(trained)
        for name, grad in mine.items():
            assert_same_bits(grad, trained[name])
    uses = engine_of(runtime).schedule.order.uses
    assert len(uses) == 2 * len(runtime.plan.layers), "the backward pass is learnt, too"


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


def test_adapters_on_top_are_trained():
    model = made(Llama, torch.float32)
    reference = copy.deepcopy(model)
    offloaded(model)

    class Adapter(nn.Module):
        def __init__(self, inner):
            super().__init__()
            torch.manual_seed(5)
            self.inner = inner
            self.down, self.up = nn.Linear(64, 4, bias=False), nn.Linear(4, 64, bias=False)

        def forward(self, x):
            return self.inner(x) + self.up(self.down(x))

    states = []
    for one in (reference, model):
        for p in one.parameters():
            p.requires_grad_(False)
        for layer in one.layers:
            layer.q_proj = Adapter(layer.q_proj)
        trained = [p for p in one.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=0.1)
        for step in range(3):
            optimizer.zero_grad()
            hidden = one.embed_tokens(tokens(2, seed=step))
            for layer in one.layers:
                hidden = torch.utils.checkpoint.checkpoint(layer, hidden, use_reentrant=False)
            one.lm_head(hidden).square().mean().backward()
            optimizer.step()
        states.append([p.detach() for p in trained])
    for mine, theirs in zip(*states, strict=True):
        assert_same_bits(mine, theirs)


def test_weights_that_are_shared():
    model = made(Llama, tied=True)
    model.layers[2].up_proj = model.layers[2].gate_proj  # a module twice
    model.layers[1].up_proj.weight = model.layers[0].up_proj.weight  # a weight twice
    expected = model(tokens()).detach()
    runtime = offloaded(model)
    assert len(runtime.plan.layers) == 3 * 7 + 1 - 2
    for _ in range(3):
        assert_same_bits(model(tokens()).detach(), expected)
    runtime.unload()
    assert model.lm_head.weight is model.embed_tokens.weight
    assert model.layers[1].up_proj.weight is model.layers[0].up_proj.weight
    assert model.layers[2].up_proj is model.layers[2].gate_proj
    assert_same_bits(model(tokens()).detach(), expected)


def test_skipped_and_repeated_modules():
    model = made(Llama)
    reference = copy.deepcopy(model)
    runtime = offloaded(model, 0.2)
    x = torch.randn(1, 4, 64, dtype=torch.bfloat16)
    for path in ([0, 1, 2], [0, 2], [0, 2], [2, 1, 1, 0], [2, 1, 1, 0], [1], [0, 1, 2]):
        for _ in range(2):
            mine, theirs = x, x
            for number in path:
                mine, theirs = model.layers[number](mine), reference.layers[number](theirs)
            assert_same_bits(mine.detach(), theirs.detach())
    assert runtime.measured().order_changes > 1


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


def test_models_beside_each_other():
    models = [made(Llama, seed=seed) for seed in range(2)]
    expected = [model(tokens()).detach() for model in models]
    for model in models:
        offloaded(model, 0.1)
    for _ in range(2):
        for model, logits in zip(models, expected, strict=True):
            assert_same_bits(model(tokens()).detach(), logits)
    pair = nn.ModuleList(models)
    assert tpde.runtime.of(pair) is tpde.runtime.of(models[0])


def test_threads_take_turns():
    model = made(Llama)
    inputs = [tokens(seed=seed) for seed in range(4)]
    expected = [model(ids).detach() for ids in inputs]
    offloaded(model)
    wrong = []

    def work(number):
        for _ in range(4):
            if not torch.equal(model(inputs[number]).detach(), expected[number]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


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


def packed(model: nn.Module):
    for name, module in model.named_modules():
        if type(module) is nn.Linear:
            base = tpde.quantize(module.weight, 4)
            yield name, base, *tpde.encode(base, module.weight)


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


@KINDS
def test_compile_without_graph_breaks(kind):
    model = made(kind)
    ids = tokens(2)
    expected = torch.compile(model, fullgraph=True, backend="aot_eager")(ids).detach()
    runtime = offloaded(model, 0.2)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for _ in range(3):
        assert_same_bits(compiled(ids).detach(), expected)
    copied = engine_of(runtime).schedule.counts.copied_bytes
    compiled(ids)
    assert engine_of(runtime).schedule.counts.copied_bytes - copied == runtime.plan.streamed_bytes
    runtime.set_vram(budget(runtime, 0.6), reserve=0)
    assert_same_bits(compiled(ids).detach(), expected)


def test_operators_keep_their_promises():
    model = made(Llama, torch.float32)
    offloaded(model)
    module = model.layers[0].q_proj
    x = torch.randn(2, 64)
    handle = module._entry.handle
    torch.library.opcheck(_stream_ops.streamed_linear, (x, None, handle, 64, None))
    torch.library.opcheck(_stream_ops.streamed_linear_backward, (x, handle, 64, None))
    torch.library.opcheck(_stream_ops.streamed_rows, (tokens(), model.embed_tokens._entry.handle, 64, torch.float32))
    double = nn.Sequential(nn.Linear(64, 8)).double()
    tpde.offload(double, None, device="cpu")
    leaf = torch.randn(2, 64, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: double(x).pow(2), (leaf,))


def test_functional_transforms():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 16), nn.Linear(16, 8, bias=False))
    x = torch.randn(5, 24)

    def one(row):
        return model(row).square().sum()

    transforms = torch.func.grad, lambda f: torch.vmap(torch.func.grad(f))
    expected = [transform(one)(x) for transform in transforms]
    offloaded(model)
    for transform, result in zip(transforms, expected, strict=True):
        assert torch.equal(transform(one)(x), result)


def test_autocast_equals_the_resident_model():
    model = made(GPT2, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = model(tokens()).detach()
        offloaded(model)
        got = model(tokens()).detach()
    assert got.dtype is expected.dtype is torch.bfloat16
    assert_same_bits(got, expected)


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


def test_the_weight_of_a_streamed_layer():
    model = made(Llama)
    weight = model.layers[0].up_proj.weight.detach().clone()
    runtime = offloaded(model)
    before = engine_of(runtime).schedule.counts.launches
    mine = model.layers[0].up_proj.weight
    assert (mine.shape, mine.dtype, mine.device) == (weight.shape, weight.dtype, weight.device)
    assert "192" in repr(mine)
    assert_same_bits(mine.clone(), weight)
    assert_same_bits(mine @ torch.eye(64).bfloat16(), weight @ torch.eye(64).bfloat16())
    assert engine_of(runtime).schedule.counts.launches == before, "no part of the schedule"
    assert isinstance(model.layers[0].up_proj, nn.Linear) and isinstance(model.embed_tokens, nn.Embedding)


def test_hooks_and_attributes_stay():
    model = made(Llama)
    calls = []
    module = model.layers[0].q_proj
    module.mine = 5
    module.register_forward_hook(lambda *_: calls.append(1))
    offloaded(model)
    model(tokens())
    assert calls == [1] and model.layers[0].q_proj is module and module.mine == 5


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


def test_a_fork_and_other_modules_are_left_alone():
    """What is no linear layer of its own stays as it is: attention takes the weight out of its projection."""
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(16, 2), "linear": nn.Linear(16, 16)})
    x = torch.randn(3, 1, 16)
    expected = model["attention"](x, x, x)[0].detach()
    runtime = offloaded(model)
    assert [n.name for n in runtime.plan.layers] == ["linear"]
    assert_same_bits(model["attention"](x, x, x)[0].detach(), expected)


def test_a_model_without_linear_layers():
    model = nn.Sequential(nn.Embedding(10, 4), nn.LayerNorm(4))
    expected = model(torch.arange(3)).detach()
    runtime = tpde.offload(model, vram="1MiB", device="cpu")
    assert_same_bits(model(torch.arange(3)).detach(), expected)
    assert runtime.plan.streamed_bytes == 0
    runtime.report()
