"""Objects, files and paths that nobody means to pass: an error that says so, never a crash, a hang or a lost file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch._subclasses import FakeTensorMode

import tpde
from support import assert_same_bits, assert_same_tensors, small_checkpoints
from tpde import _options

BASE = {"w": torch.zeros(64, 64)}


class Wrapper(torch.Tensor):
    """Stands for another tensor and has no memory itself, as DTensor and quantised tensors do."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        out = function(*[a.inner if isinstance(a, cls) else a for a in args], **(kwargs or {}))
        return cls(out) if isinstance(out, torch.Tensor) else out


def freed():
    tensor = torch.ones(64, 64)
    tensor.untyped_storage().resize_(0)
    return tensor


def fake():
    with FakeTensorMode():
        return torch.ones(64, 64)


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("make", [freed, fake, lambda: Wrapper(torch.ones(64, 64))], ids=["freed", "fake", "wrapper"])
def test_tensors_without_memory(make):
    with pytest.raises(tpde.UnsupportedError, match=r"'w'.* no host memory"):
        tpde.pack(BASE, {"w": make()})
    with pytest.raises(tpde.UnsupportedError, match="no host memory"):
        tpde.encode(BASE["w"], make())


def test_vmap_is_refused():
    with pytest.raises(tpde.UnsupportedError, match="no host memory"):
        torch.vmap(lambda row: tpde.encode(None, row)[0])(torch.ones(3, 4))


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ({1: BASE["w"]}, tpde.ArgumentError, "got 1"),
        ({"\ud800": BASE["w"]}, tpde.ArgumentError, "Unicode"),
        ({"a\0b": BASE["w"]}, tpde.ArgumentError, "zero byte"),
        ({"w": None}, tpde.ArgumentError, "'w' is a NoneType"),
        ({"w": np.arange(3, dtype=">f4")}, tpde.UnsupportedError, "'w'.*byte order"),
        ({"w": np.array([None])}, tpde.UnsupportedError, "'w'"),
        ({"w": torch.ones(3).to_sparse()}, tpde.UnsupportedError, "'w'.*sparse"),
        ({"w": torch.ones(3, dtype=torch.complex128)}, tpde.UnsupportedError, "'w'.*complex128"),
        (None, tpde.ArgumentError, "target: .* None"),
        ([BASE["w"]], tpde.ArgumentError, "list"),
        (torch.nn.Linear(2, 2), tpde.ArgumentError, "state_dict"),
    ],
)
def test_targets_that_are_refused(target, error, message):
    with pytest.raises(error, match=message):
        tpde.pack(BASE, target)


def test_deltas_in_memory_are_no_checkpoints():
    delta = tpde.pack(BASE, {"w": torch.ones(64, 64)})
    for base, target in ((delta, BASE), (BASE, delta)):
        with pytest.raises(tpde.ArgumentError, match="is a delta"):
            tpde.pack(base, target)
    with pytest.raises(tpde.ArgumentError, match="keys are all names"):
        tpde.inspect({**delta, 5: BASE["w"]})
    with pytest.raises(tpde.ArgumentError, match="__tpde_metadata__"):
        tpde.inspect({**delta, "__tpde_metadata__": "text"})


def test_arguments_of_other_types():
    weight = torch.randn(32, 64)
    index, blob = tpde.encode(None, weight)
    model = torch.nn.Sequential(torch.nn.Linear(64, 32))
    for what, call in (
        ("bits: .* got 4.0", lambda: tpde.quantize(weight, bits=4.0)),
        ("bits: .* got '4'", lambda: tpde.quantize(weight, bits="4")),
        ("group_size", lambda: tpde.quantize(weight, group_size="64")),
        ("group_size", lambda: tpde.quantize(weight, group_size=64.0)),
        ("weight: expected a QuantizedTensor", lambda: tpde.quantised_linear(weight, weight)),
        ("out: expected a torch.Tensor", lambda: tpde.reconstruct(None, index, blob, out=5)),
        ("device", lambda: tpde.offload(model, device="gpu")),
        ("device", lambda: tpde.offload(model, device=["cuda"])),
        ("reserve", lambda: tpde.offload(model, reserve=0.0)),
        (r"layers: expected tuples \(name, base", lambda: tpde.load_into(model, {"0.weight": weight}, device="cpu")),
    ):
        with pytest.raises(tpde.ArgumentError, match=what):
            call()
    assert tpde.offload(model, reserve="0", device="cpu").reserve == 0  # as `tpde plan --reserve 0`


