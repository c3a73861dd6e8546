"""Products with quantised weights on a GPU against float64."""

from __future__ import annotations

import pytest
import torch

import tpde
from gpu_support import NEEDS_GPU
from quantised import LAYOUTS, bound, error, expected, layout
from support import assert_same_bits
from tpde import _cuda_matvec

pytestmark = NEEDS_GPU

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def on_gpu(x, q, bias):
    return x.cuda(), q.to("cuda"), None if bias is None else bias.cuda()


def check(x, q, bias=None) -> torch.Tensor:
    got = tpde.quantised_linear(x, q, bias)
    exact = expected(x, q, bias)
    assert got.shape == exact.shape and got.dtype is x.dtype
    assert error(got, exact) <= bound(x, q, bias)
    for _ in range(3):
        assert_same_bits(tpde.quantised_linear(x, q, bias).cpu(), got.cpu())
    return got


@pytest.mark.parametrize("rows", [*range(1, 10), 64, 65, 300])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LAYOUTS)
def test_rows(name, dtype, rows):
    check(*on_gpu(*layout(name, 384, 1024, rows, dtype, zero=True, bias=rows % 2 == 0)))


@pytest.mark.parametrize("group", [32, 64, 128, 100, 9, 1 << 20])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("name", ["int2", "int3", "int4", "int8", "nf4"])
def test_groups(name, zero, group):
    for scale in (torch.bfloat16, torch.float16, torch.float32):
        for outs, ins in [(256, 1152), (129, 896)]:
            check(*on_gpu(*layout(name, outs, ins, 3, torch.bfloat16, group=group, zero=zero, scale=scale)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LAYOUTS)
def test_odd_sizes(name, dtype):
    for outs, ins in [(1, 8), (3, 33), (17, 100), (1, 4096), (15, 128), (65, 384), (2049, 1000), (31, 14336)]:
        for rows in (1, 5, 8):
            check(*on_gpu(*layout(name, outs, ins, rows, dtype, group=32, zero=True, bias=True)))


def test_large_zero_points():
    """Which no quantiser writes, but the format allows."""
    for dtype in DTYPES:
        for bits in (2, 3, 4, 8):
            x, q, _ = on_gpu(*layout(f"int{bits}", 64, 512, 2, dtype, zero=True))
            q.zero.random_(0, 256)
            check(x, q)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("shape", [(4096, 4096), (14336, 4096), (4096, 14336), (1024, 4096)])
def test_shapes_of_models(shape, name):
    g = torch.Generator("cuda").manual_seed(1)
    x, q, _ = on_gpu(*layout(name, *shape, 1, torch.bfloat16))
    check(x, q)
    check(torch.randn(8, shape[1], generator=g, device="cuda").bfloat16(), q)


def test_exact_sums():
    """Small integers, so that the order of sums does not matter: bit for bit what torch computes."""
    for dtype in (torch.bfloat16, torch.float16):
        x, q, _ = on_gpu(*layout("int4", 512, 2048, 8, dtype, zero=True))
        q.scale.fill_(1)
        x = torch.randint(-1, 2, x.shape, device="cuda").to(dtype)
        exact = (x.double() @ q.dequantize().double().T).to(dtype)
        assert_same_bits(tpde.quantised_linear(x, q).cpu(), exact.cpu())


def test_views():
    x, q, bias = on_gpu(*layout("int4", 96, 512, 8, torch.bfloat16, bias=True))
    want = tpde.quantised_linear(x, q, bias)
    for view in (
        x.T.contiguous().T, torch.stack([x, x], 1)[:, 1], torch.cat([x, x], 1)[:, 512:], torch.cat([x, x], 1)[:, :512],
        torch.cat([x.view(-1)[:3], x.view(-1)])[3:].view(8, 512),
    ):  # fmt: skip
        assert_same_bits(tpde.quantised_linear(view, q, bias).cpu(), want.cpu())
    assert_same_bits(
        tpde.quantised_linear(x[:1].expand(8, 512), q).cpu(), tpde.quantised_linear(x[:1], q).expand(8, 96).cpu()
    )
    assert_same_bits(tpde.quantised_linear(x.view(2, 4, 512), q, bias).cpu(), want.view(2, 4, 96).cpu())
    assert_same_bits(tpde.quantised_linear(x[3], q, bias).cpu(), want[3].cpu())
    assert tpde.quantised_linear(x[:0], q, bias).shape == (0, 96)
    assert_same_bits(tpde.quantised_linear(x, q, torch.stack([bias, bias], 1)[:, 1]).cpu(), want.cpu())


def test_rows_do_not_depend_on_each_other():
    x, q, _ = on_gpu(*layout("int4", 256, 4096, 8, torch.bfloat16))
    all_rows = tpde.quantised_linear(x, q)
    for row in range(8):
        assert_same_bits(tpde.quantised_linear(x[row : row + 1], q).cpu(), all_rows[row : row + 1].cpu())


def test_nothing_is_written_outside():
    for ins in (512, 100):  # both kernels
        x, q, _ = on_gpu(*layout("int4", 33, ins, 5, torch.bfloat16, group=32))
        rooms = torch.full((7, 33), 7.0, dtype=torch.bfloat16, device="cuda")
        core = tpde._core.gpu_core()
        described = _cuda_matvec._described(q)
        stream = torch.cuda.current_stream().cuda_stream
        core.gpu_quantised_linear(rooms[1].data_ptr(), x.data_ptr(), ins, 5, described, 33, ins, 0, stream)
        assert bool((rooms[0] == 7).all()) and bool((rooms[-1] == 7).all())
        assert_same_bits(rooms[1:-1].cpu(), tpde.quantised_linear(x, q).cpu())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LAYOUTS)
