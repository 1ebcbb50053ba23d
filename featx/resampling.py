"""A window of Pillow's bilinear resize, bit for bit, as products of small matrices.

Pillow (since 2.7, src/libImaging/Resample.c) resizes 8-bit pictures along the rows, rounds to 8
bits, and does the same along the columns. Every output pixel is a weighted sum of its neighbours.
The weights are a triangle as wide as two output pixels, computed as 64-bit floats and rounded to
multiples of 2^-22; sums are of whole numbers, and rounded half up.

Here the weights are computed by the same operations in the same order, and the sums by the matrix
product of 64-bit floats that NumPy hands to BLAS. They are exact: a weight is a multiple of 2^-22,
a pixel a whole number, and no part of a sum exceeds 255 * (1 + t * 2^-23) < 256 for t <= 16,000
neighbours, so that every intermediate result is a multiple of 2^-22 below 2^8, which 30 bits hold
of the 53 there are. Neither the order of the additions, nor fused multiply-adds, nor the number of
threads can round anything. Adding 0.5 and cutting off what is behind the point is then Pillow's
rounding, and the bits are Pillow's.

In two places a machine could differ: a compiler that fuses operations of Pillow's weights may move
one by 2^-22 (seldom: it has to lie within 2^-50 of a rounding boundary), and a Pillow to come may
resize otherwise. `matches_pillow` compares the two once in a process, and who finds them different
uses Pillow.
"""

from __future__ import annotations

import functools
import threading
from dataclasses import dataclass
from typing import Final

import numpy as np

BITS: Final = 22  # of a weight: PRECISION_BITS of Resample.c
_ONE: Final = 2.0**BITS
# Output pixels that share a matrix. Of its columns a few more are zeros for every pixel more, and
# every matrix less is a call less: 8 was the fastest of 4, 8, 12, 16 and 24 at 500 x 375 to 256.
_BLOCK: Final = 8
# Beyond, most of a matrix is zeros, and photographs of that size take far longer to decode anyway.
MAX_SHRINKING: Final = 4.0
# What a pipe takes at once on Linux (1 MiB, fs.pipe-max-size), less room for what is said before:
# photographs of 880 x 660 for a crop of 224. Up to there sending took a fifth of the time of
# resizing, and the 1,000 pictures that may be under way on CUDA take 1 GB of memory at most.
MAX_WINDOW_BYTES: Final = 2**20 - 2**13
_MAX_PLANES: Final = 200_000  # float64 converted at a time, 1.6 MB: more is no faster
_MAX_RESIZED: Final = 1_500_000  # float64 between the two passes; 500 x 375 pixels need 220,000


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


@dataclass(frozen=True)
class _Weights:
    """The weights of consecutive output pixels along one axis.

    Attributes
    ----------
    start, stop : the input pixels that any of them needs.
    blocks
        For every `_BLOCK` output pixels: the first and the end of them, the first and the end of
        their input pixels counted from `start`, and (inputs, outputs) float64 weights.
    """

    start: int
    stop: int
    blocks: tuple[tuple[int, int, int, int, np.ndarray], ...]


