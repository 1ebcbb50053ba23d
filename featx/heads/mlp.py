"""A multi-layer perceptron: for features in which the classes are not linearly separable."""

from __future__ import annotations

from collections.abc import Sequence

from featx.heads.base import is_number, is_whole, require
from featx.heads.network import NetworkHead
from featx.heads.training import Recipe


class MLPHead(NetworkHead):
    """Linear layers with ReLU and dropout between, cross-entropy, AdamW, early stopping.

    Trained by the same loop as LinearHead, on standardised features: rows shuffled by seed, the
    last partial batch included, the epoch kept that is most accurate on validation rows (among
    equals, of the smallest loss). No batch normalisation: a row's answer depends on no other row.

    Parameters
    ----------
    hidden : sequence of int
        Sizes of the hidden layers, at least one.
    dropout : float
        Share of hidden units left out in a training step, 0 to below 1.
    lr : float, optional
        None: 0.001.
    epochs, batch_size : int
    weight_decay : float
        Decoupled (Loshchilov & Hutter 2019), on the weights, not on the biases.
    patience : int, optional
        Stop after so many epochs without a better one; None: run all.
    label_smoothing, validation_fraction, standardise, device, precision, random_state
        As in LinearHead.

    Attributes
    ----------
    coefs_, intercepts_ : lists of (n_out, n_in) and (n_out,) float32, one a layer
    history_, best_epoch_, device_
        As in LinearHead.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.array([[0, 0], [0, 1], [1, 0], [1, 1]] * 20, float)  # exclusive or
    >>> y = X[:, 0] != X[:, 1]
    >>> MLPHead(hidden=(16,), dropout=0, epochs=60).fit(X, y).score(X, y)
    1.0
    """

    def __init__(
        self,
        hidden: Sequence[int] = (256,),
        *,
        dropout: float = 0.2,
        lr: float | None = None,
        epochs: int = 200,
        batch_size: int = 64,
        weight_decay: float = 1e-2,
        label_smoothing: float = 0.0,
        patience: int | None = 20,
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
        self.validation_fraction = validation_fraction
        self.standardise = standardise
        self.device = device
        self.precision = precision
        self.random_state = random_state

    def _recipe(self, precision: str) -> Recipe:
        return Recipe(
            optimizer="adamw",
            lr=1e-3 if self.lr is None else self.lr,
            epochs=self.epochs,
            batch_size=self.batch_size,
            weight_decay=self.weight_decay,
            momentum=0.0,
            label_smoothing=self.label_smoothing,
            patience=self.patience,
            precision=precision,
        )

    def _hidden_sizes(self) -> tuple[int, ...]:
        return tuple(int(size) for size in self.hidden)

    def _dropout_rate(self) -> float:
        return float(self.dropout)

    def _check_params(self) -> None:
        self._check_training_params()
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
