"""PyTorch on CUDA with all kernels of a batch recorded once, and launched as one."""

from __future__ import annotations

import numpy as np
import torch

from featx.engines.base import CannotRunError, Work
from featx.engines.eager import EagerEngine, arithmetic
from featx.resampling import Windows

_WARM_UPS = 3  # as PyTorch's notes on CUDA graphs recommend, so that nothing is set up meanwhile


class CudaGraphEngine(EagerEngine):
    """Runs the eager engine's very kernels, without the time Python takes to launch each of them.

    Parameters
    ----------
    work, batch_size : as for `EagerEngine`; the device is CUDA's.

    Raises
    ------
    CannotRunError
        Not on CUDA, or the network does what a graph cannot hold.
    """

    name = "torch-cudagraph"

    def __init__(self, work: Work, *, batch_size: int = 128) -> None:
        if work.device.kind != "cuda":
            raise CannotRunError(f"CUDA graphs run on CUDA, not on {work.device.name}")
        super().__init__(work, batch_size=batch_size)
        self.concurrency = 1  # there is one recorded batch
        self._pixels = torch.zeros(
            (batch_size, *work.input_size, work.channels), dtype=torch.uint8, device=self.device
        )
        self._graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        on_device = torch.cuda.device(self.device)  # a graph is recorded on the current one
        with on_device, torch.inference_mode(), arithmetic(self.device, self.precision):
            try:
                with torch.cuda.stream(stream):
                    for _ in range(_WARM_UPS):
                        self._recorded()
                torch.cuda.current_stream(self.device).wait_stream(stream)
                with torch.cuda.graph(self._graph):
                    self._features_there = self._recorded()
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                words = (str(error).strip().splitlines() or ["RuntimeError"])[0]
                raise CannotRunError(f"it cannot be recorded: {words[:200]}") from error

    def __call__(self, pixels: np.ndarray | Windows) -> np.ndarray:
        assert len(pixels) == self.batch_size, f"{len(pixels)} images, not {self.batch_size}"
        with torch.cuda.device(self.device), torch.inference_mode():
            self._pixels.copy_(self._there(pixels))
            self._graph.replay()
            return self._features_there.cpu().numpy()

    def _recorded(self) -> torch.Tensor:
        return self._forward(self._normalise(self._pixels.permute(0, 3, 1, 2))).float()
