"""Compressed models: a quantised base and the residual that makes it whole."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import bnb_fixture
import tpde
from support import assert_same_bits, assert_same_tensors, tree
from tpde.quant import QuantizedTensor, from_bitsandbytes_int8, from_bitsandbytes_nf4

BITS = {"int2": 2, "int3": 3, "int4": 4, "int8": 8}


def weights() -> dict[str, torch.Tensor]:
    """A small model with matrices of every float type, an odd group, tied weights and what gets no base."""
    g = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g) * 0.02

    state = {
        "model.embed_tokens.weight": normal(300, 64).bfloat16(),
        "model.layers.0.q.weight": normal(129, 131).bfloat16(),
        "model.layers.0.k.weight": normal(128, 192).half(),
        "model.layers.0.v.weight": normal(128, 192),
        "model.layers.0.conv.weight": normal(64, 16, 20).bfloat16(),
        "model.layers.0.norm.weight": 1 + normal(20_000).bfloat16(),
        "model.layers.0.bias": normal(64).bfloat16(),
        "model.layers.0.small.weight": normal(16, 16).bfloat16(),
        "model.inv_freq": torch.arange(32768).reshape(128, 256),
        "lm_head.weight": normal(300, 64).bfloat16(),
    }
    state["model.layers.1.q.weight"] = state["model.layers.0.q.weight"].clone()
    state["model.layers.0.k.weight"].view(-1)[:3] = torch.tensor([float("nan"), float("-inf"), -0.0])
    return state


BASED = {f"model.layers.0.{x}.weight" for x in ("q", "k", "v", "conv")} | {"lm_head.weight"}


@pytest.fixture
def model(tmp_path):
    """The model as a Hugging Face folder of two shards."""
    folder = tmp_path / "model"
    folder.mkdir()
    state = weights()
    names = list(state)
    shards = [names[:5], names[5:]]
    weight_map = {}
    for i, part in enumerate(shards, 1):
        file = f"model-{i:05}-of-00002.safetensors"
        save_file({name: state[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("token " * 1000)
    return folder


@pytest.mark.parametrize("base", [*BITS, "none"])
def test_round_trip(model, tmp_path, base):
    out = tmp_path / "out"
    report = tpde.compress(model, out, base=base, progress=False)
    unpacked = tpde.unpack(out, tmp_path / "restored", progress=False)
    assert tree(tmp_path / "restored") == tree(model)
    assert all(file.verified for file in unpacked.files)
    assert_same_tensors(tpde.unpack(out), weights())

    based = set() if base == "none" else BASED
    assert {t.name for t in report.based} == based
    for t in report.tensors:
        if t.name in based and t.elements % 64 == 0:
            assert t.resident_bits == BITS[base] + 0.25
            assert (t.base_layout, t.base_group) == (base, 64)
    assert {t.name: t.of for t in report.tensors if t.kind == "alias"} == {
        "model.layers.1.q.weight": "model.layers.0.q.weight"
    }
    files = tree(out)
    assert {"residual.safetensors", "config.json", "tokenizer.json"} <= files.keys()
    assert "model.safetensors.index.json" not in files
    assert ("base/model.safetensors" in files) == (base != "none")
    assert sorted(report.out) == sorted(str(out / name) for name in files)

    assert tpde.verify(out, progress=False).target_compared is False
    assert tpde.verify(out, target=model, progress=False).target_compared
    again = tpde.inspect(out)
    assert isinstance(again, tpde.CompressedReport)
    assert again.totals == report.totals and again.tensors == report.tensors
    assert report.totals.ratio > 1
    assert "lm_head.weight" in str(again)


def test_parts_are_what_a_layer_needs(model, tmp_path):
    """Base and residual are ordinary safetensors files, from which one tensor can be rebuilt alone."""
    tpde.compress(model, tmp_path / "out", base="int3", group_size=32, progress=False)
    residual = load_file(tmp_path / "out" / "residual.safetensors")
    base = load_file(tmp_path / "out" / "base" / "model.safetensors")
    with safe_open(tmp_path / "out" / "base" / "model.safetensors", "pt") as opened:
        table = json.loads(opened.metadata()["tpde.quantized_tensors"])
    with (tmp_path / "out" / "base" / "model.safetensors").open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(header_bytes))
    for name in table:  # where a kernel can read them
        assert (8 + header_bytes + header[f"{name}.packed"]["data_offsets"][0]) % 4 == 0
    assert set(table) == BASED
    assert set(base) == {f"{name}.{part}" for name in BASED for part in ("packed", "scale")}
    state = weights()
    for name, row in table.items():
        weight = state[name]
        q = QuantizedTensor(
            base[f"{name}.packed"], base[f"{name}.scale"], None, row["bits"], row["group_size"], tuple(row["shape"]),
            weight.dtype, row["kind"],
        )  # fmt: skip
        expected = tpde.quantize(weight, bits=3, group_size=32)
        assert_same_bits(q.packed, expected.packed)
        assert_same_bits(q.scale, expected.scale)
        rebuilt = tpde.reconstruct(q, residual[f"{name}.tpde_index"], residual[f"{name}.tpde_blob"])
        assert_same_bits(rebuilt, weight)


def test_deterministic_and_sharded(model, tmp_path):
    for workers in (1, 2, 5):
        tpde.compress(model, tmp_path / f"out{workers}", workers=workers, max_shard_size=30_000, progress=False)
    files = tree(tmp_path / "out1")
    assert files == tree(tmp_path / "out2") == tree(tmp_path / "out5")
    assert {"base/model.safetensors.index.json", "residual.safetensors.index.json"} <= files.keys()
    tpde.unpack(tmp_path / "out1", tmp_path / "restored", progress=False)
    assert tree(tmp_path / "restored") == tree(model)


def test_embeddings_and_real_weights(data, tmp_path):
    state = weights()
    base = "model.embed_tokens.weight"
    assert tpde.compress(state, tmp_path / "a", progress=False).based[0].name != base
    assert base in {t.name for t in tpde.compress(state, tmp_path / "b", embeddings="base", progress=False).based}
    del state["lm_head.weight"]
    assert base in {t.name for t in tpde.compress(state, tmp_path / "c", progress=False).based}
    assert base not in {t.name for t in tpde.compress(state, tmp_path / "d", embeddings="none", progress=False).based}
    real = data / "sft_bf16" / "base.safetensors"
    for name, resident, streamed in (("int4", 4.25, 7.3), ("int8", 8.25, 3.6), ("none", 0.0, 10.9)):
        report = tpde.compress(real, tmp_path / name, base=name, progress=False)
        for t in report.tensors:
            assert t.resident_bits == resident
            assert t.streamed_bits < streamed


def test_stands_for_the_model(model, tmp_path):
    """Wherever a checkpoint is expected, the folder is the full model."""
    out = tmp_path / "out"
    tpde.compress(model, out, base="int2", progress=False)
    changed = weights()
    changed["lm_head.weight"].view(-1)[::100] += 1
    delta = tmp_path / "delta.safetensors"
    report = tpde.pack(out, changed, delta, progress=False)
    assert [t.name for t in report.tensors if t.kind != "unchanged"] == ["lm_head.weight"]
    assert_same_tensors(tpde.unpack(out, delta), changed)
    assert_same_tensors(tpde.unpack(model, delta), changed)
    tpde.compress(out, tmp_path / "again", base="int8", progress=False)
    tpde.unpack(tmp_path / "again", tmp_path / "restored", progress=False)
    assert tree(tmp_path / "restored") == tree(model)
    for inside in (out, out / "restored", out / "base" / "restored"):
        with pytest.raises(tpde.ExistsError):
            tpde.unpack(out, out=inside, overwrite=True, progress=False)
        with pytest.raises(tpde.ExistsError):
            tpde.compress(out, inside, overwrite=True, progress=False)
    with pytest.raises(tpde.ArgumentError, match="is a TPDE delta"):
        tpde.compress(out / "residual.safetensors", tmp_path / "x")
    with pytest.raises(tpde.TargetMismatchError, match="lm_head"):
        tpde.verify(out, target=changed, progress=False)


@pytest.fixture
def quantised(model, tmp_path):
    """The model as bitsandbytes would have saved it, and what its weights are worth."""
    state = weights()
    bnb, values = {}, {}
    for name, double in (
        ("model.layers.0.q.weight", False),
        ("model.layers.0.v.weight", True),
        ("lm_head.weight", True),
    ):
        parts, absmax = bnb_fixture.nf4(name, state[name], double)
        bnb |= parts
        values[name] = from_bitsandbytes_nf4(parts[name], absmax, None, 64, state[name].shape, state[name].dtype)
    name = "model.layers.0.k.weight"
    state[name] = torch.where(state[name].isfinite(), state[name], 0.0)
    bnb |= bnb_fixture.int8(name.removesuffix(".weight"), state[name])
    values[name] = from_bitsandbytes_int8(bnb[name], bnb[name.replace("weight", "SCB")], state[name].dtype)
    bnb |= {n: t for n, t in state.items() if n not in values and n != "model.layers.1.q.weight"}
    folder = tmp_path / "bnb"
    folder.mkdir()
    save_file(bnb, folder / "model.safetensors")
    (folder / "config.json").write_text('{"quantization_config": {}}')
    return folder, values


@pytest.mark.parametrize("link", [False, True])
def test_bitsandbytes(model, quantised, tmp_path, link):
    folder, values = quantised
    report = tpde.compress(model, tmp_path / "out", base=folder, link_base=link, progress=False)
    assert (tmp_path / "out" / "base").is_symlink() == link
    tpde.unpack(tmp_path / "out", tmp_path / "restored", progress=False)
    assert tree(tmp_path / "restored") == tree(model)
    rows = {t.name: t for t in report.tensors}
    state = weights()
    layouts = {
        "model.layers.0.q.weight": "nf4", "model.layers.0.v.weight": "nf4 double", "lm_head.weight": "nf4 double",
        "model.layers.0.k.weight": "int8 rows",
    }  # fmt: skip
    for name, layout in layouts.items():
        # What the core dequantised is what torch makes of bitsandbytes' formulas, bit for bit.
        index, _ = tpde.encode(values[name], state[name])
        assert rows[name].base_digest == tpde.read_index(index).base_digest
        assert rows[name].base_layout == layout
    assert rows["model.embed_tokens.weight"].kind == "unchanged"


def test_wrong_bases(model, quantised, tmp_path):
    folder, _ = quantised
    state = weights()
    out = tmp_path / "out"
    del state["lm_head.weight"]
    with pytest.raises(tpde.BaseMismatchError, match=r"lm_head.weight.*does not have it"):
        tpde.compress(state, out, base=folder)
    state["lm_head.weight"] = torch.zeros(64, 300).bfloat16()
    with pytest.raises(tpde.BaseMismatchError, match=r"lm_head.weight.*\[300 64\].*\[64 300\]"):
        tpde.compress(state, out, base=folder)
    state["lm_head.weight"] = torch.zeros(300, 64).double()
    with pytest.raises(tpde.BaseMismatchError, match=r"lm_head.weight.*F64"):
        tpde.compress(state, out, base=folder)
    with pytest.raises(tpde.ArgumentError, match="no quantised tensors"):
        tpde.compress(model, out, base=model)
    for bad in ("int5", tmp_path / "none", None):
        with pytest.raises(tpde.ArgumentError, match="base: expected int2"):
            tpde.compress(model, out, base=bad)
    for options in ({"group_size": 4}, {"embeddings": "x"}, {"codec": "x"}, {"level": "x"}, {"link_base": True}):
        with pytest.raises(tpde.ArgumentError):
            tpde.compress(model, out, **options)
    with pytest.raises(tpde.ArgumentError, match="model: expected"):
        tpde.compress(None, out)
    for place in (model / "out", model, tmp_path):
        with pytest.raises(tpde.ExistsError):
            tpde.compress(model, place, overwrite=place != model)
    assert not out.exists()
    (tmp_path / "file.pt").parent.mkdir(exist_ok=True)
    torch.save(weights(), tmp_path / "file.pt")
    with pytest.raises(tpde.ExistsError):
        tpde.compress(tmp_path / "file.pt", tmp_path, overwrite=True)


def test_damage_is_found(model, tmp_path):
    out = tmp_path / "out"
    tpde.compress(model, out, progress=False)
    base = out / "base" / "model.safetensors"
    whole = base.read_bytes()
    base.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(tpde.BaseMismatchError, match="digest"):
        tpde.unpack(out, tmp_path / "restored", progress=False)
    base.write_bytes(whole[:-1])
    with pytest.raises(tpde.CorruptError):
        tpde.verify(out, progress=False)
    base.unlink()
    with pytest.raises(tpde.NotFoundError, match="base"):
        tpde.inspect(out)
    base.write_bytes(whole)
    residual = out / "residual.safetensors"
    data = bytearray(residual.read_bytes())
    data[-len(data) // 2] ^= 16
    residual.write_bytes(data)
    with pytest.raises((tpde.ChecksumError, tpde.CorruptError, tpde.TargetMismatchError)):
        tpde.unpack(out, tmp_path / "restored", progress=False)
    assert not (tmp_path / "restored").exists()


def test_a_file_called_residual_is_none(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(weights(), folder / "residual.safetensors")
    tpde.compress(folder, tmp_path / "out", progress=False)
    tpde.unpack(tmp_path / "out", tmp_path / "restored", progress=False)
    assert tree(tmp_path / "restored") == tree(folder)
    with pytest.raises(tpde.ArgumentError, match="compressed model"):
        tpde.verify(folder)
    (folder / "residual.safetensors").write_bytes(b"damaged")
    with pytest.raises(tpde.CorruptError):
        tpde.verify(folder)


def test_command_line(tpde_cli, model, tmp_path):
    done = tpde_cli("compress", model, tmp_path / "out", "--base", "int3", "--group-size", "128", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert re.search(r"base [\d.]+ kB \+ residual .* 3\.13 resident \+ \d+\.\d+ streamed bits per weight", done.stdout)
    assert tpde_cli("compress", model, tmp_path / "out").returncode == 1
    assert tpde_cli("compress", model, tmp_path / "out", "--force", "--quiet").stdout == ""
    shown = tpde_cli("inspect", tmp_path / "out").stdout
    assert re.search(r"lm_head\.weight +BF16 +300x64 +delta +int4/64 +(prefix|rice) .* 4\.25 ", shown)
    assert json.loads(tpde_cli("inspect", tmp_path / "out", "--json").stdout)["base_tensors"] == len(BASED)
    assert "sha256 verified" in tpde_cli("verify", tmp_path / "out").stdout
    assert "every tensor equals" in tpde_cli("verify", tmp_path / "out", model).stdout
    done = tpde_cli("unpack", tmp_path / "out", tmp_path / "restored")
    assert done.returncode == 0, done.stderr
    assert tree(tmp_path / "restored") == tree(model)
    for wrong in (("verify", model), ("unpack", model, tmp_path / "x"), ("compress", model)):
        assert tpde_cli(*wrong).returncode == 2
    done = tpde_cli("compress", model, tmp_path / "y", "--base", "int5")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("tpde: error: ") and "int5" in done.stderr


def test_ctrl_c_leaves_nothing(tmp_path):
    g = torch.Generator().manual_seed(0)
    save_file({"w": torch.randn(8000, 5000, generator=g)}, tmp_path / "model.safetensors")
    command = [sys.executable, "-m", "tpde", "compress", "model.safetensors", "out", "--workers", "1"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while len(list(tmp_path.iterdir())) == 1 and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1] == "tpde: interrupted\n"
    assert process.returncode == 130
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    # Killed, it leaves a temporary folder, which the next run removes.
    process = subprocess.Popen(command, cwd=tmp_path)
    while len(list(tmp_path.iterdir())) == 1 and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert len(list(tmp_path.iterdir())) == 2 and not (tmp_path / "out").exists()
    tpde.compress(tmp_path / "model.safetensors", tmp_path / "out", base="none", codec="raw", progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.safetensors", "out"]
