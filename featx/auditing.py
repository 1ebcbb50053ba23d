"""The stage that doubts the data: wrong labels, pictures that are there twice, strangers."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from featx.crossfit import out_of_fold
from featx.duplicates import (
    DEFAULT_THRESHOLD,
    Pairs,
    find_duplicates,
    merged_groups,
)
from featx.errors import InputError, MissingExtraError
from featx.featureset import FeatureSet, load_intact
from featx.heads import LogisticHead
from featx.heads.row_view import RowView
from featx.workspace import newest_cache

NEIGHBOUR: Final = 10  # an outlier is far from its so-manieth nearest image
_FILTER: Final = "prune_by_noise_rate"
_BLOCK: Final = 1 << 22  # values of a block of rows, and similarities at once: 16 MiB of each
_ROWS: Final = 1 << 11  # in a block, at most
_FENCE: Final = 1.5  # interquartile ranges below the first quartile (Tukey 1977)


@dataclass(frozen=True)
class WrongLabel:
    """An image whose label is doubted, by a head that was not fitted on it.

    Attributes
    ----------
    path : of the image, relative to the cache's root.
    label, suggested : class names as people read them: the given one, the most probable one.
    p_label, p_suggested : their out-of-fold probabilities.
    file : the image on this machine.
    """

    path: str
    label: str
    suggested: str
    p_label: float
    p_suggested: float
    file: Path


@dataclass(frozen=True)
class DuplicatePair:
    """Two images that are the same picture; a label is empty where an image has none."""

    path: str
    other_path: str
    label: str
    other_label: str
    similarity: float
    exact: bool
    files: tuple[Path, Path]


@dataclass(frozen=True)
class Outlier:
    """An image unlike all others: its similarity to the tenth most similar one."""

    path: str
    label: str
    similarity: float
    file: Path


@dataclass(frozen=True)
class Audit:
    """What is doubtful in a cache.

    Attributes
    ----------
    cache : the file.
    n : its images.
    wrong_labels : the likeliest first; None where labels were not looked at.
    judged : images that a label was predicted for.
    accuracy : of these predictions against the labels as they are; None without them.
    C : of the logistic head that predicted.
    conflicts : duplicates with different labels, exact ones first, then the most similar.
    duplicates : each image of a duplicate group with its nearest; includes no `conflicts` that are
        not nearest.
    groups : how many groups of duplicates there are.
    outliers : below `outlier_fence`, the farthest first.
    threshold : the least similarity of near duplicates.
    notes : sentences about what could not be looked at.
    """

    cache: Path
    n: int
    wrong_labels: tuple[WrongLabel, ...] | None
    judged: int
    accuracy: float | None
    C: float | None
    conflicts: tuple[DuplicatePair, ...]
    duplicates: tuple[DuplicatePair, ...]
    groups: int
    outliers: tuple[Outlier, ...]
    outlier_fence: float
    threshold: float
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; paths are relative to the cache's root."""
        return {
            "cache": os.fspath(self.cache),
            "n": self.n,
            "judged": self.judged,
            "accuracy": self.accuracy,
            "C": self.C,
            "wrong_labels": None
            if self.wrong_labels is None
            else [_plain(found) for found in self.wrong_labels],
            "conflicts": [_plain(pair) for pair in self.conflicts],
            "duplicates": [_plain(pair) for pair in self.duplicates],
            "groups": self.groups,
            "outliers": [_plain(found) for found in self.outliers],
            "outlier_fence": self.outlier_fence,
            "threshold": self.threshold,
            "notes": list(self.notes),
        }


def audit(
    cache: str | os.PathLike[str] | None = None,
    *,
    labels: bool = True,
    duplicate_threshold: float = DEFAULT_THRESHOLD,
    device: str = "auto",
    seed: int = 0,
    cache_dir: str | os.PathLike[str] = "cache",
) -> Audit:
    """Rank the likeliest wrong labels, duplicates with different labels, and outliers of a cache.

    Labels are judged by a logistic head that has not seen the image: 5-fold cross-validation, in
    which neither a group of the cache nor duplicates are parted, so that a copy does not vouch for
    the other's label. C is chosen once, on all labelled images. Which labels are doubtful is
    decided by confident learning (Northcutt, Jiang & Chuang 2021) as `cleanlab` has it, and they
    are ranked by the probability of the given label, the lowest first. An outlier is an image whose
    similarity to its tenth nearest (cosine of the features as they are; as the distance of
    Ramaswamy, Rastogi & Shim 2000) is below Tukey's fence, 1.5 interquartile ranges under the first
    quartile. What is found is to be looked at, not to be deleted: hard images are found too.

    Parameters
    ----------
    cache : a finished cache; the newest in `cache_dir` if none is named.
    labels : look for wrong labels; needs the package `cleanlab`.
    duplicate_threshold : the least similarity of near duplicates, see `featx.duplicates`.
    device : where the head is fitted.
    seed : of the folds.

    Raises
    ------
    MissingExtraError
        `labels` without the package `cleanlab`.
    CacheError, InputError
        No usable cache; a bad threshold or seed.
    """
    label_issues = _confident_learning() if labels else None
    features = load_intact(cache if cache is not None else newest_cache(cache_dir))
    duplicates = find_duplicates(
        features.X, features.sha256, labels=features.y, threshold=duplicate_threshold
    )
    notes: list[str] = []
    wrong: tuple[WrongLabel, ...] | None = None
    judged, accuracy, C = 0, None, None
    if label_issues is not None:
        groups = merged_groups(features.groups, duplicates.groups)
        try:
            wrong, judged, accuracy, C = _wrong_labels(features, groups, label_issues, device, seed)
        except InputError as why:  # one class, or one image a class: nothing to compare with
            notes.append(f"labels were not looked at: {why}")
    similarity = _neighbour_similarity(features.X)
    low, high = np.percentile(similarity, [25, 75])
    fence = float(low - _FENCE * (high - low))
    return Audit(
        cache=features.path,
        n=len(features),
        wrong_labels=wrong,
        judged=judged,
        accuracy=accuracy,
        C=C,
        conflicts=_named_pairs(features, duplicates.conflicts),
        duplicates=_named_pairs(features, duplicates.pairs),
        groups=duplicates.n_groups,
        outliers=_outliers(features, similarity, fence),
        outlier_fence=fence,
        threshold=duplicates.threshold,
        notes=tuple(notes),
    )


