"""One run per cache: the second is told who holds it."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from featx.cache.files import Disk, told_as_disk_error
from featx.errors import LockedError

_ATTEMPTS: Final = 20  # while the holder, which has the lock already, writes who it is
_PAUSE_S: Final = 0.05


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
        _acquire(lock, path, note)
    try:
        with suppress(OSError):  # a full disk must not keep a run from resuming in its own space
            _write_note(note)
        yield
    finally:
        with suppress(OSError):
            note.unlink(missing_ok=True)
        lock.release()


def _acquire(lock: FileLock, path: Path, note: Path) -> None:
    """Take the lock, or say who holds it: the note of a dead process is not believed."""
    for attempt in range(_ATTEMPTS):
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            holder = _holder(note)
            if holder is None:
                _check_lockable(Path(lock.lock_file))
            if holder is None and attempt < _ATTEMPTS - 1:
                time.sleep(_PAUSE_S)
                continue
            raise LockedError(
                f"{path} is being written by another run ({holder or 'process unknown'}); "
                "wait for it, or name another file with --out"
            ) from error
        return


def _check_lockable(file: Path) -> None:
    """Raise `OSError` where no file can be made, which filelock takes for a lock that is held."""
    try:
        file.touch()
    except FileNotFoundError as error:  # of a folder that is there: /proc, say
        raise OSError("its folder takes no files") from error
    except PermissionError:  # it is there, and somebody else's
        pass


def _write_note(note: Path) -> None:
    """Say who holds the lock, so that nobody reads half of it or what a dead process said."""
    note.unlink(missing_ok=True)
    whole = note.with_name(f"{note.name}.{os.getpid()}")
    try:
        whole.write_text(json.dumps({"pid": os.getpid(), "host": platform.node()}), "utf-8")
        whole.replace(note)
    finally:
        whole.unlink(missing_ok=True)


def _holder(note: Path) -> str | None:
    try:
        held = json.loads(note.read_text("utf-8"))
        pid, host = int(held["pid"]), str(held["host"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if pid <= 0 or (host == platform.node() and not _is_alive(pid)):
        return None
    return f"process {pid} on {host}"


def _is_alive(pid: int) -> bool:
    if os.name == "nt":  # where os.kill ends a process; a note is believed there
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's process
        return True
    except OverflowError:
        return False
    return True
