"""Caches of ten rows with known features, whole or unfinished, made by the writer itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from featx.cache import CacheWriter, Rows

SPEC = {"backbone": "tiny", "cut": "penultimate", "images": {"label_from": "first"}}


PLAN = {"engine": "torch-eager", "batch_size": 4}


def rows_of(n: int = 10, **columns: Any) -> Rows:
    values: dict[str, Any] = {
        "paths": [b"a/%03d.jpg" % i for i in range(n)],
        "labels": np.arange(n) % 2,
        "split": np.zeros(n, np.uint8),
        "groups": np.full(n, -1),
        "size_bytes": np.arange(n) + 100,
        "mtime_ns": np.arange(n) + 10**18,
        "classes": ("001.Great_tit", "麻雀"),
    }
    return Rows(**(values | columns))


def features_of(n: int = 10, d: int = 5) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, d)).astype(np.float32)


def sha_of(n: int = 10) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (n, 32), np.uint8)


def create(path: Path, rows: Rows | None = None, **changes: Any) -> CacheWriter:
    options: dict[str, Any] = {
        "root": "/birds", "spec": SPEC, "plan": PLAN, "feature_shape": (5,), **changes
    }  # fmt: skip
    return CacheWriter.create(path, rows or rows_of(), **options)


def finished(path: Path, rows: Rows | None = None, **changes: Any) -> Path:
    rows = rows or rows_of()
    writer = create(path, rows, **changes)
    writer.put(np.arange(len(rows)), features_of(len(rows)), sha_of(len(rows)))
    writer.finish(path, {"images": len(rows)})
    return path
