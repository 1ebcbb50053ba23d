"""The mean log loss of rows, as a function of their logits alone, and its derivatives by them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_CHUNK_BYTES: Final = {"cpu": 2 << 20, "cuda": 256 << 20}  # of logits looked at together
_SMALLEST_CURVATURE: Final = 1e-8


class LogLoss:
    """Of n rows with labels and weights, for B problems side by side.

    Attributes
    ----------
    total_weight : of all rows.
    """

    def __init__(
        self, y: npt.NDArray[np.int64], weight: npt.NDArray[np.float64], device: str
    ) -> None:
        self.total_weight = float(weight.sum())
        self._y = torch.from_numpy(y).to(device)
        self._share = torch.from_numpy(weight / self.total_weight).to(device)  # (n,), sums to 1
        self._device = device

    def at(
        self, logits: Tensor, logits_z: Tensor | None, t: Tensor, residual: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Loss and its slope (B,) at ``logits + t * logits_z``; writes the residual (B, k, n)."""
        loss = torch.zeros_like(t)
        for part in self._parts(logits):
            p = residual[..., part]  # (B, k, c), in place
            if logits_z is None:
                p.copy_(logits[..., part])
            else:
                torch.addcmul(logits[..., part], logits_z[..., part], t[:, None, None], out=p)
            loss += self.to_residual(p, part)
        if logits_z is None:
            return loss, torch.zeros_like(t)
        return loss, torch.linalg.vecdot(residual.flatten(1), logits_z.flatten(1))

    def to_residual(self, logits: Tensor, part: slice) -> Tensor:
        """Turn logits (B, k, c) of some rows into the loss's derivatives; return the loss (B,)."""
        label, share = self._y[part].expand(len(logits), 1, -1), self._share[part]
        logits -= logits.amax(dim=1, keepdim=True)
        of_label = logits.gather(1, label)
        total = logits.exp_().sum(dim=1, keepdim=True)
        loss = ((total.log() - of_label) * share).sum(dim=(1, 2))
        logits *= share / total  # the probabilities, times the shares
        logits.scatter_add_(1, label, -share.expand_as(of_label))
        return loss

    def curvature(self, residual: Tensor) -> Tensor:
        """Mean p (1 - p) of each problem over rows and classes: (B,)."""
        B, k, _ = residual.shape
        total = residual.new_zeros(B)
        for part in self._parts(residual):
            share = self._share[part].clamp(min=torch.finfo(residual.dtype).tiny)
            by_share = residual[..., part].abs()  # p times the share, or 1 - p
            total += (by_share - by_share.square() / share).sum(dim=(1, 2))
        return total.div(k).clamp(min=_SMALLEST_CURVATURE)

    def _parts(self, logits: Tensor) -> Iterator[slice]:
        """Cut the rows of logits (B, k, n) into parts that are looked at together."""
        B, k, n = logits.shape
        width = max(1, _CHUNK_BYTES[self._device.partition(":")[0]] // (8 * B * k))
        return (slice(first, first + width) for first in range(0, n, width))
