"""One image file becomes the pixels a network takes, in whichever process it is asked to.

Imports neither torch nor h5py, so that a process that only decodes starts quickly.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal, Protocol

import numpy as np

from featx.decoding import UNREADABLE, DecodeOptions, decode, read_image
from featx.errors import ImageError
from featx.image_modes import grey_of
from featx.resampling import MAX_WINDOW_BYTES, Window, Windows
from featx.transforms import Transform

_EXTENT: Final = struct.Struct("<HH")
_SIZE: Final = struct.Struct("<II")  # height and width of a picture to be resized, else zeros


@dataclass(frozen=True)
class Picture:
    """One image for the network, and its file's SHA-256.

    Attributes
    ----------
    pixels : (crop, crop, c) uint8; with a window (h, w, c), the part that is to be resized.
    sha256 : of the file.
    window : how it is to be resized; None where it has been.
    extent : height and width of what is picture, where it is stored whole: pixels are then
        (side, side, c), and 0 below and to the right of it.
    """

    pixels: np.ndarray
    sha256: bytes
    window: Window | None = None
    extent: tuple[int, int] | None = None


def batch_of(pictures: Sequence[Picture], batch_size: int) -> np.ndarray | Windows:
    """Pictures as an engine takes them; where there are too few, black ones come after them.

    Returns
    -------
    (batch_size, crop, crop, c) uint8, or `Windows` where any is to be resized.
    """
    if any(picture.window for picture in pictures):
        parts = tuple((picture.pixels, picture.window) for picture in pictures)
        return Windows(parts, batch_size)
    pixels = np.zeros((batch_size, *pictures[0].pixels.shape), np.uint8)
    for slot, picture in enumerate(pictures):
        pixels[slot] = picture.pixels
    return pixels


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

    @property
    def body_bytes(self) -> tuple[int, int]:
        """How many bytes `packed` gives: the fewest and the most."""
        ...

    def packed(self, picture: Picture) -> tuple[bytes | memoryview, ...]:
        """A picture as bytes, in parts, without its digest."""
        ...

    def unpacked(self, body: bytes | bytearray | memoryview, sha256: bytes) -> Picture:
        """The picture in such bytes; `ValueError` for what `packed` cannot have given."""
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
    windows : whether pictures are left to be resized by others where that gives the same bits.
    store_size : None, or the side of the square that whole pictures are fitted into.
    """

    transform: Transform
    options: DecodeOptions = field(default_factory=DecodeOptions)
    mode: Literal["exact", "fast"] = "fast"
    windows: bool = False
    store_size: int | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the pixels of every picture once it is resized."""
        side = self.store_size or self.transform.crop
        return side, side, self.transform.channels

    def read(self, path: Path) -> bytes:
        """The bytes of a file; `ImageError` of status 2 or 4 where they cannot be had."""
        try:
            return read_image(path)
        except MemoryError as error:  # there may be more at the next run
            words = "there is not enough memory to read it"
            raise ImageError(words, status=UNREADABLE) from error

    def picture(self, data: bytes, sha256: bytes) -> Picture:
        """The picture in the bytes of a file; `ImageError` of status 3 or 4 where there is none."""
        return self.picture_of(self.pixels(data), sha256)

    def picture_of(self, pixels: np.ndarray, sha256: bytes) -> Picture:
        """The picture of decoded pixels (h, w, 3), which others may have to resize."""
        if self.store_size is not None:
            of_channels = self._channels(pixels)
            whole = self.transform.shrunk(of_channels, self.store_size, mode=self.mode)
            h, w = whole.shape[:2]
            square = np.zeros(self.shape, np.uint8)
            square[:h, :w] = whole
            return Picture(square, sha256, extent=(h, w))
        window = self._window(*pixels.shape[:2]) if self.windows else None
        if window is None:
            return Picture(self.resized(pixels), sha256)
        return Picture(window.of(self._channels(pixels)), sha256, window)

    def _window(self, h: int, w: int) -> Window | None:
        """The part of an h x w picture that is left to be resized; None: it is resized here."""
        return self.transform.window(h, w) if self.mode == "fast" else None

    def pixels(self, data: bytes) -> np.ndarray:
        """(h, w, 3) uint8 RGB in the bytes of a file, of whatever size it is."""
        return decode(data, self.options, fast=self.mode == "fast")

    def resized(self, pixels: np.ndarray) -> np.ndarray:
        """(crop, crop, c) uint8: such pixels as the network takes them."""
        return self.transform.resize_crop(self._channels(pixels), mode=self.mode)

    def _channels(self, pixels: np.ndarray) -> np.ndarray:
        """(h, w, c) uint8: RGB as the one or three channels that the network takes."""
        return grey_of(pixels) if self.transform.channels == 1 else pixels

    @property
    def body_bytes(self) -> tuple[int, int]:
        """How many bytes `packed` gives: the fewest and the most."""
        size = math.prod(self.shape) + (_EXTENT.size if self.store_size is not None else 0)
        if not self.windows:
            return size, size
        return _SIZE.size + self.transform.channels, _SIZE.size + max(size, MAX_WINDOW_BYTES)

    def packed(self, picture: Picture) -> tuple[bytes | memoryview, ...]:
        """A picture as bytes, in parts, without its digest."""
        window = picture.window
        expected = self.shape if window is None else window.shape
        assert picture.pixels.shape == expected, f"pixels of {picture.pixels.shape}, not {expected}"
        pixels = np.ascontiguousarray(picture.pixels).reshape(-1).data
        if picture.extent is not None:
            return _EXTENT.pack(*picture.extent), pixels
        if not self.windows:
            return (pixels,)
        return _SIZE.pack(*(window.down.n_in, window.across.n_in) if window else (0, 0)), pixels

    def unpacked(self, body: bytes | bytearray | memoryview, sha256: bytes) -> Picture:
        """The picture in such bytes; `ValueError` for what `packed` cannot have given.

        All that is believed of a window is how large its picture was, within bounds: the rest
        follows from the transform, so that nobody who resizes it looks beyond its pixels.
        """
        if self.store_size is not None:
            h, w = _EXTENT.unpack_from(body)
            if not 0 < min(h, w) <= max(h, w) <= self.store_size:
                raise ValueError(f"no picture of {h} x {w} pixels is stored in {self.store_size}")
            pixels = np.frombuffer(body, np.uint8, offset=_EXTENT.size)
            return Picture(pixels.reshape(self.shape), sha256, extent=(h, w))
        if not self.windows:
            return Picture(np.frombuffer(body, np.uint8).reshape(self.shape), sha256)
        pixels = np.frombuffer(body, np.uint8, offset=_SIZE.size)
        h, w = _SIZE.unpack_from(body)
        if h == w == 0:
            return Picture(pixels.reshape(self.shape), sha256)
        if not 0 < h * w <= self.options.max_pixels:
            raise ValueError(f"no picture has {h} x {w} pixels")
        try:
            window = self._window(h, w)
        except ImageError as error:
            raise ValueError(str(error)) from error
        if window is None:
            raise ValueError(f"a picture of {h} x {w} pixels is not left to be resized")
        return Picture(pixels.reshape(window.shape), sha256, window)

    def __call__(self, path: Path) -> Picture:
        """Both, in this process; an `ImageError` of `picture` has the file's SHA-256."""
        return _loaded(self, path)


