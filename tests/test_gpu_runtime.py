"""Streamed models on a GPU against resident ones, on bits; budgets, streams, failures and memory."""

from __future__ import annotations

import copy
import gc
import threading

import pytest
import torch
from torch import nn

import tpde
from gpu_support import NEEDS_GPU
from support import assert_same_bits
from tiny_models import GPT2, Llama, made, tokens
from tpde._residency import Residency, resident_bytes, smallest_budget

pytestmark = NEEDS_GPU
KINDS = pytest.mark.parametrize("kind", [Llama, GPT2])
LARGE = {"blocks": 6, "hidden": 1024, "vocabulary": 4096}


@pytest.fixture(autouse=True)
def warm():
    """Has the memory taken that cuBLAS keeps for itself, so that it is not taken for the model's."""
    for dtype in (torch.bfloat16, torch.float32):
        some = torch.ones(64, 64, dtype=dtype, device="cuda")
        torch.addmm(some[0], some, some @ some)
    del some
    yield
    gc.collect()


def offloaded(model, share=0.0, reserve=0, **options):
    """share: of the budget between the smallest and what holds everything."""
    runtime = tpde.offload(model, reserve=reserve, **{"codec": "auto", **options})
    runtime.set_vram(budget(runtime, share, reserve), reserve=reserve)
    return runtime


def budget(runtime, share, reserve=0):
    plan = runtime.plan
    smallest = smallest_budget(plan.layers, plan.fixed_bytes)
    whole = plan.fixed_bytes + sum(n.weight_bytes + 512 for n in plan.layers)
    return smallest + int(share * (whole - smallest)) + reserve


def allocated() -> int:
    gc.collect()
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated()


@KINDS
@pytest.mark.parametrize("base", ["int4", "int8", "none"])
@pytest.mark.parametrize("share", [0.0, 0.4, 0.9, 1.0])
def test_logits_are_those_of_the_resident_model(kind, base, share):
    model = made(kind).cuda()
    inputs = [tokens(1).cuda(), tokens(8).cuda(), tokens(1, 1).cuda()]
    with torch.no_grad():
        expected = [model(ids).cpu() for ids in inputs]
    runtime = offloaded(model, share, base=base)
    for context in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with context():
            for ids, logits in zip(inputs, expected, strict=True):
                assert_same_bits(model(ids).detach().cpu(), logits)
    runtime.synchronize()
    plan, measured = runtime.plan, runtime.measured()
    assert measured.copied_bytes == plan.streamed_bytes
    fits = plan.fixed_bytes + sum(resident_bytes(n, Residency.WHOLE) for n in plan.layers) <= plan.budget
    assert fits == (plan.count(Residency.WHOLE) == len(plan.layers)) and (fits or share < 1.0)


def test_embeddings_are_read_where_they_are():
    model = made(Llama).cuda()
    offloaded(model)
    weight = model.embed_tokens.weight
    assert weight.is_cuda, "page-locked memory is not seen by the GPU: rows are looked up by the host"
    before = torch.cuda.memory_allocated()
    with torch.no_grad():
        out = model.embed_tokens(tokens().cuda())
    assert torch.cuda.memory_allocated() - before <= 2048
    assert_same_bits(out.cpu(), weight.cpu()[tokens()])


def test_pageable_memory_serves_too():
    model = made(Llama).cuda()
    ids = tokens(2).cuda()
    expected = model(ids).detach().cpu()
    offloaded(model, 0.2, pin=False)
    assert not model.embed_tokens.weight.is_cuda
    for _ in range(2):
        assert_same_bits(model(ids).detach().cpu(), expected)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_peak_memory_is_within_the_budget(share):
    base = allocated()
    model = made(Llama, **LARGE)
    reserve = 64 << 20
    runtime = tpde.offload(model, vram="8GiB", reserve=reserve)
    ids = tokens(2, 16, 4096).cuda()
    with torch.no_grad():
        expected = model(ids).cpu()
        for one in (share, 0.5, share):
            runtime.set_vram(budget(runtime, one, reserve), reserve=reserve)
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            for _ in range(3):
                assert_same_bits(model(ids).cpu(), expected)
            assert torch.cuda.max_memory_allocated() - base <= runtime.vram
        held = torch.cuda.memory_allocated() - base - 512  # of ids
        # What the plan has room for without holding it: the unused ends of blocks of torch's allocator.
        assert 0.95 * runtime.plan.peak_bytes - (1 << 20) <= held <= runtime.plan.peak_bytes
        assert share == 1.0 or held >= 0.95 * runtime.plan.budget - (2 << 20)


def test_peak_memory_while_the_budget_grows():
    base = allocated()
    model = made(Llama, **LARGE)
    runtime = offloaded(model)
    ids = tokens(2, 16, 4096).cuda()
    for share in (0.3, 0.6, 1.0, 0.2, 0.9):
        with torch.no_grad():
            model(ids)  # ring and buffers are in use on two streams until now
        torch.cuda.synchronize()
        before = runtime.vram
        torch.cuda.reset_peak_memory_stats()
        runtime.set_vram(budget(runtime, share), reserve=0)
        assert torch.cuda.max_memory_allocated() - base - 512 <= max(before, runtime.vram)
        assert torch.cuda.memory_allocated() - base - 512 <= runtime.vram


