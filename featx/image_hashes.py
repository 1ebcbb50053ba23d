"""SHA-256 of image files: what tells whether two of them have the same content."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from featx.datasets.packed import read_packed
from featx.errors import InputError

_THREADS: Final = 8  # reading waits for the disk, and hashing leaves Python's lock free

_SLICE: Final = 4096  # what waits for a thread takes 2 KB an image
_MANY: Final = 1000  # read in a second from a fast disk, in ten from a slow one


class ImageHashes:
    """Hashes images by number, several at a time, each file at most once.

    Parameters
    ----------
    file : number of an image -> its file.
    tell : takes a sentence for the user, before so many files are read that it takes a while.

    Examples
    --------
    >>> ImageHashes(lambda i: Path("no such file"))([0])
    [None]
    """

    def __init__(
        self, file: Callable[[int], Path], tell: Callable[[str], None] | None = None
    ) -> None:
        self._file, self._tell = file, tell
        self._known: dict[int, bytes | None] = {}

    def __call__(self, images: Sequence[int]) -> list[bytes | None]:
        """SHA-256 (32 bytes) of the file of each image, or None where it cannot be read."""
        unknown = [i for i in images if i not in self._known]
        if self._tell and len(unknown) > _MANY:
            self._tell(f"reading {len(unknown):,} files to compare their content")
        if unknown:
            with ThreadPoolExecutor(min(_THREADS, len(unknown))) as pool:
                for start in range(0, len(unknown), _SLICE):
                    some = unknown[start : start + _SLICE]
                    found = pool.map(lambda i: _sha256(self._file(i)), some)
                    self._known.update(zip(some, found, strict=True))
        return [self._known[i] for i in images]


def _sha256(path: Path) -> bytes | None:
    try:
        packed = read_packed(path)
        if packed is not None:
            return hashlib.sha256(packed).digest()
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").digest()
    except (OSError, InputError):  # told of, with its reason, when the image is to be decoded
        return None
