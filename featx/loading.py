"""One image file becomes the pixels a network takes, in whichever process it is asked to.

Imports neither torch nor h5py, so that a process that only decodes starts quickly.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from featx.decoding import UNREADABLE, DecodeOptions, decode, read_image
from featx.errors import ImageError
from featx.transforms import Transform


@dataclass(frozen=True)
class Picture:
    """One image ready for the network: (crop, crop, 3) uint8, and its file's SHA-256."""

    pixels: np.ndarray
    sha256: bytes


class AnyLoader(Protocol):
    """What the decoding processes load with: a `Loader`, or `ManyLoader`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the pixels of every picture."""
        ...

    def read(self, path: Path) -> bytes:
        """The bytes of a file; `ImageError` where they cannot be had."""
        ...

    def picture(self, data: bytes, sha256: bytes) -> Picture:
        """The picture in the bytes of a file; `ImageError` where there is none."""
        ...

    def __call__(self, path: Path) -> Picture:
        """Both, in this process."""
        ...


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
        return Picture(self.resized(self.pixels(data)), sha256)

    def pixels(self, data: bytes) -> np.ndarray:
        """(h, w, 3) uint8 pixels in the bytes of a file, of whatever size they are."""
        return decode(data, self.options, fast=self.mode == "fast")

    def resized(self, pixels: np.ndarray) -> np.ndarray:
        """(crop, crop, 3) uint8: such pixels as the network takes them."""
        return self.transform.resize_crop(pixels, mode=self.mode)

    def __call__(self, path: Path) -> Picture:
        """Both, in this process; an `ImageError` of `picture` has the file's SHA-256."""
        return _loaded(self, path)


@dataclass(frozen=True)
class ManyLoader:
    """Several loaders as one, which reads and decodes a file once for all of them.

    The pixels of its pictures are those of each loader one after another, flat; `parts` takes them
    apart.

    Attributes
    ----------
    loaders : at least one, all of the same options and mode.
    """

    loaders: tuple[Loader, ...]

    def __post_init__(self) -> None:
        rules = {(loader.options, loader.mode) for loader in self.loaders}
        assert len(rules) == 1, "they would decode a file in different ways"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the flat pixels."""
        return (sum(math.prod(loader.shape) for loader in self.loaders),)

    def read(self, path: Path) -> bytes:
        """As of `Loader`."""
        return self.loaders[0].read(path)

    def picture(self, data: bytes, sha256: bytes) -> Picture:
        """As of `Loader`; `ImageError` where one of the loaders has no picture."""
        pixels = self.loaders[0].pixels(data)
        made = [loader.resized(pixels).reshape(-1) for loader in self.loaders]
        return Picture(np.concatenate(made), sha256)

    def parts(self, picture: Picture) -> tuple[Picture, ...]:
        """The picture of each loader."""
        ends = np.cumsum([math.prod(loader.shape) for loader in self.loaders])
        flat = np.split(picture.pixels, ends[:-1])
        return tuple(
            Picture(pixels.reshape(loader.shape), picture.sha256)
            for pixels, loader in zip(flat, self.loaders, strict=True)
        )

    def __call__(self, path: Path) -> Picture:
        """Both, in this process; an `ImageError` of `picture` has the file's SHA-256."""
        return _loaded(self, path)


def _loaded(loader: AnyLoader, path: Path) -> Picture:
    data = loader.read(path)
    sha256 = hashlib.sha256(data).digest()
    try:
        return loader.picture(data, sha256)
    except ImageError as error:
        error.sha256 = sha256
        raise
