"""The rice codec: core/codec/rice/FORMAT.md."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from .bits import BitReader, ByteReader, padding, require, strictly_ascending, zigzag_inverse
from .dtypes import Dtype
from .interval import IntervalCode, read_code

DENSE = 7


@dataclass
class CountCode:
    order: int
    mean: int

    def read(self, reader: BitReader) -> int:
        return self.mean + zigzag_inverse(reader.gamma(self.order))


@dataclass
class GapClass:
    low_bits: int
    coded: bool
    counts: CountCode


@dataclass
class Context:
    first_key: int
    number: int  # of its class
    code: IntervalCode | None


@dataclass
class Tables:
    mask: int
    shift: int
    classes: list[GapClass]
    dense: CountCode | None
    contexts: list[Context]

    def context_of(self, base: int) -> Context:
        key = (base & self.mask) >> self.shift
        return self.contexts[bisect_right(self.contexts, key, key=lambda context: context.first_key) - 1]


def parse_tables(data: bytes, dtype: Dtype) -> Tables:
    reader = BitReader(data)
    bits = dtype.word_bits
    mask_bits = bits - 1 if dtype.is_float else bits
    shift = reader.read(6)
    require(mask_bits - 12 <= shift <= bits - 1, "shift is out of range")
    classes = []
    for _ in range(reader.read(3)):
        low_bits = reader.read(5)
        require(low_bits <= 24, "a distance has too many low bits")
        classes.append(GapClass(low_bits, reader.read(1) == 1, _read_count_code(reader)))
    dense = _read_count_code(reader) if reader.read(1) else None

    number_of_codes = reader.gamma(0)
    require(number_of_codes <= 64, "too many interval codes")
    codes: list[IntervalCode] = []
    for number in range(number_of_codes):
        doubled = number > 0 and reader.read(1) == 1
        codes.append(codes[-1].doubled() if doubled else read_code(reader, bits))

    contexts: list[Context] = []
    for number in range(reader.read(6) + 1):
        first_key = contexts[-1].first_key + 1 + reader.gamma(0) if number else 0
        require(first_key < 1 << (mask_bits - shift), "a first key is too large")
        which = reader.read(3)
        require(which < len(classes) or (which == DENSE and dense is not None), "a context of no class")
        code = None
        if which == DENSE or classes[which].coded:
            index = reader.read((max(number_of_codes, 1) - 1).bit_length())
            require(index < number_of_codes, "an interval code that is not there")
            code = codes[index]
        contexts.append(Context(first_key, which, code))
    reader.pad(8)
    reader.finish()
    return Tables((1 << mask_bits) - 1, shift, classes, dense, contexts)


def _read_count_code(reader: BitReader) -> CountCode:
    order = reader.read(5)
    require(order <= 24, "a count code of too high an order")
    mean = reader.gamma(6)
    require(mean <= 1 << 25, "a mean is too large")
    return CountCode(order, mean)


def decode_chunk(tables: Tables, data: bytes, base: list[int], deltas: int, dtype: Dtype) -> list[int]:
    """Returns the residual words of a chunk."""
    count = len(base)
    contexts = [tables.context_of(word) for word in base]
    members: list[list[int]] = [[] for _ in range(DENSE + 1)]  # the words of each class
    for word, context in enumerate(contexts):
        members[context.number].append(word)

    # 1. Head
    reader = BitReader(data)
    events = [gap_class.counts.read(reader) for gap_class in tables.classes]
    dense_events = tables.dense.read(reader) if tables.dense else 0
    require(all(0 <= number <= count for number in [*events, dense_events]), "a count is out of range")
    require(sum(events) + dense_events <= count, "more events than words")
    require(dense_events == len(members[DENSE]), "not one value for each dense word")
    exceptions = reader.gamma(0) + 1 if reader.read(1) else 0
    require(exceptions <= count, "more exceptions than words")
    values = dense_events
    values += sum(number for number, gap_class in zip(events, tables.classes, strict=True) if gap_class.coded)
    lanes = min(max(-(-values // 64), 1), 32)
    lengths = _read_lane_table(reader, lanes) if lanes > 1 else []

    # 2. Low bits, 3. signs, 4. quotients
    residual = [0] * count
    distances = [
        [reader.read(gap_class.low_bits) for _ in range(number)]
        for number, gap_class in zip(events, tables.classes, strict=True)
    ]
    signs = [
        [] if gap_class.coded else [reader.read(1) for _ in range(number)]
        for number, gap_class in zip(events, tables.classes, strict=True)
    ]
    valued: list[int] = []  # the words of the events that have values
    changed: set[int] = set()  # the words of the events of gap classes
    for number, gap_class in enumerate(tables.classes):
        rank = -1
        words = []
        for low in distances[number]:
            rank += 1 + (reader.zeros() << gap_class.low_bits | low)
            require(rank < len(members[number]), "an event is beyond the chunk")
            words.append(members[number][rank])
        changed.update(words)
        if gap_class.coded:
            valued += words
        for word, sign in zip(words, signs[number], strict=False):
            residual[word] = (1 << dtype.word_bits) - 1 if sign else 1
    valued += members[DENSE]

    # 5. Values
    start = reader.position
    for lane in range(lanes):
        end = start + lengths[lane] if lane < lanes - 1 else None
        bits = BitReader(data, start, end)
        for word in valued[lane * values // lanes : (lane + 1) * values // lanes]:
            residual[word] = contexts[word].code.read(bits)
            require(residual[word] != 0 or contexts[word].number == DENSE, "an event that changes nothing")
        if lane < lanes - 1:
            bits.finish()
        start = bits.position
    BitReader(data, start).pad(32)

    # 6. Exceptions
    last = ByteReader(data, (start + padding(start, 32)) // 8)
    if exceptions:
        positions = last.numbers(2 if count <= 65536 else 4, exceptions)
        last.pad(4)
        words = last.numbers(dtype.word_bytes, exceptions)
        last.pad(4)
        require(strictly_ascending(positions) and positions[-1] < count, "exceptions do not ascend within the chunk")
        for position, word in zip(positions, words, strict=True):
            require(position not in changed, "an exception that is an event")
            _check_exception(tables, contexts[position], residual[position], word, dtype)
            residual[position] = word
    last.finish()
    require(deltas == sum(word != 0 for word in residual), "the deltas are not the words that change")
    return residual


def _read_lane_table(reader: BitReader, lanes: int) -> list[int]:
    least = reader.gamma(8)
    width = reader.read(5)
    beyond = [reader.read(width) for _ in range(lanes - 1)]
    require(min(beyond) == 0, "no lane has the least length")
    require(width == max(beyond).bit_length(), "the lane table is wider than needed")
    return [least + more for more in beyond]


def _check_exception(tables: Tables, context: Context, stood: int, word: int, dtype: Dtype) -> None:
    """Checks that a word must be an exception, given what stands for it among the events."""
    if context.number == DENSE:
        require(word not in context.code, "an exception that has a code")
        require(stood == context.code.cheapest.start, "not the symbol that stands for an exception")
    elif tables.classes[context.number].coded:
        require(word != 0 and word not in context.code, "an exception that has a code")
    else:
        require(word not in (0, 1, (1 << dtype.word_bits) - 1), "an exception that has a code")