def test_dequantise(name, dtype):
    _, q, _ = on_gpu(*layout(name, 65, 333, 1, dtype, group=96, zero=True))
    expected = q.dequantize().view(-1).cpu()
    for first, count in [(0, 65 * 333), (333, 666), (65 * 333 - 5, 5)]:
        assert_same_bits(_cuda_matvec.dequantise(q, first, count).cpu(), expected[first : first + count])


def test_many_rows_go_in_pieces(monkeypatch):
    monkeypatch.setattr(_cuda_matvec, "_PIECE_BYTES", 1 << 16)
    check(*on_gpu(*layout("int4", 300, 512, 100, torch.bfloat16, bias=True)))


def test_streams_and_graphs():
    x, q, bias = on_gpu(*layout("int4", 4096, 4096, 4, torch.bfloat16, bias=True))
    want = tpde.quantised_linear(x, q, bias)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        later = x * 2
        got = tpde.quantised_linear(later, q, bias)
    stream.synchronize()
    assert_same_bits(got.cpu(), tpde.quantised_linear(x * 2, q, bias).cpu())
    graph = torch.cuda.CUDAGraph()
    still = torch.zeros_like(x)
    with torch.cuda.graph(graph):
        out = tpde.quantised_linear(still, q, bias)
    still.copy_(x)
    graph.replay()
    assert_same_bits(out.cpu(), want.cpu())


def test_compile_and_opcheck():
    x, q, bias = on_gpu(*layout("int4", 96, 512, 8, torch.bfloat16, bias=True))
    compiled = torch.compile(lambda x: tpde.quantised_linear(x, q, bias), fullgraph=True, backend="aot_eager")
    assert_same_bits(compiled(x).cpu(), tpde.quantised_linear(x, q, bias).cpu())
    parts = q.packed, q.scale, q.zero, q.code, q.kind, q.bits, q.group_size, 96
    torch.library.opcheck(torch.ops.tpde.quantised_linear, (x, *parts, bias))


def test_gradients():
    x, q, bias = on_gpu(*layout("int4", 96, 512, 8, torch.float32, bias=True))
    x.requires_grad_()
    tpde.quantised_linear(x, q, bias).sum().backward()
    torch.testing.assert_close(x.grad, torch.ones(8, 96, device="cuda") @ q.dequantize())


def test_arguments_are_checked():
    x, q, bias = on_gpu(*layout("int4", 96, 512, 8, torch.bfloat16, bias=True))
    with pytest.raises(tpde.ArgumentError, match="weight: is on cpu, expected cuda:0"):
        tpde.quantised_linear(x, q.to("cpu"))
    with pytest.raises(tpde.ArgumentError, match="bias: is on cpu"):
        tpde.quantised_linear(x, q, bias.cpu())
