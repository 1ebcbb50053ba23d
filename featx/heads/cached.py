"""A head on cached features: whether they fit each other, and what the head says of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import numpy as np

from featx.errors import HeadError
from featx.featureset import FeatureSet
from featx.heads.file import HeadFile, load_head
from featx.heads.making import probabilities_of
from featx.heads.row_view import RowView
from featx.images import display_names
from featx.temperature import BOUNDS, at_temperature
from featx.workspace import newest_first

# Fields of a spec that decide what a feature means: two caches that differ in one of these do not
# fit one head. The others (how images are listed, storage, last digits) may differ.
MEANING: Final = (
    "backbone",
    "weights_sha256",
    "cut",
    "pool",
    "layout",
    "shape",
    "transform",
    "store_size",
)

# What `fit_head` records and the later stages rely on.
_RECORD: Final = {
    "cache": {
        "spec": dict,
        "plan": dict,
        "file": str,
        "path": str,
        "fingerprint": str,
        "root": str,
    },
    "split": {"held_out_name": str, "train_counts": list},
}


def load_recorded(path: str | os.PathLike[str]) -> HeadFile:
    """A head file that also says which features it was fitted on, as `fit_head` writes it.

    Raises
    ------
    HeadError
        No usable head file, or one without that record.
    """
    if os.fspath(path).endswith(".h5"):
        raise HeadError(f"{path} is a cache, not a head; give the .safetensors file of its head")
    file = load_head(path)
    for part, fields in _RECORD.items():
        found = file.metadata.get(part)
        wrong = [
            name
            for name, kind in fields.items()
            if not isinstance(found, dict) or not isinstance(found.get(name), kind)
        ]
        if wrong:
            raise HeadError(
                f"{path} does not say what it was fitted on (no {part}.{wrong[0]}): it was not "
                "made by `featx fit-head`; in Python use featx.heads.load_head(path).head"
            )
    _check_calibration(file)
    return file


def is_final(file: HeadFile) -> bool:
    """Whether a head was fitted on all labelled images, with the report of what it repeats.

    Raises
    ------
    HeadError
        It says so, but its report is missing or garbled.
    """
    if "final" not in file.metadata:
        return False
    final = file.metadata["final"]
    report = final.get("report") if isinstance(final, dict) else None
    accuracy = report.get("accuracy") if isinstance(report, dict) else None
    if not isinstance(accuracy, dict) or not {"n", "tested_on"} <= set(report or {}):
        raise HeadError(f"{file.path} has no report of what it was measured at: fit it again")
    if not isinstance(accuracy.get("value"), float) or not {"low", "high"} <= set(accuracy):
        raise HeadError(f"{file.path} has a garbled report of what it was measured at")
    return True


def newest_measurable_head(folder: str | os.PathLike[str]) -> HeadFile:
    """The newest head in a folder that was not fitted on all labelled images.

    Raises
    ------
    HeadError
        There is none, or the newest file is no usable head.
    """
    for path in newest_first(Path(folder), "*.safetensors"):
        file = load_recorded(path)
        if not is_final(file):
            return file
    raise HeadError(f"there is no head in {folder}; fit one with `featx fit-head`")


def _check_calibration(file: HeadFile) -> None:
    calibration = file.metadata.get("calibration")
    if calibration is None:
        return
    found = calibration if isinstance(calibration, dict) else {}
    temperature = found.get("temperature")
    if (
        type(temperature) is not float
        or not BOUNDS[0] <= temperature <= BOUNDS[1]
        or type(found.get("fitted_on")) is not str
    ):
        raise HeadError(
            f"{file.path} has a calibration that cannot be used (temperature {temperature!r}; "
            f"it must be from {BOUNDS[0]:g} to {BOUNDS[1]:g}): fit the head again"
        )


def temperature_of(file: HeadFile) -> float | None:
    """What a head's probabilities are calibrated by; None if it was fitted without --calibrate."""
    calibration = file.metadata.get("calibration")
    return None if calibration is None else float(calibration["temperature"])


def check_fits(file: HeadFile, features: FeatureSet) -> None:
    """Refuse a cache whose features mean something else than those the head was fitted on."""
    ours, theirs = file.metadata["cache"]["spec"], features.spec
    differing = [name for name in MEANING if ours.get(name) != theirs.get(name)]
    if differing:
        told = "; ".join(
            f"{name}: {theirs.get(name)!r}, not {ours.get(name)!r}" for name in differing
        )
        raise HeadError(
            f"{features.path} does not fit {file.path}, which was fitted on other features "
            f"({told}); fit a head on this cache, or extract with the head's settings"
        )


def newest_fitting_head(features: FeatureSet) -> HeadFile:
    """The newest head beside a cache that was fitted on features like its own, but not on all.

    Raises
    ------
    HeadError
        There is none.
    """
    for path in newest_first(features.path.parent, "*.safetensors"):
        try:
            file = load_recorded(path)
            check_fits(file, features)
            if is_final(file):
                continue  # these images cannot measure it
        except HeadError:
            continue  # some other head: not the one looked for
        return file
    raise HeadError(
        f"no head beside {features.path} fits it; fit one with `featx fit-head {features.path}`"
    )


def classes_known(file: HeadFile, features: FeatureSet) -> np.ndarray:
    """Number of each class of a cache as the head has it, (k,) int64; -1: the head has none.

    Names are matched as they are, else as people read them, so that ``004.Groove_billed_Ani`` of
    one data set is ``Groove billed Ani`` of another. One more -1 stands at the end, for label -1.
    """
    exact = {name: index for index, name in enumerate(file.classes)}
    shown = {name: index for index, name in enumerate(display_names(file.classes))}
    numbers = [
        exact.get(name, shown.get(readable, -1))
        for name, readable in zip(features.classes, features.names, strict=True)
    ]
    return np.array([*numbers, -1], np.int64)


def probabilities(
    file: HeadFile,
    X: np.ndarray | RowView,
    *,
    extent: np.ndarray | None = None,
    calibrated: bool = True,
) -> np.ndarray:
    """Class probabilities (n, k) float64 of features (n, d); no rows give no rows.

    Those of a calibrated head are at its temperature, unless `calibrated` is False: then they are
    the head's own, as `file.head.predict_proba` gives them. `extent` is that of whole pictures.
    """
    if not len(X):
        return np.zeros((0, len(file.classes)))
    plain = np.asarray(probabilities_of(file.head, X, extent), np.float64)
    temperature = temperature_of(file)
    return at_temperature(plain, temperature) if calibrated and temperature else plain
