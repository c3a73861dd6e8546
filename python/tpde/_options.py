"""Options of packing: names, numbers and their checks."""

from __future__ import annotations

import re
from typing import Final

from tpde._status import ArgumentError

CODECS: Final = {"auto": 0, "raw": 1, "zstd": 2, "elias": 3}
RESIDUALS: Final = {"bit": 0, "add": 1}
LEVELS: Final = {"default": 0, "fast": 1, "small": 2}

_UNITS: Final = {
    "": 1, "B": 1,
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip


def choose(what: str, name: str, names: dict[str, int]) -> int:
    """Returns the number of an option's name."""
    if name not in names:
        raise ArgumentError(f"{what}: expected one of {', '.join(names)}; got {name!r}")
    return names[name]


def count(what: str, value: int) -> int:
    """Returns value if it is a natural number (0 stands for "decide yourself")."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ArgumentError(f"{what}: expected a number from 0 up, got {value!r}")
    return value


def size_in_bytes(what: str, size: int | str) -> int:
    """Returns a size such as 5_000_000_000, "5GB" (10^9) or "5GiB" (2^30) in bytes."""
    if isinstance(size, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", size)
        if match and match[2].upper() in _UNITS:
            size = int(float(match[1]) * _UNITS[match[2].upper()])
    if isinstance(size, bool) or not isinstance(size, int) or size <= 0:
        raise ArgumentError(f"{what}: expected a size such as '5GB', '512MiB' or a number of bytes, got {size!r}")
    return size
