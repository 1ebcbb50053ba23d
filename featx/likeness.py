"""How alike pictures are, by their features.

The similarity of two is the cosine of features from which two things were taken that different
pictures share: the mean of all (most features are 0 or more, so that any two rows look alike), and
what is too strong along the few directions in which a collection varies most (its classes, mainly,
above all where the network knows them): along these the spread is levelled to that of the next
direction.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

_LEVELLED: Final = 32  # directions, where there are eight times as many images
_SAMPLE: Final = 1024  # images that directions are learnt from
_BLOCK_BYTES: Final = 64 << 20  # of float64 features normalised at once
_MOST_ROWS: Final = 2048  # in a block: a product of two blocks then takes 16 MiB
_ROUNDING: Final = 1e-6  # of a row's length: what is nearer to the mean differs by rounding alone


@dataclass(frozen=True, eq=False)
class Likeness:
    """What similarities are taken by: learnt from one cache, used on any of the same features.

    Attributes
    ----------
    mean : (d,) float64
        Of all rows.
    directions : (r, d) float64
        Orthonormal: the principal directions of the largest variance, r at most 32, an eighth of
        the images, half of d.
    factors : (r,) float64
        What lengths along them are multiplied by, at most 1: their standard deviation becomes
        that of direction r + 1.
    """

    mean: FloatArray
    directions: FloatArray
    factors: FloatArray

    @classmethod
    def learn(cls, X: npt.NDArray[Any]) -> Likeness:
        """From features (n, d); the directions from at most 1,024 rows, evenly spread.

        Fewer where d is large: those of 50,176 values are learnt from 334 rows.
        """
        n, d = X.shape
        mean = np.asarray(X.mean(axis=0, dtype=np.float64))
        size = min(n, _SAMPLE, max(1, 2 * _BLOCK_BYTES // (8 * d)))
        rows = np.linspace(0, n - 1, size).astype(np.int64)
        Z = X[rows].astype(np.float64) - mean
        r = min(_LEVELLED, len(rows) // 8, d // 2)
        variance, ends = np.linalg.eigh(Z @ Z.T)  # of the rows: they may be far fewer than d
        variance, ends = variance[::-1], ends[:, ::-1]
        r = min(r, int((variance > 1e-9 * max(variance[0], 0)).sum()) - 1)
        if r < 1:
            return cls(mean, np.zeros((0, d)), np.zeros(0))
        directions = (ends[:, :r] / np.sqrt(variance[:r])).T @ Z
        return cls(mean, directions, np.sqrt(variance[r] / variance[:r]))

    def vectors(self, X: npt.NDArray[Any], rows: IntArray) -> npt.NDArray[np.float32]:
        """Rows of length 1 whose products are similarities, (b, d).

        Zeros where a row is the mean but for rounding: it is like nothing.
        """
        block = X[rows].astype(np.float64)
        size = np.linalg.norm(block, axis=1)
        block -= self.mean
        constant = np.linalg.norm(block, axis=1) <= _ROUNDING * size
        block += (block @ self.directions.T * (self.factors - 1)) @ self.directions
        length = np.linalg.norm(block, axis=1)
        length[constant | (length == 0)] = np.inf
        block /= length[:, None]
        return block.astype(np.float32)


def blocks(n: int, d: int) -> Iterator[slice]:
    """Cut n rows of d features into blocks, of which two at a time are compared."""
    step = min(max(1, _BLOCK_BYTES // (8 * max(d, 1))), _MOST_ROWS)
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))
