"""Whether a head that says 0.8 is right 8 times in 10."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from featx.metrics.blocks import blocks
from featx.metrics.report import FloatArray, Reliability

N_BINS: Final = 15  # of equal width (Guo et al. 2017, "On Calibration of Modern Neural Networks")


def reliability(confidence: FloatArray, is_right: npt.NDArray[np.bool_]) -> Reliability:
    """The reliability curve of predicted classes.

    Parameters
    ----------
    confidence : (n,) float64
        Probability of the predicted class, above 0 and at most 1.
    is_right : (n,) bool
    """
    edges = np.linspace(0, 1, N_BINS + 1)
    bins = _bins(confidence, edges)
    count, summed, right = (
        np.bincount(bins, weights, N_BINS) for weights in (None, confidence, is_right)
    )
    filled = count > 0
    mean, accuracy = (
        np.divide(sums, count, out=np.full(N_BINS, np.nan), where=filled)
        for sums in (summed, right)
    )
    return Reliability(edges, count.astype(np.int64), mean, accuracy)


def ece_if_calibrated(confidence: FloatArray, n_draws: int, seed: int) -> FloatArray:
    """Expected calibration errors of a head whose confidences are true.

    Consistency resampling (Bröcker & Smith 2007, "Increasing the Reliability of Reliability
    Diagrams"), the confidences kept: each image is right with the probability that was stated.

    Returns
    -------
    (n_draws,) float64
    """
    n = len(confidence)
    rng = np.random.default_rng([seed, 1])  # other draws than those of the images
    by_bin = np.sort(confidence)  # the bins are runs of it
    bins = _bins(by_bin, np.linspace(0, 1, N_BINS + 1))
    starts = np.flatnonzero(np.diff(bins, prepend=-1))
    found = np.empty(n_draws)
    for part in blocks(n_draws, 2 * n):
        is_right = rng.random((part.stop - part.start, n)) < by_bin
        gaps = np.add.reduceat(is_right - by_bin, starts, axis=1)  # (b, filled bins)
        found[part] = np.abs(gaps).sum(axis=1) / n
    return found


def _bins(confidence: FloatArray, edges: FloatArray) -> npt.NDArray[np.intp]:
    """Each confidence's bin, which holds its upper edge."""
    return np.digitize(confidence, edges[1:-1], right=True)
