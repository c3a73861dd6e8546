"""scatter_add on CUDA devices against torch's own, on bits."""

from __future__ import annotations

import pytest
import torch

import tpde
from gpu_support import FLOATS, NEEDS_GPU
from support import assert_same_bits

pytestmark = NEEDS_GPU


def case(dtype: torch.dtype, n: int, share: float, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    base = torch.randn(n, generator=g).to(dtype)
    indices = torch.nonzero(torch.rand(n, generator=g) < share).view(-1)
    values = (torch.randn(indices.numel(), generator=g) * 0.01).to(dtype)
    return base.cuda(), indices.cuda(), values.cuda()


def oracle(base, indices, values):
    return base.flatten().clone().scatter_add_(0, indices, values).view(base.shape)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("n", [1, 2, 31, 33, 1023, 4097, 100_003])
@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_equals_torch(dtype, n, share):
    base, indices, values = case(dtype, n, share)
    expected = oracle(base, indices, values)
    before = base.clone()
    got = tpde.scatter_add(base, indices, values)
    assert_same_bits(got.cpu(), expected.cpu())
    assert_same_bits(base.cpu(), before.cpu())
    assert_same_bits(tpde.scatter_add(base.cpu(), indices.cpu(), values.cpu()), expected.cpu())
    out = torch.empty_like(base)
    assert tpde.scatter_add(base, indices, values, tpde.chunk_map(indices, 3), out=out) is out
    assert_same_bits(out.cpu(), expected.cpu())
    assert tpde.scatter_add(base, indices, values, out=base, check=True) is base
    assert_same_bits(base.cpu(), expected.cpu())
    tpde.cuda.synchronize()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_special_values(dtype):
    values = [0.0, -0.0, float("inf"), -float("inf"), 1e-7, -1e-40, 6e4, 1.0, float("nan")]
    special = torch.tensor(values, dtype=torch.float64).to(dtype).cuda()
    base, values = special.repeat_interleave(9), special.repeat(9)
    indices = torch.arange(81, device="cuda")
    # torch on the CPU: the atomic additions of its CUDA kernel flush subnormals to zero.
    got, expected = tpde.scatter_add(base, indices, values).cpu(), oracle(base.cpu(), indices.cpu(), values.cpu())
    assert torch.equal(got.isnan(), expected.isnan())
    assert_same_bits(got[~got.isnan()], expected[~expected.isnan()])


def test_views_and_shapes():
    base, indices, values = case(torch.float32, 6000, 0.1)
    room = torch.zeros(6100, device="cuda")
    view = room[3:6003].copy_(base)
    expected = oracle(base, indices, values)
    assert_same_bits(tpde.scatter_add(view, indices, values).cpu(), expected.cpu())
    assert_same_bits(tpde.scatter_add(view.view(20, 300), indices, values).cpu(), expected.view(20, 300).cpu())
    turned = base.view(20, 300).T
    assert_same_bits(
        tpde.scatter_add(turned, indices, values).cpu(), oracle(turned.contiguous(), indices, values).cpu()
    )
    with pytest.raises(tpde.ArgumentError, match="contiguous"):
        tpde.scatter_add(turned, indices, values, out=turned)


def test_unsorted_indices():
    base, indices, values = case(torch.float32, 5000, 0.1)
    order = torch.randperm(indices.numel(), generator=torch.Generator().manual_seed(1)).cuda()
    got = tpde.scatter_add(base, indices[order], values[order], assume_sorted=False, check=True)
    assert_same_bits(got.cpu(), oracle(base, indices, values).cpu())
    with pytest.raises(tpde.ArgumentError, match="strictly increasing"):
        tpde.scatter_add(base, indices[order], values[order], check=True)
    tpde.scatter_add(base, indices[order], values[order])
    with pytest.raises(tpde.ArgumentError, match="strictly increasing"):
        tpde.cuda.synchronize()
    tpde.cuda.synchronize()


@pytest.mark.parametrize("indices", [[1, 1], [3, 1], [-1, 5], [5, 1000], [5, 2**62], [-(2**63), 5]])
@pytest.mark.parametrize("in_place", [False, True])
def test_hostile_indices_write_nothing_outside(indices, in_place):
    rooms = torch.full((2, 3000), 7.0, device="cuda")
    base = rooms[0, 1000:2000]
    out = base if in_place else rooms[1, 1000:2000]
    with pytest.raises(tpde.ArgumentError, match="indices"):
        tpde.scatter_add(base, torch.tensor(indices).cuda(), torch.ones(2).cuda(), out=out, check=True)
    assert bool((rooms[:, :1000] == 7).all()) and bool((rooms[:, 2000:] == 7).all())
    tpde.cuda.synchronize()


def test_arguments_are_checked():
    base, indices, values = case(torch.float32, 1000, 0.1)
    with pytest.raises(tpde.ArgumentError, match="indices: is on cpu"):
        tpde.scatter_add(base, indices.cpu(), values)
    with pytest.raises(tpde.TpdeError, match="cuda"):
        tpde.scatter_add(base.cpu(), indices, values)
    with pytest.raises(tpde.ArgumentError, match="float64"):
        tpde.scatter_add(base, indices, values.double())
    with pytest.raises(tpde.UnsupportedError, match="I32"):
        tpde.scatter_add(base.int(), indices, values.int())
    with pytest.raises(tpde.ArgumentError, match="deltas"):
        tpde.scatter_add(base[:2], indices, values)


def test_opcheck_and_graph():
    base, indices, values = case(torch.float32, 1000, 0.1)
    torch.library.opcheck(torch.ops.tpde.scatter_add, (base, indices, values, tpde.chunk_map(indices)))
    tpde.scatter_add(base, indices, values, out=base.clone())
    tpde.scatter_add(base, indices, values)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = tpde.scatter_add(base, indices, values)
    values.mul_(2)
    graph.replay()
    assert_same_bits(out.cpu(), oracle(base, indices, values).cpu())
    tpde.cuda.synchronize()
