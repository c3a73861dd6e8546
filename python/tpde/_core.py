"""The compiled core, loaded when it is first needed.

Importing tpde starts no Go runtime: a process that has only imported the package can fork freely. Once the core is
loaded, its threads exist in this process alone, and calls in a forked child raise ForkedError (capi/exports.c).
"""

from __future__ import annotations

import importlib.util
import os
import site
import sys
from pathlib import Path
from types import ModuleType

from tpde._status import NotFoundError, UnsupportedError

LIBRARY = Path(__file__).parent / "lib" / "libtpde.so"

_binding: ModuleType | None = None
_gpu_binding: ModuleType | None = None


def core() -> ModuleType:
    """Returns the binding, whose functions mirror tpde.h, with the core loaded."""
    return _binding or _load()


def gpu_core() -> ModuleType:
    """Returns core(), which now knows where the wheels of this Python have NVRTC and nvCOMP."""
    global _gpu_binding
    if _gpu_binding is None:
        binding = core()
        binding.device_search(site_packages())
        _gpu_binding = binding
    return _gpu_binding


def site_packages() -> list[str]:
    """Returns the folders where wheels may be installed, that of torch first: its libraries are those in use."""
    folders = []
    torch = importlib.util.find_spec("torch")  # does not import it
    if torch is not None and torch.origin is not None:
        folders.append(str(Path(torch.origin).parents[1]))
    folders += [folder for folder in sys.path if Path(folder).name in ("site-packages", "dist-packages")]
    folders += site.getsitepackages()
    if site.ENABLE_USER_SITE:
        folders.append(site.getusersitepackages())
    return [folder for folder in dict.fromkeys(folders) if os.path.isdir(folder)]


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
