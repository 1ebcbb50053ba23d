"""A window of Pillow's resize, bit for bit: only what a crop keeps, and compiled for speed.

Pillow (since 2.7, src/libImaging/Resample.c) resizes 8-bit pictures along the rows, rounds to 8
bits, and does the same along the columns. Every output pixel is a weighted sum of its neighbours.
The weights follow the filter, stretched by as much as the picture is made smaller; they are
computed as 64-bit floats and rounded to multiples of 2^-22. Sums are of whole numbers, and rounded
half up.

Here the weights are computed by the same operations in the same order, and the sums by
`featx._resample`, a few loops in C that are compiled when featx is installed. In two places a
machine could differ: a compiler that fuses operations of Pillow's weights may move one by 2^-22
(seldom: it has to lie within 2^-50 of a rounding boundary), and a Pillow to come may resize
otherwise. `why_pillow` compares the two once in a process. Where they differ, or nothing could be
compiled, Pillow itself resizes: the same pixels in more time.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

# Pillow's filters under torchvision's names, with the numbers of PIL.Image.Resampling. Pillow has
# one nearest filter, so that torchvision's nearest-exact is the same on Pillow images.
INTERPOLATIONS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
BITS: Final = 22  # of a weight: PRECISION_BITS of Resample.c
_ONE: Final = 2.0**BITS
_STEP: Final = 4  # the kernel takes weights in groups of so many
# Sizes and channels that the kernel is compared with Pillow on: h, w, c, and what they become.
_TRIED: Final = (
    (97, 131, 3, 64, 86),
    (40, 61, 3, 64, 97),
    (90, 90, 3, 31, 31),
    (200, 99, 1, 20, 9),
)
# Beyond, the tables of weights that a GPU goes through are mostly zeros, and photographs of that
# size take far longer to decode anyway.
MAX_SHRINKING: Final = 4.0
# What a pipe takes at once on Linux (1 MiB, fs.pipe-max-size), less room for what is said before:
# photographs of 880 x 660 for a crop of 224. So the 1,000 pictures that may be under way on CUDA
# take 1 GB of memory at most; and sending still takes less time than resizing.
MAX_WINDOW_BYTES: Final = 2**20 - 2**13


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.where(x < 1.0, 1.0 - x, 0.0)


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys 1981, with a = -0.5."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


# By name: how far the filter reaches, in output pixels, and its value at a distance of 0 or more.
_FILTERS: Final[Mapping[str, tuple[float, Callable[[np.ndarray], np.ndarray]]]] = {
    "bilinear": (1.0, _triangle),
    "bicubic": (2.0, _cubic),
}


@dataclass(frozen=True)
class Axis:
    """One axis of a picture that is resized, and what is wanted of the result.

    Attributes
    ----------
    n_in, n_out : its pixels before and after.
    first, n : the first output pixel that is wanted, and how many are.
    before : black pixels that come before them.
    """

    n_in: int
    n_out: int
    first: int
    n: int
    before: int = 0

    @property
    def reach(self) -> tuple[int, int]:
        """The first and the end of the input pixels that are needed."""
        return _reach(self.n_in, self.n_out, self.first, self.n)


@dataclass(frozen=True)
class Window:
    """The part of a picture that the crop of its resized form needs.

    Attributes
    ----------
    down, across : the axes of rows and of columns.
    crop : side of the square that it becomes, black where the resized picture does not reach.
    channels : of its pixels.
    """

    down: Axis
    across: Axis
    crop: int
    channels: int = 3

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of its pixels: (rows, columns, channels)."""
        (top, bottom), (left, right) = self.down.reach, self.across.reach
        return bottom - top, right - left, self.channels

    def of(self, pixels: np.ndarray) -> np.ndarray:
        """Return its own copy of its pixels, of those of the whole picture (h, w, channels)."""
        (top, bottom), (left, right) = self.down.reach, self.across.reach
        return pixels[top:bottom, left:right].copy()


@dataclass(frozen=True, eq=False)
class Windows:
    """A batch of pictures that are still to be resized, for `featx.device_resize`.

    Attributes
    ----------
    parts
        For each picture its uint8 pixels: those of its window, with it; or (crop, crop, channels)
        resized ones, with None. At least one has a window.
    batch_size : pictures there are to be; those that are missing are black.
    """

    parts: tuple[tuple[np.ndarray, Window | None], ...]
    batch_size: int

    def __len__(self) -> int:
        return self.batch_size

    @property
    def crop(self) -> int:
        """Side of all of them once they are resized."""
        return next(window.crop for _, window in self.parts if window is not None)

    @property
    def channels(self) -> int:
        """Of all of them."""
        return self.parts[0][0].shape[2]


