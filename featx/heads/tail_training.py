"""The loop that trains a tail, epoch by epoch, with a checkpoint after each."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from featx.errors import InputError
from featx.heads.base import IntArray
from featx.heads.tail_checkpoint import Checkpoint, optimizer_tensors, set_optimizer_tensors
from featx.heads.tail_network import Tail
from featx.heads.tail_rows import TailRows, batches_of
from featx.heads.training import Candidate, dtype_of, is_over, matmul_precision, note
from featx.weights import state_dict_sha256

Told = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class TailRecipe:
    """How a tail is trained; the parameters are described in TailHead."""

    optimizer: Literal["adamw", "sgd"]
    lr: float
    lr_ratio: float
    momentum: float
    weight_decay: float
    epochs: int
    batch_size: int
    schedule: Literal["constant", "cosine"]
    warmup: float
    label_smoothing: float
    patience: int | None
    precision: str
    seed: int


class Training:
    """A tail and all that changes while it is trained; `run` goes on from a checkpoint.

    Parameters
    ----------
    tail : on the device of the rows; trained in place.
    rows, y : to train on; (n,) int64 numbers of classes.
    val, y_val : to choose the epoch on; None: the last is kept.
    recipe : how.
    """

    def __init__(
        self,
        tail: Tail,
        rows: TailRows,
        y: IntArray,
        val: TailRows | None,
        y_val: IntArray,
        recipe: TailRecipe,
    ) -> None:
        self.tail, self.recipe = tail, recipe
        self.rows, self.y = rows, torch.from_numpy(y).to(rows.device)
        self.val, self.y_val = val, torch.from_numpy(y_val).to(rows.device)
        self.course = Candidate(recipe.lr, recipe.seed)
        self.best: dict[str, Tensor] = {}  # values of the best epoch, on the CPU
        self._optimizer = _optimizer(tail, recipe)
        is_fp16 = recipe.precision == "fp16" and rows.device.startswith("cuda")
        self._scaler = torch.amp.GradScaler("cuda", enabled=is_fp16)

    def run(self, checkpoint: Checkpoint | None = None, told: Told | None = None) -> None:
        """Train to the end, from the first epoch or the one after the checkpoint's.

        Raises
        ------
        InputError
            The loss is no number any more.
        """
        with _arithmetic(self.recipe.precision):
            self._run(checkpoint, told)

    def digest(self, settings: Mapping[str, Any]) -> str:
        """Of all that decides its bits: settings, starting values, labels and every row."""
        told = {
            "settings": dict(settings),
            "device": self.rows.device,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "start": state_dict_sha256(self.tail.values()),
            "shape": self.rows.shape,
        }
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
        for rows, y in ((self.rows, self.y), (self.val, self.y_val)):
            digest.update(y.cpu().numpy().astype("<i8").tobytes())
            if rows is not None:
                digest.update(rows.rows.astype("<i8").tobytes())
                rows.add_to(digest)
        return digest.hexdigest()

    def _run(self, checkpoint: Checkpoint | None, told: Told | None) -> None:
        if checkpoint is not None:
            self._go_on_from(checkpoint)
        course, recipe = self.course, self.recipe
        while len(course.history) < recipe.epochs and not is_over(course, recipe.patience):
            epoch = len(course.history) + 1
            trained, measured = self._train_epoch(epoch), self._measure()
            note(course, epoch, *trained, *measured, finite=self._is_finite())
            if course.diverged:
                raise InputError(
                    f"training diverged (the loss is no number any more: lr {recipe.lr:g} in "
                    f"epoch {epoch}): lower lr"
                )
            if course.best_epoch == epoch:
                self.best = {name: v.to("cpu", copy=True) for name, v in self.tail.values().items()}
            if checkpoint is not None:
                self._keep(checkpoint)
            if told is not None:
                told(course.history[-1])

    def _train_epoch(self, epoch: int) -> tuple[float, float]:
        """Go through all rows once: mean loss and accuracy on the way, in training mode."""
        recipe, device = self.recipe, self.rows.device
        dtype = dtype_of(recipe.precision)
        kind = device.partition(":")[0]
        losses, right = [], []
        with _drawn_from(recipe.seed, epoch, device) as generator:
            self.tail.train()
            batches = batches_of(len(self.rows), recipe.batch_size, generator)
            factors = _factors(recipe, len(batches), epoch)
            for positions, factor in zip(batches, factors, strict=True):
                x = self.rows.batch(positions, generator)
                y = self.y[torch.from_numpy(positions).to(device)]
                for group in self._optimizer.param_groups:
                    group["lr"] = recipe.lr * group["rate"] * factor
                with torch.autocast(kind, dtype, enabled=dtype != torch.float32):
                    logits = self._trained_on(x)
                logits = logits.float()
                loss = F.cross_entropy(logits, y, label_smoothing=recipe.label_smoothing)
                self._optimizer.zero_grad()
                self._scaler.scale(loss).backward()
                self._scaler.step(self._optimizer)
                self._scaler.update()
                logits = logits.detach()
                losses.append(F.cross_entropy(logits, y, reduction="sum"))
                right.append((logits.argmax(dim=1) == y).sum())
        self.tail.eval()
        return _mean(losses, len(self.y)), _mean(right, len(self.y))

    def _trained_on(self, x: Tensor) -> Tensor:
        """Logits (b, k) in training mode."""
        try:
            logits: Tensor = self.tail(x)
        except ValueError as why:  # of BatchNorm that learns, from one value a channel
            raise InputError(
                f"a batch of {len(x)} cannot be trained on ({why}): give a larger --batch-size, or "
                "--batchnorm frozen"
            ) from why
        return logits

    def _measure(self) -> tuple[float | None, float | None]:
        """Loss and accuracy on the validation rows, in evaluation mode and fp32."""
        if self.val is None:
            return None, None
        losses, right = [], []
        for part, logits in logits_of(self.tail, self.val, self.recipe.batch_size):
            losses.append(F.cross_entropy(logits, self.y_val[part], reduction="sum"))
            right.append((logits.argmax(dim=1) == self.y_val[part]).sum())
        return _mean(losses, len(self.y_val)), _mean(right, len(self.y_val))

    def _is_finite(self) -> bool:
        return all(bool(torch.isfinite(value).all()) for value in self.tail.values().values())

    def _keep(self, checkpoint: Checkpoint) -> None:
        tensors = {f"now.{name}": value for name, value in self.tail.values().items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        tensors |= optimizer_tensors(self._optimizer)
        course = self.course
        checkpoint.write(
            {
                "history": course.history,
                "best_epoch": course.best_epoch,
                "scaler": self._scaler.state_dict(),
            },
            tensors,
        )

    def _go_on_from(self, checkpoint: Checkpoint) -> None:
        kept = checkpoint.read()
        if kept is None:
            return
        state, tensors = kept
        course = self.course
        for row in state["history"]:  # told anew, so that best epoch and score follow from it
            note(course, *row.values(), finite=True)
        assert course.best_epoch == state["best_epoch"]
        values = self.tail.values()
        self.best = {name: tensors[f"best.{name}"] for name in values}
        self.tail.set_values({name: tensors[f"now.{name}"] for name in values})
        set_optimizer_tensors(self._optimizer, tensors)
        self._scaler.load_state_dict(state["scaler"])


@torch.inference_mode()
def logits_of(tail: Tail, rows: TailRows, batch_size: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield (positions, logits (b, k) float32) of a tail in evaluation mode, in fp32.

    Every batch has the same shape, the last one filled with zeros, so that what a row gets does
    not depend on how many there are.
    """
    for part, x in rows.blocks(batch_size):
        n = len(x)
        if n < batch_size:
            x = torch.cat([x, x.new_zeros((batch_size - n, *x.shape[1:]))])
        with _arithmetic("fp32"):
            logits = tail(x)
        yield part, logits[:n]


