"""reconstruct on CUDA devices against the CPU, on bits."""

from __future__ import annotations

import pytest
import torch

import tpde
from gpu_support import CODECS, DTYPES, FLOATS, NEEDS_GPU, SMALL_FLOATS, changed, packed_on_gpu, weights
from support import assert_same_bits, random_bits
from tpde import _ops

pytestmark = NEEDS_GPU


@pytest.fixture(autouse=True)
def _no_failure_is_left():
    yield
    tpde.cuda.synchronize()


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(dtype, codec):
    base = random_bits(dtype, (13, 1002))
    for share in (0.0, 0.05, 1.0):
        target = changed(base, share)
        for packed in (packed_on_gpu(base, target, codec), packed_on_gpu(None, target, codec)):
            assert_same_bits(tpde.reconstruct(*packed, check=True).cpu(), target)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", [*FLOATS, *SMALL_FLOATS, torch.complex64], ids=str)
def test_add_residual(dtype, codec):
    g = torch.Generator().manual_seed(3)
    real = torch.float32 if dtype is torch.complex64 else dtype
    base = torch.randn(40, 500, generator=g).to(real)
    target = (base.float() + 1e-2 * torch.randn(40, 500, generator=g)).to(real)
    special = [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 6e4, 1e-7]
    target.view(-1)[: len(special)] = torch.tensor(special).to(real)
    if dtype is torch.complex64:
        base, target = (torch.view_as_complex(t.view(40, 250, 2)) for t in (base, target))
    packed = packed_on_gpu(base, target, codec, residual="add")
    assert tpde.read_index(packed[1].cpu()).residual == "add"
    assert_same_bits(tpde.reconstruct(*packed, check=True).cpu(), target)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", SMALL_FLOATS, ids=str)
def test_every_pair_of_small_floats(dtype, codec):
    """Sums that no residual gives are exceptions; whatever the pair, the target comes out."""
    octets = torch.arange(256, dtype=torch.uint8)
    base, target = (t.reshape(-1).view(dtype) for t in torch.meshgrid(octets, octets, indexing="ij"))
    packed = packed_on_gpu(base, target, codec, residual="add", chunk_words=2048)
    assert_same_bits(tpde.reconstruct(*packed, check=True).cpu(), target)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("n", [0, 1, 2, 3, 7, 8, 9, 31, 32, 33, 127, 129, 4095, 4097, 65537])
def test_sizes(n, dtype, codec):
    base = random_bits(dtype, (n,))
    target = changed(base, 0.3)
    assert_same_bits(tpde.reconstruct(*packed_on_gpu(base, target, codec), check=True).cpu(), target)
    packed = packed_on_gpu(base, target, codec, chunk_words=64)
    assert_same_bits(tpde.reconstruct(*packed, check=True).cpu(), target)


@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (2, 3, 5)])
def test_shapes(shape):
    base = torch.randn(shape)
    target = base + 1
    assert_same_bits(tpde.reconstruct(*packed_on_gpu(base, target), check=True).cpu(), target)


@pytest.mark.parametrize("codec", CODECS)
def test_real_deltas(codec, data):
    from safetensors.torch import load_file

    base, target = (load_file(data / "rl" / f"step{n}.safetensors") for n in (20, 21))
    items = [packed_on_gpu(base[name], target[name], codec) for name in target]
    results = tpde.cuda.reconstruct_many(items, check=True, names=list(target))
    for name, result in zip(target, results, strict=True):
        assert_same_bits(result.cpu(), target[name])


@pytest.mark.parametrize("codec", CODECS)
def test_in_place_and_out(codec):
    base, target = weights()
    live, index_map, data_blob = packed_on_gpu(base, target, codec)
    out = torch.empty_like(live)
    assert tpde.reconstruct(live, index_map, data_blob, out=out) is out
    assert_same_bits(out.cpu(), target)
    assert_same_bits(live.cpu(), base)
    where = live.data_ptr()
    assert tpde.reconstruct(live, index_map, data_blob, out=live, check=True) is live
    assert live.data_ptr() == where
    assert_same_bits(live.cpu(), target)
    with pytest.raises(tpde.BaseMismatchError):
        tpde.reconstruct(live, index_map, data_blob, out=live, check=True)
    assert_same_bits(live.cpu(), target)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("offset", [1, 3, 5])
def test_views_that_are_not_aligned(dtype, offset):
    base = random_bits(dtype, (4001,))
    target = changed(base, 0.2)
    live, index_map, data_blob = packed_on_gpu(base, target)
    room = torch.empty(5000, dtype=dtype, device="cuda")
    view = room[offset : offset + 4001]
    view.copy_(live)
    arena = torch.empty(data_blob.numel() + 16, dtype=torch.uint8, device="cuda")
    blob = arena[offset : offset + data_blob.numel()]
    blob.copy_(data_blob)
    strided = torch.empty(4001, 2, dtype=dtype, device="cuda")[:, 0]
    strided.copy_(live)
    sentinel = random_bits(dtype, (5000,), seed=9)
    out = sentinel.cuda()
    tpde.reconstruct(view, index_map, blob, out=out[offset : offset + 4001], check=True)
    assert_same_bits(out.cpu()[offset : offset + 4001], target)
    assert_same_bits(out.cpu()[:offset], sentinel[:offset])
    assert_same_bits(out.cpu()[offset + 4001 :], sentinel[offset + 4001 :])
    assert_same_bits(tpde.reconstruct(strided, index_map, blob, check=True).cpu(), target)
    with pytest.raises(tpde.ArgumentError, match="contiguous"):
        tpde.reconstruct(strided, index_map, blob, out=strided)