def _confident_learning() -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """What finds doubtful labels: (n,) labels and (n, k) probabilities -> ranked positions."""
    try:
        from cleanlab.filter import find_label_issues
    except ImportError as error:
        raise MissingExtraError(
            "wrong labels are looked for with the package cleanlab; install it with: "
            "pip install 'featx[audit]', or leave them out with --no-labels (in Python: "
            "labels=False)"
        ) from error

    def ranked(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
        found = find_label_issues(
            labels,
            probabilities,
            filter_by=_FILTER,
            return_indices_ranked_by="self_confidence",
            n_jobs=1,
        )
        return np.asarray(found, np.int64)

    return ranked


def _wrong_labels(
    features: FeatureSet,
    groups: np.ndarray,
    label_issues: Callable[[np.ndarray, np.ndarray], np.ndarray],
    device: str,
    seed: int,
) -> tuple[tuple[WrongLabel, ...], int, float, float]:
    """Doubtful labels, how many were judged, the accuracy of the judge, and its C.

    Raises
    ------
    InputError
        Nothing can be judged: one class, or no class in two groups.
    """
    labelled = np.flatnonzero(features.y >= 0)
    classes, y = np.unique(features.y[labelled], return_inverse=True)
    if len(classes) < 2:
        raise InputError(f"it takes labels of two classes, got {len(classes)}")
    X, groups = RowView(features.X, labelled), groups[labelled]
    head = LogisticHead(device=device, random_state=seed).fit(X, y, groups=groups)
    log_probabilities, has = out_of_fold(head, X, y, groups=groups, seed=seed)
    judged = np.flatnonzero(has)
    present, given = np.unique(y[judged], return_inverse=True)
    if len(present) < 2:
        raise InputError("only one class has images in two groups")
    p = np.exp(log_probabilities[np.ix_(judged, present)])  # (m, k)
    p /= p.sum(axis=1, keepdims=True)
    best = p.argmax(axis=1)
    rows, root = labelled[judged], Path(features.root)
    names = [features.names[classes[c]] for c in present]
    found = tuple(
        WrongLabel(
            path=features.paths[rows[i]],
            label=names[given[i]],
            suggested=names[best[i]],
            p_label=float(p[i, given[i]]),
            p_suggested=float(p[i, best[i]]),
            file=root / features.paths[rows[i]],
        )
        for i in label_issues(given, p)
    )
    return found, len(judged), float((best == given).mean()), head.C_


def _neighbour_similarity(X: np.ndarray) -> np.ndarray:
    """Cosine of each image and its tenth nearest other one, or its last: (n,).

    The tenth, so that a few copies of an outlier do not hide it. Unlike that of duplicates it is
    taken of the features as they are: strangers differ from all others in what these have in
    common. Two blocks of rows are read at a time, however many there are.
    """
    n, d = X.shape
    k = min(NEIGHBOUR, n - 1)
    if k < 1:
        return np.ones(n)
    similarity = np.empty(n)
    step = max(1, _BLOCK // max(d, _ROWS))
    for start in range(0, n, step):
        unit = _unit(X[start : start + step])  # (b, d)
        nearest = np.full((len(unit), k), -1.0, np.float32)
        for other in range(0, n, step):
            cosine = unit @ (unit if other == start else _unit(X[other : other + step])).T
            if other == start:
                np.fill_diagonal(cosine, -np.inf)  # to others: not to the image itself
            nearest = np.partition(np.hstack([nearest, cosine]), -k, axis=1)[:, -k:]
        similarity[start : start + step] = nearest[:, 0]
    return similarity


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows (b, d) in float32 of length 1; one of zeros stays as it is."""
    rows = np.asarray(rows, np.float32)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1)


def _named_pairs(features: FeatureSet, pairs: Pairs) -> tuple[DuplicatePair, ...]:
    names, root = (*features.names, ""), Path(features.root)  # label -1 takes the last
    return tuple(
        DuplicatePair(
            path=features.paths[i],
            other_path=features.paths[j],
            label=names[features.y[i]],
            other_label=names[features.y[j]],
            similarity=float(similarity),
            exact=bool(exact),
            files=(root / features.paths[i], root / features.paths[j]),
        )
        for i, j, similarity, exact in zip(
            pairs.first, pairs.second, pairs.similarity, pairs.exact, strict=True
        )
    )


def _outliers(features: FeatureSet, similarity: np.ndarray, fence: float) -> tuple[Outlier, ...]:
    names, root = (*features.names, ""), Path(features.root)
    rows = np.flatnonzero(similarity < fence)
    return tuple(
        Outlier(
            path=features.paths[row],
            label=names[features.y[row]],
            similarity=float(similarity[row]),
            file=root / features.paths[row],
        )
        for row in rows[np.argsort(similarity[rows], kind="stable")]
    )


def _plain(found: WrongLabel | DuplicatePair | Outlier) -> dict[str, Any]:
    return {name: value for name, value in vars(found).items() if name not in ("file", "files")}
