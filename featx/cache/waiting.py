"""Rows between their `put` and their writing: several small writes become one large one."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np

from featx.cache.files import MOST_PARTS
from featx.cache.layout import runs

# Of features, that are written at a time. So large a write costs little beside its bytes, and the
# disk is at work on most of a commit before it is forced to.
WRITE_BYTES: Final = 8 * 2**20


class Put(NamedTuple):
    """Rows with their features, (m, d...) as they are stored, and what is told beside them.

    `status` and `errors` are those of each row, or None where all are done; `extent` is (m, 2)
    uint16, or None.
    """

    rows: np.ndarray
    features: np.ndarray
    sha256: np.ndarray
    status: np.ndarray | None = None
    errors: np.ndarray | None = None
    extent: np.ndarray | None = None


class Gathered(NamedTuple):
    """What was put, as one.

    `told` is where among the rows there are a status and an error of each, with these.
    """

    rows: np.ndarray
    features: list[np.ndarray]
    sha256: np.ndarray
    told: list[tuple[int, np.ndarray, np.ndarray]]


class Waiting:
    """Holds what is put, without copying it, until it is written."""

    def __init__(self) -> None:
        self._puts: list[Put] = []
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._puts)

    @property
    def is_enough(self) -> bool:
        """Whether it should be written now."""
        return self._bytes >= WRITE_BYTES or len(self._puts) >= MOST_PARTS

    def add(self, put: Put) -> None:
        """Hold more; its arrays must not change before they are written."""
        self._puts.append(put)
        self._bytes += put.features.nbytes

    def clear(self) -> None:
        """Forget what is held."""
        self._puts, self._bytes = [], 0

    def gathered(self) -> Gathered:
        """All that is held, which must be something."""
        told, n = [], 0
        for put in self._puts:
            if put.status is not None and put.errors is not None:
                told.append((n, put.status, put.errors))
            n += len(put.rows)
        return Gathered(
            np.concatenate([put.rows for put in self._puts]),
            [put.features for put in self._puts],
            np.concatenate([put.sha256 for put in self._puts]),
            told,
        )

    def extents(self) -> np.ndarray:
        """(n, 2) uint16 of all that is held; 0 where none was put."""
        put = ((len(put.rows), put.extent) for put in self._puts)
        held = [np.zeros((n, 2), "<u2") if extent is None else extent for n, extent in put]
        return np.concatenate(held, dtype="<u2")


def pieces(
    rows: np.ndarray, parts: Sequence[np.ndarray], row_bytes: int
) -> Iterator[tuple[int, list[memoryview]]]:
    """The bytes of rows that follow one another: the number of the first, and where they lie.

    Parameters
    ----------
    rows : (n,) int64 numbers of the rows in all parts.
    parts : arrays of rows, C-contiguous, n together.
    row_bytes : of each row, above 0.
    """
    left = deque(part.reshape(-1).view(np.uint8).data for part in parts)
    for start, stop in runs(rows):
        size, found = (stop - start) * row_bytes, []
        while size:
            part = left.popleft()
            if len(part) > size:
                left.appendleft(part[size:])
                part = part[:size]
            found.append(part)
            size -= len(part)
        yield int(rows[start]), found
