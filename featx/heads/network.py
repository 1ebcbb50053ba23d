"""The base of the heads that are small networks: LinearHead and MLPHead."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.utils import column_or_1d
from sklearn.utils.validation import validate_data

from featx.devices import check_precision, resolve_device
from featx.errors import InputError
from featx.heads.base import (
    ROW_TYPES,
    FloatArray,
    IntArray,
    TrainingRows,
    fitting_threads,
)
from featx.heads.epochs import EpochsHead
from featx.heads.rows import Rows
from featx.heads.training import Recipe, Trained, matmul_precision, train


class NetworkHead(EpochsHead):
    """A head that is a small network; LinearHead and MLPHead say how it is built and trained."""

    coefs_: list[npt.NDArray[np.float32]]
    intercepts_: list[npt.NDArray[np.float32]]
    standardise: bool

    def fit(
        self,
        X: Any,
        y: Any,
        *,
        X_val: Any = None,
        y_val: Any = None,
        groups: Any = None,
        rows: Any = None,
        val_rows: Any = None,
    ) -> Self:
        """Train, and keep the epoch that does best on validation rows.

        Parameters
        ----------
        X : (n, d) float
        y : (n,) labels of any type scikit-learn takes
        X_val, y_val : (m, d), (m,), optional
            Rows to choose the epoch on; never trained on. Where not given, about
            `validation_fraction` of the rows are set aside for it, stratified, by seed.
        groups : (n,) int, optional
            Rows of one group are set aside together; -1 is its own group.
        rows, val_rows : (m,) int, optional
            Which rows of X to train on and to choose on, instead of all and X_val. Rows are then
            taken from X as they are needed: a memory map larger than memory is never copied.

        Raises
        ------
        InputError
            A bad parameter, one class only, no rows to choose among several networks on, or a
            loss that is not finite.
        """
        if rows is None:
            data = self._validate_fit(X, y, X_val, y_val)
            rows = np.arange(len(data.y))
        else:
            data, rows, val_rows = self._validate_rows(X, y, rows, val_rows)
        device = resolve_device(self.device)
        sizes = (data.X.shape[1], *self._hidden_sizes(), len(self.classes_))
        precision = check_precision(device, self.precision)
        self.device_, self.n_set_aside_ = device.name, 0
        if data.X_val is None and val_rows is None:
            kept, aside = self._set_aside(data.y[rows], groups, n_networks=self._n_networks())
            rows, val_rows, self.n_set_aside_ = rows[kept], rows[aside], len(aside)
        self._learn_standardisation(data.X, self.standardise, rows)
        recipe = self._recipe(sizes, len(rows), precision)
        work = recipe.batch_size * len(recipe.lrs) * sum(a * b for a, b in pairwise(sizes))
        with fitting_threads(work), matmul_precision(recipe.precision):
            stats = self.mean_, self.scale_, device.name
            val = None
            if data.X_val is not None and data.y_val is not None:
                val = Rows.of(data.X_val, data.y_val, np.arange(len(data.y_val)), *stats)
            elif len(val_rows):
                val = Rows.of(data.X, data.y, val_rows, *stats)
            trained = train(Rows.of(data.X, data.y, rows, *stats, recipe.dtype), val, recipe)
        self.best_epoch_, self.history_ = trained.best.best_epoch, trained.best.history
        self.coefs_ = [weight.cpu().numpy() for weight in trained.best.weights]
        self.intercepts_ = [bias.cpu().numpy() for bias in trained.best.biases]
        self._record(trained)
        return self

    def _validate_rows(
        self, X: Any, y: Any, rows: Any, val_rows: Any
    ) -> tuple[TrainingRows, IntArray, IntArray | None]:
        """As `_validate_fit`, for rows of one X; labels of the others are -1."""
        self._check_params()
        X, y = validate_data(self, X, dtype=ROW_TYPES), column_or_1d(y)
        if len(y) != len(X):
            raise InputError(f"X has {len(X)} rows, y {len(y)} labels")
        rows, labels = np.asarray(rows), np.full(len(y), -1, np.int64)
        labels[rows] = self._number_labels(y[rows])
        if val_rows is not None:
            val_rows = np.asarray(val_rows)
            val_rows = val_rows[self._known(y[val_rows])]
            labels[val_rows] = np.searchsorted(self.classes_, y[val_rows])
        return TrainingRows(X, labels, None, None), rows, val_rows

    def _hidden_sizes(self) -> tuple[int, ...]:
        return ()

    @abstractmethod
    def _n_networks(self) -> int:
        """How many are trained side by side."""

    @abstractmethod
    def _recipe(self, sizes: tuple[int, ...], n: int, precision: str) -> Recipe:
        """How to train on n rows, from the parameters."""

    @abstractmethod
    def _record(self, trained: Trained) -> None:
        """Keep as attributes what all networks came to."""

    def _logits(self, Z: FloatArray) -> FloatArray:
        for i, (W, b) in enumerate(zip(self.coefs_, self.intercepts_, strict=True)):
            Z = (np.maximum(Z, 0) if i else Z) @ W.T.astype(np.float64) + b
        return Z

    def _tensors(self) -> dict[str, npt.NDArray[Any]]:
        tensors = {f"coef.{i}": W for i, W in enumerate(self.coefs_)}
        return tensors | {f"intercept.{i}": b for i, b in enumerate(self.intercepts_)}

    def _set_tensors(self, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
        n_layers = len(self._hidden_sizes()) + 1
        self.coefs_ = [tensors[f"coef.{i}"] for i in range(n_layers)]
        self.intercepts_ = [tensors[f"intercept.{i}"] for i in range(n_layers)]

    def _tensor_specs(self, d: int, k: int) -> dict[str, tuple[tuple[int, ...], str]]:
        sizes = [d, *self._hidden_sizes(), k]
        specs: dict[str, tuple[tuple[int, ...], str]] = {}
        for i, (n_in, n_out) in enumerate(pairwise(sizes)):
            specs |= {f"coef.{i}": ((n_out, n_in), "F32"), f"intercept.{i}": ((n_out,), "F32")}
        return specs