def test_memory_comes_back():
    model = made(Llama, **LARGE)
    before = allocated()
    runtime = offloaded(model, 0.4)
    with torch.no_grad():
        for _ in range(2):
            model(tokens(1, 7, 4096).cuda())
        del model
    assert allocated() <= before + 4096
    with pytest.raises(tpde.HandleError):
        runtime.report()


def test_nothing_grows():
    model = made(Llama, **LARGE)
    offloaded(model, 0.2)
    ids = tokens(1, 7, 4096).cuda()
    with torch.no_grad():
        model(ids)
        sizes = set()
        for _ in range(10):
            model(ids)
            sizes.add(allocated())
    assert len(sizes) == 1


def test_the_host_waits_for_nothing():
    model = made(Llama, **LARGE)
    offloaded(model, 0.2)
    ids = tokens(1, 7, 4096).cuda()
    with torch.no_grad():
        for _ in range(2):
            model(ids)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            out = model(ids)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert bool(out.isfinite().all())


def test_copies_run_beside_everything_else():
    """The copy engine is busy nearly all the time of a pass that copies limit, and launches run during copies.

    Layers are as large as those of an 8B model: with smaller ones the host, which queues all of it, limits a pass.
    """
    model = made(Llama, blocks=3, hidden=4096, vocabulary=4096)
    runtime = offloaded(model, 0.0)
    ids = tokens(1, 1, 4096).cuda()
    runtime.trace()
    shares = []  # of a pass: how long the copy engine is busy; of launches, how long during copies
    for _ in range(3):  # others may keep the host from queueing a pass in time
        with torch.no_grad():
            for _ in range(5):
                model(ids)
        print(f"\n{runtime.report()}\n{runtime.measured()}")
        spans = runtime.spans()
        copies = [(begin, end) for kind, begin, end in spans if kind == "copy"]
        launches = [(begin, end) for kind, begin, end in spans if kind == "decode"]
        together = sum(
            max(0.0, min(end, end_copy) - max(begin, begin_copy))
            for begin, end in launches
            for begin_copy, end_copy in copies
        )
        pass_time = max(end for _, end in copies) - min(begin for begin, _ in copies)
        busy = sum(end - begin for begin, end in copies) / pass_time
        shares.append((busy, together / sum(end - begin for begin, end in launches)))
    busy, beside = max(shares)
    assert busy > 0.9, shares
    assert beside > 0.5, shares


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_side_streams(share):
    model = made(Llama, **LARGE).cuda()
    ids = tokens(2, 16, 4096).cuda()
    with torch.no_grad():
        expected = model(ids).cpu()
        offloaded(model, share)
        streams = [torch.cuda.Stream() for _ in range(3)]
        for _ in range(4):
            x = model.embed_tokens(ids)
            before = torch.cuda.current_stream()
            for number, layer in enumerate(model.layers):
                stream = streams[number % 3]
                stream.wait_stream(before)
                with torch.cuda.stream(stream):
                    x = layer(x)
                x.record_stream(stream)
                before = stream
            torch.cuda.current_stream().wait_stream(before)
            assert_same_bits(model.lm_head(model.norm(x)).cpu(), expected)


def test_passes_on_other_streams_and_threads():
    model = made(Llama, **LARGE).cuda()
    inputs = [tokens(1, 9, 4096, seed=seed).cuda() for seed in range(3)]
    with torch.no_grad():
        expected = [model(ids).cpu() for ids in inputs]
    offloaded(model, 0.3)
    wrong = []

    def work(number):
        with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(5):
                if not torch.equal(model(inputs[number]).cpu().view(torch.int16), expected[number].view(torch.int16)):
                    wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_without_graph_breaks(backend):
    model = made(Llama, torch.float32).cuda()
    ids = tokens(2).cuda()
    torch._dynamo.reset()
    with torch.no_grad():
        expected = torch.compile(copy.deepcopy(model), fullgraph=True, backend=backend)(ids).cpu()
        runtime = offloaded(model, 0.2)
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend=backend)
        for _ in range(3):
            got = compiled(ids).cpu()
            if backend == "aot_eager":
                assert_same_bits(got, expected)
            else:  # what is fused around a weight may differ
                torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        runtime.set_vram(budget(runtime, 0.8), reserve=0)
        assert_same_bits(compiled(ids).cpu(), got)


