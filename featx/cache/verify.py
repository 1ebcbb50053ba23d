"""Checking a finished cache byte by byte, and mending it into a new file."""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featx.cache.reader import digest_of, open_cache


@dataclass(frozen=True)
class Verification:
    """What a check found.

    Attributes
    ----------
    path : the cache.
    n : rows in it.
    bad_rows : numbers of the rows whose features do not match their checksum.
    bad_paths : their paths.
    digest_matches : whether every byte outside the features is as it was written.
    """

    path: Path
    n: int
    bad_rows: tuple[int, ...]
    bad_paths: tuple[str, ...]
    digest_matches: bool

    @property
    def ok(self) -> bool:
        """Whether every byte is as it was written."""
        return self.digest_matches and not self.bad_rows


def verify(path: str | os.PathLike[str]) -> Verification:
    """Check every byte of the finished cache at `path` against what was written.

    Features are held against the CRC-32 of each row, everything else (labels, paths, statuses,
    the checksums themselves, HDF5's own bytes) against the file's SHA-256 digest.

    Raises
    ------
    CacheError
        The file is so damaged that it cannot be opened as a cache.
    """
    file = open_cache(path)
    features, crc32 = file.map("features"), file.read("crc32")
    bad = tuple(
        row
        for row in range(len(file))
        if zlib.crc32(np.ascontiguousarray(features[row]).data) != crc32[row]
    )
    paths = tuple(os.fsdecode(file.paths[row]) for row in bad)
    matches = digest_of(file) == file.read("digest").tobytes()
    return Verification(file.path, len(file), bad, paths, matches)
