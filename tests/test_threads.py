"""Several threads at once, each with its own work or all on the same."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import tpde
from support import assert_same_bits, assert_same_tensors, small_checkpoints
from tpde.nn import JITCompressedLinear

THREADS = 8


def test_encode_and_reconstruct():
    def work(seed):
        g = torch.Generator().manual_seed(seed)
        for codec in ("auto", "raw", "zstd", "elias", "prefix", "rice"):
            base = torch.randn(500, 31, generator=g)
            target = base + (torch.rand(500, 31, generator=g) < 0.1) * 0.01
            assert_same_bits(tpde.reconstruct(base, *tpde.encode(base, target, codec=codec)), target)
        return True

    with ThreadPoolExecutor(THREADS) as pool:
        assert all(pool.map(work, range(4 * THREADS)))


def test_pack_and_unpack(pair, tmp_path):
    expected = pair[1].read_bytes()

    def work(i):
        delta, out = tmp_path / f"delta{i}.safetensors", tmp_path / f"out{i}.safetensors"
        tpde.pack(*pair, delta)
        tpde.unpack(pair[0], delta, out=out)
        return out.read_bytes() == expected

    with ThreadPoolExecutor(THREADS) as pool:
        assert all(pool.map(work, range(2 * THREADS)))


def test_errors_stay_with_their_thread():
    base, target = small_checkpoints()
    delta = tpde.pack(base, target)

    def work(i):
        wrong = dict(base)
        name = ("changed.weight", "dense.weight", "kept.weight")[i % 3]
        wrong[name] = wrong[name] + 1
        with pytest.raises(tpde.BaseMismatchError, match=name):
            tpde.unpack(wrong, delta)
        assert_same_tensors(tpde.unpack(base, delta), target)
        return True

    with ThreadPoolExecutor(THREADS) as pool:
        assert all(pool.map(work, range(2 * THREADS)))


def test_one_layer_for_all():
    linear = torch.nn.Linear(64, 48)
    layer = JITCompressedLinear.from_linear(linear, base=linear.weight.detach() + 1e-3)
    x = torch.randn(3, 64)
    with torch.no_grad():
        expected = linear(x)

        def work(_):
            with torch.no_grad():
                return torch.equal(layer(x), expected)

        with ThreadPoolExecutor(THREADS) as pool:
            assert all(pool.map(work, range(100)))
