"""The reference engine: PyTorch, one operation after another, no gradients."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Final

import numpy as np
import torch

from featx.device_resize import resized
from featx.engines.base import Work
from featx.engines.folding import folded
from featx.resampling import Windows

_RESIZING: Final = frozenset({"cuda"})  # elsewhere the cores that would decode compute as well
_AUTOCAST: Final = {"bf16": torch.bfloat16, "fp16": torch.float16}


class EagerEngine:
    """Runs a network eagerly on one device, in channels-last layout, which convolutions prefer.

    On CUDA two calls may be under way at once, each on a stream of its own, so that the pixels of
    one batch travel while the other is computed.

    Parameters
    ----------
    work : what it is to do. ``fp32`` is IEEE single precision on every device: TF32, which cuDNN
        would use for convolutions unasked, is switched off meanwhile.
    batch_size : images per call.
    fold : let convolutions take in the BatchNorm after them, see `featx.engines.folding`.
    """

    name = "torch-eager"

    def __init__(self, work: Work, *, batch_size: int = 16, fold: bool = True) -> None:
        self.device = torch.device(work.device.name)
        self.precision = work.precision
        self.batch_size = batch_size
        self.concurrency = 2 if self.device.type == "cuda" else 1
        self.resizes = self.device.type in _RESIZING
        self._normalise = work.normalise
        front = folded(work.front.eval()) if fold else work.front.eval()
        self._front = front.to(self.device).to(memory_format=torch.channels_last)
        self._streams: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(self.concurrency):
            is_cuda = self.device.type == "cuda"
            self._streams.put(torch.cuda.Stream(self.device) if is_cuda else None)
        blank = np.zeros((1, *work.input_size, work.channels), np.uint8)
        self.feature_shape: tuple[int, ...] = tuple(self._features(blank).shape[1:])
        if self.device.type == "cuda":  # what was done on the default stream is there for all
            torch.cuda.synchronize(self.device)

    def __call__(self, pixels: np.ndarray | Windows) -> np.ndarray:
        assert len(pixels) == self.batch_size, f"{len(pixels)} images, not {self.batch_size}"
        stream = self._streams.get()
        try:
            with torch.cuda.stream(stream) if stream is not None else nullcontext():
                return self._features(pixels).cpu().numpy()
        finally:
            self._streams.put(stream)

    def _features(self, pixels: np.ndarray | Windows) -> torch.Tensor:
        with torch.inference_mode():
            # (n, h, w, c) seen as (n, c, h, w) is channels-last already: no copy
            batch = self._there(pixels).permute(0, 3, 1, 2)
            with arithmetic(self.device, self.precision):
                return self._forward(self._normalise(batch)).float()

    def _there(self, pixels: np.ndarray | Windows) -> torch.Tensor:
        """(n, h, w, c) uint8 on the device, on CUDA on its way there."""
        if isinstance(pixels, Windows):
            return resized(pixels, self.device)
        batch = torch.from_numpy(pixels)
        if self.device.type == "cuda":
            batch = batch.pin_memory()
        return batch.to(self.device, non_blocking=True)

    def _forward(self, images: torch.Tensor) -> torch.Tensor:
        """Normalised images (n, c, h, w) to features, in whatever type the precision gives."""
        features: torch.Tensor = self._front(images)
        return features


@contextmanager
def arithmetic(device: torch.device, precision: str) -> Iterator[None]:
    """Compute in `precision`, with deterministic algorithms, inside the block."""
    autocast: Any = nullcontext()
    if precision in _AUTOCAST:
        autocast = torch.autocast(device.type, dtype=_AUTOCAST[precision])
    with _cuda_settings(precision), autocast:
        yield


_lock = threading.Lock()
_held: list[tuple[Any, ...]] = []  # PyTorch's own settings, while ours are in force
_n_users = 0


@contextmanager
def _cuda_settings(precision: str) -> Iterator[None]:
    """Switch CUDA's TF32 on or off, and cuDNN to its deterministic algorithms, for one block.

    They are settings of the process. Threads that overlap, all of one precision, share one
    change, and the last one out puts back what was there.
    """
    global _n_users
    if not torch.cuda.is_available():
        yield
        return
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    with _lock:
        if not _n_users:
            _held.append(
                (matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark)
            )
            # not by `fp32_precision`: after that PyTorch's compiler refuses to look at these
            matmul.allow_tf32 = cudnn.allow_tf32 = precision == "tf32"
            cudnn.deterministic, cudnn.benchmark = True, False
        _n_users += 1
    try:
        yield
    finally:
        with _lock:
            _n_users -= 1
            if not _n_users:
                matmul.allow_tf32, cudnn.allow_tf32, *others = _held.pop()
                cudnn.deterministic, cudnn.benchmark = others
