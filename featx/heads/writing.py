"""A whole file of a head, written so that a reader sees the old one or the new one."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from featx.cache import Disk
from featx.errors import DiskError


def write_whole(path: Path, data: bytes, *, what: str = "head file") -> None:
    """Write beside, sync, rename.

    Raises
    ------
    DiskError
        The file cannot be written; what was there is untouched.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as why:
        raise DiskError(f"the {what} {path} cannot be written: {why.strerror or why}") from why
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        Disk().sync_folder(path.parent)  # the rename itself must survive a power cut
    except OSError as why:
        raise DiskError(f"the {what} {path} cannot be written: {why.strerror or why}") from why
    finally:
        temporary.unlink(missing_ok=True)
