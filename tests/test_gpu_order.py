"""Launches wait for what is before them in their stream: inputs are written right before, and spoilt right after."""

from __future__ import annotations

import pytest
import torch

import tpde
from gpu_support import CODECS, NEEDS_GPU, changed, packed_on_gpu

pytestmark = NEEDS_GPU


@pytest.mark.parametrize("elements", [1000, 1 << 16, 1 << 22])
@pytest.mark.parametrize("codec", CODECS)
def test_waits_for_the_kernel_before(codec, elements):
    base = torch.randn(elements, generator=torch.Generator().manual_seed(0)).bfloat16()
    target = changed(base, 0.1)
    _, index_map, blob = packed_on_gpu(base, target, codec)
    base, target = base.cuda(), target.cuda()
    x, y = torch.empty_like(base), torch.empty_like(base)
    wrong = torch.zeros((), dtype=torch.int64, device="cuda")

    def count() -> None:
        wrong.add_((y.view(torch.int16) != target.view(torch.int16)).sum())

    def step() -> None:
        x.copy_(base)
        tpde.reconstruct(x, index_map, blob, out=y)
        count()
        y.copy_(base)
        tpde.reconstruct(y, index_map, blob, out=y)
        count()
        x.fill_(7)
        y.fill_(9)

    for _ in range(100):
        step()
    assert int(wrong) == 0
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for _ in range(300):
        graph.replay()
    assert int(wrong) == 0
    y.copy_(base)
    count()
    assert int(wrong) > 0  # what is counted is seen
