"""What an export writes, whatever the format: columns with one entry a row, and features."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from featx.cache import SPLIT_NAMES, CacheFile

BLOCK_BYTES: Final = 16 * 2**20  # of features that are in memory at a time


@dataclass(frozen=True, eq=False)
class Exported:
    """Rows of a cache on their way into another format. Features are read block by block.

    Attributes
    ----------
    file : the cache.
    rows : (m,) int64, numbers of the rows in it.
    y : (m,) int64 labels, index into the cache's classes; -1 for none.
    split : (m,) uint8 codes of `featx.cache.SPLIT_NAMES`.
    groups : (m,) int64, -1 for none.
    sha256 : (m, 32) uint8.
    block_bytes : of features that are in memory at a time; a block has one row at least.
    """

    file: CacheFile
    rows: np.ndarray
    y: np.ndarray
    split: np.ndarray
    groups: np.ndarray
    sha256: np.ndarray
    block_bytes: int = BLOCK_BYTES

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def d(self) -> int:
        """Values of one image; those of a map in C order."""
        return math.prod(self.file.feature_shape)

    @property
    def dtype(self) -> np.dtype:
        return self.file.columns["features"].dtype

    def blocks(self) -> Iterator[slice]:
        """Slices of the rows, one after the other, each small enough to be in memory."""
        step = max(1, self.block_bytes // self.file.columns["features"].row_bytes)
        for start in range(0, len(self), step):
            yield slice(start, min(start + step, len(self)))

    def features(self, block: slice) -> np.ndarray:
        """(b, d...) features of a block."""
        return self.file.take("features", self.rows[block])

    def paths(self, block: slice) -> list[bytes]:
        """Paths of a block, relative to the cache's root, in the bytes of the file system."""
        return [self.file.paths[row] for row in self.rows[block].tolist()]

    def labels(self, block: slice) -> list[str | None]:
        """Class names of a block, as the folders are called."""
        names: Sequence[str | None] = (*self.file.classes, None)  # label -1 takes the last
        return [names[label] for label in self.y[block].tolist()]

    def splits(self, block: slice) -> list[str]:
        """``train``, ``val``, ``test`` or empty."""
        return [SPLIT_NAMES[code] for code in self.split[block].tolist()]

    def hashes(self, block: slice) -> list[str]:
        """SHA-256 of the images of a block, 64 hex digits each."""
        return [row.tobytes().hex() for row in self.sha256[block]]

    def described(self) -> dict[str, str]:
        """What the cache says of all its rows, as JSON texts: spec, plan, classes, shape, root."""
        return {
            "spec": json.dumps(self.file.spec),
            "plan": json.dumps(self.file.plan),
            "fingerprint": json.dumps(self.file.fingerprint),
            "classes": json.dumps(self.file.classes),
            "shape": json.dumps(self.file.feature_shape),
            "root": json.dumps(self.file.root),
        }
