"""Random tables and chunks of the prefix codec: see random_codes."""

from __future__ import annotations

from itertools import pairwise
from random import Random

from . import prefix
from .bits import BitWriter, padding
from .dtypes import Dtype
from .random_codes import random_code, random_first_keys, random_word, write_code, write_word


def tables(rng: Random, dtype: Dtype) -> bytes:
    size = prefix.coded_bits(dtype)
    shift = rng.randrange(max(size - 13, 0), size)
    first_keys = random_first_keys(rng, rng.choice([1, 2, 5]) if dtype.is_float else 1, 1 << (size - 1 - shift))
    writer = BitWriter()
    writer.put(len(first_keys) - 1, 6)
    if len(first_keys) > 1:
        writer.put(shift, 4)
    for before, key in pairwise(first_keys):
        writer.gamma(key - before - 1, 0)
    for _ in first_keys:
        write_code(writer, random_code(rng, size, 24))
    return writer.finish(1)


def chunk(rng: Random, tables: prefix.Tables, base: list[int], dtype: Dtype) -> tuple[bytes, int, list[int]]:
    """One block. Lane tables are wider than need be, and any word may be an exception."""
    size, high, ring = prefix.coded_bits(dtype), 0, 1 << dtype.word_bits
    if not prefix.is_low_part(dtype):
        high = dtype.word_bits - size
    lanes = [BitWriter() for _ in range(prefix.LANES)]
    target, exceptions = [0] * len(base), []
    rate = rng.choice([0, 0.05, 1])
    for lane, writer in enumerate(lanes):
        for word in prefix.lane_words(lane, len(base), dtype):
            code = prefix.code_of(tables, base[word], dtype)
            symbol, value = random_word(rng, code)
            write_word(writer, code, symbol, value)
            if prefix.is_low_part(dtype):
                target[word] = (base[word] + value - (value >> 15 << 16)) % ring
            else:
                target[word] = ((base[word] >> high) + value) % (1 << size) << high | rng.randrange(1 << high)
            if rng.random() < rate:
                exceptions.append(word)
    data = b""
    for plane in range(prefix.planes(dtype)):
        numbers = [word >> 16 * plane & 0xFFFF for word in target]
        data += b"".join(number.to_bytes(2, "little") for number in numbers)
        data += bytes(padding(len(data), 16))
    exceptions.sort()
    for word in exceptions:
        target[word] = rng.randrange(ring)

    least = rng.choice([0, min(map(len, lanes))])
    width = min(max(len(writer) - least for writer in lanes).bit_length() + rng.choice([0, 0, 1]), 16)
    head = least | width << 16 | min(len(exceptions), 2047) << 21
    data += head.to_bytes(4, "little")
    if len(exceptions) >= 2047:
        data += len(exceptions).to_bytes(4, "little")
    table, strings = BitWriter(), BitWriter()
    for writer in lanes:
        table.put(len(writer) - least, width)
        strings.extend(writer)
    data += table.finish(1) + strings.finish(4)
    data += b"".join(word.to_bytes(2, "little") for word in exceptions)
    data += bytes(padding(len(data), 4))
    data += b"".join(target[word].to_bytes(dtype.word_bytes, "little") for word in exceptions)
    return data + bytes(padding(len(data), 16 if prefix.planes(dtype) else 4)), len(base), target
