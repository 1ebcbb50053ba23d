"""How a head was fitted, as its file records it: all that moves a figure, in JSON's types."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping
from typing import Any

import numpy as np

from featx.featureset import FeatureSet
from featx.heads.base import Choice, Head
from featx.splits import Split


def describe(
    features: FeatureSet,
    split: Split,
    settings: Mapping[str, Any],
    estimator: Head,
    *,
    groups: str,
) -> dict[str, Any]:
    """All that a report, a prediction or a repetition needs to know, as JSON.

    Parameters
    ----------
    features, split, estimator : what was fitted, on which rows of what.
    settings : what was asked for.
    groups : which images were kept together, in words.
    """
    import sklearn
    import torch

    counts = np.bincount(features.y[split.train], minlength=len(features.classes))
    choice = estimator.choice(len(split.val))
    return {
        "settings": dict(settings),
        "cache": {
            "file": features.path.name,
            "path": os.fspath(features.path.resolve()),
            "fingerprint": features.fingerprint,
            "spec": dict(features.spec),
            "plan": dict(features.plan),
            "root": features.root,
        },
        "split": {
            "source": split.source,
            "held_out_name": split.held_out_name,
            "chosen_on": choice.on,
            "train": len(split.train),
            "val": len(split.val),
            "held_out": len(split.held_out),
            "unlabelled": split.unlabelled,
            "left_out": split.left_out,
            "groups": groups,
            **_held_out_groups(features.groups[split.held_out]),
            "train_counts": [int(counts[label]) for label in estimator.classes_],
        },
        "fit": plain(_fit_facts(estimator, choice)),
        "versions": {
            "featx": _version(),
            "torch": torch.__version__,
            "scikit-learn": sklearn.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }


def _held_out_groups(groups: np.ndarray) -> dict[str, list[int]]:
    """What the intervals of an evaluation draw whole; nothing where every image is alone."""
    return {"held_out_groups": groups.tolist()} if (groups >= 0).any() else {}


def _fit_facts(estimator: Head, choice: Choice) -> dict[str, Any]:
    """What the head says of its own fit: the choice it made, convergence, history."""
    facts = {name.rstrip("_"): getattr(estimator, name) for name in estimator.FACTS}
    return facts | {"choice": choice._asdict()}


def plain(value: Any) -> Any:
    """`value` in JSON's types."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return value


def _version() -> str:
    from featx import __version__

    return __version__


def data_digest(features: FeatureSet, split: Split, groups: np.ndarray | None) -> str:
    """Changes when an image, a label, the split, the features' spec or a group changes.

    `groups` are those of a rule; those of the cache belong to the images.
    """
    digest = hashlib.sha256(features.fingerprint.encode())
    for rows in (split.train, split.val, split.held_out):
        digest.update(len(rows).to_bytes(8, "little"))
        digest.update(features.sha256[rows].tobytes())
        digest.update(features.y[rows].astype("<i8").tobytes())
        if groups is not None:
            digest.update(groups[rows].astype("<i8").tobytes())
    digest.update("\0".join(features.classes).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
