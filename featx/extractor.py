"""A scikit-learn transformer: images in, features out, inside any `Pipeline`."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin

from featx.decoding import from_pil
from featx.errors import ImageError, InputError
from featx.forward import run
from featx.isolation import IsolatedLoader
from featx.loading import Picture
from featx.passes import MemorySink, Pipeline
from featx.pipeline import build_pipeline
from featx.specs import ExtractOptions

_CHANNELS = ((), (1,), (3,))  # what an array may have behind its height and width


class FeatureExtractor(TransformerMixin, BaseEstimator):
    """Features of a frozen pretrained backbone as a scikit-learn transformer.

    It learns nothing, so that a pipeline may be cross-validated around it without any leak.
    Nothing is written to disk; for images that are used more than once `featx.extract` is the
    better way.

    Parameters
    ----------
    backbone, weights, cut, pool, decode, engine, device, precision, batch_size, workers, seed
        As the fields of `featx.specs.ExtractOptions`.
    preprocessing : fields of the weights' preprocessing to override: resize, crop, mean, std,
        interpolation.

    Attributes
    ----------
    n_features_out_ : length of a feature vector, after `fit`.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> extractor = FeatureExtractor("squeezenet1_1", weights="random")
    >>> model = make_pipeline(extractor, LogisticRegression())
    >>> images = [np.full((64, 64, 3), grey, np.uint8) for grey in (0, 80, 160, 240)]
    >>> model.fit(images, [0, 0, 1, 1]).predict(images).shape
    (4,)
    """

    def __init__(
        self,
        backbone: str = "densenet121",
        *,
        weights: str = "default",
        cut: str = "penultimate",
        pool: str = "auto",
        decode: str = "fast",
        engine: str = "auto",
        device: str = "auto",
        precision: str | None = None,
        batch_size: int | None = None,
        workers: int | None = None,
        seed: int = 0,
        preprocessing: Mapping[str, Any] | None = None,
    ) -> None:
        self.backbone = backbone
        self.weights = weights
        self.cut = cut
        self.pool = pool
        self.decode = decode
        self.engine = engine
        self.device = device
        self.precision = precision
        self.batch_size = batch_size
        self.workers = workers
        self.seed = seed
        self.preprocessing = preprocessing

    def fit(self, X: Any = None, y: Any = None) -> FeatureExtractor:
        """Build the network; `X` and `y` are not looked at."""
        self.n_features_out_ = int(np.prod(self._pipeline().engine.feature_shape))
        return self

    def transform(self, X: Sequence[Any] | np.ndarray) -> np.ndarray:
        """Features of images.

        Parameters
        ----------
        X : n images, each a path, a PIL image, or a uint8 array (h, w, 3), (h, w, 1) or
            (h, w).

        Returns
        -------
        (n, d) float32, of the cut `input` uint8; row i belongs to ``X[i]``.

        Raises
        ------
        ImageError
            An image cannot be used; the message names it. Rows are never dropped in silence.
        InputError
            An element is none of the three kinds.
        """
        if isinstance(X, (str, os.PathLike)):
            raise InputError(f"X must be a list of images, got one path: [{os.fspath(X)!r}]")
        pipeline = self._pipeline()
        sink = MemorySink(len(X), pipeline.engine.feature_shape, pipeline.dtype)

        def load(image: Any) -> Picture:
            if isinstance(image, (str, os.PathLike)):
                return load_file(Path(image))
            return Picture(pipeline.loader.resized(_pixels(image)), bytes(32))

        with IsolatedLoader(pipeline.loader) as load_file:  # starts nothing without a path
            run(
                enumerate(X),
                load,
                engine=pipeline.engine,
                sink=sink,
                dtype=pipeline.dtype,
                workers=self.workers,
            )
        if sink.failed:
            row, (status, reason) = min(sink.failed.items())
            named = f" ({X[row]})" if isinstance(X[row], (str, os.PathLike)) else ""
            more = f"; {len(sink.failed) - 1} more failed" if len(sink.failed) > 1 else ""
            raise ImageError(f"image {row}{named} cannot be used: {reason}{more}", status=status)
        return sink.features.reshape(len(X), math.prod(sink.features.shape[1:]))

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """``f0``, ``f1``, …, one per value of a feature vector."""
        n = int(np.prod(self._pipeline().engine.feature_shape))
        return np.array([f"f{i}" for i in range(n)], dtype=object)

    def _pipeline(self) -> Pipeline:
        """The network for the present parameters, built once and rebuilt when they change."""
        wanted = repr(sorted(self.get_params(deep=False).items()))
        if getattr(self, "_built_for", None) != wanted:
            self._built = build_pipeline(
                ExtractOptions(
                    backbone=self.backbone,
                    weights=self.weights,
                    seed=self.seed,
                    cut=self.cut,
                    pool=self.pool,
                    decode=self.decode,
                    engine=self.engine,
                    device=self.device,
                    precision=self.precision,
                    batch_size=self.batch_size,
                    workers=self.workers,
                    transform=dict(self.preprocessing or {}),
                )
            )
            self._built_for = wanted
        return self._built

    def __getstate__(self) -> dict[str, Any]:
        """Without the network: a pickled pipeline stays small and builds it again when used."""
        state = super().__getstate__()
        return {key: value for key, value in state.items() if not key.startswith("_built")}

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.no_validation = True  # images, not a matrix
        tags.input_tags.two_d_array = False
        return tags


def _pixels(image: Any) -> np.ndarray:
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in _CHANNELS:
            raise InputError(
                "an image array must be uint8 of shape (h, w, 3), (h, w, 1) or (h, w), got "
                f"{image.dtype} {image.shape}"
            )
        return (
            image
            if image.shape[2:] == (3,)
            else np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
        )
    if hasattr(image, "getbands"):
        return from_pil(image)
    raise InputError(
        f"an image must be a path, a PIL image or a uint8 array, got {type(image).__name__}"
    )
