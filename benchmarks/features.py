"""Features drawn by seed that behave like a network's, and the objective of a linear classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

_N_FACTORS: Final = 1024  # independent directions, at most; the rest is noise
_DECAY: Final = 0.5  # the j-th direction's standard deviation is j ** -0.5
_BLOCK_BYTES: Final = 64 << 20

Floats = npt.NDArray[np.float64]


def draw_features(
    n: int, d: int, k: int, *, seed: int = 0, separation: float = 0.5
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Non-negative, correlated features of k classes that overlap.

    Class means and noise lie in directions of power-law variance, are mixed at random, get noise
    of their own each, and pass a ReLU.

    Returns
    -------
    X : (n, d) float32
    y : (n,) int64
    """
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % k)
    p = min(d, _N_FACTORS)
    spread = np.arange(1, p + 1) ** -_DECAY
    factors = rng.normal(size=(n, p)) + separation * rng.normal(size=(k, p))[y]
    factors = (factors * spread).astype(np.float32)
    X = np.empty((n, d), np.float32)
    step = max(1, _BLOCK_BYTES // (4 * n))
    for start in range(0, d, step):
        part = slice(start, min(start + step, d))
        X[:, part] = factors @ rng.standard_normal((p, part.stop - start), np.float32)
        X[:, part] += 0.7 * rng.standard_normal((n, part.stop - start), np.float32)
    return np.maximum(X, 0, out=X), y


@dataclass(frozen=True)
class Judged:
    """What a classifier is worth, computed in float64 from X.

    Attributes
    ----------
    objective : mean loss plus ``||W||^2 / (2 C n)``.
    gradient_norm : of it.
    bound : how far above the minimum it is at most: the penalty makes the objective strongly
        convex, so ``gradient_norm ** 2 / (2 / (C n))``.
    accuracy : on X.
    """

    objective: float
    gradient_norm: float
    bound: float
    accuracy: float


def judge(
    X: npt.NDArray[np.float32],
    y: npt.NDArray[np.int64],
    mean: Floats,
    scale: Floats,
    W: Floats,
    b: Floats,
    C: float,
) -> Judged:
    """The objective of weights (k, d) and intercepts (k,) on standardised features."""
    n, d = X.shape
    penalty = 1 / (C * n)
    loss, n_right, sums, b_sums = 0.0, 0, np.zeros_like(W), np.zeros_like(b)
    step = max(1, _BLOCK_BYTES // (8 * d))
    for start in range(0, n, step):
        Z = (X[start : start + step] - mean) / scale
        labels = y[start : start + step]
        own = np.arange(len(labels)), labels
        logits = Z @ W.T + b
        n_right += int((logits.argmax(axis=1) == labels).sum())
        logits -= logits.max(axis=1, keepdims=True)
        of_label = logits[own]
        p = np.exp(logits)
        total = p.sum(axis=1, keepdims=True)
        loss += float((np.log(total[:, 0]) - of_label).sum())
        p /= total
        p[own] -= 1
        sums += p.T @ Z
        b_sums += p.sum(axis=0)
    gradient = sums / n + penalty * W
    norm = float(np.sqrt((gradient**2).sum() + ((b_sums / n) ** 2).sum()))
    value = loss / n + penalty / 2 * float((W**2).sum())
    return Judged(value, norm, norm**2 / (2 * penalty), n_right / n)
