"""The dtypes of core/container/FORMAT.md."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Dtype:
    name: str
    word_bytes: int
    element_bits: int
    is_float: bool  # has a sign, an exponent and a mantissa, in words of its own

    @property
    def word_bits(self) -> int:
        return 8 * self.word_bytes


_ROWS = """
1 BOOL 1     9 I64 8     17 F8_E8M0 1
2 U8 1      10 F16 2     18 F8_E4M3FNUZ 1
3 I8 1      11 BF16 2    19 F8_E5M2FNUZ 1
4 U16 2     12 F32 4     20 F6_E2M3 1
5 I16 2     13 F64 8     21 F6_E3M2 1
6 U32 4     14 C64 4     22 F4 1
7 I32 4     15 F8_E4M3 1
8 U64 8     16 F8_E5M2 1
"""
_ELEMENT_BITS = {"C64": 64, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4}
_FLOATS = {"F16", "BF16", "F32", "F64", "C64", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"}


def _table() -> dict[int, Dtype]:
    fields = _ROWS.split()
    rows = zip(fields[::3], fields[1::3], fields[2::3], strict=True)
    return {
        int(code): Dtype(name, int(size), _ELEMENT_BITS.get(name, 8 * int(size)), name in _FLOATS)
        for code, name, size in rows
    }


DTYPES = _table()
