"""Figures taken anew on images drawn with replacement, and the intervals that follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from featx.metrics.blocks import blocks
from featx.metrics.ranking import Ranking, macro_averages
from featx.metrics.report import Estimate, FloatArray, IntArray


def resample(
    y: IntArray,
    y_pred: IntArray,
    per_image: Mapping[str, FloatArray],
    ranked: Sequence[Ranking],
    k: int,
    n_draws: int,
    seed: int,
    unit: IntArray,
) -> dict[str, FloatArray]:
    """Every figure of every draw; the draws are the same however they are cut into blocks.

    Parameters
    ----------
    y, y_pred : (n,) int64
    per_image : name to (n,) float64
        Figures that are means over the images.
    ranked : sequence of Ranking
        Classes whose average precision and ROC AUC are averaged; none for no such figures.
    unit : (n,) int64
        What each image is drawn with, of `units`.
    """
    n = len(y)
    rng = np.random.default_rng(seed)
    hit_class = np.where(y == y_pred, y, k)  # k: no hit
    names = [*per_image, "balanced_accuracy", "macro_f1", "weighted_f1"]
    names += ["average_precision", "roc_auc"] if ranked else []
    draws = {name: np.empty(n_draws) for name in names}
    width = 3 * n + 3 * (k + 1) + (6 * n if ranked else 0)
    for part in blocks(n_draws, width):
        times = draw_times(rng, part.stop - part.start, unit)  # (b, n)
        total = times.sum(axis=1)
        for name, values in per_image.items():
            draws[name][part] = (times * values).sum(axis=1) / total
        counts = (_class_counts(of, times, k + 1)[:, :k] for of in (y, y_pred, hit_class))
        for name, means in class_means(*counts).items():
            draws[name][part] = means
        if ranked:
            draws["average_precision"][part], draws["roc_auc"][part] = macro_averages(
                ranked, times.astype(np.int32)
            )
    return draws


def units(groups: IntArray | None, n: int) -> IntArray:
    """What each of n images is drawn with, numbered from 0: its group, or itself alone.

    Parameters
    ----------
    groups : (n,) int64, -1 where an image is alone; None where all are.
    """
    if groups is None:
        return np.arange(n)
    own = groups.max(initial=-1) + 1 + np.arange(n)
    return np.unique(np.where(groups < 0, own, groups), return_inverse=True)[1].astype(np.int64)


def draw_times(rng: np.random.Generator, b: int, unit: IntArray) -> IntArray:
    """How often each image is in each of b draws of as many units as there are, (b, n).

    A unit is drawn whole, with replacement (Davison & Hinkley 1997, Bootstrap Methods and their
    Application, sect. 3.8): images of one group are no more than one draw's worth of evidence.
    """
    n_units = int(unit.max()) + 1
    return row_counts(rng.integers(0, n_units, size=(b, n_units)), n_units).take(unit, axis=1)


def _class_counts(labels: IntArray, times: IntArray, k: int) -> IntArray:
    """How often 0..k-1 occur among labels (n,) that each count so many times, (b, n) -> (b, k)."""
    order = np.argsort(labels, kind="stable")
    present, first = np.unique(labels[order], return_index=True)
    counts = np.zeros((len(times), k), np.int64)
    counts[:, present] = np.add.reduceat(times.take(order, axis=1), first, axis=1)
    return counts


def row_counts(values: IntArray, k: int) -> IntArray:
    """How often 0..k-1 occur in each row: (b, n) -> (b, k)."""
    b = len(values)
    flat = (values + k * np.arange(b)[:, None]).ravel()
    return np.bincount(flat, minlength=b * k).reshape(b, k)


def class_means(support: IntArray, predicted: IntArray, hits: IntArray) -> dict[str, FloatArray]:
    """Mean recall and mean F1 over the classes with support, of each row of (b, k) counts."""
    present = support > 0
    recall = hits / np.maximum(support, 1)
    f1 = 2 * hits / np.maximum(support + predicted, 1)
    n_present = present.sum(axis=1)
    return {
        "balanced_accuracy": np.where(present, recall, 0).sum(axis=1) / n_present,
        "macro_f1": np.where(present, f1, 0).sum(axis=1) / n_present,
        "weighted_f1": (support * f1).sum(axis=1) / support.sum(axis=1),
    }


def interval(value: float, draws: FloatArray, *, n_units: int | None = None) -> Estimate:
    """The figure and its 95 % percentile interval over the draws in which it is defined.

    Draws of units that are all alike are all alike too, which is no certainty. A share, of
    `n_units` units of which then all count or none, has the exact interval of Clopper & Pearson
    1934 (Biometrika 26); another figure has none.

    Examples
    --------
    >>> found = interval(1.0, np.ones(1000), n_units=50)
    >>> round(found.low, 3), found.high
    (0.929, 1.0)
    """
    draws = draws[np.isfinite(draws)]
    if not len(draws):
        return Estimate(value)
    low, high = np.percentile(draws, [2.5, 97.5])
    if low < high:
        return Estimate(value, float(low), float(high))
    if n_units is None or value not in (0.0, 1.0):
        return Estimate(value)
    bound = float(0.025 ** (1 / n_units))
    return Estimate(value, bound, 1.0) if value else Estimate(value, 0.0, 1 - bound)
