"""Rows, their classes and the groups that are never parted, checked and counted."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from featx.errors import InputError

IntArray = npt.NDArray[np.int64]

TRAIN, VAL, TEST = 1, 2, 3  # the cache's split codes; 0 is none


def checked_rows(
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


def check_seed(seed: int) -> None:
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise InputError(f"seed must be a whole number, 0 or more, got {seed!r}")


def has_groups(groups: IntArray) -> bool:
    named = groups[groups >= 0]
    return len(np.unique(named)) < len(named)


def as_units(groups: IntArray) -> IntArray:
    """Numbers 0..u-1, one per group and one per row without a group."""
    lone = groups < 0
    ids = groups.copy()
    ids[lone] = groups.max(initial=-1) + 1 + np.arange(lone.sum())
    return np.unique(ids, return_inverse=True)[1].astype(np.int64).reshape(-1)


def unit_members(labels: IntArray, units: IntArray) -> list[tuple[IntArray, IntArray]]:
    """Of each unit 0..u-1 the classes in it and how many images of each."""
    order = np.argsort(units, kind="stable")
    starts = np.flatnonzero(np.diff(units[order], prepend=-1))
    return [
        tuple(np.unique(labels[rows], return_counts=True))  # type: ignore[misc]
        for rows in np.split(order, starts[1:])
    ]


def shuffled_classes(labels: IntArray, seed: int) -> Iterator[IntArray]:
    """Each class's rows in an order that depends on the seed and that class alone."""
    order = np.argsort(labels, kind="stable")
    classes, starts = np.unique(labels[order], return_index=True)
    for label, rows in zip(classes, np.split(order, starts[1:]), strict=True):
        draw = np.random.default_rng([seed, int(label)]).random(len(rows))
        yield rows[np.argsort(draw, kind="stable")]
