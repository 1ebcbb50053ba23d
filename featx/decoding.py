"""One image file becomes RGB pixels, or an `ImageError` that says why not; never another picture.

Decoders are Pillow and, for JPEG, simplejpeg (both run libjpeg-turbo and give the same bits). They
get bytes, not paths, and only the formats below: Pillow would also open PostScript and others that
start programs or have no pixels.

Pillow keeps two limits and Python its warning filters in state that the whole process shares.
featx's decoders run in threads beside the user's code, so that state is touched as little as can
be: files are opened through Pillow's format registry, which checks no limit; a limit is changed
only for a file it would get in the way of, and put back; warnings are silenced only after one was
raised as an error.
"""

from __future__ import annotations

import functools
import importlib
import io
import lzma
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import (
    BmpImagePlugin,  # noqa: F401 (registers its format; so do the others)
    GifImagePlugin,  # noqa: F401
    Image,
    ImageFile,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    PpmImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    WebPImagePlugin,  # noqa: F401
)

from featx.datasets.packed import read_packed
from featx.errors import ImageError, InputError
from featx.image_headers import webp_size
from featx.image_modes import rgb_of

# Status codes of the cache.
UNREADABLE, UNDECODABLE, TOO_LARGE = 2, 3, 4

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "AVIF", "DIB")  # MPO opens as JPEG
MAX_FILE_BYTES = 2**30  # 100 megapixels of 16-bit RGBA are 0.8 GB; a larger file is no photograph
_SHORTEST_FILE = 16  # bytes; the header alone of any format is longer
ORIENTATION = 0x0112  # Exif 2.32, 4.6.4 A
# What to do with (h, w, 3) pixels for each EXIF orientation (Exif 2.32, 4.6.4 A, "Orientation").
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: x.transpose(1, 0, 2)[:, ::-1],
    7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
    8: lambda x: x.transpose(1, 0, 2)[::-1],
}
UNDO = {6: 8, 8: 6}  # the other turns undo themselves
# All that decoders were seen to raise on damaged files. KeyError, IndexError and UnicodeError are
# LookupErrors and ValueErrors; EOFError and the rest stand for themselves.
DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    EOFError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
    Image.DecompressionBombError,
)


@dataclass(frozen=True)
class DecodeOptions:
    """How files become pixels.

    Attributes
    ----------
    exif : whether the EXIF orientation is applied.
    max_pixels : width times height above which the header alone refuses a picture.
    """

    exif: bool = True
    max_pixels: int = 100_000_000


def read_image(path: Path) -> bytes:
    """Return the bytes of an image file, or of an image in the file of a data set.

    Raises
    ------
    ImageError
        Status 2 when it cannot be read, 4 when it is larger than 1 GiB.
    """
    try:
        packed = read_packed(path)
        if packed is not None:
            return packed
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            if size_bytes > MAX_FILE_BYTES:
                raise ImageError(
                    f"the file has {size_bytes:,} bytes, more than {MAX_FILE_BYTES:,}",
                    status=TOO_LARGE,
                )
            return file.read()
    except OSError as error:
        raise ImageError(error.strerror or _words(error), status=UNREADABLE) from error
    except InputError as error:
        raise ImageError(str(error), status=UNREADABLE) from error


def decode(data: bytes, options: DecodeOptions, *, fast: bool) -> np.ndarray:
    """Return the pixels of an image file.

    Parameters
    ----------
    data : the file's bytes.
    options : orientation and size limit.
    fast
        Decode JPEG by simplejpeg where it is installed: the same bits in less time. What it does
        not take as flawless is left to Pillow.

    Returns
    -------
    (h, w, 3) uint8 array
        RGB, 0 to 255, C-contiguous and writable; the rule of each mode is in
        `featx.image_modes.rgb_of`. Animated and multi-page files give the picture Pillow opens
        first. `exif=False` gives the pixels as stored, for TIFF too, which Pillow turns by
        itself; only HEIF is always turned, in libheif.

    Raises
    ------
    ImageError
        Status 3 for what no decoder takes whole: a truncated file is an error, never a picture
        filled up with gray. Status 4, from the header alone, for more than `max_pixels`.
    """
    try:
        try:
            return _decode(data, options, fast=fast)
        except Warning:
            # Somebody runs with warnings as errors, and Pillow warned, say of damaged EXIF. That
            # loses no picture. catch_warnings changes state of all threads before Python 3.14, so
            # it is kept for this case.
            with _lock, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return _decode(data, options, fast=fast)
    except DECODER_ERRORS as error:
        raise ImageError(_words(error), status=UNDECODABLE) from error


