"""What is shipped: the sdist, the wheel made from it, and where the build gets Go from."""

from __future__ import annotations

import importlib.metadata
import os
import re
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import tpde
from tpde._core import LIBRARY, core

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "python" / "_build_backend"))

import tpde_build  # noqa: E402

VERSION = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]


def test_one_version_everywhere():
    header = (ROOT / "capi" / "tpde.h").read_text()
    assert re.search(r'#define TPDE_RELEASE "(.+)"', header)[1] == VERSION
    assert core().version() == VERSION
    assert tpde.__version__ == VERSION
    assert importlib.metadata.version("tpde") == VERSION


def test_delta_files_name_the_same_version(pair, tmp_path):
    out = tmp_path / "delta.safetensors"
    tpde.pack(*pair, out)
    assert f'"tpde.tool":"tpde {VERSION}"'.encode() in out.read_bytes()


def test_requirements():
    requires = importlib.metadata.requires("tpde")
    runtime = {re.match(r"[\w-]+", r)[0] for r in requires if "extra ==" not in r}
    assert runtime == {"torch", "numpy", "safetensors", "tqdm"}
    assert set(importlib.metadata.metadata("tpde").get_all("Provides-Extra")) == {"test", "bench", "lint"}


def _dynamic(library: Path) -> str:
    return subprocess.run(["readelf", "-dW", library], capture_output=True, text=True, check=True).stdout


def test_libraries_need_nothing_but_the_system():
    system = {"libc.so.6", "libdl.so.2", "libpthread.so.0", "libresolv.so.2", "libm.so.6", "ld-linux-x86-64.so.2"}
    assert set(re.findall(r"\(NEEDED\).*\[(.+)\]", _dynamic(LIBRARY))) <= system
    binding = Path(core().__file__)
    assert set(re.findall(r"\(NEEDED\).*\[(.+)\]", _dynamic(binding))) <= system | {"libstdc++.so.6", "libgcc_s.so.1"}


def test_core_can_be_bound_lazily():
    assert not re.search(r"BIND_NOW|\bNOW\b", _dynamic(LIBRARY))


