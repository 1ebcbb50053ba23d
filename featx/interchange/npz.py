"""Features as NPZ: arrays for numpy, without a pickle in them."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Final

import numpy as np

from featx.cache import SPLIT_NAMES
from featx.interchange.exported import Exported

_DATE: Final = (1980, 1, 1, 0, 0, 0)  # the first a zip file can hold: same rows, same bytes


def write_npz(stream: BinaryIO, exported: Exported) -> None:
    """Write what `numpy.load(path)` reads, with ``allow_pickle=False`` as it is by default.

    Arrays: X (m, d...), y (m,) int64, paths, split and sha256 (m,) text, groups (m,) int64,
    classes (k,) text, and spec, plan, fingerprint, shape and root as JSON texts. Nothing is
    compressed: features hardly become smaller.
    """
    classes = np.array(exported.file.classes or [], dtype=str)
    names = np.array(SPLIT_NAMES)
    longest = max(len(os.fsdecode(path)) for path in exported.paths(slice(None)))
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:

        def add(
            name: str, shape: tuple[int, ...], dtype: Any, part: Callable[[slice], Any]
        ) -> None:
            blocks = (part(block) for block in exported.blocks())
            _add_array(archive, name, shape, np.dtype(dtype), blocks)

        n = len(exported)
        add("X", (n, *exported.file.feature_shape), exported.dtype, exported.features)
        add("y", (n,), "<i8", lambda block: exported.y[block])
        add("paths", (n,), f"<U{longest}", lambda b: [os.fsdecode(p) for p in exported.paths(b)])
        add("split", (n,), names.dtype, lambda block: names[exported.split[block]])
        add("groups", (n,), "<i8", lambda block: exported.groups[block])
        add("sha256", (n,), "<U64", exported.hashes)
        _add_array(archive, "classes", classes.shape, classes.dtype, [classes])
        for name, text in exported.described().items():
            if name != "classes":
                array = np.array(text)
                _add_array(archive, name, (), array.dtype, [array])


def _add_array(
    archive: zipfile.ZipFile,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype,
    blocks: Iterator[Any] | list[Any],
) -> None:
    """Add one array of the `shape`, which comes in blocks of its rows."""
    info = zipfile.ZipInfo(f"{name}.npy", _DATE)
    info.external_attr = 0o644 << 16
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with archive.open(info, "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, header)
        for block in blocks:
            member.write(np.ascontiguousarray(block, dtype).reshape(-1).view(np.uint8).data)
