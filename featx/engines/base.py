"""What an engine is: pixels of one fixed batch shape in, features out."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class Engine(Protocol):
    """Executes the front of a network on batches of one fixed shape.

    The shape is fixed so that an image's features do not depend on how many others are left: the
    last batch is padded, never shortened.

    Attributes
    ----------
    name : as recorded in the plan, ``torch-eager``.
    batch_size : images per call.
    feature_shape : shape of one image's features.
    """

    name: str
    batch_size: int
    feature_shape: tuple[int, ...]

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Features of one batch.

        Parameters
        ----------
        pixels : (batch_size, h, w, 3) uint8 RGB, resized and cropped.

        Returns
        -------
        (batch_size, d...) float32.
        """
        ...
