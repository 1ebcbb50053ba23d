"""The stage that measures: a head on images it has never seen."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from featx.counting import counted
from featx.devices import resolve_device
from featx.duplicates import check_threshold, merged_groups
from featx.errors import InputError
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
from featx.leaks import Leaks, recorded_threshold
from featx.metrics import Report, score
from featx.own_network import note_given
from featx.temperature import at_temperature
from featx.testable import TRAINED, On, candidates, contains, groups_of, is_own, leaks_among
from featx.workspace import cache_of_head

NOT_CONVERGED: Final = " (the fit did not converge)"


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
    own = is_own(file, features)
    rows, tested_on = candidates(file, features, on, own=own)
    trained = contains(features.sha256[rows], file, TRAINED)
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
    groups = merged_groups(groups_of(file, features, rows, own=own))
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
        leaks, leaked = leaks_among(file, features, left_out, rows, own=own, threshold=threshold)
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
