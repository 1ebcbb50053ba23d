"""A head by the name of its kind, from parameters that a person may have mistyped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featx.errors import InputError
from featx.heads.base import Head
from featx.heads.contents import KINDS
from featx.heads.epochs import EpochsHead
from featx.heads.row_view import RowView
from featx.heads.tail import TailHead


def make_head(kind: str, params: Mapping[str, Any], *, device: str, seed: int) -> Head:
    """An estimator that is not fitted yet.

    Parameters
    ----------
    kind : a key of `KINDS`.
    params : of that head; what is left out has its default.
    device : where it is to be fitted.
    seed : its `random_state`.

    Raises
    ------
    InputError
        An unknown kind, or a parameter that the kind does not have.
    """
    if kind not in KINDS:
        raise InputError(f"head must be one of {', '.join(KINDS)}, got {kind!r}")
    known = KINDS[kind]().get_params()
    unknown = sorted(set(params) - set(known))
    if unknown:
        others = [name for name, cls in KINDS.items() if set(unknown) <= set(cls().get_params())]
        theirs = f" (of {', '.join(others)})" if others else ""
        raise InputError(
            f"head {kind!r} has no parameter {', '.join(unknown)}{theirs}, nor such an option; its "
            f"own are {', '.join(sorted(known))}"
        )
    return KINDS[kind](**{"device": device, "random_state": seed, **params})


def fit_on(
    estimator: Head,
    X: npt.NDArray[Any],
    y: npt.NDArray[Any],
    rows: npt.NDArray[np.int64],
    *,
    val_rows: npt.NDArray[np.int64] | None = None,
    groups: npt.NDArray[np.int64] | None = None,
    extent: npt.NDArray[np.uint16] | None = None,
    checkpoint: Path | None = None,
    told: Callable[[Mapping[str, Any]], None] | None = None,
) -> Head:
    """Fit on some rows of features, which are read as they are needed and never copied whole.

    Parameters
    ----------
    estimator : what to fit.
    X, y : (n, d), (n,) all rows, perhaps a memory map.
    rows : (m,) to train on.
    val_rows : to choose on; none: the head chooses inside `rows`.
    groups : (n,) of all rows, -1 for none.
    extent, checkpoint, told : of a `TailHead`, see its `fit`; nothing to others.
    """
    keywords: dict[str, Any] = {}
    if isinstance(estimator, TailHead):
        keywords |= {"extent": extent, "checkpoint": checkpoint, "told": told}
    if groups is not None and (groups[rows] >= 0).any():
        keywords["groups"] = groups[rows]
    if val_rows is not None and not len(val_rows):
        val_rows = None
    if isinstance(estimator, EpochsHead):  # reads the rows of the memory map as it needs them
        return estimator.fit(X, y, rows=rows, val_rows=val_rows, **keywords)
    if val_rows is not None:
        keywords |= {"X_val": RowView(X, val_rows), "y_val": y[val_rows]}
    return estimator.fit(RowView(X, rows), y[rows], **keywords)


def probabilities_of(
    estimator: Head, X: npt.NDArray[Any] | RowView, extent: npt.NDArray[np.uint16] | None = None
) -> npt.NDArray[np.float64]:
    """Class probabilities (n, k) of rows (n, d); `extent` of whole pictures, for a `TailHead`.

    Of a `RowView` they are read as they are needed.
    """
    if isinstance(estimator, TailHead):
        return estimator.predict_proba(X, extent)
    return estimator.predict_proba(X)
