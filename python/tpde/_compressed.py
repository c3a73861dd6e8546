"""Compressed models: folders that hold a quantised base and the residual to the full model.

What a folder holds stands in core/checkpoint/FORMAT.md, "Compressed models".
"""

from __future__ import annotations

import os
from typing import Any

from tpde._core import core

DERIVED = ("int2", "int3", "int4", "int8", "none")
"""Bases that `compress` makes of the model itself."""

EMBEDDINGS = ("auto", "base", "none")

_RESIDUAL = "residual.safetensors"


def is_compressed(value: Any) -> bool:
    """Reports whether value is the path of a compressed model. The contents are not looked at."""
    if not isinstance(value, (str, os.PathLike)) or not os.path.isdir(value):
        return False
    path = residual(value)
    return os.path.isfile(path) or os.path.isfile(path + ".index.json")


def residual(folder: str | os.PathLike[str]) -> str:
    """Returns the path of the delta in the folder of a compressed model."""
    return os.path.join(os.fspath(folder), _RESIDUAL)


def open_base(folder: str | os.PathLike[str]) -> int:
    """Returns the handle of the base in the folder of a compressed model, which the delta applies to."""
    return core().source_open_base(os.fspath(folder))
