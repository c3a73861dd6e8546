"""scatter_add against torch's own, on bits."""

from __future__ import annotations

import pytest
import torch

import tpde
from support import assert_same_bits

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def case(dtype: torch.dtype, shape=(61, 47), share=0.1, seed=0):
    g = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=g).to(dtype)
    indices = torch.nonzero(torch.rand(base.numel(), generator=g) < share).view(-1)
    values = (torch.randn(indices.numel(), generator=g) * 0.01).to(dtype)
    return base, indices, values


def oracle(base, indices, values):
    return base.flatten().clone().scatter_add_(0, indices, values).view(base.shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("chunks", [None, 1, 3, 64])
def test_equals_torch(dtype, chunks):
    base, indices, values = case(dtype)
    chunk_map = None if chunks is None else tpde.chunk_map(indices, chunks)
    before = base.clone()
    assert_same_bits(tpde.scatter_add(base, indices, values, chunk_map), oracle(base, indices, values))
    assert_same_bits(base, before)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64], ids=str)
def test_integers_wrap_like_torch(dtype):
    base = torch.arange(200).to(dtype)
    indices = torch.arange(0, 200, 3)
    values = (torch.arange(67) * 987654321).to(dtype)
    assert_same_bits(tpde.scatter_add(base, indices, values), oracle(base, indices, values))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_special_values_equal_torch(dtype):
    """Bits, but for NaN payloads: torch's vectorised loops and its scalar ones give different ones."""
    values = [0.0, -0.0, float("inf"), -float("inf"), 1e-7, -1e-40, 6e4, 1.0]
    special = torch.tensor(values, dtype=torch.float64).to(dtype)
    base = special.repeat_interleave(8)
    values = special.repeat(8)
    indices = torch.arange(64)
    got, expected = tpde.scatter_add(base, indices, values), oracle(base, indices, values)
    assert torch.equal(got.isnan(), expected.isnan())
    assert_same_bits(got[~got.isnan()], expected[~expected.isnan()])


def test_unsorted_indices_and_in_place():
    base, indices, values = case(torch.float32)
    order = torch.randperm(indices.numel(), generator=torch.Generator().manual_seed(1))
    expected = oracle(base, indices, values)
    assert_same_bits(tpde.scatter_add(base, indices[order], values[order]), expected)
    out = torch.empty_like(base)
    assert tpde.scatter_add(base, indices, values, out=out) is out
    assert_same_bits(out, expected)
    assert tpde.scatter_add(base, indices, values, tpde.chunk_map(indices, 5), out=base) is base
    assert_same_bits(base, expected)


def test_nothing_to_add():
    base = torch.randn(10)
    none = torch.empty(0, dtype=torch.int64)
    assert_same_bits(tpde.scatter_add(base, none, torch.empty(0)), base)
    assert_same_bits(tpde.scatter_add(torch.empty(0), none, torch.empty(0)), torch.empty(0))


def test_chunk_map():
    assert tpde.chunk_map(10, 4).tolist() == [0, 2, 5, 7, 10]
    assert tpde.chunk_map(0).tolist() == [0] * 65
    assert tpde.chunk_map(torch.arange(3), 5).tolist() == [0, 0, 1, 1, 2, 3]
    with pytest.raises(tpde.ArgumentError, match="n_chunks"):
        tpde.chunk_map(3, 0)


@pytest.mark.parametrize(
    ("indices", "values", "chunk_map", "message"),
    [
        ([1, 1], [1.0, 2.0], None, "twice"),
        ([3, 1, 3], [1.0, 2.0, 3.0], None, "twice"),
        ([-1], [1.0], None, "-1"),
        ([10], [1.0], None, "10"),
        ([1], [1.0, 2.0], None, "values"),
        ([1, 2], [1.0, 2.0], [0, 1], "chunk"),
        ([1, 2], [1.0, 2.0], [1, 2], "chunk"),
        ([1, 2], [1.0, 2.0], [0, 2, 1, 2], "chunk"),
        ([1, 2], [1.0, 2.0], [0], "chunk_map"),
    ],
)
def test_bad_input_writes_nothing(indices, values, chunk_map, message):
    base = torch.zeros(10)
    chunk_map = None if chunk_map is None else torch.tensor(chunk_map)
    with pytest.raises(tpde.ArgumentError, match=message):
        tpde.scatter_add(base, torch.tensor(indices), torch.tensor(values), chunk_map, out=base)
    assert_same_bits(base, torch.zeros(10))


def test_dtypes_are_checked():
    base = torch.zeros(10)
    with pytest.raises(tpde.ArgumentError, match="int64"):
        tpde.scatter_add(base, torch.tensor([1], dtype=torch.int32), torch.ones(1))
    with pytest.raises(tpde.ArgumentError, match="float64"):
        tpde.scatter_add(base, torch.tensor([1]), torch.ones(1).double())
    with pytest.raises(tpde.UnsupportedError, match="complex128"):
        tpde.scatter_add(base.to(torch.complex128), torch.tensor([1]), torch.ones(1).to(torch.complex128))
