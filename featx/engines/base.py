"""What an engine is: pixels of one fixed batch shape in, features out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from featx.devices import Device, Precision
from featx.resampling import Windows

if TYPE_CHECKING:
    import torch


class Engine(Protocol):
    """Executes the front of a network on batches of one fixed shape.

    The shape is fixed so that an image's features do not depend on how many others are left: the
    last batch is padded, never shortened.

    Attributes
    ----------
    name : as recorded in the plan, ``torch-eager``.
    batch_size : images per call.
    concurrency : calls that may run at the same time, from as many threads, and gain by it.
    feature_shape : shape of one image's features.
    resizes : whether it also takes pictures that are still to be resized.
    """

    name: str
    batch_size: int
    concurrency: int
    feature_shape: tuple[int, ...]
    resizes: bool

    def __call__(self, pixels: np.ndarray | Windows) -> np.ndarray:
        """Features of one batch.

        Parameters
        ----------
        pixels : (batch_size, h, w, c) uint8, resized and cropped; or `batch_size` pictures that it
            is to resize.

        Returns
        -------
        (batch_size, d...) float32.
        """
        ...


@dataclass(frozen=True, eq=False)
class Work:
    """What an engine is to execute, and where.

    Attributes
    ----------
    front : frozen network in eval mode, normalised pixels (n, c, h, w) to features (n, d...).
    normalise : uint8 (n, c, h, w) to the float32 input of `front`, on the same device.
    device, precision : where, and in which arithmetic.
    input_size : (h, w) of the pixels, one of them.
    identity : JSON of everything that decides what the features are: weights' SHA-256, cut, …;
        what was prepared for the same identity may be used again.
    channels : of the pixels.
    """

    front: torch.nn.Module
    normalise: Callable[[torch.Tensor], torch.Tensor]
    device: Device
    precision: Precision
    input_size: tuple[int, int]
    identity: Mapping[str, Any]
    channels: int = 3


class CannotRunError(Exception):
    """An engine cannot do this work on this machine; the message says why.

    Attributes
    ----------
    lasting : whether it will be the same the next time, because the network itself is the reason.
    """

    def __init__(self, message: str, *, lasting: bool = False) -> None:
        super().__init__(message)
        self.lasting = lasting


def how(engine: Engine) -> str:
    """An engine and its batches, as people read it."""
    side_by_side = f", {engine.concurrency} at a time" if engine.concurrency > 1 else ""
    if engine.batch_size == 1:
        return f"{engine.name}, single images{side_by_side}"
    return f"{engine.name}, batches of {engine.batch_size}{side_by_side}"
