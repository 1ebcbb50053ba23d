"""Labels, groups and a seed in, row numbers out: what is trained on, chosen on and held out.

The rules are featx's own where scikit-learn's would not do: every class with two images or more
is on both sides, a class with one image is trained on, and a group is never parted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from featx.errors import InputError

IntArray = npt.NDArray[np.int64]

TEST_FRACTION: Final = 0.2  # held out, where the images have no split of their own
TRAIN, VAL, TEST = 1, 2, 3  # the cache's split codes; 0 is none
_SAME_SHARE = 0.01 + 1e-9  # a split that is further from the fraction is named by its own share
_CODE_NAMES = {TRAIN: "train", VAL: "val", TEST: "test"}

ChosenOn = Literal["val", "5-fold cross-validation"]


@dataclass(frozen=True, eq=False)
class Split:
    """Which rows a head is trained on, chosen on and measured on.

    Attributes
    ----------
    train, val, held_out : (n_i,) int64
        Sorted row numbers, disjoint; `val` may be empty.
    source : str
        Where the split comes from, in words.
    held_out_name : str
        What the held-out rows are called in a report; of a split by seed with the percentage
        asked for, or that reached where it is more than one percentage point from it.
    chosen_on : {"val", "5-fold cross-validation"}
        Where hyper-parameters are chosen; cross-validation is inside `train`.
    unlabelled, left_out : int
        Rows in no part: without a label; labelled, but outside the given split.
    notes : tuple of str
        Sentences for the user about what could not be kept.
    """

    train: IntArray
    val: IntArray
    held_out: IntArray
    source: str
    held_out_name: str
    chosen_on: ChosenOn
    unlabelled: int = 0
    left_out: int = 0
    notes: tuple[str, ...] = ()


def make_split(
    labels: npt.ArrayLike,
    split_codes: npt.ArrayLike,
    *,
    groups: npt.ArrayLike | None = None,
    seed: int = 0,
    test_fraction: float = TEST_FRACTION,
) -> Split:
    """Part the labelled rows into train, val and held-out rows.

    A given split is kept: with train, val and test rows, choices are made on val and test is held
    out; with train and val only, or train and test only, choices are made by cross-validation
    inside train and the other is held out. Otherwise (no codes, or one kind of code only) the
    labelled rows are parted by `seed`: of each class of m >= 2 images round(m * test_fraction)
    are held out, at least one and at most m - 1; a class with one image is trained on. Groups are
    never parted; they are drawn in seeded order, and a group is held out if that brings the class
    counts nearer to the fraction and leaves each of its classes another group to train on.

    Parameters
    ----------
    labels : (n,) int
        Class numbers; -1 is unlabelled, and such rows are in no part.
    split_codes : (n,) int
        0 none, 1 train, 2 val, 3 test.
    groups : (n,) int, optional
        Images of one group (one nest, one photographer) belong together; -1 is its own group.
    seed : int
        The same seed gives the same split, whatever the machine.
    test_fraction : float
        Between 0 and 1, exclusive.

    Returns
    -------
    Split

    Raises
    ------
    InputError
        No labelled rows, a given split without training rows, nothing that could be held out,
        arrays of unequal length, or a bad seed or fraction.

    Examples
    --------
    >>> split = make_split([0, 0, 0, 1, 1, 2], [0] * 6, test_fraction=0.3)
    >>> [int((np.array([0, 0, 0, 1, 1, 2])[split.train] == c).sum()) for c in range(3)]
    [2, 1, 1]
    """
    labels_, codes, groups_ = _checked(labels, split_codes, groups)
    _check_seed(seed)
    if not 0 < test_fraction < 1:
        raise InputError(f"test_fraction must be between 0 and 1, got {test_fraction!r}")
    labelled = labels_ >= 0
    n_unlabelled = int((~labelled).sum())
    if not labelled.any():
        raise InputError(
            f"a split needs labelled images: all {len(labels_)} are unlabelled; "
            "put each class into its own folder, or give a CSV with labels"
        )
    kinds = {int(c) for c in np.unique(codes[labelled])} - {0}
    if len(kinds) > 1:
        return _given_split(codes, labelled, kinds, groups_, n_unlabelled)
    rows = np.flatnonzero(labelled)
    return _seeded_split(rows, labels_[rows], groups_[rows], seed, test_fraction, n_unlabelled)


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
    labels_, _, groups_ = _checked(labels, None, groups)
    _check_seed(seed)
    if n_folds < 2:
        raise InputError(f"n_folds must be at least 2, got {n_folds}")
    if (labels_ < 0).any():
        raise InputError("cross-validation needs a label for every row; leave out the rows with -1")
    fold_of = (
        _grouped_folds(labels_, _as_units(groups_), n_folds, seed)
        if _has_groups(groups_)
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
        raise InputError(
            f"cross-validation needs a class with two images in two groups: got {len(labels_)} "
            f"images of {len(np.unique(labels_))} classes in {len(np.unique(_as_units(groups_)))} "
            "groups; add images, or set the parameter yourself instead of having it chosen"
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
    labels_, _, groups_ = _checked(labels, None, groups)
    units = _as_units(groups_)
    n_units = np.bincount(np.unique(np.stack([labels_, units]), axis=1)[0])  # of each class
    return units, n_units[labels_] > 1


def _given_split(
    codes: IntArray, labelled: npt.NDArray[np.bool_], kinds: set[int], groups: IntArray, n_un: int
) -> Split:
    if TRAIN not in kinds:
        raise InputError(
            "the images come split into val and test, but none is in train: add a train folder, "
            "or take the folders' parent names away so that featx splits by seed"
        )
    part = {code: np.flatnonzero(labelled & (codes == code)) for code in _CODE_NAMES}
    held = TEST if TEST in kinds else VAL
    choose_on_val = kinds == {TRAIN, VAL, TEST}
    grouped = groups >= 0
    crossing = np.intersect1d(
        groups[part[TRAIN]][grouped[part[TRAIN]]], groups[part[held]][grouped[part[held]]]
    )
    notes: tuple[str, ...] = ()
    if len(crossing):
        notes = (
            f"{len(crossing)} group(s) have images both in train and in {_CODE_NAMES[held]}: "
            "the given split was kept, and its result may be too good",
        )
    return Split(
        train=part[TRAIN],
        val=part[VAL] if choose_on_val else np.empty(0, np.int64),
        held_out=part[held],
        source="/".join(_CODE_NAMES[k] for k in sorted(kinds)) + " of the images",
        held_out_name=_CODE_NAMES[held],
        chosen_on="val" if choose_on_val else "5-fold cross-validation",
        unlabelled=n_un,
        left_out=int((labelled & (codes == 0)).sum()),
        notes=notes,
    )


def _seeded_split(
    rows: IntArray, labels: IntArray, groups: IntArray, seed: int, fraction: float, n_un: int
) -> Split:
    kept_whole = ""
    if _has_groups(groups):
        held = _hold_out_groups(labels, _as_units(groups), seed, fraction)
        kept_whole = f", {len(np.unique(groups[groups >= 0]))} groups kept whole"
    else:
        held = _hold_out_rows(labels, seed, fraction)
    if not held.any():
        raise InputError(
            f"nothing can be held out: {len(rows)} labelled image(s) of {len(np.unique(labels))} "
            "class(es), and no class has two images that may be parted; add images, "
            "or give a train and a test folder"
        )
    percent, notes = f"{100 * fraction:g} %", _one_sided_notes(labels, held)
    if abs(held.mean() - fraction) > _SAME_SHARE:
        asked, percent = percent, f"{100 * held.mean():.0f} %"
        why = "groups are kept whole" if kept_whole else "each class is parted by itself"
        notes += (f"{asked} were to be held out, and {percent} are, as {why}",)
    return Split(
        train=rows[~held],
        val=np.empty(0, np.int64),
        held_out=rows[held],
        source=f"stratified by seed {seed}, {percent} held out{kept_whole}",
        held_out_name=f"held-out {percent}",
        chosen_on="5-fold cross-validation",
        unlabelled=n_un,
        notes=notes,
    )


def _one_sided_notes(labels: IntArray, held: npt.NDArray[np.bool_]) -> tuple[str, ...]:
    only_held = np.setdiff1d(labels[held], labels[~held])
    only_train = np.setdiff1d(labels[~held], labels[held])
    notes = []
    if len(only_train):
        notes.append(f"{len(only_train)} class(es) could not be parted: all in train, not measured")
    if len(only_held):
        notes.append(
            f"{len(only_held)} class(es) live in one group that had to be held out: not trained on"
        )
    return tuple(notes)


def _shuffled_classes(labels: IntArray, seed: int) -> Iterator[IntArray]:
    """Each class's rows in an order that depends on the seed and that class alone."""
    order = np.argsort(labels, kind="stable")
    classes, starts = np.unique(labels[order], return_index=True)
    for label, rows in zip(classes, np.split(order, starts[1:]), strict=True):
        draw = np.random.default_rng([seed, int(label)]).random(len(rows))
        yield rows[np.argsort(draw, kind="stable")]


