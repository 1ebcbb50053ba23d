"""Feature rows as a network is trained on them: standardised, shuffled, held or streamed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featx.heads.base import FloatArray, IntArray, standardised_blocks

_HELD_BYTES: Final = 2 << 30  # rows up to this size are held, standardised, in main memory
_WINDOW_BYTES: Final = 256 << 20  # of rows that are shuffled among each other
_BLOCK_ROWS: Final = 64  # that follow each other in X and are read together


@dataclass(frozen=True)
class Rows:
    """Standardised rows: all held on the device, or read from X window by window."""

    X: npt.NDArray[Any]
    rows: IntArray  # which rows of X
    y: Tensor  # (n,) int64, of these rows, on the device
    mean: FloatArray
    scale: FloatArray
    dtype: torch.dtype  # of the rows: what products round them to anyway takes less memory
    held: Tensor | None  # (n, d)

    @classmethod
    def of(
        cls,
        X: npt.NDArray[Any],
        y: IntArray,
        rows: IntArray,
        mean: FloatArray,
        scale: FloatArray,
        device: str,
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Rows `rows` of X; held if their copy fits (`_room_bytes`)."""
        labels = torch.from_numpy(y[rows]).to(device)
        streamed = cls(X, rows, labels, mean, scale, dtype, None)
        if dtype.itemsize * len(rows) * X.shape[1] > _room_bytes(device):
            return streamed
        held = streamed._read(np.arange(len(rows)), streamed._buffer(len(rows)))
        return replace(streamed, held=held)

    def __len__(self) -> int:
        return len(self.rows)

    def batches(
        self, batch_size: int, generators: Sequence[torch.Generator]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every row once: (b, d) and (b,) in the one order that one generator draws.

        With g generators (g, b, d) and (g, b), each in the order of its own; for rows that are
        held. The same generator gives the same batches whether rows are held or streamed.
        """
        if len(generators) > 1:
            assert self.held is not None
            orders = torch.stack([torch.cat(list(self._windows(g))) for g in generators])
            for size, which in self._split(orders.to(self.y.device), batch_size):
                x = self.held.index_select(0, which.reshape(-1))
                yield x.view(len(generators), size, -1), self.y[which]
            return
        lengths = window_lengths(len(self), self.X.shape[1])
        buffer = None if self.held is not None else self._buffer(lengths[0])
        for positions in self._windows(generators[0]):
            if buffer is None:
                source, places = self.held, positions
            else:  # read in the order of the file, taken in the order drawn
                ascending, drawn = positions.sort()
                source, places = self._read(ascending.numpy(), buffer), drawn.argsort()
            assert source is not None
            labels = self.y[positions.to(self.y.device)]
            steps = places.to(self.y.device).split(batch_size)
            for which, y in zip(steps, labels.split(batch_size), strict=True):
                yield source.index_select(0, which), y

    def blocks(self, n_rows: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (b, d) and (b,) in order, at most `n_rows` at a time."""
        buffer = None if self.held is not None else self._buffer(min(n_rows, len(self)))
        for start in range(0, len(self), n_rows):
            part = np.arange(start, min(start + n_rows, len(self)))
            if buffer is None:
                assert self.held is not None
                yield self.held[start : part[-1] + 1], self.y[start : part[-1] + 1]
            else:
                yield self._read(part, buffer), self.y[start : part[-1] + 1]

    def _split(self, orders: Tensor, batch_size: int) -> Iterator[tuple[int, Tensor]]:
        """Orders (g, n) -> sizes and (g, b), by the windows that one order is drawn in."""
        for window in orders.split(window_lengths(len(self), self.X.shape[1]), dim=1):
            for which in window.split(batch_size, dim=1):
                yield which.shape[1], which

    def _windows(self, generator: torch.Generator) -> Iterator[Tensor]:
        return shuffled(len(self), self.X.shape[1], generator)

    def _buffer(self, n_rows: int) -> Tensor:
        return torch.empty((n_rows, self.X.shape[1]), dtype=self.dtype, device=self.y.device)

    def _read(self, positions: IntArray, buffer: Tensor) -> Tensor:
        """Rows at ascending positions, standardised, in the first of the buffer's rows."""
        rows = self.rows[positions]
        for part, block in standardised_blocks(self.X, self.mean, self.scale, rows):
            buffer[part] = torch.from_numpy(block.astype(np.float32)).to(buffer.device)
        return buffer[: len(positions)]


def _room_bytes(device: str) -> int:
    """What the copy of the rows may take: half of a GPU's free memory; 2 GiB elsewhere."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0] // 2
    return _HELD_BYTES


def window_lengths(n: int, d: int) -> list[int]:
    """How many of n rows of d float32 are shuffled among each other, one window after the other."""
    length = max(1, _WINDOW_BYTES // (4 * d * _BLOCK_ROWS)) * _BLOCK_ROWS
    return [length] * (n // length) + ([n % length] if n % length else [])


def shuffled(n: int, d: int, generator: torch.Generator) -> Iterator[Tensor]:
    """All positions below n in random order, (m,) int64 for each window.

    One uniform permutation where a window of 256 MiB holds all rows. Else each window is made of
    blocks of 64 rows that follow each other, drawn from everywhere (and cut at a random place),
    and shuffled: random single rows of a file larger than memory are many times slower to read.
    """
    lengths = window_lengths(n, d)
    if len(lengths) == 1:
        yield torch.randperm(n, generator=generator)
        return
    shift = torch.randint(n, (), generator=generator)
    blocks = torch.arange(n).split(_BLOCK_ROWS)
    n_whole = n // _BLOCK_ROWS
    order = [*torch.randperm(n_whole, generator=generator).tolist(), *range(n_whole, len(blocks))]
    rows = torch.cat([blocks[block] for block in order])
    for window in ((rows + shift) % n).split(lengths):
        yield window[torch.randperm(len(window), generator=generator)]