# ---- sdist and wheel ---------------------------------------------------------


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist of this tree, and the wheel built from the unpacked sdist alone."""
    pytest.importorskip("setuptools", minversion="77")
    pytest.importorskip("pybind11")
    folder = tmp_path_factory.mktemp("packaging")
    hook = (
        "import sys; sys.path.insert(0, 'python/_build_backend'); import tpde_build; print(tpde_build.{}(sys.argv[1]))"
    )

    def build(what: str, tree: Path) -> Path:
        command = [sys.executable, "-c", hook.format(what), str(folder)]
        result = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
        return folder / result.stdout.splitlines()[-1]

    tree = folder / "tree"  # a copy: setuptools writes beside the sources
    files = subprocess.run(
        ["git", "ls-files", "-z", "--", ":!tests/data"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if files.returncode != 0:
        pytest.skip("needs the git checkout, to know which files are sources")
    for name in filter(None, files.stdout.split("\0")):
        if (ROOT / name).exists():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes((ROOT / name).read_bytes())
    sdist = build("build_sdist", tree)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    return sdist, build("build_wheel", folder / "unpacked" / f"tpde-{VERSION}")


def test_sdist_has_what_a_build_needs(archives):
    with tarfile.open(archives[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for needed in ("go.mod", "go.sum", "setup.py", "pyproject.toml", "LICENSE", "README.md", "capi/tpde.h",
                   "capi/libtpde.map", "capi/exports.c", "core/status/status.go", "core/container/FORMAT.md",
                   "python/_build_backend/tpde_build.py", "python/tpde/_binding.cpp"):  # fmt: skip
        assert needed in names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


def test_wheel_has_the_package_and_nothing_else(archives):
    version = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert archives[1].name == f"tpde-{VERSION}-{version}-{version}-linux_x86_64.whl"
    with zipfile.ZipFile(archives[1]) as wheel:
        names = set(wheel.namelist())
        metadata = wheel.read(f"tpde-{VERSION}.dist-info/METADATA").decode()
        scripts = wheel.read(f"tpde-{VERSION}.dist-info/entry_points.txt").decode()
    suffix = Path(core().__file__).name.removeprefix("_binding")
    modules = {p.relative_to(ROOT / "python").as_posix() for p in (ROOT / "python" / "tpde").glob("**/*.py")}
    compiled = {"tpde/lib/libtpde.so", f"tpde/_binding{suffix}"}
    others = {"tpde/include/tpde.h", "tpde/include/tpde_status.h", "tpde/py.typed", "tpde/_binding.pyi"}
    assert {name for name in names if ".dist-info/" not in name} == modules | compiled | others
    assert f"tpde-{VERSION}.dist-info/licenses/LICENSE" in names
    assert "License-Expression: Apache-2.0" in metadata and "Requires-Python: >=3.10" in metadata
    assert "tpde = tpde.cli:main" in scripts


def test_wheel_works_where_it_is_unpacked(archives, tmp_path):
    with zipfile.ZipFile(archives[1]) as wheel:
        wheel.extractall(tmp_path)
    result = subprocess.run(
        [sys.executable, "-c", "import tpde; from tpde._core import core; print(tpde.__file__, core().version())"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.stdout.split() == [str(tmp_path / "tpde" / "__init__.py"), VERSION], result.stderr


# ---- where Go comes from -------------------------------------------------------


def fake_go(folder: Path, version: str) -> str:
    folder.mkdir()
    command = folder / "go"
    command.write_text(f"#!/bin/sh\necho {version}\n")
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    return str(command)


def only_path(monkeypatch: pytest.MonkeyPatch, *folders: Path) -> None:
    """Makes folders all that find_go sees: the running Python may have a go beside it."""
    monkeypatch.setenv("PATH", os.pathsep.join(map(str, folders)))
    monkeypatch.setattr(tpde_build.sys, "executable", str(folders[0] / "python") if folders else "/nonexistent/python")


def test_go_of_the_machine_is_used(monkeypatch, tmp_path):
    new = fake_go(tmp_path / "new", "go9.0.1")
    only_path(monkeypatch, tmp_path / "new")
    assert tpde_build.find_go() == new
    assert tpde_build.GO_PACKAGE not in tpde_build.get_requires_for_build_wheel()


def test_go_that_is_too_old_is_passed_over(monkeypatch, tmp_path):
    fake_go(tmp_path / "old", "go1.21.3")
    only_path(monkeypatch, tmp_path / "old")
    assert tpde_build.find_go() is None
    assert tpde_build.GO_PACKAGE in tpde_build.get_requires_for_build_wheel()
    new = fake_go(tmp_path / "new", "go9.0rc1")
    only_path(monkeypatch, tmp_path / "old", tmp_path / "new")
    assert tpde_build.find_go() == new


@pytest.mark.parametrize("broken", ["", "command not found", "devel go1.99-abcdef"])
def test_go_that_does_not_answer_is_passed_over(monkeypatch, tmp_path, broken):
    fake_go(tmp_path / "odd", broken)
    only_path(monkeypatch, tmp_path / "odd")
    assert tpde_build.find_go() is None


def test_no_go_at_all(monkeypatch):
    only_path(monkeypatch)
    assert tpde_build.find_go() is None
    assert tpde_build.GO_PACKAGE in tpde_build.get_requires_for_build_editable()


def test_go_package_is_new_enough():
    version = tuple(map(int, tpde_build.GO_PACKAGE.partition("==")[2].split(".")))
    assert version >= tpde_build.required_go()


def test_make_help_names_the_targets():
    text = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^  make ([\w-]+)", text, re.MULTILINE)) == {
        "help", "venv", "build", "demo", "test", "lint", "bench", "bench-gpu", "bench-offload", "gpu-bundle",
        "gpu-bundle-offload", "fuzz", "wheel", "clean",
    }  # fmt: skip


def test_top_level_of_the_repository():
    listing = subprocess.run(
        ["git", "ls-tree", "--name-only", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    folders = {"core", "capi", "kernels", "python", "tests", "docs", ".ci"}
    files = {"go.mod", "go.sum", "setup.py", "pyproject.toml", "Makefile", "README.md", "LICENSE", ".gitignore"}
    assert set(listing.stdout.split()) <= folders | files
