"""Addition of float words, for the add residual: core/container/FORMAT.md."""

from __future__ import annotations

import numpy as np

from .dtypes import Dtype

# Of the 8-bit floats: mantissa bits, bias, the largest finite magnitude as a code, what is beyond it.
_SMALL = {
    "F8_E4M3": (3, 7, 0x7E, 0x7E),
    "F8_E5M2": (2, 15, 0x7B, 0x7C),
    "F8_E4M3FNUZ": (3, 8, 0x7F, 0x80),
    "F8_E5M2FNUZ": (2, 16, 0x7F, 0x80),
}


def add(base: list[int], residual: list[int], dtype: Dtype) -> list[int]:
    """base + residual; words with a residual word of zero stay as they are. What a NaN's bits are is open."""
    unsigned = np.dtype(f"<u{dtype.word_bytes}")
    a, b = np.array(base, unsigned), np.array(residual, unsigned)
    with np.errstate(all="ignore"):
        if dtype.name in _SMALL:
            total = np.array([_add_small(x, y, dtype.name) for x, y in zip(base, residual, strict=True)], unsigned)
        elif dtype.name == "BF16":
            total = _round_bfloat16(_widen_bfloat16(a) + _widen_bfloat16(b))
        else:
            real = np.dtype(f"<f{dtype.word_bytes}")
            total = (a.view(real) + b.view(real)).view(unsigned)
    return np.where(b == 0, a, total).tolist()


def is_open(base: int, residual: int, dtype: Dtype) -> bool:
    """Whether the document leaves the bits of base + residual open."""
    total = add([base], [residual], dtype)[0]
    if residual == 0:
        return False
    if dtype.name in _SMALL:
        _, _, largest, beyond = _SMALL[dtype.name]
        return np.isnan(_value(total, dtype.name)) or (beyond == largest and total & 0x7F == largest)
    if dtype.name == "BF16":
        return total & 0x7FFF > 0x7F80
    return bool(np.isnan(np.array([total], f"<u{dtype.word_bytes}").view(f"<f{dtype.word_bytes}"))[0])


def _widen_bfloat16(words: np.ndarray) -> np.ndarray:
    return (words.astype("<u4") << 16).view("<f4")


def _round_bfloat16(values: np.ndarray) -> np.ndarray:
    """To the nearest, ties to even."""
    words = values.view("<u4").astype("<u8")
    rounded = (words + 0x7FFF + (words >> 16 & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype("<u2")


def _value(code: int, name: str) -> float:
    mantissa, bias, largest, _ = _SMALL[name]
    magnitude = code & 0x7F
    if magnitude > largest or (code == 0x80 and name.endswith("FNUZ")):
        infinite = name == "F8_E5M2" and magnitude == 0x7C
        return (-np.inf if code & 0x80 else np.inf) if infinite else np.nan
    exponent, fraction = magnitude >> mantissa, magnitude & ((1 << mantissa) - 1)
    value = (fraction + (1 << mantissa if exponent else 0)) * 2.0 ** (max(exponent, 1) - bias - mantissa)
    return -value if code & 0x80 else value


def _add_small(x: int, y: int, name: str) -> int:
    mantissa, bias, largest, beyond = _SMALL[name]
    total = float(np.float32(_value(x, name)) + np.float32(_value(y, name)))
    if np.isnan(total):
        return 0x80 if name.endswith("FNUZ") else 0x7F
    sign = 0x80 if np.signbit(total) else 0
    magnitude = abs(total)
    if np.isinf(magnitude):
        code = largest + 1
    else:  # in units of the last place of its octave, or of the subnormals
        exponent = max(int(np.frexp(magnitude)[1]) - 1 + bias, 1) if magnitude else 1
        code = round(magnitude / 2.0 ** (exponent - bias - mantissa)) + (exponent - 1 << mantissa)
    if code > largest:
        return beyond if beyond == 0x80 else sign | beyond
    return code if code == 0 and name.endswith("FNUZ") else sign | code
