"""What a head says of its own training rows when it has not seen them: out-of-fold predictions."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import clone

from featx.folds import cross_validation_folds
from featx.heads.base import Head
from featx.heads.row_view import part_of


def out_of_fold(
    estimator: Any,
    X: Any,
    y: npt.NDArray[Any],
    *,
    groups: npt.NDArray[np.int64] | None = None,
    seed: int = 0,
    cv: int = 5,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Log-probabilities of every row by a head that was fitted on the other folds.

    The choices of `estimator` are kept, not made anew in the folds. They were made on these very
    rows, which is the one thing that the predictions owe to them.

    Parameters
    ----------
    estimator : classifier
        Fitted on all of X, y; it is not changed.
    X : (n, d) float, or a `featx.heads.row_view.RowView` for a head
    y : (n,) labels
        Among `estimator.classes_`.
    groups : (n,) int, optional
        Rows of one group are in one fold; -1 is its own group.
    seed : int
        Of the folds, which are those of `featx.folds.cross_validation_folds`.
    cv : int
        Folds, at least 2.

    Returns
    -------
    log_probabilities : (n, k) float64
        Columns in the order of `estimator.classes_`; -inf for a probability of 0, and for a
        class that the other folds lack. NaN in rows without a prediction.
    has_one : (n,) bool
        Which rows have one: not those of a class that is in no other row, or in no other group,
        nor those of a fold without which only one class is left.

    Raises
    ------
    InputError
        Not one row can be predicted from others.
    """
    classes = np.asarray(estimator.classes_)
    numbers = np.searchsorted(classes, y)
    settled = estimator.choice().params if isinstance(estimator, Head) else {}
    found = np.full((len(y), len(classes)), np.nan)
    for train, val in cross_validation_folds(numbers, n_folds=cv, groups=groups, seed=seed):
        if len(np.unique(numbers[train])) < 2:
            continue
        fitted = clone(estimator).set_params(**settled)
        keywords: dict[str, Any] = {}
        if groups is not None and (groups >= 0).any():
            keywords["groups"] = groups[train]
        fitted.fit(part_of(X, train), y[train], **keywords)
        columns = np.searchsorted(classes, fitted.classes_)
        found[val] = -np.inf
        with np.errstate(divide="ignore"):  # log 0 is -inf
            found[np.ix_(val, columns)] = np.log(fitted.predict_proba(part_of(X, val)))
    return found, ~np.isnan(found[:, 0])