def test_counts():
    assert _options.count("n", np.int64(3)) == 3
    assert _options.size_in_bytes("size", "1.5kB") == 1500
    for value in (-1, 1.0, "2", True, 2**64):
        with pytest.raises(tpde.ArgumentError, match="num_chunks"):
            tpde.pack(BASE, BASE, num_chunks=value)
    with pytest.raises(tpde.ArgumentError, match="workers"):
        tpde.encode(None, BASE["w"], workers=2**40)
    for size in ("9" * 400 + "GB", "0", "1e3", "-1"):
        with pytest.raises(tpde.ArgumentError, match="max_shard_size"):
            tpde.pack(BASE, BASE, max_shard_size=size)


def test_another_default_device(tmp_path):
    base, target = small_checkpoints()
    linear = torch.nn.Linear(8, 4)
    values = torch.tensor([2.0, 3.0])
    indices = torch.tensor([1, 30])
    want = linear.weight.detach().flatten().scatter_add(0, indices, values).view(4, 8)
    with torch.device("meta"):  # as model loaders do
        unpacked = tpde.unpack(base, tpde.pack(base, target))
        layer = tpde.nn.JITCompressedLinear.from_linear(linear, linear.weight.detach() + 1)
        again = tpde.nn.JITCompressedLinear((4, 8), *layer.save(tmp_path / "layer"), bias=linear.bias)
        weight = again.weight
        quantised = tpde.nn.JITCompressedLinear.from_linear(linear, tpde.quantize(linear.weight)).weight
        added = tpde.scatter_add(linear.weight.detach(), indices, values)
    assert_same_tensors(unpacked, target)
    assert_same_bits(weight, linear.weight.detach())
    assert_same_bits(quantised, linear.weight.detach())
    assert_same_bits(added, want)


def test_operator_scatter_add_checks_its_tensors():
    base, indices, values, chunks = torch.zeros(9), torch.tensor([1, 5]), torch.ones(2), torch.tensor([0, 2])
    assert torch.ops.tpde.scatter_add(base, indices, values, chunks)[5] == 1
    for broken in (
        (base, indices.int(), values, chunks),
        (base, indices, values[:1], chunks),
        (base, indices, values.half(), chunks),
        (base, indices, values, chunks[:0]),
    ):
        with pytest.raises(tpde.ArgumentError, match=r"indices|values|chunk_map"):
            torch.ops.tpde.scatter_add(*broken)


@pytest.fixture
def torch_pair(tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "in" / "base.pt", tmp_path / "in" / "target.pt"
    paths[0].parent.mkdir()
    for path, tensors in zip(paths, small_checkpoints(), strict=True):
        torch.save(tensors, path)
    return paths


@pytest.mark.parametrize("disguise", ["same", "dots", "hard link", "symbolic link"])
def test_torch_inputs_are_not_overwritten(torch_pair, tmp_path, disguise):
    base, target = torch_pair
    tpde.pack(base, target, tmp_path / "delta")
    before = [path.read_bytes() for path in torch_pair]

    def other(path: Path) -> Path:
        if disguise == "same":
            return path
        if disguise == "dots":
            return path.parent / ".." / "in" / path.name
        name = tmp_path / path.name
        if not name.exists():
            (os.link if disguise == "hard link" else os.symlink)(path, name)
        return name

    for path in torch_pair:
        with pytest.raises(tpde.ExistsError, match="input"):
            tpde.pack(base, target, other(path), overwrite=True)
    with pytest.raises(tpde.ExistsError, match="input"):
        tpde.unpack(base, tmp_path / "delta", out=other(base), overwrite=True)
    assert [path.read_bytes() for path in torch_pair] == before


def test_folder_of_a_torch_input_is_not_replaced(torch_pair, tmp_path):
    base, _ = torch_pair
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(small_checkpoints()[1], folder / "model.safetensors")
    tpde.pack(base, folder, tmp_path / "delta")
    shutil.copy(folder / "model.safetensors", base.parent)  # so that it looks like a checkpoint, to be replaced
    with pytest.raises(tpde.ExistsError, match="contains the input"):
        tpde.unpack(base, tmp_path / "delta", out=base.parent, overwrite=True)
    assert base.exists()


def test_pipes_are_no_files(pair: tuple[Path, Path], tmp_path: Path, tpde_cli: Callable):
    base, target = pair
    tpde.pack(base, target, tmp_path / "delta")
    for name in ("pipe", "pipe.pt", "pipe.safetensors.index.json"):
        os.mkfifo(tmp_path / name)
        for arguments in (
            ("pack", name, target, "out"),
            ("inspect", name),
            ("verify", base, "delta", name),
            ("unpack", base, "delta", name),
        ):
            result = tpde_cli(*arguments, timeout=20)
            assert result.returncode == 1, (arguments, result)
            assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "header", [b"[" * 100_000, b'{"__metadata__":[]}', b'{"__metadata__":"x"}', b"[]", b"\xff"], ids=range(5)
)
def test_output_that_is_no_delta_is_told_apart(pair, tmp_path, header):
    from tpde._deltas import is_delta

    odd = tmp_path / "odd"
    odd.write_bytes(len(header).to_bytes(8, "little") + header)
    assert not is_delta(odd)


