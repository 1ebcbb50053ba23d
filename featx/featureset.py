"""Features as people use them: arrays for scikit-learn, read from a finished cache."""

from __future__ import annotations

import html
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, overload

import numpy as np

from featx.cache import SPLIT_NAMES, CacheFile, open_cache
from featx.counting import counted
from featx.duplicates import DEFAULT_THRESHOLD, find_duplicates, merged_groups
from featx.errors import InputError
from featx.images import display_names
from featx.splits import TEST_FRACTION
from featx.usable import FailedImage as FailedImage
from featx.usable import (
    failed_images,
    open_intact,
    split_rows,
    usable_columns,
    usable_features,
)

if TYPE_CHECKING:
    import pandas as pd

_REPR_ROWS: Final = 8


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """The features of a cache and everything known of their images.

    Row *i* of every array belongs to `paths[i]`. Images that failed are not among the rows; they
    are listed by `failed`.

    Attributes
    ----------
    features : (n, d...) float32 or float16, of pixels uint8; a map keeps its shape. A
        copy-on-write memory map where no row had to be left out, so that opening costs nothing and
        writing to it does not reach the file.
    y : (n,) int64 labels, index into `classes`; -1 where an image has none.
    split : (n,) text, ``train``, ``val``, ``test`` or empty.
    groups : (n,) int64, -1 for none; images of one group are never parted by a split.
    sha256 : (n, 32) uint8, of the image files.
    rows : (n,) int64, row numbers in the file.
    classes : class names by label, as the folders are called.
    spec, plan : what was asked, and how it was run.
    fingerprint : SHA-256 of the spec, 64 hex digits.
    root : folder that `paths` are relative to.
    path : the cache file.
    extent : (n, 2) uint16, height and width of what is picture, where whole pictures are stored
        (`store_size`); else None.
    """

    features: np.ndarray
    y: np.ndarray
    split: np.ndarray
    groups: np.ndarray
    sha256: np.ndarray
    rows: np.ndarray
    raw_paths: Sequence[bytes]
    classes: tuple[str, ...]
    failed: tuple[FailedImage, ...]
    spec: Mapping[str, Any]
    plan: Mapping[str, Any]
    fingerprint: str
    root: str
    path: Path
    extent: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.y)

    @property
    def X(self) -> np.ndarray:
        """Features as a matrix, (n, d): a map's axes are flattened, without a copy."""
        return self.features.reshape(len(self), math.prod(self.features.shape[1:]))

    @cached_property
    def paths(self) -> list[str]:
        """Path of every image, relative to `root`, ``/``-separated."""
        return [os.fsdecode(path) for path in self.raw_paths]

    @property
    def files(self) -> list[Path]:
        """Path of every image on this machine."""
        root = Path(self.root)
        return [root / path for path in self.paths]

    @property
    def names(self) -> tuple[str, ...]:
        """Class names by label as people read them: ``Black footed Albatross``."""
        return display_names(self.classes)

    @property
    def split_codes(self) -> np.ndarray:
        """(n,) uint8: 0 none, 1 train, 2 val, 3 test."""
        return np.array([SPLIT_NAMES.index(name) for name in self.split.tolist()], np.uint8)

    def take(self, rows: np.ndarray) -> FeatureSet:
        """The same set with only these rows (positions in this set), in this order.

        Keeps the memory map where every row is taken in order; copies the features otherwise.
        """
        if np.array_equal(rows, np.arange(len(self))):
            return self
        return FeatureSet(
            features=self.features[rows],
            y=self.y[rows],
            split=self.split[rows],
            groups=self.groups[rows],
            sha256=self.sha256[rows],
            rows=self.rows[rows],
            raw_paths=[self.raw_paths[row] for row in rows],
            classes=self.classes,
            failed=self.failed,
            spec=self.spec,
            plan=self.plan,
            fingerprint=self.fingerprint,
            root=self.root,
            path=self.path,
            extent=None if self.extent is None else self.extent[rows],
        )

    def with_images(self, sha256: np.ndarray, *, without: np.ndarray | None = None) -> FeatureSet:
        """The same set with only the images of these hashes, as of a part of a head's split.

        Parameters
        ----------
        sha256 : (m, 32) uint8, as `featx.heads.HeadFile.split` has them.
        without : (k, 32) uint8; images of these are left out all the same.

        Examples
        --------
        >>> head = load_head("cache/birds.logistic.safetensors")  # doctest: +SKIP
        >>> load("cache/birds.h5").with_images(head.split["held_out"])  # doctest: +SKIP
        """
        known = {row.tobytes() for row in sha256}
        known -= {row.tobytes() for row in without} if without is not None else set()
        return self.take(
            np.flatnonzero([row.tobytes() in known for row in self.sha256]).astype(np.int64)
        )

    def with_groups(self, groups: np.ndarray) -> FeatureSet:
        """The same set with other groups, (n,) int64, -1 for none."""
        return self if groups is self.groups else replace(self, groups=groups)

    def with_duplicates_grouped(self, threshold: float = DEFAULT_THRESHOLD) -> FeatureSet:
        """The same set with duplicates in one group, and what the groups hold together too.

        Exact and near ones, see `featx.duplicates.find_duplicates`.
        """
        found = find_duplicates(self.X, self.sha256, threshold=threshold)
        return replace(self, groups=merged_groups(self.groups, found.groups))

    def to_frame(self, *, features: bool = True) -> pd.DataFrame:
        """A table with one row per image.

        Parameters
        ----------
        features : also add a column per feature, ``f0``, ``f1``, ….

        Returns
        -------
        A data frame with the columns path, label (the class's display name), y, split, group.
        """
        import pandas as pd

        names = np.array([*self.names, None], dtype=object)  # label -1 takes the last: None
        table = pd.DataFrame(
            {
                "path": pd.Series(self.paths, dtype=object),  # any bytes, also what is no UTF-8
                "label": names[self.y],
                "y": self.y,
                "split": self.split,
                "group": self.groups,
            }
        )
        if not features:
            return table
        columns = [f"f{i}" for i in range(self.X.shape[1])]
        return pd.concat([table, pd.DataFrame(np.asarray(self.X), columns=columns)], axis=1)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.features.shape[1:]))
        labelled = counted(len(self.classes), "class", "classes") if self.classes else "unlabelled"
        failed = f", {len(self.failed)} failed" if self.failed else ""
        return (
            f"FeatureSet({counted(len(self), 'image')} x {shape} {self.features.dtype}, "
            f"{labelled}{failed}, {self.spec.get('backbone')} @ {self.spec.get('cut')}, "
            f"{self.path.name})"
        )

    def _repr_html_(self) -> str:
        def cells(values: Sequence[object], tag: str = "td") -> str:
            row = "".join(f"<{tag}>{html.escape(str(value))}</{tag}>" for value in values)
            return f"<tr>{row}</tr>"

        names = (*self.names, "")
        shown = min(_REPR_ROWS, len(self))
        body = "".join(
            cells(
                [
                    self.paths[i],
                    names[self.y[i]],
                    self.split[i],
                    np.array2string(
                        self.X[i, :4], precision=3, separator=", ", suppress_small=True
                    )[:-1]
                    + ", …]",
                ]
            )
            for i in range(shown)
        )
        rest = f"<p>… and {len(self) - shown:,} more</p>" if len(self) > shown else ""
        failed = "".join(
            f"<li>{html.escape(image.path)}: {html.escape(image.status.words)}</li>"
            for image in self.failed[:_REPR_ROWS]
        )
        failed = f"<p>Failed ({len(self.failed):,}):</p><ul>{failed}</ul>" if failed else ""
        head = cells(["path", "class", "split", "X"], "th")
        return (
            f"<div><p><b>{html.escape(repr(self))}</b></p>"
            f"<table><thead>{head}</thead><tbody>{body}</tbody></table>{rest}{failed}</div>"
        )


