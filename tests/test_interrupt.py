"""Ctrl-C and SIGKILL: what was there before stays, what was half done goes."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import save_file

import tpde
from support import tree
from tpde import _sources

KILLS = 200


@pytest.fixture
def large(tmp_path):
    """Two checkpoints that take one core a second or more to pack."""
    g = torch.Generator().manual_seed(0)
    base = torch.randn(40_000_000, generator=g)
    save_file({"w": base}, tmp_path / "base.safetensors")
    save_file({"w": base + 1e-3 * torch.randn(base.shape, generator=g)}, tmp_path / "target.safetensors")
    return tmp_path


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def interrupt(folder, command):
    """Sends SIGINT as soon as the command has begun to write, and returns the finished process."""
    before = names(folder)
    process = subprocess.Popen(
        [sys.executable, *command], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while names(folder) == before and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    start = time.monotonic()
    output = process.communicate(timeout=30)
    assert time.monotonic() - start < 10
    assert names(folder) == before
    return process.returncode, *output


def test_ctrl_c_in_the_command(large):
    code, out, err = interrupt(
        large, ["-m", "tpde", "pack", "base.safetensors", "target.safetensors", "delta.safetensors", "--workers", "1"]
    )
    assert (code, out, err) == (130, "", "tpde: interrupted\n")
    tpde.pack(large / "base.safetensors", large / "target.safetensors", large / "delta.safetensors", level="fast")
    code, out, _ = interrupt(
        large, ["-m", "tpde", "unpack", "base.safetensors", "delta.safetensors", "out.safetensors", "--workers", "1"]
    )
    assert (code, out) == (130, "")


def test_ctrl_c_in_a_script_that_goes_on(large):
    script = (
        "import tpde\n"
        "try:\n"
        "    tpde.pack('base.safetensors', 'target.safetensors', 'delta.safetensors', workers=1)\n"
        "except KeyboardInterrupt:\n"
        "    print(tpde.pack(None, {}).keys() >= {'__tpde__'})\n"
    )
    code, out, err = interrupt(large, ["-c", script])
    assert (code, out) == (0, "True\n"), err


# Packs or unpacks in a loop, so that a kill hits any moment of it; the parent knows both possible results.
LOOP = """
import sys, time, tpde
what, a, b, out = sys.argv[1:]
def work(source, out):
    if what == "pack":
        tpde.pack("base", source, out, overwrite=True, workers=2)
    else:
        tpde.unpack("base", source, out=out, overwrite=True, workers=2)
start = time.perf_counter()
work(a, "warm-up")
print(time.perf_counter() - start, flush=True)
while True:
    work(a, out)
    work(b, out)
"""


@pytest.fixture
def folders(tmp_path):
    """base, target_a and target_b: folders of two shards and a small file; delta_a and delta_b."""
    g = torch.Generator().manual_seed(1)
    state = {f"layer{i}": torch.randn(64, 256, generator=g) for i in range(6)}
    for step, name in enumerate(("base", "target_a", "target_b")):
        folder = tmp_path / name
        folder.mkdir()
        tensors = {
            key: tensor + step * 1e-3 * (torch.rand(64, 256, generator=g) < 0.1) for key, tensor in state.items()
        }
        for shard in range(2):
            part = {key: tensor for i, (key, tensor) in enumerate(tensors.items()) if i % 2 == shard}
            save_file(part, folder / f"model-{shard + 1:05}-of-00002.safetensors")
        (folder / "state.json").write_text(f"{step}")
    for x in "ab":
        tpde.pack(tmp_path / "base", tmp_path / f"target_{x}", tmp_path / f"delta_{x}.safetensors")
    return tmp_path


def content(path):
    """The bytes of a file, or of everything in a folder; None if there is nothing."""
    if path.is_dir():
        return tree(path)
    return path.read_bytes() if path.exists() else None


@pytest.mark.parametrize("what", ["pack", "unpack"])
def test_kills_lose_nothing(folders, what):
    a, b = ("target_a", "target_b") if what == "pack" else ("delta_a.safetensors", "delta_b.safetensors")
    results = ("delta_a.safetensors", "delta_b.safetensors") if what == "pack" else ("target_a", "target_b")
    allowed = [content(folders / name) for name in results]
    work = folders / "work"
    work.mkdir()
    out = work / "out.safetensors" if what == "pack" else work / "out"
    inputs = ["base", "target_a", "target_b", "delta_a.safetensors", "delta_b.safetensors"]
    before = {name: content(folders / name) for name in inputs}
    delays = random.Random(0)
    seen = set()
    for kill in range(KILLS // 2):
        process = subprocess.Popen(
            [sys.executable, "-c", LOOP, what, a, b, str(out)], cwd=folders, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        seconds = float(process.stdout.readline())  # a run takes; the machine may be slow or busy
        time.sleep(delays.uniform(0, 4 * seconds))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        found = content(out)
        if found is None:
            assert not seen, f"kill {kill}: what had been written before is gone"
        else:
            assert found in allowed, f"kill {kill}: neither the old nor the new content"
            seen.add(allowed.index(found))
    assert seen == {0, 1}
    assert {name: content(folders / name) for name in inputs} == before
    run = tpde.pack if what == "pack" else tpde.unpack
    run(folders / "base", folders / a, out, overwrite=True)
    assert content(out) == allowed[0]
    assert names(work) == [out.name], "a later run does not clean up what killed ones left"


FULL_DISK = """
import os, subprocess, tpde
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", "small"], check=True)
for attempt in (
    lambda: tpde.unpack("base", "delta_a.safetensors", out="small/out"),
    lambda: tpde.pack("base", "target_a", "small/delta.safetensors", codec="raw"),
):
    try:
        attempt()
    except tpde.ReadWriteError as error:
        print(os.listdir("small"), error)