def _optimizer(tail: Tail, recipe: TailRecipe) -> torch.optim.Optimizer:
    """Parameters of one rate are a group; biases, and scales of norms, do not decay."""
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for parameter, rate in tail.rates(recipe.lr_ratio):
        decay = recipe.weight_decay if parameter.ndim > 1 else 0.0
        group = groups.setdefault((rate, decay), {"params": [], "rate": rate})
        group["weight_decay"] = decay
        group["params"].append(parameter)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups.values(), lr=recipe.lr, momentum=recipe.momentum)
    return torch.optim.AdamW(groups.values(), lr=recipe.lr)


def _factors(recipe: TailRecipe, n_steps: int, epoch: int) -> Iterator[float]:
    """What the rates are multiplied by in each step of an epoch: up from 0, then 1 or a cosine."""
    total = recipe.epochs * n_steps
    rising = round(recipe.warmup * total)
    for step in range((epoch - 1) * n_steps, epoch * n_steps):
        if step < rising:
            yield (step + 1) / rising
        elif recipe.schedule == "cosine":
            yield (1 + math.cos(math.pi * (step - rising) / (total - rising))) / 2
        else:
            yield 1.0


@contextmanager
def _arithmetic(precision: str) -> Iterator[None]:
    """On CUDA fp32 means fp32, in convolutions too, and tf32 only where asked for; restored."""
    flags = {"enabled": True, "benchmark": False, "deterministic": True}
    allow_tf32 = precision == "tf32"
    with torch.backends.cudnn.flags(**flags, allow_tf32=allow_tf32), matmul_precision(precision):
        yield


@contextmanager
def _drawn_from(seed: int, epoch: int, device: str) -> Iterator[torch.Generator]:
    """Inside, PyTorch's generators start from seed and epoch; also gives one for the rows.

    So an epoch draws the same whether those before it ran in the same process or not.
    """
    order, rest = np.random.SeedSequence((seed, epoch)).generate_state(2, np.uint64) >> np.uint64(1)
    devices = [device] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(int(rest))
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(int(rest))
        yield torch.Generator().manual_seed(int(order))


def _mean(sums: Sequence[Tensor], n: int) -> float:
    return float(torch.stack(list(sums)).double().sum()) / n
