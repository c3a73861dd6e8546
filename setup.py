"""Builds what pyproject.toml cannot describe: the Go core (libtpde.so) and the pybind11 module beside it.

Neither needs torch, CUDA or a GPU. `python setup.py build_ext --inplace` rebuilds both in a source tree; Go's build
cache and setuptools' time stamps make that quick when little changed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "python" / "_build_backend"))

import tpde_build  # noqa: E402  the path above must be set first

HEADERS = ("tpde.h", "tpde_status.h")
# What building needs beside the Python package.
SOURCES = ("go.mod", "go.sum", "core", "capi", "kernels", "python/_build_backend", "LICENSE", "README.md")


class BuildCore(build_ext):
    """build_ext that also puts the Go core and its header into the package."""

    def run(self) -> None:
        package = ROOT / "python" / "tpde" if self.inplace else Path(self.build_lib) / "tpde"
        self._build_core(package / "lib" / "libtpde.so")
        for header in HEADERS:
            target = package / "include" / header
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / "capi" / header, target)
        super().run()

    def _build_core(self, out: Path) -> None:
        go = tpde_build.find_go()
        if go is None:
            wanted = ".".join(map(str, tpde_build.required_go()))
            raise SystemExit(f"tpde needs Go {wanted} or newer to build: pip install {tpde_build.GO_PACKAGE}")
        out.parent.mkdir(parents=True, exist_ok=True)
        # Under another name first: processes that run the old library keep it.
        fresh = out.with_name(f"{out.name}.{os.getpid()}").resolve()
        exports = ROOT / "capi" / "libtpde.map"
        command = [go, "build", "-buildmode=c-shared", "-trimpath", "-buildvcs=false"]
        # Lazily bound, whatever the compiler's default: the functions of NVML are not there on every machine.
        linker = f"-Wl,--version-script={exports} -Wl,-z,lazy"
        command += ["-ldflags", f"-s -w '-extldflags={linker}'", "-o", str(fresh), "./capi"]
        self.announce(" ".join(command), level=2)
        if subprocess.run(command, cwd=ROOT, env=tpde_build.go_environment()).returncode != 0:
            raise SystemExit("go build failed")
        fresh.with_suffix(".h").unlink(missing_ok=True)  # cgo's own header; ours is tpde.h
        fresh.replace(out)

    def get_outputs(self) -> list[str]:
        package = Path(self.build_lib) / "tpde"
        return [*super().get_outputs(), str(package / "lib" / "libtpde.so"), *map(str, self._headers(package))]

    @staticmethod
    def _headers(package: Path) -> list[Path]:
        return [package / "include" / header for header in HEADERS]


class SourceDistribution(sdist):
    """sdist with the sources of the core, which setuptools does not find by itself."""

    def make_distribution(self) -> None:  # after setuptools has found what it knows of
        for source in SOURCES:
            if (ROOT / source).is_dir():
                self.filelist.graft(source)
            elif (ROOT / source).exists():
                self.filelist.append(source)
        for built in ("*.so", "*.pyc"):
            self.filelist.global_exclude(built)
        self.filelist.sort()
        self.filelist.remove_duplicates()
        super().make_distribution()


setup(
    ext_modules=[
        Pybind11Extension(
            "tpde._binding",
            ["python/tpde/_binding.cpp"],
            include_dirs=["capi"],
            depends=["capi/tpde.h", "capi/tpde_status.h"],
            libraries=["dl"],
            cxx_std=17,
            extra_compile_args=["-O2", "-g0", "-Wall", "-Wextra"],
        )
    ],
    cmdclass={"build_ext": BuildCore, "sdist": SourceDistribution},
)