def _decode(data: bytes, options: DecodeOptions, *, fast: bool) -> np.ndarray:
    size = webp_size(data)
    if size is not None:  # opening would reserve its canvas
        _check_size(size, options.max_pixels)
    with _strict_pillow(), _open(data) as image:
        _check_size(image.size, options.max_pixels)
        pixels = _decode_jpeg(data, image) if fast else None
        if pixels is None:
            return _pixels(image, exif=options.exif)
        return _turned(pixels, _orientation(image) if options.exif else 1)


def from_pil(image: Image.Image, *, exif: bool = True) -> np.ndarray:
    """Return the pixels of an open Pillow image, by the rule of its mode.

    The rules are listed in `featx.image_modes.rgb_of`; transparent pixels are white.

    Parameters
    ----------
    image : of any mode; it is loaded, not changed.
    exif : whether the EXIF orientation it carries is applied.

    Returns
    -------
    (h, w, 3) uint8 array
        RGB, C-contiguous and writable.

    Raises
    ------
    ImageError
        Status 3 when the image cannot be loaded whole or has a mode without a rule.

    Examples
    --------
    >>> from_pil(Image.new("RGBA", (1, 1), (9, 9, 9, 0))).tolist()
    [[[255, 255, 255]]]
    """
    try:
        return _pixels(image, exif=exif)
    except DECODER_ERRORS as error:
        raise ImageError(_words(error), status=UNDECODABLE) from error


# --- opening --------------------------------------------------------------------------------------


def _open(data: bytes) -> ImageFile.ImageFile:
    """Open an image by the first format of `FORMATS` that takes it; only its header is read."""
    if not any(data[:16]):  # BMP without its file header is known by numbers alone
        raise ImageError(_what_it_is(data), status=UNDECODABLE)
    refusals = []
    for name in FORMATS:
        if name not in Image.OPEN and not (name == "AVIF" and _has_avif()):
            continue
        factory, accepts = Image.OPEN[name]
        try:
            accepted = accepts is None or accepts(data[:16])
            if accepted and not isinstance(accepted, str):
                return _made(factory, data)
        except (SyntaxError, IndexError, TypeError, struct.error) as error:  # as Image.open does
            refusals.append(f"{name}: {_words(error)}")
            continue
        if isinstance(accepted, str):  # known, but this Pillow was built without it
            refusals.append(accepted)
    if data[4:8] == b"ftyp" and data[8:12] in HEIF_BRANDS:
        return _open_heif(data)
    too_short = len(data) < _SHORTEST_FILE  # what a decoder says of it would mislead
    words = _what_it_is(data) if too_short or not refusals else "; ".join(refusals)
    raise ImageError(words, status=UNDECODABLE)


def _made(factory: Callable[[Any, Any], ImageFile.ImageFile], data: bytes) -> ImageFile.ImageFile:
    try:
        return factory(io.BytesIO(data), "")
    except Image.DecompressionBombError:
        # WebP checks Pillow's own limit while it opens; ours is checked right after.
        with _strict_pillow(lift_limit=True):
            return factory(io.BytesIO(data), "")


HEIF_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"}


def _open_heif(data: bytes) -> ImageFile.ImageFile:
    """Open HEIF by pillow-heif, without registering it in the user's Pillow."""
    try:
        plugin = importlib.import_module("pillow_heif")
    except ImportError as error:
        raise ImageError("HEIC needs pip install 'featx[heic]'", status=UNDECODABLE) from error
    return plugin.HeifImageFile(io.BytesIO(data), "")


