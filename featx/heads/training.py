"""The one loop that trains small networks, side by side, on feature rows by mini-batches."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import torch
from torch import Tensor

from featx.errors import InputError
from featx.heads.rows import Rows, window_lengths
from featx.heads.stack import Dropout, Stack, Update, cross_entropy

_LEAST_BATCH: Final = 64
_LARGEST_BATCH: Final = 1024
_LEAST_STEPS: Final = 16  # of an epoch
_EVALUATION_ROWS: Final = 4096
_EVALUATION_VALUES: Final = 1 << 24  # of one layer's output, in all networks together
_DTYPES: Final = {"bf16": torch.bfloat16, "fp16": torch.float16}


def dtype_of(precision: str) -> torch.dtype:
    """What a precision rounds the factors of matrix products to."""
    return _DTYPES.get(precision, torch.float32)


def batch_size_of(n: int) -> int:
    """The batch size that n rows are trained in: 64, doubled while an epoch keeps 16 steps.

    At most 1024. Matrix products of few rows are slow, and so is what each step does besides.
    """
    batch_size = _LEAST_BATCH
    while batch_size < _LARGEST_BATCH and n >= 2 * batch_size * _LEAST_STEPS:
        batch_size *= 2
    return batch_size


def learning_rate_of(batch_size: int) -> float:
    """Adam's usual 0.001 in batches of 64, and for others by the square root.

    So an epoch comes to the same in fewer steps (Malladi et al. 2022, "On the SDEs and scaling
    rules for adaptive gradient algorithms").
    """
    return 1e-3 * math.sqrt(batch_size / _LEAST_BATCH)


@dataclass(frozen=True)
class Recipe:
    """How networks are trained; the parameters are described in LinearHead and MLPHead.

    `lrs` and `seeds` have one value for each network. Networks of one seed see the same batches.
    """

    sizes: tuple[int, ...]
    optimizer: Literal["adam", "adamw", "sgd"]
    lrs: tuple[float, ...]
    seeds: tuple[int, ...]
    epochs: int
    batch_size: int
    weight_decay: float
    momentum: float
    dropout: float
    label_smoothing: float
    schedule: Literal["constant", "cosine"]
    patience: int | None
    precision: str

    @property
    def dtype(self) -> torch.dtype:
        """What the factors of matrix products are rounded to."""
        return dtype_of(self.precision)


@dataclass(eq=False)
class Candidate:
    """One of the networks, and how it went.

    `best_epoch` is the one most accurate on validation rows, among equals of the smallest loss;
    without them the last; its weights (n_out, n_in) and biases (n_out,) are kept. `diverged` is
    the epoch whose loss or weights were no numbers any more: then it is not chosen.
    """

    lr: float
    seed: int
    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    score: tuple[float, float] = (-math.inf, -math.inf)
    diverged: int | None = None
    weights: list[Tensor] = field(default_factory=list)
    biases: list[Tensor] = field(default_factory=list)

    def result(self) -> dict[str, Any]:
        """What it came to, in JSON's types; None for what a network that diverged lacks."""
        best = self.history[self.best_epoch - 1] if self.best_epoch else {}
        return {
            "best_epoch": best.get("epoch"),
            "val_loss": best.get("val_loss"),
            "val_accuracy": best.get("val_accuracy"),
            "diverged": self.diverged,
        }


@dataclass(frozen=True)
class Trained:
    """Every candidate, and which is the best."""

    candidates: list[Candidate]
    best: Candidate


def train(rows: Rows, val: Rows | None, recipe: Recipe) -> Trained:
    """Train all networks; the best is the first of the highest score on `val`.

    Rows that are streamed are read in the order of one seed, so that networks of several seeds
    are then trained one after the other, each as it would be beside the others.

    Raises
    ------
    InputError
        Every network diverged.
    """
    candidates = [Candidate(*pair) for pair in zip(recipe.lrs, recipe.seeds, strict=True)]
    together = [candidates]
    if rows.held is None and len(set(recipe.seeds)) > 1:
        together = [[candidate] for candidate in candidates]
    for group in together:
        _train_side_by_side(rows, val, recipe, group)
    _tell_diverged(candidates)
    left = [candidate for candidate in candidates if not candidate.diverged]
    return Trained(candidates, max(left, key=lambda candidate: candidate.score))


@torch.inference_mode()
def _train_side_by_side(
    rows: Rows, val: Rows | None, recipe: Recipe, running: list[Candidate]
) -> None:
    device, seeds = rows.y.device, [candidate.seed for candidate in running]
    orders = [torch.Generator().manual_seed(seed) for seed in seeds]
    stack = Stack.drawn(recipe.sizes, orders, str(device))
    if len(set(seeds)) == 1:
        orders = orders[:1]  # the same batches for all
    lrs = [candidate.lr for candidate in running]
    decay, momentum = recipe.weight_decay, recipe.momentum
    update = Update(stack, recipe.optimizer, lrs, weight_decay=decay, momentum=momentum)
    dropout = Dropout(recipe.dropout, recipe.sizes[1:-1], seeds) if recipe.dropout else None
    factors = _schedule(recipe, len(rows))
    for epoch in range(1, recipe.epochs + 1):
        batches = rows.batches(recipe.batch_size, orders)
        measured = _train_epoch(stack, update, batches, recipe, dropout, factors)
        unknown: list[list[Any]] = [[None] * len(running)] * 2
        measured += unknown if val is None else _evaluate(stack, val)
        finite = stack.finite().tolist()
        for i, candidate in enumerate(running):
            note(candidate, epoch, *(column[i] for column in measured), finite=finite[i])
            if candidate.best_epoch == epoch:
                candidate.weights, candidate.biases = stack.network(i)
        going_on = [
            i for i, candidate in enumerate(running) if not is_over(candidate, recipe.patience)
        ]
        if not going_on:
            break
        if len(going_on) < len(running):
            running = [running[i] for i in going_on]
            stack = stack.only(going_on)
            update.only(going_on, stack)
            if len(orders) > 1:
                orders = [orders[i] for i in going_on]
            if dropout is not None:
                dropout.only(going_on)


def _train_epoch(
    stack: Stack,
    update: Update,
    batches: Iterable[tuple[Tensor, Tensor]],
    recipe: Recipe,
    dropout: Dropout | None,
    factors: Iterator[float],
) -> list[list[float]]:
    """Go through all batches once: mean loss and accuracy of each network on the way."""
    dtype = recipe.dtype
    losses, right, n = [], [], 0
    for x, y in batches:  # (b, d), (b,) or (g, b, d), (g, b)
        units = [] if dropout is None else dropout.units(x.device)
        trained = stack.thinned(units) if units else stack
        logits, inputs = trained.forward(x, dtype=dtype)  # (g, b, k)
        loss, delta = cross_entropy(logits, y, recipe.label_smoothing)  # (g, b), (g, b, k)
        trained.backward(inputs, delta, dtype=dtype)
        if units:
            stack.take_gradients(trained, units)
        update.step(next(factors))
        losses.append(loss.sum(dim=1))
        right.append((logits.argmax(dim=2) == y).sum(dim=1))
        n += logits.shape[1]
    return [_mean(losses, n), _mean(right, n)]


def is_over(candidate: Candidate, patience: int | None) -> bool:
    """Whether it diverged, or has waited too long for a better epoch."""
    if candidate.diverged:
        return True
    waited = len(candidate.history) - candidate.best_epoch
    return patience is not None and waited >= patience


def note(
    candidate: Candidate,
    epoch: int,
    train_loss: float,
    train_accuracy: float,
    val_loss: float | None,
    val_accuracy: float | None,
    *,
    finite: bool,
) -> None:
    """Write down how an epoch went."""
    if not (finite and math.isfinite(train_loss) and math.isfinite(val_loss or 0.0)):
        candidate.diverged, candidate.best_epoch = epoch, 0
        return
    candidate.history.append(
        {
            "epoch": epoch,
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
        }
    )
    if val_loss is None or val_accuracy is None:
        candidate.best_epoch = epoch
    elif (val_accuracy, -val_loss) > candidate.score:
        candidate.best_epoch, candidate.score = epoch, (val_accuracy, -val_loss)


def _tell_diverged(candidates: Sequence[Candidate]) -> None:
    """Name the networks that diverged; InputError where none is left."""
    lost = [candidate for candidate in candidates if candidate.diverged]
    if not lost:
        return
    by_seed = len({candidate.seed for candidate in candidates}) > 1
    told = ", ".join(
        (f"seed {one.seed}" if by_seed else f"lr {one.lr:g}") + f" in epoch {one.diverged}"
        for one in lost
    )
    if len(lost) == len(candidates):
        raise InputError(f"training diverged (the loss is no number any more: {told}): lower lr")
    warnings.warn(
        f"training diverged and was left out of the choice: {told}; a lower lr is steadier",
        stacklevel=4,
    )


def _schedule(recipe: Recipe, n: int) -> Iterator[float]:
    """What the rates are multiplied by in each step: 1, or half a cosine from 1 to 0."""
    per_window = (math.ceil(m / recipe.batch_size) for m in window_lengths(n, recipe.sizes[0]))
    n_steps = recipe.epochs * sum(per_window)
    for step in range(n_steps):
        is_cosine = recipe.schedule == "cosine"
        yield (1 + math.cos(math.pi * step / n_steps)) / 2 if is_cosine else 1.0


def _mean(sums: list[Tensor], n: int) -> list[float]:
    """Sums (g,) of every step -> their means over n rows."""
    return (torch.stack(sums).cpu().double().sum(dim=0) / n).tolist()


def _evaluate(stack: Stack, rows: Rows) -> list[list[float]]:
    """Mean cross-entropy and accuracy of every network, in eval mode and fp32."""
    widest = sum(weight.shape[0] * weight.shape[1] for weight in stack.weights)
    losses, right = [], []
    for x, y in rows.blocks(max(1, min(_EVALUATION_ROWS, _EVALUATION_VALUES // widest))):
        with matmul_precision("fp32"):
            logits, _ = stack.forward(x)
        loss, _ = cross_entropy(logits, y, 0.0)
        losses.append(loss.sum(dim=1))
        right.append((logits.argmax(dim=2) == y).sum(dim=1))
    return [_mean(losses, len(rows)), _mean(right, len(rows))]


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
