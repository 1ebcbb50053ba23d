"""One image file becomes the pixels a network takes, in whichever process it is asked to.

Imports neither torch nor h5py, so that a process that only decodes starts quickly.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from featx.decoding import UNREADABLE, DecodeOptions, decode, read_image
from featx.errors import ImageError
from featx.transforms import Transform


@dataclass(frozen=True)
class Picture:
    """One image ready for the network: (crop, crop, 3) uint8, and its file's SHA-256."""

    pixels: np.ndarray
    sha256: bytes


@dataclass(frozen=True)
class Loader:
    """Reads, decodes, resizes and crops one file.

    Attributes
    ----------
    transform : the backbone's preprocessing.
    options : EXIF and size rules of decoding.
    mode : ``exact`` or ``fast``, see `featx.transforms`.
    """

    transform: Transform
    options: DecodeOptions = field(default_factory=DecodeOptions)
    mode: Literal["exact", "fast"] = "fast"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the pixels of every picture."""
        return self.transform.crop, self.transform.crop, 3

    def read(self, path: Path) -> bytes:
        """The bytes of a file; `ImageError` of status 2 or 4 where they cannot be had."""
        try:
            return read_image(path)
        except MemoryError as error:  # there may be more at the next run
            words = "there is not enough memory to read it"
            raise ImageError(words, status=UNREADABLE) from error

    def picture(self, data: bytes, sha256: bytes) -> Picture:
        """The picture in the bytes of a file; `ImageError` of status 3 or 4 where there is none."""
        pixels = decode(data, self.options, fast=self.mode == "fast")
        return Picture(self.transform.resize_crop(pixels, mode=self.mode), sha256)

    def __call__(self, path: Path) -> Picture:
        """Both, in this process; an `ImageError` of `picture` has the file's SHA-256."""
        data = self.read(path)
        sha256 = hashlib.sha256(data).digest()
        try:
            return self.picture(data, sha256)
        except ImageError as error:
            error.sha256 = sha256
            raise