def _neighbours(
    n_in: int, n_out: int, outputs: np.ndarray, interpolation: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return where output pixels lie in the input, and the first and end of what they need."""
    scale = n_in / n_out
    support = _FILTERS[interpolation][0] * max(scale, 1.0)
    centre = (outputs + 0.5) * scale
    low = np.maximum((centre - support + 0.5).astype(np.intp), 0)
    high = np.minimum((centre + support + 0.5).astype(np.intp), n_in)
    return centre, low, high


@functools.lru_cache(maxsize=512)
def _reach(n_in: int, n_out: int, first: int, n: int) -> tuple[int, int]:
    ends = np.array([first, first + n - 1])
    _, low, high = _neighbours(n_in, n_out, ends, "bilinear")
    return int(low[0]), int(high[1])


def weights_of(
    n_in: int, n_out: int, first: int, n: int, interpolation: str = "bilinear"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the weights of output pixels `first` to `first + n` of `n_out`.

    precompute_coeffs and normalize_coeffs_8bpc of Resample.c, the operations in their order.

    Returns
    -------
    low, high : (n,) the first and the end of the input pixels of each.
    weights : (n, neighbours) int32, in units of 2^-22; 0 from `high` on.
    """
    centre, low, high = _neighbours(n_in, n_out, np.arange(first, first + n), interpolation)
    x = low[:, None] + np.arange((high - low).max())  # (n, neighbours)
    far = np.abs((x - centre[:, None] + 0.5) * (1.0 / max(n_in / n_out, 1.0)))
    weights = np.where(x < high[:, None], _FILTERS[interpolation][1](far), 0.0)
    weights /= np.cumsum(weights, axis=1)[:, -1:]  # unlike sum, cumsum adds from left to right
    return low, high, np.trunc(weights * _ONE + np.copysign(0.5, weights)).astype(np.int32)


@functools.lru_cache(maxsize=256)  # 5 KB each for 500 pixels to 224, 22 KB for 4,000
def _table(
    n_in: int, n_out: int, first: int, n: int, interpolation: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return `low` and `weights` as the kernel takes them."""
    low, _, weights = weights_of(n_in, n_out, first, n, interpolation)
    table = np.zeros((n, -(-weights.shape[1] // _STEP) * _STEP), np.int32)
    table[:, : weights.shape[1]] = weights
    low = low.astype(np.int32)
    for array in (low, table):  # the kernel reads them while other threads run
        array.setflags(write=False)
    return low, table


def resized_window(
    pixels: np.ndarray,
    size: tuple[int, int],
    corner: tuple[int, int],
    shape: tuple[int, int],
    interpolation: str = "bilinear",
) -> np.ndarray:
    """Return a part of a picture resized by Pillow, rows first.

    Parameters
    ----------
    pixels : (h, w, c) uint8, c 3 or 1.
    size : height and width after resizing.
    corner : the first row and column to return.
    shape : how many rows and columns to return.
    interpolation : one of `INTERPOLATIONS`.

    Returns
    -------
    (\\*shape, c) uint8 array
        C-contiguous and writable.

    Examples
    --------
    >>> pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    >>> resized_window(pixels, (2, 2), (0, 1), (2, 1)).tolist()
    [[[16, 17, 18]], [[34, 35, 36]]]
    """
    compiled = kernel(interpolation)
    part = _Part(size, corner, shape, interpolation)
    return _by_pillow(pixels, part) if compiled is None else _by_kernel(compiled, pixels, part)


class _Part(NamedTuple):
    """What of the resized picture is wanted, as `resized_window` says."""

    size: tuple[int, int]
    corner: tuple[int, int]
    shape: tuple[int, int]
    interpolation: str


def _by_kernel(compiled: Any, pixels: np.ndarray, part: _Part) -> np.ndarray:
    down, across = (
        _table(*axis, part.interpolation)
        for axis in zip(pixels.shape, part.size, part.corner, part.shape, strict=False)
    )
    resized = np.empty((*part.shape, pixels.shape[2]), np.uint8)
    compiled.resample(np.ascontiguousarray(pixels), resized, *across, *down)
    return resized


def _by_pillow(pixels: np.ndarray, part: _Part) -> np.ndarray:
    """In two passes, the second only on the columns that are wanted."""
    from PIL import Image

    resample = Image.Resampling(INTERPOLATIONS[part.interpolation])
    (h, w), (top, left), (n_rows, n_columns) = part.size, part.corner, part.shape
    image = image_of(pixels)
    image = image.resize((w, image.height), resample)
    image = image.crop((left, 0, left + n_columns, image.height))
    image = image.resize((n_columns, h), resample)
    return pixels_of(image.crop((0, top, n_columns, top + n_rows))).copy()


def image_of(pixels: np.ndarray) -> Image.Image:
    """Return (h, w, 3) as a Pillow image of mode RGB, (h, w, 1) of mode L."""
    from PIL import Image

    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def pixels_of(image: Image.Image) -> np.ndarray:
    """Return (h, w, c) uint8: the pixels of such an image."""
    return np.asarray(image).reshape(image.height, image.width, -1)


@functools.cache
def why_pillow(interpolation: str) -> str | None:
    """Why Pillow is to resize, None where the compiled kernel does; found out once."""
    if interpolation not in _FILTERS:
        return "there is no kernel for this filter"
    try:
        compiled = importlib.import_module("featx._resample")
    except ImportError:
        return (
            f"nothing is compiled in {Path(__file__).parent}: install featx where there are a C "
            "compiler and Python's headers (a clone that it runs from by pip install -e .)"
        )
    rng = np.random.default_rng(0)
    for h, w, c, new_h, new_w in _TRIED:
        pixels = rng.integers(0, 256, (h, w, c), dtype=np.uint8)
        part = _Part((new_h, new_w), (1, 2), (new_h - 3, new_w - 4), interpolation)
        if not np.array_equal(_by_kernel(compiled, pixels, part), _by_pillow(pixels, part)):
            return "this Pillow resizes otherwise than the compiled kernel"
    return None


def kernel(interpolation: str) -> Any:
    """Return the module `featx._resample`, None where Pillow is to resize instead."""
    if why_pillow(interpolation) is not None:
        return None
    return sys.modules["featx._resample"]
