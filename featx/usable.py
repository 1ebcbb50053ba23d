"""Which rows of a finished cache are of use, and what is known of them without their features."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from featx.cache import SPLIT_NAMES, CacheFile, Status, check, open_to_check
from featx.errors import CacheError, InputError
from featx.splits import make_split

_MOST_COPIED_BYTES: Final = 1 << 30
_BLOCK_BYTES: Final = 64 << 20


@dataclass(frozen=True)
class FailedImage:
    """An image without features: its path, what became of it, and the decoder's own words."""

    path: str
    status: Status
    reason: str


def open_intact(path: str | os.PathLike[str]) -> CacheFile:
    """`open_cache`, after every byte was checked.

    Raises
    ------
    CacheError
        As `open_cache`, and where a row or anything else is not as it was written.
    """
    file = open_to_check(path)
    found = check(file)
    if not found.ok:
        raise CacheError(
            f"{path} is damaged ({found.damage}); mend it with "
            f"`featx verify --repair {os.fspath(path)}`"
        )
    return file


def usable_columns(file: CacheFile) -> dict[str, np.ndarray]:
    """What is known of the usable rows of a finished cache, without their features.

    Returns
    -------
    By name, each with one entry a row: ``rows`` (their numbers in the file), ``labels``, ``split``
    (codes), ``groups`` and ``sha256``.

    Raises
    ------
    CacheError
        The file says of itself that a row is pending or has an unknown status or label.
    """
    status = file.read("status")
    if ((status == Status.PENDING) | (status > max(Status))).any():
        raise CacheError(f"{file.path} is damaged: some of its rows have no valid status")
    done = np.flatnonzero(status == Status.DONE)
    columns = {name: file.read(name) for name in ("labels", "split", "groups", "sha256")}
    if ((columns["labels"] < -1) | (columns["labels"] >= max(1, len(file.classes)))).any():
        raise CacheError(f"{file.path} is damaged: some of its labels have no class")
    if (columns["split"] >= len(SPLIT_NAMES)).any():
        raise CacheError(f"{file.path} is damaged: some of its split codes are unknown")
    return {"rows": done, **{name: column[done] for name, column in columns.items()}}


def usable_features(file: CacheFile, rows: np.ndarray) -> np.ndarray:
    """Features (n, d...) of the usable rows: the memory map where these are all there are.

    Where images have failed the others are copied: into memory, or where that would be 1 GiB or
    more, into a file without a name beside the cache, which is mapped and goes with the array.
    """
    if len(rows) == len(file):
        return file.map("features")
    column = file.columns["features"]
    if len(rows) * column.row_bytes >= _MOST_COPIED_BYTES:
        with suppress(OSError), tempfile.TemporaryFile(dir=file.path.parent) as beside:
            if hasattr(os, "posix_fallocate"):  # refused at once where there is no room
                os.posix_fallocate(beside.fileno(), 0, len(rows) * column.row_bytes)
            step = max(1, _BLOCK_BYTES // column.row_bytes)
            for start in range(0, len(rows), step):
                beside.write(file.take("features", rows[start : start + step]).data)
            beside.flush()
            shape = (len(rows), *column.shape[1:])
            return np.memmap(beside, column.dtype, "c", shape=shape)
    return file.map("features")[rows]  # also where that folder takes no more


def failed_images(file: CacheFile) -> tuple[FailedImage, ...]:
    """The images of a finished cache that have no features."""
    status, errors = file.read("status"), file.map("errors")
    return tuple(
        FailedImage(
            os.fsdecode(file.paths[row]),
            Status(status[row]),
            bytes(errors[row]).decode("utf-8", "replace"),
        )
        for row in np.flatnonzero(status > Status.DONE)
    )


def split_rows(
    y: np.ndarray,
    codes: np.ndarray,
    groups: np.ndarray,
    split: str,
    *,
    seed: int,
    test_fraction: float,
    path: Path,
) -> np.ndarray:
    """Which rows are in a part of the split, as `load` documents it.

    Parameters
    ----------
    y, codes, groups : (n,) labels, split codes and groups.
    split : name of the part.
    seed, test_fraction : as of `load`.
    path : the cache, for the message.

    Raises
    ------
    InputError
        There is no such part, or it has no rows.
    """
    made = make_split(y, codes, groups=groups, seed=seed, test_fraction=test_fraction)
    known = {
        "train": made.train,
        "val": made.val,
        "held-out": made.held_out,
        made.held_out_name: made.held_out,
    }
    if split not in known:
        raise InputError(f"split must be one of {', '.join(known)} here, got {split!r}")
    if not len(known[split]):
        raise InputError(f"split {split!r} has no images in {path} (split: {made.source})")
    return known[split]
