"""Hugging Face folders: shards, tied weights, other files. Chains of checkpoints."""

from __future__ import annotations

import itertools
import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import tpde
from support import assert_same_tensors, tree


def hf_folder(folder, step):
    """A sharded checkpoint with tied weights stored twice and the files that a model card brings."""
    g = torch.Generator().manual_seed(0)
    embedding = torch.randn(50, 16, generator=g).bfloat16()
    shards = {
        "model-00001-of-00002.safetensors": {
            "model.embed_tokens.weight": embedding,
            "model.layers.0.weight": torch.randn(32, 16, generator=g).bfloat16(),
            "model.norm.weight": torch.ones(16).bfloat16(),
        },
        "model-00002-of-00002.safetensors": {
            "model.layers.1.weight": torch.randn(32, 16, generator=g).bfloat16(),
            "lm_head.weight": embedding,
        },
    }
    for tensors in shards.values():
        for name, tensor in tensors.items():
            tensors[name] = tensor.clone()
            if "layers" in name or tensor.shape[0] == 50:
                tensors[name].view(-1)[step::40] += 0.5 * step
    folder.mkdir(parents=True)
    for file, tensors in shards.items():
        save_file(tensors, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, tensors in shards.items() for name in tensors}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map}, indent=2)
    )
    (folder / "config.json").write_text('{"hidden_size": 16}')
    (folder / "tokenizer.json").write_text(json.dumps({"vocab": {str(i): i for i in range(300)}}))
    (folder / "trainer_state.json").write_text(json.dumps({"step": step}))
    (folder / "empty.txt").write_text("")
    (folder / "assets").mkdir()
    (folder / "assets" / "note.md").write_text(f"step {step}\n")
    return folder


def test_folder_comes_back_byte_for_byte(tmp_path):
    base, target = hf_folder(tmp_path / "base", 1), hf_folder(tmp_path / "target", 2)
    delta, out = tmp_path / "delta.safetensors", tmp_path / "out"
    report = tpde.pack(base, target, delta)
    kinds = {f.path: f.kind for f in report.files}
    assert kinds["config.json"] == kinds["tokenizer.json"] == "same"
    assert kinds["trainer_state.json"] == "carried"
    assert {t.name: t.kind for t in report.tensors}["model.norm.weight"] == "unchanged"
    unpacked = tpde.unpack(base, delta, out=out)
    assert tree(out) == tree(target)
    assert {os.path.relpath(f.path, out) for f in unpacked.files} == set(tree(target))
    assert all(f.verified for f in unpacked.files)
    assert tpde.verify(base, delta, target=target).target_compared


def test_tied_weights_are_stored_once(tmp_path):
    base, target = hf_folder(tmp_path / "base", 1), hf_folder(tmp_path / "target", 2)
    report = tpde.pack(base, target, tmp_path / "delta.safetensors")
    kinds = {t.name: t for t in report.tensors}
    tied = [kinds["model.embed_tokens.weight"], kinds["lm_head.weight"]]
    assert sorted(t.kind for t in tied) == ["alias", "delta"]
    assert next(t for t in tied if t.kind == "alias").stored_bytes == 0


def test_folder_to_dict(tmp_path):
    base, target = hf_folder(tmp_path / "base", 1), hf_folder(tmp_path / "target", 2)
    delta = tpde.pack(base, target)
    expected = {}
    for shard in sorted(target.glob("*.safetensors")):
        expected |= load_file(shard)
    assert_same_tensors(tpde.unpack(base, delta), expected)


def test_shards_laid_out_differently(tmp_path):
    base, target = hf_folder(tmp_path / "base", 1), hf_folder(tmp_path / "target", 2)
    merged = {}
    for shard in sorted(base.glob("*.safetensors")):
        merged |= load_file(shard)
    save_file(merged, tmp_path / "merged.safetensors")
    tpde.pack(tmp_path / "merged.safetensors", target, tmp_path / "delta.safetensors")
    tpde.unpack(tmp_path / "merged.safetensors", tmp_path / "delta.safetensors", out=tmp_path / "out")
    assert tree(tmp_path / "out") == tree(target)


def test_existing_output_folder(tmp_path):
    base, target = hf_folder(tmp_path / "base", 1), hf_folder(tmp_path / "target", 2)
    delta, out = tmp_path / "delta.safetensors", tmp_path / "out"
    tpde.pack(base, target, delta)
    hf_folder(out, 3)
    before = tree(out)
    with pytest.raises(tpde.ExistsError):
        tpde.unpack(base, delta, out=out)
    assert tree(out) == before
    tpde.unpack(base, delta, out=out, overwrite=True)
    assert tree(out) == tree(target)


