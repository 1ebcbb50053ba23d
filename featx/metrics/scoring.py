"""The report on labels and predicted probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from featx.errors import InputError
from featx.metrics.blocks import blocks
from featx.metrics.bootstrap import class_means, interval, resample, units
from featx.metrics.ranking import MAX_RESAMPLED, Ranking, rankings
from featx.metrics.reliability import ece_if_calibrated, reliability
from featx.metrics.report import (
    Baseline,
    ClassScore,
    ConfusedPair,
    Estimate,
    FloatArray,
    IntArray,
    Report,
)

TOP = 5  # top-5 accuracy, as ImageNet's challenge counts it (Russakovsky et al. 2015)
N_CONFUSED = 10  # the most confused pairs that a report names


def score(
    y_true: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    *,
    classes: Sequence[str],
    train_counts: npt.ArrayLike | None = None,
    groups: npt.ArrayLike | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Report:
    """Score predicted probabilities against true classes.

    The prediction is the most probable class; among equals the first. Top-5 breaks ties in the
    same way. Log-loss clips probabilities to float64's epsilon, as scikit-learn does; average
    precision and ROC AUC treat equal probabilities as scikit-learn does.

    Intervals are percentile bootstrap intervals (Efron & Tibshirani 1993, An Introduction to the
    Bootstrap, ch. 13): the images are drawn with replacement `bootstrap` times and every figure
    is taken anew, over the classes present in that draw; the interval runs from the 2.5th to the
    97.5th percentile. They tell how the figures depend on which images were tested, not on which
    were trained on. Where there are groups, whole groups are drawn; of one group alone nothing can
    be drawn, and there are no intervals. Where all draws are alike, as of images that are all
    right, shares of images (accuracy, top-5, the baseline) have the exact interval of Clopper &
    Pearson 1934 and other figures none. `Report` says which figures never have one.

    Parameters
    ----------
    y_true : (n,) int
        True classes, 0 to k - 1.
    probabilities : (n, k) float
        Each row sums to 1 within 1e-3 and is normalised here, but for rankings.
    classes : k str
        The classes' names.
    train_counts : (k,) int, optional
        Training images per class, for the baseline. Without them, or if all are 0, the baseline
        is the commonest class of the test images, and says so.
    groups : (n,) int, optional
        Images that are drawn together; -1 for one that is drawn alone, as all are without it.
    bootstrap : int
        Number of draws; 0 for no intervals.
    seed : int

    Returns
    -------
    Report

    Raises
    ------
    InputError
        No rows, shapes that do not fit, a class outside 0..k-1, or rows that are no probabilities.

    Examples
    --------
    >>> report = score([0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], classes=["crow", "wren"])
    >>> round(report.accuracy.value, 3), report.baseline.class_name
    (0.667, 'wren')
    """
    y, p, names = _checked(y_true, probabilities, classes)
    k = len(names)
    if bootstrap < 0:
        raise InputError(f"bootstrap must be 0 or more draws, got {bootstrap}")
    found = _outcomes(y, p)
    majority, commonest_in = _majority(y, k, train_counts)
    per_image = {
        "accuracy": (found.y_pred == y).astype(float),
        "baseline": (y == majority).astype(float),
        "top5": (found.rank < TOP).astype(float),
        "log_loss": found.loss,
        "brier": found.brier,
    }
    ranked = _rank(y, p)
    unit = units(None if groups is None else _checked_groups(groups, len(y)), len(y))
    n_draws = 0 if groups is not None and not unit.any() else bootstrap
    draws = resample(y, found.y_pred, per_image, ranked.kept, k, n_draws, seed, unit)
    confusion = np.bincount(y * k + found.y_pred, minlength=k * k).reshape(k, k).astype(np.int64)
    support, predicted, hits = confusion.sum(1), confusion.sum(0), confusion.diagonal()
    exact = {name: float(values.mean()) for name, values in per_image.items()}
    means = class_means(support[None], predicted[None], hits[None])
    exact |= {name: float(values[0]) for name, values in means.items()}
    n_units = {name: int(unit.max()) + 1 for name in ("accuracy", "baseline", "top5")}
    estimate = {
        name: interval(value, draws[name], n_units=n_units.get(name))
        for name, value in exact.items()
    }
    curve = reliability(found.confidence, found.y_pred == y)
    return Report(
        n=len(y),
        k=k,
        n_classes_present=int((support > 0).sum()),
        classes=names,
        accuracy=estimate["accuracy"],
        baseline=Baseline(names[majority], majority, commonest_in, estimate["baseline"]),
        top5=estimate["top5"] if k > TOP else None,
        balanced_accuracy=estimate["balanced_accuracy"],
        macro_f1=estimate["macro_f1"],
        weighted_f1=estimate["weighted_f1"],
        average_precision=_macro(ranked.average_precision, draws.get("average_precision")),
        roc_auc=_macro(ranked.roc_auc, draws.get("roc_auc")),
        log_loss=estimate["log_loss"],
        brier=estimate["brier"],
        ece=Estimate(curve.ece),
        ece_if_calibrated=_bounds(ece_if_calibrated(found.confidence, bootstrap, seed)),
        reliability=curve,
        per_class=_per_class(names, support, predicted, hits, ranked),
        confusion=confusion,
        most_confused=_most_confused(names, confusion),
        bootstrap=bootstrap,
        seed=seed,
    )


@dataclass(frozen=True, eq=False)
class _Outcomes:
    """Of each image, (n,): the predicted class and its probability, the true class's rank (0 is
    first), and two losses."""

    y_pred: IntArray
    confidence: FloatArray
    rank: IntArray
    loss: FloatArray
    brier: FloatArray


def _outcomes(y: IntArray, p: npt.NDArray[Any]) -> _Outcomes:
    n, k = p.shape
    found = _Outcomes(*(np.empty(n, dtype) for dtype in (np.int64, float, np.int64, float, float)))
    eps = np.finfo(np.float64).eps
    for rows in blocks(n, k):
        block = p[rows].astype(np.float64)  # (b, k)
        total = block.sum(axis=1, keepdims=True)
        if not (np.isfinite(total).all() and (block >= 0).all() and (abs(total - 1) < 1e-3).all()):
            raise InputError(
                "probabilities must be finite, 0 or more, and sum to 1 in every row; "
                f"got rows that sum to {total.min():g} to {total.max():g}, "
                f"smallest value {block.min():g}"
            )
        block /= total
        true = y[rows][:, None]
        p_true = np.take_along_axis(block, true, axis=1)  # (b, 1)
        ahead = (block > p_true) | ((block == p_true) & (np.arange(k) < true))
        found.y_pred[rows] = block.argmax(axis=1)
        found.confidence[rows] = block.max(axis=1)
        found.rank[rows] = ahead.sum(axis=1)
        found.loss[rows] = -np.log(np.clip(p_true[:, 0], eps, 1 - eps))
        np.put_along_axis(block, true, p_true - 1, axis=1)
        found.brier[rows] = np.einsum("ij,ij->i", block, block)
    return found


@dataclass(frozen=True, eq=False)
class _Ranked:
    """Of each class, (k,): average precision and ROC AUC, NaN where it has none; and the rankings
    that are resampled."""

    average_precision: FloatArray
    roc_auc: FloatArray
    kept: tuple[Ranking, ...]


def _rank(y: IntArray, p: npt.NDArray[Any]) -> _Ranked:
    n, k = p.shape
    once = np.ones((1, n), np.int64)
    average_precision, roc_auc = np.full(k, np.nan), np.full(k, np.nan)
    kept = []
    for label, ranking in rankings(y, p):
        (average_precision[label],), (roc_auc[label],) = ranking.figures(once)
        if n * k <= MAX_RESAMPLED:
            kept.append(ranking)
    return _Ranked(average_precision, roc_auc, tuple(kept))


def _macro(per_class: FloatArray, draws: FloatArray | None) -> Estimate | None:
    """The mean over the classes that have the figure; None without one."""
    defined = per_class[np.isfinite(per_class)]
    if not len(defined):
        return None
    value = float(defined.mean())
    return Estimate(value) if draws is None else interval(value, draws)


def _bounds(draws: FloatArray) -> tuple[float, float] | None:
    if not len(draws):
        return None
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


def _majority(
    y: IntArray, k: int, train_counts: npt.ArrayLike | None
) -> tuple[int, Literal["training images", "test images"]]:
    if train_counts is not None:
        counts = np.asarray(train_counts)
        if counts.shape != (k,) or counts.dtype.kind not in "iu" or (counts < 0).any():
            raise InputError(
                f"train_counts must hold {k} counts, one per class, "
                f"got an array of shape {counts.shape} and type {counts.dtype}"
            )
        if counts.any():
            return int(counts.argmax()), "training images"
    return int(np.bincount(y, minlength=k).argmax()), "test images"


def _per_class(
    names: tuple[str, ...],
    support: IntArray,
    predicted: IntArray,
    hits: IntArray,
    ranked: _Ranked,
) -> tuple[ClassScore, ...]:
    def ratio(above: int, below: int) -> float | None:
        return above / below if below else None

    def told(value: float) -> float | None:
        return None if np.isnan(value) else value

    counts = zip(names, support.tolist(), predicted.tolist(), hits.tolist(), strict=True)
    ranks = zip(ranked.average_precision.tolist(), ranked.roc_auc.tolist(), strict=True)
    return tuple(
        ClassScore(
            name=name,
            precision=ratio(hit, pred),
            recall=ratio(hit, true),
            f1=ratio(2 * hit, true + pred),
            average_precision=told(ap),
            roc_auc=told(auc),
            support=true,
        )
        for (name, true, pred, hit), (ap, auc) in zip(counts, ranks, strict=True)
    )


def _most_confused(names: tuple[str, ...], confusion: IntArray) -> tuple[ConfusedPair, ...]:
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    largest = np.argsort(-wrong, axis=None, kind="stable")[:N_CONFUSED]
    pairs = (np.unravel_index(cell, wrong.shape) for cell in largest if wrong.flat[cell])
    return tuple(ConfusedPair(names[t], names[p], int(wrong[t, p])) for t, p in pairs)


def _checked(
    y_true: npt.ArrayLike, probabilities: npt.ArrayLike, classes: Sequence[str]
) -> tuple[IntArray, npt.NDArray[Any], tuple[str, ...]]:
    names = tuple(classes)
    k = len(names)
    y, p = np.asarray(y_true), np.asarray(probabilities)
    if y.ndim != 1 or not len(y) or y.dtype.kind not in "iu":
        raise InputError(
            "y_true must be a vector of at least one class number, "
            f"got an array of shape {y.shape} and type {y.dtype}"
        )
    if p.shape != (len(y), k) or p.dtype.kind != "f":
        raise InputError(
            f"probabilities must be floats of shape ({len(y)}, {k}), one row per image and one "
            f"column per class, got shape {p.shape} and type {p.dtype}"
        )
    if y.min() < 0 or y.max() >= k:
        raise InputError(
            f"y_true must be class numbers from 0 to {k - 1}, got {y.min()} to {y.max()}; "
            "leave unlabelled images (-1) out"
        )
    return y.astype(np.int64), p, names


def _checked_groups(groups: npt.ArrayLike, n: int) -> IntArray:
    array = np.asarray(groups)
    if array.shape != (n,) or array.dtype.kind not in "iu":
        raise InputError(
            f"groups must be one whole number for each of {n} images, "
            f"got an array of shape {array.shape} and type {array.dtype}"
        )
    return array.astype(np.int64)
