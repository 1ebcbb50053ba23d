"""The one loop that trains a small network on feature rows by mini-batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from featx.errors import InputError
from featx.heads.base import FloatArray, IntArray, standardised_blocks

_WORKING_COPY_BYTES: Final = 2 << 30  # rows up to this size are held, standardised, on the device
_EVALUATION_ROWS: Final = 4096
_AUTOCAST: Final = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; the parameters are described in LinearHead and MLPHead."""

    optimizer: Literal["adam", "adamw", "sgd"]
    lr: float
    epochs: int
    batch_size: int
    weight_decay: float
    momentum: float
    label_smoothing: float
    patience: int | None
    precision: str


class Dropout(nn.Module):
    """nn.Dropout (Srivastava et al. 2014) that draws from its own generator, not torch's."""

    def __init__(self, rate: float, generator: torch.Generator) -> None:
        super().__init__()
        self.rate, self.generator = rate, generator

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.rate:
            return x
        kept = torch.empty_like(x).bernoulli_(1 - self.rate, generator=self.generator)
        return x * kept / (1 - self.rate)


@dataclass(frozen=True)
class Rows:
    """Standardised float32 rows on the device: a working copy, or gathered for each batch."""

    X: npt.NDArray[Any]
    rows: IntArray  # which rows of X
    y: Tensor  # (n,) int64, of these rows, on the device
    mean: FloatArray
    scale: FloatArray
    held: Tensor | None

    @classmethod
    def of(
        cls,
        X: npt.NDArray[Any],
        y: IntArray,
        rows: IntArray,
        mean: FloatArray,
        scale: FloatArray,
        device: str,
    ) -> Self:
        """Rows `rows` of X; held on the device if their float32 copy is 2 GiB or less."""
        held = None
        if 4 * len(rows) * X.shape[1] <= _WORKING_COPY_BYTES:
            held = torch.empty((len(rows), X.shape[1]), device=device)
            for part, block in standardised_blocks(X, mean, scale, rows):
                held[part] = torch.from_numpy(block.astype(np.float32)).to(device)
        return cls(X, rows, torch.from_numpy(y[rows]).to(device), mean, scale, held)

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, which: Tensor) -> tuple[Tensor, Tensor]:
        """Rows by position, (b,) on the CPU -> (b, d) float32, (b,) int64."""
        y = self.y[which.to(self.y.device)]
        if self.held is not None:
            return self.held[which.to(self.y.device)], y
        rows = self.rows[which.numpy()]
        blocks = [b for _, b in standardised_blocks(self.X, self.mean, self.scale, rows)]
        return torch.from_numpy(np.concatenate(blocks).astype(np.float32)).to(self.y.device), y


def train(
    network: nn.Sequential, rows: Rows, val: Rows | None, recipe: Recipe, generator: torch.Generator
) -> tuple[int, list[dict[str, Any]]]:
    """Train in place and leave the weights of the best epoch: (its number, the history).

    The best epoch is the one most accurate on `val`, among equals the one of the smallest loss;
    without `val` the last.
    """
    device = rows.y.device
    optimizer = _optimizer(network, recipe)
    scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
    history: list[dict[str, Any]] = []
    best_epoch, best_score, best_weights = 0, (-np.inf, -np.inf), _weights(network)
    for epoch in range(1, recipe.epochs + 1):
        network.train()
        order = torch.randperm(len(rows), generator=generator)  # the last partial batch included
        for which in order.split(recipe.batch_size):
            x, y = rows.batch(which)  # (b, d), (b,)
            with _autocast(device, recipe.precision):
                logits = network(x)  # (b, k)
            loss = nn.functional.cross_entropy(
                logits.float(), y, label_smoothing=recipe.label_smoothing
            )
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        history.append(_measure(network, epoch, rows, val))
        score = _score(history[-1])
        if score > best_score or val is None:
            best_epoch, best_score, best_weights = epoch, score, _weights(network)
        if recipe.patience is not None and epoch - best_epoch >= recipe.patience:
            break
    with torch.no_grad():
        for weight, best in zip(network.parameters(), best_weights, strict=True):
            weight.copy_(best)
    return best_epoch, history


def _measure(network: nn.Sequential, epoch: int, rows: Rows, val: Rows | None) -> dict[str, Any]:
    train_loss, train_accuracy = _evaluate(network, rows)
    val_loss, val_accuracy = (None, None) if val is None else _evaluate(network, val)
    if not np.isfinite([train_loss, val_loss or 0.0]).all():
        raise InputError(f"training diverged in epoch {epoch} (the loss is {train_loss}): lower lr")
    return {
        "epoch": epoch,
        "train_loss": train_loss,
        "train_accuracy": train_accuracy,
        "val_loss": val_loss,
        "val_accuracy": val_accuracy,
    }


def _score(measured: Mapping[str, Any]) -> tuple[float, float]:
    if measured["val_loss"] is None:
        return -np.inf, -np.inf
    return measured["val_accuracy"], -measured["val_loss"]


@torch.no_grad()
def _evaluate(network: nn.Sequential, rows: Rows) -> tuple[float, float]:
    """Mean cross-entropy and accuracy, in eval mode and fp32."""
    network.eval()
    loss = torch.zeros((), dtype=torch.float64)
    right = 0
    for which in torch.arange(len(rows)).split(_EVALUATION_ROWS):
        x, y = rows.batch(which)
        logits = network(x)
        loss += nn.functional.cross_entropy(logits, y, reduction="sum").double().cpu()
        right += int((logits.argmax(dim=1) == y).sum())
    return float(loss) / len(rows), right / len(rows)


def _optimizer(network: nn.Sequential, recipe: Recipe) -> torch.optim.Optimizer:
    parameters = list(network.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},  # biases
    ]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum)
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=recipe.lr)


def _weights(network: nn.Sequential) -> list[Tensor]:
    return [p.detach().clone() for p in network.parameters()]


def _autocast(device: torch.device, precision: str) -> torch.autocast:
    dtype = _AUTOCAST.get(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """fp32 means fp32 on CUDA, and tf32 only where asked for; restored after."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before
