"""One run per cache: the second is told who holds it."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from featx.cache.files import Disk, told_as_disk_error
from featx.errors import LockedError


@contextmanager
def cache_lock(path: Path) -> Iterator[None]:
    """Hold the lock of the cache `path` inside the block.

    The operating system drops the lock when its process ends, however it ends, so that a dead run
    never blocks the next one. Beside the lock lies a note of who holds it, for the message only.

    Raises
    ------
    LockedError
        Another process holds it.
    """
    note = path.with_name(f".{path.name}.lock.json")
    with told_as_disk_error(path, "lock"):
        Disk().make_folder(path.parent)
        lock = FileLock(path.with_name(f".{path.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise LockedError(
                f"{path} is being written by another run ({_holder(note)}); "
                "wait for it, or name another file with --out"
            ) from error
    try:
        with told_as_disk_error(path, "lock"):
            note.write_text(json.dumps({"pid": os.getpid(), "host": platform.node()}), "utf-8")
        yield
    finally:
        note.unlink(missing_ok=True)
        lock.release()


def _holder(note: Path) -> str:
    try:
        held = json.loads(note.read_text("utf-8"))
        return f"process {int(held['pid'])} on {held['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "process unknown"
