"""Damage for files: from a valid one and a random generator to one that is hardly ever valid.

HDF5 seals every block of its metadata with a checksum, so blind damage is refused at the gate and
tests nothing behind it. `Sealed` finds the seals of a file and puts them right after the damage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from featx.cache.checksum import lookup3

_SIGNATURES = (b"\x89HDF\r\n\x1a\n", b"OHDR", b"OCHK", b"FRHP", b"FHDB", b"BTHD", b"BTLF", b"BTIN")
_MAX_BLOCK = 4096
_EDGES = (0, 1, 2, 3, 7, 8, 255, 256, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)


@dataclass(frozen=True)
class Seal:
    """A block of HDF5 metadata, `start` to `stop`, whose checksum lies at `at`."""

    start: int
    stop: int
    at: int

    def value(self, data: bytes | bytearray) -> bytes:
        block = bytearray(data[self.start : self.stop])
        if self.at < self.stop:  # a heap's block holds its own checksum, taken as zero
            block[self.at - self.start : self.at - self.start + 4] = bytes(4)
        return lookup3(bytes(block)).to_bytes(4, "little")


def find_seals(data: bytes) -> tuple[Seal, ...]:
    """The seals of an HDF5 file, found by trying where after each signature a checksum fits."""
    found = []
    for signature in _SIGNATURES:
        start = data.find(signature)
        while start >= 0:
            end = min(start + _MAX_BLOCK, len(data))
            fits = (Seal(start, at, at) for at in range(start + 8, end - 3))
            if signature == b"FHDB":
                fits = (Seal(start, start + n, start + at) for at in range(13, 22)
                        for n in (512, 1024, 2048, 4096))  # fmt: skip
            seal = next((s for s in fits if s.value(data) == data[s.at : s.at + 4]), None)
            if seal is not None:
                found.append(seal)
            start = data.find(signature, start + 4)
    return tuple(found)


@dataclass(frozen=True)
class Sealed:
    """A valid file, its seals, and where its bytes say something: offsets worth damaging."""

    data: bytes
    seals: tuple[Seal, ...] = ()

    @property
    def places(self) -> np.ndarray:
        """Offsets of bytes inside the seals, or of all where there are none."""
        if not self.seals:
            return np.arange(len(self.data))
        return np.concatenate([np.arange(seal.start, seal.stop + 4) for seal in self.seals])

    def resealed(self, data: bytearray) -> bytearray:
        """`data` with the checksum of every block that was damaged put right, where it is whole."""
        for seal in self.seals:
            same = data[seal.start : seal.stop + 4] == self.data[seal.start : seal.stop + 4]
            if not same and seal.at + 4 <= len(data):
                data[seal.at : seal.at + 4] = seal.value(data)
        return data


def damaged(
    file: Sealed, others: Sequence[Sealed], rng: np.random.Generator, *, wild: bool = True
) -> bytes:
    """One to four kinds of damage to `file`; mostly with its seals put right again.

    Parameters
    ----------
    others : files to take parts from.
    wild : also damage that moves bytes: cuts, removed and doubled blocks.
    """
    data = bytearray(file.data)
    places = file.places
    kinds = 5 if not wild or rng.random() < 0.7 else 9
    for _ in range(int(rng.integers(1, 5))):
        at = int(rng.choice(places)) if len(places) else 0
        _damage(data, int(rng.integers(kinds)), at, others, rng)
    if rng.random() < 0.9:
        file.resealed(data)
    return bytes(data)


def _damage(
    data: bytearray, kind: int, at: int, others: Sequence[Sealed], rng: np.random.Generator
) -> None:
    at = min(at, max(0, len(data) - 1))
    length = int(2 ** rng.uniform(0, 9))
    if kind == 0 and data:
        data[at] ^= 1 << int(rng.integers(8))
    elif kind == 1 and data:
        data[at] = int(rng.integers(256))
    elif kind in (2, 3):
        width = int(rng.choice([1, 2, 4, 8]))
        start = at - at % width if rng.random() < 0.5 else at
        edges = (*_EDGES, len(data), len(data) - 1, at)
        value = int(edges[int(rng.integers(len(edges)))]) + int(rng.integers(-1, 2))
        data[start : start + width] = (value % 256**width).to_bytes(width, "little")
    elif kind == 4:  # bytes of another place, or of another file, laid over these
        other = others[int(rng.integers(len(others)))]
        source = int(rng.choice(other.places)) if len(other.places) else 0
        piece = other.data[source : source + length]
        data[at : at + len(piece)] = piece
    elif kind == 5:
        del data[at:]
    elif kind == 6:
        del data[at : at + length]
    elif kind == 7:
        data[at:at] = data[at : at + length]
    else:
        data[at:at] = rng.bytes(length)
