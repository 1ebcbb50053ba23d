"""Which rows of a finished cache are of use, and what is known of them without their features."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featx.cache import SPLIT_NAMES, CacheFile, Status, check, open_to_check
from featx.errors import CacheError, InputError
from featx.splits import make_split


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
