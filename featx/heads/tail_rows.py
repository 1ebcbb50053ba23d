"""Rows of unpooled features, or of pixels, as a tail takes them: read a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featx.errors import InputError
from featx.heads.base import FloatArray, IntArray


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
    """

    X: Any
    rows: IntArray
    shape: tuple[int, ...]
    mean: FloatArray
    scale: FloatArray
    device: str

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, positions: IntArray) -> Tensor:
        """Rows at these positions, (b, *shape) float32, in their order.

        Raises
        ------
        InputError
            A value is NaN or infinite.
        """
        rows = self.rows[positions]
        order = rows.argsort(kind="stable")
        block = np.empty((len(rows), *self.X.shape[1:]), self.X.dtype)
        block[order] = self.X[rows[order]]  # read in the order of the file
        return as_input(block, self.shape, self.mean, self.scale, self.device)

    def blocks(self, n_rows: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield (positions, (b, *shape)), at most `n_rows` at a time, in order."""
        for start in range(0, len(self), n_rows):
            part = slice(start, min(start + n_rows, len(self)))
            yield part, self.batch(np.arange(part.start, part.stop))


def as_input(
    block: npt.NDArray[Any],
    shape: tuple[int, ...],
    mean: FloatArray,
    scale: FloatArray,
    device: str,
) -> Tensor:
    """Rows (b, d) or (b, *shape) as the tail's float32 input.

    Pixels (uint8, (h, w, c)) become (c, h, w), and are normalised as for the whole network.
    """
    x = torch.from_numpy(block).to(device).reshape(len(block), *shape)
    if x.dtype == torch.uint8:
        x = x.permute(0, 3, 1, 2).to(torch.float32) / 255
        stats = torch.from_numpy(np.stack([mean, scale])).to(device, torch.float32)
        return (x - stats[0, :, None, None]) / stats[1, :, None, None]
    x = x.to(torch.float32)
    if not bool(torch.isfinite(x).all()):
        raise InputError("features hold values that are NaN or infinite")
    return x


def batches_of(n: int, batch_size: int, generator: torch.Generator) -> list[IntArray]:
    """All positions below n once, in random order, in batches that differ by one row at most.

    So no last batch is so small that BatchNorm has nothing to learn from.
    """
    order = torch.randperm(n, generator=generator).numpy()
    return np.array_split(order, -(-n // batch_size))