def _hold_out_rows(labels: IntArray, seed: int, fraction: float) -> npt.NDArray[np.bool_]:
    held = np.zeros(len(labels), bool)
    for rows in _shuffled_classes(labels, seed):
        if len(rows) > 1:
            held[rows[: _target(len(rows), fraction)]] = True
    return held


def _target(count: int, fraction: float) -> int:
    return min(max(int(count * fraction + 0.5), 1), count - 1)


def _hold_out_groups(
    labels: IntArray, units: IntArray, seed: int, fraction: float
) -> npt.NDArray[np.bool_]:
    """Seeded greedy choice of whole groups; see `make_split` for the rule."""
    members = _unit_members(labels, units)
    totals = np.bincount(labels)
    in_train = np.bincount(np.concatenate([c for c, _ in members]), minlength=len(totals))
    wanted = np.array([_target(m, fraction) if m > 1 else 0 for m in totals])
    wanted[in_train < 2] = 0  # a class in one group only is trained on, not measured
    in_held = np.zeros(len(totals), np.int64)
    held_units = np.zeros(len(members), bool)
    order = np.random.default_rng(seed).permutation(len(members))

    def take(unit: int) -> None:
        classes, counts = members[unit]
        in_held[classes] += counts
        in_train[classes] -= 1
        held_units[unit] = True

    for unit in order:
        classes, counts = members[unit]
        before = (in_held[classes] - wanted[classes]) / totals[classes]
        after = before + counts / totals[classes]
        if (in_train[classes] > 1).all() and (after**2).sum() < (before**2).sum():
            take(unit)
    for unit in order:  # a class with two groups or more that is not held out yet
        classes, _ = members[unit]
        lacking = (in_held[classes] == 0) & (wanted[classes] > 0)
        if not held_units[unit] and lacking.any() and (in_train[classes] > 1).all():
            take(unit)
    if not held_units.any() and len(members) > 1:
        # Every group has a class of its own: whichever is held out, one class is not trained on.
        sizes = np.array([counts.sum() for _, counts in members])
        off = np.abs(sizes - fraction * len(labels))
        take(int(order[np.argmin(off[order])]))
    return held_units[units]