def _neighbours(
    n_in: int, n_out: int, outputs: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return where output pixels lie in the input, and the first and end of what they need."""
    scale = n_in / n_out
    support = max(scale, 1.0)
    centre = (outputs + 0.5) * scale
    low = np.maximum((centre - support + 0.5).astype(np.intp), 0)
    high = np.minimum((centre + support + 0.5).astype(np.intp), n_in)
    return centre, low, high


@functools.lru_cache(maxsize=512)
def _reach(n_in: int, n_out: int, first: int, n: int) -> tuple[int, int]:
    _, low, high = _neighbours(n_in, n_out, np.array([first, first + n - 1]))
    return int(low[0]), int(high[1])


def triangles(
    n_in: int, n_out: int, first: int, n: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the weights of output pixels `first` to `first + n` of `n_out`.

    precompute_coeffs and normalize_coeffs_8bpc of Resample.c, the operations in their order.

    Returns
    -------
    low, high : (n,) the first and the end of the input pixels of each.
    weights : (n, neighbours) int32, in units of 2^-22; 0 from `high` on.
    """
    centre, low, high = _neighbours(n_in, n_out, np.arange(first, first + n))
    x = low[:, None] + np.arange((high - low).max())  # (n, neighbours)
    far = np.abs((x - centre[:, None] + 0.5) * (1.0 / max(n_in / n_out, 1.0)))
    weights = np.where((far < 1.0) & (x < high[:, None]), 1.0 - far, 0.0)
    weights /= np.cumsum(weights, axis=1)[:, -1:]  # unlike sum, cumsum adds from left to right
    return low, high, np.floor(0.5 + weights * _ONE).astype(np.int32)


@functools.lru_cache(maxsize=256)  # 50 KB each; photographs come in some hundred sizes
def _weights(n_in: int, n_out: int, first: int, n: int) -> _Weights:
    """Return the weights of output pixels `first` to `first + n` of `n_out`, as matrices."""
    low, high, whole = triangles(n_in, n_out, first, n)
    weights = whole / _ONE
    x = low[:, None] + np.arange(weights.shape[1])  # (n, neighbours)
    block, row = np.divmod(np.arange(n), _BLOCK)
    begin, end = low[::_BLOCK], high[np.append(np.arange(_BLOCK - 1, n - 1, _BLOCK), n - 1)]
    matrices = np.zeros((len(begin), (end - begin).max() + x.shape[1], _BLOCK))
    matrices[block[:, None], x - begin[block][:, None], row[:, None]] = weights
    start = int(low[0])
    blocks = tuple(
        (
            i * _BLOCK,
            min((i + 1) * _BLOCK, n),
            int(begin[i]) - start,
            int(end[i]) - start,
            matrices[i, : end[i] - begin[i], : n - i * _BLOCK],
        )
        for i in range(len(begin))
    )
    return _Weights(start, int(high[-1]), blocks)


class _Memory(threading.local):
    """Memory that every thread uses again, so that the system need not clear it for each picture.

    About 4 MB a thread for pictures of 500 x 375 and a crop of 224, seldom more than 15 MB:
    `is_worthwhile` sees to that.
    """

    def __init__(self) -> None:
        self._arrays: dict[str, np.ndarray] = {}

    def array(self, name: str, *shape: int) -> np.ndarray:
        """Return a float64 array of any content, valid until the next call of that name."""
        size = int(np.prod(shape))
        found = self._arrays.get(name)
        if found is None or found.size < size:
            found = self._arrays[name] = np.empty(size)
        return found[:size].reshape(shape)


_memory = _Memory()


def is_worthwhile(h: int, w: int, new_h: int, new_w: int, crop: int) -> bool:
    """Return whether `resized_window` is faster than Pillow here, and needs little memory."""
    if h == new_h or w == new_w:  # Pillow leaves out the pass that changes nothing
        return False
    shrinking = max(h / new_h, w / new_w)
    n_rows = max(min(crop, new_h), min(h, (min(crop, new_h) + 2) * shrinking))
    return shrinking <= MAX_SHRINKING and 3 * n_rows * min(crop, new_w) <= _MAX_RESIZED


def resized_window(
    pixels: np.ndarray, size: tuple[int, int], corner: tuple[int, int], shape: tuple[int, int]
) -> np.ndarray:
    """Return a part of a picture resized by Pillow's bilinear filter, rows first.

    Parameters
    ----------
    pixels : (h, w, c) uint8.
    size : height and width after resizing.
    corner : the first row and column to return.
    shape : how many rows and columns to return.

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
    down = _weights(pixels.shape[0], size[0], corner[0], shape[0])
    across = _weights(pixels.shape[1], size[1], corner[1], shape[1])
    needed = pixels[down.start : down.stop, across.start : across.stop]
    n_rows, n_columns, c = needed.shape
    resized = _memory.array("resized", c, n_rows, shape[1])
    step = max(1, _MAX_PLANES // (c * n_columns))
    for r in range(0, n_rows, step):
        part = needed[r : r + step]
        n = len(part)
        planes = _memory.array("planes", c, n, n_columns)
        planes[...] = part.transpose(2, 0, 1)
        # One product over all planes where they lie one behind the other.
        sums = resized if n == n_rows else _memory.array("sums", c, n, shape[1])
        flat_planes, flat_sums = planes.reshape(c * n, -1), sums.reshape(c * n, -1)
        for first, end, low, high, matrix in across.blocks:
            np.matmul(flat_planes[:, low:high], matrix, out=flat_sums[:, first:end])
        sums += 0.5
        np.floor(sums, out=resized[:, r : r + n])
    sums = _memory.array("planes", c, *shape)  # the planes are done with
    for first, end, low, high, matrix in down.blocks:
        np.matmul(matrix.T, resized[:, low:high], out=sums[:, first:end])
    sums += 0.5
    window = np.empty((*shape, c), np.uint8)
    for i in range(c):
        window[..., i] = sums[i]  # cuts off what is behind the point
    return window


@functools.cache
def matches_pillow() -> bool:
    """Return whether this Pillow gives the bits of `resized_window` here; found out once."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for size, new in [((97, 131), (64, 86)), ((40, 61), (64, 97)), ((90, 90), (31, 31))]:
        pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        resized = Image.fromarray(pixels).resize(new[::-1], Image.Resampling.BILINEAR)
        if not np.array_equal(resized_window(pixels, new, (0, 0), new), np.asarray(resized)):
            return False
    return True
