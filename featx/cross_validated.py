"""How well a way of fitting does over many fits: what a cross-validation gives."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from featx.heads.contents import to_json
from featx.metrics import Estimate, Report

FIGURES: Final = ("accuracy", "balanced_accuracy", "macro_f1", "log_loss")
_LEVEL: Final = 0.975  # two-sided 95 %


@dataclass(frozen=True, eq=False)
class Fold:
    """One fit: on all folds but one, with its choices made inside them.

    `report` is of the images of that fold, without intervals; `chosen` what the fit chose.
    """

    repeat: int
    fold: int
    n_train: int
    chosen: str
    report: Report


@dataclass(frozen=True, eq=False)
class CrossValidation:
    """How well a way of fitting does on images it has not seen, over many fits.

    Attributes
    ----------
    cache : the file.
    head, params : the way of fitting; what `params` leave open is chosen inside each fit.
    cv, repeats, seed : folds, the most there are in a repeat; how often they were drawn and came
        out differently; and from which seed.
    asked : the `cv` and `repeats` that were asked for.
    figures : name -> mean over the fits, with its 95 % interval: `accuracy`, `balanced_accuracy`,
        `macro_f1`, `log_loss`, and `baseline`, the accuracy of each fit's commonest class.
    folds : every fit.
    chosen : what was chosen -> in how many fits.
    n, k : labelled images, and their classes.
    never_tested : labelled images in no fold, as no other of their class could be trained on.
    unlabelled, failed : images without a label; of the cache without features.
    groups : which images were kept together, in words.
    parted_duplicates : labelled images that have a duplicate, exact or near, which the folds may
        part from them; None where there are too many images to look for them unasked.
    duplicate_threshold : the least similarity of near duplicates.
    paths, classes : (n) of the labelled images; names by class number.
    y_true : (n,) int64.
    y_pred : (repeats, n) int64, the class each image was taken for when it was not trained on;
        -1 where it was never tested.
    notes : sentences for the user.
    """

    cache: Path
    head: str
    params: Mapping[str, Any]
    cv: int
    repeats: int
    seed: int
    asked: Mapping[str, int]
    figures: Mapping[str, Estimate]
    folds: tuple[Fold, ...]
    chosen: Mapping[str, int]
    n: int
    k: int
    never_tested: int
    unlabelled: int
    failed: int
    groups: str
    parted_duplicates: int | None
    duplicate_threshold: float
    paths: tuple[str, ...]
    classes: tuple[str, ...]
    y_true: np.ndarray
    y_pred: np.ndarray
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without the single predictions."""
        return {
            "cache": os.fspath(self.cache),
            "head": self.head,
            "params": to_json(self.params),
            "cv": self.cv,
            "repeats": self.repeats,
            "seed": self.seed,
            "asked": dict(self.asked),
            "groups": self.groups,
            "parted_duplicates": self.parted_duplicates,
            "duplicate_threshold": self.duplicate_threshold,
            "n": self.n,
            "k": self.k,
            "never_tested": self.never_tested,
            "unlabelled": self.unlabelled,
            "failed": self.failed,
            **{name: estimate.to_dict() for name, estimate in self.figures.items()},
            "chosen": dict(self.chosen),
            "folds": [
                {
                    "repeat": fold.repeat,
                    "fold": fold.fold,
                    "n_train": fold.n_train,
                    "n_test": fold.report.n,
                    "chosen": fold.chosen,
                    **{name: getattr(fold.report, name).value for name in FIGURES},
                    "baseline": fold.report.baseline.accuracy.value,
                }
                for fold in self.folds
            ],
            "notes": list(self.notes),
        }


def corrected_interval(
    values: Sequence[float], ratio: float, *, largest: float = np.inf
) -> Estimate:
    """Mean of the figures of many fits, with Nadeau & Bengio's corrected 95 % t-interval.

    There is none of one fit, nor where all came to the same: that few fits agree does not make the
    figure certain, and an interval of no width would say so.

    Parameters
    ----------
    values : of each fit, 0 or more.
    ratio : tested over trained-on images of a fit.
    largest : what the figure can be at most.

    Examples
    --------
    >>> found = corrected_interval([0.9, 0.8, 1.0, 0.9], 0.25, largest=1.0)
    >>> [round(value, 3) for value in (found.value, found.low, found.high)]
    [0.9, 0.716, 1.0]
    """
    from scipy.stats import t

    n, mean = len(values), float(np.mean(values))
    if n < 2 or min(values) == max(values):
        return Estimate(mean)
    half = float(t.ppf(_LEVEL, n - 1) * np.std(values, ddof=1) * np.sqrt(1 / n + ratio))
    return Estimate(mean, max(0.0, mean - half), min(largest, mean + half))
