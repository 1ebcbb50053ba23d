"""What `score` finds, as frozen data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval, as `featx.metrics.bootstrap.interval` has it, or None."""

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
    """One class against all others.

    Recall is None without test images of the class, precision None where it is never predicted,
    F1 None where both hold. Average precision and ROC AUC rank all test images by the probability
    of the class; they are None where none or all of the images are of it.
    """

    name: str
    precision: float | None
    recall: float | None
    f1: float | None
    average_precision: float | None
    roc_auc: float | None
    support: int


@dataclass(frozen=True)
class ConfusedPair:
    """`count` images of class `true` that were taken for `predicted`."""

    true: str
    predicted: str
    count: int


@dataclass(frozen=True, eq=False)
class Reliability:
    """How often the head is right, by how sure it is: the reliability curve.

    Attributes
    ----------
    edges : (b + 1,) float64
        Bounds of the bins of confidence (the probability of the predicted class), from 0 to 1; a
        bin holds its upper bound and not its lower one.
    count : (b,) int64
        Images in each bin.
    confidence, accuracy : (b,) float64
        Mean confidence, and share predicted rightly; NaN in a bin without images.
    """

    edges: FloatArray
    count: IntArray
    confidence: FloatArray
    accuracy: FloatArray

    @property
    def ece(self) -> float:
        """Expected calibration error (Guo et al. 2017, eq. 3): mean |accuracy - confidence| of
        the bins, weighted by their images; 0 to 1."""
        filled = self.count > 0
        gaps = np.abs(self.accuracy - self.confidence)[filled]
        return float((self.count[filled] * gaps).sum() / self.count.sum())

    def to_dict(self) -> dict[str, Any]:
        """Plain lists; None where a bin has no images."""

        def told(values: FloatArray) -> list[float | None]:
            return [None if np.isnan(value) else float(value) for value in values]

        return {
            "edges": self.edges.tolist(),
            "count": self.count.tolist(),
            "confidence": told(self.confidence),
            "accuracy": told(self.accuracy),
        }


@dataclass(frozen=True, eq=False)
class Report:
    """What `score` found; every fraction is from 0 to 1.

    Attributes
    ----------
    n, k, n_classes_present : int
        Test images, classes the head knows, classes among the test images.
    accuracy, balanced_accuracy, macro_f1, weighted_f1 : Estimate
        Balanced accuracy is the mean recall, macro-F1 the mean F1 over the classes present in
        `y_true`; weighted F1 is that mean weighted by each class's images.
    top5 : Estimate or None
        None with 5 classes or fewer, where it says nothing.
    average_precision, roc_auc : Estimate or None
        Macro averages, each class against all others (one-vs-rest), over the classes that are
        those of some but not of all test images; None where there is no such class. Without an
        interval where images times classes are more than 2,000,000.
    log_loss : Estimate
        Mean -ln p(true class), in nats.
    brier : Estimate
        Brier 1950: the mean over the images of sum_c (p_c - [c is true])^2, from 0 to 2. (For two
        classes twice scikit-learn's `brier_score_loss`, whose default halves it there.)
    reliability : Reliability
        In 15 bins of equal width.
    ece : Estimate
        Expected calibration error of that curve. It has no interval: it is an average of absolute
        differences, which grow by resampling, so that an interval would lie too high.
    ece_if_calibrated : (float, float) or None
        Bounds within which the ECE of a head with the same confidences, each of them true, lies
        in 95 of 100 draws (Bröcker & Smith 2007): on few images chance alone takes it well above
        0. None without draws.
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
    weighted_f1: Estimate
    average_precision: Estimate | None
    roc_auc: Estimate | None
    log_loss: Estimate
    brier: Estimate
    ece: Estimate
    ece_if_calibrated: tuple[float, float] | None
    reliability: Reliability
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
            "accuracy": _told(self.accuracy),
            "baseline": vars(self.baseline) | {"accuracy": _told(self.baseline.accuracy)},
            "top5": _told(self.top5),
            "balanced_accuracy": _told(self.balanced_accuracy),
            "macro_f1": _told(self.macro_f1),
            "weighted_f1": _told(self.weighted_f1),
            **self.of_probabilities(),
            "per_class": [dict(vars(c)) for c in self.per_class],
            "confusion": self.confusion.tolist(),
            "most_confused": [dict(vars(pair)) for pair in self.most_confused],
            "bootstrap": self.bootstrap,
            "seed": self.seed,
        }

    def of_probabilities(self) -> dict[str, Any]:
        """The part of `to_dict` that a calibration changes: it keeps each image's classes in
        their order, and with them every other figure."""
        calibrated = self.ece_if_calibrated
        return {
            "average_precision": _told(self.average_precision),
            "roc_auc": _told(self.roc_auc),
            "log_loss": _told(self.log_loss),
            "brier": _told(self.brier),
            "ece": _told(self.ece),
            "ece_if_calibrated": None if calibrated is None else list(calibrated),
            "reliability": self.reliability.to_dict(),
        }


def _told(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else estimate.to_dict()
