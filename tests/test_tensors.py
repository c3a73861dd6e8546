"""encode, reconstruct, read_index and the files of one tensor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tpde
from support import assert_same_bits, bits

CODECS = ["auto", "raw", "zstd", "elias", "prefix", "rice"]
FLOATS = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
SPECIAL = {
    torch.bfloat16: [0x0000, 0x8000, 0x0001, 0x8001, 0x7F80, 0xFF80, 0x7FC0, 0x7F81, 0xFFFF, 0x0080],
    torch.float16: [0x0000, 0x8000, 0x0001, 0x83FF, 0x7C00, 0xFC00, 0x7E00, 0x7C01, 0xFFFF, 0x0400],
    torch.float32: [0, 1 << 31, 1, 0x807FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0xFFFFFFFF, 0x00800000],
    torch.float64: [
        0,
        1 << 63,
        1,
        0x7FF0 << 48,
        0xFFF0 << 48,
        0x7FF8 << 48,
        (0x7FF0 << 48) + 1,
        2**64 - 1,
        0x10 << 48,
        7,
    ],
}


def of_bits(words: list[int], dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(np.array(words, dtype=f"u{dtype.itemsize}")).view(dtype)


def round_trip(base, target, **options):
    index_map, data_blob = tpde.encode(base, target, **options)
    assert index_map.dtype == data_blob.dtype == torch.uint8
    assert_same_bits(tpde.reconstruct(base, index_map, data_blob), target)
    if base is not None:
        in_place = base.clone()
        tpde.reconstruct(in_place, index_map, data_blob, out=in_place, workers=1)
        assert_same_bits(in_place, target)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_round_trip(data):
    dtype = data.draw(st.sampled_from(FLOATS))
    word = st.one_of(st.sampled_from(SPECIAL[dtype]), st.integers(0, 2 ** (8 * dtype.itemsize) - 1))
    shape = data.draw(st.sampled_from([(), (0,), (1,), (0, 3), (2, 3), (31,), (5, 7, 2), (64,), (129,)]))
    count = int(np.prod(shape))
    base_words = data.draw(st.lists(word, min_size=count, max_size=count))
    change = data.draw(st.lists(st.one_of(st.none(), st.none(), word), min_size=count, max_size=count))
    target_words = [old if new is None else new for old, new in zip(base_words, change, strict=True)]
    base = of_bits(base_words, dtype).reshape(shape)
    target = of_bits(target_words, dtype).reshape(shape)
    codec = data.draw(st.sampled_from(CODECS))
    residual = data.draw(st.sampled_from(["bit", "add"]))
    num_chunks = data.draw(st.sampled_from([0, 1, 3, 64]))
    round_trip(base, target, codec=codec, residual=residual, num_chunks=num_chunks)
    round_trip(None, target, codec=codec)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("residual", ["bit", "add"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_special_value_to_every_other(codec, residual, dtype):
    special = SPECIAL[dtype]
    base = of_bits([a for a in special for _ in special], dtype)
    target = of_bits([b for _ in special for b in special], dtype)
    round_trip(base, target, codec=codec, residual=residual)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 127, 128, 129, 255, 256, 257, 4095, 4096, 4097, 70001])
def test_sizes(codec, count):
    g = torch.Generator().manual_seed(count)
    base = torch.randn(count, generator=g).bfloat16()
    target = base.clone()
    target[torch.rand(count, generator=g) < 0.1] *= 1.01
    round_trip(base, target, codec=codec)


@pytest.mark.parametrize("codec", CODECS)
def test_workers_do_not_change_the_bytes(codec):
    g = torch.Generator().manual_seed(3)
    base = torch.randn(300_000, generator=g)
    target = base + (torch.rand(300_000, generator=g) < 0.1) * 0.01
    one = tpde.encode(base, target, codec=codec, workers=1)
    many = tpde.encode(base, target, codec=codec, workers=7)
    assert torch.equal(one[0], many[0])
    assert torch.equal(one[1], many[1])


def test_index_says_what_was_packed():
    base = torch.zeros(4, 8)
    target = base.clone()
    target[1, 2] = 1
    index_map, data_blob = tpde.encode(base, target, codec="raw", residual="add")
    info = tpde.read_index(index_map)
    assert (info.dtype, info.shape, info.codec, info.residual) == (torch.float32, [4, 8], "raw", "add")
    assert (info.has_base, info.words, info.deltas) == (True, 32, 1)
    assert (info.target_bytes, info.blob_bytes) == (128, data_blob.numel())
    assert info.base_digest != info.target_digest
    assert not tpde.read_index(tpde.encode(None, target)[0]).has_base


def test_num_chunks_and_chunk_words():
    base, target = torch.zeros(10_000), torch.ones(10_000)
    assert tpde.read_index(tpde.encode(base, target, num_chunks=64)[0]).chunks == 64
    assert tpde.read_index(tpde.encode(base, target, chunk_words=1000)[0]).chunks == 10


def test_wrong_base_is_refused_before_anything_is_written():
    base, target = torch.zeros(100), torch.ones(100)
    index_map, data_blob = tpde.encode(base, target)
    wrong = base.clone()
    wrong[50] = -0.0
    info = tpde.read_index(index_map)
    out = torch.full((100,), 7.0)
    with pytest.raises(tpde.BaseMismatchError, match=info.base_digest):
        tpde.reconstruct(wrong, index_map, data_blob, out=out)
    assert bool((out == 7).all())


def test_no_flipped_bit_gives_wrong_bits():
    base = torch.randn(300, generator=torch.Generator().manual_seed(0)).bfloat16()
    target = base.clone()
    target[::7] += 1
    for codec in CODECS[1:]:
        index_map, data_blob = tpde.encode(base, target, codec=codec)
        for which in (0, 1):
            for position in range((index_map, data_blob)[which].numel()):
                parts = [index_map.clone(), data_blob.clone()]
                parts[which][position] ^= 1 << (position % 8)
                try:
                    out = tpde.reconstruct(base, *parts)
                except tpde.TpdeError as error:
                    assert not isinstance(error, tpde.InternalError)
                else:
                    assert torch.equal(bits(out), bits(target)), (codec, which, position)


@pytest.mark.parametrize(
    ("base", "options", "message"),
    [
        (torch.zeros(3), {}, "shape"),
        (torch.zeros(2, 2).double(), {}, "float64"),
        (torch.zeros(2, 2), {"codec": "lz4"}, "auto, raw, zstd, elias"),
        (torch.zeros(2, 2), {"residual": "xor"}, "bit, add"),
        (torch.zeros(2, 2), {"level": "max"}, "default, fast, small"),
        (torch.zeros(2, 2), {"workers": -1}, "workers"),
    ],
)
def test_bad_arguments(base, options, message):
    with pytest.raises(tpde.ArgumentError, match=message):
        tpde.encode(base, torch.zeros(2, 2), **options)


def test_add_residual_is_for_floats():
    base = torch.zeros(4, dtype=torch.int32)
    with pytest.raises(tpde.TpdeError, match="add"):
        tpde.encode(base, base + 1, residual="add")


def test_reconstruct_checks_what_it_is_given():
    base, target = torch.zeros(2, 3), torch.ones(2, 3)
    index_map, data_blob = tpde.encode(base, target)
    for wrong, message in ((None, "None"), (base.view(3, 2), "shape"), (base.double(), "float64")):
        with pytest.raises(tpde.ArgumentError, match=message):
            tpde.reconstruct(wrong, index_map, data_blob)
    with pytest.raises(tpde.ArgumentError, match="uint8"):
        tpde.reconstruct(base, index_map.view(torch.int8), data_blob)
    with pytest.raises(tpde.ArgumentError, match="out"):
        tpde.reconstruct(base, index_map, data_blob, out=torch.empty(3, 2))
    with pytest.raises(tpde.ArgumentError, match="contiguous"):
        tpde.reconstruct(base, index_map, data_blob, out=torch.empty(3, 2).t())
    with pytest.raises(tpde.TpdeError):
        tpde.reconstruct(base, index_map[:-1], data_blob)
    with pytest.raises(tpde.TpdeError):
        tpde.reconstruct(base, index_map, data_blob[:-1])
    no_base = tpde.encode(None, target)
    with pytest.raises(tpde.ArgumentError, match="against nothing"):
        tpde.reconstruct(base, *no_base)


def test_inputs_may_be_strided_or_misaligned():
    storage = torch.zeros(4 * 101 + 1, dtype=torch.uint8)
    base = torch.randn(101)
    target = base.clone()
    target[5] = 1
    index_map, data_blob = tpde.encode(base, target)
    misaligned = storage[1:]
    misaligned.copy_(bits(base))
    strided = torch.stack([base, base], 1)[:, 0]
    assert_same_bits(tpde.reconstruct(strided, index_map, data_blob), target)
    shifted = torch.zeros(index_map.numel() + 3, dtype=torch.uint8)
    shifted[3:] = index_map
    assert_same_bits(tpde.reconstruct(base, shifted[3:], data_blob), target)


def test_files(tmp_path):
    base, target = torch.zeros(50), torch.arange(50.0)
    packed = tpde.encode(base, target)
    paths = tpde.save_tensor(tmp_path / "layer", *packed)
    assert [p.name for p in paths] == ["layer.tpde-index", "layer.tpde-blob"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["layer.tpde-blob", "layer.tpde-index"]
    assert_same_bits(tpde.reconstruct(base, *tpde.load_tensor(tmp_path / "layer")), target)
    with pytest.raises(tpde.ExistsError, match=r"layer.tpde-index"):
        tpde.save_tensor(tmp_path / "layer", *packed)
    tpde.save_tensor(tmp_path / "layer", *packed, overwrite=True)
    with pytest.raises(tpde.NotFoundError, match=r"missing.tpde-index"):
        tpde.load_tensor(tmp_path / "missing")
