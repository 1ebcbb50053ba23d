"""Pictures of images that `featx predict`, `show` and `audit` write, and whether they could be."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from featx.cli.output import tell
from featx.errors import InputError

if TYPE_CHECKING:
    from featx.report.grid import Mark

_ENDINGS: Final = (".png", ".jpg", ".webp")


def check_picture(path: Path) -> None:
    """Refuse a picture that could not be written, before what it is to show is computed.

    Raises
    ------
    InputError
        No ending of a format that is written.
    DiskError
        As `check_place`.
    """
    if path.suffix.lower() not in _ENDINGS:
        raise InputError(f"a picture is written as {' or '.join(_ENDINGS)}, got {str(path)!r}")
    check_place(path)


def check_place(path: Path) -> None:
    """Refuse a place where no file could be written, and make nothing there.

    Raises
    ------
    DiskError
        A folder is in the way, or the nearest folder there is above it takes no files.
    """
    from featx.cache.files import WRITE_ELSEWHERE, told_as_disk_error

    with told_as_disk_error(path, "write", WRITE_ELSEWHERE):
        there = next((each for each in (path, *path.parents) if each.exists()), None)
        if there is None:  # a drive that is not there
            raise FileNotFoundError(errno.ENOENT, "", str(path))
        if there.is_dir() == (there == path):
            raise OSError(errno.EISDIR if there == path else errno.ENOTDIR, "", str(path))
        if not os.access(there, os.W_OK):
            raise PermissionError(errno.EACCES, "", str(path))


def save_grid(
    path: Path,
    files: Sequence[Path | str],
    captions: Sequence[str],
    marks: Sequence[Mark] | None = None,
    columns: int | None = None,
) -> int:
    """Write `featx.report.grid.image_grid` as a picture, and tell of characters without a font.

    Of too many images for a picture the first that fit are drawn, which is told.

    Returns
    -------
    int
        How many were drawn.
    """
    from featx.cache.files import WRITE_ELSEWHERE, told_as_disk_error
    from featx.report.fonts import glyph_warning
    from featx.report.grid import image_grid, n_fitting

    n = n_fitting(captions, columns=columns)
    if n < len(files):
        tell(
            f"{path} has room for the first {n:,} of {len(files):,} images: the others are left out"
        )
    captions = captions[:n]
    picture = image_grid(
        files[:n], captions, marks=None if marks is None else marks[:n], columns=columns
    )
    with told_as_disk_error(path, "write", WRITE_ELSEWHERE):
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    if warning := glyph_warning(captions):
        tell(warning)
    return n
