"""Random tables and chunks of the elias codec: see random_codes."""

from __future__ import annotations

from random import Random

from .bits import BitWriter, padding, zigzag
from .dtypes import Dtype
from .elias import DENSE, EXPONENTS, LANES, SIGN, VERBATIM, Tables, lane_words


def tables(rng: Random, dtype: Dtype) -> bytes:
    gap_classes = rng.randrange(4)
    octets = [gap_classes, *(rng.choice([0, 1, 5, 13, 14]) for _ in range(gap_classes))]
    left = EXPONENTS.get(dtype.name, (0, 0))[1] + 1  # contexts
    while left:
        run = rng.randrange(left) + 1
        left -= run
        number = rng.choice([*range(gap_classes), DENSE])
        orders = [rng.randrange(dtype.word_bits), rng.randrange(8), VERBATIM]
        octets += [run - 1 | number << 5, rng.choice(orders if number == DENSE else [*orders, SIGN])]
    return bytes(octets)


def chunk(rng: Random, tables: Tables, base: list[int], dtype: Dtype) -> tuple[bytes, int, list[int]]:
    """One block."""
    ring = 1 << dtype.word_bits
    residual, exceptions = [0] * len(base), []
    change_rate, exception_rate = rng.choice([0, 0.02, 0.3, 1]), rng.choice([0, 0.1])
    lanes = []
    for lane in range(LANES):
        words = lane_words(lane, len(base), dtype)
        for word in words:
            number, value_code = tables.context_of(base[word])
            if number == DENSE or rng.random() < change_rate:
                one = rng.choice((1, ring - 1))
                free = rng.choice([one, rng.randrange(1, ring), 0 if number == DENSE else 2])
                residual[word] = one if value_code == SIGN else free
        lanes.append(_lane(rng, tables, base, words, residual, dtype))
    for word, value in enumerate(residual):
        if value == 0 and rng.random() < exception_rate:
            exceptions.append(word)
    for word in exceptions:
        residual[word] = rng.randrange(1, ring)

    least = rng.choice([0, min(map(len, lanes))])
    width = max(len(writer) - least for writer in lanes).bit_length()
    data = (least | width << 24 | bool(exceptions) << 31).to_bytes(4, "little")
    if exceptions:
        data += len(exceptions).to_bytes(4, "little")
    table, strings = BitWriter(), BitWriter()
    for writer in lanes:
        table.put(len(writer) - least, width)
        strings.extend(writer)
    data += table.finish(1) + strings.finish(4)
    data += b"".join(word.to_bytes(4, "little") for word in exceptions)
    data += b"".join(residual[word].to_bytes(dtype.word_bytes, "little") for word in exceptions)
    data += bytes(padding(len(data), 4))
    deltas = sum(word != 0 for word in residual)
    return data, deltas, [(old + change) % ring for old, change in zip(base, residual, strict=True)]


def _lane(
    rng: Random, tables: Tables, base: list[int], words: list[int], residual: list[int], dtype: Dtype
) -> BitWriter:
    """The bit string of a lane."""
    gaps: list[list[int]] = [[0] for _ in tables.gap_parameters]
    for word in words:
        number, _ = tables.context_of(base[word])
        if number != DENSE:
            if residual[word]:
                gaps[number].append(0)
            else:
                gaps[number][-1] += 1
    writer = BitWriter()
    for parameter, of_class in zip(tables.gap_parameters, gaps, strict=True):
        writer.gamma(of_class.pop(0), parameter)
    for word in words:
        number, value_code = tables.context_of(base[word])
        if number == DENSE:
            _write_value(rng, writer, value_code, residual[word], True, dtype)
        elif residual[word]:
            _write_value(rng, writer, value_code, residual[word], False, dtype)
            writer.gamma(gaps[number].pop(0), tables.gap_parameters[number])
    return writer


def _write_value(rng: Random, writer: BitWriter, value_code: int, word: int, dense: bool, dtype: Dtype) -> None:
    ring = 1 << dtype.word_bits
    if value_code == SIGN:
        writer.put(word != 1, 1)
        return
    if value_code == VERBATIM:
        writer.put(word, dtype.word_bits)
        return
    number = zigzag(word - ring if word >= ring // 2 else word) - (0 if dense else 1)
    number += ring * rng.choice([0, 0, 1])  # values count modulo the ring
    if (number >> value_code) + 1 < 256 and rng.random() < 0.9:
        writer.gamma(number, value_code)
    else:
        writer.put(0, 8)
        writer.put(word, dtype.word_bits)
