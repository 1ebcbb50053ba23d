"""Which images `featx show` draws, and what it writes below them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featx.cache import Status
from featx.errors import InputError
from featx.featureset import FeatureSet, load
from featx.heads.cached import check_fits, classes_known, load_recorded, probabilities
from featx.images import display_names, list_images
from featx.report.grid import Mark


@dataclass(frozen=True)
class Chosen:
    """Images for a grid: files, captions, marks, and out of how many they were chosen.

    A text among the files is the reason why that one is not to be decoded.
    """

    files: tuple[Path | str, ...]
    captions: tuple[str, ...]
    marks: tuple[Mark, ...]
    total: int


def choose(
    source: str | os.PathLike[str],
    *,
    n: int = 25,
    class_name: str | None = None,
    head: str | os.PathLike[str] | None = None,
    errors: bool = False,
    failed: bool = False,
    seed: int = 0,
    data_root: str | os.PathLike[str] = "data",
) -> Chosen:
    """Choose images of a cache or a folder by seed, class, failure or error.

    Parameters
    ----------
    source : a finished cache (``.h5``), or whatever `featx.extract` takes as images.
    n : how many at most, drawn by `seed` and shown in the order of their paths.
    class_name : only of this class, as its folder is called or as people read it.
    head : a head file; its prediction is written below each image of a cache, and marked.
    errors : only what `head` gets wrong, the most confident first.
    failed : only images of the cache that have no features, with the reason.
    data_root : the folder that data sets by name lie in.

    Raises
    ------
    InputError
        No image fits, the class is unknown, or arguments that do not go together.
    """
    is_cache = os.fspath(source).endswith(".h5")
    if not is_cache and (head is not None or errors or failed):
        raise InputError(
            "predictions, errors and failures are shown for a cache (.h5); for the predictions of "
            "a folder use `featx predict --show`"
        )
    if errors and head is None:
        raise InputError("--errors needs --head: errors are what a head gets wrong")
    if failed and (head is not None or class_name is not None):
        raise InputError("--failed shows images without features: it goes with no class and head")
    if not is_cache:
        table = list_images(source, data_root=data_root)
        labels, classes = table.labels, table.classes
        rows = _of_class(labels, classes, class_name)
        picked = _drawn(rows, n, seed)
        names = (*display_names(classes), "")
        captions = tuple(names[labels[row]] or os.fsdecode(table.paths[row]) for row in picked)
        files = tuple(table.file(int(row)) for row in picked)
        return Chosen(files, captions, (None,) * len(files), len(rows))
    features = load(source)
    if failed:
        return _failed(features, n, seed)
    if head is not None:
        return _predicted(features, head, n, class_name, errors=errors, seed=seed)
    rows = _of_class(features.y, features.classes, class_name)
    picked = _drawn(rows, n, seed)
    names = (*features.names, "")
    captions = tuple(names[features.y[row]] or features.paths[row] for row in picked)
    files = tuple(features.files[row] for row in picked)
    return Chosen(files, captions, (None,) * len(files), len(rows))


def _predicted(
    features: FeatureSet,
    head: str | os.PathLike[str],
    n: int,
    class_name: str | None,
    *,
    errors: bool,
    seed: int,
) -> Chosen:
    file = load_recorded(head)
    check_fits(file, features)
    predicted = probabilities(file, features.X, extent=features.extent)
    label, best = predicted.argmax(axis=1), predicted.max(axis=1)
    said = np.array(display_names(file.classes), dtype=object)[label]
    true = np.array([*features.names, ""], dtype=object)[features.y]
    known = classes_known(file, features)[features.y]
    wrong = (label != known) & (features.y >= 0)
    rows = _of_class(features.y, features.classes, class_name)
    if errors:
        rows = rows[wrong[rows]]
        if not len(rows):
            raise InputError(f"{file.path} gets none of these images wrong")
        picked = rows[np.argsort(-best[rows], kind="stable")][:n]
    else:
        picked = _drawn(rows, n, seed)
    captions = tuple(
        f"{said[row]} {best[row]:.2f}" + (f"\n(is {true[row]})" if wrong[row] else "")
        for row in picked
    )
    marks: tuple[Mark, ...] = tuple(
        None if features.y[row] < 0 else "wrong" if wrong[row] else "ok" for row in picked
    )
    return Chosen(tuple(features.files[row] for row in picked), captions, marks, len(rows))


def _failed(features: FeatureSet, n: int, seed: int) -> Chosen:
    if not features.failed:
        raise InputError(f"no image of {features.path} failed")
    picked = [features.failed[i] for i in _drawn(np.arange(len(features.failed)), n, seed)]
    return Chosen(
        tuple(  # nothing here would survive what ended a decoding process
            image.reason if image.status is Status.CRASHED else Path(features.root) / image.path
            for image in picked
        ),
        tuple(f"{image.path}\n{image.status.words}" for image in picked),
        (None,) * len(picked),
        len(features.failed),
    )


def _of_class(labels: np.ndarray, classes: tuple[str, ...], class_name: str | None) -> np.ndarray:
    if class_name is None:
        return np.arange(len(labels))
    shown = display_names(classes)
    spaced = class_name.replace("_", " ")
    wanted = [
        i
        for i, (name, readable) in enumerate(zip(classes, shown, strict=True))
        if class_name in (name, readable) or spaced == readable
    ]
    if not wanted:
        some = ", ".join(shown[:10]) + (", …" if len(shown) > 10 else "")
        raise InputError(f"there is no class {class_name!r}; there are {some or 'no classes'}")
    return np.flatnonzero(labels == wanted[0])


def _drawn(rows: np.ndarray, n: int, seed: int) -> np.ndarray:
    if not len(rows):
        raise InputError("there are no images to show")
    return np.sort(np.random.default_rng(seed).permutation(rows)[:n])
