"""Labels and predicted probabilities in, a frozen report out.

Nothing here reads a file, prints or draws. Every figure has a bootstrap interval, and accuracy is
never without the accuracy of always answering the commonest class.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from featx.errors import InputError

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

TOP = 5  # top-5 accuracy, as ImageNet's challenge counts it (Russakovsky et al. 2015)
N_CONFUSED = 10  # the most confused pairs that a report names
_BLOCK = 1 << 22  # numbers held at once while resampling and ranking: 32 MiB of float64


@dataclass(frozen=True)
class Estimate:
    """A figure and its percentile bootstrap 95 % interval (None where not resampled)."""

    value: float
    low: float | None = None
    high: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """`value`, `low`, `high` as plain floats."""
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Baseline:
    """Always answering one class: what an accuracy has to beat.

    `commonest_in` says where `class_name` is the commonest; `accuracy` is on the test images.
    """

    class_name: str
    class_index: int
    commonest_in: Literal["training images", "test images"]
    accuracy: Estimate


@dataclass(frozen=True)
class ClassScore:
    """One class: recall is None without test images, precision None where never predicted,
    F1 None where both hold."""

    name: str
    precision: float | None
    recall: float | None
    f1: float | None
    support: int


@dataclass(frozen=True)
class ConfusedPair:
    """`count` images of class `true` that were taken for `predicted`."""

    true: str
    predicted: str
    count: int


@dataclass(frozen=True, eq=False)
class Report:
    """What `score` found; every fraction is from 0 to 1.

    Attributes
    ----------
    n, k, n_classes_present : int
        Test images, classes the head knows, classes among the test images.
    accuracy, balanced_accuracy, macro_f1, log_loss : Estimate
        Balanced accuracy is the mean recall, and macro-F1 the mean F1, over the classes present
        in `y_true`. Log-loss is in nats.
    top5 : Estimate or None
        None with 5 classes or fewer, where it says nothing.
    per_class : tuple of ClassScore
        In the order of `classes`.
    confusion : (k, k) int64
        Rows are true classes, columns predicted ones.
    most_confused : tuple of ConfusedPair
        The ten largest off-diagonal counts, largest first.
    """

    n: int
    k: int
    n_classes_present: int
    classes: tuple[str, ...]
    accuracy: Estimate
    baseline: Baseline
    top5: Estimate | None
    balanced_accuracy: Estimate
    macro_f1: Estimate
    log_loss: Estimate
    per_class: tuple[ClassScore, ...]
    confusion: IntArray
    most_confused: tuple[ConfusedPair, ...]
    bootstrap: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """The report as plain Python lists, numbers and strings, ready for `json.dumps`."""
        return {
            "n": self.n,
            "k": self.k,
            "n_classes_present": self.n_classes_present,
            "classes": list(self.classes),
            "accuracy": self.accuracy.to_dict(),
            "baseline": vars(self.baseline) | {"accuracy": self.baseline.accuracy.to_dict()},
            "top5": None if self.top5 is None else self.top5.to_dict(),
            "balanced_accuracy": self.balanced_accuracy.to_dict(),
            "macro_f1": self.macro_f1.to_dict(),
            "log_loss": self.log_loss.to_dict(),
            "per_class": [dict(vars(c)) for c in self.per_class],
            "confusion": self.confusion.tolist(),
            "most_confused": [dict(vars(pair)) for pair in self.most_confused],
            "bootstrap": self.bootstrap,
            "seed": self.seed,
        }


def score(
    y_true: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    *,
    classes: Sequence[str],
    train_counts: npt.ArrayLike | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Report:
    """Score predicted probabilities against true classes.

    The prediction is the most probable class; among equals the first. Top-5 breaks ties in the
    same way. Log-loss clips probabilities to float64's epsilon, as scikit-learn does.

    Intervals are percentile bootstrap intervals (Efron & Tibshirani 1993, An Introduction to the
    Bootstrap, ch. 13): the images are drawn with replacement `bootstrap` times and every figure
    is taken anew, over the classes present in that draw; the interval runs from the 2.5th to the
    97.5th percentile. They tell how the figures depend on which images were tested, not on which
    were trained on.

    Parameters
    ----------
    y_true : (n,) int
        True classes, 0 to k - 1.
    probabilities : (n, k) float
        Each row sums to 1 within 1e-3 and is normalised here.
    classes : k str
        The classes' names.
    train_counts : (k,) int, optional
        Training images per class, for the baseline. Without them, or if all are 0, the baseline
        is the commonest class of the test images, and says so.
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
    y_pred, rank, loss = _outcomes(y, p)
    majority, commonest_in = _majority(y, k, train_counts)
    per_image = {
        "accuracy": (y_pred == y).astype(float),
        "baseline": (y == majority).astype(float),
        "top5": (rank < TOP).astype(float),
        "log_loss": loss,
    }
    draws = _bootstrap(y, y_pred, per_image, k, bootstrap, seed)
    confusion = np.bincount(y * k + y_pred, minlength=k * k).reshape(k, k).astype(np.int64)
    support, predicted, hits = confusion.sum(1), confusion.sum(0), confusion.diagonal()
    exact = {name: float(values.mean()) for name, values in per_image.items()}
    exact |= {
        name: float(v[0]) for name, v in _class_means(support[None], predicted[None], hits[None])
    }
    estimate = {name: _interval(value, draws[name]) for name, value in exact.items()}
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
        log_loss=estimate["log_loss"],
        per_class=_per_class(names, support, predicted, hits),
        confusion=confusion,
        most_confused=_most_confused(names, confusion),
        bootstrap=bootstrap,
        seed=seed,
    )


