"""Reading a cache: the file is looked over first, as if it came from a stranger, then mapped."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np

from featx.cache.layout import ATTRIBUTES, FORMAT, Column, Status, columns, fingerprint, runs
from featx.errors import CacheError

PARTIAL_SUFFIX: Final = ".partial"
_MAX_ATTRIBUTE_BYTES: Final = 65_536
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
        """
        n = self.columns[name].shape[0]
        stop = n if stop is None else min(stop, n)
        return self.take(name, np.arange(min(start, stop), stop))

    def take(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Rows number `rows` (m,) of dataset `name`, in that order, read as by `read`."""
        column = self.columns[name]
        values = np.empty((len(rows), *column.shape[1:]), column.dtype)
        with self.path.open("rb", buffering=0) as stream:
            for start, stop in runs(rows):
                stream.seek(self.offsets[name] + int(rows[start]) * column.row_bytes)
                view = values[start:stop].reshape(-1).view(np.uint8).data
                while len(view):
                    count = stream.readinto(view)
                    if not count:
                        raise CacheError(f"{self.path} was cut short while it was read")
                    view = view[count:]
        return values

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
        except ValueError as error:
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
    path = Path(path)
    if not path.is_file():
        raise CacheError(_missing(path))
    if path.name.endswith(PARTIAL_SUFFIX) and not partial:
        raise CacheError(f"{path} is unfinished; run the same `featx extract` again to complete it")
    size_bytes = path.stat().st_size
    try:
        with h5py.File(path, "r", locking=False) as file:
            return _look_over(file, path, size_bytes)
    except CacheError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, UnicodeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CacheError(f"{path} is not a featx cache, or is damaged: {reason}") from error


def _missing(path: Path) -> str:
    beside = path.with_name(path.name + PARTIAL_SUFFIX)
    if beside.is_file():
        return (
            f"{path} is not complete yet: {beside.name} holds what is done so far; "
            "run the same `featx extract` again to finish it"
        )
    return f"there is no cache at {path}; make one with `featx extract`"


def _look_over(file: h5py.File, path: Path, size_bytes: int) -> CacheFile:
    attributes = _read_attributes(file, path)
    _check_format(attributes["format"], path)
    datasets = {name: _plain_dataset(file, name, path) for name in _root_names(file, path)}
    expected = _expected_columns(datasets, path)
    offsets = {}
    for name, column in expected.items():
        dataset = datasets[name]
        if dataset.shape != column.shape or dataset.dtype.str != column.dtype.str:
            raise CacheError(
                f"{path}: dataset {name!r} is {dataset.dtype.str}{dataset.shape}, "
                f"expected {column.dtype.str}{column.shape}; the file is damaged or not a cache"
            )
        offset = dataset.id.get_offset()
        if offset is None or offset + column.nbytes > size_bytes:
            raise CacheError(f"{path} is cut short: dataset {name!r} reaches past its end")
        offsets[name] = int(offset)
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


def _root_names(file: h5py.File, path: Path) -> list[str]:
    names = [name.decode("utf-8", "replace") for name in file.id]
    for name in names:
        if not isinstance(file.get(name, getlink=True), h5py.HardLink):
            raise CacheError(f"{path}: {name!r} is a link; a featx cache has none")
    return names


def _plain_dataset(file: h5py.File, name: str, path: Path) -> h5py.Dataset:
    if h5py.h5o.get_info(file.id, name.encode()).type != h5py.h5o.TYPE_DATASET:
        raise CacheError(f"{path}: {name!r} is not a dataset; this is not a featx cache")
    dataset = h5py.Dataset(h5py.h5d.open(file.id, name.encode()))
    plist = dataset.id.get_create_plist()
    if (
        plist.get_layout() != h5py.h5d.CONTIGUOUS
        or plist.get_nfilters()
        or plist.get_external_count()
    ):
        raise CacheError(
            f"{path}: dataset {name!r} is not stored plainly (contiguous, unfiltered, inside "
            "the file); this is not a featx cache"
        )
    return dataset


def _expected_columns(datasets: Mapping[str, h5py.Dataset], path: Path) -> dict[str, Column]:
    """The layout that the file's own sizes imply; every dataset is then held against it."""
    needed = columns(1, (1,), "float32", 1, 1, 1)
    if set(datasets) != set(needed):
        wrong = ", ".join(sorted(set(datasets) ^ set(needed)))
        raise CacheError(f"{path} is not a featx cache: missing or unexpected datasets: {wrong}")
    features, paths, names = datasets["features"], datasets["paths"], datasets["classes"]
    if not 2 <= features.ndim <= 1 + _MAX_FEATURE_AXES or features.dtype.str not in ("<f4", "<f2"):
        raise CacheError(
            f"{path}: features are {features.dtype.str}{features.shape}, expected float32 or "
            "float16 with one row per image"
        )
    if paths.ndim != 1 or names.ndim != 1 or paths.dtype.kind != "S" or names.dtype.kind != "S":
        raise CacheError(f"{path}: paths or classes are no fixed-length text; not a featx cache")
    return columns(
        paths.shape[0],
        features.shape[1:],
        features.dtype.name,
        paths.dtype.itemsize,
        names.shape[0],
        names.dtype.itemsize,
    )


def _check_apart(expected: Mapping[str, Column], offsets: Mapping[str, int], path: Path) -> None:
    spans = sorted((offsets[name], column.nbytes, name) for name, column in expected.items())
    for (start, length, first), (after, _, second) in pairwise(spans):
        if start + length > after:
            raise CacheError(f"{path} is damaged: datasets {first!r} and {second!r} overlap")


def _read_attributes(file: h5py.File, path: Path) -> dict[str, str]:
    found = {}
    for name in ATTRIBUTES:
        if name not in file.attrs:
            raise CacheError(f"{path} is not a featx cache (it has no attribute {name!r})")
        attribute = file.attrs.get_id(name)
        if attribute.shape != () or attribute.dtype.kind != "S":
            raise CacheError(
                f"{path}: attribute {name!r} is no fixed-length text; not a featx cache"
            )
        if attribute.dtype.itemsize > _MAX_ATTRIBUTE_BYTES:
            raise CacheError(f"{path}: attribute {name!r} is too long for a featx cache")
        value = np.empty((), attribute.dtype)
        attribute.read(value)
        found[name] = value.tobytes().rstrip(b"\0").decode("utf-8", "surrogateescape")
    return found


def _check_format(text: str, path: Path) -> None:
    kind, _, number = text.rpartition(" ")
    if kind != "featx cache" or not number.isdecimal():
        raise CacheError(f"{path} is not a featx cache (format {text!r})")
    if int(number) > FORMAT:
        raise CacheError(
            f"{path} has format {number}, this featx reads up to {FORMAT}; "
            "upgrade with `pip install -U featx`"
        )


def _json_object(text: str, name: str, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CacheError(f"{path} is damaged: its {name} is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise CacheError(f"{path} is damaged: its {name} is not a JSON object")
    return value
