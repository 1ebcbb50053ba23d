"""How well a class's probability ranks the images: average precision and area under the ROC curve.

Each class against all others (one-vs-rest). Images of equal probability count as scikit-learn
counts them: they pass a threshold together, and half of a tie is won.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from featx.metrics.blocks import blocks
from featx.metrics.report import FloatArray, IntArray

Counts = npt.NDArray[np.integer]

# Images times classes up to which the figures are taken anew for every draw: 2 billion steps in
# 1,000 draws. A fixed rule and no timing, so that a report does not depend on the machine.
MAX_RESAMPLED = 2_000_000


@dataclass(frozen=True, eq=False)
class Ranking:
    """The images in the order of one class's probability, the most probable first.

    Attributes
    ----------
    order : (n,) int32
        Image numbers.
    positives : (m,) int64
        Places in this order of the images that are of the class.
    start, end : (m,) int64
        Of each of these, the places of the first image of its probability and after the last.
    first, last : (m,) int64
        The same, counted among the positives alone.
    """

    order: npt.NDArray[np.int32]
    positives: IntArray
    start: IntArray
    end: IntArray
    first: IntArray
    last: IntArray

    @classmethod
    def of(cls, p: FloatArray, is_class: npt.NDArray[np.bool_]) -> Self:
        """Rank the images by `p` (n,), of which `is_class` (n,) bool are of the class."""
        order = np.argsort(-p).astype(np.int32)
        bounds = np.append(np.flatnonzero(np.diff(p[order], prepend=np.inf)), len(p))
        positives = np.flatnonzero(is_class[order])
        tie = np.searchsorted(bounds, positives, side="right")
        start, end = bounds[tie - 1], bounds[tie]
        first, last = np.searchsorted(positives, start), np.searchsorted(positives, end)
        return cls(order, positives, start, end, first, last)

    def figures(self, times: Counts) -> tuple[FloatArray, FloatArray]:
        """Average precision and ROC AUC where image i counts `times[:, i]` times: (b, n) -> (b,).

        Fastest where `times` is int32, in which the sum of a row, n, must fit.
        NaN in a draw without an image of the class, or without any other.
        """
        weight = np.take(times, self.order, axis=1)  # (b, n)
        of_class = weight[:, self.positives].astype(np.int64)  # (b, m)
        seen, hits = _running(weight), _running(of_class)
        n, m = seen[:, -1].astype(np.int64), hits[:, -1]
        false_before = seen[:, self.start] - hits[:, self.first]
        false_with_ties = seen[:, self.end] - hits[:, self.last]
        precision = hits[:, self.last] / np.maximum(seen[:, self.end], 1)
        lost = (of_class * (false_before + false_with_ties)).sum(axis=1) / 2
        defined = (m > 0) & (m < n)
        average_precision = (of_class * precision).sum(axis=1) / np.maximum(m, 1)
        roc_auc = 1 - lost / np.maximum(m * (n - m), 1)
        return np.where(defined, average_precision, np.nan), np.where(defined, roc_auc, np.nan)


def rankings(y: IntArray, p: npt.NDArray[np.floating]) -> Iterator[tuple[int, Ranking]]:
    """Every class that some but not all of the images y (n,) are of, and its ranking by p (n, k).

    The probabilities are taken as they are: to divide them by their row's sum would part equals.
    """
    n, k = p.shape
    support = np.bincount(y, minlength=k)
    for columns in blocks(k, n):
        block = p[:, columns].T.astype(np.float64, order="C")  # (b, n)
        for label, column in enumerate(block, start=columns.start):
            if 0 < support[label] < n:
                yield label, Ranking.of(column, y == label)


def macro_averages(ranked: Iterable[Ranking], times: Counts) -> tuple[FloatArray, FloatArray]:
    """Means over the classes that a draw has some but not only images of: (b, n) -> two (b,).

    NaN in a draw that has no such class.
    """
    total = np.zeros((2, len(times)))
    n_defined = np.zeros(len(times), np.int64)
    for ranking in ranked:
        figures = np.array(ranking.figures(times))  # (2, b)
        defined = np.isfinite(figures[0])
        total += np.where(defined, figures, 0)
        n_defined += defined
    means = np.where(n_defined, total / np.maximum(n_defined, 1), np.nan)
    return means[0], means[1]


def _running(counts: Counts) -> Counts:
    """Running sums from 0 on: (b, m) -> (b, m + 1), of the same type."""
    sums = np.zeros((len(counts), counts.shape[1] + 1), counts.dtype)
    np.cumsum(counts, axis=1, out=sums[:, 1:])
    return sums
