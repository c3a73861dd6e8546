"""Quantised bases on CUDA devices, through every public function, against the CPU on bits."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import tpde
from gpu_support import CODECS, NEEDS_GPU
from quantised import every_scale
from support import assert_same_bits
from tpde import quant
from tpde.nn import JITCompressedLinear

pytestmark = NEEDS_GPU

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LAYOUTS = ["2", "3 zero", "4", "4 zero", "8", "nf4", "int8 rows"]


@pytest.fixture(autouse=True)
def _no_failure_is_left():
    yield
    tpde.cuda.synchronize()


def quantised(layout: str, dtype: torch.dtype, shape: tuple[int, int], group_size: int = 64) -> quant.QuantizedTensor:
    g = torch.Generator().manual_seed(len(layout))
    if layout == "nf4":
        n = shape[0] * shape[1]
        codes = torch.randint(0, 256, (-(-n // 2),), generator=g, dtype=torch.uint8)
        scale = torch.rand(-(-n // group_size), generator=g)
        return quant.from_bitsandbytes_nf4(codes, scale, None, group_size, shape, dtype)
    if layout == "int8 rows":
        codes = torch.randint(-127, 128, shape, generator=g, dtype=torch.int8)
        return quant.from_bitsandbytes_int8(codes, torch.rand(shape[0], generator=g), dtype)
    weight = torch.randn(shape, generator=g).to(dtype)
    return tpde.quantize(weight, int(layout[0]), group_size, symmetric="zero" not in layout)


def target_of(base: quant.QuantizedTensor, share: float = 0.05) -> torch.Tensor:
    """The weight that the codes stand for, changed in this share of its elements."""
    g = torch.Generator().manual_seed(9)
    weight = base.dequantize()
    return torch.where(
        torch.rand(weight.shape, generator=g) < share, torch.randn(weight.shape, generator=g), weight
    ).to(weight.dtype)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_reconstruct(dtype, layout, codec):
    for shape, group_size in (((33, 96), 64), ((1, 9), 8), ((7, 1001), 100)):
        base = quantised(layout, dtype, shape, group_size)
        there = base.to("cuda")
        for share in (0.0, 0.05, 1.0):
            target = target_of(base, share)
            index_map, data_blob = tpde.encode(base, target, codec=codec, chunk_words=1024)
            packed = index_map.cuda(), data_blob.cuda()
            assert_same_bits(tpde.reconstruct(there, *packed, check=True).cpu(), target)
            out = torch.empty_like(target, device="cuda")
            assert tpde.reconstruct(there, *packed, out=out, verify=False) is out
            assert_same_bits(out.cpu(), target)
            assert_same_bits(tpde.reconstruct(base, index_map, data_blob), target)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_scale(dtype, bits):
    for zero in (False, True):
        base = every_scale(bits, dtype, zero)
        expected = base.dequantize()
        there = base.to("cuda")
        assert_same_bits(there.dequantize().cpu(), expected)
        for codec in ("raw", "prefix"):
            index_map, data_blob = tpde.encode(base, expected, codec=codec)
            assert_same_bits(tpde.reconstruct(there, index_map, data_blob.cuda(), check=True).cpu(), expected)


@pytest.mark.parametrize("codec", CODECS)
def test_many(codec):
    items, targets = [], []
    for layout in LAYOUTS:
        for dtype in DTYPES:
            base = quantised(layout, dtype, (40, 256))
            targets.append(target_of(base))
            index_map, data_blob = tpde.encode(base, targets[-1], codec=codec)
            items.append((base.to("cuda"), index_map, data_blob.cuda()))
            plain, same = items[-1][0].dequantize(), (index_map, items[-1][2])
            items.append((plain, *same))
            targets.append(targets[-1])
    for got, target in zip(tpde.cuda.reconstruct_many(items, check=True), targets, strict=True):
        assert_same_bits(got.cpu(), target)


def test_wrong_bases_and_places():
    base = quantised("4", torch.bfloat16, (32, 64))
    target = target_of(base)
    index_map, data_blob = tpde.encode(base, target, codec="raw")
    there, blob = base.to("cuda"), data_blob.cuda()
    with pytest.raises(tpde.ArgumentError, match="base: is on cpu"):
        tpde.reconstruct(base, index_map, blob)
    with pytest.raises(tpde.ArgumentError, match="data_blob: is on cpu"):
        tpde.reconstruct(there, index_map, data_blob)
    with pytest.raises(tpde.BaseMismatchError):
        tpde.reconstruct(quantised("2", torch.bfloat16, (32, 64)).to("cuda"), index_map, blob, check=True)
    index_map, data_blob = tpde.encode(base, target, codec="raw", residual="add")
    with pytest.raises(tpde.UnsupportedError, match="quantised base"):
        tpde.reconstruct(there, index_map, data_blob.cuda())
    assert_same_bits(tpde.reconstruct(base, index_map, data_blob), target)


def test_graph_and_streams():
    base = quantised("nf4", torch.bfloat16, (64, 256))
    target = target_of(base)
    index_map, data_blob = tpde.encode(base, target, codec="elias")
    there, blob = base.to("cuda"), data_blob.cuda()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        out = tpde.reconstruct(there, index_map, blob)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tpde.reconstruct(there, index_map, blob, out=out)
    for _ in range(3):
        out.zero_()
        graph.replay()
        assert_same_bits(out.cpu(), target)


def test_opcheck():
    for layout in ("4 zero", "nf4"):
        base = quantised(layout, torch.bfloat16, (16, 64))
        target = target_of(base)
        index_map, data_blob = tpde.encode(base, target, codec="elias")
        q = base.to("cuda")
        pieces = (q.packed, q.scale, q.zero, q.code, q.kind, q.bits, q.group_size)
        arguments = (*pieces, index_map.cuda(), data_blob.cuda(), [16, 64], torch.bfloat16)
        torch.library.opcheck(torch.ops.tpde.reconstruct_quantized, arguments)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layer(layout, tmp_path):
    base = quantised(layout, torch.bfloat16, (96, 128))
    linear = nn.Linear(128, 96, dtype=torch.bfloat16, device="cuda")
    linear.weight.data.copy_(target_of(base))
    layer = JITCompressedLinear.from_linear(linear, base=base, codec="elias")
    assert layer.base_packed.is_cuda and layer.quantized_base.device.type == "cuda"
    x = torch.randn(5, 128, dtype=torch.bfloat16, device="cuda")
    fresh = JITCompressedLinear((96, 128), *layer.save(tmp_path / "fc"), bias=linear.bias.detach().cpu(), device="cuda")
    for twin in (layer, copy.deepcopy(layer), fresh, layer.cpu().cuda()):
        leaf, reference = x.clone().requires_grad_(), x.clone().requires_grad_()
        out, expected = twin(leaf), linear(reference)
        assert_same_bits(out.cpu(), expected.cpu())
        out.sum().backward()
        expected.sum().backward()
        assert_same_bits(leaf.grad.cpu(), reference.grad.cpu())
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert_same_bits(compiled(x).cpu(), linear(x).cpu())
    torch._dynamo.reset()


def test_no_dequantised_copy():
    """What a rebuild allocates is its result, and nothing of the size of a weight besides."""
    base = quantised("4", torch.bfloat16, (1024, 4096))
    target = target_of(base, 0.02)
    index_map, data_blob = tpde.encode(base, target, codec="raw")
    there, blob = base.to("cuda"), data_blob.cuda()
    out = tpde.reconstruct(there, index_map, blob, check=True)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    tpde.reconstruct(there, index_map, blob, out=out)
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before < 1 << 20
