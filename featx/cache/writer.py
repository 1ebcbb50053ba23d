"""Writing a cache: complete in its metadata before the first image, then rows in place.

HDF5 builds the skeleton once. From then on the file is only ever written at known offsets:
features as they come; at a commit the data of each row beside them, forced to disk, then the status
bytes that vouch for them, forced to disk. Whatever instant a crash picks, the statuses on disk
speak only of rows that are whole. What else can change a byte meanwhile is found by a row's
checksum, which is masked (`mask_of`) with all that is written of the row until the file is sealed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final, Self

import numpy as np

from featx.cache.crc32 import crc32_of, mask_of
from featx.cache.files import Disk, told_as_disk_error
from featx.cache.layout import (
    ERROR_BYTES,
    MASKING,
    RUN_BYTES,
    Status,
    canonical_json,
    columns,
    filler,
    fingerprint,
    format_of,
    runs,
)
from featx.cache.reader import PARTIAL_SUFFIX, CacheFile, open_cache
from featx.cache.seal import sealed, sealing
from featx.cache.skeleton import Rows, build_skeleton, write_skeleton
from featx.cache.uncommitted import Uncommitted
from featx.cache.verify import checked, looked_over
from featx.cache.waiting import Gathered, Put, Waiting, pieces
from featx.errors import DiskError

COMMIT_INTERVAL_S: Final = 1.0
COMMIT_BYTES: Final = 256 * 2**20
_COPY_ROWS_BYTES: Final = 16 * 2**20
_MASK_ROWS: Final = 65_536  # some 20 MB of what a mask is made of


def partial_path(path: Path) -> Path:
    """Where the cache `path` lies while it is unfinished."""
    return path.with_name(path.name + PARTIAL_SUFFIX)


class CacheWriter:
    """An unfinished cache, open for rows: `create` or `resume`, then `put` and `fail`, `finish`.

    Rows arrive in any order, each with its number; a row is done when the commit after its `put`
    has returned. Closing without `finish` keeps everything committed for a later `resume`.

    Attributes
    ----------
    file : the unfinished cache.
    damaged : how many rows were not taken over from the source at `create`, or put back to pending
        at `resume`, because their features do not match their checksum there.
    """

    def __init__(self, file: CacheFile, *, disk: Disk) -> None:
        self.file = file
        self.damaged = 0
        self._disk = disk
        self._status = file.read("status")
        with told_as_disk_error(file.path, "open"):
            self._fd = disk.open(file.path)
        self._features = file.columns["features"]
        self._shape, self._dtype = file.feature_shape, self._features.dtype
        self._has_extent = "extent" in file.columns
        self._row_bytes = sum(
            column.row_bytes for column in file.columns.values() if column.per_row
        )
        self._waiting = Waiting()
        self._uncommitted = Uncommitted()
        self._committed_at = time.monotonic()
        self._told = self._status > Status.DONE  # rows whose error in the file may not be blank

    @classmethod
    def create(
        cls,
        path: Path,
        rows: Rows,
        *,
        root: str,
        spec: Mapping[str, Any],
        plan: Mapping[str, Any],
        feature_shape: tuple[int, ...],
        dtype: str = "float32",
        run: Mapping[str, Any] | None = None,
        source: CacheFile | None = None,
        source_rows: np.ndarray | None = None,
        disk: Disk | None = None,
    ) -> Self:
        """Lay out the whole file, reserve its space, and give it its ``.partial`` name.

        Rows taken over from `source` are in it before it gets that name, so that the unfinished
        file it may replace is never missed. A row that is damaged there is not taken over.

        Parameters
        ----------
        path : final name of the cache.
        rows : the images, in row order.
        root, spec, plan : as in `CacheFile`.
        feature_shape, dtype : of one image's features.
        run : the run report to begin with; in the file before it gets its name.
        source : a cache of the same spec to take finished rows from.
        source_rows : (n,) int64; for each image its row in `source`, or -1.

        Raises
        ------
        DiskError
            The space cannot be reserved or the folder cannot be written. Nothing is left behind.
        """
        disk = disk or Disk()
        arrays = rows.arrays()
        layout = columns(
            len(rows),
            feature_shape,
            dtype,
            arrays["paths"].dtype.itemsize,
            len(arrays["classes"]),
            arrays["classes"].dtype.itemsize,
            has_extent="store_size" in spec,
        )
        attributes = {
            "format": f"featx cache {format_of(layout['features'])}",
            "spec": canonical_json(spec),
            "fingerprint": fingerprint(spec),
            "plan": canonical_json(plan),
            "root": root,
        }
        arrays["run"] = np.frombuffer(_run_bytes(run or {}), np.uint8)
        temporary = path.with_name(path.name + ".tmp")
        damaged = 0
        try:
            with told_as_disk_error(path, "create"):
                disk.make_folder(path.parent)
                write_skeleton(temporary, build_skeleton(layout, attributes), layout, arrays, disk)
                if source is not None and source_rows is not None:
                    with closing(cls(open_cache(temporary), disk=disk)) as writer:
                        damaged = writer._copy_rows(source, source_rows)
                        writer.commit()
                disk.rename(temporary, partial_path(path))
        except BaseException:
            with suppress(OSError):  # what stays of it is overwritten by the next run
                disk.remove(temporary)
            raise
        made = cls(open_cache(partial_path(path), partial=True), disk=disk)
        made.damaged = damaged
        return made

    @classmethod
    def resume(cls, path: Path, *, disk: Disk | None = None) -> Self:
        """Open the unfinished cache of `path` where it stopped.

        Rows of which any byte is not as it was written are pending again: a disk may lose what it
        has said is safe.
        """
        writer = cls(open_cache(partial_path(path), partial=True), disk=disk or Disk())
        try:
            # A run that was killed may have failed any row and left its error, or wiped one away
            # without the disk knowing it.
            writer._told[:] = True
            parts = [*looked_over(writer.file)]
            for _, unmasked, crc32 in parts:
                writer._write_rows("crc32", unmasked, crc32)
            writer._put_back(np.array([row for damaged, _, _ in parts for row in damaged], int))
        except BaseException:
            writer.close()
            raise
        return writer

    @property
    def pending(self) -> np.ndarray:
        """Numbers of the rows that are still to do, (m,) int64, ascending."""
        return np.flatnonzero(self._status == Status.PENDING)

    def put(
        self,
        rows: np.ndarray,
        features: np.ndarray,
        sha256: np.ndarray,
        extent: np.ndarray | None = None,
    ) -> None:
        """Write the features of `rows`, at the latest at the next commit.

        Until then the arrays must not change: they are not copied.

        Parameters
        ----------
        rows : (m,) int64 row numbers, ascending.
        features : (m, d...) of the cache's dtype, finite.
        sha256 : (m, 32) uint8, of the image files' bytes.
        extent : (m, 2) uint16, of whole pictures.
        """
        features = np.ascontiguousarray(features, dtype=self._dtype)
        assert features.shape == (len(rows), *self._shape), features.shape
        self._settle(Put(rows, features, sha256, None, None, extent))

    def fail(self, row: int, status: int, reason: str, sha256: bytes = bytes(32)) -> None:
        """Record that the image of `row` has no features, and why; they become NaN, pixels 0.

        `status` is one of `Status` above DONE, `sha256` the digest of the file's bytes, or zeros
        where they could not be read.
        """
        assert status > Status.DONE, status
        none = np.full((1, *self._shape), filler(self._features), self._dtype)
        put = Put(np.array([row]), none, np.frombuffer(sha256, np.uint8)[None])
        error = np.array([_cut_utf8(reason, ERROR_BYTES)], dtype=f"S{ERROR_BYTES}")
        self._settle(put._replace(status=np.array([status], np.uint8), errors=error))

    def commit(self) -> None:
        """Force what was put to disk, then the status bytes that vouch for it, then those."""
        if not len(self._waiting) and not len(self._uncommitted):
            return
        rows, status = self._write_beside()
        try:
            with told_as_disk_error(self.file.path, "write"):
                self._disk.datasync(self._fd)
                self._write_rows("status", rows, status)
                self._disk.datasync(self._fd)
        except DiskError:
            # After a sync that failed the system may have dropped what was written, and a second
            # sync would not tell: these rows stay pending.
            self._uncommitted = Uncommitted()
            raise
        self._status[rows] = status
        self._uncommitted = Uncommitted()
        self._committed_at = time.monotonic()

    def write_run(self, report: Mapping[str, Any]) -> None:
        """Replace the run report; one that is the same is not touched.

        It is as durable as the next commit: no status is on disk before it.

        Raises
        ------
        AssertionError
            The report's JSON is longer than the room kept for it.
        """
        text = _run_bytes(report)
        if self.file.read("run").tobytes() != text:
            with told_as_disk_error(self.file.path, "write"):
                self._disk.write(self._fd, text, self.file.offsets["run"])

    def finish(self, path: Path, report: Mapping[str, Any]) -> CacheFile:
        """Seal the file with its digests and give it its final name. Every row must be settled."""
        self.commit()
        assert not len(self.pending), "a cache with pending rows must not get its final name"
        self._unmask()
        with told_as_disk_error(self.file.path, "write"):
            column_digests, digest = sealing(self.file)
            self.write_run(sealed(report, column_digests))
            self._disk.write(self._fd, digest(), self.file.offsets["digest"])
            self._disk.sync(self._fd)
        self.close()
        with told_as_disk_error(path, "give its final name to"):
            self._disk.rename(self.file.path, path)
        return open_cache(path)

    def close(self) -> None:
        """Close the file; what was not committed is done again by a later resume."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with told_as_disk_error(self.file.path, "close"):
                self._disk.close(fd)

    def _copy_rows(self, source: CacheFile, source_rows: np.ndarray) -> int:
        """Take settled rows over from another cache of the same spec; how many were damaged."""
        targets = np.flatnonzero(source_rows >= 0)
        step = max(1, _COPY_ROWS_BYTES // max(1, self._features.row_bytes))
        damaged = 0
        for start in range(0, len(targets), step):
            rows = targets[start : start + step]
            features = source.take("features", source_rows[rows])
            intact, _, _ = checked(source, source_rows[rows], features)
            damaged += int((~intact).sum())
            rows, features = rows[intact], features[intact]
            status, sha256, errors = (source.take(name, source_rows[rows]) for name in MASKING)
            errors[status == Status.DONE] = b""  # it has none; what is there is damage
            extent = source.take("extent", source_rows[rows]) if self._has_extent else None
            self._settle(Put(rows, features, sha256, status, errors, extent))
        return damaged

    def _put_back(self, rows: np.ndarray) -> None:
        """Let rows be pending again."""
        if len(rows):
            self.damaged = len(rows)
            self._status[rows] = Status.PENDING
            self._write_rows("status", rows, self._status[rows])
            with told_as_disk_error(self.file.path, "write"):
                self._disk.datasync(self._fd)

    def _unmask(self) -> None:
        """Let every checksum be that of its features alone."""
        for start in range(0, len(self.file), _MASK_ROWS):
            rows = np.arange(start, min(start + _MASK_ROWS, len(self.file)))
            mask = mask_of(*(self.file.take(name, rows) for name in MASKING))
            self._write_rows("crc32", rows, self.file.take("crc32", rows) ^ mask)

    def _settle(self, put: Put) -> None:
        """Take rows as settled."""
        self._waiting.add(put)
        overdue = time.monotonic() - self._committed_at >= COMMIT_INTERVAL_S
        if overdue or self._waiting.is_enough:
            self._write_waiting()
            if overdue or len(self._uncommitted) * self._row_bytes >= COMMIT_BYTES:
                self.commit()

    def _write_waiting(self) -> None:
        """Write features, and note what the commit writes beside them.

        An `extent` is part of what a checksum vouches for; where none is given it is 0.
        """
        if not len(self._waiting):
            return
        put = self._waiting.gathered()
        extent = self._waiting.extents() if self._has_extent else None
        try:
            with told_as_disk_error(self.file.path, "write"), ThreadPoolExecutor(1) as system:
                written = system.submit(self._write_features, put)  # copies without the interpreter
                crc32 = np.concatenate([crc32_of(features) for features in put.features])
                written.result()
            if extent is not None:
                self._write_rows("extent", put.rows, extent)
                crc32 ^= crc32_of(extent)
        except DiskError:
            self._waiting.clear()  # not tried again: these rows stay pending
            raise
        self._uncommitted.add(put.rows, crc32, put.sha256, put.told)
        self._waiting.clear()

    def _write_features(self, put: Gathered) -> None:
        row_bytes, offset = self._features.row_bytes, self.file.offsets["features"]
        for row, parts in pieces(put.rows, put.features, row_bytes):
            self._disk.write_parts(self._fd, parts, offset + row * row_bytes)
        self._disk.begin_write_back(self._fd, offset)

    def _write_beside(self) -> tuple[np.ndarray, np.ndarray]:
        """Write what waits, and all but the status of the uncommitted rows.

        Returns
        -------
        rows, status : (m,) of these rows, ascending.
        """
        self._write_waiting()
        rows, status, crc32, sha256, errors = self._uncommitted.beside()
        self._write_rows("crc32", rows, crc32 ^ mask_of(status, sha256, errors))
        self._write_rows("sha256", rows, sha256)
        self._told[rows[status != Status.DONE]] = True
        told = self._told[rows]
        self._write_rows("errors", rows[told], errors[told])
        return rows, status

    def _write_rows(self, name: str, rows: np.ndarray, values: np.ndarray) -> None:
        column, offset = self.file.columns[name], self.file.offsets[name]
        row_bytes = column.row_bytes
        data = np.ascontiguousarray(values, dtype=column.dtype).reshape(-1).view(np.uint8).data
        with told_as_disk_error(self.file.path, "write"):
            for start, stop in runs(rows):
                self._disk.write(
                    self._fd,
                    data[start * row_bytes : stop * row_bytes],
                    offset + int(rows[start]) * row_bytes,
                )


def _run_bytes(report: Mapping[str, Any]) -> bytes:
    text = canonical_json(report).encode("ascii") if report else b""
    assert len(text) <= RUN_BYTES, f"run report of {len(text)} bytes"
    return text.ljust(RUN_BYTES, b"\0")


def _cut_utf8(text: str, length: int) -> bytes:
    line = " ".join(text.split())
    return line.encode("utf-8", "replace")[:length].decode("utf-8", "ignore").encode()
