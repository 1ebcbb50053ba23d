"""SHA-256 of image files: what tells whether two of them have the same content."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

_THREADS: Final = 8  # reading waits for the disk, and hashing leaves Python's lock free


class ImageHashes:
    """Hashes images by number, several at a time, each file at most once.

    Parameters
    ----------
    file : number of an image -> its file.

    Examples
    --------
    >>> ImageHashes(lambda i: Path("no such file"))([0])
    [None]
    """

    def __init__(self, file: Callable[[int], Path]) -> None:
        self._file = file
        self._known: dict[int, bytes | None] = {}

    def __call__(self, images: Sequence[int]) -> list[bytes | None]:
        """SHA-256 (32 bytes) of the file of each image, or None where it cannot be read."""
        unknown = [i for i in images if i not in self._known]
        if unknown:
            with ThreadPoolExecutor(min(_THREADS, len(unknown))) as pool:
                found = pool.map(lambda i: _sha256(self._file(i)), unknown)
                self._known.update(zip(unknown, found, strict=True))
        return [self._known[i] for i in images]


def _sha256(path: Path) -> bytes | None:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").digest()
    except OSError:  # told of, with its reason, when the image is to be decoded
        return None
