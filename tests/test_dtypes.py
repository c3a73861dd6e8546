"""dtypes and their numbers, shapes of packed types, and what is refused."""

from __future__ import annotations

import pytest
import torch

import tpde
from support import assert_same_bits, random_bits
from tpde import _dtypes, _memory


def test_table_agrees_with_safetensors():
    from safetensors.torch import _TYPES

    for name, dtype in _TYPES.items():
        if dtype is not None:
            assert _dtypes.torch_of_name(name) == dtype
            assert _dtypes.name_of(_dtypes.number_of(dtype)) == name


@pytest.mark.parametrize("dtype", _dtypes.supported(), ids=str)
@pytest.mark.parametrize("codec", ["auto", "raw", "zstd", "elias", "prefix", "rice"])
def test_every_dtype(dtype, codec):
    base = random_bits(dtype, (7, 30))
    target = base.clone()
    other = random_bits(dtype, (7, 30), seed=1)
    target.view(torch.uint8)[::3] = other.view(torch.uint8)[::3]
    index_map, data_blob = tpde.encode(base, target, codec=codec)
    assert_same_bits(tpde.reconstruct(base, index_map, data_blob), target)
    index_map, data_blob = tpde.encode(None, target, codec=codec)
    assert_same_bits(tpde.reconstruct(None, index_map, data_blob), target)


@pytest.mark.parametrize("dtype", [torch.complex128, torch.complex32, torch.bits8])
def test_dtypes_that_safetensors_lacks(dtype):
    target = torch.empty(4, dtype=dtype)
    with pytest.raises(tpde.UnsupportedError, match=str(dtype).removeprefix("torch.")):
        tpde.encode(None, target)


def test_packed_floats_count_twice():
    pairs = torch.zeros(3, 4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    assert _dtypes.element_shape(pairs) == [3, 8]
    assert _dtypes.torch_shape(_dtypes.number_of(pairs.dtype), [3, 8]) == [3, 4]
    with pytest.raises(tpde.UnsupportedError, match="odd"):
        _dtypes.torch_shape(_dtypes.number_of(pairs.dtype), [3, 7])


def test_what_is_no_plain_memory_is_refused():
    with pytest.raises(tpde.ArgumentError, match="meta"):
        _memory.as_tensor(torch.empty(3, device="meta"), "x")
    with pytest.raises(tpde.UnsupportedError, match="sparse"):
        _memory.as_tensor(torch.eye(3).to_sparse(), "x")
    with pytest.raises(tpde.UnsupportedError, match="quantised"):
        _memory.as_tensor(torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "x")
    with pytest.raises(tpde.ArgumentError, match="list"):
        _memory.as_tensor([1, 2], "x")


def test_lazy_conjugation_is_carried_out():
    z = torch.tensor([1 + 2j, 3 - 4j], dtype=torch.complex64)
    index_map, data_blob = tpde.encode(None, z.conj())
    assert_same_bits(
        tpde.reconstruct(None, index_map, data_blob), torch.tensor([1 - 2j, 3 + 4j], dtype=torch.complex64)
    )


def test_numpy_arrays_are_welcome():
    import numpy as np

    base = np.arange(60, dtype=np.float32).reshape(6, 10)
    target = base.copy()
    target[2, 3] = np.nan
    for view in (target, target[::-1], target.T):
        index_map, data_blob = tpde.encode(np.ascontiguousarray(view) * 0, view)
        out = tpde.reconstruct(torch.from_numpy(np.ascontiguousarray(view) * 0), index_map, data_blob)
        assert out.numpy().tobytes() == np.ascontiguousarray(view).tobytes()
    frozen = target.copy()
    frozen.flags.writeable = False
    tpde.encode(None, frozen)
