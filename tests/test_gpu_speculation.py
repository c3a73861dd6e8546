"""Self-speculation on a GPU: the fused draft, its graph, and what it leaves alone."""

from __future__ import annotations

import gc

import pytest
import torch

import tpde
from gpu_support import NEEDS_GPU
from support import assert_same_bits
from tpde._residency import Residency, smallest_budget

transformers = pytest.importorskip("transformers", minversion="5.0")

from test_speculation import CONFIGS, GREEDY, made, prompt  # noqa: E402

pytestmark = NEEDS_GPU


def on_gpu(**options) -> dict[str, torch.Tensor]:
    return {name: tensor.cuda() for name, tensor in prompt(**options).items()}


def streamed(name: str, dtype: torch.dtype = torch.float32, share: float = 0.0, base: str = "int4"):
    model = made(name, dtype).cuda()
    expected = model.generate(**on_gpu(), **GREEDY).tolist()
    with torch.no_grad():
        logits = model(**on_gpu()).logits
    runtime = tpde.offload(model, base=base, device="cuda", reserve=0)
    smallest = smallest_budget(runtime.plan.layers, runtime.plan.fixed_bytes)
    all_of_it = runtime.plan.fixed_bytes + sum(n.weight_bytes for n in runtime.plan.layers)
    runtime.set_vram(smallest + int(share * (all_of_it - smallest)), reserve=0)
    return model, runtime, expected, logits


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_greedy_tokens_are_those_of_the_model(name, share):
    """In float32, where no two logits are so close that a forward over several tokens makes them change places."""
    model, runtime, expected, logits = streamed(name, share=share)
    for graph in (False, True):
        speculation = tpde.SelfSpeculation(model, graph=graph)
        for _ in range(2):
            assert speculation.generate(**on_gpu(), **GREEDY).tolist() == expected
        assert speculation.counts.accepted > 0
        assert speculation.why_no_graph == (None if graph else "graph=False")
    with torch.no_grad():
        assert_same_bits(model(**on_gpu()).logits.cpu(), logits.cpu())
    assert runtime.measured().order_changes == 0
    runtime.synchronize()


@pytest.mark.parametrize("base", ["int8", "int4", "int3", "int2"])
@pytest.mark.parametrize("name", ["llama", "qwen"])
def test_in_bfloat16(name, base):
    model, runtime, _, logits = streamed(name, torch.bfloat16, base=base)
    speculation = tpde.SelfSpeculation(model)
    output = speculation.generate(**on_gpu(), **GREEDY, return_dict_in_generate=True, output_logits=True)
    assert speculation.why_no_graph is None
    new = output.sequences[0, 9:]
    assert new.numel() == 40
    # Every token is the best of the model's own forward over the whole sequence, but for near ties.
    with torch.no_grad():
        whole = model(output.sequences).logits[0, 8:-1].float()
    best = whole.amax(-1)
    chosen = whole.gather(-1, new[:, None])[:, 0]
    assert bool((best - chosen <= 0.05 * best.abs()).all())
    if base == "int8":
        assert speculation.counts.share > 0.5
    with torch.no_grad():
        assert_same_bits(model(**on_gpu()).logits.cpu(), logits.cpu())
    runtime.synchronize()


def test_drafts_equal_those_of_the_dequantised_model():
    """Logits of the draft, few rows and many, against a resident model whose weights are the bases."""
    for dtype, tolerance in ((torch.bfloat16, 3e-2), (torch.float32, 1e-5)):
        model, runtime, *_ = streamed("llama", dtype)
        other = made("llama", dtype).cuda()
        for layer in runtime._engine().memory.layers:
            other.get_submodule(layer.name).weight.data.copy_(layer.base.dequantize())
        draft = tpde.SelfSpeculation(model).draft
        for length in (1, 5, 8, 9, 64, 65, 200):
            with torch.no_grad():
                want = other(**on_gpu(length=length)).logits.double()
            got = draft(**on_gpu(length=length)).logits.double()
            assert float((got - want).norm() / want.norm()) < tolerance


def test_a_hot_budget_change_makes_another_graph():
    model, runtime, expected, _ = streamed("llama")
    speculation = tpde.SelfSpeculation(model)
    for extra in (0, 40_000, 1 << 20, 0):
        runtime.set_vram(runtime.vram + extra, reserve=0)
        got = model.generate(**on_gpu(), **GREEDY, assistant_model=speculation.draft)
        assert got.tolist() == expected
        assert speculation.why_no_graph is None


def test_whole_weights_draft_too():
    model, runtime, expected, _ = streamed("llama", share=3.0)
    assert runtime.plan.count(Residency.WHOLE) == len(runtime.plan.layers)
    speculation = tpde.SelfSpeculation(model)
    assert speculation.generate(**on_gpu(), **GREEDY).tolist() == expected
    assert speculation.counts.share > 0.9


def test_sampling_with_a_seed():
    model, *_ = streamed("llama", torch.bfloat16)
    results = []
    for _ in range(2):
        torch.manual_seed(4)
        options = {"max_new_tokens": 30, "do_sample": True, "temperature": 0.9}
        results.append(tpde.SelfSpeculation(model).generate(**on_gpu(), **options).tolist())
    assert results[0] == results[1]


def test_memory_comes_back():
    model, *_ = streamed("llama", torch.bfloat16)
    speculation = tpde.SelfSpeculation(model)
    held = []
    for _ in range(4):
        speculation.generate(**on_gpu(), **GREEDY)
        assert speculation.why_no_graph is None
        speculation.reset()
        gc.collect()
        torch.cuda.synchronize()
        held.append(torch.cuda.memory_allocated())
    assert held[1:] == [held[1]] * 3


def test_on_another_stream():
    model, _, expected, _ = streamed("llama")
    speculation = tpde.SelfSpeculation(model)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        got = speculation.generate(**on_gpu(), **GREEDY)
    stream.synchronize()
    assert got.tolist() == expected