def test_chain_passes_over_its_own_deltas(tmp_path):
    tensors = {"w": torch.arange(1000.0)}
    for step in (1, 2, 10):
        (tmp_path / f"epoch_{step}").mkdir()
        save_file({"w": tensors["w"] + step}, tmp_path / f"epoch_{step}" / "model.safetensors")
    for out in (tmp_path, tmp_path / "deltas"):
        for _ in range(2):  # the second time the deltas of the first are there
            reports = tpde.pack_chain(tmp_path, out, overwrite=True)
            assert [Path(r.out[0]).name for r in reports] == ["epoch_2.safetensors", "epoch_10.safetensors"]


def test_reports_tell_everything(pair, tmp_path, tpde_cli):
    base, target = small_checkpoints()
    target["tied\x1b[31m"] = target["new.weight"].clone()
    target["tiny"] = torch.ones(1)
    report = tpde.pack(base, target, tmp_path / "delta")
    rows = {row.name: row for row in report.tensors}
    tied = {name for name in ("new.weight", "tied\x1b[31m") if rows[name].kind == "alias"}
    assert len(tied) == 1
    assert rows[tied.pop()].of in ("new.weight", "tied\x1b[31m")
    assert "F32 [4 6]" in rows["reshaped.weight"].reason
    assert report.totals.verbatim == sum(row.kind == "verbatim" for row in report.tensors) > 0
    assert f"{report.totals.verbatim} verbatim" in report.summary()
    assert rows["new.weight"].base_digest is None
    shown = tpde_cli("inspect", "delta")
    assert shown.returncode == 0
    assert "\x1b" not in shown.stdout
    assert "tied\\x1b[31m" in shown.stdout


def test_bases_that_a_layer_cannot_read(tmp_path):
    layer = tpde.nn.JITCompressedLinear.from_linear(torch.nn.Linear(8, 4), torch.zeros(4, 8).numpy())
    _, index, blob = layer.save(tmp_path / "layer")
    (tmp_path / "junk.pt").write_bytes(b"junk")
    torch.save([1], tmp_path / "list.pt")
    for name, error in (
        ("layer.tpde-index", tpde.CorruptError),
        ("junk.pt", tpde.UnsupportedError),
        ("list.pt", tpde.ArgumentError),
    ):
        with pytest.raises(error, match=name):
            tpde.nn.JITCompressedLinear((4, 8), tmp_path / name, index, blob)


@pytest.mark.parametrize(
    "options",
    [
        ("--max-shard-size", "huge"),
        ("--workers", "9999"),
        ("--num-chunks", "-1"),
        ("--num-chunks", "2", "--chunk-bytes", "2"),
    ],
)
def test_options_that_make_no_sense_are_wrong_usage(pair, tpde_cli, options):
    result = tpde_cli("pack", *pair, "out", *options)
    assert result.returncode == 2
    assert options[0] in result.stderr
    assert "_natural" not in result.stderr
