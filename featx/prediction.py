"""The stage that names images: a head and files in, classes and probabilities out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featx.cache import Status
from featx.errors import InputError
from featx.featureset import FailedImage, FeatureSet, load_intact
from featx.heads.cached import check_fits, load_recorded, probabilities, temperature_of
from featx.heads.file import HeadFile
from featx.heads.tail import BATCH_ROWS, TailHead
from featx.images import display_names, expand_inputs
from featx.own_network import note_given
from featx.recorded import pipeline_of_spec


@dataclass(frozen=True)
class Predictions:
    """Classes and probabilities of images, in the order in which the images were given.

    Attributes
    ----------
    paths : (n) path of every image that could be used, as given; of a cache, below its root.
    classes : (k) class names in the order of the columns of `probabilities`.
    probabilities : (n, k) float64, rows sum to 1.
    failed : images that could not be used, and why.
    files : (n) where these images lie.
    temperature : what the probabilities are calibrated by; None where they are the head's own.
    """

    paths: tuple[str, ...]
    classes: tuple[str, ...]
    probabilities: np.ndarray
    failed: tuple[FailedImage, ...]
    files: tuple[Path, ...]
    temperature: float | None = None

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def names(self) -> tuple[str, ...]:
        """Class names as people read them."""
        return display_names(self.classes)

    @property
    def labels(self) -> np.ndarray:
        """(n,) int64, index into `classes` of the most probable class."""
        return self.probabilities.argmax(axis=1)

    def top(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The `k` most probable classes of every image, best first: (n, k) indices and values."""
        k = min(k, len(self.classes))
        order = np.argsort(-self.probabilities, axis=1, kind="stable")[:, :k]
        return order, np.take_along_axis(self.probabilities, order, axis=1)

    def to_records(self, *, top_k: int = 5) -> list[dict[str, Any]]:
        """One JSON-ready mapping per image: path, class, probability, and the `top_k` classes."""
        order, values = self.top(top_k)
        return [
            {
                "path": path,
                "class": self.classes[order[i, 0]],
                "probability": float(values[i, 0]),
                "top": [
                    {"class": self.classes[c], "probability": float(p)}
                    for c, p in zip(order[i], values[i], strict=True)
                ],
            }
            for i, path in enumerate(self.paths)
        ]


def predict(
    head: str | os.PathLike[str],
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    backbone: str | None = None,
    weights: str | None = None,
    engine: str = "auto",
    device: str = "auto",
    precision: str | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    calibrated: bool = True,
    data_root: str | os.PathLike[str] = "data",
    start: Callable[[int], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Predictions:
    """Class probabilities of images.

    Parameters
    ----------
    head : a head file, as `fit_head` writes it.
    images : files, folders, globs and data sets by name, in the order wanted; or one cache
        (``.h5``), whose features are used as they are, without a forward pass.
    backbone : ``package.module:factory``, where the features were made by the user's own code;
        else not needed.
    weights : the backbone's weights file or entry; by default where it lay when the features were
        made, else its published name.
    engine, device, batch_size, workers : how to run; by the fixed rules where not given. A tail
        runs on the CPU, unless a device is named.
    precision : arithmetic of the backbone; by default that of the features the head was fitted on.
    calibrated : of a head with a temperature (``fit_head(calibrate=True)``), give the
        probabilities at it; False for the head's own. The classes and their order are the same.
    data_root : the folder that data sets by name lie in.
    start, progress : called with the number of images, and with how many more are done.

    Raises
    ------
    HeadError
        No such head, a damaged one, or a cache or weights that are not the head's.
    InputError
        An image, folder or glob that is not there.
    WeightsError
        The backbone's weights cannot be found.

    Examples
    --------
    >>> predict("birds-densenet121.logistic.safetensors", ["a.jpg"]).labels  # doctest: +SKIP
    array([3])
    """
    inputs = [images] if isinstance(images, (str, os.PathLike)) else list(images)
    if not inputs:
        raise InputError("no images to predict: name files, folders, globs or a cache")
    if backbone is not None:
        note_given(backbone)  # a head of the rest of that network is built as it is read
    file = load_recorded(head)
    caches = [path for path in inputs if os.fspath(path).endswith(".h5")]
    if caches:
        if len(inputs) > 1:
            raise InputError("give either one cache (.h5) or image files to predict, not both")
        return predict_cache(file, load_intact(caches[0]), calibrated=calibrated)
    files = expand_inputs(inputs, data_root=data_root)
    pipeline = pipeline_of_spec(
        file.metadata["cache"]["spec"],
        file.metadata["cache"]["plan"],
        backbone=backbone,
        weights=weights,
        engine=engine,
        device=device,
        precision=precision,
        batch_size=batch_size,
        files=files,
    )
    sink = _HeadSink(file, len(files), calibrated=calibrated)
    if start:
        start(len(files))
    if isinstance(file.head, TailHead) and device != "auto":
        file.head.predict_device = pipeline.device.name
    pipeline.run(enumerate(files), sink, workers=workers, progress=progress)
    sink.flush()
    good = [i for i in range(len(files)) if i not in sink.failed]
    return Predictions(
        paths=tuple(os.fspath(files[i]) for i in good),
        classes=file.classes,
        probabilities=sink.probabilities[good],
        failed=tuple(
            FailedImage(os.fspath(files[i]), Status(status), reason)
            for i, (status, reason) in sorted(sink.failed.items())
        ),
        files=tuple(files[i] for i in good),
        temperature=temperature_of(file) if calibrated else None,
    )


class _HeadSink:
    """Turns features into probabilities a few batches at a time, so that memory is bounded."""

    def __init__(self, file: HeadFile, n: int, *, calibrated: bool) -> None:
        self._file, self._calibrated = file, calibrated
        self._waiting: list[tuple[np.ndarray, ...]] = []  # for a tail to fill its batch
        self.probabilities = np.zeros((n, len(file.classes)))
        self.failed: dict[int, tuple[int, str]] = {}

    def put(
        self,
        rows: np.ndarray,
        features: np.ndarray,
        sha256: np.ndarray,
        extent: np.ndarray | None = None,
    ) -> None:
        batch = rows, features.reshape(len(rows), -1)
        self._waiting.append(batch if extent is None else (*batch, extent))
        if sum(len(rows) for rows, *_ in self._waiting) >= BATCH_ROWS:
            self.flush()

    def flush(self) -> None:
        """Predict what waits."""
        if self._waiting:
            rows, features, *extent = map(np.concatenate, zip(*self._waiting, strict=True))
            self._waiting = []
            self.probabilities[rows] = probabilities(
                self._file,
                features,
                extent=extent[0] if extent else None,
                calibrated=self._calibrated,
            )

    def fail(self, row: int, status: int, reason: str, sha256: bytes) -> None:
        self.failed[row] = (status, reason)


def predict_cache(file: HeadFile, features: FeatureSet, *, calibrated: bool = True) -> Predictions:
    """Class probabilities of every usable row of a cache that fits the head.

    Raises
    ------
    HeadError
        The cache holds other features than the head was fitted on.
    """
    check_fits(file, features)
    return Predictions(
        paths=tuple(features.paths),
        classes=file.classes,
        probabilities=probabilities(
            file, features.X, extent=features.extent, calibrated=calibrated
        ),
        failed=features.failed,
        files=tuple(features.files),
        temperature=temperature_of(file) if calibrated else None,
    )
