"""Damaged and hostile input on CUDA devices: reported, never a crash, nothing written outside."""

from __future__ import annotations

import pytest
import torch

import tpde
from gpu_support import CODECS, NEEDS_GPU, packed_on_gpu, weights
from support import assert_same_bits

pytestmark = NEEDS_GPU


def flipped(data: torch.Tensor, byte: int, bit: int) -> torch.Tensor:
    data = data.clone()
    data[byte] ^= 1 << bit
    return data


@pytest.mark.parametrize("codec", CODECS)
def test_every_flipped_bit_of_a_blob_is_found(codec):
    base, target = weights(300)
    live, index_map, data_blob = packed_on_gpu(base, target, codec, chunk_words=128)
    damaged = [flipped(data_blob, i, i % 8) for i in range(data_blob.numel())]
    good = tpde.cuda.reconstruct_many([(live, index_map, data_blob)] * 3)
    for blob in damaged:
        with pytest.raises((tpde.ChecksumError, tpde.CorruptError), match="chunk"):
            tpde.reconstruct(live, index_map, blob, check=True)
    for result in good:
        assert_same_bits(result.cpu(), target)
    tpde.cuda.synchronize()


@pytest.mark.parametrize("codec", CODECS)
def test_kernels_survive_what_no_checksum_has_seen(codec):
    """Without verification kernels decode whatever comes; they stay inside the tensor."""
    base, target = weights(5000)
    live, index_map, data_blob = packed_on_gpu(base, target, codec, chunk_words=512)
    g = torch.Generator().manual_seed(0)
    room = torch.full((7000,), 7.0, dtype=base.dtype, device="cuda")
    for i in range(200):
        blob = flipped(data_blob, int(torch.randint(data_blob.numel(), (), generator=g)), i % 8)
        if i % 4 == 0:
            blob = torch.randint(0, 256, data_blob.shape, generator=g, dtype=torch.uint8).cuda()
        tpde.reconstruct(live, index_map, blob, out=room[1000:6000], verify=False)
    torch.cuda.synchronize()
    assert bool((room[:1000] == 7).all()) and bool((room[6000:] == 7).all())
    with pytest.raises((tpde.CorruptError, tpde.ChecksumError)):  # random bytes, at least
        tpde.cuda.synchronize()
    assert_same_bits(tpde.reconstruct(live, index_map, data_blob, check=True).cpu(), target)
    tpde.cuda.synchronize()


@pytest.mark.parametrize("codec", CODECS)
def test_flipped_bits_of_an_index_map_are_refused(codec):
    base, target = weights(300)
    live, index_map, data_blob = packed_on_gpu(base, target, codec, chunk_words=128)
    for i in range(index_map.numel()):
        with pytest.raises(tpde.TpdeError):
            tpde.reconstruct(live, flipped(index_map, i, i % 8), data_blob)
    for n in (0, 1, 87, index_map.numel() - 1):
        with pytest.raises(tpde.TpdeError):
            tpde.reconstruct(live, index_map[:n], data_blob)
    with pytest.raises(tpde.TpdeError):
        tpde.reconstruct(live, data_blob, data_blob)


def test_failures_wait_for_synchronize_and_name_tensor_and_chunk():
    base, target = weights(4096)
    live, index_map, data_blob = packed_on_gpu(base, target, chunk_words=1024)
    bad = flipped(data_blob, data_blob.numel() - 9, 3)
    tpde.reconstruct(live, index_map, bad)
    got = tpde.reconstruct(live, index_map, data_blob)  # a good one after it hides nothing
    with pytest.raises(tpde.ChecksumError, match=r"bfloat16 tensor of shape \[4096\] on cuda:0: chunk 3"):
        tpde.cuda.synchronize()
    tpde.cuda.synchronize()  # told once
    assert_same_bits(got.cpu(), target)
    items = [(live, index_map, data_blob), (live, index_map, bad)]
    with pytest.raises(tpde.ChecksumError, match=r"model\.layers\.1\.weight"):
        tpde.cuda.reconstruct_many(items, check=True, names=["model.layers.0.weight", "model.layers.1.weight"])
    result = tpde.cuda.reconstruct_many(items)[1].cpu()
    assert_same_bits(result[:3072], target[:3072])  # other chunks are right
    with pytest.raises(tpde.ChecksumError):
        tpde.cuda.synchronize()


def test_failures_of_tensors_that_are_gone_are_told():
    base, target = weights(4096)
    live, index_map, data_blob = packed_on_gpu(base, target)
    tpde.reconstruct(live, index_map.clone(), flipped(data_blob, 20, 3))
    for _ in range(600):
        tpde.reconstruct(live, index_map.clone(), data_blob, verify=False)
    with pytest.raises(tpde.ChecksumError):
        tpde.cuda.synchronize()
    from tpde import _cuda

    assert len(_cuda._slots) < 600


def test_wrong_base_is_found_where_it_is_asked_for():
    base, target = weights(4096)
    live, index_map, data_blob = packed_on_gpu(base, target)
    wrong = live.clone()
    wrong[5] += 1
    with pytest.raises(tpde.BaseMismatchError):
        tpde.reconstruct(wrong, index_map, data_blob, check=True)
    with pytest.raises(tpde.BaseMismatchError):
        tpde.cuda.reconstruct_many([(wrong, index_map, data_blob)], check=True)
    tpde.cuda.synchronize()
