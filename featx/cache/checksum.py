"""The checksum with which HDF5 guards each block of its metadata."""

from __future__ import annotations

import numpy as np


def lookup3(data: bytes) -> int:
    """Bob Jenkins' hash of a byte string, the checksum of HDF5's metadata.

    Source: lookup3.c, hashlittle() with 0 as its start, May 2006, public domain.
    """
    mask = 0xFFFFFFFF
    a = b = c = (0xDEADBEEF + len(data)) & mask
    if not data:
        return c
    n = max(0, (len(data) - 1) // 3 // 4)  # whole triples of words before the last one
    words = np.frombuffer(data.ljust(12 * (n + 1), b"\0"), "<u4").tolist()
    for i in range(0, 3 * n, 3):
        a, b, c = a + words[i], b + words[i + 1], c + words[i + 2]
        a = ((a - c) ^ _turned(c, 4)) & mask
        c += b
        b = ((b - a) ^ _turned(a, 6)) & mask
        a += c
        c = ((c - b) ^ _turned(b, 8)) & mask
        b += a
        a = ((a - c) ^ _turned(c, 16)) & mask
        c += b
        b = ((b - a) ^ _turned(a, 19)) & mask
        a += c
        c = ((c - b) ^ _turned(b, 4)) & mask
        b += a
    a, b, c = a + words[3 * n], b + words[3 * n + 1], c + words[3 * n + 2]
    c = ((c ^ b) - _turned(b, 14)) & mask
    a = ((a ^ c) - _turned(c, 11)) & mask
    b = ((b ^ a) - _turned(a, 25)) & mask
    c = ((c ^ b) - _turned(b, 16)) & mask
    a = ((a ^ c) - _turned(c, 4)) & mask
    b = ((b ^ a) - _turned(a, 14)) & mask
    return ((c ^ b) - _turned(b, 24)) & mask


def _turned(word: int, bits: int) -> int:
    word &= 0xFFFFFFFF
    return ((word << bits) | (word >> (32 - bits))) & 0xFFFFFFFF