"""


def test_disk_full(folders):
    alone = ["unshare", "--user", "--map-root-user", "--mount"]
    (folders / "small").mkdir()
    probe = subprocess.run(
        [*alone, "mount", "-t", "tmpfs", "none", "small"], cwd=folders, capture_output=True, check=False
    )
    if probe.returncode:
        pytest.skip("this machine does not let users mount")
    result = subprocess.run(
        [*alone, sys.executable, "-c", FULL_DISK], cwd=folders, capture_output=True, text=True, check=False
    )
    assert re.fullmatch(r"(\[\] .*(free|space).*\n){2}", result.stdout), result.stdout + result.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder(folders):
    (folders / "frozen").mkdir(mode=0o555)
    with pytest.raises(tpde.ReadWriteError, match="frozen"):
        tpde.unpack(folders / "base", folders / "delta_a.safetensors", out=folders / "frozen" / "out")


def test_ctrl_c_at_any_moment(python, tmp_path):
    """Tensors in memory, which are freed as soon as nothing in Python uses them any more."""
    result = python(
        """
import random, signal, sys, time
import torch, tpde

base = {f"w{i}": torch.randn(200, 200) for i in range(4)}
target = {name: tensor + 0.01 * (torch.rand_like(tensor) > 0.9) for name, tensor in base.items()}
delta = tpde.pack(base, target)
copy = lambda tensors: {name: tensor.clone() for name, tensor in tensors.items()}
works = [
    lambda: tpde.pack(copy(base), copy(target), "delta", overwrite=True),
    lambda: tpde.unpack(copy(base), delta),
    lambda: tpde.unpack(copy(base), delta, out="out", overwrite=True),
    lambda: tpde.verify(copy(base), delta, target=copy(target)),
]
signal.signal(signal.SIGALRM, signal.default_int_handler)
random.seed(0)
interrupted, end = 0, time.monotonic() + 5
while time.monotonic() < end:
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 6e-3))
        random.choice(works)()  # any other exception fails the test
        time.sleep(1)
    except KeyboardInterrupt:
        interrupted += 1
print(interrupted)
"""
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 20  # some hundred on a machine that is not busy
    assert {path.name for path in tmp_path.iterdir()} <= {"delta", "out"}


def test_ctrl_c_while_a_compressed_model_is_opened(tmp_path):
    """Whenever it comes, it is that and not an error of handles that are left."""
    save_file({"w": torch.randn(256, 256)}, tmp_path / "m.safetensors")
    tpde.compress(tmp_path / "m.safetensors", tmp_path / "out", progress=False)

    def interrupted(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupted)
    generator = random.Random(0)
    try:
        for _ in range(300):
            try:
                signal.setitimer(signal.ITIMER_REAL, generator.uniform(1e-4, 4e-3))
                while True:
                    _sources.open_source(tmp_path / "out", "model").close()
            except KeyboardInterrupt:
                pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
