"""The stage that measures: a head on images it has never seen."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from featx.counting import counted
from featx.devices import resolve_device
from featx.duplicates import DEFAULT_THRESHOLD, check_threshold, merged_groups
from featx.errors import CacheError, HeadError, InputError
from featx.featureset import FeatureSet, load_intact
from featx.grouping import drawn_by
from featx.heads.cached import (
    check_fits,
    classes_known,
    is_final,
    load_recorded,
    newest_fitting_head,
    newest_measurable_head,
    probabilities,
    temperature_of,
)
from featx.heads.contents import to_json
from featx.heads.file import HeadFile
from featx.heads.row_view import RowView
from featx.heads.tail import TailHead
from featx.images import display_names
from featx.leaks import NO_CACHE, Leak, Leaks, find_leaks, recorded_threshold
from featx.metrics import Report, score
from featx.own_network import note_given
from featx.temperature import at_temperature
from featx.workspace import cache_of_head

On = Literal["held-out", "all"]
NOT_CONVERGED: Final = " (the fit did not converge)"
_TRAINED: Final = ("train", "val")  # parts of a head's split that it was trained or chosen on


@dataclass(frozen=True)
class Evaluation:
    """A report, and what it was and was not measured on.

    Attributes
    ----------
    report : the figures, see `featx.metrics.Report`; of a calibrated head at its temperature.
    uncalibrated : of a calibrated head the figures without its temperature, else None.
    calibration : what the temperature is and what it was fitted on; None without one.
    protocol : what was trained on, chosen on, calibrated on and tested on, and what the bootstrap
        draws, in words.
    recorded : of how the head came about, as its file has it: params, fit (what was chosen and
        whether it converged), settings, split and versions.
    head, cache : the files.
    tested_on : the rows in words: ``val folder``, ``all labelled images``, ….
    trained_left_out : labelled images left out because the head was trained or chosen on them, or
        on a file of the same bytes.
    leaks : duplicates of images that were trained or chosen on: exact ones, which are left out,
        and near ones, which are tested, beside the accuracy without them. None where images that
        were trained on are tested too.
    unlabelled : images without a label.
    unknown : class name -> images whose class the head does not know; left out.
    failed : images of the cache without features.
    paths, sha256 : (n), (n, 32) uint8, of the tested images.
    groups : (n,) int64, images that the intervals draw together; -1 where one is drawn alone.
    y_true : (n,) int64, index into `report.classes`.
    probabilities : (n, k) float64, those that `report` is of.
    files : (n) where the tested images lay.
    """

    report: Report
    uncalibrated: Report | None
    calibration: Mapping[str, Any] | None
    protocol: Mapping[str, str]
    recorded: Mapping[str, Any]
    head: Path
    cache: Path
    tested_on: str
    trained_left_out: int
    leaks: Leaks | None
    unlabelled: int
    unknown: dict[str, int]
    failed: int
    paths: tuple[str, ...]
    sha256: np.ndarray
    groups: np.ndarray
    y_true: np.ndarray
    probabilities: np.ndarray
    files: tuple[Path, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the report and what it was measured on, without the predictions."""
        return {
            "head": os.fspath(self.head),
            "cache": os.fspath(self.cache),
            "tested_on": self.tested_on,
            "trained_left_out": self.trained_left_out,
            "leaks": None if self.leaks is None else self.leaks.to_dict(),
            "unlabelled": self.unlabelled,
            "unknown_classes": self.unknown,
            "failed": self.failed,
            "protocol": dict(self.protocol),
            "recorded": dict(self.recorded),
            "calibration": None if self.calibration is None else dict(self.calibration),
            "uncalibrated": (
                None if self.uncalibrated is None else self.uncalibrated.of_probabilities()
            ),
            **self.report.to_dict(),
        }


