"""What of the GPU benchmark can be checked without a GPU: the frames that it gives to nvCOMP."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tpde
from gpu_support import weights

BENCH = Path(__file__).parent / "bench"
sys.path.insert(0, str(BENCH))

from bench_gpu_peers import planes_of  # noqa: E402


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 1.0])
def test_frames_and_what_they_hold(share):
    zstandard = pytest.importorskip("zstandard")
    base, _ = weights(300_000)
    g = torch.Generator().manual_seed(1)
    mask = torch.rand(base.shape, generator=g) < share
    target = torch.where(mask, (base.float() * (1 + 1e-2 * torch.randn(base.shape, generator=g))).bfloat16(), base)
    index_map, blob = tpde.encode(base, target, codec="zstd")
    planes = planes_of(base, target, index_map, blob)
    assert bool(planes) == (share > 0)
    for plane in planes:
        frame = blob[plane.at : plane.at + plane.frame_bytes].numpy().tobytes()
        content = zstandard.ZstdDecompressor().decompress(frame, max_output_size=plane.plane_bytes)
        assert len(content) == plane.plane_bytes
        assert content == plane.content.numpy().tobytes()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_it_says_so():
    result = subprocess.run([sys.executable, BENCH / "bench_gpu.py"], capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "no CUDA device" in result.stderr
