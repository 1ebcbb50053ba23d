"""The one seam through which a cache is written.

Every operation that changes a cache goes through a `Disk`, so that tests can record, fail, drop
and replay them, and so that the fall-backs for platforms without a call live in one place.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

from featx.errors import DiskError

try:
    import fcntl
except ImportError:  # Windows, where fsync reaches the medium
    fcntl = None  # type: ignore[assignment]

_WORDS: Final = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EFBIG: "the file would be larger than the limit allows",
    errno.EIO: "the disk reported an input/output error",
    errno.ENOENT: "the folder does not exist",
    errno.EISDIR: "a folder is in the way",
    errno.EEXIST: "a file is in the way",
    errno.ENOTDIR: "a file is in the way",
}
# What a file system says that cannot sync folders: network shares, FUSE. PostgreSQL's list
# (fsync_fname_ext in src/common/file_utils.c); such a system orders names by itself or not at all.
_NO_FOLDER_SYNC: Final = {errno.EBADF, errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EISDIR}
_CHUNK: Final = 1 << 20
MOST_PARTS: Final = 1024  # of one `write_parts` call: IOV_MAX of Linux, macOS and the BSDs
_SYNC_FILE_RANGE_WRITE: Final = 2  # linux/fs.h
_FLAGS: Final = os.O_RDWR | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


_GO_ON: Final = (
    "What was committed is kept: free space, mend permissions or name another place with --out, "
    "then run the same command again"
)
# Where nothing is committed: tables and pictures of what was measured and printed.
WRITE_ELSEWHERE: Final = (
    "Free space, mend permissions or name another place, then run the same command again"
)
MEND: Final = "Mend the disk or the connection to it, then run the same command again"


@contextmanager
def told_as_disk_error(path: Path | str, doing: str, advice: str = _GO_ON) -> Iterator[None]:
    """Turn any `OSError` inside into a `DiskError` that names the file and what to do."""
    try:
        yield
    except DiskError:
        raise
    except OSError as error:
        words = _WORDS.get(error.errno or 0) or (error.strerror or str(error)).lower()
        raise DiskError(f"cannot {doing} {path}: {words}{_where(error, path)}. {advice}") from error


def _where(error: OSError, path: Path | str) -> str:
    """The file that the system refused, in brackets, where it is another than `path`."""
    name = error.filename
    is_other = isinstance(name, str | bytes | os.PathLike) and os.fsdecode(name) != os.fspath(path)
    return f" ({os.fsdecode(name)})" if is_other else ""


class Disk:
    """File operations of the operating system, with a portable fall-back for each missing one.

    They raise `OSError`; `told_as_disk_error` around them says which file and what to do.

    Parameters
    ----------
    portable : use the fall-backs even where the platform has the call (for tests).
    """

    def __init__(self, *, portable: bool = False) -> None:
        self._pwrite = None if portable else getattr(os, "pwrite", None)
        self._pwritev = None if portable else getattr(os, "pwritev", None)
        self._fallocate = None if portable else getattr(os, "posix_fallocate", None)
        self._datasync = _sync if portable else getattr(os, "fdatasync", _sync)
        self._sync_file_range = None if portable else _sync_file_range()
        self._seek_lock = threading.Lock()

    def make_folder(self, folder: Path) -> None:
        """Make `folder` and those above it, each under a durable name."""
        missing = [each for each in (folder, *folder.parents) if not each.exists()]
        for each in reversed(missing):
            each.mkdir(exist_ok=True)
            self.sync_folder(each.parent)

    def create(self, path: Path) -> int:
        """Make a new, empty file, and open it as `open` does; nothing may be there."""
        return os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o666)

    def open(self, path: Path) -> int:
        """Open an existing file for reading and writing; the descriptor is not inherited."""
        return os.open(path, _FLAGS)

    def close(self, fd: int) -> None:
        """Give the descriptor back."""
        os.close(fd)

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> None:
        """Write all of `data` at `offset`, however many calls that takes."""
        view = memoryview(data).cast("B")
        while len(view):
            if self._pwrite is not None:
                written = self._pwrite(fd, view, offset)
            else:
                with self._seek_lock:
                    os.lseek(fd, offset, os.SEEK_SET)
                    written = os.write(fd, view)
            if not written:
                raise OSError(errno.ENOSPC, "the system wrote nothing and did not say why")
            view, offset = view[written:], offset + written

    def write_parts(self, fd: int, parts: Sequence[memoryview], offset: int) -> None:
        """Write parts of bytes at `offset`, one behind the other, in one call where that goes."""
        if self._pwritev is not None and 1 < len(parts) <= MOST_PARTS:
            written = self._pwritev(fd, parts, offset)
            if written == sum(map(len, parts)):
                return  # else all of it again: the same bytes, and the reason if there is one
        for part in parts:
            self.write(fd, part, offset)
            offset += len(part)

    def allocate(self, fd: int, size_bytes: int) -> None:
        """Give an empty file its length and the disk space for it, or raise before any work."""
        if self._fallocate is not None:
            try:
                self._fallocate(fd, 0, size_bytes)
                return
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                    raise
        zeros = bytes(_CHUNK)  # without the call: write it out
        for offset in range(0, size_bytes, _CHUNK):
            self.write(fd, zeros[: size_bytes - offset], offset)

    def begin_write_back(self, fd: int, offset: int) -> None:
        """Let the system begin to write what is new of `fd` from `offset` on to the medium.

        It promises nothing: the system may do so at any time unasked. What fails of it is told by
        the next sync and only there, since this call looks for no earlier failure, which it would
        take from the sync. Source: pg_flush_data in PostgreSQL's src/backend/storage/file/fd.c.
        """
        if self._sync_file_range is not None:
            self._sync_file_range(fd, offset, 0, _SYNC_FILE_RANGE_WRITE)

    def datasync(self, fd: int) -> None:
        """Force the data of `fd` to stable storage."""
        self._datasync(fd)

    def sync(self, fd: int) -> None:
        """Force data and metadata of `fd` to stable storage."""
        _sync(fd)

    def rename(self, source: Path, target: Path) -> None:
        """Replace `target` by `source` in one step, then make the new name durable."""
        source.replace(target)
        self.sync_folder(target.parent)

    def sync_folder(self, folder: Path) -> None:
        """Make names in `folder` durable; Windows has no such call and needs none."""
        if os.name == "nt":
            return
        try:
            fd = os.open(folder, os.O_RDONLY)
            try:
                _sync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            if error.errno not in _NO_FOLDER_SYNC:
                raise

    def remove(self, path: Path) -> None:
        """Remove `path` if it is there."""
        path.unlink(missing_ok=True)


@cache
def _sync_file_range() -> Any:
    """The call of Linux that `os` has no name for; None where it is missing."""
    found = getattr(ctypes.CDLL(None), "sync_file_range", None) if sys.platform == "linux" else None
    if found is not None:
        found.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return found


def _sync(fd: int) -> None:
    """Force `fd` to the medium; on macOS `fsync` alone stops at the drive's own memory."""
    if hasattr(fcntl, "F_FULLFSYNC"):
        try:
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
            return
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOTTY):
                raise
    os.fsync(fd)
