"""pack, unpack, verify and inspect on files, folders, .pt files and dicts."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import tpde
from support import assert_same_bits, assert_same_tensors, random_bits, small_checkpoints, tree
from tpde import _dtypes

CODECS = ["auto", "raw", "zstd", "elias", "prefix", "rice"]


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("residual", ["bit", "add"])
def test_file_comes_back_byte_for_byte(pair, tmp_path, codec, residual):
    base, target = pair
    delta, out = tmp_path / "delta.safetensors", tmp_path / "out.safetensors"
    packed = tpde.pack(base, target, delta, codec=codec, residual=residual)
    report = tpde.unpack(base, delta, out=out)
    assert out.read_bytes() == target.read_bytes()
    assert [f.sha256 for f in report.files] == [sha256(target)]
    assert all(f.verified for f in report.files)
    assert packed.out == [str(delta)]
    assert packed.totals.file_bytes == delta.stat().st_size
    assert packed.removed == ["gone.weight"]
    assert {t.name: t.kind for t in packed.tensors}["kept.weight"] == "unchanged"
    assert tpde.verify(base, delta, target=target).target_compared


def test_workers_do_not_change_the_file(pair, tmp_path):
    outs = [tmp_path / f"{n}.safetensors" for n in (1, 5)]
    for n, out in zip((1, 5), outs, strict=True):
        tpde.pack(*pair, out, workers=n)
    assert outs[0].read_bytes() == outs[1].read_bytes()


def test_delta_is_an_ordinary_safetensors_file(pair, tmp_path):
    delta = tmp_path / "delta.safetensors"
    report = tpde.pack(*pair, delta)
    with safe_open(delta, framework="pt") as opened:
        metadata, names = opened.metadata(), set(opened.keys())
        assert metadata["format"] == "tpde"
        assert (metadata["tpde.base"], metadata["tpde.target"]) == (report.base, report.target)
        assert json.loads(metadata["tpde.removed"]) == ["gone.weight"]
        assert {"changed.weight.tpde_index", "changed.weight.tpde_blob", "__tpde__"} <= names
        assert not any(name.startswith("kept.weight") for name in names)
        base, target = load_file(pair[0]), load_file(pair[1])
        parts = [opened.get_tensor(f"changed.weight.tpde_{part}") for part in ("index", "blob")]
        assert_same_bits(tpde.reconstruct(base["changed.weight"], *parts), target["changed.weight"])


def test_inspect_equals_what_pack_said(pair, tmp_path):
    delta = tmp_path / "delta.safetensors"
    packed = tpde.pack(*pair, delta)
    seen = tpde.inspect(delta)
    assert seen.tensors == packed.tensors
    assert (seen.base, seen.target, seen.removed, seen.totals) == (
        packed.base, packed.target, packed.removed, packed.totals,
    )  # fmt: skip
    assert "changed.weight" in str(seen)
    assert json.loads(seen.to_json())["totals"]["tensors"] == len(seen.tensors)


def test_dicts_in_and_out():
    base, target = small_checkpoints()
    delta = tpde.pack(base, target)
    assert all(tensor.dtype is torch.uint8 for name, tensor in delta.items() if "tpde" in name)
    assert_same_tensors(tpde.unpack(base, delta), target)
    assert tpde.verify(base, delta, target=target).target_compared
    assert tpde.inspect(delta).removed == ["gone.weight"]
    copied = {name: tensor.clone() for name, tensor in reversed(delta.items())}
    assert_same_tensors(tpde.unpack(base, copied), target)


def test_every_dtype_in_one_checkpoint(tmp_path):
    base = {str(dtype): random_bits(dtype, (6, 20)) for dtype in _dtypes.supported()}
    target = {name: tensor.clone() for name, tensor in base.items()}
    for i, tensor in enumerate(target.values()):
        if i % 4:  # every fourth stays as it is
            tensor.view(torch.uint8)[:, 3] ^= 1
    target |= {f"new {name}": random_bits(tensor.dtype, (2, 4), seed=1) for name, tensor in base.items()}
    delta = tpde.pack(base, target)
    assert_same_tensors(tpde.unpack(base, delta), target)
    tpde.unpack(base, delta, out=tmp_path / "out.safetensors")
    assert_same_tensors(load_file(tmp_path / "out.safetensors"), target)


def test_dicts_and_files_mix(pair, tmp_path):
    base, target = small_checkpoints()
    delta = tpde.pack(pair[0], target)
    assert_same_tensors(tpde.unpack(base, delta), target)
    tpde.unpack(pair[0], delta, out=tmp_path / "out.safetensors")
    assert_same_tensors(load_file(tmp_path / "out.safetensors"), target)


def test_dict_without_our_manifest_is_refused():
    base, target = small_checkpoints()
    delta = tpde.pack(base, target)
    delta.pop("__tpde_metadata__")
    with pytest.raises(tpde.ArgumentError, match="__tpde_metadata__"):
        tpde.unpack(base, delta)


def test_numpy_and_strided_and_grad_tensors():
    base = {"a": torch.randn(8, 6), "b": np.arange(10, dtype=np.int16), "c": torch.randn(4)}
    target = {
        "a": torch.randn(6, 8).t(),
        "b": np.arange(20, dtype=np.int16)[::-2],
        "c": torch.nn.Parameter(torch.ones(4)),
    }
    delta = tpde.pack(base, target)
    got = tpde.unpack(base, delta)
    assert_same_bits(got["a"], target["a"].contiguous())
    assert_same_bits(got["b"], torch.from_numpy(target["b"].copy()))
    assert_same_bits(got["c"], target["c"])


def test_without_base(pair, tmp_path):
    _, target = pair
    delta, out = tmp_path / "delta.safetensors", tmp_path / "out.safetensors"
    assert tpde.pack(None, target, delta).totals.delta == 0
    tpde.unpack(None, delta, out=out)
    assert out.read_bytes() == target.read_bytes()


def test_identical_checkpoints_cost_nearly_nothing(data, tmp_path):
    same = data / "rl" / "step20.safetensors"
    copy = tmp_path / "copy.safetensors"
    shutil.copy(same, copy)
    report = tpde.pack(same, copy, tmp_path / "delta.safetensors")
    assert report.totals.unchanged == report.totals.tensors
    assert report.totals.file_bytes < 2000
    tpde.unpack(same, tmp_path / "delta.safetensors", out=tmp_path / "out.safetensors")
    assert (tmp_path / "out.safetensors").read_bytes() == same.read_bytes()


def test_nothing_at_all():
    delta = tpde.pack({}, {})
    assert tpde.unpack({}, delta) == {}


def test_wrong_base_is_refused_by_name_before_anything_is_written(pair, tmp_path):
    base, target = pair
    delta = tmp_path / "delta.safetensors"
    tpde.pack(base, target, delta)
    for name in ("changed.weight", "kept.weight"):
        wrong = load_file(base)
        wrong[name].view(-1)[3] += 1
        path = tmp_path / "wrong.safetensors"
        save_file(wrong, path)
        before = tree(tmp_path)
        for attempt in (
            lambda path=path: tpde.unpack(path, delta, out=tmp_path / "out.safetensors"),
            lambda path=path: tpde.unpack(path, delta),
            lambda wrong=wrong: tpde.unpack(wrong, delta),
            lambda path=path: tpde.verify(path, delta),
        ):
            with pytest.raises(tpde.BaseMismatchError, match=name):
                attempt()
        assert tree(tmp_path) == before


def test_verify_finds_a_target_that_differs(pair, tmp_path):
    base, target = pair
    delta = tpde.pack(base, target)
    other = load_file(target)
    other["new.weight"][2, 2] += 1
    with pytest.raises(tpde.TargetMismatchError, match=r"new.weight"):
        tpde.verify(base, delta, target=other)


def test_damaged_delta(pair, tmp_path):
    base, target = pair
    delta = tmp_path / "delta.safetensors"
    tpde.pack(base, target, delta)
    content = delta.read_bytes()
    out = tmp_path / "out.safetensors"
    for position in range(0, len(content), 37):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        delta.write_bytes(damaged)
        try:
            tpde.unpack(base, delta, out=out, workers=1)
        except tpde.TpdeError as error:
            assert not isinstance(error, tpde.InternalError), error
            assert not out.exists()
        else:
            assert out.read_bytes() == target.read_bytes()
            out.unlink()
    for length in range(0, len(content), 101):
        delta.write_bytes(content[:length])
        with pytest.raises(tpde.TpdeError):
            tpde.unpack(base, delta, out=out, workers=1)
        assert not out.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base.safetensors", "delta.safetensors", "target.safetensors"]


def test_outputs_are_not_overwritten_by_accident(pair, tmp_path):
    base, target = pair
    delta = tmp_path / "delta.safetensors"
    tpde.pack(base, target, delta)
    before = tree(tmp_path)
    with pytest.raises(tpde.ExistsError, match=r"delta.safetensors"):
        tpde.pack(base, target, delta)
    with pytest.raises(tpde.ExistsError, match=r"target.safetensors"):
        tpde.unpack(base, delta, out=target)
    for overwrite in (False, True):
        with pytest.raises(tpde.ExistsError):
            tpde.pack(base, target, base, overwrite=overwrite)
        with pytest.raises(tpde.ExistsError):
            tpde.pack(base, target, target, overwrite=overwrite)
        with pytest.raises(tpde.ExistsError):
            tpde.unpack(base, delta, out=base, overwrite=overwrite)
        with pytest.raises(tpde.ExistsError):
            tpde.unpack(base, delta, out=delta, overwrite=overwrite)
    assert tree(tmp_path) == before
    tpde.pack(base, target, delta, overwrite=True)
    tpde.unpack(base, delta, out=target, overwrite=True)
    assert tree(tmp_path) == before


def test_the_last_path_is_the_output(pair, tmp_path):
    base, target = pair
    delta, out = tmp_path / "delta.safetensors", tmp_path / "out.safetensors"
    tpde.pack(base, target, delta)
    tpde.unpack(base, delta, out)
    assert out.read_bytes() == target.read_bytes()


def test_missing_and_unreadable_inputs(pair, tmp_path):
    base, _ = pair
    junk = tmp_path / "junk.safetensors"
    junk.write_bytes(b"not a checkpoint")
    out = tmp_path / "out.safetensors"
    with pytest.raises(tpde.NotFoundError, match="nowhere"):
        tpde.pack(tmp_path / "nowhere", base, out)
    with pytest.raises(tpde.NotFoundError, match="nowhere"):
        tpde.inspect(tmp_path / "nowhere.safetensors")
    for attempt in (
        lambda: tpde.pack(base, junk, out),
        lambda: tpde.inspect(junk),
        lambda: tpde.unpack(base, junk, out=out),
    ):
        with pytest.raises(tpde.TpdeError, match="junk"):
            attempt()
    with pytest.raises(tpde.TpdeError, match="tpde"):
        tpde.unpack(base, base, out=out)  # a checkpoint, not a delta
    with pytest.raises((tpde.NotFoundError, tpde.ReadWriteError)):
        tpde.pack(*pair, tmp_path / "no" / "such" / "folder" / "d.safetensors")
    assert not out.exists()


def test_bad_arguments(pair):
    base, target = pair
    for options, message in (
        ({"codec": "lz4"}, "codec"), ({"level": "max"}, "level"), ({"residual": "xor"}, "residual"),
        ({"workers": -1}, "workers"), ({"max_shard_size": "5 parsecs"}, "max_shard_size"),
        ({"chunk_bytes": 1.5}, "chunk_bytes"),
    ):  # fmt: skip
        with pytest.raises(tpde.ArgumentError, match=message):
            tpde.pack(base, target, **options)
    with pytest.raises(tpde.ArgumentError, match="delta"):
        tpde.unpack(base)
    with pytest.raises(tpde.ArgumentError, match="state_dict"):
        tpde.pack(torch.nn.Linear(2, 2), target)
    with pytest.raises(tpde.UnsupportedError, match=r"'z'.*complex128"):
        tpde.pack(None, {"z": torch.zeros(2, dtype=torch.complex128)})


def test_sharded_delta(pair, tmp_path):
    base, target = pair
    (tmp_path / "d").mkdir()
    report = tpde.pack(base, target, tmp_path / "d" / "delta.safetensors", codec="raw", max_shard_size=4000)
    assert len(report.out) > 2
    index = next(p for p in report.out if p.endswith(".index.json"))
    shards = [p for p in report.out if p != index]
    assert set(json.loads(Path(index).read_text())["weight_map"].values()) == {p.rsplit("/", 1)[1] for p in shards}
    out = tmp_path / "out.safetensors"
    for delta in (index, tmp_path / "d" / "delta.safetensors"):
        tpde.unpack(base, delta, out=out, overwrite=True)
        assert out.read_bytes() == target.read_bytes()
        assert set(tpde.unpack(base, delta)) == set(load_file(target))
        with pytest.raises(tpde.ChainError):
            tpde.unpack(base, delta, delta)  # the last is a delta, not the output
    assert tpde.inspect(index).totals.file_bytes > 0
