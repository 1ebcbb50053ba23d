"""Rows of unpooled features, or of pixels, as a tail takes them: read a batch at a time."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featx.augmentation import Augmentation, plain
from featx.errors import InputError
from featx.heads.base import FloatArray, IntArray
from featx.transforms import Transform

_HASHED_BYTES: Final = 1 << 24  # read at a time


@dataclass(frozen=True)
class TailRows:
    """Rows `rows` of X, which is never read whole nor held.

    Attributes
    ----------
    X : (N, d) or (N, *shape), float or uint8; a memory map, an array or a `RowView`.
    rows : (n,) int64, which of them.
    shape : of one row: what enters the tail, or of uint8 pixels (h, w, c).
    mean, scale : (c,) of pixels on the scale 0..1; of other features 0 and 1.
    device : where batches go.
    transform : of pixels; whole pictures are resized and cropped by it.
    extent : (N, 2) height and width of what is picture in each row of X, of whole pictures.
    augment : changes pixels at random, where `batch` is given a generator.
    """

    X: Any
    rows: IntArray
    shape: tuple[int, ...]
    mean: FloatArray
    scale: FloatArray
    device: str
    transform: Transform | None = None
    extent: npt.NDArray[np.uint16] | None = None
    augment: Augmentation | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, positions: IntArray, generator: torch.Generator | None = None) -> Tensor:
        """Rows at these positions, (b, *shape) float32, in their order; augmented by a generator.

        Raises
        ------
        InputError
            A value is NaN or infinite.
        """
        rows = self.rows[positions]
        order = rows.argsort(kind="stable")
        block = np.empty((len(rows), *self.X.shape[1:]), self.X.dtype)
        block[order] = self.X[rows[order]]  # read in the order of the file
        x = torch.from_numpy(block).to(self.device).reshape(len(block), *self.shape)
        if x.dtype == torch.uint8:
            extent = None if self.extent is None else self.extent[rows].astype(np.int64)
            return self._normalised(x, extent, generator)
        x = x.to(torch.float32)
        if not bool(torch.isfinite(x).all()):
            raise InputError("features hold values that are NaN or infinite")
        return x

    def add_to(self, digest: hashlib._Hash) -> None:
        """Bring every value of the rows into a hash, in the order of the file, as it is stored."""
        rows = np.sort(self.rows)
        step = max(1, _HASHED_BYTES // (math.prod(self.X.shape[1:]) * self.X.dtype.itemsize))
        digest.update(str((self.X.dtype.str, self.shape, self.transform)).encode())
        digest.update(np.stack([self.mean, self.scale]).tobytes())
        for start in range(0, len(rows), step):
            digest.update(np.ascontiguousarray(self.X[rows[start : start + step]]).data)
        if self.extent is not None:
            digest.update(np.ascontiguousarray(self.extent[rows]).data)

    def _normalised(
        self, pixels: Tensor, extent: IntArray | None, generator: torch.Generator | None
    ) -> Tensor:
        """(b, h, w, c) uint8 -> (b, c, h, w), normalised as for the whole network."""
        there = None if extent is None else torch.from_numpy(extent)
        if self.augment is not None and generator is not None:
            x = self.augment(pixels, there, generator)
        elif there is not None:
            assert self.transform is not None
            x = plain(pixels, there, self.transform)
        else:
            x = pixels.permute(0, 3, 1, 2).to(torch.float32) / 255
        stats = np.stack([self.mean, self.scale])[:, :, None, None]
        mean, scale = torch.from_numpy(stats).to(self.device, torch.float32)
        return ((x - mean) / scale).contiguous()  # one layout, so that bits are the same

    def blocks(self, n_rows: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield (positions, (b, *shape)), at most `n_rows` at a time, in order."""
        for start in range(0, len(self), n_rows):
            part = slice(start, min(start + n_rows, len(self)))
            yield part, self.batch(np.arange(part.start, part.stop))


def checked_matrix(X: Any) -> Any:
    """X as it is, or as float32 where a tail knows no such numbers; nothing is read."""
    if not hasattr(X, "dtype") or not hasattr(X, "shape"):
        X = np.asarray(X)
    if X.dtype == np.float64 or (X.dtype.kind in "iub" and X.dtype != np.uint8):
        X = np.asarray(X, np.float32)
    if X.dtype not in (np.float32, np.float16, np.uint8) or len(X.shape) < 2:
        raise InputError(
            f"X must be (n, d) or (n, *shape), float or uint8, got {X.dtype} of shape {X.shape}"
        )
    return X


def batches_of(n: int, batch_size: int, generator: torch.Generator) -> list[IntArray]:
    """All positions below n once, in random order, in batches that differ by one row at most.

    So no last batch is so small that BatchNorm has nothing to learn from.
    """
    order = torch.randperm(n, generator=generator).numpy()
    return np.array_split(order, -(-n // batch_size))