def test_the_index_map_may_stay_on_the_cpu():
    base, target = weights()
    index_map, data_blob = tpde.encode(base, target, codec="elias")
    got = tpde.reconstruct(base.cuda(), index_map, data_blob.cuda(), check=True)
    assert_same_bits(got.cpu(), target)


def test_an_index_map_that_is_written_to_is_read_again():
    (base, target), (_, other) = weights(seed=1), weights(seed=2)
    base = base.cuda()
    pairs = [
        tpde.encode(base, t.to(torch.bfloat16), codec="raw", chunk_words=1 << 20) for t in (target, target.flip(0))
    ]
    first = pairs[0][0].cuda()
    assert_same_bits(tpde.reconstruct(base, first, pairs[0][1].cuda(), check=True).cpu(), target)
    if pairs[1][0].numel() == first.numel():
        first.copy_(pairs[1][0])
        assert_same_bits(tpde.reconstruct(base, first, pairs[1][1].cuda(), check=True).cpu(), target.flip(0))
    assert other.shape == target.shape


def test_many_tensors_of_every_kind_at_once():
    items, targets = [], []
    for i in range(150):  # more than one launch takes
        dtype = [torch.bfloat16, torch.float32, torch.uint8][i % 3]
        base = random_bits(dtype, (1 + 97 * i,), seed=i)
        target = changed(base, 0.2, seed=i)
        items.append(packed_on_gpu(None if i % 5 == 0 else base, target, CODECS[i % 3], chunk_words=1024))
        targets.append(target)
    for options in ({"check": True}, {"verify": False}):
        for got, target in zip(tpde.cuda.reconstruct_many(items, **options), targets, strict=True):
            assert_same_bits(got.cpu(), target)
    assert tpde.cuda.reconstruct_many([]) == []


def test_in_inference_mode():
    base, target = weights()
    with torch.inference_mode():
        packed = packed_on_gpu(base, target)
        for _ in range(2):
            assert_same_bits(tpde.reconstruct(*packed, check=True).cpu(), target)


def test_zstd_is_rebuilt_or_refused_with_advice():
    base, target = weights()
    packed = packed_on_gpu(base, target, "zstd")
    try:
        got = tpde.reconstruct(*packed, check=True)
    except tpde.UnsupportedError as error:
        assert "elias" in str(error) or "nvCOMP" in str(error)
    else:
        assert_same_bits(got.cpu(), target)


def test_arguments_are_checked():
    base, target = weights(1000)
    live, index_map, data_blob = packed_on_gpu(base, target)
    for arguments, message in [
        ((base, index_map, data_blob), "base: is on cpu"),
        ((live, index_map, data_blob.cpu()), "data_blob: is on cpu"),
        ((live.float(), index_map, data_blob), "float32"),
        ((live[:-1], index_map, data_blob), "shape"),
        ((None, index_map, data_blob), "base: is None"),
        ((live, index_map, data_blob[:-1]), "data_blob: expected"),
        ((live, index_map, torch.cat([data_blob, data_blob])), "data_blob: expected"),
        ((live, index_map.view(-1, 1), data_blob), "index_map"),
        ((live, index_map.float(), data_blob), "index_map"),
    ]:
        with pytest.raises(tpde.ArgumentError, match=message):
            tpde.reconstruct(*arguments)
    with pytest.raises(tpde.ArgumentError, match="overlap"):
        room = torch.empty(1001, dtype=base.dtype, device="cuda")
        tpde.reconstruct(room[1:].copy_(live), index_map, data_blob, out=room[:-1])
    nothing = packed_on_gpu(None, target)
    with pytest.raises(tpde.ArgumentError, match="expected None"):
        tpde.reconstruct(live, *nothing[1:])
    with pytest.raises(tpde.ArgumentError, match="shape"):
        _ops.reconstruct(live, index_map, data_blob, [10, 100], base.dtype, True)


def test_opcheck():
    base, target = weights(1000)
    live, index_map, data_blob = packed_on_gpu(base, target)
    arguments = (live, index_map, data_blob, [1000], base.dtype, True)
    torch.library.opcheck(torch.ops.tpde.reconstruct, arguments)
    torch.library.opcheck(torch.ops.tpde.reconstruct, (live, index_map.cpu(), *arguments[2:]))
    torch.library.opcheck(torch.ops.tpde.reconstruct_, (live.clone(), index_map, data_blob))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_devices_at_once():
    base, target = weights()
    index_map, data_blob = tpde.encode(base, target, codec="elias")
    items = [(base.to(d), index_map.to(d), data_blob.to(d)) for d in ("cuda:0", "cuda:1")]
    for got, (live, _, _) in zip(tpde.cuda.reconstruct_many(items, check=True), items, strict=True):
        assert got.device == live.device
        assert_same_bits(got.cpu(), target)
