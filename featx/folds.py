"""Folds of cross-validation: stratified, by seed, groups whole; what leave-one-out leaves out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from featx.errors import InputError
from featx.units import (
    IntArray,
    as_units,
    check_seed,
    checked_rows,
    has_groups,
    shuffled_classes,
    unit_members,
)


def cross_validation_folds(
    labels: npt.ArrayLike,
    *,
    n_folds: int = 5,
    groups: npt.ArrayLike | None = None,
    seed: int = 0,
) -> list[tuple[IntArray, IntArray]]:
    """Stratified folds that cope with classes smaller than the number of folds.

    Within a fold every validation row's class is among its training rows: rows for which that
    cannot be (a class with one image, or in one group only) are in no validation part. No row is
    in two validation parts. There are fewer folds than asked for where there are fewer rows (or
    groups) to part.

    Parameters
    ----------
    labels : (n,) int
        Class numbers, 0 or more.
    n_folds : int
        At least 2.
    groups : (n,) int, optional
        Groups that are never parted; -1 is its own group.
    seed : int

    Returns
    -------
    list of (train, val)
        Sorted int64 row numbers.

    Raises
    ------
    InputError
        Bad arguments, or not one row that could be validated on.
    """
    labels_, _, groups_ = checked_rows(labels, None, groups)
    check_seed(seed)
    if n_folds < 2:
        raise InputError(f"n_folds must be at least 2, got {n_folds}")
    if (labels_ < 0).any():
        raise InputError("cross-validation needs a label for every row; leave out the rows with -1")
    is_grouped = has_groups(groups_)
    fold_of = (
        _grouped_folds(labels_, as_units(groups_), n_folds, seed)
        if is_grouped
        else _plain_folds(labels_, n_folds, seed)
    )
    folds = []
    for fold in range(n_folds):
        train = np.flatnonzero(fold_of != fold)
        val = np.flatnonzero(fold_of == fold)
        val = val[np.isin(labels_[val], labels_[train])]
        if len(val):
            folds.append((train, val))
    if not folds:
        other = ", name other groups (one that is a class parts nothing)" if is_grouped else ""
        raise InputError(
            f"cross-validation needs a class with two images in two groups: got {len(labels_)} "
            f"images of {len(np.unique(labels_))} classes in {len(np.unique(as_units(groups_)))} "
            f"groups; add images{other}, or set the parameter yourself instead of having it chosen"
        )
    return folds


def leave_out_units(
    labels: npt.ArrayLike, *, groups: npt.ArrayLike | None = None
) -> tuple[IntArray, npt.NDArray[np.bool_]]:
    """What leave-one-out leaves out at once: a row, or a group where rows share one.

    Parameters
    ----------
    labels : (n,) int
        Class numbers, 0 or more.
    groups : (n,) int, optional
        -1 is its own group.

    Returns
    -------
    units : (n,) int64
        0..u-1; rows of one unit are left out together. u is n where no two rows share a group.
    testable : (n,) bool
        Rows whose class is in another unit too; the others could not be classified rightly.
    """
    labels_, _, groups_ = checked_rows(labels, None, groups)
    units = as_units(groups_)
    n_units = np.bincount(np.unique(np.stack([labels_, units]), axis=1)[0])  # of each class
    return units, n_units[labels_] > 1


def _plain_folds(labels: IntArray, n_folds: int, seed: int) -> IntArray:
    """Deal each class's shuffled rows round the folds; the next class goes on where it ended."""
    fold_of = np.full(len(labels), -1, np.int64)
    dealt = 0
    for rows in shuffled_classes(labels, seed):
        if len(rows) > 1:
            fold_of[rows] = (dealt + np.arange(len(rows))) % n_folds
            dealt += len(rows)
    return fold_of


def _grouped_folds(labels: IntArray, units: IntArray, n_folds: int, seed: int) -> IntArray:
    """Largest group first, each to the fold where its classes are rarest so far."""
    members = unit_members(labels, units)
    totals = np.bincount(labels).astype(float)
    sizes = np.array([counts.sum() for _, counts in members])
    shuffled = np.random.default_rng(seed).permutation(len(members))
    order = shuffled[np.argsort(-sizes[shuffled], kind="stable")]
    filled = np.zeros((n_folds, len(totals)))  # (folds, k) images
    fold_sizes = np.zeros(n_folds, np.int64)
    fold_of_unit = np.empty(len(members), np.int64)
    for unit in order:
        classes, counts = members[unit]
        # The growth of sum((filled / totals)^2) on adding this group, but for a constant.
        growth = (filled[:, classes] * (counts / totals[classes] ** 2)).sum(axis=1)
        fold = int(np.lexsort((fold_sizes, growth.round(12)))[0])
        filled[fold, classes] += counts
        fold_sizes[fold] += sizes[unit]
        fold_of_unit[unit] = fold
    return fold_of_unit[units]
