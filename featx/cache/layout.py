"""The format of the cache: its datasets, its codes, and the spec whose hash is the fingerprint."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from itertools import pairwise
from typing import Any, Final

import numpy as np

FORMAT: Final = 2  # the highest that is read; a file has the lowest that says what is in it
_FORMAT_OF: Final = {"<f4": 1, "<f2": 1, "|u1": 2}  # by the type of its features

RUN_BYTES: Final = 65_536  # room for the run report, written in place
ERROR_BYTES: Final = 160
SHA256_BYTES: Final = 32
ALIGNMENT: Final = 4_096  # features start on a page, so that numpy.memmap reads them in place
ATTRIBUTES: Final = ("format", "spec", "fingerprint", "plan", "root")
MASKING: Final = ("status", "sha256", "errors")  # what `crc32.mask_of` takes
SPLIT_NAMES: Final = ("", "train", "val", "test")  # by code


class Status(IntEnum):
    """What became of an image. Only rows that are DONE are ever trained on."""

    PENDING = 0
    DONE = 1
    UNREADABLE = 2
    UNDECODABLE = 3
    TOO_LARGE = 4
    CRASHED = 5
    NON_FINITE = 6

    @property
    def words(self) -> str:
        """The status as people read it."""
        return _STATUS_WORDS[self]


_STATUS_WORDS: Final = {
    Status.PENDING: "pending",
    Status.DONE: "done",
    Status.UNREADABLE: "unreadable",
    Status.UNDECODABLE: "undecodable",
    Status.TOO_LARGE: "too large",
    Status.CRASHED: "crashed or hung the decoder",
    Status.NON_FINITE: "non-finite features",
}


@dataclass(frozen=True)
class Column:
    """One dataset: its dtype and its shape, and whether the writer fills it row by row."""

    dtype: np.dtype
    shape: tuple[int, ...]
    per_row: bool

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @cached_property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize


def columns(
    n: int,
    feature_shape: tuple[int, ...],
    dtype: str,
    path_bytes: int,
    n_classes: int,
    name_bytes: int,
    *,
    has_extent: bool = False,
) -> dict[str, Column]:
    """Every dataset of a cache of `n` images, in the order in which they lie in the file.

    `path_bytes` and `name_bytes` are the lengths of the longest path and class name. Without
    classes the `classes` dataset keeps one empty name, since HDF5 allocates nothing for none.
    Caches of whole pictures have an `extent`: height and width of each, 0 of failed ones.
    """
    u1, i8 = np.dtype("u1"), np.dtype("<i8")
    extent = {"extent": Column(np.dtype("<u2"), (n, 2), True)} if has_extent else {}
    return {
        "status": Column(u1, (n,), True),
        "crc32": Column(np.dtype("<u4"), (n,), True),
        "sha256": Column(u1, (n, SHA256_BYTES), True),
        "errors": Column(np.dtype(f"S{ERROR_BYTES}"), (n,), True),
        "labels": Column(i8, (n,), False),
        "split": Column(u1, (n,), False),
        "groups": Column(i8, (n,), False),
        "size_bytes": Column(i8, (n,), False),
        "mtime_ns": Column(i8, (n,), False),
        "paths": Column(np.dtype(f"S{max(1, path_bytes)}"), (n,), False),
        "classes": Column(np.dtype(f"S{max(1, name_bytes)}"), (max(1, n_classes),), False),
        "run": Column(u1, (RUN_BYTES,), False),
        "digest": Column(u1, (32,), False),
        **extent,
        "features": Column(np.dtype(dtype).newbyteorder("<"), (n, *feature_shape), True),
    }


def is_feature_type(dtype: np.dtype) -> bool:
    """Whether a cache may hold features of this type: float32, float16 or, of pixels, uint8."""
    return dtype.str in _FORMAT_OF


def format_of(features: Column) -> int:
    """The format of a file with such features: readers of older ones say that it is newer."""
    return _FORMAT_OF[features.dtype.str]


def filler(features: Column) -> float:
    """What the features of a failed image are made of: NaN, or 0 where they are whole numbers."""
    return 0 if features.dtype.kind == "u" else np.nan


def is_filler(features: np.ndarray) -> np.ndarray:
    """Of each value whether it is the filler of its type."""
    filled: np.ndarray = features == 0 if features.dtype.kind == "u" else np.isnan(features)
    return filled


def runs(rows: np.ndarray) -> Iterator[tuple[int, int]]:
    """Slices of `rows` whose numbers follow one another, so that each is one read or write.

    Examples
    --------
    >>> list(runs(np.array([3, 4, 5, 9, 1])))
    [(0, 3), (3, 4), (4, 5)]
    """
    breaks = (rows[1:] - rows[:-1] != 1).nonzero()[0]
    starts = [0, *(breaks + 1).tolist()] if len(breaks) else [0]
    return pairwise([*starts, len(rows)] if len(rows) else starts)


def split_counts(split: np.ndarray) -> dict[str, int]:
    """How many images are in each part of the split, by name; parts without any are left out.

    Parameters
    ----------
    split : (n,) uint8 codes.
    """
    tally = np.bincount(split, minlength=len(SPLIT_NAMES))
    return {name: int(n) for name, n in zip(SPLIT_NAMES, tally, strict=True) if name and n}


def canonical_json(value: Mapping[str, Any]) -> str:
    """The one spelling of a JSON object: sorted keys, no spaces, ASCII; NaN is refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def fingerprint(spec: Mapping[str, Any]) -> str:
    """SHA-256, as 64 hex digits, of the canonical JSON of `spec`.

    Examples
    --------
    >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(canonical_json(spec).encode("ascii")).hexdigest()


def differing_fields(
    ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Dotted names of the fields in which two specs (or plans) differ, with both values.

    Examples
    --------
    >>> differing_fields({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2})
    {'a.b': (1, 3)}
    """
    flat_ours, flat_theirs = dict(_flatten(ours)), dict(_flatten(theirs))
    return {
        name: (flat_ours.get(name), flat_theirs.get(name))
        for name in sorted(flat_ours.keys() | flat_theirs.keys())
        if flat_ours.get(name) != flat_theirs.get(name)
    }


def _flatten(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _flatten(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item
