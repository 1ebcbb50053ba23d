"""Temperature scaling (Guo et al. 2017): one number that makes a head as sure as it is right.

A head's probabilities p become p^(1/T) / sum p^(1/T), which is softmax(logits / T). A temperature
above 1 makes a head less sure, one below 1 surer. No image's classes change their order.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from featx.errors import InputError

FloatArray = npt.NDArray[np.float64]

BOUNDS: Final = (0.01, 100.0)  # between which a temperature is looked for
_PRECISION: Final = 1e-7  # of its logarithm
_HALF_CHI_SQUARE: Final = 1.920729
_BLOCK: Final = 1 << 22  # logits held at once: 32 MiB of float64


def fit_temperature(logits: npt.ArrayLike, y: npt.ArrayLike) -> float:
    """The temperature at which the log-loss on these rows is least.

    In 1/T the log-loss is convex, so that the bounded search of SciPy over ln T finds the one
    minimum there is between `BOUNDS`. Fit it on validation rows or on out-of-fold predictions:
    rows that were trained on make a head look too well calibrated, and rows that are tested on
    later make the test worthless.

    Parameters
    ----------
    logits : (n, k) float
        Logits, or logarithms of probabilities, which differ from logits by a constant in each
        row. -inf is a probability of 0, which no temperature changes; a row whose true class has
        it does not count.
    y : (n,) int
        True classes, 0 to k - 1.

    Returns
    -------
    float
        1 where every row is right: its log-loss then falls without end as T goes to 0, and the
        rows say nothing of how sure is too sure.

    Raises
    ------
    InputError
        No rows, shapes that do not fit, a class outside 0..k-1, or logits that are NaN or +inf.

    Examples
    --------
    >>> logits = [[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [2.0, 0.0]]  # sure to 0.88
    >>> round(fit_temperature(logits, [0, 0, 0, 1]), 2)  # and right to 0.75: softmax(2/T, 0)
    1.82
    """
    from scipy.optimize import minimize_scalar

    z, true = _centred(logits, y)
    if not true.any():
        return 1.0
    found = minimize_scalar(
        lambda log_t: _log_loss(z, true, log_t) / len(z),
        bounds=tuple(np.log(BOUNDS)),
        method="bounded",
        options={"xatol": _PRECISION},
    )
    return float(np.exp(found.x))


def temperature_interval(
    logits: npt.ArrayLike, y: npt.ArrayLike, temperature: float
) -> tuple[float, float]:
    """The 95 % likelihood interval of a temperature that was fitted on these rows.

    All temperatures at which the summed log-loss is at most 1.92 above its least, half of the
    95th percentile of chi-square with one degree of freedom (Wilks 1938); it ends at `BOUNDS`. An
    interval that holds 1 says that the rows are too few to tell the head from a calibrated one.

    Examples
    --------
    >>> low, high = temperature_interval([[2.0, 0.0]] * 4, [0, 0, 0, 1], 1.82)
    >>> low < 1 < high
    True
    """
    from scipy.optimize import brentq

    z, true = _centred(logits, y)
    fitted = float(np.log(temperature))
    allowed = _log_loss(z, true, fitted) + _HALF_CHI_SQUARE

    def bound(end: float) -> float:
        if _log_loss(z, true, end) <= allowed:
            return end
        return float(brentq(lambda log_t: _log_loss(z, true, log_t) - allowed, fitted, end))

    low, high = (float(np.exp(bound(float(np.log(end))))) for end in BOUNDS)
    return low, high


def at_temperature(probabilities: npt.ArrayLike, temperature: float) -> FloatArray:
    """Probabilities of a head as they are at a temperature.

    Parameters
    ----------
    probabilities : (n, k) float
        Rows that sum to 1.
    temperature : float
        Above 0; at 1 nothing changes, bit for bit.

    Returns
    -------
    (n, k) float64

    Examples
    --------
    >>> at_temperature([[0.9, 0.1]], 2.0).round(3).tolist()
    [[0.75, 0.25]]
    """
    if not (np.isfinite(temperature) and temperature > 0):
        raise InputError(f"a temperature must be a number above 0, got {temperature!r}")
    p = np.array(probabilities, np.float64)
    if temperature == 1 or not len(p):
        return p
    p /= p.max(axis=1, keepdims=True)
    np.power(p, 1 / temperature, out=p)
    p /= p.sum(axis=1, keepdims=True)
    return p


def _centred(logits: npt.ArrayLike, y: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Rows less their largest logit, (m, k), and of each its true class's, (m,): the rows that
    count."""
    z, labels = _checked(logits, y)
    z = z - z.max(axis=1, keepdims=True)
    true = z[np.arange(len(z)), labels]  # at most 0
    counts = np.isfinite(true)
    return z[counts], true[counts]


def _log_loss(z: FloatArray, true: FloatArray, log_temperature: float) -> float:
    """Summed over the rows that `_centred` gives."""
    inverse = float(np.exp(-log_temperature))
    step = max(1, _BLOCK // z.shape[1])
    total = -inverse * float(true.sum())
    for start in range(0, len(z), step):
        scaled = np.exp(z[start : start + step] * inverse)  # (b, k), its largest is 1
        total += float(np.log(scaled.sum(axis=1)).sum())
    return total


def _checked(logits: npt.ArrayLike, y: npt.ArrayLike) -> tuple[FloatArray, npt.NDArray[Any]]:
    z, labels = np.asarray(logits, np.float64), np.asarray(y)
    if z.ndim != 2 or not z.size:
        raise InputError(f"logits must be a matrix (n, k) of at least one row, got shape {z.shape}")
    if labels.shape != (len(z),) or labels.dtype.kind not in "iu":
        raise InputError(
            f"y must be {len(z)} class numbers, one for each row of the logits, "
            f"got an array of shape {labels.shape} and type {labels.dtype}"
        )
    if labels.min() < 0 or labels.max() >= z.shape[1]:
        raise InputError(
            f"y must be class numbers from 0 to {z.shape[1] - 1}, "
            f"got {labels.min()} to {labels.max()}"
        )
    largest = z.max(axis=1)
    if not np.isfinite(largest).all():  # NaN comes out of max, too
        raise InputError("logits must be numbers or -inf, at least one of a row a number")
    return z, labels
