"""Pillow's bilinear resize of a whole batch where the network runs, bit for bit.

Decoding takes most of what the cores of a GPU machine have. So there they only decode, and the part
of each picture that its crop needs is resized here, in whole numbers: weights are Pillow's
(`featx.resampling.weights_of`), multiples of 2^-22, and a sum of them is at most 255 * (2^22 + t)
for t neighbours, which 32 bits hold. So the bits are those of the CPU on every device, whatever the
order of additions and whatever else is in the batch.

The pixels of all pictures lie one after another in one buffer. The first pass makes of every row
its output pixels, rounded to 8 bits, the second makes of these rows the output rows. Each goes
through the neighbours: the first of every output pixel, then the second, and so on, so that the
number of operations does not depend on the number of pictures.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import numpy as np
import torch

from featx.resampling import BITS, Axis, Window, Windows, resized_window, weights_of

Part = tuple[np.ndarray, Window | None]

# Values between the passes, or in the crops, that are computed at a time: about 200 MB on the
# device, and enough for any to be kept busy. 128 photographs of 500 x 375 have 28 million.
_MAX_VALUES: Final = 2**24


def resized(windows: Windows, device: torch.device) -> torch.Tensor:
    """The pictures of a batch, resized and cropped.

    Parameters
    ----------
    windows : what is to be resized.
    device : where; the pixels travel there, on CUDA asynchronously and in the current stream.

    Returns
    -------
    (batch_size, crop, crop, channels) uint8 on `device`.
    """
    crop = windows.crop
    shape = len(windows), crop, crop, windows.channels
    batch = torch.zeros(shape, dtype=torch.uint8, device=device)
    first = 0
    for group in _groups(windows.parts, crop):
        batch[first : first + len(group)] = _resized(group, crop, device)
        first += len(group)
    return batch


def why_not(device: torch.device) -> str | None:
    """Why a device is not to resize, None where it gives the bits of the CPU.

    Some small pictures, smaller and larger than before, are resized there and here.
    """
    rng = np.random.default_rng(0)
    parts: list[Part] = [(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8), None)]
    expected = [parts[0][0]]
    for (h, w), (new_h, new_w) in [((97, 131), (64, 86)), ((40, 61), (64, 97))]:
        pixels = rng.integers(0, 256, (h, w, 3), dtype=np.uint8)
        window = Window(Axis(h, new_h, 8, 48), Axis(w, new_w, 20, 48), 48)
        parts.append((window.of(pixels), window))
        expected.append(resized_window(pixels, (new_h, new_w), (8, 20), (48, 48)))
    try:
        got = resized(Windows(tuple(parts), len(parts)), device).cpu().numpy()
    except RuntimeError as error:  # an operation that the device does not have
        return " ".join(str(error).split())[:200]
    return None if np.array_equal(got, expected) else "its pixels are not those of the CPU"


def _groups(parts: Sequence[Part], crop: int) -> Iterator[Sequence[Part]]:
    """Consecutive pictures that are resized together."""
    first = n_values = 0
    for i, (pixels, _) in enumerate(parts):
        values = pixels.shape[2] * crop * max(len(pixels), crop)
        if n_values and n_values + values > _MAX_VALUES:
            yield parts[first:i]
            first, n_values = i, 0
        n_values += values
    yield parts[first:]


def _resized(parts: Sequence[Part], crop: int, device: torch.device) -> torch.Tensor:
    """(p, crop, crop, c) uint8, of p pictures."""
    c = parts[0][0].shape[2]
    whole = Axis(crop, crop, 0, crop)  # of a picture that is resized already: every pixel itself
    windows = [window or Window(whole, whole, crop, c) for _, window in parts]
    low_x, weights_x = _tables([window.across for window in windows], crop, device)
    low_y, weights_y = _tables([window.down for window in windows], crop, device)
    h, w = np.array([pixels.shape[:2] for pixels, _ in parts]).T  # (p) each
    first_row, first_pixel = np.cumsum(h) - h, np.cumsum(h * w) - h * w
    picture = np.repeat(np.arange(len(parts)), h)  # (r): of every row of all pictures
    row = np.arange(len(picture)) - first_row[picture]
    where = _there(picture, device)
    begin = _there(first_pixel[picture] + row * w[picture], device)
    rows = _sums(
        _flat([pixels for pixels, _ in parts], len(weights_x), device),
        (begin[:, None] + low_x.index_select(0, where)).flatten(),
        (weights.index_select(0, where).flatten() for weights in weights_x),
    )
    # What lies behind the last row has weight 0, but must be there.
    between = rows.new_zeros((len(picture) + len(weights_y), c * crop))
    between[: len(picture)] = rows.view(-1, c * crop)
    columns = _sums(
        between,
        (_there(first_row, device)[:, None] + low_y).flatten(),
        (weights.flatten() for weights in weights_y),
    )
    return columns.view(-1, crop, crop, c)


def _sums(
    values: torch.Tensor, first: torch.Tensor, weights: Iterable[torch.Tensor]
) -> torch.Tensor:
    """(n, k) uint8: weighted sums of consecutive rows of `values`, rounded half up.

    Parameters
    ----------
    values : (m, k) uint8.
    first : (n,) int32, the first row of each sum.
    weights : (n,) int32 in units of 2^-22; of the first rows, of those after them, and so on.
    """
    sums = torch.full(
        (len(first), values.shape[1]), 1 << (BITS - 1), dtype=torch.int32, device=values.device
    )
    for i, weight in enumerate(weights):
        sums += values.index_select(0, first + i) * weight[:, None]
    return (sums >> BITS).to(torch.uint8)


def _tables(
    axes: Sequence[Axis], crop: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """First neighbours (p, crop) of output pixels, and weights (neighbours, p, crop); int32."""
    tables = [_table(axis, crop) for axis in axes]
    weights = np.zeros((max(len(table) for _, table in tables), len(axes), crop), np.int32)
    for i, (_, table) in enumerate(tables):
        weights[: len(table), i] = table
    return _there(np.stack([low for low, _ in tables]), device), _there(weights, device)


@functools.lru_cache(maxsize=512)  # 5 KB each; photographs come in some hundred sizes
def _table(axis: Axis, crop: int) -> tuple[np.ndarray, np.ndarray]:
    """Of one picture: (crop,), counted from where its window begins, and (neighbours, crop)."""
    low, _, weights = weights_of(axis.n_in, axis.n_out, axis.first, axis.n)
    wanted = slice(axis.before, axis.before + axis.n)
    first = np.zeros(crop, np.int32)
    first[wanted] = low - low[0]
    table = np.zeros((weights.shape[1], crop), np.int32)  # without any weight a pixel is black
    table[:, wanted] = weights.T
    return first, table


def _flat(pictures: Sequence[np.ndarray], spare: int, device: torch.device) -> torch.Tensor:
    """(pixels, c) uint8: the pixels of all pictures, and some more, on `device`."""
    c = pictures[0].shape[2]
    n = sum(pixels.size for pixels in pictures) // c
    flat = torch.empty((n + spare, c), dtype=torch.uint8, pin_memory=device.type == "cuda")
    flat[n:] = 0
    np.concatenate([pixels.reshape(-1, c) for pixels in pictures], out=flat.numpy()[:n])
    return flat.to(device, non_blocking=True)


def _there(numbers: np.ndarray, device: torch.device) -> torch.Tensor:
    """Whole numbers as int32 on `device`."""
    here = torch.from_numpy(numbers.astype(np.int32, copy=False))
    if device.type == "cuda":
        here = here.pin_memory()
    return here.to(device, non_blocking=True)