def _plain_folds(labels: IntArray, n_folds: int, seed: int) -> IntArray:
    """Deal each class's shuffled rows round the folds; the next class goes on where it ended."""
    fold_of = np.full(len(labels), -1, np.int64)
    dealt = 0
    for rows in _shuffled_classes(labels, seed):
        if len(rows) > 1:
            fold_of[rows] = (dealt + np.arange(len(rows))) % n_folds
            dealt += len(rows)
    return fold_of


def _grouped_folds(labels: IntArray, units: IntArray, n_folds: int, seed: int) -> IntArray:
    """Largest group first, each to the fold where its classes are rarest so far."""
    members = _unit_members(labels, units)
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


def _unit_members(labels: IntArray, units: IntArray) -> list[tuple[IntArray, IntArray]]:
    """Of each unit 0..u-1 the classes in it and how many images of each."""
    order = np.argsort(units, kind="stable")
    starts = np.flatnonzero(np.diff(units[order], prepend=-1))
    return [
        tuple(np.unique(labels[rows], return_counts=True))  # type: ignore[misc]
        for rows in np.split(order, starts[1:])
    ]


def _has_groups(groups: IntArray) -> bool:
    named = groups[groups >= 0]
    return len(np.unique(named)) < len(named)


def _as_units(groups: IntArray) -> IntArray:
    """Numbers 0..u-1, one per group and one per row without a group."""
    lone = groups < 0
    ids = groups.copy()
    ids[lone] = groups.max(initial=-1) + 1 + np.arange(lone.sum())
    return np.unique(ids, return_inverse=True)[1].astype(np.int64).reshape(-1)


def _checked(
    labels: npt.ArrayLike, codes: npt.ArrayLike | None, groups: npt.ArrayLike | None
) -> tuple[IntArray, IntArray, IntArray]:
    labels_ = _int_vector("labels", labels)
    n = len(labels_)
    codes_ = np.zeros(n, np.int64) if codes is None else _int_vector("split_codes", codes)
    groups_ = np.full(n, -1, np.int64) if groups is None else _int_vector("groups", groups)
    for name, values in (("split_codes", codes_), ("groups", groups_)):
        if len(values) != n:
            raise InputError(f"{name} must be as long as labels ({n}), got {len(values)}")
    if n and (codes_.min() < 0 or codes_.max() > TEST):
        raise InputError(
            f"split_codes must be 0 (none), 1 (train), 2 (val) or 3 (test), "
            f"got {codes_.min()} to {codes_.max()}"
        )
    return labels_, codes_, groups_


def _int_vector(name: str, values: npt.ArrayLike) -> IntArray:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise InputError(
            f"{name} must be a vector of whole numbers, "
            f"got an array of shape {array.shape} and type {array.dtype}"
        )
    return array.astype(np.int64)


def _check_seed(seed: int) -> None:
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise InputError(f"seed must be a whole number, 0 or more, got {seed!r}")
