"""Which images are the same picture twice: by the bytes of their files, and by their features.

Exact duplicates have files of the same SHA-256. Near duplicates (stored again, cropped a little,
lighter) have features that point almost the same way: `featx.likeness` says how alike two are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from featx.errors import InputError
from featx.likeness import FloatArray, IntArray, Likeness, blocks

# Measured by benchmarks/duplicates.py on 590 photographs of ten birds and 398 of ants and bees with
# two MobileNetV2: none of 505,516 pairs of different pictures reaches it (the most is 0.66). Of
# copies stored as JPEG of quality 90 it finds 0.99 or more, of quality 70 0.93, of quality 50 0.66
# (0.94 where the network knows the subject); 20 % lighter 0.91, 5 % of the edges cut off 0.94, 10 %
# 0.61; half the size 0.33 to 0.79; mirrored 0.35 to 0.61. Without the levelling 102 pairs of
# different birds reach 0.85.
DEFAULT_THRESHOLD: Final = 0.75


class Images(NamedTuple):
    """Some images of a cache: `rows` of `X` (n, d) and of `sha256` (n, 32)."""

    X: npt.NDArray[Any]
    sha256: npt.NDArray[np.uint8]
    rows: IntArray


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of images, the most similar first.

    Attributes
    ----------
    first, second : (p,) int64
        Row numbers; `first` is the smaller.
    similarity : (p,) float64
        At most 1; 1 for exact duplicates.
    exact : (p,) bool
        Whether the files have the same bytes.
    """

    first: IntArray
    second: IntArray
    similarity: FloatArray
    exact: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.first)


@dataclass(frozen=True, eq=False)
class Duplicates:
    """What `find_duplicates` found.

    Attributes
    ----------
    groups : (n,) int64
        Images that are duplicates of each other, also by way of others, have one number, counted
        from 0 in the order of their first rows; -1 has no duplicate.
    pairs : Pairs
        Each image with its exact duplicates' first row and with its most similar near duplicate:
        enough to name every image of a group, and never more than 2 n pairs.
    conflicts : Pairs
        Duplicates whose labels differ: each image with the most similar one of another label.
    threshold : float
    """

    groups: IntArray
    pairs: Pairs
    conflicts: Pairs
    threshold: float

    @property
    def n_groups(self) -> int:
        return int(self.groups.max(initial=-1)) + 1


@dataclass(frozen=True, eq=False)
class Nearest:
    """Of each image of one set its duplicate in another: see `nearest_duplicates`.

    Attributes
    ----------
    other : (n,) int64
        Row of the other set; -1 where there is no duplicate.
    similarity : (n,) float64
        1 for exact ones, 0 where there is none.
    exact : (n,) bool
    """

    other: IntArray
    similarity: FloatArray
    exact: npt.NDArray[np.bool_]


def find_duplicates(
    X: npt.NDArray[Any],
    sha256: npt.NDArray[np.uint8],
    *,
    labels: npt.ArrayLike | None = None,
    threshold: float = DEFAULT_THRESHOLD,
) -> Duplicates:
    """Exact and near duplicates among n images.

    Similarities are taken block by block, so that memory does not grow with the pairs; the time
    does: n * n * d / 2 multiplications. Because there are so many pairs, false finds grow with the
    square of the images while true ones grow with their number: raise the threshold for a
    large set of images that are much alike.

    Parameters
    ----------
    X : (n, d) float
        Features. What different pictures share is learnt from them, so it takes a few dozen
        different images for a similarity to mean something.
    sha256 : (n, 32) uint8
        Of the image files; all zeros where it is not known.
    labels : (n,) int, optional
        For `conflicts`; -1 is unlabelled.
    threshold : float
        Above 0, at most 1: the least similarity of near duplicates.

    Raises
    ------
    InputError
        A bad threshold, or arrays of unequal length.

    Examples
    --------
    >>> X = np.random.default_rng(0).normal(size=(40, 100))
    >>> X[7] = X[2] + 0.1 * X[3]
    >>> np.flatnonzero(find_duplicates(X, np.zeros((40, 32), np.uint8)).groups >= 0).tolist()
    [2, 7]
    """
    check_threshold(threshold)
    n = len(X)
    labels_ = np.full(n, -1, np.int64) if labels is None else np.asarray(labels, np.int64)
    if len(sha256) != n or len(labels_) != n:
        raise InputError(
            f"X, sha256 and labels must have a row for each image, got {n}, {len(sha256)} and "
            f"{len(labels_)}"
        )
    first_of = _first_of_same_bytes(sha256)
    rows = np.flatnonzero(first_of == np.arange(n))  # one image of each content
    component = first_of
    nearest, nearest_of_other_label = _Best(n), _Best(n)
    for i, j, similarity in _similar_pairs(Images(X, sha256, rows), threshold):
        component = _joined(component, i, j)
        nearest.update(i, j, similarity)
        differ = (labels_[i] != labels_[j]) & (labels_[i] >= 0) & (labels_[j] >= 0)
        nearest_of_other_label.update(i[differ], j[differ], similarity[differ])
    copies = np.flatnonzero(first_of != np.arange(n))
    originals = first_of[copies]
    contradicting = _contradicting_copies(first_of, labels_)
    return Duplicates(
        groups=_numbered(component),
        pairs=nearest.pairs(originals, copies),
        conflicts=nearest_of_other_label.pairs(*contradicting),
        threshold=threshold,
    )


