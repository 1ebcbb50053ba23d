"""Some rows of a feature matrix, read when they are asked for; of a memory map none is copied."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]

_BLOCK_BYTES: Final = 64 << 20  # looked through at once


class RowView:
    """Rows `rows` of X as if they were a matrix; an index gives an array, a copy of what it names.

    Parameters
    ----------
    X : (N, d) float, perhaps a memory map that is larger than memory
    rows : (n,) int64
    """

    def __init__(self, X: npt.NDArray[Any], rows: IntArray) -> None:
        self._X, self._rows = X, np.asarray(rows)
        self.dtype = X.dtype
        self.shape = (len(self._rows), X.shape[1])
        self.size = self.shape[0] * self.shape[1]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: Any) -> npt.NDArray[Any]:
        """Rows, or rows and columns: ``[10:20]``, ``[[3, 1]]``, ``[:, 5:9]``."""
        rows, columns = key if isinstance(key, tuple) else (key, slice(None))
        found: npt.NDArray[Any] = self._X[self._rows[rows], columns]
        return found

    def part(self, rows: npt.NDArray[Any]) -> RowView:
        """Some of these rows, by position or by a mask; read no sooner."""
        return RowView(self._X, self._rows[rows])

    def is_finite(self) -> bool:
        """Whether no value is NaN or infinite; reads all of them, a block at a time."""
        step = max(1, _BLOCK_BYTES // max(1, self.dtype.itemsize * self.shape[1]))
        return all(
            bool(np.isfinite(self[start : start + step]).all())
            for start in range(0, len(self), step)
        )


def part_of(X: Any, rows: npt.NDArray[Any]) -> Any:
    """Some rows of a matrix; of a `RowView` another one."""
    return X.part(rows) if isinstance(X, RowView) else X[rows]
