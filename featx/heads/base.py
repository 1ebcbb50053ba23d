"""What every head is: a scikit-learn classifier over feature rows, standardised, in plain numpy.

A head is fitted on any device and predicts on the CPU in float64 from numpy arrays, so that its
answers depend neither on the device it was fitted on nor on the rows beside a row.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from featx.devices import resolve_device, torch_threads
from featx.errors import InputError
from featx.heads.row_view import RowView, part_of

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

# Kept as they are; all else becomes float64. Pixels are uint8.
ROW_TYPES = [np.float64, np.float32, np.float16, np.uint8]
_BLOCK_BYTES = 64 << 20  # of float64 features standardised at once
_PIECE_BYTES = 1 << 20  # of them that a core keeps in its cache
_SMALL_WORK = 50_000_000  # multiply-adds below which threads cost more than they bring


class TrainingRows(NamedTuple):
    """Validated arguments of `fit`; labels are numbers into `classes_`."""

    X: Any  # (n, d) as given, perhaps a memory map or a RowView
    y: IntArray  # (n,)
    X_val: Any  # (m, d), None where there are none
    y_val: IntArray | None  # (m,)


class Choice(NamedTuple):
    """What a fit settled by itself, and on what."""

    what: str  # in words: "C 0.1", "epoch 12"
    on: str  # in words; begins with "nothing" where it was not chosen
    accuracy: float | None  # there, where it was measured
    params: Mapping[str, Any]  # what to fit with to come to the same without choosing


class Head(ClassifierMixin, BaseEstimator, ABC):
    """Base of the heads; a subclass gives `fit`, `choice`, `_check_params`, `_logits`, its tensors.

    Attributes
    ----------
    classes_ : (k,) the labels seen in training, sorted
    n_features_in_ : int, d
    mean_, scale_ : (d,) float64
        What features are standardised by, learnt on the training rows only: 0 and 1 with
        `standardise=False`.
    """

    # Fitted attributes that a head file keeps as JSON, and which kind of value each one is.
    FACTS: ClassVar[Mapping[str, str]] = {}
    # Parameters that the features settle, not who fits: which network they are of, and where cut.
    OF_FEATURES: ClassVar[frozenset[str]] = frozenset()
    # What a parameter that is None stands for where there are too few rows to choose it on.
    UNCHOSEN: ClassVar[Mapping[str, Any]] = {}

    classes_: npt.NDArray[Any]
    n_features_in_: int
    mean_: FloatArray
    scale_: FloatArray
    device_: str

    @abstractmethod
    def fit(self, X: Any, y: Any) -> Self:
        """Learn from rows X (n, d) and labels y (n,)."""

    @abstractmethod
    def choice(self, n_val: int = 0) -> Choice:
        """What this fit settled, if it was given `n_val` validation rows."""

    @abstractmethod
    def _check_params(self) -> None:
        """Raise InputError for the first parameter that cannot be used."""

    @abstractmethod
    def _logits(self, Z: FloatArray) -> FloatArray:
        """Standardised rows (b, d) -> (b, k)."""

    @abstractmethod
    def _tensors(self) -> dict[str, npt.NDArray[Any]]:
        """What prediction needs beside `mean_` and `scale_`, by the names of `_tensor_specs`."""

    @abstractmethod
    def _set_tensors(self, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
        """The inverse of `_tensors`."""

    @abstractmethod
    def _tensor_specs(self, d: int, k: int) -> Mapping[str, tuple[tuple[int | None, ...], str]]:
        """Shape (None: any) and dtype of every tensor, from parameters, d features, k classes."""

    def _check_savable(self) -> None:
        """Raise InputError where no head file can hold it."""

    def _mean_size(self, d: int) -> int:
        """Length of `mean_` and `scale_`."""
        return d

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """The most probable class of each row: (n, d) -> (n,), among `classes_`."""
        best = self._all_logits(X).argmax(axis=1)
        return self.classes_[best]

    def predict_proba(self, X: Any) -> FloatArray:
        """Class probabilities: (n, d) -> (n, k) float64, each row sums to 1."""
        logits = self._all_logits(X)
        logits -= logits.max(axis=1, keepdims=True)
        np.exp(logits, out=logits)
        logits /= logits.sum(axis=1, keepdims=True)
        return logits

    def decision_function(self, X: Any) -> FloatArray:
        """Logits (n, k); with two classes the second's minus the first's, (n,)."""
        logits = self._all_logits(X)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def _all_logits(self, X: Any) -> FloatArray:
        check_is_fitted(self)
        X, _ = self._checked(X, None)
        logits = np.empty((len(X), len(self.classes_)))
        for rows, Z in standardised_blocks(X, self.mean_, self.scale_):
            logits[rows] = self._logits(Z)
        return logits

    def _validate_fit(self, X: Any, y: Any, X_val: Any, y_val: Any) -> TrainingRows:
        """Check the parameters and the rows, set `classes_`, and number the labels."""
        self._check_params()
        X, y = self._checked(X, y)
        numbers = self._number_labels(y)
        if (X_val is None) != (y_val is None):
            raise InputError("X_val and y_val go together: one was given without the other")
        if X_val is None:
            return TrainingRows(X, numbers, None, None)
        X_val, _ = self._checked(X_val, None)
        y_val = column_or_1d(y_val)
        if len(y_val) != len(X_val):
            raise InputError(f"X_val has {len(X_val)} rows, y_val {len(y_val)} labels")
        known = self._known(y_val)
        if not known.all():
            X_val, y_val = part_of(X_val, known), y_val[known]
        return TrainingRows(X, numbers, X_val, np.searchsorted(self.classes_, y_val))

    def _checked(self, X: Any, y: Any) -> tuple[Any, Any]:
        """Rows and labels as scikit-learn checks them; without `y` more rows of the same features.

        A `RowView` is checked block by block and stays one.
        """
        if not isinstance(X, RowView):
            if y is None:
                return validate_data(self, X, reset=False, dtype=ROW_TYPES), None
            return validate_data(self, X, y, dtype=ROW_TYPES)
        if y is not None:
            self.n_features_in_, y = X.shape[1], column_or_1d(y)
        assert X.shape[1] == self.n_features_in_, X.shape
        assert y is None or len(y) == len(X), f"{len(X)} rows, {len(y)} labels"
        if not X.is_finite():
            raise InputError("features hold values that are NaN or infinite")
        return X, y

    def _number_labels(self, y: npt.NDArray[Any]) -> IntArray:
        """Set `classes_` from the training labels, and number these."""
        check_classification_targets(y)
        self.classes_, numbers = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise InputError(
                f"{type(self).__name__} needs training rows of at least 2 classes, "
                f"got one class: {self.classes_[0]!r}"
            )
        return numbers.astype(np.int64)

    def _known(self, y_val: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Which validation labels are among the training classes; the others are told."""
        known = np.isin(y_val, self.classes_)
        if not known.any():
            raise InputError("no validation row is of a class that is among the training rows")
        if not known.all():
            warnings.warn(
                f"{(~known).sum()} of {len(known)} validation rows are of classes without "
                "training rows; they are left out of the choice",
                stacklevel=4,
            )
        return known

    def _learn_standardisation(
        self, X: npt.NDArray[Any], standardise: bool, rows: IntArray | None = None
    ) -> None:
        d = X.shape[1]
        self.mean_, self.scale_ = (
            learn_standardisation(X, rows) if standardise else (np.zeros(d), np.ones(d))
        )