@dataclass(frozen=True)
class ManyLoader:
    """Several loaders as one, which reads and decodes a file once for all of them.

    The pixels of its pictures are what each loader packs, one after another, flat; `parts` takes
    them apart.

    Attributes
    ----------
    loaders : at least one, all of the same options and mode. None leaves resizing to others.
    """

    loaders: tuple[Loader, ...]

    def __post_init__(self) -> None:
        rules = {(loader.options, loader.mode) for loader in self.loaders}
        assert len(rules) == 1, "they would decode a file in different ways"
        alone = tuple(replace(loader, windows=False) for loader in self.loaders)
        object.__setattr__(self, "loaders", alone)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the flat pixels."""
        return (sum(self._sizes),)

    @property
    def _sizes(self) -> list[int]:
        return [loader.body_bytes[0] for loader in self.loaders]

    def read(self, path: Path) -> bytes:
        """As of `Loader`."""
        return self.loaders[0].read(path)

    def picture(self, data: bytes, sha256: bytes) -> Picture:
        """As of `Loader`; `ImageError` where one of the loaders has no picture."""
        pixels = self.loaders[0].pixels(data)
        made = [loader.packed(loader.picture_of(pixels, sha256)) for loader in self.loaders]
        return Picture(np.frombuffer(b"".join(itertools.chain(*made)), np.uint8), sha256)

    @property
    def body_bytes(self) -> tuple[int, int]:
        """How many bytes `packed` gives, twice."""
        (size,) = self.shape
        return size, size

    def packed(self, picture: Picture) -> tuple[bytes | memoryview, ...]:
        """The flat pixels."""
        assert picture.pixels.shape == self.shape
        return (picture.pixels.data,)

    def unpacked(self, body: bytes | bytearray | memoryview, sha256: bytes) -> Picture:
        """The picture of such flat pixels."""
        return Picture(np.frombuffer(body, np.uint8).reshape(self.shape), sha256)

    def parts(self, picture: Picture) -> tuple[Picture, ...]:
        """The picture of each loader."""
        flat = np.split(picture.pixels, np.cumsum(self._sizes)[:-1])
        return tuple(
            loader.unpacked(body.data, picture.sha256)
            for body, loader in zip(flat, self.loaders, strict=True)
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
