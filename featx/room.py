"""Whether files about to be written are as large as is wanted, and find room on their disks."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from featx.errors import DiskError, InputError

_UNITS: Final = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS_BINARY: Final = {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_SMALLER: Final = "a later cut, pooling or float16 makes it smaller (`featx cuts BACKBONE`)"


def size_in_bytes(text: str) -> int | None:
    """A size in words, as bytes; None for ``none``.

    Raises
    ------
    InputError
        Not a number with a unit.

    Examples
    --------
    >>> size_in_bytes("50GB"), size_in_bytes("1.5 MiB"), size_in_bytes("none")
    (50000000000, 1572864, None)
    """
    if text.strip().lower() == "none":
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*", text.lower())
    unit = (_UNITS | _UNITS_BINARY).get(match[2]) if match else None
    if match is None or unit is None:
        raise InputError(f"a size is a number with a unit, such as 50GB, or none, got {text!r}")
    return int(float(match[1]) * unit)


def in_words(size_bytes: int) -> str:
    """A size as people read it.

    Examples
    --------
    >>> in_words(2_400_000), in_words(231_200_000_000)
    ('2.4 MB', '231.2 GB')
    """
    unit = next((u for u in ("TB", "GB", "MB") if size_bytes >= _UNITS[u.lower()]), "kB")
    return f"{size_bytes / _UNITS[unit.lower()]:,.1f} {unit}"


def check_room(files: Sequence[tuple[Path, int]], most_bytes: int | None) -> str:
    """Refuse caches that are larger than is wanted, or than their disks have room for.

    Parameters
    ----------
    files : of each cache its path and the bytes it will take; its folder need not be there.
    most_bytes : that all may take; None where neither this nor the free space is to refuse them.

    Returns
    -------
    A sentence that tells how large they will be, and what is free.

    Raises
    ------
    InputError
        They take more than `most_bytes`.
    DiskError
        A disk has less free space than its caches take.
    """
    total = sum(size for _, size in files)
    takes = "the cache takes" if len(files) == 1 else f"the {len(files)} caches take"
    if most_bytes is not None and total > most_bytes:
        raise InputError(
            f"{takes} {in_words(total)}, and --max-size allows {in_words(most_bytes)}; "
            f"{_SMALLER}, or allow it with a larger --max-size or none"
        )
    needed: dict[int, int] = {}
    folders: dict[int, Path] = {}
    for path, size in files:
        folder = next(p for p in path.absolute().parents if p.is_dir())
        disk = os.stat(folder).st_dev  # noqa: PTH116
        needed[disk] = needed.get(disk, 0) + size
        folders[disk] = folder
    free = {disk: shutil.disk_usage(folder).free for disk, folder in folders.items()}
    for disk, folder in folders.items():
        if most_bytes is not None and needed[disk] > free[disk]:
            raise DiskError(
                f"{takes} {in_words(needed[disk])}, and {folder} has {in_words(free[disk])} free; "
                f"free some space or name another place; {_SMALLER}; --max-size none tries it "
                "all the same"
            )
    left = " and ".join(f"{in_words(n)} are free" for n in free.values())
    return f"{takes} {in_words(total)}; {left}"
