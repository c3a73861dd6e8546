"""Bit strings: sequences of bytes, most significant bit first (core/codec/interval/FORMAT.md)."""

from __future__ import annotations

from itertools import pairwise


class CorruptError(Exception):
    """The bytes are not what the format documents allow."""


def require(condition: bool, what: str) -> None:
    if not condition:
        raise CorruptError(what)


def zigzag_inverse(number: int) -> int:
    """0, 1, 2, 3, ... to 0, -1, 1, -2, ..."""
    return number >> 1 if number % 2 == 0 else -(number + 1) // 2


def zigzag(number: int) -> int:
    """0, -1, 1, -2, ... to 0, 1, 2, 3, ..."""
    return 2 * number if number >= 0 else -2 * number - 1


def padding(count: int, multiple: int) -> int:
    """What count lacks to the next multiple."""
    return -count % multiple


class BitReader:
    """Reads the bits from start to end of data."""

    def __init__(self, data: bytes, start: int = 0, end: int | None = None) -> None:
        self.data = data
        self.position = start
        self.end = 8 * len(data) if end is None else end
        require(0 <= start <= self.end <= 8 * len(data), "a bit string goes beyond its data")

    def read(self, count: int) -> int:
        """The next count bits as a number."""
        stop = self.position + count
        require(stop <= self.end, "a bit string is too short")
        octets = self.data[self.position // 8 : (stop + 7) // 8]
        number = int.from_bytes(octets, "big") >> (-stop % 8)
        self.position = stop
        return number & ((1 << count) - 1)

    def zeros(self) -> int:
        """The number of zeros before the next one; both are read."""
        count = 0
        while self.read(1) == 0:
            count += 1
        return count

    def gamma(self, order: int) -> int:
        """An exp-Golomb code: N zeros, then v + 2^order in N + 1 + order bits, the first of which is a one."""
        zeros = self.zeros()
        require(zeros <= 28, "an exp-Golomb code has too many zeros")
        return ((1 << (zeros + order)) | self.read(zeros + order)) - (1 << order)

    def pad(self, multiple: int) -> None:
        """Zero bits up to a multiple of so many bits, counted from the start of data."""
        require(self.read(padding(self.position, multiple)) == 0, "padding is not zero")

    def finish(self) -> None:
        require(self.position == self.end, "a bit string is too long")


class BitWriter:
    """Writes bits, most significant first."""

    def __init__(self) -> None:
        self.bits: list[str] = []

    def __len__(self) -> int:
        return sum(map(len, self.bits))

    def put(self, number: int, count: int) -> None:
        """The low count bits of number."""
        if count:
            self.bits.append(f"{number & ((1 << count) - 1):0{count}b}")

    def gamma(self, number: int, order: int) -> None:
        coded = number + (1 << order)
        self.put(coded, 2 * (coded.bit_length() - 1 - order) + 1 + order)

    def extend(self, other: BitWriter) -> None:
        self.bits += other.bits

    def finish(self, multiple: int) -> bytes:
        """The bits, padded with zeros to a multiple of so many bytes."""
        text = "".join(self.bits)
        text += "0" * padding(len(text), 8 * multiple)
        return int("1" + text, 2).to_bytes(len(text) // 8 + 1, "big")[1:]


class ByteReader:
    """Reads the fields of data from start on; offsets, and so padding, count from the start of data."""

    def __init__(self, data: bytes, start: int = 0) -> None:
        self.data = data
        self.position = start

    def take(self, count: int) -> bytes:
        require(self.position + count <= len(self.data), "bytes are missing")
        self.position += count
        return self.data[self.position - count : self.position]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def numbers(self, size: int, count: int) -> list[int]:
        octets = self.take(size * count)
        return [int.from_bytes(octets[at : at + size], "little") for at in range(0, len(octets), size)]

    def pad(self, multiple: int) -> None:
        require(not any(self.take(padding(self.position, multiple))), "padding is not zero")

    def uvarint(self) -> int:
        """LEB128 in its shortest form."""
        number = shift = 0
        while True:
            octet = self.number(1)
            number |= (octet & 0x7F) << shift
            shift += 7
            if octet < 0x80:
                require(octet != 0 or shift == 7, "an integer is longer than needed")
                require(number < 1 << 64, "an integer is larger than 64 bits")
                return number
            require(shift < 70, "an integer is larger than 64 bits")

    def finish(self) -> None:
        require(self.position == len(self.data), "bytes are left over")


def strictly_ascending(numbers: list[int]) -> bool:
    return all(a < b for a, b in pairwise(numbers))
