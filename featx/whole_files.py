"""A file under its final name is a whole one: written beside it, synced, renamed."""

from __future__ import annotations

import filecmp
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from featx.cache import Disk
from featx.cache.files import WRITE_ELSEWHERE, told_as_disk_error
from featx.errors import InputError

_AS_IT_WAS: Final = f"What was there is as it was. {WRITE_ELSEWHERE}"


def replace_whole(path: Path, data: bytes) -> None:
    """Write a file that replaces whatever is there.

    Parameters
    ----------
    path : the file; its folder is made. A link stays one, and what it names is replaced.
    data : all of it.

    Raises
    ------
    DiskError
        It cannot be written; what was there is untouched.
    """
    path = followed(path)
    with _beside(path, lambda stream: stream.write(data)) as temporary:
        Disk().rename(temporary, path)


def write_whole(
    path: Path,
    write: Callable[[BinaryIO], object],
    *,
    force: bool = False,
    elsewhere: str = "name another file with --out",
) -> bool:
    """Let `write` fill a file, and give it its name only then.

    Parameters
    ----------
    path : the file; its folder is made. A link stays one, and what it names is written.
    write : is called with a new file, open for writing and seeking.
    force : replace a file of other content.
    elsewhere : what to do instead of that, for the message.

    Returns
    -------
    Whether anything was written: a file of the same content is left as it is.

    Raises
    ------
    InputError
        A folder or, without `force`, a file of other content is there.
    DiskError
        It cannot be written; what was there is untouched.
    """
    path = followed(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a file with --out")
    with _beside(path, write) as temporary:
        if path.exists() and not force:
            if filecmp.cmp(temporary, path, shallow=False):
                return False
            raise _other(path, elsewhere)
        Disk().rename(temporary, path)
    return True


def check_other(path: Path, content: bytes, *, elsewhere: str) -> None:
    """Refuse, as `write_whole` would, a file that is there and has another content.

    Raises
    ------
    InputError, DiskError
        It has, or it cannot be read.
    """
    with told_as_disk_error(path, "read", _AS_IT_WAS):
        if path.is_file() and path.read_bytes() != content:
            raise _other(path, elsewhere)


def _other(path: Path, elsewhere: str) -> InputError:
    return InputError(
        f"{path} is there already and holds something else; {elsewhere}, or say --force "
        "to replace it"
    )


def followed(path: Path) -> Path:
    """What a link names, so that the link stays one where that is replaced; else the path."""
    return path.resolve() if path.is_symlink() else path


@contextmanager
def _beside(path: Path, write: Callable[[BinaryIO], object]) -> Iterator[Path]:
    """A synced file in the folder of `path`, gone afterwards unless it was renamed."""
    disk = Disk()
    with told_as_disk_error(path, "write", _AS_IT_WAS):
        disk.make_folder(path.parent)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            with temporary.open("xb") as stream:
                write(stream)
                stream.flush()
                disk.sync(stream.fileno())
            yield temporary
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
