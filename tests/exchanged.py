"""Caches with everything in them that other formats may stumble over, and foreign features."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from small_caches import create, rows_of, sha_of

from featx.cache import Status

PATHS = (
    b"birds/a,b.jpg",
    b'birds/"quoted".jpg',
    b"birds/line\nbreak\r.jpg",
    "birds/麻雀🐦.jpg".encode(),
    b"birds/tab\tand\rreturn.jpg",
    b"birds/ leading.jpg",
    b"birds/=1+1.jpg",
    b"bad.jpg",
)
FAILED = len(PATHS) - 1
CLASSES = ("001.Grue, cendrée", '麻"雀')


def values(n: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """(n, *shape) of numbers that a careless printer of floats would change."""
    info = np.finfo(dtype)
    odd = np.array([info.max, info.min, info.tiny, info.smallest_subnormal, 1 / 3, -0.0, 0.1])
    drawn = np.random.default_rng(5).normal(size=n * int(np.prod(shape)))
    drawn[: len(odd)] = odd
    return drawn.astype(dtype).reshape(n, *shape)


def write_cache(
    path: Path,
    *,
    shape: tuple[int, ...] = (5,),
    dtype: str = "float32",
    paths: Sequence[bytes] = PATHS,
    failed: int | None = FAILED,
    **columns: Any,
) -> Path:
    """A finished cache of `paths`, with groups, splits, an image without label and a failed one."""
    n = len(paths)
    labels = np.arange(n) % 2
    labels[1] = -1
    known: dict[str, Any] = {
        "labels": labels,
        "split": (np.arange(n) % 4).astype(np.uint8),
        "groups": np.arange(n) // 2 - 1,
        "classes": CLASSES,
    }
    rows = rows_of(n, paths=sorted(paths), **(known | columns))
    writer = create(path, rows, feature_shape=shape, dtype=dtype)
    if failed is not None:
        failed = sorted(paths).index(paths[failed])
        writer.fail(failed, Status.UNDECODABLE, "broken", sha_of(n)[failed].tobytes())
    good = np.array([row for row in range(n) if row != failed])
    writer.put(good, values(n, shape, dtype)[good], sha_of(n)[good])
    writer.finish(path, {"images": n})
    return path


def csv_rows(path: Path) -> list[dict[str, str]]:
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
