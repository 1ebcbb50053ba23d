"""The reference engine: PyTorch, one operation after another, no gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Final

import numpy as np
import torch

from featx.devices import Device, Precision

_AUTOCAST: Final = {"bf16": torch.bfloat16, "fp16": torch.float16}


class EagerEngine:
    """Runs `front` eagerly on one device, in channels-last layout, which convolutions prefer.

    Parameters
    ----------
    front : frozen network in eval mode, normalised pixels (n, 3, h, w) to features (n, d...).
    normalise : uint8 (n, 3, h, w) to the float32 input of `front`, on the same device.
    device, precision : where and in which arithmetic. ``fp32`` is IEEE single precision on every
        device: TF32, which cuDNN would use for convolutions unasked, is switched off meanwhile.
    batch_size : images per call.
    input_size : (h, w) of the pixels.
    """

    name = "torch-eager"

    def __init__(
        self,
        front: torch.nn.Module,
        *,
        normalise: Callable[[torch.Tensor], torch.Tensor],
        device: Device,
        precision: Precision = "fp32",
        batch_size: int = 16,
        input_size: tuple[int, int] = (224, 224),
    ) -> None:
        self.device = torch.device(device.name)
        self.precision = precision
        self.batch_size = batch_size
        self._normalise = normalise
        self._front = front.eval().to(self.device).to(memory_format=torch.channels_last)
        blank = np.zeros((1, *input_size, 3), np.uint8)
        self.feature_shape: tuple[int, ...] = tuple(self._features(blank).shape[1:])

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        assert len(pixels) == self.batch_size, f"{len(pixels)} images, not {self.batch_size}"
        return self._features(pixels).cpu().numpy()

    def _features(self, pixels: np.ndarray) -> torch.Tensor:
        batch = torch.from_numpy(pixels)
        if self.device.type == "cuda":
            batch = batch.pin_memory()
        # (n, h, w, 3) seen as (n, 3, h, w) is channels-last already: no copy
        batch = batch.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        autocast: Any = nullcontext()
        if self.precision in _AUTOCAST:
            autocast = torch.autocast(self.device.type, dtype=_AUTOCAST[self.precision])
        with torch.inference_mode(), _fp32_arithmetic(self.precision), autocast:
            return self._front(self._normalise(batch)).float()


@contextmanager
def _fp32_arithmetic(precision: str) -> Iterator[None]:
    """Switch CUDA's TF32 on or off, and cuDNN to its deterministic algorithms, for one block."""
    if not torch.cuda.is_available():
        yield
        return
    wanted = "tf32" if precision == "tf32" else "ieee"
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = (
        matmul.fp32_precision,
        cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
        cudnn.deterministic,
        cudnn.benchmark,
    )
    try:
        matmul.fp32_precision = wanted
        cudnn.conv.fp32_precision = wanted  # type: ignore[attr-defined]
        cudnn.deterministic, cudnn.benchmark = True, False
        yield
    finally:
        matmul.fp32_precision = before[0]
        cudnn.conv.fp32_precision = before[1]  # type: ignore[attr-defined]
        cudnn.deterministic, cudnn.benchmark = before[2], before[3]
