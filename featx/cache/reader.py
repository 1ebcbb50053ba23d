"""Reading a cache: the file is looked over first, as if it came from a stranger, then mapped."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np

from featx.cache.files import MEND, told_as_disk_error
from featx.cache.layout import (
    ATTRIBUTES,
    FORMAT,
    Column,
    Status,
    canonical_json,
    columns,
    fingerprint,
    is_feature_type,
    runs,
)
from featx.cache.metadata import Stored, read_metadata
from featx.errors import CacheError, NewerFormatError
from featx.home import at_home

PARTIAL_SUFFIX: Final = ".partial"
_MAX_FEATURE_AXES: Final = 3  # a map; a vector has one


@dataclass(frozen=True)
class CacheFile:
    """What an intact cache says of itself. Nothing of its rows is in memory until asked for.

    Attributes
    ----------
    path : the file.
    columns : name -> dtype and shape of every dataset.
    offsets : name -> byte offset of its data in the file.
    spec, plan : what was asked, and how it was run.
    fingerprint : SHA-256 of the spec, 64 hex digits.
    root : the folder that `paths` are relative to, as it was on the machine that wrote the file.
    size_bytes : length of the whole file.
    """

    path: Path
    columns: Mapping[str, Column]
    offsets: Mapping[str, int]
    spec: dict[str, Any]
    plan: dict[str, Any]
    fingerprint: str
    root: str
    size_bytes: int

    def __len__(self) -> int:
        return self.columns["status"].shape[0]

    @property
    def feature_shape(self) -> tuple[int, ...]:
        return self.columns["features"].shape[1:]

    def map(self, name: str) -> np.ndarray:
        """Dataset `name` as a copy-on-write memory map: writing to it never reaches the file."""
        column = self.columns[name]
        return np.memmap(
            self.path, dtype=column.dtype, mode="c", offset=self.offsets[name], shape=column.shape
        )

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows `start` to `stop` of dataset `name` as an array of their own.

        Nothing is mapped: reading a large dataset in parts takes no more memory than one part.

        Raises
        ------
        CacheError
            The file has become shorter since it was opened.
        DiskError
            The disk cannot read it.
        """
        column = self.columns[name]
        stop = column.shape[0] if stop is None else min(stop, column.shape[0])
        values = np.empty((max(0, stop - start), *column.shape[1:]), column.dtype)
        self._fill(name, [(start, values)])
        return values

    def take(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Rows number `rows` (m,) of dataset `name`, in that order, read as by `read`."""
        column = self.columns[name]
        values = np.empty((len(rows), *column.shape[1:]), column.dtype)
        self._fill(name, ((int(rows[first]), values[first:last]) for first, last in runs(rows)))
        return values

    def _fill(self, name: str, parts: Iterable[tuple[int, np.ndarray]]) -> None:
        """Read into each array the rows of a dataset from the given number on."""
        row_bytes, offset = self.columns[name].row_bytes, self.offsets[name]
        with (
            told_as_disk_error(self.path, "read", MEND),
            self.path.open("rb", buffering=0) as stream,
        ):
            for start, values in parts:
                stream.seek(offset + start * row_bytes)
                view = values.reshape(-1).view(np.uint8).data
                while len(view):
                    count = stream.readinto(view)
                    if not count:
                        raise CacheError(f"{self.path} was cut short while it was read")
                    view = view[count:]

    @cached_property
    def is_partial(self) -> bool:
        return self.path.name.endswith(PARTIAL_SUFFIX)

    @cached_property
    def paths(self) -> tuple[bytes, ...]:
        """Path of every row, in the bytes of the file system."""
        return tuple(self.read("paths").tolist())

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Class names by label; empty where nothing is labelled."""
        names = self.read("classes").tolist()
        return (
            ()
            if names == [b""]
            else tuple(name.decode("utf-8", "surrogateescape") for name in names)
        )

    @cached_property
    def run(self) -> dict[str, Any]:
        """The run report; empty while none is written."""
        text = self.read("run").tobytes().rstrip(b"\0")
        try:
            report = json.loads(text) if text else {}
        except (ValueError, RecursionError) as error:
            raise CacheError(f"{self.path}: its run report is damaged ({error})") from error
        if not isinstance(report, dict):
            raise CacheError(f"{self.path}: its run report is damaged (not a JSON object)")
        return report

    def counts(self) -> dict[Status, int]:
        """How many rows are in each status."""
        tally = np.bincount(self.map("status"), minlength=len(Status))
        return {status: int(tally[status]) for status in Status}


def open_cache(path: str | os.PathLike[str], *, partial: bool = False) -> CacheFile:
    """Look over the cache at `path` and describe it.

    Nothing but plain contiguous datasets of the documented names, types and shapes is accepted:
    no link, filter, external or virtual storage and no variable-length type, so that a prepared
    file cannot make featx read anything else or allocate more than the file holds.

    Parameters
    ----------
    path : a ``.h5`` file.
    partial : accept a file whose extraction has not finished.

    Raises
    ------
    CacheError
        No such file, not a cache, unfinished, damaged, or written by a newer featx.
    """
    path = at_home(path)
    if not path.is_file():
        raise CacheError(_missing(path))
    if path.name.endswith(PARTIAL_SUFFIX) and not partial:
        raise CacheError(f"{path} is unfinished; run the same `featx extract` again to complete it")
    file = _look_over(path, path.stat().st_size)
    if path.name.endswith(PARTIAL_SUFFIX):  # a row of no status would be neither done nor to do
        n_wrong = int((file.map("status") >= len(Status)).sum())
        if n_wrong:
            raise CacheError(f"{path} is damaged: {n_wrong:,} of its rows have no valid status")
    return file


def _missing(path: Path) -> str:
    beside = path.with_name(path.name + PARTIAL_SUFFIX)
    if beside.is_file():
        return (
            f"{path} is not complete yet: {beside.name} holds what is done so far; "
            "run the same `featx extract` again to finish it"
        )
    return f"there is no cache at {path}; make one with `featx extract`"


def _look_over(path: Path, size_bytes: int) -> CacheFile:
    metadata = read_metadata(path, lambda found: _check_format(_texts(found, path), path))
    attributes = _texts(metadata.attributes, path)
    expected = _expected_columns(metadata.datasets, path)
    offsets = {}
    for name, column in expected.items():
        stored = metadata.datasets[name]
        if stored.shape != column.shape or stored.dtype.str != column.dtype.str:
            raise CacheError(
                f"{path}: dataset {name!r} is {stored.dtype.str}{stored.shape}, "
                f"expected {column.dtype.str}{column.shape}; the file is damaged or not a cache"
            )
        if stored.offset + column.nbytes > size_bytes:
            raise CacheError(f"{path} is cut short: dataset {name!r} reaches past its end")
        offsets[name] = stored.offset
    _check_apart(expected, offsets, path)
    spec, plan = (_json_object(attributes[name], name, path) for name in ("spec", "plan"))
    if fingerprint(spec) != attributes["fingerprint"]:
        raise CacheError(f"{path} is damaged: its spec does not match its fingerprint")
    return CacheFile(
        path=path,
        columns=expected,
        offsets=offsets,
        spec=spec,
        plan=plan,
        fingerprint=attributes["fingerprint"],
        root=attributes["root"],
        size_bytes=size_bytes,
    )


def _expected_columns(datasets: Mapping[str, Stored], path: Path) -> dict[str, Column]:
    """The layout that the file's own sizes imply; every dataset is then held against it."""
    has_extent = "extent" in datasets
    needed = columns(1, (1,), "float32", 1, 1, 1, has_extent=has_extent)
    if set(datasets) != set(needed):
        wrong = ", ".join(sorted(set(datasets) ^ set(needed)))
        raise CacheError(f"{path} is not a featx cache: missing or unexpected datasets: {wrong}")
    features, paths, names = datasets["features"], datasets["paths"], datasets["classes"]
    n_axes = len(features.shape)
    if not 2 <= n_axes <= 1 + _MAX_FEATURE_AXES or not is_feature_type(features.dtype):
        raise CacheError(
            f"{path}: features are {features.dtype.str}{features.shape}, expected float32, "
            "float16 or uint8 with one row per image"
        )
    if any(len(text.shape) != 1 or text.dtype.kind != "S" for text in (paths, names)):
        raise CacheError(f"{path}: paths or classes are no fixed-length text; not a featx cache")
    return columns(
        paths.shape[0],
        features.shape[1:],
        features.dtype.name,
        paths.dtype.itemsize,
        names.shape[0],
        names.dtype.itemsize,
        has_extent=has_extent,
    )


def _check_apart(expected: Mapping[str, Column], offsets: Mapping[str, int], path: Path) -> None:
    spans = sorted((offsets[name], column.nbytes, name) for name, column in expected.items())
    for (start, length, first), (after, _, second) in pairwise(spans):
        if start + length > after:
            raise CacheError(f"{path} is damaged: datasets {first!r} and {second!r} overlap")


def _texts(attributes: Mapping[str, bytes | None], path: Path) -> dict[str, str]:
    found = {}
    for name in ATTRIBUTES:
        if name not in attributes:
            raise CacheError(f"{path} is not a featx cache (it has no attribute {name!r})")
        value = attributes[name]
        if value is None:
            raise CacheError(
                f"{path}: attribute {name!r} is no fixed-length text; not a featx cache"
            )
        found[name] = value.rstrip(b"\0").decode("utf-8", "surrogateescape")
    return found


def _check_format(attributes: Mapping[str, str], path: Path) -> None:
    text = attributes["format"]
    kind, _, number = text.rpartition(" ")
    if kind != "featx cache" or not (number.isdecimal() and len(number) < 10):
        raise CacheError(f"{path} is not a featx cache (format {text[:40]!r})")
    if int(number) > FORMAT:
        raise NewerFormatError(
            f"{path} has format {number}, this featx reads up to {FORMAT}; "
            "upgrade with `pip install -U featx`"
        )


def _json_object(text: str, name: str, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(text)
        canonical_json({name: value})  # NaN and what is nested too deep have no canonical form
    except (ValueError, RecursionError) as error:
        raise CacheError(f"{path} is damaged: its {name} is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise CacheError(f"{path} is damaged: its {name} is not a JSON object")
    return value
