"""Random tables and chunks of the rice codec: see random_codes."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from .bits import BitWriter, padding, zigzag
from .dtypes import Dtype
from .interval import IntervalCode, Symbol
from .random_codes import random_code, random_first_keys, random_word, word_outside, write_code, write_word
from .rice import DENSE, Context, CountCode, Tables


def tables(rng: Random, dtype: Dtype) -> bytes:
    bits = dtype.word_bits
    mask_bits = bits - 1 if dtype.is_float else bits
    shift = rng.randrange(max(mask_bits - 12, 0), min(bits, mask_bits + 1))
    coded = [rng.random() < 0.5 for _ in range(rng.randrange(8))]
    dense = not coded or rng.random() < 0.5
    writer = BitWriter()
    writer.put(shift, 6)
    writer.put(len(coded), 3)
    for has_values in coded:
        writer.put(rng.choice([0, 1, 3, 24]), 5)
        writer.put(has_values, 1)
        _write_count_code(rng, writer)
    writer.put(dense, 1)
    if dense:
        _write_count_code(rng, writer)
    codes = rng.choice([1, 2, 5, 64]) if dense or any(coded) else rng.randrange(2)
    _write_codes(rng, writer, codes, bits)

    first_keys = random_first_keys(rng, rng.choice([1, 2, 9, 64]), 1 << (mask_bits - shift))
    writer.put(len(first_keys) - 1, 6)
    classes = [*range(len(coded)), *([DENSE] if dense else [])]
    for before, key in zip([None, *first_keys], first_keys, strict=False):
        if before is not None:
            writer.gamma(key - before - 1, 0)
        number = rng.choice(classes)
        writer.put(number, 3)
        if number == DENSE or coded[number]:
            writer.put(rng.randrange(codes), (max(codes, 1) - 1).bit_length())
    return writer.finish(1)


def _write_count_code(rng: Random, writer: BitWriter) -> None:
    writer.put(rng.choice([0, 3, 24]), 5)
    writer.gamma(rng.choice([0, 5, 300, 1 << 25]), 6)


def _write_codes(rng: Random, writer: BitWriter, count: int, bits: int) -> None:
    writer.gamma(count, 0)
    code: IntervalCode | None = None
    for _ in range(count):
        doubled = code is not None and code.can_be_doubled() and rng.random() < 0.5
        if code is not None:
            writer.put(doubled, 1)
        if doubled:
            code = code.doubled()
        else:
            code = random_code(rng, bits)
            write_code(writer, code)


@dataclass
class _Class:
    """What a chunk codes of a class."""

    events: list[int] = field(default_factory=list)  # words
    distances: list[int] = field(default_factory=list)
    gap: int = 0  # words since the last event

    def add(self, word: int) -> None:
        self.events.append(word)
        self.distances.append(self.gap)
        self.gap = 0


def chunk(rng: Random, tables: Tables, base: list[int], dtype: Dtype) -> tuple[bytes, int, list[int]]:
    ring = 1 << dtype.word_bits
    residual, exceptions = [0] * len(base), []
    classes = [_Class() for _ in range(DENSE + 1)]
    symbols: dict[int, tuple[Symbol, int]] = {}  # of the events that have values
    change_rate, exception_rate = rng.choice([0, 0.02, 0.3, 1]), rng.choice([0, 0.05, 0.5])
    for word, old in enumerate(base):
        context = tables.context_of(old)
        here = classes[context.number]
        if context.number != DENSE and rng.random() >= change_rate:
            here.gap += 1
            continue
        value = _exception(rng, context, dtype) if rng.random() < exception_rate else None
        listed = value is not None
        if listed:
            exceptions.append(word)
            if context.number == DENSE:
                symbols[word] = context.code.cheapest, context.code.cheapest.start
        elif context.code is None:
            value = rng.choice((1, ring - 1))
        else:
            symbols[word] = random_word(rng, context.code)
            value = symbols[word][1]
        residual[word] = value
        if context.number == DENSE or (value != 0 and not listed):
            here.add(word)
        else:
            here.gap += 1
    string = _bit_string(tables, base, classes, symbols, residual, len(exceptions))
    data = string + _exception_list(residual, exceptions, dtype) if exceptions else string
    deltas = sum(word != 0 for word in residual)
    return data, deltas, [(old + change) % ring for old, change in zip(base, residual, strict=True)]


def _exception(rng: Random, context: Context, dtype: Dtype) -> int | None:
    """A residual word that must be an exception, if one is found."""
    if context.code is None:
        return word_outside(rng, dtype.word_bits, (0, 1, (1 << dtype.word_bits) - 1))
    value = word_outside(rng, dtype.word_bits, context.code)
    return None if value == 0 and context.number != DENSE else value


def _exception_list(residual: list[int], exceptions: list[int], dtype: Dtype) -> bytes:
    data = b"".join(word.to_bytes(2 if len(residual) <= 65536 else 4, "little") for word in exceptions)
    data += bytes(padding(len(data), 4))
    data += b"".join(residual[word].to_bytes(dtype.word_bytes, "little") for word in exceptions)
    return data + bytes(padding(len(data), 4))


def _bit_string(
    tables: Tables,
    base: list[int],
    classes: list[_Class],
    symbols: dict[int, tuple[Symbol, int]],
    residual: list[int],
    exceptions: int,
) -> bytes:
    gap_classes = list(zip(tables.classes, classes, strict=False))
    writer = BitWriter()
    for parameters, here in gap_classes:
        _write_count(writer, parameters.counts, len(here.events))
    if tables.dense:
        _write_count(writer, tables.dense, len(classes[DENSE].events))
    writer.put(exceptions > 0, 1)
    if exceptions:
        writer.gamma(exceptions - 1, 0)

    valued = [word for parameters, here in gap_classes if parameters.coded for word in here.events]
    valued += classes[DENSE].events
    lanes = min(max(-(-len(valued) // 64), 1), 32)
    strings = [BitWriter() for _ in range(lanes)]
    for lane, string in enumerate(strings):
        for word in valued[lane * len(valued) // lanes : (lane + 1) * len(valued) // lanes]:
            write_word(string, tables.context_of(base[word]).code, *symbols[word])
    if lanes > 1:
        lengths = [len(string) for string in strings[:-1]]
        width = (max(lengths) - min(lengths)).bit_length()
        writer.gamma(min(lengths), 8)
        writer.put(width, 5)
        for length in lengths:
            writer.put(length - min(lengths), width)

    for parameters, here in gap_classes:
        for distance in here.distances:
            writer.put(distance, parameters.low_bits)
    for parameters, here in gap_classes:
        for word in [] if parameters.coded else here.events:
            writer.put(residual[word] != 1, 1)
    for parameters, here in gap_classes:
        for distance in here.distances:
            writer.put(0, distance >> parameters.low_bits)
            writer.put(1, 1)
    for string in strings:
        writer.extend(string)
    return writer.finish(4)


def _write_count(writer: BitWriter, code: CountCode, count: int) -> None:
    writer.gamma(zigzag(count - code.mean), code.order)
