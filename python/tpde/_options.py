"""Options of packing: names, numbers and their checks."""

from __future__ import annotations

import operator
import re
from fractions import Fraction
from typing import Any, Final, SupportsIndex

from tpde._status import ArgumentError

CODECS: Final = {"auto": 0, "raw": 1, "zstd": 2, "elias": 3, "prefix": 4, "rice": 5}
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


MAX_COUNT: Final = 2**63 - 1
MAX_WORKERS: Final = 1024  # as in the core


def count(what: str, value: SupportsIndex, most: int = MAX_COUNT) -> int:
    """Returns value if it is a whole number from 0 ("decide yourself") to most."""
    number = whole(value)
    if number is None or not 0 <= number <= most:
        raise ArgumentError(f"{what}: expected a number from 0 to {most}, got {value!r}")
    return number


def workers(value: SupportsIndex) -> int:
    """Returns a number of cores; 0 stands for all."""
    return count("workers", value, MAX_WORKERS)


def whole(value: Any) -> int | None:
    """Returns an int or what numpy and torch have for one; None for anything else, bool included."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def size_in_bytes(what: str, size: int | str, *, least: int = 1) -> int:
    """Returns a size such as 5_000_000_000, "5GB" (10^9) or "5GiB" (2^30) in bytes."""
    if isinstance(size, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", size)
        if match and match[2].upper() in _UNITS:
            size = int(Fraction(match[1]) * _UNITS[match[2].upper()])
    number = whole(size)
    if number is None or not least <= number <= MAX_COUNT:
        raise ArgumentError(f"{what}: expected a size such as '5GB', '512MiB' or a number of bytes, got {size!r}")
    return number
