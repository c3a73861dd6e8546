"""The torch.library operators."""

from __future__ import annotations

import pytest
import torch

import tpde
import tpde.nn  # registers the operators
from support import assert_same_bits
from tpde import _ops


@pytest.fixture(scope="module")
def packed():
    base = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    target = base.clone()
    target[3] += 1
    return base, target, *tpde.encode(base, target)


def test_opcheck_reconstruct(packed):
    base, target, index_map, data_blob = packed
    torch.library.opcheck(torch.ops.tpde.reconstruct, (base, index_map, data_blob, [16, 8], torch.float32, True))
    torch.library.opcheck(torch.ops.tpde.reconstruct, (base, index_map, data_blob, [16, 8], torch.float32, False))
    index_map, data_blob = tpde.encode(None, target)
    torch.library.opcheck(torch.ops.tpde.reconstruct, (None, index_map, data_blob, [16, 8], torch.float32))


def test_opcheck_scatter_add():
    args = torch.randn(10), torch.tensor([1, 5]), torch.randn(2), torch.tensor([0, 1, 2])
    torch.library.opcheck(torch.ops.tpde.scatter_add, args)


def test_shape_and_dtype_must_fit_the_index(packed):
    base, _, index_map, data_blob = packed
    with pytest.raises(tpde.ArgumentError, match="shape"):
        _ops.reconstruct(base, index_map, data_blob, [8, 16], torch.float32, True)
    with pytest.raises(tpde.ArgumentError, match="float64"):
        _ops.reconstruct(base, index_map, data_blob, [16, 8], torch.float64, True)


def test_compile(packed):
    base, target, index_map, data_blob = packed

    def f(base, index_map, data_blob):
        return torch.ops.tpde.reconstruct(base, index_map, data_blob, [16, 8], torch.float32, False) * 2

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    assert_same_bits(compiled(base, index_map, data_blob), target * 2)


def test_export(packed):
    base, target, index_map, data_blob = packed

    class Rebuild(torch.nn.Module):
        def forward(self, base, index_map, data_blob):
            return torch.ops.tpde.reconstruct(base, index_map, data_blob, [16, 8], torch.float32)

    program = torch.export.export(Rebuild(), (base, index_map, data_blob))
    assert_same_bits(program.module()(base, index_map, data_blob), target)
