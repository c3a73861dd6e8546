"""Sizes that must be reached: the prototype's workloads and the real deltas in tests/data."""

from __future__ import annotations

import pytest
import torch

import tpde
from support import assert_same_bits, bits

# Least ratio of the whole delta file, manifest and header included.
REAL = {
    "rl": ("step20", "step21", 85),
    "sft_bf16": ("base", "lr1e-5_step300", 2.2),
    "sft_fp32": ("base", "lr1e-5_step300", 1.37),
    "pretrain_fp32": ("step1000", "step1050", 1.3),
}


# About the standard deviation of GPT-2's trained c_attn weights. It decides how many bits a change of 0.01 has.
C_ATTN_STD = 0.14


def prototype_workload(rows: int, columns: int, std: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The prototype's benchmark: weights of randn * std in fp32, a tenth of them changed by randn * 0.01."""
    g = torch.Generator().manual_seed(0)
    base = std * torch.randn(rows, columns, generator=g)
    changed = torch.rand(rows, columns, generator=g) < 0.1
    return base, torch.where(changed, base + 0.01 * torch.randn(rows, columns, generator=g), base)


def ratio(base, target, **options):
    index_map, data_blob = tpde.encode(base, target, **options)
    assert_same_bits(tpde.reconstruct(base, index_map, data_blob), target)
    return bits(target).numel() / (index_map.numel() + data_blob.numel())


@pytest.mark.parametrize(
    ("shape", "std", "least"), [((768, 2304), C_ATTN_STD, 10.8), ((768, 2304), 1.0, 10.8), ((1024, 4096), 1.0, 12.1)]
)
def test_prototype_workloads(shape, std, least):
    assert ratio(*prototype_workload(*shape, std)) > least


def test_prototype_workload_in_64_chunks():
    base, target = prototype_workload(768, 2304, C_ATTN_STD)
    index_map, data_blob = tpde.encode(base, target, num_chunks=64)
    assert tpde.read_index(index_map).chunks == 64
    assert_same_bits(tpde.reconstruct(base, index_map, data_blob), target)
    assert ratio(base, target, num_chunks=64) > 10.5


def test_layer_norm_bias():
    """A tensor of 3 kB, where a header counts."""
    assert ratio(*prototype_workload(1, 768, C_ATTN_STD)) > 5


@pytest.mark.parametrize("name", REAL)
def test_real_deltas(data, tmp_path, name):
    base, target, least = REAL[name]
    delta = tmp_path / "delta.safetensors"
    report = tpde.pack(data / name / f"{base}.safetensors", data / name / f"{target}.safetensors", delta)
    assert report.totals.file_bytes == delta.stat().st_size
    assert report.totals.ratio > least


def test_auto_is_never_worse_than_a_forced_codec(data):
    from safetensors.torch import load_file

    for name, (base, target, _) in REAL.items():
        (old,) = load_file(data / name / f"{base}.safetensors").values()
        (new,) = load_file(data / name / f"{target}.safetensors").values()
        best = max(ratio(old, new, codec=codec) for codec in ("raw", "zstd", "elias", "prefix", "rice"))
        assert ratio(old, new) > 0.99 * best


def test_incompressible_tensors_grow_by_a_header_only():
    g = torch.Generator().manual_seed(0)
    base, target = (torch.randint(-(2**31), 2**31, (100_000,), generator=g, dtype=torch.int64).int() for _ in range(2))
    assert ratio(base, target) > 0.99
