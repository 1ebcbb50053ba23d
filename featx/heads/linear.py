"""One linear layer trained by mini-batches: the last layer of a network, learnt anew."""

from __future__ import annotations

from typing import Final

from featx.heads.base import is_number, require
from featx.heads.network import NetworkHead
from featx.heads.training import Recipe

# PyTorch's default for Adam; for SGD with momentum 0.9 ten times that, as in PyTorch's
# transfer-learning tutorial less its decay.
_LR: Final = {"adam": 1e-3, "sgd": 1e-2}


class LinearHead(NetworkHead):
    """One linear layer, cross-entropy, Adam or SGD, on standardised features.

    Rows are shuffled by seed in every epoch, the last partial batch included; the weights start
    at zero, and the epoch that is most accurate on validation rows (among equals, of the smallest
    loss) is kept. Holds a float32 working copy of the rows on the device where that is 2 GiB or
    less, else reads each batch from X. With two classes `decision_function` is one column.

    Parameters
    ----------
    optimizer : {"adam", "sgd"}
    lr : float, optional
        None: 0.001 for adam, 0.01 for sgd.
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
        are not trained on, nor standardised by.
    standardise : bool
    device : {"auto", "cpu", "cuda", "cuda:N", "mps"}
    precision : {None, "fp32", "tf32", "bf16", "fp16"}
        Of the training steps; None is fp32. Measuring and predicting are never below fp32.
    random_state : int

    Attributes
    ----------
    coefs_, intercepts_ : one (k, d) and one (k,) float32, in lists
    history_ : list of dict
        Of each epoch, measured after it without dropout: epoch, train_loss, train_accuracy,
        val_loss, val_accuracy (both None without validation rows).
    best_epoch_ : int, from 1
    device_ : str

    Examples
    --------
    >>> import numpy as np
    >>> X = np.repeat([[0.0], [1.0]], 20, axis=0)
    >>> LinearHead(epochs=5).fit(X, np.repeat([3, 7], 20)).predict([[0.1], [0.9]]).tolist()
    [3, 7]
    """

    def __init__(
        self,
        *,
        optimizer: str = "adam",
        lr: float | None = None,
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

    def _recipe(self, precision: str) -> Recipe:
        return Recipe(
            optimizer=self.optimizer,  # type: ignore[arg-type]  # checked before
            lr=_LR[self.optimizer] if self.lr is None else self.lr,
            epochs=self.epochs,
            batch_size=self.batch_size,
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            label_smoothing=self.label_smoothing,
            patience=self.patience,
            precision=precision,
        )

    def _check_params(self) -> None:
        self._check_training_params()
        require("optimizer", self.optimizer, lambda v: v in ("adam", "sgd"), "'adam' or 'sgd'")
        for name in ("momentum", "label_smoothing"):
            require(
                name, getattr(self, name), lambda v: is_number(v) and 0 <= v < 1, "0 to below 1"
            )