def evaluate(
    cache: str | os.PathLike[str] | None = None,
    head: str | os.PathLike[str] | None = None,
    *,
    on: On = "held-out",
    backbone: str | None = None,
    include_trained: bool = False,
    duplicate_threshold: float | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
    device: str = "auto",
    cache_dir: str | os.PathLike[str] = "cache",
) -> Evaluation:
    """Measure a head on the images that it was neither trained nor chosen on.

    Images are recognised by the SHA-256 of their files, so that none that was trained on is ever
    tested on, whatever has happened to the folder since.

    A calibrated head is measured at its temperature, which was fitted without these images, and
    beside that without it.

    Parameters
    ----------
    cache : the cache to test on; the one the head was fitted on if none is named. Another one
        (an external test) needs features of the same backbone, cut and transform; its classes are
        matched by name.
    head : a head file; if none is named the newest that fits and is not final, beside `cache` or
        in `cache_dir`.
    on : ``held-out`` tests on the head's held-out rows in its own cache and on all rows of
        another; ``all`` on every labelled row of either.
    backbone : ``package.module:factory`` again, of a tail head of the user's own network; else not
        needed.
    include_trained : test also on images that were trained on. The figures are then no measure of
        how the head does on new images, and `tested_on` says so.
    duplicate_threshold : the least similarity of near duplicates, see `featx.duplicates`; by
        default the one the head was fitted with.
    bootstrap : draws for the intervals; 0 for none. Where the head's split kept groups whole, whole
        groups are drawn; in another set of images, the groups of its own cache.
    seed : of these draws.
    device : where a tail predicts; by default the one it says, the CPU. Other heads use the CPU.

    Raises
    ------
    HeadError, CacheError
        A file that cannot be used, or a cache that does not fit the head.
    InputError
        Not one image is left to test on, as of a head that was fitted on all of them; or `on` is
        neither of the two.
    """
    if on not in ("held-out", "all"):
        raise InputError(f"on must be 'held-out' or 'all', got {on!r}")
    if duplicate_threshold is not None:
        check_threshold(duplicate_threshold)
    if backbone is not None:
        note_given(backbone)  # a head of the rest of that network is built as it is read
    found = resolve_device(device).name
    file, features = _open(cache, head, cache_dir)
    if isinstance(file.head, TailHead) and device != "auto":
        file.head.predict_device = found
    if include_trained and is_final(file):
        raise InputError(f"{_measured_before(file)}; leave --include-trained away")
    own = _is_own(file, features)
    rows, tested_on = _candidates(file, features, on, own=own)
    trained = _contains(features.sha256[rows], file, _TRAINED)
    left_out = rows[trained]
    fit_saw = include_trained and bool(trained.any())
    if include_trained:
        tested_on += ", images it was trained on included" if fit_saw else ""
    else:
        rows = rows[~trained]
    y_true = classes_known(file, features)[features.y[rows]]
    unknown = {
        features.names[label]: int((features.y[rows] == label).sum())
        for label in np.unique(features.y[rows[y_true < 0]])
    }
    rows, y_true = rows[y_true >= 0], y_true[y_true >= 0]
    if not len(rows) and is_final(file):
        raise InputError(
            f"{_measured_before(file)}, and {features.path} has no others: test it on new images"
        )
    if not len(rows):
        raise InputError(
            f"no image of {features.path} is left to test {file.path} on: {int(trained.sum())} "
            f"were trained on, {sum(unknown.values())} are of unknown classes, "
            f"{int((features.y < 0).sum())} are unlabelled; "
            "test on another cache"
        )
    groups = merged_groups(_groups_of(file, features, rows, own=own))
    extent = None if features.extent is None else features.extent[rows]
    plain = probabilities(file, RowView(features.X, rows), extent=extent, calibrated=False)
    temperature = temperature_of(file)
    predicted = plain if temperature is None else at_temperature(plain, temperature)
    told: dict[str, Any] = {
        "classes": display_names(file.classes),
        "train_counts": file.metadata["split"]["train_counts"],
        "bootstrap": bootstrap,
        "seed": seed,
    }
    leaks = None
    if not include_trained:
        threshold = duplicate_threshold
        if threshold is None:
            threshold = recorded_threshold(file.metadata)
        leaks, leaked = _leaks(file, features, left_out, rows, own=own, threshold=threshold)
        if leaks.near and not leaked.all():
            without = score(y_true[~leaked], predicted[~leaked], groups=groups[~leaked], **told)
            leaks = replace(leaks, accuracy_without=without.accuracy)
    return Evaluation(
        report=score(y_true, predicted, groups=groups, **told),
        uncalibrated=(None if temperature is None else score(y_true, plain, groups=groups, **told)),
        calibration=file.metadata.get("calibration"),
        protocol=_protocol(file, f"{counted(len(rows), 'image')} ({tested_on})", fit_saw, groups),
        recorded=_recorded(file),
        head=file.path,
        cache=features.path,
        tested_on=tested_on,
        trained_left_out=0 if include_trained else int(trained.sum()),
        leaks=leaks,
        unlabelled=int((features.y < 0).sum()),
        unknown=unknown,
        failed=len(features.failed),
        paths=tuple(features.paths[row] for row in rows.tolist()),
        sha256=features.sha256[rows],
        groups=groups,
        y_true=y_true,
        probabilities=predicted,
        files=tuple(Path(features.root, features.paths[row]) for row in rows.tolist()),
    )


