"""Pictures of a batch cut out and resized, each in its own way, as products of small matrices.

Pillow's filters, whose weights are as wide as the picture is made smaller, so that nothing aliases
(src/libImaging/Resample.c; torch's ``antialias=True`` has the same). Both axes of a picture are
resized by a matrix of such weights each: a batch takes two batched products on any device, in
float32 without rounding between.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor


@dataclass(frozen=True)
class Spans:
    """How one axis of each of b pictures is resized; output i lies at ``first + i`` of `n` steps.

    Attributes
    ----------
    low, high : (b,) float, the part of the axis that is resized, in pixels of the picture.
    n : (b,) float, how many pixels that part becomes.
    first : (b,) float, number of the first of these that is kept. What lies before the first or
        after the last of them is 0.
    """

    low: Tensor
    high: Tensor
    n: Tensor
    first: Tensor

    def shifted(self, pixels: Tensor) -> Spans:
        """The same, begun so many (b,) of the resized pixels later."""
        return replace(self, first=self.first + pixels)

    def to(self, device: torch.device) -> Spans:
        """The same on a device, in float32."""
        parts = (self.low, self.high, self.n, self.first)
        return Spans(*(part.to(device, torch.float32) for part in parts))


def resized(pixels: Tensor, down: Spans, across: Spans, size: int, interpolation: str) -> Tensor:
    """Parts of pictures, resized.

    Parameters
    ----------
    pixels : (b, h, w, c) uint8 on any device.
    down, across : what to do along h and w.
    size : of the result.
    interpolation : one of Pillow's filters, see `featx.transforms.INTERPOLATIONS`.

    Returns
    -------
    (b, c, size, size) float32 in 0 to 255, on that device.
    """
    b, h, w, c = pixels.shape
    with torch.autocast(pixels.device.type, enabled=False):
        rows = _weights(down.to(pixels.device), h, size, interpolation)  # (b, size, h)
        columns = _weights(across.to(pixels.device), w, size, interpolation)  # (b, size, w)
        half = torch.bmm(rows, pixels.reshape(b, h, w * c).to(torch.float32))
        half = half.view(b, size, w, c).permute(0, 3, 1, 2)  # (b, c, size, w)
        return torch.matmul(half, columns.mT[:, None]).clamp_(0, 255)  # a cubic overshoots


def _weights(spans: Spans, n_in: int, size: int, interpolation: str) -> Tensor:
    """(b, size, n_in): what each output pixel is made of; rows add up to 1, or are 0 outside."""
    low, high, n, first = (part[:, None] for part in (spans.low, spans.high, spans.n, spans.first))
    step = torch.arange(size, device=low.device) + first  # (b, size)
    scale = (high - low) / n
    centre = (low + (step + 0.5) * scale)[..., None]  # (b, size, 1)
    place = torch.arange(n_in, device=low.device)  # of the pixels that there are
    if interpolation == "nearest":
        weights = (centre.floor() == place).to(torch.float32)
    else:
        distance = (place + 0.5 - centre) / scale.clamp(min=1.0)[..., None]
        weights = _FILTERS[interpolation](distance)
        weights = weights * ((place >= low[..., None]) & (place < high[..., None]))
    inside = ((step >= 0) & (step < n))[..., None]
    total = weights.sum(dim=-1, keepdim=True)
    return torch.where(inside & (total != 0), weights / total, 0.0)


def _cubic(x: Tensor, a: float = -0.5) -> Tensor:
    """Keys 1981, with Pillow's a."""
    x = x.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


_FILTERS: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {
    "box": lambda x: ((x > -0.5) & (x <= 0.5)).to(torch.float32),
    "bilinear": lambda x: (1 - x.abs()).clamp(min=0),
    "hamming": lambda x: torch.where(
        x.abs() < 1, torch.sinc(x) * (0.54 + 0.46 * torch.cos(math.pi * x)), 0.0
    ),
    "bicubic": _cubic,
    "lanczos": lambda x: torch.where(x.abs() < 3, torch.sinc(x) * torch.sinc(x / 3), 0.0),
}
