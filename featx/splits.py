"""Labels, groups and a seed in, row numbers out: what is trained on, chosen on and held out.

The rules are featx's own where scikit-learn's would not do: every class with two images or more
is on both sides, a class with one image is trained on, and a group is never parted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from featx.errors import InputError
from featx.units import (
    TEST,
    TRAIN,
    VAL,
    IntArray,
    as_units,
    check_seed,
    checked_rows,
    has_groups,
    shuffled_classes,
    unit_members,
)

TEST_FRACTION: Final = 0.2  # held out, where the images have no split of their own
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


def has_own_split(labels: npt.ArrayLike, split_codes: npt.ArrayLike) -> bool:
    """Whether the labelled images (n,) came in a training part and another, by codes (n,)."""
    codes = np.asarray(split_codes)[np.asarray(labels) >= 0]
    return len(set(codes.tolist()) - {0}) > 1


def settled_fraction(
    fraction: float | None, labels: npt.ArrayLike, split_codes: npt.ArrayLike, path: object
) -> float:
    """The share to hold out; refuses one that is given for images with a split of their own."""
    if fraction is None:
        return TEST_FRACTION
    if has_own_split(labels, split_codes):
        raise InputError(
            f"the images of {path} have a split of their own: leave --test-fraction away"
        )
    return fraction


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
    labels_, codes, groups_ = checked_rows(labels, split_codes, groups)
    check_seed(seed)
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
    if has_groups(groups):
        held = _hold_out_groups(labels, as_units(groups), seed, fraction)
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


def _hold_out_rows(labels: IntArray, seed: int, fraction: float) -> npt.NDArray[np.bool_]:
    held = np.zeros(len(labels), bool)
    for rows in shuffled_classes(labels, seed):
        if len(rows) > 1:
            held[rows[: _target(len(rows), fraction)]] = True
    return held


def _target(count: int, fraction: float) -> int:
    return min(max(int(count * fraction + 0.5), 1), count - 1)


def _hold_out_groups(
    labels: IntArray, units: IntArray, seed: int, fraction: float
) -> npt.NDArray[np.bool_]:
    """Seeded greedy choice of whole groups; see `make_split` for the rule."""
    members = unit_members(labels, units)
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
