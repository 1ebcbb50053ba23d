"""The temperature of a fitted head, from validation rows or from training rows out of fold."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from featx.counting import counted
from featx.crossfit import out_of_fold
from featx.heads.making import probabilities_of
from featx.heads.row_view import RowView
from featx.metrics import score
from featx.splits import Split
from featx.temperature import at_temperature, fit_temperature, temperature_interval


def fit_calibration(
    estimator: Any,
    X: npt.NDArray[Any],
    y: npt.NDArray[np.int64],
    split: Split,
    *,
    groups: npt.NDArray[np.int64],
    extent: npt.NDArray[np.uint16] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Fit a temperature without the held-out rows.

    With validation rows it is fitted on what the head says of these. Otherwise the head is fitted
    anew on five folds of the training rows, its choices kept, and the temperature is fitted on
    what each says of the rows it was not fitted on.

    Parameters
    ----------
    estimator : Head
        Fitted on the training rows.
    X, y, groups : (n, d) float, (n,) int64, (n,) int64
        All rows, of which `split` names the parts.
    split : Split
    extent : (n, 2) uint16, optional
        Of whole pictures, for a tail.
    seed : int
        Of the folds.

    Returns
    -------
    dict
        JSON-ready: `temperature`; its likelihood `interval`, or None where all rows are right;
        `fitted_on`, in words; `n` rows, of which `n_wrong` are predicted wrongly; `log_loss` and
        `ece`, each `before` and `after`, on those rows.
    """
    classes = np.asarray(estimator.classes_)
    if len(split.val):
        rows = split.val[np.isin(y[split.val], classes)]
        with np.errstate(divide="ignore"):  # log 0 is -inf
            of_rows = None if extent is None else extent[rows]
            logits = np.log(probabilities_of(estimator, RowView(X, rows), of_rows))
        words = counted(len(rows), "val image")
    else:
        rows = split.train
        view = RowView(X, rows)
        logits, has_one = out_of_fold(estimator, view, y[rows], groups=groups[rows], seed=seed)
        rows, logits = rows[has_one], logits[has_one]
        words = counted(len(rows), "out-of-fold training image")
    labels = np.searchsorted(classes, y[rows])
    temperature = fit_temperature(logits, labels)
    plain = np.exp(logits)
    names = [str(label) for label in classes]
    before, after = (
        score(labels, at_temperature(plain, t), classes=names, bootstrap=0)
        for t in (1.0, temperature)
    )
    n_wrong = round(before.n * (1 - before.accuracy.value))
    return {
        "temperature": temperature,
        "interval": list(temperature_interval(logits, labels, temperature)) if n_wrong else None,
        "fitted_on": words if n_wrong else f"nothing: all {words} are right",
        "n": before.n,
        "n_wrong": n_wrong,
        "log_loss": {"before": before.log_loss.value, "after": after.log_loss.value},
        "ece": {"before": before.ece.value, "after": after.ece.value},
    }
