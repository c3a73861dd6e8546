"""The compiled core, loaded when it is first needed.

Importing tpde starts no Go runtime: a process that has only imported the package can fork freely. Once the core is
loaded, its threads exist in this process alone, and calls in a forked child raise ForkedError (capi/exports.c).
"""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

from tpde._status import NotFoundError, UnsupportedError

LIBRARY = Path(__file__).parent / "lib" / "libtpde.so"

_binding: ModuleType | None = None


def core() -> ModuleType:
    """Returns the binding, whose functions mirror tpde.h, with the core loaded."""
    return _binding or _load()


def _load() -> ModuleType:
    global _binding
    if os.environ.get("LD_BIND_NOW"):
        raise UnsupportedError(
            "LD_BIND_NOW is set, but the tpde core binds optional driver functions when they are first called; "
            "unset LD_BIND_NOW and start the process again"
        )
    if not LIBRARY.is_file():
        raise NotFoundError(f"{LIBRARY} is missing: reinstall tpde, or run `make build` in a source tree")
    try:
        from tpde import _binding as binding
    except ImportError as error:
        raise NotFoundError(f"tpde._binding cannot be imported ({error}): reinstall tpde") from error
    binding.load(LIBRARY)
    _binding = binding
    return binding
