"""Files are mapped and worked on in pieces: memory does not grow with the checkpoint."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

LIMIT_BYTES = 512 << 20
TENSOR_BYTES = 1 << 30


def write_sparse(path: Path, step: int, columns: int = 1) -> None:
    """A checkpoint of one bf16 tensor of 1 GiB, nearly all zeros and holes on the disk."""
    shape = [TENSOR_BYTES // 2 // columns, columns]
    header = {"w": {"dtype": "BF16", "shape": shape, "data_offsets": [0, TENSOR_BYTES]}}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + TENSOR_BYTES)
        for i in range(0, TENSOR_BYTES, 1 << 20):
            file.seek(8 + len(text) + i)
            file.write(struct.pack("<4H", 0x3F80 + step, 0x3F80, 0xBF80 - step, 0x0001))


def peak_anonymous_bytes(command: list[str], folder: Path) -> int:
    """Runs command; returns the largest RssAnon (resident memory beyond the page cache) that was seen."""
    process = subprocess.Popen([sys.executable, "-m", "tpde", *command, "--quiet"], cwd=folder)
    status = Path(f"/proc/{process.pid}/status")
    peak = 0
    while process.poll() is None:
        for line in status.read_text().splitlines():
            if line.startswith("RssAnon:"):
                peak = max(peak, int(line.split()[1]) * 1024)
        time.sleep(0.005)
    assert process.returncode == 0
    return peak


@pytest.mark.slow
def test_memory_stays_flat(tmp_path):
    base, target = tmp_path / "base.safetensors", tmp_path / "target.safetensors"
    write_sparse(base, 0)
    write_sparse(target, 1)
    assert peak_anonymous_bytes(["pack", base.name, target.name, "delta.safetensors"], tmp_path) < LIMIT_BYTES
    assert (tmp_path / "delta.safetensors").stat().st_size < 100_000
    assert peak_anonymous_bytes(["unpack", base.name, "delta.safetensors", "out.safetensors"], tmp_path) < LIMIT_BYTES
    assert subprocess.run(["cmp", target, tmp_path / "out.safetensors"], check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("base", ["int8", "none"])
def test_memory_stays_flat_when_a_model_is_compressed(tmp_path, base):
    model = tmp_path / "model.safetensors"
    write_sparse(model, 0, columns=4096)
    command = ["compress", model.name, "out", "--base", base]
    assert peak_anonymous_bytes(command, tmp_path) < LIMIT_BYTES
    assert peak_anonymous_bytes(["unpack", "out", "out.safetensors"], tmp_path) < LIMIT_BYTES
    assert subprocess.run(["cmp", model, tmp_path / "out.safetensors"], check=False).returncode == 0
