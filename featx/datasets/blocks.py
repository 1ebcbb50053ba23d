"""What a data file holds: images of one size, and their labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Block:
    """The images of one data file, in its order.

    Attributes
    ----------
    pixels : (n, h, w) grey or (n, h, w, 3) RGB uint8, if possible a memory map.
    labels : (n,) uint8, below the number of classes.
    """

    pixels: np.ndarray
    labels: np.ndarray

    @property
    def picture_bytes(self) -> int:
        """Length of `picture` of each image."""
        return len(_header(self.pixels.shape[1:])) + self.pixels[0].nbytes

    def picture(self, i: int) -> bytes:
        """Image `i` as the bytes of a picture file: PGM or PPM, which are a header and the pixels.

        So a data file needs no decoder of its own, and an image is the same by its SHA-256
        wherever it lies.
        """
        return _header(self.pixels.shape[1:]) + self.pixels[i].tobytes()


def _header(shape: tuple[int, ...]) -> bytes:
    return b"P%d\n%d %d\n255\n" % (5 if len(shape) == 2 else 6, shape[1], shape[0])
