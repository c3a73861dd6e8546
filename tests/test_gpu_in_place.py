"""reconstruct_many into given memory: in place, to outputs, and what is refused."""

from __future__ import annotations

import pytest
import torch

import tpde
from gpu_support import CODECS, NEEDS_GPU, packed_on_gpu, weights
from support import assert_same_bits
from tpde import _cuda_rebuild


def packed(seed=0, codec="raw", n=4096):
    base, target = weights(n, seed=seed)
    return base.clone(), target, *tpde.encode(base, target, codec=codec, chunk_words=1024)


def many(count=5):
    """Items and their targets."""
    all_of = [packed(seed, codec, 2048 + 64 * seed) for seed in range(count) for codec in ("elias", "raw")]
    return [(base, index_map, data_blob) for base, _, index_map, data_blob in all_of], [t for _, t, _, _ in all_of]


# ---- through the stand-in for a GPU -------------------------------------------------


def test_in_place(gpu):
    items, targets = many()
    outs = tpde.cuda._outputs(items, None, True)
    results = _cuda_rebuild.reconstruct_many(items, True, None, outs)
    for (base, _, _), result, target in zip(items, results, targets, strict=True):
        assert result is base
        assert_same_bits(base, target)
    assert gpu.calls == [("verify", 10), ("reconstruct", 10)]


def test_some_to_outputs_some_in_place(gpu):
    items, targets = many()
    kept = [base.clone() for base, _, _ in items]
    outs = [[None, torch.empty_like(base), base][i % 3] for i, (base, _, _) in enumerate(items)]
    results = _cuda_rebuild.reconstruct_many(items, False, None, outs)
    for i, (result, target) in enumerate(zip(results, targets, strict=True)):
        assert outs[i] is None or result is outs[i]
        assert_same_bits(result, target)
        if i % 3 != 2:
            assert_same_bits(items[i][0], kept[i])


def test_bases_may_be_shared_where_they_are_not_written_to(gpu):
    base, target, index_map, data_blob = packed()
    item = base, index_map, data_blob
    outs = [torch.empty_like(base), None, torch.empty_like(base)]
    for result in _cuda_rebuild.reconstruct_many([item] * 3, False, None, outs):
        assert_same_bits(result, target)


def test_outputs_in_other_memory_are_refused(gpu):
    base, _, index_map, data_blob = packed()
    other, _, index_2, blob_2 = packed(1)
    items = [(base, index_map, data_blob), (other, index_2, blob_2)]
    arena = torch.zeros(3 * 4096, dtype=base.dtype)
    one, two, between = arena[:4096], arena[4096:8192], arena[4000:8096]
    blob_room = torch.zeros(16384, dtype=torch.uint8)
    blob_inside = blob_room[: data_blob.numel()].copy_(data_blob)
    for outs, wrong in [
        ([one, one], items),
        ([one, between], items),
        ([between, two], items),
        ([other, None], items),
        ([None, base], items),
        ([base, base], items),
        ([blob_room[:8192].view(base.dtype), None], [(base, index_map, blob_inside), items[1]]),
    ]:
        with pytest.raises(tpde.ArgumentError, match=r"(out|base|data_blob) of item \d: shares memory with"):
            _cuda_rebuild.reconstruct_many(wrong, False, None, outs)
    assert gpu.calls == []
    _cuda_rebuild.reconstruct_many(items, False, None, [one, two])  # side by side


def test_outputs_must_fit(gpu):
    base, _, index_map, data_blob = packed()
    item = base, index_map, data_blob
    for out, message in [(base.float(), "out of item 1: .*float32"), (base[1:], "out of item 1: .*4095")]:
        with pytest.raises(tpde.ArgumentError, match=message):
            _cuda_rebuild.reconstruct_many([item, item], False, None, [None, out])
    for arguments, message in [
        (([item], [base], True), "out, in_place"),
        (([(None, index_map, data_blob)], None, True), "base of item 0: is None"),
        (([(tpde.quantize(base), index_map, data_blob)], None, True), "base of item 0: is a QuantizedTensor"),
        (([item, (base[::2], index_map, data_blob)], None, True), "item 1: out: expected a contiguous"),
        (([item], ["x"], False), "item 0: out: expected a torch.Tensor, got str"),
    ]:
        with pytest.raises(tpde.ArgumentError, match=message):
            tpde.cuda._outputs(*arguments)
    assert tpde.cuda._outputs([item], None, False) is None


def test_lists_must_have_the_same_length():
    for arguments in ({"out": [None]}, {"names": ["a"]}):
        with pytest.raises(tpde.ArgumentError, match="expected 0"):
            tpde.cuda.reconstruct_many([], **arguments)
    with pytest.raises(tpde.ArgumentError, match="verified"):
        tpde.cuda.reconstruct_many([], verified=True)


def test_a_verified_blob_is_said_to_be(gpu, monkeypatch):
    base, _, index_map, data_blob = packed()
    seen = []
    monkeypatch.setattr(gpu, "gpu_reconstruct", lambda items, *rest: seen.extend(item[6] for item in items))
    for verified in (False, True):
        _cuda_rebuild.reconstruct_many([(base, index_map, data_blob)], False, None, None, verified)
    assert seen == [0, 2]


# ---- on a GPU ---------------------------------------------------------------------------


class TestOnGPU:
    pytestmark = NEEDS_GPU

    @pytest.mark.parametrize("codec", CODECS)
    def test_in_place(self, codec):
        pairs = [weights(50_000 + 8 * seed, seed=seed) for seed in range(70)]
        items = [packed_on_gpu(base, target, codec, chunk_words=4096) for base, target in pairs]
        pointers = [base.data_ptr() for base, _, _ in items]
        results = tpde.cuda.reconstruct_many(items, in_place=True)
        tpde.cuda.synchronize()
        assert [result.data_ptr() for result in results] == pointers
        for (base, _, _), (_, target) in zip(items, pairs, strict=True):
            assert_same_bits(base.cpu(), target)

    @pytest.mark.parametrize("codec", CODECS)
    def test_outputs_and_promised_blobs(self, codec):
        pairs = [weights(50_000 + seed, seed=seed) for seed in range(9)]
        items = [packed_on_gpu(base, target, codec) for base, target in pairs]
        for arguments in ({"check": True}, {"verify": False}, {"verify": False, "verified": True}):
            outs = [torch.empty_like(base) if i % 2 else None for i, (base, _, _) in enumerate(items)]
            results = tpde.cuda.reconstruct_many(items, out=outs, **arguments)
            for out, result, (_, target) in zip(outs, results, pairs, strict=True):
                assert out is None or result is out
                assert_same_bits(result.cpu(), target)
        tpde.cuda.synchronize()

    def test_refusals_launch_nothing(self):
        base, target = weights()
        item = packed_on_gpu(base, target)
        with pytest.raises(tpde.ArgumentError, match="shares memory"):
            tpde.cuda.reconstruct_many([item, item], in_place=True)
        assert_same_bits(item[0].cpu(), base)