def _groups_of(file: HeadFile, features: FeatureSet, rows: np.ndarray, *, own: bool) -> np.ndarray:
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


def _recorded(file: HeadFile) -> dict[str, Any]:
    """What moves a figure of the head, in JSON's types; not which images belong together."""
    split = {k: v for k, v in file.metadata["split"].items() if k != "held_out_groups"}
    told = {name: file.metadata.get(name) for name in ("fit", "settings", "versions")}
    return {"params": to_json(file.head.get_params()), **told, "split": split}


def _protocol(file: HeadFile, tested_on: str, fit_saw: bool, groups: np.ndarray) -> dict[str, str]:
    """What every kind of decision was made on, in words; of a held-out set, that none was."""
    split = file.metadata["split"]
    calibration = file.metadata.get("calibration")
    fit = file.metadata.get("fit")
    ended = not isinstance(fit, dict) or fit.get("converged") is not False
    return {
        "trained_on": counted(len(file.split["train"]), "image") + ("" if ended else NOT_CONVERGED),
        "chosen_on": str(split.get("chosen_on", "not recorded")),
        "calibrated_on": "nothing" if calibration is None else calibration["fitted_on"],
        "tested_on": tested_on,
        "test_images_used_for": (
            "training too: no measure of new images" if fit_saw else "these figures only"
        ),
        "intervals_draw": drawn_by(groups),
    }


def _open(
    cache: str | os.PathLike[str] | None,
    head: str | os.PathLike[str] | None,
    cache_dir: str | os.PathLike[str],
) -> tuple[HeadFile, FeatureSet]:
    """The head and the cache that are meant, which must fit each other."""
    if head is None and cache is not None:
        features = load_intact(cache)
        return newest_fitting_head(features), features
    file = load_recorded(head) if head is not None else newest_measurable_head(cache_dir)
    head_path = file.path
    recorded = file.metadata["cache"]
    features = load_intact(cache if cache is not None else cache_of_head(recorded, head_path))
    check_fits(file, features)
    return file, features


def _candidates(
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
        held_out = labelled & _contains(features.sha256, file, ("held_out",))
        return np.flatnonzero(held_out), f"{name} images"
    return np.flatnonzero(labelled), "all labelled images"


def _measured_before(file: HeadFile) -> str:
    """What a head that was fitted on all images was measured at before that."""
    report = file.metadata["final"]["report"]
    accuracy = report["accuracy"]
    interval = (
        "" if accuracy["low"] is None else f", {accuracy['low']:.3f} to {accuracy['high']:.3f}"
    )
    return (
        f"{file.path} was fitted on all labelled images, so nothing it was fitted on can measure "
        f"it; the same settings had an accuracy of {accuracy['value']:.3f}{interval} on "
        f"{report['n']:,} {report['tested_on']} before that"
    )


def _is_own(file: HeadFile, features: FeatureSet) -> bool:
    """Whether these are the images the head was fitted on: the same folder, or most of them.

    A few images in common do not make another set its own: it is then an external test.
    """
    recorded = file.metadata["cache"]
    if (features.fingerprint, features.root) == (recorded["fingerprint"], recorded["root"]):
        return True
    parts = ("train", "val", "held_out")
    n_known = sum(len(file.split[part]) for part in parts)
    return bool(2 * _contains(features.sha256, file, parts).sum() > n_known)


def _leaks(
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
    of_trained = _contains(trained.sha256, file, _TRAINED)
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
    recorded = Counter(row.tobytes() for part in _TRAINED for row in file.split[part])
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


def _contains(sha256: np.ndarray, file: HeadFile, parts: tuple[str, ...]) -> np.ndarray:
    """(n,) bool: which of the images (n, 32) are in these parts of the head's split."""
    known = {row.tobytes() for part in parts for row in file.split[part]}
    return np.fromiter((row.tobytes() in known for row in sha256), bool, len(sha256))