@pytest.fixture
def steps(tmp_path):
    """epoch_1, epoch_2, epoch_9, epoch_10: not in the order of their names as text."""
    folder = tmp_path / "run"
    for step in (1, 2, 9, 10):
        hf_folder(folder / f"epoch_{step}", step)
    return folder


def test_chain_in_one_go(steps, tmp_path):
    reports = tpde.pack_chain(steps, tmp_path / "deltas")
    names = ["epoch_2.safetensors", "epoch_9.safetensors", "epoch_10.safetensors"]
    assert [os.path.basename(r.out[0]) for r in reports] == names
    assert all(a.target == b.base for a, b in itertools.pairwise(reports))
    deltas = [tmp_path / "deltas" / name for name in names]
    for count, step in ((1, 2), (2, 9), (3, 10)):
        out = tmp_path / f"out{step}"
        tpde.unpack(steps / "epoch_1", *deltas[:count], out=out)
        assert tree(out) == tree(steps / f"epoch_{step}")
    assert tpde.verify(steps / "epoch_1", *deltas, target=steps / "epoch_10").target_compared
    assert set(tpde.unpack(steps / "epoch_1", *deltas)) == {
        "model.embed_tokens.weight", "model.layers.0.weight", "model.norm.weight", "model.layers.1.weight",
        "lm_head.weight",
    }  # fmt: skip


def test_gaps_and_wrong_orders_are_refused(steps, tmp_path):
    tpde.pack_chain(steps, tmp_path / "deltas")
    d2, d9, d10 = (tmp_path / "deltas" / f"epoch_{n}.safetensors" for n in (2, 9, 10))
    before = tree(tmp_path)
    for deltas in ((d2, d10), (d2, d10, d9), (d2, d9, d9)):
        with pytest.raises(tpde.ChainError):
            tpde.unpack(steps / "epoch_1", *deltas, out=tmp_path / "out")
        with pytest.raises(tpde.ChainError):
            tpde.unpack(steps / "epoch_1", *deltas)
        with pytest.raises(tpde.ChainError):
            tpde.verify(steps / "epoch_1", *deltas)
    for deltas in ((d9,), (d9, d10)):
        with pytest.raises((tpde.BaseMismatchError, tpde.ChainError)):
            tpde.unpack(steps / "epoch_1", *deltas, out=tmp_path / "out")
    assert tree(tmp_path) == before


def test_chain_of_files_and_state_dicts(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    states = [{"w": torch.full((100,), float(n))} for n in range(3)]
    save_file(states[0], folder / "step0.safetensors")
    torch.save(states[1], folder / "step1.pt")
    torch.save({"model": states[2]}, folder / "step2.pt")
    (folder / "log.txt").write_text("not a checkpoint")
    reports = tpde.pack_chain(folder, tmp_path / "deltas", codec="raw")
    got = tpde.unpack(folder / "step0.safetensors", *(r.out[0] for r in reports))
    assert_same_tensors(got, states[2])


def test_what_is_no_folder_of_checkpoints(tmp_path, steps):
    with pytest.raises(tpde.NotFoundError):
        tpde.pack_chain(tmp_path / "none", tmp_path / "deltas")
    with pytest.raises(tpde.ArgumentError, match="is one checkpoint"):
        tpde.pack_chain(steps / "epoch_1", tmp_path / "deltas")
    with pytest.raises(tpde.ArgumentError, match="codec"):
        tpde.pack_chain(steps, tmp_path / "deltas", codec="gzip")
    for step in (2, 9, 10):
        shutil.rmtree(steps / f"epoch_{step}")
    with pytest.raises(tpde.ArgumentError, match="found 1"):
        tpde.pack_chain(steps, tmp_path / "deltas")
    assert not (tmp_path / "deltas").exists()


def test_chain_does_not_overwrite(steps, tmp_path):
    (tmp_path / "deltas").mkdir()
    (tmp_path / "deltas" / "epoch_10.safetensors").write_text("mine")
    with pytest.raises(tpde.ExistsError, match="epoch_10"):
        tpde.pack_chain(steps, tmp_path / "deltas")
    assert tree(tmp_path / "deltas") == {"epoch_10.safetensors": b"mine"}
    tpde.pack_chain(steps, tmp_path / "deltas", overwrite=True)