@overload
def load(
    path: str | os.PathLike[str],
    *,
    split: str | None = ...,
    seed: int = ...,
    test_fraction: float = ...,
    group_duplicates: bool = ...,
    duplicate_threshold: float = ...,
    return_X_y: Literal[False] = ...,
) -> FeatureSet: ...
@overload
def load(
    path: str | os.PathLike[str],
    *,
    split: str | None = ...,
    seed: int = ...,
    test_fraction: float = ...,
    group_duplicates: bool = ...,
    duplicate_threshold: float = ...,
    return_X_y: Literal[True],
) -> tuple[np.ndarray, np.ndarray]: ...
def load(
    path: str | os.PathLike[str],
    *,
    split: str | None = None,
    seed: int = 0,
    test_fraction: float = TEST_FRACTION,
    group_duplicates: bool = False,
    duplicate_threshold: float = DEFAULT_THRESHOLD,
    return_X_y: bool = False,
) -> FeatureSet | tuple[np.ndarray, np.ndarray]:
    """Open a finished cache for a notebook.

    Parameters
    ----------
    path : a cache, ``cache/birds-densenet121.h5``.
    split : only these rows: ``train`` and ``val`` are exactly the rows that `fit-head` fits and
        chooses on, ``held-out`` those it never sees. Where the folder has no split of its own
        that is the stratified one of `seed`; where it has, ``test`` and ``val`` are its folders.
        A head that was fitted with another seed, fraction or groups has its own split in its file:
        see `FeatureSet.with_images`.
    seed, test_fraction : of that stratified split; `fit-head` has the same defaults.
    group_duplicates, duplicate_threshold : put duplicates into one group first, as `fit-head` does
        when it is asked to.
    return_X_y : give only `X` (n, d) and `y` (n,), without unlabelled images.

    Raises
    ------
    CacheError
        No such cache, unfinished, or damaged.
    InputError
        The split has no rows, or there are no labels to give as `y`.

    Examples
    --------
    >>> X, y = load("cache/birds-densenet121.h5", return_X_y=True)  # doctest: +SKIP
    """
    features = feature_set(open_cache(path))
    if group_duplicates:
        features = features.with_duplicates_grouped(duplicate_threshold)
    if split is not None:
        rows = split_rows(
            features.y,
            features.split_codes,
            features.groups,
            split,
            seed=seed,
            test_fraction=test_fraction,
            path=features.path,
        )
        features = features.take(rows)
    if not return_X_y:
        return features
    labelled = np.flatnonzero(features.y >= 0)
    if not len(labelled):
        raise InputError(
            f"{path} has no labels to give as y; extract from a folder of class folders or a CSV "
            "with a label column, or use load(path).X"
        )
    labelled_set = features.take(labelled)
    return labelled_set.X, labelled_set.y


def load_intact(path: str | os.PathLike[str]) -> FeatureSet:
    """`load`, after every byte was checked: for what is fitted, measured or predicted.

    Raises
    ------
    CacheError
        As `load`, and where a row or anything else is not as it was written.
    """
    return feature_set(open_intact(path))


def feature_set(file: CacheFile) -> FeatureSet:
    """The usable rows of a finished cache; every failed image is listed instead.

    Raises
    ------
    CacheError
        The file says of itself that a row is pending or has an unknown status or label.
    """
    columns = usable_columns(file)
    done = columns["rows"]
    return FeatureSet(
        features=usable_features(file, done),
        y=columns["labels"],
        split=np.array(SPLIT_NAMES)[columns["split"]],
        groups=columns["groups"],
        sha256=columns["sha256"],
        rows=done,
        raw_paths=file.paths if len(done) == len(file) else [file.paths[row] for row in done],
        classes=file.classes,
        failed=failed_images(file),
        spec=file.spec,
        plan=file.plan,
        fingerprint=file.fingerprint,
        root=file.root,
        path=file.path,
        extent=file.read("extent")[done] if "extent" in file.columns else None,
    )
