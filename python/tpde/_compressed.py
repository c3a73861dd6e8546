"""Compressed models: folders that hold a quantised base and the residual to the full model.

What a folder holds stands in core/checkpoint/FORMAT.md, "Compressed models".
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tpde._core import core
from tpde._status import CorruptError

DERIVED = ("int2", "int3", "int4", "int8", "none")
"""Bases that `compress` makes of the model itself."""

EMBEDDINGS = ("auto", "base", "none")

_RESIDUAL = "residual.safetensors"


def is_compressed(value: Any) -> bool:
    """Reports whether value is the path of a compressed model, be it a damaged one."""
    from tpde import _deltas

    if not isinstance(value, (str, os.PathLike)) or not os.path.isdir(value):
        return False
    path = Path(residual(value))
    if not path.is_file():
        return path.with_name(path.name + ".index.json").is_file()
    try:
        return _deltas.read_metadata(path).get("format") == "tpde"
    except CorruptError:
        return True


def residual(folder: str | os.PathLike[str]) -> str:
    """Returns the path of the delta in the folder of a compressed model."""
    return os.path.join(os.fspath(folder), _RESIDUAL)


def open_base(folder: str | os.PathLike[str]) -> int:
    """Returns the handle of the base in the folder of a compressed model, which the delta applies to."""
    handle: int = core().source_open_base(os.fspath(folder))
    return handle
