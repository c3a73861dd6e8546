"""Fixtures that the tests share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors.torch import save_file

from fake_gpu import CPU, installed
from support import DATA, small_checkpoints


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes more than a few seconds")
    config.addinivalue_line("markers", "gpu: needs a CUDA device")


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real deltas."""
    return DATA


@pytest.fixture
def python(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a script in a fresh Python, where no core is loaded yet."""

    def run(script: str, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", script, *arguments],
            capture_output=True, text=True, timeout=timeout, cwd=tmp_path, env=os.environ.copy(), check=False,
        )  # fmt: skip

    return run


@pytest.fixture
def tpde_cli(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command `tpde` in its own process, not on a terminal."""

    def run(*arguments: object, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tpde", *map(str, arguments)],
            capture_output=True, text=True, timeout=timeout, cwd=tmp_path, check=False,
        )  # fmt: skip

    return run


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[CPU]:
    """A stand-in for a GPU, which takes tensors on the CPU."""
    with installed(monkeypatch) as fake:
        yield fake


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two small checkpoint files with every kind of change between them."""
    base, target = small_checkpoints()
    paths = tmp_path / "base.safetensors", tmp_path / "target.safetensors"
    save_file(base, paths[0], metadata={"format": "pt", "step": "1"})
    save_file(target, paths[1], metadata={"format": "pt", "step": "2"})
    return paths