@functools.cache
def _has_avif() -> bool:
    """Return whether Pillow (11.3 and newer) has a plugin for AVIF, which registers itself."""
    try:
        importlib.import_module("PIL.AvifImagePlugin")
    except ImportError:
        return False
    return "AVIF" in Image.OPEN


def _what_it_is(data: bytes) -> str:
    """Return what a file that no decoder knows seems to be."""
    start = data[:64].lstrip().lower()
    if not data:
        return "the file is empty (0 bytes)"
    if not any(data):
        return f"all {len(data):,} bytes are zero"
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<svg")):
        return "a web page or SVG, not a picture of pixels"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer: run git lfs pull to get the picture"
    return f"not a picture of a known format: it starts with {data[:8].hex(' ')}"


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    w, h = size
    if w * h > max_pixels:
        raise ImageError(
            f"{w:,} x {h:,} = {w * h:,} pixels, more than {max_pixels:,} (--max-pixels)",
            status=TOO_LARGE,
        )


_lock = threading.RLock()
_held: list[tuple[bool, int | None]] = []  # Pillow's own settings, while ours are in force
_n_users = 0


@contextmanager
def _strict_pillow(*, pixels: int = 0, lift_limit: bool = False) -> Iterator[None]:
    """Keep Pillow from filling up truncated files, and from refusing what `max_pixels` allows.

    Both are globals of Pillow. They are changed only where they stand in the way: after the user
    set LOAD_TRUNCATED_IMAGES, or for a picture above MAX_IMAGE_PIXELS (89 megapixels). Threads
    that overlap share one change, and the last one out puts back what was there.
    """
    global _n_users
    with _lock:
        limit = Image.MAX_IMAGE_PIXELS
        in_the_way = limit is not None and (lift_limit or pixels > limit)
        needed = bool(_held or in_the_way or ImageFile.LOAD_TRUNCATED_IMAGES)
        if needed:
            if not _held:
                _held.append((ImageFile.LOAD_TRUNCATED_IMAGES, limit))
            ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = False, None
            _n_users += 1
    try:
        yield
    finally:
        if needed:
            with _lock:
                _n_users -= 1
                if not _n_users:
                    ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = _held.pop()


# --- pixels ---------------------------------------------------------------------------------------


@functools.cache
def jpeg_module() -> Any:
    """Return the module simplejpeg, or None where it is not installed."""
    try:
        return importlib.import_module("simplejpeg")
    except ImportError:
        return None


def _decode_jpeg(data: bytes, image: Image.Image) -> np.ndarray | None:
    """Return the pixels of a flawless gray or RGB JPEG by simplejpeg; None: let Pillow decide."""
    simplejpeg = jpeg_module()
    if simplejpeg is None or image.format not in ("JPEG", "MPO") or image.mode not in ("L", "RGB"):
        return None
    try:
        pixels: np.ndarray = simplejpeg.decode_jpeg(data, "RGB", strict=True)
    except (ValueError, MemoryError, RuntimeError):
        return None
    w, h = image.size
    return pixels if pixels.shape == (h, w, 3) else None


def _pixels(image: Image.Image, *, exif: bool) -> np.ndarray:
    declared = _orientation(image) if image.format == "TIFF" else 1
    with _strict_pillow(pixels=image.width * image.height):
        image.load()
    orientation = _orientation(image)
    pixels = rgb_of(image)
    if exif:
        return _turned(pixels, orientation)
    # Pillow turns TIFF while loading and takes the tag away: turn it back.
    was_turned = declared in TURNS and orientation == 1
    return _turned(pixels, UNDO.get(declared, declared) if was_turned else 1)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; damaged EXIF and values out of range count as 1."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except DECODER_ERRORS:
        return 1
    return value if isinstance(value, int) and value in TURNS else 1


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    turn = TURNS.get(orientation)
    return pixels if turn is None else np.ascontiguousarray(turn(pixels))


def _words(error: BaseException) -> str:
    """Return a decoder's own words on one line."""
    text = " ".join(str(error).split())
    return text[:300] if text else type(error).__name__
