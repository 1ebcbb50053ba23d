"""Standardised rows of features: read by blocks, held where they fit, and their products."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy.typing as npt
import torch
from torch import Tensor

from featx.heads.base import FloatArray, IntArray, standardised_blocks, standardised_columns

_HELD_BYTES: Final = 2 << 30  # a working copy up to this size is held, else X is read each time
_HELD_SHARE: Final = 0.5  # of a GPU's free memory, instead
_COLUMN_BYTES: Final = 64 << 20  # of columns standardised at once
# Of a product with some rows, on the CPU: memory anew, as of a larger one, costs more than the
# product itself.
_PRODUCT_BYTES: Final = 1 << 20
_TILE: Final = 1024  # rows of a Gram matrix computed at once, only up to the diagonal


@dataclass(frozen=True)
class FeatureRows:
    """Rows of X, and what they are standardised by; X is never copied whole."""

    X: npt.NDArray[Any]  # (N, d), perhaps a memory map
    rows: IntArray | None  # (n,) which of them; None is all
    mean: FloatArray  # (d,)
    scale: FloatArray  # (d,)

    def __len__(self) -> int:
        return len(self.X) if self.rows is None else len(self.rows)

    @property
    def d(self) -> int:
        """Features of a row."""
        return self.X.shape[1]

    def blocks(self) -> Iterator[tuple[slice, FloatArray]]:
        """Yield (positions, (b, d) float64)."""
        return standardised_blocks(self.X, self.mean, self.scale, self.rows)

    def columns(self, part: slice, out: Tensor) -> None:
        """Write all rows of some features to `out`, (n, c) of any float type, on the CPU."""
        standardised_columns(self.X, self.mean, self.scale, self.rows, part, out.numpy())


class WorkingRows:
    """Blocks of standardised rows as tensors, from a working copy if that fits, else from X.

    Blocks are the same either way, and so are all sums over them, to the bit.
    """

    def __init__(self, rows: FeatureRows, dtype: torch.dtype, device: str) -> None:
        self.rows, self.dtype, self.device = rows, dtype, device
        size = len(rows) * rows.d * dtype.itemsize
        if device.startswith("cuda"):
            limit = int(_HELD_SHARE * torch.cuda.mem_get_info(device)[0])
        else:
            limit = _HELD_BYTES
        self._held = list(self._read()) if size <= limit else None

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield (positions, (b, d))."""
        return self._read() if self._held is None else iter(self._held)

    def _read(self) -> Iterator[tuple[slice, Tensor]]:
        for part, block in self.rows.blocks():
            yield part, torch.tensor(block, dtype=self.dtype, device=self.device)

    def products(self, W: Tensor, out: Tensor | None = None) -> Tensor:
        """Weights (..., d) with every row: (..., n), in `out` of any type if given."""
        W = W.to(self.dtype)
        if out is None:
            out = W.new_empty((*W.shape[:-1], len(self.rows)))
        flat, products = W.flatten(0, -2), out.view(-1, len(self.rows))
        for part, Z in self._parts(len(flat)):
            products[:, part] = (Z @ flat.T).T
        return out

    def sums(self, weights: Tensor, less: Tensor | None = None) -> Tensor:
        """Sums of rows, each times `weights`, or these without `less`: (..., n) -> (..., d)."""
        flat = weights.flatten(0, -2)
        out = torch.zeros((len(flat), self.rows.d), dtype=self.dtype, device=self.device)
        for part, Z in self._parts(len(flat)):
            factors = flat[:, part]
            if less is not None:
                factors = factors - less.flatten(0, -2)[:, part]
            out.addmm_(factors.to(self.dtype), Z)
        return out.view(*weights.shape[:-1], self.rows.d)

    def _parts(self, q: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield (positions, (b, d)) of so many rows as are multiplied by q vectors at once."""
        for block, Z in self:
            step = len(Z)
            if self.device == "cpu":
                step = max(1, _PRODUCT_BYTES // (self.dtype.itemsize * q))
            for top, rows in zip(range(0, len(Z), step), Z.split(step), strict=True):
                yield slice(block.start + top, block.start + top + len(rows)), rows

    def covariance(self) -> Tensor:
        """Z.T @ Z: (d, d)."""
        out = torch.zeros((self.rows.d,) * 2, dtype=self.dtype, device=self.device)
        for _, Z in self:
            out.addmm_(Z.T, Z)
        return out


def gram(
    rows: FeatureRows, others: FeatureRows | None, dtype: torch.dtype, device: str
) -> tuple[Tensor, Tensor]:
    """Inner products of `rows` with themselves, (n, n), and of `others` with them, (m, n)."""
    n, m = len(rows), 0 if others is None else len(others)
    out = torch.zeros((n + m, n), dtype=dtype, device=device)
    step = min(rows.d, max(1, _COLUMN_BYTES // (dtype.itemsize * (n + m))))
    buffer = torch.empty((n + m) * step, dtype=dtype)
    for start in range(0, rows.d, step):
        part = slice(start, min(start + step, rows.d))
        Z = buffer[: (n + m) * (part.stop - start)].view(n + m, -1)
        rows.columns(part, Z[:n])
        if others is not None:
            others.columns(part, Z[n:])
        Z = Z.to(device)
        for top in range(0, n + m, _TILE):
            tile, left = slice(top, top + _TILE), slice(0, min(top + _TILE, n))
            out[tile, left].addmm_(Z[tile], Z[left].T)  # right of the diagonal follows below
    K = out[:n]
    for top in range(0, n, _TILE):
        tile = slice(top, min(top + _TILE, n))
        K[:top, tile] = K[tile, :top].T
    return K, out[n:]