def learn_standardisation(
    X: npt.NDArray[Any], rows: IntArray | None = None
) -> tuple[FloatArray, FloatArray]:
    """Column means and standard deviations, as scikit-learn's StandardScaler takes them.

    Two passes in float64 over pieces of X that stay in a core's cache. Constant columns (to
    rounding error, by StandardScaler's rule) have scale 1.

    Parameters
    ----------
    X : (n, d) float
    rows : (m,) int, optional
        The rows to learn from; all by default.

    Returns
    -------
    mean, scale : (d,) float64
    """
    n, d = (len(X) if rows is None else len(rows)), X.shape[1]
    mean, squares, drift = np.zeros(d), np.zeros(d), np.zeros(d)
    for part in _pieces(n, d):
        mean += (X[part] if rows is None else X[rows[part]]).astype(np.float64).sum(axis=0)
    mean /= n
    for part in _pieces(n, d):
        Z = (X[part] if rows is None else X[rows[part]]).astype(np.float64)
        Z -= mean
        drift += Z.sum(axis=0)  # what rounding left of the mean
        Z *= Z
        squares += Z.sum(axis=0)
    variance = (squares - drift**2 / n) / n
    eps = np.finfo(np.float64).eps
    constant = variance <= n * eps * variance + (n * mean * eps) ** 2
    return mean, np.where(constant, 1.0, np.sqrt(variance))


