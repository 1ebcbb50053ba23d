"""Ridge regression on class targets: every penalty tried by leave-one-out, in one fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Final, Self

import numpy as np
import numpy.typing as npt
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor

from featx.counting import counted
from featx.errors import InputError
from featx.folds import cross_validation_folds, leave_out_units
from featx.heads.base import (
    Choice,
    FloatArray,
    Head,
    IntArray,
    TrainingRows,
    check_common,
    fitting_threads,
    float64_device,
    is_number,
    is_whole,
    learn_standardisation,
    require,
)
from featx.heads.row_view import part_of
from featx.heads.spectrum import Covariance, Gram, Scores, Spectrum, weighted_mean
from featx.heads.temperature import smoothed_temperature

# Times the mean eigenvalue of the rows' covariance matrix (or Gram matrix, where features
# outnumber rows), so that the grid means the same for any number of rows and features: two values
# a decade, from a penalty that hardly touches any axis to one under which only the largest count.
ALPHA_GRID: Final = tuple(float(a) for a in np.logspace(-4, 2, 13))

# Scores of some rows, and which of them (b,) count.
_Tests = Iterator[tuple[Scores, Tensor]]


class RidgeHead(Head):
    """Ridge regression on targets of +1 for a row's class and -1 for the others.

    Minimises ``sum_i w_i * ||Y_i - W z_i - b||^2 + alpha * ||W||^2`` on standardised features, the
    intercept not penalised: exactly scikit-learn's ``RidgeClassifier(alpha)`` after a
    ``StandardScaler``. One eigen-decomposition in float64, of the smaller of the (d, d) and (n, n)
    matrices, serves every alpha, with exact leave-one-out (Rifkin & Lippert 2007); the mean and
    scale of the features are those of all training rows, the weights `class_weight`'s of all.

    Parameters
    ----------
    alpha : float, optional
        Strength of the penalty. None: chosen from `alphas` by accuracy, among equals by squared
        error, then the smaller; on `X_val, y_val` where given to `fit`, else by leave-one-out, or,
        where rows share a group, which leave-one-out would leak through, by cross-validation that
        parts no group.
    alphas : "default" or sequence of float
        The grid; "default" is `ALPHA_GRID` times the mean eigenvalue of the decomposed matrix.
    cv : int
        Folds, where there are groups; each with its own standardisation.
    class_weight : None, "balanced" or dict {label: weight}
        As in scikit-learn; weights above 0.
    standardise : bool
    device : {"auto", "cpu", "cuda", "cuda:N", "mps"}
        MPS has no float64, so there the CPU solves.
    random_state : int
        Seeds the folds.

    Attributes
    ----------
    coef_ : (k, d) float64, or (1, d) with two classes; on standardised features
    intercept_ : (k,) or (1,) float64
    alpha_ : float, the alpha used
    temperature_ : float
        `predict_proba` is the softmax of the k scores over this, `decision_function` that
        quotient. It has the smallest log-loss on the rows that alpha was chosen on, each scored by
        a fit without it; 1 where there was no such row.
    chosen_on_ : "validation rows", "leave-one-out", "5-fold cross-validation" or "nothing"
    cv_results_ : dict of lists "alpha", "accuracy", "squared_error" (of one target), or None with
        alpha given
    device_ : str

    Examples
    --------
    >>> import numpy as np
    >>> X = np.array([[0.0], [1.0], [2.0], [3.0]])
    >>> RidgeHead().fit(X, [0, 0, 1, 1]).predict([[0.4], [2.6]]).tolist()
    [0, 1]
    """

    FACTS: ClassVar[Mapping[str, str]] = {
        "alpha_": "number",
        "temperature_": "positive number",
        "chosen_on_": "text",
        "cv_results_": "columns or null",
        "device_": "text",
    }
    UNCHOSEN: ClassVar[Mapping[str, Any]] = {"alpha": 1.0}

    coef_: FloatArray
    intercept_: FloatArray
    alpha_: float
    temperature_: float
    chosen_on_: str
    cv_results_: dict[str, list[float]] | None

    def __init__(
        self,
        alpha: float | None = None,
        *,
        alphas: str | Sequence[float] = "default",
        cv: int = 5,
        class_weight: str | Mapping[Any, float] | None = None,
        standardise: bool = True,
        device: str = "auto",
        random_state: int = 0,
    ) -> None:
        self.alpha = alpha
        self.alphas = alphas
        self.cv = cv
        self.class_weight = class_weight
        self.standardise = standardise
        self.device = device
        self.random_state = random_state

    def fit(
        self, X: Any, y: Any, *, X_val: Any = None, y_val: Any = None, groups: Any = None
    ) -> Self:
        """Choose alpha if none is given, fit all of X, y with it, and the temperature.

        Parameters
        ----------
        X : (n, d) float
        y : (n,) labels of any type scikit-learn takes
        X_val, y_val : (m, d), (m,), optional
            Rows to choose alpha and the temperature on; they are not fitted on.
        groups : (n,) int, optional
            Rows of one group are never parted; -1 is its own group.

        Raises
        ------
        InputError
            A bad parameter, one class only, or nothing that alpha could be chosen on.
        """
        rows = self._validate_fit(X, y, X_val, y_val)
        self.device_ = float64_device(self.device)
        class_weight = compute_class_weight(
            self.class_weight, classes=self.classes_, y=np.asarray(y)
        )
        n, d = rows.X.shape
        with fitting_threads(n * d * min(n, d)):
            self._learn_standardisation(rows.X, self.standardise)
            weight = class_weight[rows.y]
            spectrum = self._spectrum(rows, weight, None, self.mean_, self.scale_)
            tests = self._tests(rows, weight, spectrum, groups)
            self._choose(self._grid(spectrum), tests)
            self._fit_temperature(tests)
            W, b = spectrum.coefficients(self.alpha_)
            b = b + W @ ((self.mean_ - spectrum.centre) / self.scale_)
        if len(self.classes_) == 2:  # scikit-learn's one vector; the other is its negative
            W, b = W[1:], b[1:]
        # laid out as a head file is read, so that both predict the same bits
        self.coef_, self.intercept_ = np.ascontiguousarray(W), b
        return self

    def choice(self, n_val: int = 0) -> Choice:
        """Alpha: given, or chosen on `n_val` validation rows, by leave-one-out or by folds."""
        if self.cv_results_ is None:
            return Choice(
                f"alpha {self.alpha_:g}", "nothing: alpha was given", None, {"alpha": self.alpha_}
            )
        on = counted(n_val, "val image") if n_val else self.chosen_on_
        accuracy = self.cv_results_["accuracy"][self.cv_results_["alpha"].index(self.alpha_)]
        return Choice(f"alpha {self.alpha_:g}", on, accuracy, {"alpha": self.alpha_})

    def _spectrum(
        self,
        rows: TrainingRows,
        weight: FloatArray,
        part: IntArray | None,
        mean: FloatArray,
        scale: FloatArray,
    ) -> Spectrum:
        n, d = (len(rows.y) if part is None else len(part)), rows.X.shape[1]
        is_mean = self.standardise and self.class_weight is None
        centre = mean if is_mean else weighted_mean(rows.X, weight, part, mean)
        return (Covariance if d <= n else Gram)(
            rows.X,
            rows.y,
            weight,
            part,
            centre,
            scale,
            n_classes=len(self.classes_),
            device=self.device_,
        )

    def _grid(self, spectrum: Spectrum) -> list[float]:
        if isinstance(self.alphas, str):
            unit = spectrum.mean_eigenvalue or 1.0
            return [a * unit for a in ALPHA_GRID]
        return sorted(map(float, self.alphas))

    def _tests(
        self, rows: TrainingRows, weight: FloatArray, spectrum: Spectrum, groups: Any
    ) -> Callable[[Sequence[float]], _Tests]:
        """A function of alphas that scores rows by fits without them; sets `chosen_on_`."""
        units, testable = leave_out_units(rows.y, groups=groups)
        if rows.X_val is not None and rows.y_val is not None:
            self.chosen_on_ = "validation rows"
            return partial(_score_others, spectrum, rows.X_val, rows.y_val)
        if not testable.any():
            if self.alpha is None:
                raise InputError(
                    "alpha cannot be chosen: no class has two rows (where rows share a group, "
                    "two groups); give alpha, or validation rows"
                )
            self.chosen_on_ = "nothing"
            return lambda alphas: iter(())
        if units.max() + 1 == len(units):
            self.chosen_on_ = "leave-one-out"
            return partial(_score_own, spectrum, testable)
        self.chosen_on_ = f"{self.cv}-fold cross-validation"
        folds = cross_validation_folds(
            rows.y, n_folds=self.cv, groups=groups, seed=self.random_state
        )
        return partial(self._score_folds, rows, weight, folds)

    def _score_folds(
        self,
        rows: TrainingRows,
        weight: FloatArray,
        folds: Sequence[tuple[IntArray, IntArray]],
        alphas: Sequence[float],
    ) -> _Tests:
        d = rows.X.shape[1]
        for train, val in folds:
            mean, scale = (
                learn_standardisation(rows.X, train)
                if self.standardise
                else (np.zeros(d), np.ones(d))
            )
            fold = self._spectrum(rows, weight, train, mean, scale)
            yield from _score_others(fold, part_of(rows.X, val), rows.y[val], alphas)

    def _choose(self, grid: list[float], tests: Callable[[Sequence[float]], _Tests]) -> None:
        """Take the most accurate alpha over all tested rows."""
        if self.alpha is not None:
            self.alpha_, self.cv_results_ = float(self.alpha), None
            return
        n_tests, n_right, squares = np.zeros((3, len(grid)))
        for scores, tested in tests(grid):
            n_tests[scores.i] += int(tested.sum())
            n_right[scores.i] += int((scores.right() & tested).sum())
            squares[scores.i] += float(scores.squares()[tested].sum())
        accuracy = n_right / n_tests
        squared_error = squares / (n_tests * len(self.classes_))
        self.alpha_ = grid[int(np.lexsort((squared_error, -accuracy))[0])]
        self.cv_results_ = {
            "alpha": grid,
            "accuracy": accuracy.tolist(),
            "squared_error": squared_error.tolist(),
        }

    def _fit_temperature(self, tests: Callable[[Sequence[float]], _Tests]) -> None:
        tested = [(scores.whole()[some], scores.y[some]) for scores, some in tests([self.alpha_])]
        self.temperature_ = 1.0
        if tested:
            scores, y = (torch.cat(parts) for parts in zip(*tested, strict=True))
            self.temperature_ = smoothed_temperature(scores, y)

    def _check_params(self) -> None:
        check_common(self)
        require(
            "alpha",
            self.alpha,
            lambda v: v is None or _positive(v),
            "a number above 0 or None",
        )
        require("alphas", self.alphas, _is_grid, "'default' or a sequence of numbers above 0")
        require("cv", self.cv, lambda v: is_whole(v, 2), "a whole number of folds, 2 or more")
        require(
            "class_weight",
            self.class_weight,
            lambda v: v in (None, "balanced") or all(map(_positive, v.values())),
            "balanced, or in Python a dict of label to a weight above 0",
        )

    def _logits(self, Z: FloatArray) -> FloatArray:
        scores = Z @ self.coef_.T + self.intercept_
        if len(self.coef_) == 1:
            scores = np.hstack([-scores, scores])
        return scores / self.temperature_

    def _tensors(self) -> dict[str, npt.NDArray[Any]]:
        return {"coef": self.coef_, "intercept": self.intercept_}

    def _set_tensors(self, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
        self.coef_, self.intercept_ = tensors["coef"], tensors["intercept"]

    def _tensor_specs(self, d: int, k: int) -> dict[str, tuple[tuple[int, ...], str]]:
        rows = 1 if k == 2 else k
        return {"coef": ((rows, d), "F64"), "intercept": ((rows,), "F64")}


def _score_others(
    spectrum: Spectrum, X: npt.NDArray[Any], y: IntArray, alphas: Sequence[float]
) -> _Tests:
    for scores in spectrum.scores(X, y, alphas):
        yield scores, torch.ones_like(scores.y, dtype=torch.bool)


def _score_own(
    spectrum: Spectrum, testable: npt.NDArray[np.bool_], alphas: Sequence[float]
) -> _Tests:
    for part, scores in spectrum.left_out(alphas):
        yield scores, torch.from_numpy(testable[part]).to(scores.y.device)


def _positive(value: Any) -> bool:
    return is_number(value) and value > 0


def _is_grid(value: Any) -> bool:
    if isinstance(value, str):
        return value == "default"
    return len(value) > 0 and all(map(_positive, value))
