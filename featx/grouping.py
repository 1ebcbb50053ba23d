"""Which images belong together: bursts, sites, individuals; by folder, name or a column of a table.

Images of one group are never parted: neither between training and held-out images, nor by a fold.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from featx.counting import counted
from featx.errors import InputError
from featx.featureset import FeatureSet
from featx.image_lists import has_column, read_column

_TABLE: Final = ".csv:"  # TABLE.csv:COLUMN


@dataclass(frozen=True, eq=False)
class Grouping:
    """Groups of images.

    Attributes
    ----------
    groups : (n,) int64, -1 where an image is alone.
    n_groups : how many there are.
    n_alone : images in none.
    source : in words, as ``12 groups by parent folder, 3 images alone``.
    """

    groups: npt.NDArray[np.int64]
    n_groups: int
    n_alone: int
    source: str


def group_images(features: FeatureSet, rule: str | None) -> Grouping:
    """The groups of a cache's images.

    Parameters
    ----------
    features : n images.
    rule : None
            the groups the cache was extracted with, if any;
        ``parent``
            images of one folder;
        ``COLUMN`` or ``TABLE.csv:COLUMN``
            images with the same value in a column of a CSV with a column `path`; without a table
            every CSV in the cache's image folder is looked at, and one must have that column;
        a regular expression with one pair of parentheses
            images in whose path (relative, with ``/``) the parentheses hold the same text:
            ``site_(\\d+)`` or ``(.*)_burst``. Found anywhere in the path.

        Images with an empty cell, or that the expression does not match, are alone.

    Raises
    ------
    InputError
        The rule is none of these, or finds no two images that belong together.
    """
    if rule is None:
        named = features.groups >= 0
        n_groups = len(np.unique(features.groups[named]))
        alone = int((~named).sum())
        source = _words(n_groups, "of the cache", alone) if n_groups else "none"
        return Grouping(features.groups, n_groups, alone, source)
    keys, by = _keys(features, rule)
    numbers = {key: i for i, key in enumerate(sorted({key for key in keys if key}))}
    groups = np.array([numbers[key] if key else -1 for key in keys], np.int64)
    n_alone = int((groups < 0).sum())
    if len(numbers) >= len(keys) - n_alone:
        raise InputError(
            f"--group {rule}: no two of the {len(keys):,} images of {features.path} belong "
            f"together {by} ({n_alone:,} have no group)"
        )
    return Grouping(groups, len(numbers), n_alone, _words(len(numbers), by, n_alone))


def kept_together(
    features: FeatureSet, rule: str | None, duplicate_threshold: float | None
) -> tuple[FeatureSet, str, npt.NDArray[np.int64]]:
    """The same set with the groups that nothing may part, these in words, and those of the rule.

    Parameters
    ----------
    features, rule : as of `group_images`.
    duplicate_threshold : puts duplicates of this similarity into one group too; None does not.
    """
    grouping = group_images(features, rule)
    features, words = features.with_groups(grouping.groups), grouping.source
    if duplicate_threshold is None:
        return features, words, grouping.groups
    features = features.with_duplicates_grouped(duplicate_threshold)
    return features, with_duplicates(words, duplicate_threshold), grouping.groups


def with_duplicates(words: str, threshold: float) -> str:
    """What else is kept together where duplicates are."""
    return f"{words}; duplicates of similarity {threshold:g} or more"


def drawn_by(groups: npt.NDArray[np.int64]) -> str:
    """What a bootstrap draws of images with these groups (n,), in words."""
    n_groups, n_alone = len(np.unique(groups[groups >= 0])), int((groups < 0).sum())
    if not n_groups:
        return "single images"
    return f"whole groups ({counted(n_groups, 'group')}, {counted(n_alone, 'image')} alone)"


def _words(n_groups: int, by: str, n_alone: int) -> str:
    alone = f", {counted(n_alone, 'image')} alone" if n_alone else ""
    return f"{counted(n_groups, 'group')} {by}{alone}"


def _keys(features: FeatureSet, rule: str) -> tuple[list[str | None], str]:
    """The group of each image as text, None for none; and how that was found, in words."""
    paths = features.paths
    if rule == "parent":
        return [path.rpartition("/")[0] or "." for path in paths], "by parent folder"
    if _TABLE in rule:
        table, _, column = rule.rpartition(":")
        return _from_table(features, Path(table), column), f"by {column!r} of {Path(table).name}"
    tables = _tables_with(Path(features.root), rule)
    if len(tables) > 1:
        names = ", ".join(path.name for path in tables)
        raise InputError(
            f"--group {rule}: {names} all have that column; name one: {tables[0]}:{rule}"
        )
    if tables:
        return _from_table(features, tables[0], rule), f"by {rule!r} of {tables[0].name}"
    expression = _compiled(rule, features.root)
    found = [expression.search(path) for path in paths]
    return [match[1] if match else None for match in found], f"by '{rule}' in the path"


def _compiled(rule: str, root: str) -> re.Pattern[str]:
    try:
        expression = re.compile(rule)
    except re.error as error:
        raise InputError(f"--group {rule}: not a regular expression: {error}") from error
    if expression.groups != 1:
        raise InputError(
            f"--group takes parent, a column of a CSV in {root}, TABLE.csv:COLUMN, or a regular "
            f"expression with one pair of parentheses around what names the group, got {rule!r}"
        )
    return expression


def _tables_with(root: Path, column: str) -> list[Path]:
    return [path for path in sorted(root.glob("*.csv")) if has_column(path, column)]


def _from_table(features: FeatureSet, table: Path, column: str) -> list[str | None]:
    """The cell of every image, found by its place on the disk."""
    real = functools.cache(os.path.realpath)  # a folder holds many images
    cells: Mapping[str, str] = {
        _place(table.parent, path, real): cell for path, cell in read_column(table, column)
    }
    places: Sequence[str] = [_place(Path(features.root), path, real) for path in features.paths]
    known = sum(place in cells for place in places)
    if not known:
        raise InputError(
            f"--group: {table} names none of the images of {features.path}: its paths are relative "
            f"to {table.parent.absolute()}, the images lie in {features.root}"
        )
    return [cells.get(place) or None for place in places]


def _place(folder: Path, path: str, real: Callable[[str], str]) -> str:
    """Where a file lies, whichever links lead to its folder; `real` follows them."""
    above, name = os.path.split(os.path.join(folder, path))  # noqa: PTH118
    return os.path.join(real(above), name)  # noqa: PTH118
