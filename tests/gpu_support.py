"""What the tests on a GPU share."""

from __future__ import annotations

import json

import pytest
import torch

import tpde
from support import random_bits
from tpde._core import gpu_core

NEEDS_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

# zstd takes nvCOMP, which not every machine with a GPU has.
CODECS = ["elias", "raw", "prefix", "rice"]
if torch.cuda.is_available() and json.loads(gpu_core().device_info())["nvcomp"]["found"]:
    CODECS.append("zstd")
SMALL_FLOATS = [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
_NAMES = """bool uint8 int8 uint16 int16 uint32 int32 uint64 int64 float16 bfloat16 float32 float64 complex64
    float8_e4m3fn float8_e5m2 float8_e8m0fnu float8_e4m3fnuz float8_e5m2fnuz float4_e2m1fn_x2"""
DTYPES = [getattr(torch, name) for name in _NAMES.split() if hasattr(torch, name)]


def changed(base: torch.Tensor, share: float, seed: int = 1) -> torch.Tensor:
    """A copy of base in which about this share of the elements has other bits."""
    other = random_bits(base.dtype, tuple(base.shape), seed)
    mask = torch.rand(base.shape, generator=torch.Generator().manual_seed(seed)) < share
    if base.dtype is torch.bool:
        return torch.where(mask, ~base, base)
    size = base.dtype.itemsize
    octets = [t.contiguous().view(torch.uint8).view(*base.shape, size) for t in (other, base)]
    return torch.where(mask.unsqueeze(-1), *octets).reshape(*base.shape[:-1], -1).view(base.dtype).view(base.shape)


def packed_on_gpu(
    base: torch.Tensor | None, target: torch.Tensor, codec: str = "elias", **options: object
) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """(base, index_map, data_blob) on the GPU."""
    index_map, data_blob = tpde.encode(base, target, codec=codec, **options)
    return None if base is None else base.cuda(), index_map.cuda(), data_blob.cuda()


def weights(n: int = 1 << 16, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A base and a target that look like two steps of a training."""
    g = torch.Generator().manual_seed(seed)
    base = torch.randn(n, generator=g)
    target = base + 1e-3 * torch.randn(n, generator=g) * (torch.rand(n, generator=g) < 0.1)
    return base.to(dtype), target.to(dtype)
