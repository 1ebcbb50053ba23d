"""Rows between their `put` and their commit: what is still to be written of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from featx.cache.layout import ERROR_BYTES, Status


class Beside(NamedTuple):
    """What is written of each row but its features: arrays of (m,), `sha256` (m, 32).

    The numbers in `rows` ascend; `crc32` is the checksum of the features alone.
    """

    rows: np.ndarray
    status: np.ndarray
    crc32: np.ndarray
    sha256: np.ndarray
    errors: np.ndarray


class Uncommitted:
    """Notes rows as they are written."""

    def __init__(self) -> None:
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._told: list[tuple[int, np.ndarray, np.ndarray]] = []
        self._n = 0

    def __len__(self) -> int:
        return self._n

    def add(
        self,
        rows: np.ndarray,
        crc32: np.ndarray,
        sha256: np.ndarray,
        told: Iterable[tuple[int, np.ndarray, np.ndarray]] = (),
    ) -> None:
        """Note rows, all of them DONE but what is `told`: from which of them on, status, error."""
        self._parts.append((rows, crc32, sha256))
        self._told += [(self._n + start, status, errors) for start, status, errors in told]
        self._n += len(rows)

    def beside(self) -> Beside:
        """All that is noted; of a row that is noted twice the last."""
        rows, crc32, sha256 = map(np.concatenate, zip(*self._parts, strict=True))
        status = np.full(self._n, Status.DONE, np.uint8)
        errors = np.zeros(self._n, f"S{ERROR_BYTES}")
        for start, its_status, its_errors in self._told:
            part = slice(start, start + len(its_status))
            status[part], errors[part] = its_status, its_errors
        noted = Beside(rows, status, crc32, sha256, errors)
        if (np.diff(rows) > 0).all():
            return noted
        order = rows.argsort(kind="stable")
        order = order[np.append(np.diff(rows[order]) > 0, True)]
        return Beside(*(array[order] for array in noted))
