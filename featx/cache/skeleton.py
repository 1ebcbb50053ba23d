"""A cache's file before its first row: laid out whole by HDF5, its space reserved."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from featx.cache.files import Disk
from featx.cache.layout import ALIGNMENT, Column
from featx.errors import DiskError


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


def build_skeleton(
    path: Path, layout: Mapping[str, Column], attributes: Mapping[str, str]
) -> dict[str, int]:
    """Let HDF5 write all metadata and allocate all datasets; returns their offsets."""
    try:
        with h5py.File(
            path,
            "w",
            libver="latest",
            locking=False,
            alignment_threshold=1,
            alignment_interval=ALIGNMENT,
        ) as file:
            for name, text in attributes.items():
                _fixed_attribute(file, name, text)
            return {name: _allocate_dataset(file, name, column) for name, column in layout.items()}
    except RuntimeError as error:  # how HDF5 reports some failing writes
        raise DiskError(f"cannot create {path}: {error}") from error


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


def fill(
    path: Path,
    layout: Mapping[str, Column],
    offsets: Mapping[str, int],
    arrays: Mapping[str, np.ndarray],
    disk: Disk,
) -> None:
    """Reserve the space of the whole file, write the fixed columns, and sync."""
    fd = disk.open(path)
    try:
        end = max(offsets[name] + column.nbytes for name, column in layout.items())
        disk.allocate(fd, max(end, os.fstat(fd).st_size))
        for name, array in arrays.items():
            data = np.ascontiguousarray(array, dtype=layout[name].dtype)
            disk.write(fd, data.reshape(-1).view(np.uint8).data, offsets[name])
        disk.sync(fd)
    finally:
        disk.close(fd)
