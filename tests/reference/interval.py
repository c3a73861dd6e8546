"""Interval codes: core/codec/interval/FORMAT.md."""

from __future__ import annotations

from dataclasses import dataclass

from .bits import BitReader, require, zigzag_inverse

MOST_SYMBOLS = 64
LONGEST_CODE = 10


@dataclass(frozen=True)
class Symbol:
    """The words from start to start + 2^plain, written as code and then the plain low bits."""

    start: int
    plain: int
    length: int

    def __contains__(self, word: int) -> bool:
        return self.start <= word < self.start + (1 << self.plain)


class IntervalCode:
    """A prefix code for words of `bits` bits."""

    def __init__(self, symbols: list[Symbol], bits: int) -> None:
        self.symbols = symbols
        self.bits = bits
        self.by_code = {}  # (length, code) to symbol
        code, length_before = -1, 0
        for symbol in sorted(symbols, key=lambda s: (s.length, s.start)):
            code = 0 if code < 0 else (code + 1) << (symbol.length - length_before)
            length_before = symbol.length
            self.by_code[symbol.length, code] = symbol

    @property
    def longest(self) -> int:
        return max(symbol.length for symbol in self.symbols)

    @property
    def cheapest(self) -> Symbol:
        """The symbol of the least sum of length and plain bits, the first one of several."""
        return min(self.symbols, key=lambda symbol: symbol.length + symbol.plain)

    def __contains__(self, word: int) -> bool:
        return any(word in symbol for symbol in self.symbols)

    def read_symbol(self, reader: BitReader) -> Symbol:
        code = length = 0
        while (length, code) not in self.by_code:  # a complete code: this ends
            code = 2 * code + reader.read(1)
            length += 1
        return self.by_code[length, code]

    def read(self, reader: BitReader) -> int:
        """A word."""
        symbol = self.read_symbol(reader)
        return symbol.start + reader.read(symbol.plain)

    def can_be_doubled(self) -> bool:
        """Whether all intervals are near enough to zero."""
        quarter = 1 << (self.bits - 2)
        return all(s.start + (1 << s.plain) <= quarter or s.start >= 3 * quarter for s in self.symbols)

    def doubled(self) -> IntervalCode:
        """The same codes for intervals of twice the size, twice as far from zero (core/codec/rice/FORMAT.md)."""
        require(self.can_be_doubled(), "an interval is too far from zero to be doubled")
        symbols = [Symbol(2 * s.start % (1 << self.bits), s.plain + 1, s.length) for s in self.symbols]
        return IntervalCode(symbols, self.bits)


def read_code(reader: BitReader, bits: int) -> IntervalCode:
    """Reads the interval code of words of `bits` bits from a codec's tables."""
    count = reader.gamma(3) + 1
    require(count <= MOST_SYMBOLS, "too many symbols")
    symbols = []
    plain = length = end = 0
    for _ in range(count):
        plain += zigzag_inverse(reader.gamma(1))
        require(0 <= plain <= min(bits, 63), "an interval of a size that is not allowed")
        length += zigzag_inverse(reader.gamma(1))
        require(0 <= length <= LONGEST_CODE, "a code of a length that is not allowed")
        digits = reader.gamma(0)
        require(digits <= bits, "a gap between intervals is too large")
        gap = (1 << (digits - 1)) | reader.read(digits - 1) if digits else 0
        start = ((end + (1 << plain) - 1 >> plain) + gap) << plain
        end = start + (1 << plain)
        require(end <= 1 << bits, "an interval goes beyond the words")
        symbols.append(Symbol(start, plain, length))
    total = sum(1 << (LONGEST_CODE - symbol.length) for symbol in symbols)
    require(total == 1 << LONGEST_CODE, "the code is not complete")
    return IntervalCode(symbols, bits)
