"""The stage that measures a way of fitting, not one head: nested, repeated cross-validation."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.base import clone

from featx.cross_validated import FIGURES, CrossValidation, Fold, corrected_interval
from featx.devices import resolve_device
from featx.duplicates import DEFAULT_THRESHOLD, check_threshold, find_duplicates, merged_groups
from featx.errors import InputError
from featx.featureset import FeatureSet, load_intact
from featx.folds import cross_validation_folds, leave_out_units
from featx.grouping import group_images, with_duplicates
from featx.heads.base import Head
from featx.heads.cached import load_recorded
from featx.heads.making import fit_on, make_head, probabilities_of
from featx.heads.row_view import RowView
from featx.images import display_names
from featx.leaks import can_compare_unasked, count_parted
from featx.metrics import score
from featx.recorded import settle_on_features
from featx.workspace import cache_of_head, newest_cache


def cross_validate(
    cache: str | os.PathLike[str] | None = None,
    *,
    head: str = "logistic",
    cv: int = 5,
    repeats: int = 10,
    group: str | None = None,
    group_duplicates: bool = False,
    duplicate_threshold: float | None = None,
    seed: int = 0,
    device: str = "auto",
    cache_dir: str | os.PathLike[str] = "cache",
    advance: Callable[[int, int], None] | None = None,
    **params: Any,
) -> CrossValidation:
    """Measure a head by nested, repeated cross-validation over all labelled images of a cache.

    Every image is tested once in each repeat, by a head that was fitted without it. All choices
    (C, the best epoch) are made anew inside each fit, so that none has seen an image it is tested
    on. A split that the folder may have is not used. Meant for few images, where a single held-out
    part is too small to tell much.

    The intervals are those of Nadeau & Bengio (2003, Inference for the generalization error, eq.
    5): t-intervals of the mean over all fits, whose variance is corrected for training sets that
    share images by adding the ratio of tested to trained-on images to 1 / fits. They are
    approximate, and clipped to what a figure can be; a figure that is the same in all fits has
    none. Where few groups can be parted in few ways
    only, draws repeat each other: each partition is fitted and counted once, since fits counted
    again would narrow the interval without measuring anything.

    Parameters
    ----------
    cache : a finished cache; the newest in `cache_dir` if none is named.
    head : kind of head, as for `fit_head`.
    cv : folds; there are fewer where there are fewer groups or images to part.
    repeats : how often the folds are drawn, from seeds `seed`, `seed` + 1, ….
    group : which images belong together, see `featx.grouping.group_images`; they are in one fold.
    group_duplicates : put exact and near duplicates into one fold too.
    duplicate_threshold : the least similarity of near duplicates, see `featx.duplicates`; 0.75.
    seed : of the folds and of the heads.
    device : where to fit.
    advance : called after each fit with the number of fits done and of all.
    **params : of the head.

    Raises
    ------
    CacheError, InputError
        No usable cache, no labels, nothing that could be parted, or an unknown parameter.

    Examples
    --------
    >>> found = cross_validate("cache/birds-densenet121.h5", repeats=3)  # doctest: +SKIP
    >>> found.figures["accuracy"]  # doctest: +SKIP
    Estimate(value=0.94, low=0.92, high=0.96)
    """
    if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1:
        raise InputError(f"repeats must be a whole number, 1 or more, got {repeats!r}")
    threshold = DEFAULT_THRESHOLD if duplicate_threshold is None else duplicate_threshold
    check_threshold(threshold)
    features = load_intact(cache if cache is not None else newest_cache(cache_dir))
    grouping = group_images(features, group)
    features = features.with_groups(grouping.groups)
    device = resolve_device(device).name
    estimator = make_head(head, params, device=device, seed=seed)
    settle_on_features(estimator, features.spec, features.plan)
    rows = np.flatnonzero(features.y >= 0)
    if not len(rows):
        raise InputError(f"{features.path} has no labelled images to cross-validate on")
    together, parted = grouping.source, None
    n, d = features.X.shape
    if group_duplicates or duplicate_threshold is not None or can_compare_unasked(n, n, d):
        found = find_duplicates(features.X, features.sha256, threshold=threshold)
        if group_duplicates:
            features = features.with_groups(merged_groups(features.groups, found.groups))
            together = with_duplicates(together, threshold)
        parted = count_parted(features.groups[rows], found.groups[rows])
    labels, groups = features.y[rows], features.groups[rows]
    drawn = _different_draws(labels, groups, cv, range(seed, seed + repeats))
    n_folds = [len(parts) for parts in drawn.values()]
    y_pred = np.full((len(drawn), len(rows)), -1, np.int64)
    folds: list[Fold] = []
    for repeat, (its_seed, parts) in enumerate(drawn.items()):
        for number, (train, test) in enumerate(parts):
            estimator = clone(estimator).set_params(random_state=its_seed)
            extent = features.extent
            fit_on(
                estimator,
                features.X,
                features.y,
                rows[train],
                groups=features.groups,
                extent=extent,
            )
            tested = None if extent is None else extent[rows[test]]
            proba = probabilities_of(estimator, RowView(features.X, rows[test]), tested)
            known = estimator.classes_  # every class of the test rows is among them
            y_pred[repeat, test] = known[proba.argmax(axis=1)]
            report = score(
                np.searchsorted(known, labels[test]),
                proba,
                classes=display_names([features.classes[label] for label in known]),
                train_counts=np.bincount(labels[train], minlength=len(features.classes))[known],
                bootstrap=0,
            )
            folds.append(Fold(repeat, number, len(train), _chosen(estimator), report))
            if advance is not None:
                advance(len(folds), sum(n_folds))
    made = {"cv": max(n_folds), "repeats": len(drawn)}
    asked = {"cv": cv, "repeats": repeats}
    return _summary(
        features,
        rows,
        folds,
        y_pred,
        head=head,
        params=dict(params),
        seed=seed,
        groups=together,
        asked=asked,
        parted_duplicates=parted,
        duplicate_threshold=threshold,
        notes=_notes(labels, groups, asked, made),
        **made,
    )


def cross_validate_like(
    head: str | os.PathLike[str],
    cache: str | os.PathLike[str] | None = None,
    *,
    group: str | None = None,
    group_duplicates: bool = False,
    duplicate_threshold: float | None = None,
    **keywords: Any,
) -> CrossValidation:
    """Measure the way of fitting of a head: its kind and parameters, and what it kept together.

    Parameters
    ----------
    head : the head file.
    cache : the one that the head was fitted on, if none is named.
    group, group_duplicates, duplicate_threshold : those of the head where they are left out.
    **keywords : of `cross_validate`: cv, repeats, seed, device, cache_dir, advance.

    Raises
    ------
    HeadError
        No usable head, or its cache is not found.
    CacheError, InputError
        As `cross_validate`.
    """
    file = load_recorded(head)
    settings = file.metadata.get("settings", {})
    recorded = settings.get("group_duplicates")
    params = file.head.get_params()  # in the types they had: JSON has no whole numbers as keys
    return cross_validate(
        cache if cache is not None else cache_of_head(file.metadata["cache"], file.path),
        head=settings.get("head", file.kind),
        group=settings.get("group") if group is None else group,
        group_duplicates=group_duplicates or recorded is not None,
        duplicate_threshold=recorded if duplicate_threshold is None else duplicate_threshold,
        **keywords,
        **{name: params[name] for name in settings.get("params", {})},
    )


def _different_draws(
    labels: np.ndarray, groups: np.ndarray, cv: int, seeds: range
) -> dict[int, list[tuple[np.ndarray, np.ndarray]]]:
    """Seed -> folds, of seeds whose folds test other sets of images than those before.

    A fold that leaves but one class to train on is left out.
    """
    known: dict[frozenset[bytes], int] = {}
    drawn = {}
    for seed in seeds:
        parts = [
            (train, test)
            for train, test in cross_validation_folds(labels, n_folds=cv, groups=groups, seed=seed)
            if len(np.unique(labels[train])) > 1
        ]
        partition = frozenset(test.tobytes() for _, test in parts)
        if known.setdefault(partition, seed) == seed:
            drawn[seed] = parts
    return drawn


def _notes(
    labels: np.ndarray, groups: np.ndarray, asked: Mapping[str, int], made: Mapping[str, int]
) -> tuple[str, ...]:
    """What there is less of than was asked for, and why."""
    notes = []
    if made["cv"] < asked["cv"]:
        units, testable = leave_out_units(labels, groups=groups)
        n_units = len(np.unique(units[testable]))
        why = f"only {n_units} groups or images alone can be tested"
        if n_units >= asked["cv"]:
            why = "others would leave but one class to train on"
        notes.append(f"{asked['cv']} folds were asked for, {made['cv']} could be made: {why}")
    if made["repeats"] < asked["repeats"]:
        notes.append(
            f"{asked['repeats']} repeats were asked for, {made['repeats']} counted: the other "
            "draws gave the same folds again and measure nothing new"
        )
    return tuple(notes)


def _chosen(estimator: Head) -> str:
    """What a fit chose, in words; empty where there was nothing to choose."""
    choice = estimator.choice()
    return "" if choice.on.startswith("nothing") else choice.what


def _summary(
    features: FeatureSet,
    rows: np.ndarray,
    folds: Sequence[Fold],
    y_pred: np.ndarray,
    **told: Any,
) -> CrossValidation:
    """What the fits came to, beside what is told of how they were made."""
    ratio = float(np.mean([fold.report.n / fold.n_train for fold in folds]))
    values = {name: [getattr(fold.report, name).value for fold in folds] for name in FIGURES}
    values["baseline"] = [fold.report.baseline.accuracy.value for fold in folds]
    return CrossValidation(
        cache=features.path,
        figures={
            name: corrected_interval(of, ratio, largest=np.inf if name == "log_loss" else 1.0)
            for name, of in values.items()
        },
        folds=tuple(folds),
        chosen=dict(Counter(fold.chosen for fold in folds if fold.chosen).most_common()),
        n=len(rows),
        k=len(np.unique(features.y[rows])),
        never_tested=int((y_pred[0] < 0).sum()),
        unlabelled=int((features.y < 0).sum()),
        failed=len(features.failed),
        paths=tuple(features.paths[row] for row in rows),
        classes=tuple(features.names),
        y_true=features.y[rows],
        y_pred=y_pred,
        **told,
    )
