"""Checksums and digests: CRC-32C, XXH64 and the digest of core/container/FORMAT.md."""

from __future__ import annotations

import hashlib

PAGE = 4096
_MASK = (1 << 64) - 1
_P1, _P2, _P3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
_P4, _P5 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5


def _crc_table() -> list[int]:
    table = []
    for octet in range(256):
        for _ in range(8):
            octet = octet >> 1 ^ (0x82F63B78 if octet & 1 else 0)
        table.append(octet)
    return table


_CRC_TABLE = _crc_table()


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for octet in data:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ octet) & 0xFF]
    return crc ^ 0xFFFFFFFF


def _rotate(number: int, bits: int) -> int:
    return (number << bits | number >> (64 - bits)) & _MASK


def _round(lane: int, number: int) -> int:
    return _rotate(lane + number * _P2 & _MASK, 31) * _P1 & _MASK


def xxh64(data: bytes) -> int:
    """XXH64 with seed 0."""
    at = 0
    if len(data) >= 32:
        lanes = [_P1 + _P2 & _MASK, _P2, 0, -_P1 & _MASK]
        for at in range(0, len(data) // 32 * 32, 32):
            for lane in range(4):
                number = int.from_bytes(data[at + 8 * lane : at + 8 * lane + 8], "little")
                lanes[lane] = _round(lanes[lane], number)
        at += 32
        hashed = sum(_rotate(lane, bits) for lane, bits in zip(lanes, (1, 7, 12, 18), strict=True)) & _MASK
        for lane in lanes:
            hashed = ((hashed ^ _round(0, lane)) * _P1 + _P4) & _MASK
    else:
        hashed = _P5
    hashed = hashed + len(data) & _MASK
    while at + 8 <= len(data):
        hashed ^= _round(0, int.from_bytes(data[at : at + 8], "little"))
        hashed = (_rotate(hashed, 27) * _P1 + _P4) & _MASK
        at += 8
    if at + 4 <= len(data):
        hashed ^= int.from_bytes(data[at : at + 4], "little") * _P1 & _MASK
        hashed = (_rotate(hashed, 23) * _P2 + _P3) & _MASK
        at += 4
    for octet in data[at:]:
        hashed = _rotate(hashed ^ octet * _P5 & _MASK, 11) * _P1 & _MASK
    hashed = (hashed ^ hashed >> 33) * _P2 & _MASK
    hashed = (hashed ^ hashed >> 29) * _P3 & _MASK
    return hashed ^ hashed >> 32


def digest(data: bytes) -> bytes:
    pages = b"".join(xxh64(data[at : at + PAGE]).to_bytes(8, "little") for at in range(0, len(data), PAGE))
    return hashlib.sha256(len(data).to_bytes(8, "little") + pages).digest()[:16]
