"""The C ABI: a C program that uses tpde.h alone, and whether header, library, statuses and Python agree."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tpde import _status
from tpde._core import LIBRARY

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "python" / "_build_backend"))

import tpde_build  # noqa: E402

SOURCES = Path(__file__).parent / "capi"
HEADER = LIBRARY.parents[1] / "include" / "tpde.h"  # the one that users get

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C program, linked against the installed library."""
    out = tmp_path_factory.mktemp("capi") / "capi"
    subprocess.run(
        ["gcc", "-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", f"-I{HEADER.parent}"]
        + [str(path) for path in sorted(SOURCES.glob("*.c"))]
        # The driver's functions are bound when they are first called, if ever.
        + ["-o", str(out), f"-L{LIBRARY.parent}", "-ltpde", f"-Wl,-rpath,{LIBRARY.parent}"]
        + ["-Wl,-z,lazy", "-Wl,--allow-shlib-undefined", "-pthread"],
        check=True,
    )
    return out


def _names() -> list[str]:
    table = re.search(r"#define TESTS\(X\)(.*?)\n\n", (SOURCES / "tests.h").read_text(), re.DOTALL)
    return re.findall(r"X\((\w+)\)", table[1])


@pytest.mark.parametrize("name", _names())
def test_c_program(program: Path, tmp_path: Path, name: str) -> None:
    result = subprocess.run([program, name, tmp_path], capture_output=True, text=True, timeout=120, check=False)
    print(result.stdout)
    assert result.returncode == 0, result.stderr


def test_c_program_knows_its_tests(program: Path) -> None:
    assert subprocess.run([program], capture_output=True, text=True, check=True).stdout.split() == _names()


def _declared(header: str) -> set[str]:
    code = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    return set(re.findall(r"\b(tpde_[a-z_]+)\(", code))


def test_every_function_is_exported_and_nothing_else() -> None:
    listing = subprocess.run(["nm", "-D", "--defined-only", LIBRARY], capture_output=True, text=True, check=True).stdout
    exported = {line.split()[-1] for line in listing.splitlines()}
    declared = _declared((ROOT / "capi" / "tpde.h").read_text())
    assert len(declared) > 25
    assert exported == declared


def test_installed_header_is_the_source() -> None:
    for name in ("tpde.h", "tpde_status.h"):
        assert (HEADER.parent / name).read_bytes() == (ROOT / "capi" / name).read_bytes()


def test_header_compiles_alone_as_c_and_as_cpp(tmp_path: Path) -> None:
    for compiler, suffix, standard in (("gcc", "c", "c99"), ("g++", "cpp", "c++11")):
        unit = tmp_path / f"unit.{suffix}"
        unit.write_text('#include "tpde.h"\nint main(void) { return TPDE_OK; }\n')
        flags = [f"-std={standard}", "-pedantic", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", f"-I{HEADER.parent}"]
        subprocess.run([compiler, *flags, unit], check=True)


def test_statuses_agree_with_the_table() -> None:
    rows = [line.split("\t") for line in (ROOT / "core/status/status.tsv").read_text().splitlines() if line[0] != "#"]
    codes = {name: int(code) for code, name, _ in rows}
    header = (ROOT / "capi" / "tpde_status.h").read_text()
    assert {name.lower(): int(code) for name, code in re.findall(r"TPDE_(\w+)\s*=\s*(\d+)", header)} == codes
    failures = {code for name, code in codes.items() if name not in ("ok", "pending")}
    assert set(_status.EXCEPTIONS) == failures
    assert (codes["ok"], codes["pending"]) == (_status.OK, _status.PENDING)


def test_generated_names_are_up_to_date(tmp_path: Path) -> None:
    """Runs the generator on a copy and compares what it writes with what is checked in."""
    go = tpde_build.find_go() or pytest.skip("needs go")
    outputs = ("core/status/status_gen.go", "capi/tpde_status.h", "python/tpde/_status.py")
    for path in ("go.mod", "core/status/status.tsv", "core/status/status.go", "core/status/gen/main.go", *outputs):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, tmp_path / path)
    for path in outputs:
        (tmp_path / path).write_text("")
    (tmp_path / outputs[0]).write_text("package status\n")
    subprocess.run([go, "run", "./gen"], cwd=tmp_path / "core" / "status", check=True)
    for path in outputs:
        assert (tmp_path / path).read_text() == (ROOT / path).read_text(), f"{path}: run go generate ./core/status"
