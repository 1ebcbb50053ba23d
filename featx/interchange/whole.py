"""A file under its final name is a whole one: written beside it, synced, renamed."""

from __future__ import annotations

import filecmp
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

from featx.cache import Disk
from featx.cache.files import told_as_disk_error
from featx.errors import InputError

_ADVICE: Final = (
    "What was there is as it was: free space, mend permissions or name another file with --out, "
    "then run the same command again"
)


def write_whole(path: Path, write: Callable[[BinaryIO], None], *, force: bool = False) -> bool:
    """Let `write` fill a file, and give it its name only then.

    Parameters
    ----------
    path : the file; a link stays one, and what it names is written.
    write : is called with a new file, open for writing and seeking.
    force : replace a file of other content.

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
    path = path.resolve() if path.is_symlink() else path
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a file with --out")
    disk = Disk()
    with told_as_disk_error(path, "write", _ADVICE):
        disk.make_folder(path.parent)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            with temporary.open("xb") as stream:
                write(stream)
                stream.flush()
                disk.sync(stream.fileno())
            if path.exists() and not force:
                if filecmp.cmp(temporary, path, shallow=False):
                    return False
                raise InputError(
                    f"{path} is there already and holds something else; name another file with "
                    "--out, or say --force to replace it"
                )
            disk.rename(temporary, path)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
    return True