def nearest_duplicates(
    images: Images,
    others: Images,
    *,
    likeness: Likeness | None,
    threshold: float = DEFAULT_THRESHOLD,
) -> Nearest:
    """Of each image its exact duplicate among others, else the most similar near duplicate.

    Parameters
    ----------
    images, others : Images
        What is looked for, and where; the features of both must mean the same.
    likeness : Likeness or None
        Learnt from the cache that `others` are from; None looks for exact duplicates only.
    threshold : float
        Above 0, at most 1.

    Raises
    ------
    InputError
        A bad threshold.
    """
    check_threshold(threshold)
    n = len(images.rows)
    other, similarity = np.full(n, -1, np.int64), np.zeros(n)
    known = {others.sha256[row].tobytes(): row for row in others.rows[::-1]}
    unknown = bytes(32)
    for position, row in enumerate(images.rows):
        content = images.sha256[row].tobytes()
        if content != unknown:
            other[position] = known.get(content, -1)
    exact = other >= 0
    similarity[exact] = 1.0
    if likeness is None:
        return Nearest(other, similarity, exact)
    left = np.flatnonzero(~exact)
    for part in blocks(len(left), images.X.shape[1]):
        positions = left[part]
        A = likeness.vectors(images.X, images.rows[positions])  # (a, d)
        best, best_of = np.zeros(len(positions)), np.full(len(positions), -1, np.int64)
        for part_of_others in blocks(len(others.rows), others.X.shape[1]):
            rows = others.rows[part_of_others]
            S = A @ likeness.vectors(others.X, rows).T  # (a, b)
            column = S.argmax(axis=1)
            highest = S[np.arange(len(S)), column]
            better = highest > best
            best[better], best_of[better] = highest[better], rows[column[better]]
        near = best >= np.float32(threshold)
        other[positions[near]] = best_of[near]
        similarity[positions[near]] = np.minimum(best[near], 1.0)
    return Nearest(other, similarity, exact)


def merged_groups(*groups: npt.ArrayLike) -> IntArray:
    """Groups that hold together what any of the given groups holds together.

    Parameters
    ----------
    *groups : each (n,) int
        -1 is its own group.

    Returns
    -------
    (n,) int64
        Numbered from 0 in the order of their first rows; -1 where a row is alone.

    Examples
    --------
    >>> merged_groups([0, 0, 1, -1, -1], [-1, 5, 5, -1, -1]).tolist()
    [0, 0, 0, -1, -1]
    """
    arrays = [np.asarray(one, np.int64) for one in groups]
    component = np.arange(len(arrays[0]))
    for array in arrays:
        rows = np.flatnonzero(array >= 0)
        _, first, inverse = np.unique(array[rows], return_index=True, return_inverse=True)
        component = _joined(component, rows, rows[first][inverse])
    return _numbered(component)


def check_threshold(threshold: float) -> None:
    """Raise InputError unless near duplicates can be told by this least similarity."""
    if isinstance(threshold, bool) or not 0 < threshold <= 1:
        raise InputError(
            f"the threshold of near duplicates must be above 0 and at most 1, got {threshold!r}; "
            f"the default is {DEFAULT_THRESHOLD}"
        )


