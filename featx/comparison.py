"""Whether classifiers differ on the same images, or only seem to: right and wrong answers in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from featx.errors import InputError
from featx.metrics import Estimate
from featx.metrics.bootstrap import draw_times, interval, units

FloatArray = npt.NDArray[np.float64]

_BLOCK: Final = 1 << 24  # answers drawn at once: 16 MiB


@dataclass(frozen=True)
class Difference:
    """Two classifiers on the same images.

    Attributes
    ----------
    first, second : their names.
    accuracy : the first's accuracy minus the second's, with a 95 % interval of the paired
        bootstrap: the same images (or whole groups) are drawn for both; none of a single group.
    only_first, only_second : images that only one of them got right.
    p : of McNemar's exact test that both are equally often the only one who is right; where there
        are groups of `exchanged`.
    p_adjusted : `p` by Holm's correction for all pairs that were compared.
    """

    first: str
    second: str
    accuracy: Estimate
    only_first: int
    only_second: int
    p: float
    p_adjusted: float

    def to_dict(self) -> dict[str, Any]:
        """The same as plain numbers and strings, ready for `json.dumps`."""
        return vars(self) | {"accuracy": self.accuracy.to_dict()}


def compare_accuracies(
    right: npt.ArrayLike,
    names: Sequence[str],
    *,
    groups: npt.ArrayLike | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> tuple[Difference, ...]:
    """Every pair of classifiers, in the order of `names`.

    The interval of a difference comes from drawing images with replacement, the same for both
    (Efron & Tibshirani 1993, ch. 13 and 16). McNemar's test (1947) in its exact form asks
    whether images that only one of the two got right fall to either alike. With many pairs some
    p-value is small by chance: `p_adjusted` keeps the chance of even one false alarm among all of
    them at the level it is compared with (Holm 1979, A simple sequentially rejective multiple test
    procedure). Where images belong together, both draw and exchange whole groups.

    Parameters
    ----------
    right : (m, n) bool
        Whether each of m classifiers is right about each of n images.
    names : m str
    groups : (n,) int, -1 where an image is alone; None where all are.
    bootstrap : draws for the intervals; 0 for none.
    seed : of the draws.

    Raises
    ------
    InputError
        Fewer than two classifiers, no images, or shapes that do not fit.

    Examples
    --------
    >>> right = np.array([[True] * 9 + [False], [True] * 4 + [False] * 6])
    >>> (pair,) = compare_accuracies(right, ["a", "b"])
    >>> round(pair.accuracy.value, 3), pair.only_first, pair.only_second, pair.p
    (0.5, 5, 0, 0.0625)
    """
    answers = np.asarray(right)
    if answers.ndim != 2 or answers.dtype != bool or len(answers) != len(names):
        raise InputError(
            f"right must be bool of shape ({len(names)}, n), one row for each name, "
            f"got shape {answers.shape} and type {answers.dtype}"
        )
    if len(answers) < 2 or not answers.shape[1]:
        raise InputError(
            f"a comparison needs at least two classifiers and one image, got {len(answers)} and "
            f"{answers.shape[1]}"
        )
    if bootstrap < 0:
        raise InputError(f"bootstrap must be 0 or more draws, got {bootstrap}")
    unit = units(None if groups is None else np.asarray(groups), answers.shape[1])
    n_draws = 0 if groups is not None and not unit.any() else bootstrap
    drawn = _drawn_accuracies(answers, n_draws, seed, unit)  # (draws, m)
    pairs = list(combinations(range(len(answers)), 2))
    only = [
        (int((answers[a] & ~answers[b]).sum()), int((answers[b] & ~answers[a]).sum()))
        for a, b in pairs
    ]
    p = np.array([exchanged(answers[a], answers[b], unit) for a, b in pairs])
    return tuple(
        Difference(
            names[a],
            names[b],
            interval((counts[0] - counts[1]) / answers.shape[1], drawn[:, a] - drawn[:, b]),
            *counts,
            float(p_pair),
            float(adjusted),
        )
        for (a, b), counts, p_pair, adjusted in zip(pairs, only, p, holm(p), strict=True)
    )


def exchanged(first: npt.ArrayLike, second: npt.ArrayLike, unit: npt.ArrayLike) -> float:
    """The two-sided p-value of McNemar's exact test, of units instead of images.

    If two classifiers are equally good, their answers may as well be exchanged, in each unit by
    itself. This is the exact share of all exchanges with a difference as large as the one found;
    of single images it is McNemar's.

    Parameters
    ----------
    first, second : (n,) bool, whether each of the two is right.
    unit : (n,) int, of 0 and above; images of one unit are exchanged together.

    Examples
    --------
    >>> first, second = np.arange(9) > 0, np.arange(9) == 0  # 8 only the first, 1 only the second
    >>> exchanged(first, second, np.arange(9)), exchanged(first, second, np.arange(9) // 3)
    (0.0390625, 0.25)
    """
    more = np.asarray(first, np.int64) - np.asarray(second, np.int64)
    gaps = np.abs(np.bincount(unit, weights=more)).astype(np.int64)
    found = abs(int(more.sum()))
    if len(gaps) and gaps.max(initial=0) <= 1:
        return mcnemar((int(gaps.sum()) + found) // 2, (int(gaps.sum()) - found) // 2)
    total = int(gaps.sum())
    share = np.zeros(2 * total + 1)  # of the exchanges whose difference is so much, from -total on
    share[total] = 1.0
    for gap in gaps[gaps > 0].tolist():
        share = (np.roll(share, gap) + np.roll(share, -gap)) / 2  # nothing reaches the ends before
    difference = np.abs(np.arange(-total, total + 1))
    return min(1.0, float(share[difference >= found].sum()))


def mcnemar(only_first: int, only_second: int) -> float:
    """The two-sided p-value of McNemar's exact test: images that only one of two got right.

    Examples
    --------
    >>> mcnemar(8, 1)
    0.0390625
    """
    from scipy.stats import binomtest

    n = only_first + only_second
    return float(binomtest(only_first, n, 0.5).pvalue) if n else 1.0


def holm(p: npt.ArrayLike) -> FloatArray:
    """P-values (m,) adjusted for m tests by Holm's step-down procedure.

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03]).round(4).tolist()
    [0.03, 0.06, 0.06]
    """
    values = np.asarray(p, np.float64)
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def _drawn_accuracies(
    right: npt.NDArray[np.bool_], n_draws: int, seed: int, unit: npt.NDArray[np.int64]
) -> FloatArray:
    """Accuracies (n_draws, m) on units drawn with replacement, the same for all in a draw."""
    m, n = right.shape
    rng = np.random.default_rng(seed)
    by_image = right.T.astype(np.float64)  # (n, m)
    drawn = np.empty((n_draws, m))
    step = max(1, _BLOCK // (8 * n))
    for start in range(0, n_draws, step):
        part = slice(start, min(start + step, n_draws))
        times = draw_times(rng, part.stop - part.start, unit)
        drawn[part] = times @ by_image / times.sum(axis=1, keepdims=True)
    return drawn
