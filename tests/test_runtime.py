"""Streamed models compute what resident ones do, on bits, on the CPU: the same scheduler, one step after the other."""

from __future__ import annotations

import copy
import io
import threading

import pytest
import torch
from torch import nn

import tpde
from streaming import KINDS, budget, engine_of, offloaded
from support import assert_same_bits
from tiny_models import GPT2, Llama, made, tokens
from tpde import _stream_ops
from tpde._residency import Residency


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


def test_state_dicts_have_the_weights():
    model = made(Llama)
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    offloaded(model)
    got = model.state_dict()
    assert sorted(got) == sorted(expected)
    buffer = io.BytesIO()
    torch.save(got, buffer)
    buffer.seek(0)
    for state in (got, copy.deepcopy(got), torch.load(buffer, weights_only=True)):
        for name, tensor in state.items():
            assert_same_bits(tensor.clone(), expected[name])
    with pytest.raises(RuntimeError, match="frozen"):
        model.load_state_dict(expected)
    fresh = made(Llama, seed=1)
    fresh.load_state_dict(got)
    assert_same_bits(fresh(tokens()).detach(), model(tokens()).detach())


def test_made_in_inference_mode_and_trained_through_outside():
    model = made(Llama)
    expected, _ = gradients(copy.deepcopy(model), tokens())
    with torch.inference_mode():
        runtime = offloaded(model, 0.3)
        model(tokens())
        runtime.set_vram(budget(runtime, 0.6), reserve=0)
    got, _ = gradients(model, tokens())
    assert_same_bits(got, expected)


def test_hooks_and_attributes_stay():
    model = made(Llama)
    calls = []
    module = model.layers[0].q_proj
    module.mine = 5
    module.register_forward_hook(lambda *_: calls.append(1))
    offloaded(model)
    model(tokens())
    assert calls == [1] and model.layers[0].q_proj is module and module.mine == 5


def test_other_modules_are_left_alone():
    """What is no linear layer of its own stays as it is: attention takes the weight out of its projection."""
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(16, 2), "linear": nn.Linear(16, 16)})
    x = torch.randn(3, 1, 16)
    expected = model["attention"](x, x, x)[0].detach()
    runtime = offloaded(model)
    assert [n.name for n in runtime.plan.layers] == ["linear"]
    assert_same_bits(model["attention"](x, x, x)[0].detach(), expected)


def test_a_bias_of_another_shape_is_refused():
    weight = torch.randn(32, 64)
    packed = "0", None, *tpde.encode(None, weight)
    for bias in (torch.ones(1), torch.ones(()), torch.ones(2, 32), torch.ones(64), [1.0]):
        module = nn.Sequential(nn.Linear(64, 32))
        with pytest.raises(tpde.ArgumentError, match=r"0: expected a bias of shape \[32\]"):
            tpde.load_into(module, [(*packed, bias)], device="cpu")
        assert type(module[0]) is nn.Linear
    module, x = nn.Sequential(nn.Linear(64, 32)), torch.randn(3, 64)
    tpde.load_into(module, [(*packed, torch.ones(32))], device="cpu")
    assert torch.equal(module(x), nn.functional.linear(x, weight, torch.ones(32)))


def test_a_model_without_linear_layers():
    model = nn.Sequential(nn.Embedding(10, 4), nn.LayerNorm(4))
    expected = model(torch.arange(3)).detach()
    runtime = tpde.offload(model, vram="1MiB", device="cpu")
    assert_same_bits(model(torch.arange(3)).detach(), expected)
    assert runtime.plan.streamed_bytes == 0
    runtime.report()
