"""Prints the digests that digest_test.go pins. Needs the PyPI package xxhash."""

import hashlib
import struct

import xxhash


def digest(data: bytes) -> str:
    tree = struct.pack("<Q", len(data))
    for start in range(0, len(data), 4096):
        tree += struct.pack("<Q", xxhash.xxh64_intdigest(data[start : start + 4096]))
    return hashlib.sha256(tree).hexdigest()[:32]


ramp = bytes(i % 256 for i in range(10000))
for sample in (b"", b"tpde", ramp[:4096], ramp):
    print(len(sample), digest(sample))
