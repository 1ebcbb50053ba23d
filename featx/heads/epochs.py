"""The base of the heads that are trained in epochs: which one is kept, and on which rows."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from featx.counting import counted
from featx.errors import InputError
from featx.folds import cross_validation_folds
from featx.heads.base import Choice, Head, IntArray, check_common, is_number, is_whole, require


class EpochsHead(Head):
    """A head that is trained in epochs, of which the best on validation rows is kept.

    Its `fit` takes `rows` and `val_rows`, which rows of X to train on and to choose on, and reads
    them as they are needed.
    """

    FACTS: ClassVar[Mapping[str, str]] = {
        "best_epoch_": "count",
        "n_set_aside_": "count",
        "history_": "rows",
        "device_": "text",
    }

    best_epoch_: int
    n_set_aside_: int  # training rows that chose the epoch instead of being trained on
    history_: list[dict[str, Any]]
    # Parameters that all of them have.
    batch_size: int | None
    device: str
    epochs: int
    patience: int | None
    precision: str | None
    random_state: int
    validation_fraction: float
    weight_decay: float

    @abstractmethod
    def fit(
        self, X: Any, y: Any, *, groups: Any = None, rows: Any = None, val_rows: Any = None
    ) -> Self:
        """Train on rows of X, and keep the epoch that does best on validation rows."""

    def choice(self, n_val: int = 0) -> Choice:
        """The epoch: of `n_val` validation rows, of rows set aside, or the last."""
        if n_val:
            on = counted(n_val, "val image")
        elif self.n_set_aside_:
            on = f"{self.n_set_aside_:,} of the training images, set aside"
        else:
            on = "nothing: the last epoch is kept"
        accuracy = self.history_[self.best_epoch_ - 1]["val_accuracy"]
        name, params = self._candidate()
        alone = {"epochs": self.best_epoch_, "patience": None, "validation_fraction": 0.0}
        params = alone | params
        return Choice(f"{name}epoch {self.best_epoch_}", on, accuracy, params)

    @abstractmethod
    def _candidate(self) -> tuple[str, dict[str, Any]]:
        """Which network was kept: in words (empty where there was but one), and as parameters."""

    def _set_aside(self, y: IntArray, groups: Any, n_networks: int) -> tuple[IntArray, IntArray]:
        """Places of labels to train on, and of those to choose the epoch on."""
        everything = np.arange(len(y))
        if not self.validation_fraction:
            if n_networks == 1:
                return everything, everything[:0]
            raise InputError(
                f"validation_fraction is 0, so nothing can choose among {n_networks} networks: "
                "give X_val and y_val, or train one"
            )
        n_folds = max(2, round(1 / self.validation_fraction))
        try:
            folds = cross_validation_folds(
                y, n_folds=n_folds, groups=groups, seed=self.random_state
            )
            return _without_loss(folds, len(y), groups)
        except InputError as why:
            if n_networks > 1:
                raise InputError(
                    f"no rows could be set aside to choose among {n_networks} networks ({why}): "
                    "give X_val and y_val, or train one"
                ) from why
            warnings.warn(
                f"no rows could be set aside to choose the epoch ({why}); the last one is kept",
                stacklevel=3,
            )
            return everything, everything[:0]

    @staticmethod
    def _is_batch_size(value: Any) -> bool:
        return is_whole(value, 1)

    def _check_training_params(self) -> None:
        check_common(self)
        require("epochs", self.epochs, lambda v: is_whole(v, 1), "a whole number above 0")
        require("batch_size", self.batch_size, self._is_batch_size, "a whole number above 0")
        require("weight_decay", self.weight_decay, lambda v: is_number(v) and v >= 0, "0 or more")
        require(
            "patience",
            self.patience,
            lambda v: v is None or is_whole(v, 1),
            "a whole number of epochs above 0, or None",
        )
        require(
            "validation_fraction",
            self.validation_fraction,
            lambda v: is_number(v) and 0 <= v <= 0.5,
            "a fraction from 0 to 0.5",
        )
        require(
            "precision",
            self.precision,
            lambda v: v is None or v in ("fp32", "tf32", "bf16", "fp16"),
            "fp32, tf32, bf16 or fp16",
        )


def _without_loss(
    folds: Sequence[tuple[IntArray, IntArray]], n: int, groups: Any
) -> tuple[IntArray, IntArray]:
    """Rows to train on and to set aside, of a fold in which every class is trained on.

    A fold whose validated rows would hold the whole of a class leaves that class out of both of
    its parts; another fold is taken then. Where all do so, those rows are trained on, and with
    them the groups they are in.
    """
    kept, aside = max(folds, key=lambda fold: len(fold[0]) + len(fold[1]))  # the first such
    lost = np.setdiff1d(np.arange(n), np.concatenate([kept, aside]))
    if len(lost) and groups is not None:
        there = np.asarray(groups)
        aside = aside[~np.isin(there[aside], there[lost][there[lost] >= 0])]
    if not len(aside):
        raise InputError("every group that could be has a class of its own")
    return np.setdiff1d(np.arange(n), aside), aside
