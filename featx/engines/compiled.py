"""PyTorch with its compiler: fused kernels instead of one operation after another."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from featx.engines.base import CannotRunError, Work
from featx.engines.eager import EagerEngine


class CompiledEngine(EagerEngine):
    """Runs a network through `torch.compile`, whose kernels PyTorch keeps on the disk by itself.

    The compiler's fixed choices, never its timed ones (``max-autotune``): the same command on the
    same machine gives the same bits. It needs a C++ compiler on the CPU and Triton on CUDA.

    Parameters
    ----------
    work, batch_size : as for `EagerEngine`.

    Raises
    ------
    CannotRunError
        The compiler is not there, or does not take the network.
    """

    name = "torch-compiled"

    def __init__(self, work: Work, *, batch_size: int = 16) -> None:
        self._compiled: Any = None  # until the shape of the features is known
        super().__init__(work, batch_size=batch_size)
        self.concurrency = 1  # compiled kernels are launched too quickly for a second to gain
        self._compiled = torch.compile(self._front, dynamic=False, fullgraph=True)
        blank = torch.zeros(
            (batch_size, *work.input_size, work.channels), dtype=torch.uint8
        ).numpy()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the compiler's own internals
                self(blank)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            words = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise CannotRunError(f"torch.compile does not take it: {words[:200]}") from error

    def _forward(self, images: torch.Tensor) -> torch.Tensor:
        run = self._front if self._compiled is None else self._compiled
        features: torch.Tensor = run(images)
        return features
