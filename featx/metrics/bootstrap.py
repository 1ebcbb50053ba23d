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
) -> dict[str, FloatArray]:
    """Every figure of every draw; the draws are the same however they are cut into blocks.

    Parameters
    ----------
    y, y_pred : (n,) int64
    per_image : name to (n,) float64
        Figures that are means over the images.
    ranked : sequence of Ranking
        Classes whose average precision and ROC AUC are averaged; none for no such figures.
    """
    n = len(y)
    rng = np.random.default_rng(seed)
    hit_class = np.where(y == y_pred, y, k)  # k: no hit
    names = [*per_image, "balanced_accuracy", "macro_f1", "weighted_f1"]
    names += ["average_precision", "roc_auc"] if ranked else []
    draws = {name: np.empty(n_draws) for name in names}
    width = n + 3 * (k + 1) + (6 * n if ranked else 0)
    for part in blocks(n_draws, width):
        drawn = rng.integers(0, n, size=(part.stop - part.start, n))  # (b, n) image numbers
        for name, values in per_image.items():
            draws[name][part] = values[drawn].mean(axis=1)
        counts = (row_counts(of[drawn], k + 1)[:, :k] for of in (y, y_pred, hit_class))
        for name, means in class_means(*counts).items():
            draws[name][part] = means
        if ranked:
            times = row_counts(drawn, n).astype(np.int32)
            draws["average_precision"][part], draws["roc_auc"][part] = macro_averages(ranked, times)
    return draws


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


def interval(value: float, draws: FloatArray) -> Estimate:
    """The figure and its percentile interval over the draws in which it is defined."""
    draws = draws[np.isfinite(draws)]
    if not len(draws):
        return Estimate(value)
    low, high = np.percentile(draws, [2.5, 97.5])
    return Estimate(value, float(low), float(high))
