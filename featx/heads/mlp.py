"""A multi-layer perceptron: for features in which the classes are not linearly separable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from featx.heads.base import is_number, is_whole, require
from featx.heads.network import NetworkHead
from featx.heads.rows import window_lengths
from featx.heads.training import Recipe, Trained, batch_size_of, learning_rate_of


class MLPHead(NetworkHead):
    """Linear layers with ReLU and dropout between, cross-entropy, AdamW, early stopping.

    Trained by the same loop as LinearHead, on standardised features: rows shuffled by seed, the
    last partial batch included, the epoch kept that is most accurate on validation rows (among
    equals, of the smallest loss). No batch normalisation: a row's answer depends on no other row.

    Several seeds are trained side by side, each to what it comes to alone (on the same training
    and validation rows), and the best is kept by the same measure; which of them is best on few
    validation rows is partly luck, and `seed_results_` shows how far they lie apart.

    Parameters
    ----------
    hidden : sequence of int
        Sizes of the hidden layers, at least one.
    dropout : float
        Share of each layer's hidden units that a training step leaves out, 0 to below 1; the same
        units for all rows of its batch (Graham et al. 2015), so that 0.5 halves the work. As many
        whole units as come nearest to it; one always stays.
    lr : float, optional
        None: 0.001 for batches of 64, and for others by the square root (`learning_rate_of`).
    epochs : int
    batch_size : int, optional
        None: 64, and from 2,048 rows on the largest power of two that leaves an epoch 16
        steps, up to 1,024 (`batch_size_of`); of the rows in a window, where there are several.
    weight_decay : float
        Decoupled (Loshchilov & Hutter 2019), on the weights, not on the biases.
    patience : int, optional
        Stop after so many epochs without a better one; None: run all.
    n_seeds : int
        Networks to train, from the seeds random_state, random_state + 1, ...; rows are set aside
        by random_state for all.
    label_smoothing, validation_fraction, standardise, device, precision, random_state
        As in LinearHead.

    Attributes
    ----------
    coefs_, intercepts_ : lists of (n_out, n_in) and (n_out,) float32, one a layer
    history_, best_epoch_, device_
        As in LinearHead.
    lr_, batch_size_ : float, int
        Those trained with.
    seed_ : int
        Of the network kept.
    seed_results_ : list of dict
        Of each seed: seed, best_epoch, the val_loss and val_accuracy of that epoch, and diverged,
        as in LinearHead.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.array([[0, 0], [0, 1], [1, 0], [1, 1]] * 20, float)  # exclusive or
    >>> y = X[:, 0] != X[:, 1]
    >>> MLPHead(hidden=(16,), dropout=0, epochs=60).fit(X, y).score(X, y)
    1.0
    """

    FACTS: ClassVar[Mapping[str, str]] = {
        **NetworkHead.FACTS,
        "lr_": "number or null",
        "batch_size_": "count or null",
        "seed_": "count or null",
        "seed_results_": "rows or null",
    }

    lr_: float
    batch_size_: int
    seed_: int
    seed_results_: list[dict[str, Any]]

    def __init__(
        self,
        hidden: Sequence[int] = (256,),
        *,
        dropout: float = 0.5,
        lr: float | None = None,
        epochs: int = 200,
        batch_size: int | None = None,
        weight_decay: float = 1e-2,
        label_smoothing: float = 0.0,
        patience: int | None = 20,
        n_seeds: int = 1,
        validation_fraction: float = 0.1,
        standardise: bool = True,
        device: str = "auto",
        precision: str | None = None,
        random_state: int = 0,
    ) -> None:
        self.hidden = hidden
        self.dropout = dropout
        self.lr = lr
        self.epochs = epochs
        self.batch_size = batch_size
        self.weight_decay = weight_decay
        self.label_smoothing = label_smoothing
        self.patience = patience
        self.n_seeds = n_seeds
        self.validation_fraction = validation_fraction
        self.standardise = standardise
        self.device = device
        self.precision = precision
        self.random_state = random_state

    def _n_networks(self) -> int:
        return self.n_seeds

    def _recipe(self, sizes: tuple[int, ...], n: int, precision: str) -> Recipe:
        together = window_lengths(n, sizes[0])[0]  # rows of one window: no batch reaches beyond
        self.batch_size_ = self.batch_size or batch_size_of(together)
        self.lr_ = self.lr or learning_rate_of(self.batch_size_)
        return Recipe(
            sizes=sizes,
            optimizer="adamw",
            lrs=(self.lr_,) * self.n_seeds,
            seeds=tuple(range(self.random_state, self.random_state + self.n_seeds)),
            epochs=self.epochs,
            batch_size=self.batch_size_,
            weight_decay=self.weight_decay,
            momentum=0.0,
            dropout=self.dropout,
            label_smoothing=self.label_smoothing,
            schedule="constant",
            patience=self.patience,
            precision=precision,
        )

    def _candidate(self) -> tuple[str, dict[str, Any]]:
        several = len(self.seed_results_) > 1
        params = {
            "n_seeds": 1,
            "random_state": self.seed_,
            "lr": self.lr_,
            "batch_size": self.batch_size_,
        }
        return f"seed {self.seed_}, " if several else "", params

    def _record(self, trained: Trained) -> None:
        self.seed_ = trained.best.seed
        self.seed_results_ = [{"seed": one.seed, **one.result()} for one in trained.candidates]

    @staticmethod
    def _is_batch_size(value: Any) -> bool:
        return value is None or is_whole(value, 1)

    def _hidden_sizes(self) -> tuple[int, ...]:
        return tuple(int(size) for size in self.hidden)

    def _check_params(self) -> None:
        self._check_training_params()
        require("lr", self.lr, lambda v: v is None or (is_number(v) and v > 0), "a number above 0")
        require("n_seeds", self.n_seeds, lambda v: is_whole(v, 1), "a whole number above 0")
        require(
            "random_state",
            self.random_state,
            lambda v: v + self.n_seeds <= 2**63,
            "below 2**63 for every seed",
        )
        require(
            "hidden",
            self.hidden,
            lambda v: len(v) > 0 and all(is_whole(size, 1) for size in v),
            "a sequence of at least one layer size above 0",
        )
        for name in ("dropout", "label_smoothing"):
            require(
                name, getattr(self, name), lambda v: is_number(v) and 0 <= v < 1, "0 to below 1"
            )