def standardised_blocks(
    X: npt.NDArray[Any], mean: FloatArray, scale: FloatArray, rows: IntArray | None = None
) -> Iterator[tuple[slice, FloatArray]]:
    """Yield (positions, (X - mean) / scale in float64) in blocks of at most 64 MiB.

    A block is there until the next is asked for, which is written over it: memory anew for each
    takes longer than what is computed.
    """
    n, d = (len(X) if rows is None else len(rows)), X.shape[1]
    step = max(1, _BLOCK_BYTES // (8 * d))
    buffer = np.empty((min(step, n), d))
    for start in range(0, n, step):
        part = slice(start, min(start + step, n))
        block = buffer[: part.stop - start]
        for piece in _pieces(len(block), d):
            at = slice(start + piece.start, start + piece.stop)
            values = block[piece]
            values[:] = X[at] if rows is None else X[rows[at]]
            values -= mean
            values /= scale
        yield part, block


def standardised_columns(
    X: npt.NDArray[Any],
    mean: FloatArray,
    scale: FloatArray,
    rows: IntArray | None,
    part: slice,
    out: npt.NDArray[Any],
) -> None:
    """Write (X - mean) / scale of all rows and some columns to `out`, (n, c) of any float type."""
    X, mean, scale = X[:, part], mean[part], scale[part]
    for piece in _pieces(*out.shape):
        values = (X[piece] if rows is None else X[rows[piece]]).astype(np.float64)
        values -= mean
        values /= scale
        out[piece] = values


def _pieces(n: int, d: int) -> Iterator[slice]:
    """Cut n rows of d values into pieces that a core's cache holds in float64."""
    step = max(1, _PIECE_BYTES // (8 * d))
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


def float64_device(device: str) -> str:
    """The device's name, to compute on in float64; MPS has none, so there the CPU computes."""
    name = resolve_device(device).name
    return "cpu" if name == "mps" else name


@contextmanager
def fitting_threads(work: int) -> Iterator[None]:
    """Run small work on one thread: waking others costs more, and on a busy machine far more.

    NumPy's and SciPy's BLAS have threads of their own beside torch's, and where both wait for
    each other on two cores a fit takes eight times as long.
    """
    if work >= _SMALL_WORK:
        yield
        return
    with torch_threads(1), threadpool_limits(limits=1):
        yield


def require(name: str, value: Any, is_good: Callable[[Any], bool], what: str) -> None:
    """Raise InputError in one sentence unless `is_good(value)`; a wrong type is no good value."""
    try:
        good = bool(is_good(value))
    except (AttributeError, TypeError, ValueError, OverflowError):
        good = False
    if not good:
        raise InputError(f"{name} must be {what}, got {value!r}")


def is_whole(value: Any, at_least: int) -> bool:
    """A whole number, not a bool, of at least so much."""
    return (
        isinstance(value, (int, np.integer))
        and not isinstance(value, bool)
        and int(value) >= at_least
    )


def is_number(value: Any) -> bool:
    """A finite int or float, not a bool."""
    return (
        isinstance(value, (int, float, np.integer, np.floating))
        and not isinstance(value, bool)
        and bool(np.isfinite(value))
    )


def check_common(head: Any) -> None:
    """The parameters that all heads have, and whether they standardise."""
    require("device", head.device, lambda v: isinstance(v, str), "a device's name")
    if hasattr(head, "standardise"):
        require("standardise", head.standardise, lambda v: isinstance(v, bool), "True or False")
    require(
        "random_state",
        head.random_state,
        lambda v: is_whole(v, 0) and v < 2**63,
        "a whole number, 0 or more, so that a fit can be repeated",
    )
