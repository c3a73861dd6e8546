"""Random interval codes, and what the random chunks of all codecs share.

Random tables and chunks are written from the FORMAT.md files, like the readers, and use freedom that the format gives
and the library's encoders do not take. `tables` makes tables; `chunk` the data, the deltas and the target words of a
chunk.
"""

from __future__ import annotations

from collections.abc import Container
from random import Random

from .bits import BitWriter, zigzag
from .interval import LONGEST_CODE, MOST_SYMBOLS, IntervalCode, Symbol


def random_code(rng: Random, bits: int, most_total: int = 99) -> IntervalCode:
    """A complete code of disjoint intervals in a ring of so many bits."""
    intervals: list[tuple[int, int]] = []
    for _ in range(rng.choice([1, 2, 3, 8, 40, MOST_SYMBOLS])):
        plain = rng.randrange(min(bits, 63, rng.choice([2, 6, 63])) + 1)
        middle = rng.choice([0, 1 << bits, 1 << (bits - 1), rng.randrange(1 << bits)])
        start = (middle + rng.randrange(-64, 64) * (1 << plain)) % (1 << bits) >> plain << plain
        if all(start + (1 << plain) <= other or start >= other + (1 << size) for other, size in intervals):
            intervals.append((start, plain))
    lengths = [0]
    while len(lengths) < len(intervals):
        shorter = [length for length in lengths if length < LONGEST_CODE]
        split = rng.choice(shorter)
        lengths.remove(split)
        lengths += [split + 1, split + 1]
    rng.shuffle(lengths)
    symbols = [Symbol(start, plain, n) for (start, plain), n in zip(sorted(intervals), lengths, strict=True)]
    if any(s.length + s.plain > most_total for s in symbols):
        return random_code(rng, bits, most_total)
    return IntervalCode(symbols, bits)


def write_code(writer: BitWriter, code: IntervalCode) -> None:
    writer.gamma(len(code.symbols) - 1, 3)
    plain = length = end = 0
    for symbol in code.symbols:
        writer.gamma(zigzag(symbol.plain - plain), 1)
        writer.gamma(zigzag(symbol.length - length), 1)
        plain, length = symbol.plain, symbol.length
        gap = (symbol.start >> plain) - (end + (1 << plain) - 1 >> plain)
        writer.gamma(gap.bit_length(), 0)
        writer.put(gap, max(gap.bit_length() - 1, 0))
        end = symbol.start + (1 << plain)


def write_word(writer: BitWriter, code: IntervalCode, symbol: Symbol, word: int) -> None:
    bits = next(bits for (length, bits), known in code.by_code.items() if known is symbol)
    writer.put(bits, symbol.length)
    writer.put(word - symbol.start, symbol.plain)


def random_word(rng: Random, code: IntervalCode) -> tuple[Symbol, int]:
    symbol = rng.choice(code.symbols)
    return symbol, symbol.start + rng.randrange(1 << symbol.plain)


def word_outside(rng: Random, bits: int, inside: Container[int]) -> int | None:
    """A word that is not in `inside`, if a few tries find one."""
    tries = [rng.randrange(1 << rng.choice([2, bits])) for _ in range(20)]
    return next((word for word in tries if word not in inside), None)


def random_first_keys(rng: Random, count: int, keys: int) -> list[int]:
    return [0, *sorted(rng.sample(range(1, keys), min(count, keys) - 1))]