@KINDS
@pytest.mark.parametrize("base", ["int4", "none"])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_captured_passes(kind, base, share):
    model = made(kind, **LARGE).cuda()
    inputs = [tokens(2, 16, 4096).cuda(), tokens(2, 16, 4096).flip(1).cuda()]
    with torch.no_grad():
        expected = [{rows: model(ids[:rows]).cpu() for rows in (1, 2)} for ids in inputs]
        runtime = offloaded(model, share, base=base)
        model(inputs[0])
        graphs = []
        for rows in (2, 1):
            ids = torch.zeros_like(inputs[0][:rows])
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                out = model(ids)
            graphs.append((graph, ids, out))
        got = []
        for turn in range(4):  # nothing waits between graphs and passes that are queued one by one
            for (graph, ids, out), rows in zip(graphs, (2, 1), strict=True):
                which = (turn + rows) % 2
                ids.copy_(inputs[which][:rows])
                graph.replay()
                got.append((which, rows, out.clone()))
                if turn % 2:
                    got.append((1 - which, 2, model(inputs[1 - which])))
                    got.append((which, 2, model(inputs[which])))
        for which, rows, logits in got:
            assert_same_bits(logits.cpu(), expected[which][rows])
        runtime.synchronize()
        runtime.set_vram(budget(runtime, 0.6), reserve=0)
        for ids, logits in zip(inputs, expected, strict=True):
            assert_same_bits(model(ids).cpu(), logits[2])


def test_what_cannot_be_captured():
    model = made(Llama).cuda()
    ids = tokens(2).cuda()
    with torch.no_grad():
        expected = model(ids).cpu()
        offloaded(model)
        model(ids)
        with pytest.raises(tpde.UnsupportedError, match="whole model"), torch.cuda.graph(torch.cuda.CUDAGraph()):
            model.layers[0].q_proj(torch.zeros(1, 64, dtype=torch.bfloat16, device="cuda"))
        assert_same_bits(model(ids).cpu(), expected)


def test_gradients():
    model = made(Llama).cuda()
    reference = copy.deepcopy(model)
    offloaded(model)
    x = torch.randn(2, 5, 64, dtype=torch.bfloat16, device="cuda")
    for _ in range(3):
        results = []
        for one in (reference, model):
            leaf = x.clone().requires_grad_()
            hidden = leaf
            for layer in one.layers:
                hidden = torch.utils.checkpoint.checkpoint(layer, hidden, use_reentrant=False)
            one.lm_head(hidden).float().square().sum().backward()
            results.append(leaf.grad.cpu())
        assert_same_bits(results[1], results[0])


def test_an_exception_in_the_middle_of_a_pass():
    model = made(Llama, **LARGE).cuda()
    ids = tokens(2, 16, 4096).cuda()
    with torch.no_grad():
        expected = model(ids).cpu()
        offloaded(model)

        def fail(module, args):
            raise RuntimeError("in the middle")

        for at in (model.layers[1].o_proj, model.layers[4], model.norm):
            handle = at.register_forward_pre_hook(fail)
            with pytest.raises(RuntimeError, match="middle"):
                model(ids)
            handle.remove()
            assert_same_bits(model(ids).cpu(), expected)


def test_a_hot_change_of_the_budget():
    model = made(Llama, **LARGE).cuda()
    ids = tokens(2, 16, 4096).cuda()
    with torch.no_grad():
        expected = model(ids).cpu()
        runtime = offloaded(model)
        for share in (1.0, 0.0, 0.5, 0.9, 0.1):
            runtime.set_vram(budget(runtime, share), reserve=0)
            for _ in range(2):
                out = model(ids)  # queued while the next change may begin
            assert_same_bits(out.cpu(), expected)


def test_damage_is_reported():
    model = made(Llama)
    runtime = offloaded(model)
    number = runtime.plan.residency.index(Residency.STREAMED)
    memory = runtime._engine().memory
    layer = memory.layers[number]
    memory.host_record(number)[layer.blob_at : layer.record_bytes].fill_(0xFF)
    with torch.no_grad():
        for _ in range(2):
            model(tokens().cuda())
    with pytest.raises(tpde.TpdeError, match=layer.name):
        tpde.cuda.synchronize()
    runtime.synchronize()


def test_graphs_take_layers_that_are_whole():
    model = made(Llama).cuda()
    ids = tokens(1).cuda()
    with torch.no_grad():
        expected = model(ids).cpu()
        runtime = offloaded(model, 0.0)
        side = torch.cuda.Stream()
        with (
            pytest.raises(tpde.UnsupportedError, match="CUDA graph"),
            torch.cuda.graph(torch.cuda.CUDAGraph(), stream=side),
        ):
            model.layers[0](model.embed_tokens(ids))
        torch.cuda.synchronize()
        runtime.set_vram(budget(runtime, 1.0), reserve=0)
        for _ in range(2):
            model(ids)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = model(ids)
        graph.replay()
        assert_same_bits(out.cpu(), expected)


def test_a_model_that_was_on_the_host():
    model = made(GPT2)
    expected = copy.deepcopy(model).cuda()(tokens().cuda()).detach().cpu()
    runtime = offloaded(model, 0.2)
    assert all(p.is_cuda for p in model.parameters())
    assert_same_bits(model(tokens().cuda()).detach().cpu(), expected)
    assert "page-locked" in runtime.report()
    runtime.unload("cuda")
    assert type(model.lm_head) is nn.Linear and model.lm_head.weight is model.wte.weight
    assert_same_bits(model(tokens().cuda()).detach().cpu(), expected)
