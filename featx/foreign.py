"""Features that were computed elsewhere: how a cache says so, and what cannot be done with it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

from featx.cache import CacheFile
from featx.errors import CacheError, HeadError

_PREFIX: Final = "imported:"


def imported_spec(
    name: str,
    *,
    weights_sha256: str,
    features_sha256: str,
    shape: tuple[int, ...],
    source_dtype: str,
    dtype: str,
    images: Mapping[str, Any],
) -> dict[str, Any]:
    """The spec of imported features: what featx cannot know of them is not in it.

    Parameters
    ----------
    name : of whatever computed them, as the user gives it.
    weights_sha256 : of the file that the user says computed them; else `features_sha256`, so that
        no head of other features fits them.
    features_sha256 : of the features themselves.
    shape : of one image's features.
    source_dtype, dtype : what they were, and what they are stored as.
    images : the rules by which labels and split were read.
    """
    return {
        "schema": 1,
        "backbone": f"{_PREFIX}{name}",
        "weights_sha256": weights_sha256,
        "features_sha256": features_sha256,
        "cut": "imported",
        "pool": "none",
        "layout": "vector" if len(shape) == 1 else "unknown",
        "shape": list(shape),
        "transform": {},
        "precision": source_dtype,
        "dtype": dtype,
        "images": {rule: value for rule, value in images.items() if rule != "source"},
    }


def is_imported(spec: Mapping[str, Any]) -> bool:
    """Whether a cache of this spec holds imported features."""
    return str(spec.get("backbone", "")).startswith(_PREFIX)


def check_computable(spec: Mapping[str, Any]) -> None:
    """Refuse to compute features like those of a head that was fitted on imported ones.

    Raises
    ------
    HeadError
        They were imported.
    """
    if is_imported(spec):
        raise HeadError(
            f"the head was fitted on imported features ({spec['backbone']}), which featx cannot "
            "compute from images: compute them where those came from, `featx import` them, and "
            "predict that cache"
        )


def check_replaceable(file: CacheFile) -> None:
    """Refuse to put computed features in the place of imported ones.

    Raises
    ------
    CacheError
        The cache holds imported features.
    """
    if is_imported(file.spec):
        raise CacheError(
            f"{file.path} holds imported features ({file.spec['backbone']}), which `featx extract` "
            "can neither add to nor compute again: name another file with --out, or remove this "
            "one yourself"
        )


def check_repairable(file: CacheFile) -> None:
    """Refuse to mend a cache of imported features.

    Raises
    ------
    CacheError
        The cache holds imported features.
    """
    if is_imported(file.spec):
        raise CacheError(
            f"{file.path} holds imported features ({file.spec['backbone']}), which cannot be "
            f"computed again: import them anew, `featx import FEATURES.npy TABLE.csv --force "
            f"--out {os.fspath(file.path)}`"
        )
