"""JITCompressedLinear on CUDA devices against nn.Linear, on bits."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

import tpde
from gpu_support import CODECS, NEEDS_GPU
from support import assert_same_bits
from tpde.nn import JITCompressedLinear

pytestmark = NEEDS_GPU


def make(dtype=torch.bfloat16, bias=True, with_base=True, codec="elias", shape=(96, 128), seed=0):
    torch.manual_seed(seed)
    linear = nn.Linear(shape[1], shape[0], bias=bias, dtype=dtype, device="cuda")
    base = linear.weight.detach() * (1 + 1e-2 * torch.randn(shape, dtype=dtype, device="cuda")) if with_base else None
    return linear, JITCompressedLinear.from_linear(linear, base=base, codec=codec)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("with_base", [True, False])
@pytest.mark.parametrize("codec", CODECS)
def test_output_and_gradients_equal_linear(dtype, bias, with_base, codec):
    linear, layer = make(dtype, bias, with_base, codec)
    assert layer.index_map.is_cuda and layer.data_blob.is_cuda
    x = torch.randn(5, 128, dtype=dtype, device="cuda")
    with torch.no_grad():
        assert_same_bits(layer(x).cpu(), linear(x).cpu())
    with torch.inference_mode():
        assert_same_bits(layer(x).cpu(), linear(x).cpu())
    results = []
    for module in (linear, layer):
        module.zero_grad()
        leaf = x.clone().requires_grad_()
        out = module(leaf)
        out.square().sum().backward()
        results.append([t.cpu() for t in (out.detach(), leaf.grad, *([module.bias.grad] if bias else []))])
    assert_same_bits(results[1][0], results[0][0])
    assert_same_bits(results[1][1], results[0][1])
    tpde.cuda.synchronize()


def test_moves_between_devices():
    linear, layer = make()
    x = torch.randn(3, 128, dtype=torch.bfloat16, device="cuda")
    for _ in range(2):
        layer = layer.cpu()
        assert not layer.weight.is_cuda
        assert_same_bits(layer.weight, linear.weight.cpu())
        layer = layer.to("cuda")
        with torch.no_grad():
            assert_same_bits(layer(x).cpu(), linear(x).cpu())
    with torch.no_grad():
        assert_same_bits(copy.deepcopy(layer)(x).cpu(), linear(x).cpu())
    with pytest.raises(TypeError, match="to_linear"):
        layer.half()
    assert_same_bits(layer.to_linear().weight.cpu(), linear.weight.cpu())
    tpde.cuda.synchronize()


def test_state_dict_into_a_layer_that_was_used():
    linear, layer = make(seed=1)
    _, fresh = make(seed=2)
    x = torch.randn(3, 128, dtype=torch.bfloat16, device="cuda")
    fresh(x)
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    assert fresh.data_blob.is_cuda
    with torch.no_grad():
        assert_same_bits(fresh(x).cpu(), linear(x).cpu())
    state = {name: t.clone() for name, t in layer.state_dict().items()}
    state["data_blob"][30] ^= 4
    with pytest.raises(tpde.TpdeError):
        fresh.load_state_dict(state)
    tpde.cuda.synchronize()


def test_from_files_to_the_gpu(tmp_path):
    linear, layer = make()
    loaded = JITCompressedLinear((96, 128), *layer.save(tmp_path / "fc"), bias=linear.bias.detach(), device="cuda")
    x = torch.randn(3, 128, dtype=torch.bfloat16, device="cuda")
    with torch.no_grad():
        assert_same_bits(loaded(x).cpu(), linear(x).cpu())


def model():
    """Two layers that share nothing, and the same with stored weights."""
    pairs = [make(torch.float32, shape=(128, 128), seed=i) for i in range(2)]
    plain, compressed = (nn.Sequential(a, nn.ReLU(), b) for a, b in zip(*pairs, strict=True))
    return plain, compressed


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_without_graph_breaks(backend):
    plain, compressed = model()
    x = torch.randn(4, 128, device="cuda")
    compiled, reference = (torch.compile(m, fullgraph=True, backend=backend) for m in (compressed, plain))
    with torch.no_grad():
        assert_same_bits(compiled(x).cpu(), reference(x).cpu())
    grads = []
    for module in (compiled, reference):
        leaf = x.clone().requires_grad_()
        module(leaf).sum().backward()
        grads.append(leaf.grad.cpu())
    assert_same_bits(grads[0], grads[1])
    tpde.cuda.synchronize()


def test_graph_capture_and_replay():
    plain, compressed = model()
    x = torch.randn(4, 128, device="cuda")
    with torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                compressed(x)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = compressed(x)
        for _ in range(3):
            x.normal_()
            graph.replay()
            assert_same_bits(out.cpu(), plain(x).cpu())
    tpde.cuda.synchronize()


def test_autocast_equals_linear():
    linear, layer = make(torch.float32)
    x = torch.randn(4, 128, device="cuda")
    with torch.no_grad(), torch.autocast("cuda", dtype=torch.bfloat16):
        assert_same_bits(layer(x).cpu(), linear(x).cpu())
