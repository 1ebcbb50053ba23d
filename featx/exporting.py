"""The stage that hands features to other programs: a cache becomes Parquet, NPZ or CSV."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np

from featx.errors import InputError
from featx.interchange.csv_table import write_csv
from featx.interchange.exported import Exported
from featx.interchange.npz import write_npz
from featx.interchange.parquet import write_parquet
from featx.splits import TEST_FRACTION
from featx.usable import FailedImage, failed_images, open_intact, split_rows, usable_columns
from featx.whole_files import write_whole
from featx.workspace import newest_cache

FORMATS: Final[dict[str, Callable[[BinaryIO, Exported], None]]] = {
    "parquet": write_parquet,
    "npz": write_npz,
    "csv": write_csv,
}
_SEED: Final = 0


@dataclass(frozen=True)
class Export:
    """What an export did.

    Attributes
    ----------
    path : the file.
    cache : where its rows are from.
    n : rows in it.
    failed : images of the cache that have no features, and so no row.
    written : False where the same file was there already.
    """

    path: Path
    cache: Path
    n: int
    failed: tuple[FailedImage, ...]
    written: bool


def export(
    cache: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    to: str | None = None,
    split: str | None = None,
    seed: int = _SEED,
    test_fraction: float = TEST_FRACTION,
    force: bool = False,
    cache_dir: str | os.PathLike[str] = "cache",
) -> Export:
    """Write the usable rows of a cache for other programs, in the order of the cache.

    Only one block of features is in memory at a time. The file has its name only when it is whole.

    Parameters
    ----------
    cache : a finished cache; the newest in `cache_dir` if none is named.
    out : the file; by default beside the cache, called as it is.
    to : ``parquet``, ``npz`` or ``csv``; by default what the ending of `out` says.
    split : only these rows: ``train``, ``val``, ``held-out``, as of `featx.load`.
    seed, test_fraction : as of `featx.load`, where the images have no split of their own.
    force : replace a file of other content.

    Raises
    ------
    CacheError
        No usable cache.
    InputError
        No such format or split, no usable row, or a file of other content is there.
    MissingExtraError
        For Parquet, pyarrow is not installed.
    DiskError
        The file cannot be written; what was there is untouched.

    Examples
    --------
    >>> export("cache/birds-densenet121.h5", to="npz").path  # doctest: +SKIP
    PosixPath('cache/birds-densenet121.npz')
    """
    to = _format(to, out)
    path = Path(cache) if cache is not None else newest_cache(cache_dir)
    target = Path(out) if out is not None else _beside(path, to, split, seed, test_fraction)
    file = open_intact(path)
    columns = usable_columns(file)
    rows, y, codes, groups = (columns[name] for name in ("rows", "labels", "split", "groups"))
    if not len(rows):
        raise InputError(f"not one image of {path} has features: there is nothing to export")
    part = np.arange(len(rows))
    if split is not None:
        part = split_rows(
            y, codes, groups, split, seed=seed, test_fraction=test_fraction, path=path
        )
    exported = Exported(
        file, rows[part], y[part], codes[part], groups[part], columns["sha256"][part]
    )
    written = write_whole(target, lambda stream: FORMATS[to](stream, exported), force=force)
    return Export(target, path, len(exported), failed_images(file), written)


def _format(to: str | None, out: str | os.PathLike[str] | None) -> str:
    """The format that is meant; the file's ending says the same."""
    ending = Path(out).suffix.removeprefix(".").lower() if out is not None else ""
    chosen = to if to is not None else ending
    if chosen not in FORMATS:
        told = f"got {to!r}" if to is not None else f"and no ending of a file says it ({ending!r})"
        raise InputError(f"--to must be {', '.join(FORMATS)}, {told}; state-dict is of a head")
    if out is not None and ending != chosen:
        raise InputError(f"--out names a {chosen} file, which ends in .{chosen}, got {str(out)!r}")
    return chosen


def _beside(path: Path, to: str, split: str | None, seed: int, test_fraction: float) -> Path:
    """The default name: the cache's, with the split and what it was made by."""
    name = path.stem
    if split is not None:
        name += f".{split}"
        name += f"+seed={seed}" if seed != _SEED else ""
        name += f"+test_fraction={test_fraction}" if test_fraction != TEST_FRACTION else ""
    return path.with_name(f"{name}.{to}")