def _outcomes(y: IntArray, p: npt.NDArray[Any]) -> tuple[IntArray, IntArray, FloatArray]:
    """Of each image the predicted class, the true class's rank (0 is first) and the loss."""
    n, k = p.shape
    y_pred, rank, loss = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n)
    eps = np.finfo(np.float64).eps
    for rows in _blocks(n, k):
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
        y_pred[rows] = block.argmax(axis=1)
        rank[rows] = ahead.sum(axis=1)
        loss[rows] = -np.log(np.clip(p_true[:, 0], eps, 1 - eps))
    return y_pred, rank, loss


def _bootstrap(
    y: IntArray,
    y_pred: IntArray,
    per_image: dict[str, FloatArray],
    k: int,
    n_draws: int,
    seed: int,
) -> dict[str, FloatArray]:
    """Every figure of every draw; the draws are the same however they are cut into blocks."""
    n = len(y)
    rng = np.random.default_rng(seed)
    hit_class = np.where(y == y_pred, y, k)  # k: no hit
    draws = {name: np.empty(n_draws) for name in (*per_image, "balanced_accuracy", "macro_f1")}
    for part in _blocks(n_draws, n + 3 * (k + 1)):
        drawn = rng.integers(0, n, size=(part.stop - part.start, n))  # (b, n) image numbers
        for name, values in per_image.items():
            draws[name][part] = values[drawn].mean(axis=1)
        counts = (_row_counts(of[drawn], k + 1)[:, :k] for of in (y, y_pred, hit_class))
        for name, means in _class_means(*counts):
            draws[name][part] = means
    return draws


def _row_counts(values: IntArray, k: int) -> IntArray:
    """How often 0..k-1 occur in each row: (b, n) -> (b, k)."""
    b = len(values)
    flat = (values + k * np.arange(b)[:, None]).ravel()
    return np.bincount(flat, minlength=b * k).reshape(b, k)


def _class_means(
    support: IntArray, predicted: IntArray, hits: IntArray
) -> tuple[tuple[str, FloatArray], ...]:
    """Mean recall and mean F1 over the classes with support, of each row of (b, k) counts."""
    present = support > 0
    recall = hits / np.maximum(support, 1)
    f1 = 2 * hits / np.maximum(support + predicted, 1)
    n_present = present.sum(axis=1)
    return (
        ("balanced_accuracy", np.where(present, recall, 0).sum(axis=1) / n_present),
        ("macro_f1", np.where(present, f1, 0).sum(axis=1) / n_present),
    )


def _interval(value: float, draws: FloatArray) -> Estimate:
    if not len(draws):
        return Estimate(value)
    low, high = np.percentile(draws, [2.5, 97.5])
    return Estimate(value, float(low), float(high))


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
    names: tuple[str, ...], support: IntArray, predicted: IntArray, hits: IntArray
) -> tuple[ClassScore, ...]:
    def ratio(above: int, below: int) -> float | None:
        return above / below if below else None

    rows = zip(names, support.tolist(), predicted.tolist(), hits.tolist(), strict=True)
    return tuple(
        ClassScore(name, ratio(hit, pred), ratio(hit, true), ratio(2 * hit, true + pred), true)
        for name, true, pred, hit in rows
    )


def _most_confused(names: tuple[str, ...], confusion: IntArray) -> tuple[ConfusedPair, ...]:
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    largest = np.argsort(-wrong, axis=None, kind="stable")[:N_CONFUSED]
    pairs = (np.unravel_index(cell, wrong.shape) for cell in largest if wrong.flat[cell])
    return tuple(ConfusedPair(names[t], names[p], int(wrong[t, p])) for t, p in pairs)


def _blocks(n: int, width: int) -> Iterator[slice]:
    step = max(1, _BLOCK // width)
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


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
