"""One linear layer trained by mini-batches: the last layer of a network, learnt anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, Literal

import numpy as np

from featx.heads.base import is_number, require
from featx.heads.network import NetworkHead
from featx.heads.training import Recipe, Trained

# PyTorch's default for Adam; for SGD with momentum 0.9 ten times that, as in PyTorch's
# transfer-learning tutorial less its decay.
_LR: Final = {"adam": 1e-3, "sgd": 1e-2}

# DINOv2's linear protocol (Oquab et al. 2023; --learning-rates of dinov2/eval/linear.py), without
# its factor of batch size / 256, which is meant for SGD.
LR_GRID: Final = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)


class LinearHead(NetworkHead):
    """One linear layer, cross-entropy, Adam or SGD, on standardised features.

    Rows are shuffled by seed in every epoch, the last partial batch included; the weights start
    at zero, and the epoch that is most accurate on validation rows (among equals, of the smallest
    loss) is kept. Several learning rates are trained side by side on the same batches, each to
    what it comes to alone, and the best of them is kept by the same measure.

    A float32 working copy of the rows is held where it fits: in half of a GPU's free memory, or
    in 2 GiB. Else windows of 256 MiB are read from X, of blocks of 64 rows from everywhere in it,
    and shuffled; rows of more than 256 MiB are shuffled in this way also where they are held, so
    that both give the same. With two classes `decision_function` is one column.

    Parameters
    ----------
    optimizer : {"adam", "sgd"}
    lr : float, sequence of float or "grid", optional
        Several are a grid; "grid" is `LR_GRID`, DINOv2's 13 values from 1e-5 to 0.1. None: 0.001
        for adam, 0.01 for sgd.
    schedule : {"constant", "cosine"}
        Of the learning rate: cosine lowers it to 0, step by step, over all epochs.
    epochs, batch_size : int
    weight_decay : float
        L2 penalty on the weights, not on the biases, as torch.optim's.
    momentum : float
        Of sgd.
    label_smoothing : float
        0 to 1, exclusive; in training only, the history holds the plain loss.
    patience : int, optional
        Stop after so many epochs without a better one; None: run all.
    validation_fraction : float
        Share of the training rows set aside to choose the epoch, where `fit` gets no X_val. They
        are not trained on, nor standardised by. 0: none, and the last epoch is kept.
    standardise : bool
    device : {"auto", "cpu", "cuda", "cuda:N", "mps"}
    precision : {None, "fp32", "tf32", "bf16", "fp16"}
        Of the training steps; None is fp32. Measuring and predicting are never below fp32.
    random_state : int

    Attributes
    ----------
    coefs_, intercepts_ : one (k, d) and one (k,) float32, in lists
    history_ : list of dict
        Of each epoch: epoch; train_loss, train_accuracy, the means over its steps, each measured
        before its update (with dropout, where there is any); val_loss, val_accuracy, measured
        after the epoch without dropout (None without validation rows).
    best_epoch_ : int, from 1
    lr_ : float
        The one kept.
    lr_results_ : list of dict
        Of each lr: lr, best_epoch, the val_loss and val_accuracy of that epoch, and diverged, the
        epoch in which the loss was no number any more, or None.
    lr_history_ : list of dict
        The rows of `history_` of every lr, with lr.
    device_ : str

    Examples
    --------
    >>> import numpy as np
    >>> X = np.repeat([[0.0], [1.0]], 20, axis=0)
    >>> LinearHead(epochs=5).fit(X, np.repeat([3, 7], 20)).predict([[0.1], [0.9]]).tolist()
    [3, 7]
    """

    FACTS: ClassVar[Mapping[str, str]] = {
        **NetworkHead.FACTS,
        "lr_": "number or null",
        "lr_results_": "rows or null",
        "lr_history_": "rows or null",
    }

    batch_size: int
    lr_: float
    lr_results_: list[dict[str, Any]]
    lr_history_: list[dict[str, Any]]

    def __init__(
        self,
        *,
        optimizer: Literal["adam", "sgd"] = "adam",
        lr: float | Sequence[float] | Literal["grid"] | None = None,
        schedule: Literal["constant", "cosine"] = "constant",
        epochs: int = 100,
        batch_size: int = 64,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        label_smoothing: float = 0.0,
        patience: int | None = None,
        validation_fraction: float = 0.1,
        standardise: bool = True,
        device: str = "auto",
        precision: str | None = None,
        random_state: int = 0,
    ) -> None:
        self.optimizer = optimizer
        self.lr = lr
        self.schedule = schedule
        self.epochs = epochs
        self.batch_size = batch_size
        self.weight_decay = weight_decay
        self.momentum = momentum
        self.label_smoothing = label_smoothing
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.standardise = standardise
        self.device = device
        self.precision = precision
        self.random_state = random_state

    def _n_networks(self) -> int:
        return len(self._lrs())

    def _recipe(self, sizes: tuple[int, ...], n: int, precision: str) -> Recipe:
        lrs = self._lrs()
        return Recipe(
            sizes=sizes,
            optimizer=self.optimizer,
            lrs=lrs,
            seeds=(self.random_state,) * len(lrs),
            epochs=self.epochs,
            batch_size=self.batch_size,
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            dropout=0.0,
            label_smoothing=self.label_smoothing,
            schedule=self.schedule,
            patience=self.patience,
            precision=precision,
        )

    def _lrs(self) -> tuple[float, ...]:
        if self.lr is None:
            return (_LR[self.optimizer],)
        if isinstance(self.lr, str):
            return LR_GRID
        return tuple(float(lr) for lr in np.atleast_1d(self.lr))

    def _candidate(self) -> tuple[str, dict[str, Any]]:
        params: dict[str, Any] = {"lr": self.lr_}
        if self.schedule == "cosine":  # fewer epochs would be another schedule
            params["epochs"] = self.epochs
        return f"lr {self.lr_:g}, " if len(self.lr_results_) > 1 else "", params

    def _record(self, trained: Trained) -> None:
        self.lr_ = trained.best.lr
        self.lr_results_ = [{"lr": one.lr, **one.result()} for one in trained.candidates]
        self.lr_history_ = [
            {"lr": one.lr, **row} for one in trained.candidates for row in one.history
        ]

    def _check_params(self) -> None:
        self._check_training_params()
        require(
            "lr",
            self.lr,
            lambda v: v is None or (isinstance(v, str) and v == "grid") or _are_rates(v),
            "a number above 0, several different ones, or grid",
        )
        require(
            "schedule",
            self.schedule,
            lambda v: v in ("constant", "cosine"),
            "'constant' or 'cosine'",
        )
        require("optimizer", self.optimizer, lambda v: v in ("adam", "sgd"), "'adam' or 'sgd'")
        for name in ("momentum", "label_smoothing"):
            require(
                name, getattr(self, name), lambda v: is_number(v) and 0 <= v < 1, "0 to below 1"
            )


def _are_rates(value: Any) -> bool:
    """One number above 0, or different ones in a sequence."""
    values = [value] if is_number(value) else list(value)
    return (
        len(set(values)) == len(values) > 0
        and not isinstance(value, (str, dict))
        and all(is_number(v) and v > 0 for v in values)
    )
