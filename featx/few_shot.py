"""The stage that asks how many images a class are enough: few-shot heads and a learning curve."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from sklearn.base import clone

from featx.counting import counted
from featx.devices import resolve_device
from featx.errors import InputError
from featx.featureset import FeatureSet, load_intact
from featx.folds import leave_out_units
from featx.grouping import drawn_by, group_images
from featx.heads.base import Head
from featx.heads.making import fit_on, make_head, probabilities_of
from featx.heads.row_view import RowView
from featx.leaks import Leaks, find_leaks
from featx.metrics import Estimate
from featx.metrics.bootstrap import interval, units
from featx.recorded import settle_on_features
from featx.splits import Split, make_split, settled_fraction
from featx.workspace import newest_cache

IntArray = npt.NDArray[np.int64]

SHOTS: Final = (1, 2, 4, 8, 16)  # of CLIP's few-shot linear probes (Radford et al. 2021, fig. 6)
_DRAWS: Final = 1000
_BLOCK: Final = 1 << 22  # float64 at once: 32 MiB


@dataclass(frozen=True)
class Point:
    """Heads fitted on so many images a class.

    Attributes
    ----------
    shots : images a class; None for all training images.
    n_train : images a head was trained on.
    n_short : classes that have fewer than `shots` training images, all of which are then taken.
    accuracy : mean over the repeats, on the held-out images, with its 95 % interval.
    accuracies : of every repeat; one where nothing can be drawn (all training images).
    """

    shots: int | None
    n_train: int
    n_short: int
    accuracy: Estimate
    accuracies: tuple[float, ...]


@dataclass(frozen=True)
class LearningCurve:
    """Accuracy by the number of training images a class.

    Attributes
    ----------
    cache : the file.
    head, params : the way of fitting.
    points : from few to many; the last is of all training images.
    n_test, tested_on : the held-out images that are tested, and what they are.
    leaks : held-out images that are duplicates of training images: exact ones are left out, near
        ones are tested.
    baseline : their share of the class that is commonest in training.
    repeats, seed : how often images were drawn for each point.
    notes : sentences for the user.
    """

    cache: Path
    head: str
    params: Mapping[str, Any]
    points: tuple[Point, ...]
    n_test: int
    leaks: Leaks
    tested_on: str
    baseline: float
    repeats: int
    seed: int
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "cache": os.fspath(self.cache),
            "head": self.head,
            "params": {k: list(v) if isinstance(v, tuple) else v for k, v in self.params.items()},
            "tested_on": self.tested_on,
            "n_test": self.n_test,
            "leaks": self.leaks.to_dict(),
            "baseline": self.baseline,
            "repeats": self.repeats,
            "seed": self.seed,
            "points": [
                vars(point)
                | {"accuracy": point.accuracy.to_dict(), "accuracies": list(point.accuracies)}
                for point in self.points
            ],
            "notes": list(self.notes),
        }


def learning_curve(
    cache: str | os.PathLike[str] | None = None,
    *,
    head: str = "logistic",
    shots: Sequence[int] = SHOTS,
    repeats: int = 10,
    seed: int = 0,
    test_fraction: float | None = None,
    group: str | None = None,
    duplicate_threshold: float | None = None,
    device: str = "auto",
    cache_dir: str | os.PathLike[str] = "cache",
    advance: Callable[[int, int], None] | None = None,
    **params: Any,
) -> LearningCurve:
    """Fit heads on few images a class, drawn from the training images, and test each.

    Every head is tested on the held-out images, which are those of `fit_head` with the same seed;
    files with the bytes of a training image are left out.
    Choices are made inside the few images alone, never on validation images, of which somebody
    with so few has none; where no class has images in two groups (one image a class, or all of one
    nest) nothing can be chosen, and a head's own fixed setting is taken (logistic: C = 1). In one
    repeat the images of a point are among those of the next.

    The interval is a percentile bootstrap interval over both what was drawn to train on and what
    was tested on: repeats and held-out images (whole groups, where there are) are drawn with
    replacement, 1,000 times. Where every answer is right, or wrong, it is the exact one of Clopper
    & Pearson 1934.

    Parameters
    ----------
    cache : a finished cache; the newest in `cache_dir` if none is named.
    head : kind of head, as for `fit_head`.
    shots : images a class, each 1 or more.
    repeats : how often they are drawn.
    seed : of the split, where the folder has none of its own, of the draws, and of the heads.
    test_fraction : held out, where the folder has no split of its own; 0.2.
    group, duplicate_threshold : as for `fit_head`.
    device : where to fit.
    advance : called after each fit with the number of fits done and of all.
    **params : of the head.

    Raises
    ------
    CacheError, InputError
        No usable cache, no labels, or an argument that cannot be used.

    Examples
    --------
    >>> curve = learning_curve("cache/birds-densenet121.h5", shots=(1, 4))  # doctest: +SKIP
    >>> [(point.shots, round(point.accuracy.value, 2)) for point in curve.points]  # doctest: +SKIP
    [(1, 0.61), (4, 0.88), (None, 0.96)]
    """
    wanted = _checked(shots, repeats)
    features = load_intact(cache if cache is not None else newest_cache(cache_dir))
    fraction = settled_fraction(test_fraction, features.y, features.split_codes, features.path)
    grouping = group_images(features, group)
    split = make_split(
        features.y, features.split_codes, groups=grouping.groups, seed=seed, test_fraction=fraction
    )
    device = resolve_device(device).name
    plain = make_head(head, params, device=device, seed=seed)
    settle_on_features(plain, features.spec, features.plan)
    labels = features.y[split.train]
    counts = np.bincount(labels, minlength=len(features.classes))
    jobs = [(shot, repeat) for shot in wanted for repeat in range(repeats)]
    jobs.append((int(counts.max()), -1))  # all of them, once
    tested = _unleaked(features, split)
    leaks, _ = find_leaks(
        features, split.held_out, features, split.train, threshold=duplicate_threshold
    )
    X_test, y_test = RowView(features.X, tested), features.y[tested]
    extent = None if features.extent is None else features.extent[tested]
    rights: dict[int, list[npt.NDArray[np.bool_]]] = {}
    heard: dict[type[Warning], list[str]] = {}
    for done, (shot, repeat) in enumerate(jobs, 1):
        rows = split.train if repeat < 0 else draw_shots(split.train, labels, shot, seed, repeat)
        estimator = clone(plain).set_params(random_state=seed + max(repeat, 0))
        _fix_unchosen(estimator, features.y[rows], grouping.groups[rows])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit_on(
                estimator,
                features.X,
                features.y,
                rows,
                groups=grouping.groups,
                extent=features.extent,
            )
        for warning in caught:
            heard.setdefault(warning.category, []).append(str(warning.message))
        best = probabilities_of(estimator, X_test, extent).argmax(axis=1)
        rights.setdefault(shot if repeat >= 0 else 0, []).append(
            np.asarray(estimator.classes_[best] == y_test)
        )
        if advance is not None:
            advance(done, len(jobs))
    groups = grouping.groups[tested]
    unit = units(groups, len(tested))
    points = [
        _point(shot or None, np.stack(right), counts, seed, unit) for shot, right in rights.items()
    ]
    return LearningCurve(
        cache=features.path,
        head=head,
        params=dict(params),
        points=tuple(points),
        n_test=len(tested),
        leaks=leaks,
        tested_on=f"{split.held_out_name} images",
        baseline=float((y_test == counts.argmax()).mean()),
        repeats=repeats,
        seed=seed,
        notes=_notes(split, groups, heard, len(jobs)),
    )


def draw_shots(rows: IntArray, labels: IntArray, shots: int, seed: int, repeat: int) -> IntArray:
    """So many rows of each class, sorted; of fewer shots a part of these.

    Parameters
    ----------
    rows, labels : (n,) what is drawn from.
    shots : of each class; all of a class that has no more.
    seed, repeat : the same draw the same rows.
    """
    drawn = [
        np.random.default_rng([seed, repeat, int(label)]).permutation(rows[labels == label])[:shots]
        for label in np.unique(labels)
    ]
    return np.sort(np.concatenate(drawn))


def _checked(shots: Sequence[int], repeats: int) -> list[int]:
    for name, values in (("shots", shots), ("repeats", [repeats])):
        for value in values:
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
                raise InputError(f"{name} must be whole numbers, 1 or more, got {value!r}")
    if not len(shots):
        raise InputError("shots must name at least one number of images a class")
    return sorted({int(shot) for shot in shots})


def _fix_unchosen(estimator: Head, labels: IntArray, groups: IntArray) -> None:
    """Give a head that cannot choose its fixed values: no class has rows in two groups."""
    if not leave_out_units(labels, groups=groups)[1].any():
        fixed = {k: v for k, v in estimator.UNCHOSEN.items() if getattr(estimator, k) is None}
        estimator.set_params(**fixed)


def _point(
    shots: int | None,
    right: npt.NDArray[np.bool_],
    counts: IntArray,
    seed: int,
    unit: IntArray,
) -> Point:
    trained = counts if shots is None else np.minimum(counts, shots)
    return Point(
        shots=shots,
        n_train=int(trained.sum()),
        n_short=0 if shots is None else int(((counts < shots) & (counts > 0)).sum()),
        accuracy=_estimate(right, seed, unit),
        accuracies=tuple(right.mean(axis=1).tolist()),
    )


def _estimate(right: npt.NDArray[np.bool_], seed: int, unit: IntArray) -> Estimate:
    """Mean of (repeats, n) answers; interval by drawing repeats and units with replacement.

    `unit` (n,) int64 is what each image is drawn with; of one alone nothing can be drawn.
    """
    repeats, n = right.shape
    n_units = int(unit.max()) + 1
    if n_units == 1 < n:
        return Estimate(float(right.mean()))
    rng = np.random.default_rng(seed)
    drawn = np.empty(_DRAWS)
    step = max(1, _BLOCK // n)
    for start in range(0, _DRAWS, step):
        part = slice(start, min(start + step, _DRAWS))
        b = part.stop - part.start
        units_drawn = rng.multinomial(n_units, np.full(n_units, 1 / n_units), size=b)
        images = units_drawn[:, unit]  # (b, n) how often each
        times = rng.multinomial(repeats, np.full(repeats, 1 / repeats), size=b)  # (b, repeats)
        drawn[part] = ((times @ right) * images).sum(axis=1) / (repeats * images.sum(axis=1))
    return interval(float(right.mean()), drawn, n_units=n_units)


def _unleaked(features: FeatureSet, split: Split) -> IntArray:
    """The held-out rows whose files have not the bytes of any training image."""
    trained = {row.tobytes() for row in features.sha256[split.train]}
    fresh = [row.tobytes() not in trained for row in features.sha256[split.held_out]]
    if not any(fresh):
        raise InputError(
            f"every held-out image of {features.path} is a copy of a training image: there is "
            "nothing to test on"
        )
    return split.held_out[fresh]


def _notes(
    split: Split, groups: IntArray, heard: Mapping[type[Warning], Sequence[str]], n_fits: int
) -> tuple[str, ...]:
    notes = [*split.notes]
    if (groups >= 0).any():
        notes.append(f"intervals draw {drawn_by(groups)}")
    if len(split.val):
        notes.append(
            f"{counted(len(split.val), 'val image')} not used: few-shot heads choose without"
        )
    notes += [
        f"{len(said):,} warnings of {n_fits:,} fits, the first: {said[0]}"
        for said in heard.values()
    ]
    return tuple(notes)
