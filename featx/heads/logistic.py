"""Multinomial logistic regression with an L2 penalty, its strength chosen, its convergence told."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Self

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.class_weight import compute_class_weight

from featx.counting import counted
from featx.devices import resolve_device
from featx.folds import cross_validation_folds
from featx.heads.base import (
    Choice,
    FloatArray,
    Head,
    IntArray,
    TrainingRows,
    check_common,
    fitting_threads,
    is_number,
    is_whole,
    learn_standardisation,
    require,
)
from featx.heads.solution import Fitted
from featx.heads.solver import Problem
from featx.heads.standardised import FeatureRows

# The protocol of Kornblith et al. 2019 ("Do Better ImageNet Models Transfer Better?") and CLIP
# (Radford et al. 2021): L2-regularised multinomial logistic regression on fixed features, by
# L-BFGS, the strength swept over a logarithmic grid (theirs 1e-6 to 1e6 and 1e-6 to 1e5) and
# chosen on validation images. Here one value a decade, over the decades where standardised
# features of a few hundred to a hundred thousand images have their optimum.
C_GRID: Final = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2)

# DINOv2's grid of 45 values (C_POWER_RANGE = torch.linspace(-6, 5, 45) in its
# dinov2/eval/log_regression.py), four a decade from 1e-6 to 1e5.
DINOV2_C_GRID: Final = tuple(10.0 ** (-6 + 0.25 * i) for i in range(45))

_GRIDS: Final[Mapping[str, tuple[float, ...]]] = {"default": C_GRID, "dinov2": DINOV2_C_GRID}

# Fits that only choose C. At 1e-4, scikit-learn's default, the log-loss of validation rows is off
# by half at weak penalties, and at 1e-5 by a hundredth, of 539 photographs of birds.
_CHOICE_TOL: Final = 1e-5
# What the objective may lie above its minimum, relatively, for each unit of `tol`: a ten-thousandth
# at the default. Weak penalties need gradients far smaller than `tol` for that.
_GAP: Final = 100.0
_EPS: Final = np.finfo(np.float64).eps


@dataclass(frozen=True)
class _Tried:
    """Of each C: validation rows classified rightly, their summed loss, whether it converged."""

    n_right: IntArray
    loss: FloatArray
    converged: npt.NDArray[np.bool_]
    n_rows: int


class LogisticHead(Head):
    """Multinomial logistic regression on standardised features.

    Minimises ``C * sum_i w_i * loss_i + 0.5 * ||W||^2``, the intercept not penalised: exactly
    scikit-learn's ``LogisticRegression(C=C)`` after a ``StandardScaler`` (two classes: its
    one-vector form). Solved by preconditioned L-BFGS on the device, large products in float32, the
    rest in float64, and the gradient that counts measured in float64 on the features; MPS has no
    float64, so there the CPU solves. While C is chosen, values are solved from the strongest
    penalty to the weakest, each onward from the two before; on CUDA as many side by side as fit.

    X may be a memory map larger than memory. Held beside it are the weights, (k, d), some twenty
    times in float32, and the logits, (k, n), some six times; and

    - with no more features than rows, a float32 copy of the standardised rows of up to 2 GiB (on
      CUDA half of the free memory). A larger one is not made: X is read in every iteration;
    - with more, the rows' Gram matrix (n, n) in float32 instead of the copy and of the weights;
      where it would take more than 2 GiB (from 23,171 rows), as with fewer features.

    With fewer than 50 million multiply-adds a product, float64 takes the place of float32.

    Parameters
    ----------
    C : float, optional
        Inverse strength of the penalty. None: chosen from `cs` by accuracy, among equals by
        log-loss, then the smaller; on `X_val, y_val` where given to `fit`, else by
        cross-validation inside the training rows, each fold with its own standardisation.
    cs : {"default", "dinov2"} or sequence of float
        The grid; "default" is `C_GRID` (7 values), "dinov2" `DINOV2_C_GRID` (45).
    cv : int
        Folds, stratified by class and never parting a group.
    max_iter : int
        L-BFGS iterations for each C.
    tol : float
        Euclidean norm of the gradient, of the objective divided by ``C * sum_i w_i`` (the mean
        loss plus the penalty), at which the fit has converged; at weak penalties a smaller one,
        by which the objective is within ``100 * tol`` of its minimum, relatively, as far as the
        penalty's own curvature tells (the intercept has none). Fits that only choose C use 1e-5
        where `tol` is below.
    class_weight : None, "balanced" or dict {label: weight}
        As in scikit-learn.
    fit_intercept, standardise : bool
    device : {"auto", "cpu", "cuda", "cuda:N", "mps"}
    random_state : int
        Seeds the folds; the solver itself draws nothing.

    Attributes
    ----------
    coef_ : (k, d) float64, or (1, d) with two classes; on standardised features
    intercept_ : (k,) or (1,) float64
    C_ : float, the C used
    cv_results_ : dict of lists "C", "accuracy", "log_loss", "converged", or None with C given
    converged_ : bool
    n_iter_ : int
    gradient_norm_ : float, at the solution on centred features
    enough_ : float, the norm at which it has converged: `tol`, or less at weak penalties
    device_ : str

    Warns
    -----
    ConvergenceWarning
        The gradient is still too large after `max_iter` iterations, of the head or of a fit that
        chose C.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.array([[0.0], [1.0], [2.0], [3.0]])
    >>> LogisticHead(C=1.0).fit(X, [0, 0, 1, 1]).predict([[0.4], [2.6]]).tolist()
    [0, 1]
    """

    FACTS: ClassVar[Mapping[str, str]] = {
        "C_": "number",
        "cv_results_": "columns or null",
        "converged_": "bool",
        "n_iter_": "count",
        "gradient_norm_": "number",
        "enough_": "number or null",
        "device_": "text",
    }
    UNCHOSEN: ClassVar[Mapping[str, Any]] = {"C": 1.0}

    # How many values of C are solved side by side while one is chosen; None: see Problem.path.
    _together: ClassVar[int | None] = None

    coef_: FloatArray
    intercept_: FloatArray
    cv_results_: dict[str, list[Any]] | None

    def __init__(
        self,
        C: float | None = None,
        *,
        cs: str | Sequence[float] = "default",
        cv: int = 5,
        max_iter: int = 1000,
        tol: float = 1e-6,
        class_weight: str | Mapping[Any, float] | None = None,
        fit_intercept: bool = True,
        standardise: bool = True,
        device: str = "auto",
        random_state: int = 0,
    ) -> None:
        self.C = C
        self.cs = cs
        self.cv = cv
        self.max_iter = max_iter
        self.tol = tol
        self.class_weight = class_weight
        self.fit_intercept = fit_intercept
        self.standardise = standardise
        self.device = device
        self.random_state = random_state

    def fit(
        self, X: Any, y: Any, *, X_val: Any = None, y_val: Any = None, groups: Any = None
    ) -> Self:
        """Choose C if none is given, and fit all of X, y with it.

        Parameters
        ----------
        X : (n, d) float
        y : (n,) labels of any type scikit-learn takes
        X_val, y_val : (m, d), (m,), optional
            Rows to choose C on; they are not fitted on.
        groups : (n,) int, optional
            Rows of one group stay in one fold; -1 is its own group.

        Raises
        ------
        InputError
            A bad parameter, one class only, or nothing that C could be chosen on.
        """
        rows = self._validate_fit(X, y, X_val, y_val)
        k = len(self.classes_)
        name = resolve_device(self.device).name
        self.device_ = "cpu" if name == "mps" else name
        weight = compute_class_weight(self.class_weight, classes=self.classes_, y=np.asarray(y))
        row_weight = weight[rows.y]  # (n,)
        with fitting_threads(rows.X.size * k):
            if self.C is not None:
                self.C_, self.cv_results_ = float(self.C), None
            elif rows.X_val is not None and rows.y_val is not None:
                self._choose([self._try(rows, row_weight, None, None)])
            else:
                folds = self._folds(rows.y, groups)
                self._choose([self._try(rows, row_weight, *fold) for fold in folds])
            self._learn_standardisation(rows.X, self.standardise)
            centre = self._centre(rows.X, None, self.mean_)
            problem = self._problem(
                FeatureRows(rows.X, None, centre, self.scale_), rows.y, row_weight
            )
            fitted = problem.fit(
                self._objective_c(self.C_), self.tol, self.max_iter, gap=_GAP * self.tol
            )
        # What was centred only for the solver is put back into the intercept.
        self._keep(fitted, fitted.b - fitted.W @ (centre - self.mean_))
        return self

    def choice(self, n_val: int = 0) -> Choice:
        """C: given, or chosen on `n_val` validation rows or by cross-validation."""
        if self.C is not None or self.cv_results_ is None:
            return Choice(f"C {self.C_:g}", "nothing: C was given", None, {"C": self.C_})
        on = counted(n_val, "val image") if n_val else f"{self.cv}-fold cross-validation"
        accuracy = self.cv_results_["accuracy"][self.cv_results_["C"].index(self.C_)]
        return Choice(f"C {self.C_:g}", on, accuracy, {"C": self.C_})

    def _keep(self, fitted: Fitted, b: FloatArray) -> None:
        W = fitted.W
        if len(self.classes_) == 2:  # scikit-learn's one vector: the difference of the two
            W, b = W[1:] - W[:1], b[1:] - b[:1]
        self.coef_, self.intercept_ = W, b
        self.converged_ = fitted.gradient_norm <= fitted.enough
        self.n_iter_ = fitted.n_iter
        self.gradient_norm_, self.enough_ = fitted.gradient_norm, fitted.enough
        if not self.converged_:
            advice = (
                f"raise max_iter (now {self.max_iter}) or lower C (now {self.C_:g})"
                if self.n_iter_ >= self.max_iter
                else "float64 goes no further here; accept a larger tol or lower C"
            )
            weak = self.enough_ < self.tol
            above = f"{self.enough_:.1e}, tol at so large a C" if weak else f"tol={self.tol:.1e}"
            warnings.warn(
                f"LogisticHead did not converge: after {self.n_iter_} iterations its gradient "
                f"norm is {self.gradient_norm_:.1e}, above {above}; {advice}",
                ConvergenceWarning,
                stacklevel=3,
            )

    def _objective_c(self, C: float) -> float:
        # Two weight vectors w/2 and -w/2 carry half the penalty of scikit-learn's single w.
        return C / 2 if len(self.classes_) == 2 else C

    def _folds(self, y: IntArray, groups: Any) -> list[tuple[IntArray, IntArray]]:
        return cross_validation_folds(y, n_folds=self.cv, groups=groups, seed=self.random_state)

    def _centre(self, X: npt.NDArray[Any], rows: IntArray | None, mean: FloatArray) -> FloatArray:
        """What the solver subtracts from the features: always their mean, if it may.

        The intercept, which is not penalised, takes it back, and features about 0 need fewer
        iterations.
        """
        if self.standardise or not self.fit_intercept:
            return mean
        return learn_standardisation(X, rows)[0]

    def _problem(
        self, rows: FeatureRows, y: IntArray, weight: FloatArray, others: FeatureRows | None = None
    ) -> Problem:
        return Problem(
            rows,
            y,
            weight,
            n_classes=len(self.classes_),
            intercept=self.fit_intercept,
            device=self.device_,
            others=others,
        )

    def _grid(self) -> list[float]:
        return sorted(_GRIDS[self.cs] if isinstance(self.cs, str) else map(float, self.cs))

    def _try(
        self, rows: TrainingRows, weight: FloatArray, train: IntArray | None, val: IntArray | None
    ) -> _Tried:
        """Fit the whole path of C on rows `train` and validate each on `val`, or X_val."""
        X, y, d = rows.X, rows.y, rows.X.shape[1]
        mean, scale = (
            learn_standardisation(X, train) if self.standardise else (np.zeros(d), np.ones(d))
        )
        mean = self._centre(X, train, mean)
        X_val, y_val = (rows.X_val, rows.y_val) if val is None else (X, y[val])
        assert X_val is not None
        assert y_val is not None
        problem = self._problem(
            FeatureRows(X, train, mean, scale),
            y if train is None else y[train],
            weight if train is None else weight[train],
            FeatureRows(X_val, val, mean, scale),
        )
        tol = max(self.tol, _CHOICE_TOL)
        cs = [self._objective_c(C) for C in self._grid()]
        n_right, losses, converged = [], [], []
        path = problem.path(cs, tol, self.max_iter, together=self._together, gap=_GAP * tol)
        for solution in path:
            logits = problem.space.other_logits(solution.x)[0].T.double().cpu().numpy()  # (m, k)
            n_right.append(int((logits.argmax(axis=1) == y_val).sum()))
            losses.append(_summed_loss(logits, y_val))
            converged.append(solution.converged)
        return _Tried(np.array(n_right), np.array(losses), np.array(converged), len(y_val))

    def _choose(self, tried: Sequence[_Tried]) -> None:
        """Take the most accurate C over all validation rows; every row counts once."""
        grid = self._grid()
        n = sum(t.n_rows for t in tried)
        accuracy = np.sum([t.n_right for t in tried], axis=0) / n
        log_loss = np.sum([t.loss for t in tried], axis=0) / n
        converged = np.all([t.converged for t in tried], axis=0)
        best = int(np.lexsort((log_loss, -accuracy))[0])
        self.C_ = grid[best]
        self.cv_results_ = {
            "C": grid,
            "accuracy": accuracy.tolist(),
            "log_loss": log_loss.tolist(),
            "converged": converged.tolist(),
        }
        if not converged.all():
            names = ", ".join(f"{C:g}" for C, ok in zip(grid, converged, strict=True) if not ok)
            warnings.warn(
                f"the fits that chose C did not converge within max_iter={self.max_iter} for "
                f"C = {names}: raise max_iter, or leave these values out of cs",
                ConvergenceWarning,
                stacklevel=3,
            )

    def _check_params(self) -> None:
        check_common(self)
        positive = "a number above 0"
        require("C", self.C, lambda v: v is None or (is_number(v) and v > 0), f"{positive} or None")
        require(
            "cs",
            self.cs,
            _is_grid,
            "default, dinov2 or several numbers above 0",
        )
        require("cv", self.cv, lambda v: is_whole(v, 2), "a whole number of folds, 2 or more")
        require("max_iter", self.max_iter, lambda v: is_whole(v, 1), "a whole number, 1 or more")
        require("tol", self.tol, _positive, positive)
        require(
            "class_weight",
            self.class_weight,
            lambda v: v is None or v == "balanced" or isinstance(v, Mapping),
            "balanced, or in Python a dict of label to weight",
        )
        require("fit_intercept", self.fit_intercept, lambda v: isinstance(v, bool), "True or False")

    def _logits(self, Z: FloatArray) -> FloatArray:
        logits = Z @ self.coef_.T + self.intercept_
        return np.hstack([-logits / 2, logits / 2]) if len(self.coef_) == 1 else logits

    def _tensors(self) -> dict[str, npt.NDArray[Any]]:
        return {"coef": self.coef_, "intercept": self.intercept_}

    def _set_tensors(self, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
        self.coef_, self.intercept_ = tensors["coef"], tensors["intercept"]

    def _tensor_specs(self, d: int, k: int) -> dict[str, tuple[tuple[int, ...], str]]:
        rows = 1 if k == 2 else k
        return {"coef": ((rows, d), "F64"), "intercept": ((rows,), "F64")}


def _positive(value: Any) -> bool:
    return is_number(value) and value > 0


def _is_grid(value: Any) -> bool:
    if isinstance(value, str):
        return value in _GRIDS
    return len(value) > 0 and all(_positive(v) for v in value)


def _summed_loss(logits: FloatArray, y: IntArray) -> float:
    """Summed log-loss, probabilities clipped as in featx.metrics."""
    logits = logits - logits.max(axis=1, keepdims=True)
    p = np.exp(logits[np.arange(len(y)), y]) / np.exp(logits).sum(axis=1)
    return float(-np.log(np.clip(p, _EPS, 1 - _EPS)).sum())
