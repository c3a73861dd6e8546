"""PyTorch state dicts as checkpoints, and the rule that finds the state dict."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

import tpde
from support import assert_same_tensors, small_checkpoints


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
def test_state_dict_files(tmp_path, suffix):
    base, target = small_checkpoints()
    paths = tmp_path / f"base{suffix}", tmp_path / f"target{suffix}"
    torch.save(base, paths[0])
    torch.save(target, paths[1])
    delta, out = tmp_path / "delta.safetensors", tmp_path / "out.safetensors"
    tpde.pack(*paths, delta)
    tpde.unpack(paths[0], delta, out=out)
    assert_same_tensors(load_file(out), target)
    assert_same_tensors(tpde.unpack(base, delta), target)


def test_state_dicts_come_back_as_safetensors(tmp_path, tpde_cli):
    base, target = small_checkpoints()
    torch.save(base, tmp_path / "base.pt")
    torch.save(target, tmp_path / "target.pt")
    tpde.pack(tmp_path / "base.pt", tmp_path / "target.pt", tmp_path / "delta.safetensors")
    for name in ("out.pt", "out.PTH", "out.bin"):
        with pytest.raises(tpde.ArgumentError, match=r"out: .*\.safetensors"):
            tpde.unpack(tmp_path / "base.pt", tmp_path / "delta.safetensors", tmp_path / name)
        assert not (tmp_path / name).exists()
    done = tpde_cli("unpack", "base.pt", "delta.safetensors", "out.pt")
    assert done.returncode == 1 and "expected a name that ends in .safetensors" in done.stderr
    (tmp_path / "folder.pt").mkdir()
    tpde.unpack(tmp_path / "base.pt", tmp_path / "delta.safetensors", tmp_path / "folder.pt")
    assert_same_tensors(load_file(next((tmp_path / "folder.pt").iterdir())), target)


def test_file_of_old_torch(tmp_path):
    _, target = small_checkpoints()
    path = tmp_path / "old.pt"
    torch.save(target, path, _use_new_zipfile_serialization=False)
    assert_same_tensors(tpde.unpack(None, tpde.pack(None, path)), target)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "module"])
def test_wrapped(tmp_path, key):
    _, target = small_checkpoints()
    path = tmp_path / "wrapped.pt"
    torch.save({"epoch": 3, key: target, "optimizer": {"lr": 0.1}}, path)
    with pytest.warns(UserWarning, match="'epoch', 'optimizer'"):
        delta = tpde.pack(None, path)
    assert_same_tensors(tpde.unpack(None, delta), target)


def test_a_wrapper_without_company_warns_nobody(recwarn):
    _, target = small_checkpoints()
    tpde.pack(None, {"state_dict": target})
    assert not [w for w in recwarn if "left out" in str(w.message)]


def test_entries_that_are_no_tensors(tmp_path):
    with pytest.raises(tpde.ArgumentError, match=r"'step'.*int"):
        tpde.pack(None, {"w": torch.zeros(2), "step": 3})
    with pytest.raises(tpde.ArgumentError, match=r"'step'.*int"):
        tpde.pack(None, {"model": {"w": torch.zeros(2), "step": 3}})
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(tpde.ArgumentError, match="list"):
        tpde.pack(None, tmp_path / "list.pt")


class Hostile:
    def __reduce__(self):
        return print, ("code from a pickle ran",)


def test_pickles_do_not_run_code(tmp_path, capsys):
    path = tmp_path / "hostile.pt"
    torch.save({"w": Hostile()}, path)
    with pytest.raises(tpde.UnsupportedError, match="weights_only"):
        tpde.pack(None, path)
    assert "code from a pickle ran" not in capsys.readouterr().out


def test_damaged_and_missing(tmp_path):
    path = tmp_path / "junk.pt"
    path.write_bytes(b"junk")
    with pytest.raises(tpde.UnsupportedError, match=r"junk\.pt"):
        tpde.pack(None, path)
    with pytest.raises(tpde.NotFoundError, match=r"none\.pt"):
        tpde.pack(None, tmp_path / "none.pt")


def test_tied_parameters_in_memory():
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(30, 30), "b": torch.nn.Linear(30, 30)})
    model["b"].weight = model["a"].weight
    delta = tpde.pack(None, model.state_dict())
    kinds = {t.name: t.kind for t in tpde.inspect(delta).tensors}
    assert sorted((kinds["a.weight"], kinds["b.weight"])).count("alias") == 1
    assert_same_tensors(tpde.unpack(None, delta), dict(model.state_dict()))
