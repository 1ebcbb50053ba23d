"""Checking a finished cache byte by byte, in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from featx.cache.crc32 import crc32_of, mask_of
from featx.cache.layout import MASKING, Status, is_filler
from featx.cache.reader import PARTIAL_SUFFIX, CacheFile, open_cache
from featx.cache.seal import damaged_columns, seal_of
from featx.errors import CacheError, NewerFormatError
from featx.home import at_home

_CHUNK_BYTES: Final = 16 * 2**20


@dataclass(frozen=True)
class Verification:
    """What a check found.

    Attributes
    ----------
    path : the cache.
    n : rows in it.
    bad_rows : numbers of the rows whose features do not match their checksum or their status: a
        row that is done has finite features, one that failed has NaN (pixels: 0), none is
        pending.
    bad_paths : their paths.
    digest_matches : whether every byte outside the features is as it was written.
    bad_columns : what is damaged outside the features: names of datasets, or ``other bytes``
        (those of HDF5, padding); empty where the digest matches. Where ``run`` is damaged it
        stands alone, since what vouches for each of the others lies in it; all names are given
        where nothing tells the columns apart.
    """

    path: Path
    n: int
    bad_rows: tuple[int, ...]
    bad_paths: tuple[str, ...]
    digest_matches: bool
    bad_columns: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every byte is as it was written."""
        return self.digest_matches and not self.bad_rows

    @property
    def damage(self) -> str:
        """What is damaged, in a few words; empty where nothing is."""
        rows = f"{len(self.bad_rows):,} of its rows" if self.bad_rows else ""
        return " and ".join(filter(None, (rows, ", ".join(self.bad_columns))))


def verify(path: str | os.PathLike[str]) -> Verification:
    """Check every byte of the finished cache at `path` against what was written.

    Features are held against the CRC-32 of each row and against its status, everything else
    (labels, paths, statuses, the checksums themselves, HDF5's own bytes) against the file's
    SHA-256 digest, and column by column against the digests in its run report.

    Raises
    ------
    CacheError
        The file is so damaged that it cannot be opened as a cache.
    DiskError
        The disk cannot read it.
    """
    return check(open_to_check(path))


def open_to_check(path: str | os.PathLike[str]) -> CacheFile:
    """`open_cache`; of a file that is too damaged to be opened the error says what is left to do.

    Where its rows lie is told by HDF5's own bytes, so that without these none can be saved.

    Raises
    ------
    CacheError
        As `open_cache`.
    """
    path = at_home(path)
    try:
        return open_cache(path)
    except NewerFormatError:
        raise
    except CacheError as error:
        unfinished = os.fspath(path).endswith(PARTIAL_SUFFIX)
        unread = isinstance(error.__cause__, OSError)  # by who may not, or not now
        if not Path(path).is_file() or unfinished or unread:
            raise
        raise CacheError(
            f"{error}. A cache that cannot be opened cannot be mended: make it anew with "
            "`featx extract … --fresh`"
        ) from error


def check(file: CacheFile) -> Verification:
    """`verify`, for a cache that is open."""
    bad = tuple(damaged_rows(file))
    paths = tuple(_as_text(file.read("paths", row, row + 1)[0]) for row in bad)
    digest, columns = seal_of(file)
    matches = digest == file.read("digest").tobytes()
    damaged = () if matches else damaged_columns(file, columns)
    return Verification(file.path, len(file), bad, paths, matches, damaged)


def damaged_rows(file: CacheFile) -> Iterator[int]:
    """Numbers of the rows whose features do not match their checksum or their status.

    A row that is done has finite features and one that failed has NaN, or 0 where they are pixels.
    A pending row is damage in a finished cache only; in an unfinished one the checksum covers a
    row's image hash and error, too.
    """
    for damaged, _, _ in looked_over(file):
        yield from damaged.tolist()


def looked_over(file: CacheFile) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Look over all rows, in parts.

    Yields
    ------
    damaged : (m,) numbers of rows, as from `damaged_rows`.
    unmasked, crc32 : (k,) numbers of rows that are intact, whose checksum lacks the mask of an
        unfinished file, and what it should be.
    """
    step = max(1, _CHUNK_BYTES // max(1, file.columns["features"].row_bytes))
    for start in range(0, len(file), step):
        status = file.read("status", start, start + step)
        if file.is_partial and (status == Status.PENDING).all():
            continue
        features = file.read("features", start, start + step)
        numbers = np.arange(start, start + len(features))
        intact, found, expected = checked(file, numbers, features)
        features = features.reshape(len(features), -1)
        done = status == Status.DONE
        failed = (status > Status.DONE) & (status <= max(Status))
        true = np.where(done, np.isfinite(features).all(1), failed & is_filler(features).all(1))
        good = intact & true
        if file.is_partial:
            good |= status == Status.PENDING
        unmasked = good & (found != expected) & (status != Status.PENDING)
        yield numbers[~good], numbers[unmasked], expected[unmasked]


def checked(
    file: CacheFile, rows: np.ndarray, features: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hold `features` (m, d...) of `rows` against their checksums.

    Returns
    -------
    intact : (m,) bool. In an unfinished file a checksum may also be without its mask (an earlier
        featx wrote none) or be half masked: a run was killed as it finished the file.
    found, expected : (m,) uint32, the checksums as they are, and as they should be.
    """
    found, bare = file.take("crc32", rows), crc32_of(features)
    if "extent" in file.columns:
        bare = bare ^ crc32_of(file.take("extent", rows))
    if not file.is_partial:
        return np.asarray(found == bare), found, bare
    masked = bare ^ mask_of(*(file.take(name, rows) for name in MASKING))
    whole, here, there = (each.view(np.uint8).reshape(-1, 4) for each in (found, bare, masked))
    return ((whole == here) | (whole == there)).all(axis=1), found, masked


def _as_text(path: bytes) -> str:
    try:
        return os.fsdecode(path)
    except UnicodeDecodeError:  # damaged bytes, where names of files are always text
        return path.decode("utf-8", "backslashreplace")
