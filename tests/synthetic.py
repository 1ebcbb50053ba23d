"""Caches of made-up features with classes that can be told apart; options of a tiny network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from featx.cache import CacheWriter, Rows, Status

CLASSES = ("001.Great_tit", "002.Grue_cendrée", "003.麻雀")
SPEC: dict[str, Any] = {
    "schema": 1,
    "backbone": "squeezenet1_1",
    "weights_sha256": "0" * 64,
    "cut": "penultimate",
    "pool": "avg",
    "layout": "vector",
    "shape": [16],
    "transform": {},
    "decode": "fast",
    "precision": "fp32",
}
PLAN = {"engine": "torch-eager", "batch_size": 4, "weights": {"name": "random", "path": ""}}

# The options of an extraction that takes no time.
TINY: dict[str, Any] = {
    "backbone": "squeezenet1_1",
    "weights": "random",
    "engine": "torch-eager",
    "device": "cpu",
    "batch_size": 4,
    "transform": {"resize": 64, "crop": 64},
}


def write_cache(
    path: Path,
    *,
    n: int = 60,
    classes: tuple[str, ...] = CLASSES,
    split: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    first_image: int = 0,
    spread: float = 0.6,
    failed: tuple[int, ...] = (),
    crashed: tuple[int, ...] = (),
    spec: dict[str, Any] | None = None,
    root: str = "/birds",
    plant: Callable[[np.ndarray, np.ndarray], None] | None = None,
) -> Path:
    """A finished cache whose class c is centred on 3 e_c.

    `first_image` numbers the images: two caches share those whose numbers they share. `plant`
    changes features (n, 16) and hashes (n, 32) in place before they are written.
    """
    numbers = np.arange(first_image, first_image + n)
    labels = numbers % len(classes) if labels is None else labels
    rows = Rows(
        paths=[b"%06d.jpg" % number for number in numbers],
        labels=labels,
        split=np.zeros(n, np.uint8) if split is None else split,
        groups=np.full(n, -1) if groups is None else groups,
        size_bytes=numbers,
        mtime_ns=numbers,
        classes=classes,
    )
    centres = 3.0 * np.eye(16)[: max(1, len(classes))]
    features = np.stack(
        [
            centres[max(0, label)] + spread * np.random.default_rng(int(number)).normal(size=16)
            for number, label in zip(numbers, labels, strict=True)
        ]
    ).astype(np.float32)
    sha256 = np.zeros((n, 32), np.uint8)
    sha256[:, :8] = numbers.astype("<i8").view(np.uint8).reshape(n, 8)
    if plant is not None:
        plant(features, sha256)
    writer = CacheWriter.create(
        path, rows, root=root, spec=spec or SPEC, plan=PLAN, feature_shape=(16,)
    )
    good = np.setdiff1d(np.arange(n), failed + crashed)
    writer.put(good, features[good], sha256[good])
    for row in failed:
        writer.fail(row, Status.UNDECODABLE, "broken", sha256[row].tobytes())
    for row in crashed:
        writer.fail(row, Status.CRASHED, "the decoder hung", sha256[row].tobytes())
    writer.finish(path, {"images": n})
    return path
