"""The command line: what it prints, where, and its exit codes."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest
import torch
from safetensors.torch import save_file

from support import tree


@pytest.fixture
def rl(data):
    return data / "rl" / "step20.safetensors", data / "rl" / "step21.safetensors"


def ok(result):
    assert result.returncode == 0, result.stderr
    return result.stdout


def fails(result, message):
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("tpde: error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


def test_pack_unpack_verify_inspect(tpde_cli, tmp_path, rl):
    base, target = rl
    packed = tpde_cli("pack", base, target, "delta.safetensors")
    assert "delta.safetensors" in ok(packed) and "ratio" in packed.stdout
    assert packed.stderr == ""  # no bar in a pipe
    out = ok(tpde_cli("unpack", base, "delta.safetensors", "restored.safetensors"))
    assert (tmp_path / "restored.safetensors").read_bytes() == target.read_bytes()
    import hashlib

    assert hashlib.sha256(target.read_bytes()).hexdigest() in out and "sha256 verified" in out
    assert "sha256 verified" in ok(tpde_cli("verify", base, "delta.safetensors"))
    for arguments in ((target,), ("--target", target)):
        assert "equals the given target" in ok(tpde_cli("verify", base, "delta.safetensors", *arguments))
    assert "q_proj" in ok(tpde_cli("inspect", "delta.safetensors"))
    assert json.loads(ok(tpde_cli("inspect", "delta.safetensors", "--json")))["totals"]["delta"] == 1


def test_json_and_quiet(tpde_cli, rl):
    base, target = rl
    assert json.loads(ok(tpde_cli("pack", "--json", base, target, "a.safetensors")))["totals"]["tensors"] == 1
    unpacked = json.loads(ok(tpde_cli("unpack", "--json", base, "a.safetensors", "out.safetensors")))
    assert unpacked["files"][0]["verified"]
    assert json.loads(ok(tpde_cli("verify", "--json", base, "a.safetensors", target)))["target_compared"]
    for arguments in (
        ("pack", base, target, "b.safetensors", "--codec", "zstd", "--workers", 1, "--num-chunks", 8),
        ("unpack", base, "b.safetensors", "out.safetensors", "--force"),
        ("verify", base, "b.safetensors"),
    ):
        result = tpde_cli(*arguments, "--quiet")
        assert ok(result) == "" and result.stderr == ""


def test_no_base(tpde_cli, tmp_path, rl):
    ok(tpde_cli("pack", "-", rl[1], "delta.safetensors"))
    ok(tpde_cli("unpack", "-", "delta.safetensors", "out.safetensors"))
    assert (tmp_path / "out.safetensors").read_bytes() == rl[1].read_bytes()


def test_chain(tpde_cli, tmp_path, data):
    printed = ok(tpde_cli("pack", data / "rl", "deltas"))
    assert printed.count("\n") == 2
    first = data / "rl" / "step20.safetensors"
    ok(tpde_cli("unpack", first, "deltas/step21.safetensors", "deltas/step28.safetensors", "out.safetensors"))
    assert (tmp_path / "out.safetensors").read_bytes() == (data / "rl" / "step28.safetensors").read_bytes()
    fails(tpde_cli("unpack", first, "deltas/step28.safetensors", "deltas/step21.safetensors", "x.safetensors"), "step2")


def test_failures_are_one_line(tpde_cli, tmp_path, rl):
    base, target = rl
    ok(tpde_cli("pack", base, target, "delta.safetensors"))
    before = tree(tmp_path)
    fails(tpde_cli("pack", base, target, "delta.safetensors"), "delta.safetensors")
    fails(tpde_cli("pack", base, "nowhere.safetensors", "x.safetensors"), "nowhere.safetensors")
    fails(tpde_cli("unpack", target, "delta.safetensors", "x.safetensors"), "q_proj")
    fails(tpde_cli("unpack", base, base, "x.safetensors"), "step20")
    fails(tpde_cli("inspect", base), "step20")
    fails(tpde_cli("bench", base, base), "differs")
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "arguments",
    [
        (), ("frobnicate",), ("pack",), ("pack", "a"), ("pack", "a", "b", "c", "d"), ("unpack", "a", "b"),
        ("verify", "a"),
        ("pack", "a", "b", "c", "--codec", "lz4"), ("pack", "a", "b", "c", "--workers", "-1"), ("inspect",),
    ],
)  # fmt: skip
def test_wrong_usage(tpde_cli, arguments):
    result = tpde_cli(*arguments)
    assert result.returncode == 2
    assert "usage: tpde" in result.stderr


def test_a_forgotten_output_does_not_cost_a_delta(tpde_cli, tmp_path, data):
    ok(tpde_cli("pack", data / "rl", "deltas"))
    before = tree(tmp_path)
    result = tpde_cli(
        "unpack",
        "--force",
        data / "rl" / "step20.safetensors",
        "deltas/step21.safetensors",
        "deltas/step28.safetensors",
    )
    assert result.returncode == 2 and "is a delta" in result.stderr
    assert tree(tmp_path) == before


def test_help_and_version(tpde_cli):
    import tpde

    for command in ("pack", "unpack", "verify", "inspect", "bench", "version"):
        assert command in ok(tpde_cli("--help"))
        assert f"usage: tpde {command}" in ok(tpde_cli(command, "--help"))
    assert tpde.__version__ in ok(tpde_cli("version"))


def test_warning_about_a_wrapped_state_dict(tpde_cli, tmp_path):
    torch.save({"model": {"w": torch.zeros(3)}, "epoch": 4}, tmp_path / "checkpoint.pt")
    result = tpde_cli("pack", "-", "checkpoint.pt", "delta.safetensors")
    ok(result)
    assert result.stderr == "tpde: warning: checkpoint.pt: packing the state dict under 'model'; left out: 'epoch'\n"


def test_bench(tpde_cli, rl):
    pytest.importorskip("zstandard")
    printed = ok(tpde_cli("bench", *rl, "--repeats", 1))
    for name in ("tpde auto", "tpde elias", "tpde zstd", "tpde raw", "XOR + zstd-1", "int32 position gaps"):
        assert name in printed
    lines = json.loads(ok(tpde_cli("bench", *rl, "--repeats", 1, "--json")))
    assert {"name", "ratio", "pack", "unpack", "stored_bytes"} <= set(lines[0])


def test_bar_on_a_terminal_only(tmp_path):
    """On a terminal a bar with rate and time left is drawn, and wiped when the work is done."""
    g = torch.Generator().manual_seed(0)
    base = torch.randn(6_000_000, generator=g)
    save_file({"w": base}, tmp_path / "base.safetensors")
    save_file({"w": base + 1e-3 * torch.randn(base.shape, generator=g)}, tmp_path / "target.safetensors")
    command = [sys.executable, "-m", "tpde", "pack", "base.safetensors", "target.safetensors"]

    def drawn(*arguments):
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))
        with subprocess.Popen(
            [*command, *arguments], stderr=theirs, stdout=subprocess.DEVNULL, cwd=tmp_path
        ) as process:
            os.close(theirs)
            shown = b""
            while chunk := _read(ours):
                shown += chunk
        os.close(ours)
        assert process.returncode == 0
        return shown.decode()

    bar = drawn("a.safetensors", "--workers", "1")
    assert "pack" in bar and "B/s" in bar and "<" in bar
    assert drawn("b.safetensors", "--quiet") == ""


def _read(terminal):
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux says EIO once the other side has closed
        return b""
