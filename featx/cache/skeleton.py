"""A cache's file before its first row: laid out whole by HDF5, its space reserved."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from featx.cache.files import Disk
from featx.cache.layout import ALIGNMENT, Column, columns


@dataclass(frozen=True)
class Rows:
    """What is known of every image before the first one is decoded; the row order of the cache.

    Attributes
    ----------
    paths : relative to the root, in file-system bytes, sorted.
    labels, groups : (n,) int64, -1 for none.
    split : (n,) uint8, 0 none, 1 train, 2 val, 3 test.
    size_bytes, mtime_ns : (n,) int64, of each file when it was listed.
    classes : class names by label.
    """

    paths: Sequence[bytes]
    labels: np.ndarray
    split: np.ndarray
    groups: np.ndarray
    size_bytes: np.ndarray
    mtime_ns: np.ndarray
    classes: Sequence[str]

    def __len__(self) -> int:
        return len(self.paths)

    def arrays(self) -> dict[str, np.ndarray]:
        """The datasets that are fixed at creation."""
        names = [name.encode("utf-8", "surrogateescape") for name in self.classes]
        return {
            "paths": np.array(list(self.paths), dtype="S"),
            "classes": np.array(names or [b""], dtype="S"),
            "labels": self.labels,
            "split": self.split,
            "groups": self.groups,
            "size_bytes": self.size_bytes,
            "mtime_ns": self.mtime_ns,
        }


@dataclass(frozen=True)
class Skeleton:
    """A cache without its columns' data: where each lies, and the bytes of HDF5 between them.

    Attributes
    ----------
    offsets : name -> byte offset of every dataset.
    metadata : HDF5's own bytes, as pairs of offset and bytes; a few kB whatever the size.
    size_bytes : length of the whole file.
    """

    offsets: Mapping[str, int]
    metadata: Sequence[tuple[int, bytes]]
    size_bytes: int


class _SparseFile(io.RawIOBase):
    """A file in memory that keeps what is written and nothing of the holes between.

    HDF5 writes to it as to any Python file object, so that every byte which reaches the disk goes
    through `Disk`. Datasets are allocated but never filled: only metadata arrives here.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[tuple[int, bytes]] = []
        self.size_bytes = 0
        self._position = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size_bytes}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def write(self, data: Any) -> int:
        self.pieces.append((self._position, bytes(data)))
        self._position += len(data)
        self.size_bytes = max(self.size_bytes, self._position)
        return len(data)

    def readinto(self, buffer: Any) -> int:
        length = min(len(buffer), max(0, self.size_bytes - self._position))
        found = bytearray(length)  # holes read as zeros
        for start, piece in self.pieces:
            at = start - self._position
            first, last = max(0, at), min(length, at + len(piece))
            if first < last:
                found[first:last] = piece[first - at : last - at]
        buffer[:length] = found
        self._position += length
        return length

    def truncate(self, size_bytes: int | None = None) -> int:
        self.size_bytes = self._position if size_bytes is None else size_bytes
        assert all(start + len(piece) <= self.size_bytes for start, piece in self.pieces)
        return self.size_bytes


def build_skeleton(layout: Mapping[str, Column], attributes: Mapping[str, str]) -> Skeleton:
    """Let HDF5 lay out the whole file in memory; nothing touches the disk.

    In a thread of its own: Ctrl-C raises in the main thread alone, and where it did so in what HDF5
    calls here, h5py would go on with the exception pending and end in another one.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_laid_out, layout, attributes).result()


def _laid_out(layout: Mapping[str, Column], attributes: Mapping[str, str]) -> Skeleton:
    sparse = _SparseFile()
    with h5py.File(
        sparse,
        "w",
        # The newest structures of HDF5 1.10, whatever library is installed: the same bytes from
        # all, none that `featx.cache.metadata` does not know, and older readers open them too.
        libver=("v110", "v110"),
        alignment_threshold=1,
        alignment_interval=ALIGNMENT,
    ) as file:
        for name, text in attributes.items():
            _fixed_attribute(file, name, text)
        offsets = {name: _allocate_dataset(file, name, column) for name, column in layout.items()}
    return Skeleton(offsets, sparse.pieces, sparse.size_bytes)


def size_of(
    rows: Rows, feature_shape: tuple[int, ...], dtype: str, *, has_extent: bool = False
) -> int:
    """Bytes of a cache of these rows, but for the few kB of its attributes."""
    layout = columns(
        len(rows),
        feature_shape,
        dtype,
        max(map(len, rows.paths), default=0),
        len(rows.classes),
        max((len(name.encode("utf-8", "surrogateescape")) for name in rows.classes), default=0),
        has_extent=has_extent,
    )
    return build_skeleton(layout, {}).size_bytes


def _fixed_attribute(file: h5py.File, name: str, text: str) -> None:
    data = text.encode("utf-8", "surrogateescape")
    dtype = h5py.string_dtype("utf-8", max(1, len(data)))
    file.attrs.create(name, np.array(data, dtype=dtype), dtype=dtype)


def _allocate_dataset(file: h5py.File, name: str, column: Column) -> int:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.CONTIGUOUS)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    plist.set_obj_track_times(False)  # the same rows give the same bytes
    dtype = column.dtype
    if dtype.kind == "S":
        dtype = h5py.string_dtype("utf-8", dtype.itemsize)
    type_id = h5py.h5t.py_create(dtype, logical=True)
    space = h5py.h5s.create_simple(column.shape)
    dataset = h5py.h5d.create(file.id, name.encode(), type_id, space, plist)
    return int(dataset.get_offset())


def write_skeleton(
    path: Path,
    skeleton: Skeleton,
    layout: Mapping[str, Column],
    arrays: Mapping[str, np.ndarray],
    disk: Disk,
) -> None:
    """Make the file, reserve the space of all of it, write metadata and fixed columns, sync."""
    disk.remove(path)  # left by a run that was killed
    fd = disk.create(path)
    try:
        disk.allocate(fd, skeleton.size_bytes)
        for offset, piece in skeleton.metadata:
            disk.write(fd, piece, offset)
        for name, array in arrays.items():
            data = np.ascontiguousarray(array, dtype=layout[name].dtype)
            disk.write(fd, data.reshape(-1).view(np.uint8).data, skeleton.offsets[name])
        disk.sync(fd)
    finally:
        disk.close(fd)