class _Best:
    """Of each of n images the most similar other, among the pairs shown to it."""

    def __init__(self, n: int) -> None:
        self._other, self._similarity = np.full(n, -1, np.int64), np.zeros(n)

    def update(self, i: IntArray, j: IntArray, similarity: npt.NDArray[np.float32]) -> None:
        who, other = np.concatenate([i, j]), np.concatenate([j, i])
        value = np.concatenate([similarity, similarity]).astype(np.float64)
        order = np.lexsort((other, -value, who))  # equals: the first row
        who, other, value = who[order], other[order], value[order]
        first = np.flatnonzero(np.diff(who, prepend=-1))
        who, other, value = who[first], other[first], value[first]
        better = value > self._similarity[who]
        self._other[who[better]] = other[better]
        self._similarity[who[better]] = value[better]

    def pairs(self, originals: IntArray, copies: IntArray) -> Pairs:
        """Every near pair once, and these exact ones."""
        i = np.flatnonzero(self._other >= 0)
        ends = np.sort(np.stack([i, self._other[i]], axis=1), axis=1)
        ends, at = np.unique(ends, axis=0, return_index=True)
        exact_ends = np.sort(np.stack([originals, copies], axis=1), axis=1)
        ends = np.concatenate([exact_ends, ends]).astype(np.int64)
        exact = np.arange(len(ends)) < len(copies)
        near = np.minimum(self._similarity[i[at]], 1.0)
        similarity = np.concatenate([np.ones(len(copies)), near])
        order = np.lexsort((ends[:, 1], ends[:, 0], -similarity, ~exact))
        return Pairs(ends[order, 0], ends[order, 1], similarity[order], exact[order])


def _first_of_same_bytes(sha256: npt.NDArray[np.uint8]) -> IntArray:
    """(n,) row of the first image with the same file; an unknown hash is nobody else's."""
    n = len(sha256)
    first_of = np.arange(n)
    known = np.flatnonzero(sha256.any(axis=1))
    keys = np.ascontiguousarray(sha256[known]).view("V32").reshape(-1)
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    first_of[known] = known[first][inverse]
    return first_of


def _contradicting_copies(first_of: IntArray, labels: IntArray) -> tuple[IntArray, IntArray]:
    """Exact duplicates of which one label is not the other's: (originals, copies)."""
    labelled = np.flatnonzero(labels >= 0)
    _, first, inverse = np.unique(first_of[labelled], return_index=True, return_inverse=True)
    original = labelled[first][inverse]  # the first labelled image of the same bytes
    differ = labels[original] != labels[labelled]
    return original[differ], labelled[differ]


def _similar_pairs(
    images: Images, threshold: float
) -> Iterator[tuple[IntArray, IntArray, npt.NDArray[np.float32]]]:
    """Rows i < j and similarity of every near pair, some at a time."""
    X, rows = images.X, images.rows
    if len(rows) < 2:
        return
    likeness = Likeness.learn(X)
    parts = list(blocks(len(rows), X.shape[1]))
    for number, part in enumerate(parts):
        A = likeness.vectors(X, rows[part])
        for later in parts[number:]:
            S = A @ (A if later == part else likeness.vectors(X, rows[later])).T
            alike = np.float32(threshold) <= S
            if later == part:
                alike = np.triu(alike, 1)
            i, j = np.nonzero(alike)
            if len(i):
                yield rows[part][i], rows[later][j], S[i, j]


def _joined(component: IntArray, i: IntArray, j: IntArray) -> IntArray:
    """Component numbers (n,) after i[e] and j[e] were connected."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(component)
    ends = (component[i], component[j])
    graph = coo_array((np.ones(len(i), bool), ends), shape=(n, n))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)[component]


def _numbered(component: IntArray) -> IntArray:
    """Numbers from 0 in the order of first rows; -1 where a row is alone in its component."""
    _, first, inverse, counts = np.unique(
        component, return_index=True, return_inverse=True, return_counts=True
    )
    shared = counts > 1
    number = np.full(len(counts), -1, np.int64)
    number[np.flatnonzero(shared)[np.argsort(first[shared])]] = np.arange(shared.sum())
    return number[inverse]
