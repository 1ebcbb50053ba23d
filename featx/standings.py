"""Heads side by side on the same images, as what a comparison gives."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featx.comparison import Difference
from featx.grouping import drawn_by
from featx.leaks import Leaks
from featx.metrics import Report


@dataclass(frozen=True, eq=False)
class Entry:
    """One head of a comparison.

    Attributes
    ----------
    name : the head file's name, as short as is unambiguous.
    head, cache : the files.
    kind, backbone, cut : what it is, and of which features.
    report : on the images that all heads were tested on.
    own : images it could be tested on, before the others were asked.
    leaks : duplicates of images that it was trained or chosen on: exact ones, which are left out,
        and near ones among the images that all heads were tested on.
    """

    name: str
    head: Path
    cache: Path
    kind: str
    backbone: str
    cut: str
    report: Report
    own: int
    leaks: Leaks

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the head, and its figures without those of single classes."""
        report = self.report
        figures = ("accuracy", "balanced_accuracy", "macro_f1", "log_loss")
        return {
            "name": self.name,
            "head": os.fspath(self.head),
            "cache": os.fspath(self.cache),
            "kind": self.kind,
            "backbone": self.backbone,
            "cut": self.cut,
            "own_test_images": self.own,
            "leaks": self.leaks.counts(),
            **{name: getattr(report, name).to_dict() for name in figures},
        }


@dataclass(frozen=True, eq=False)
class Comparison:
    """Heads on the same images, the most accurate first.

    Attributes
    ----------
    entries : best first; among equals the one of the smaller log-loss.
    pairs : every two heads, in the order of `entries`; `first` is never the less accurate one.
    n : images that every head was tested on and none was trained or chosen on.
    baseline_name, baseline : the class that is commonest in training, and its accuracy.
    paths : (n) of the images.
    groups : (n,) int64, images that intervals and p-values take together because the split of one
        of the heads did; -1 where one is alone.
    grouped_by : names of those heads.
    """

    entries: tuple[Entry, ...]
    pairs: tuple[Difference, ...]
    n: int
    baseline_name: str
    baseline: float
    paths: tuple[str, ...]
    groups: np.ndarray
    grouped_by: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without the images."""
        return {
            "n": self.n,
            "intervals_draw": drawn_by(self.groups),
            "grouped_by": list(self.grouped_by),
            "baseline": {"class_name": self.baseline_name, "accuracy": self.baseline},
            "heads": [entry.to_dict() for entry in self.entries],
            "pairs": [pair.to_dict() for pair in self.pairs],
        }


@dataclass(frozen=True, eq=False)
class Leaderboard:
    """All heads of a folder: one comparison for each set of test images.

    Attributes
    ----------
    comparisons : those of most heads first.
    skipped : head file -> why it is in none.
    """

    comparisons: tuple[Comparison, ...]
    skipped: Mapping[Path, str]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "comparisons": [comparison.to_dict() for comparison in self.comparisons],
            "skipped": {os.fspath(path): why for path, why in self.skipped.items()},
        }
