"""Which images of a cache a head may be tested on, and which of them it knows."""

from __future__ import annotations

from collections import Counter
from typing import Final, Literal

import numpy as np

from featx.duplicates import DEFAULT_THRESHOLD
from featx.errors import CacheError, HeadError
from featx.featureset import FeatureSet, load_intact
from featx.heads.cached import check_fits, is_final
from featx.heads.file import HeadFile
from featx.leaks import NO_CACHE, Leak, Leaks, find_leaks
from featx.workspace import cache_of_head

On = Literal["held-out", "all"]
TRAINED: Final = ("train", "val")  # parts of a head's split that it was trained or chosen on


def candidates(
    file: HeadFile, features: FeatureSet, on: On, *, own: bool
) -> tuple[np.ndarray, str]:
    """Labelled rows to test on, before those that were trained on are taken out."""
    labelled = features.y >= 0
    name = file.metadata["split"]["held_out_name"]
    if is_final(file) and own:
        return np.flatnonzero(labelled), "images that came after it was fitted on all there were"
    if on == "held-out" and own:
        coded = labelled & (features.split == name)
        if coded.any():
            return np.flatnonzero(coded), f"{name} images"
        held_out = labelled & contains(features.sha256, file, ("held_out",))
        return np.flatnonzero(held_out), f"{name} images"
    return np.flatnonzero(labelled), "all labelled images"


def groups_of(file: HeadFile, features: FeatureSet, rows: np.ndarray, *, own: bool) -> np.ndarray:
    """The groups (n,) that the head's split kept whole, in another set of images that one's own.

    A head records those of its held-out images. Its rule is not followed again: a file from a
    stranger must not have another one read, nor an expression of its own searched for.
    """
    recorded = file.metadata["split"].get("held_out_groups")
    if recorded is None or not own:
        return features.groups[rows]
    hashes = file.split["held_out"]
    if (
        type(recorded) is not list
        or len(recorded) != len(hashes)
        or not all(type(group) is int and -1 <= group < 2**31 for group in recorded)
    ):
        raise HeadError(f"{file.path} does not say which of its held-out images belong together")
    known = {row.tobytes(): group for row, group in zip(hashes, recorded, strict=True)}
    return np.array([known.get(row.tobytes(), -1) for row in features.sha256[rows]], np.int64)


def is_own(file: HeadFile, features: FeatureSet) -> bool:
    """Whether these are the images the head was fitted on: the same folder, or most of them.

    A few images in common do not make another set its own: it is then an external test.
    """
    recorded = file.metadata["cache"]
    if (features.fingerprint, features.root) == (recorded["fingerprint"], recorded["root"]):
        return True
    parts = ("train", "val", "held_out")
    n_known = sum(len(file.split[part]) for part in parts)
    return bool(2 * contains(features.sha256, file, parts).sum() > n_known)


def leaks_among(
    file: HeadFile,
    features: FeatureSet,
    left_out: np.ndarray,
    tested: np.ndarray,
    *,
    own: bool,
    threshold: float | None,
) -> tuple[Leaks, np.ndarray]:
    """Duplicates of trained-on images: exact ones of the rows `left_out`, near ones of `tested`.

    And which of the tested ones have one, (n,) bool.
    """
    copies = _copies_of_trained(file, features, left_out) if own else left_out
    trained = features if own else _trained_cache(file)
    if trained is None:
        pairs = tuple(Leak(features.paths[row], None, 1.0, True) for row in copies)
        leaks = Leaks(pairs, threshold or DEFAULT_THRESHOLD, 0, NO_CACHE)
        return leaks, np.zeros(len(tested), bool)
    of_trained = contains(trained.sha256, file, TRAINED)
    if own:
        of_trained[copies] = False
    rows = np.concatenate([copies, tested])
    leaks, leaked = find_leaks(
        features, rows, trained, np.flatnonzero(of_trained), threshold=threshold
    )
    return leaks, leaked[len(copies) :]


def _copies_of_trained(file: HeadFile, features: FeatureSet, left_out: np.ndarray) -> np.ndarray:
    """Rows left out that are not what was trained on, but another file of the same bytes.

    Of several files of the same bytes as many were trained on as the head has recorded: first
    those the folder's own split says so of, then in the order of the rows.
    """
    recorded = Counter(row.tobytes() for part in TRAINED for row in file.split[part])
    if not len(left_out):
        return left_out
    labelled = features.y >= 0
    coded = (features.split == "train") | (features.split == "val")
    coded &= features.split != file.metadata["split"]["held_out_name"]
    copies = []
    for row in [*np.flatnonzero(labelled & coded), *np.flatnonzero(labelled & ~coded)]:
        content = features.sha256[row].tobytes()
        if recorded[content] > 0:
            recorded[content] -= 1
        else:
            copies.append(row)
    return np.intersect1d(left_out, copies).astype(np.int64)


def _trained_cache(file: HeadFile) -> FeatureSet | None:
    """The cache that a head was fitted on, if it is still there, whole and of these features."""
    try:
        features = load_intact(cache_of_head(file.metadata["cache"], file.path))
        check_fits(file, features)
    except (CacheError, HeadError):
        return None  # told: near duplicates were not looked for
    return features


def contains(sha256: np.ndarray, file: HeadFile, parts: tuple[str, ...]) -> np.ndarray:
    """(n,) bool: which of the images (n, 32) are in these parts of the head's split."""
    known = {row.tobytes() for part in parts for row in file.split[part]}
    return np.fromiter((row.tobytes() in known for row in sha256), bool, len(sha256))
