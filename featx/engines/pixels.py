"""The engine of the cut `input`: what a network would take is kept, and none is executed."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from featx.resampling import Windows

_BATCH_SIZE: Final = 32
_BATCH_BYTES: Final = 8 << 20


class PixelEngine:
    """Gives pixels back as they come.

    Parameters
    ----------
    shape : (h, w, c) of one picture. Batches are of at most 8 MiB.
    """

    name = "pixels"
    concurrency = 1
    resizes = False

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.feature_shape = shape
        self.batch_size = max(1, min(_BATCH_SIZE, _BATCH_BYTES // math.prod(shape)))

    def __call__(self, pixels: np.ndarray | Windows) -> np.ndarray:
        """(batch_size, h, w, c) uint8, the very array that came."""
        assert isinstance(pixels, np.ndarray), "these pictures are still to be resized"
        return pixels
