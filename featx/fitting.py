"""The stage that trains: a cache becomes a head file, in seconds."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from featx.calibration import fit_calibration
from featx.devices import resolve_device
from featx.duplicates import DEFAULT_THRESHOLD, check_threshold
from featx.errors import HeadError, InputError
from featx.featureset import FeatureSet, load, load_intact
from featx.grouping import kept_together
from featx.head_names import beside, free_path, head_name
from featx.heads.base import Head
from featx.heads.cached import is_final, load_recorded
from featx.heads.file import HeadFile, load_head, save_head
from featx.heads.making import fit_on, make_head
from featx.leaks import Leaks, find_leaks, recorded_threshold
from featx.protocol import data_digest, describe, plain
from featx.recorded import settle_on_features
from featx.splits import Split, has_own_split, make_split, settled_fraction
from featx.workspace import newest_cache

CHECKPOINT: Final = ".checkpoint"  # behind the name of a head that is being trained
_STARTS_FROM: Final = "starts_from"  # setting: SHA-256 of the weights a tail started from


@dataclass(frozen=True)
class Fit:
    """A fitted head and how it came about.

    Attributes
    ----------
    path : the head file.
    file : what it holds: the estimator, its classes, metadata and split.
    split : rows of the cache it was trained on, chosen on, and not shown.
    features : the cache it was fitted on; with the groups that the split kept whole.
    leaks : held-out images that have a duplicate among those trained or chosen on.
    replaced : whether a file of the same settings was there before.
    """

    path: Path
    file: HeadFile
    split: Split
    features: FeatureSet
    leaks: Leaks | None
    replaced: bool


def fit_head(
    cache: str | os.PathLike[str] | None = None,
    *,
    head: str = "logistic",
    out: str | os.PathLike[str] | None = None,
    force: bool = False,
    seed: int = 0,
    test_fraction: float | None = None,
    group: str | None = None,
    group_duplicates: bool = False,
    duplicate_threshold: float | None = None,
    device: str = "auto",
    calibrate: bool = False,
    cache_dir: str | os.PathLike[str] = "cache",
    told: Callable[[Mapping[str, Any]], None] | None = None,
    **params: Any,
) -> Fit:
    """Fit a head on cached features and write it as one file.

    Only training rows are fitted. Choices (C, the best epoch) are made on the validation rows, or
    by cross-validation inside the training rows; the held-out rows are never looked at.

    Parameters
    ----------
    cache : a finished cache; the newest in `cache_dir` if none is named.
    head : ``logistic``, ``linear``, ``mlp``, ``ridge``, ``knn``, ``centroid`` or ``tail``.
    out : the head file; by default beside the cache, under a name that carries every setting that
        is not the default.
    force : replace a head of other settings that has this name.
    seed : of the split, where the folder has none of its own, and of the head.
    test_fraction : share of images held out, where the folder has no split of its own; 0.2.
    group : which images belong together, see `featx.grouping.group_images`: they are never parted,
        neither by a split that is made here, nor where choices are made by cross-validation.
    group_duplicates : put exact and near duplicates into one group, together with the cache's own
        groups, so that neither the split nor a choice by cross-validation parts them. A split of
        the folder's own is kept as it is.
    duplicate_threshold : the least similarity of near duplicates, see `featx.duplicates`; 0.75.
        Those between held-out and training images are counted in any case, but for sets of above
        a hundred thousand images only where a threshold is given or duplicates are grouped.
    device : where to fit: ``auto``, ``cpu``, ``cuda``, ``cuda:N``, ``mps``.
    calibrate : also fit a temperature (Guo et al. 2017), on the validation rows or, where there
        are none, on out-of-fold predictions of the training rows, which takes five more fits.
        `predict` and `evaluate` then give probabilities at that temperature.
    told : called after each epoch of a tail with its row of `history_`. What was trained is kept
        beside the head, ``NAME.safetensors.checkpoint``, until the head is written: an interrupted
        fit that is repeated goes on from there, and ends with the same bits.
    **params : parameters of the head, as `C` or `hidden`; see `featx.heads`. Of a tail, `weights`
        is where the network's weights are, if not where they lay when the features were made.

    Raises
    ------
    CacheError, InputError
        No usable cache; no labels; fewer than two classes to learn; an unknown parameter.
    HeadError, WeightsError
        Of a tail: the network's weights are not those that made the features, or not found.

    Examples
    --------
    >>> fit = fit_head("cache/birds-densenet121.h5", head="logistic")  # doctest: +SKIP
    >>> fit.file.head.C_  # doctest: +SKIP
    0.01
    """
    if out is not None and Path(out).suffix != ".safetensors":
        raise InputError(
            f"--out names the head file, which ends in .safetensors, got {os.fspath(out)!r}"
        )
    estimator = make_head(head, params, device=resolve_device(device).name, seed=seed)
    if group_duplicates and duplicate_threshold is None:
        duplicate_threshold = DEFAULT_THRESHOLD
    if duplicate_threshold is not None:
        check_threshold(duplicate_threshold)
    features = load_intact(cache if cache is not None else newest_cache(cache_dir))
    settle_on_features(estimator, features.spec, features.plan)
    params = {k: value for k, value in params.items() if k not in estimator.OF_FEATURES}
    fraction = settled_fraction(test_fraction, features.y, features.split_codes, features.path)
    features, together, by_rule = kept_together(
        features, group, duplicate_threshold if group_duplicates else None
    )
    split = make_split(
        features.y, features.split_codes, groups=features.groups, seed=seed, test_fraction=fraction
    )
    _check_classes(features, split)
    if calibrate and estimator.OF_FEATURES and features.extent is not None and not len(split.val):
        raise InputError(
            "--calibrate of a tail on whole pictures (--store-size) needs validation images: leave "
            "it away, or give the images a split with val"
        )
    settings = {
        "head": head,
        "params": plain(params),
        "seed": seed,
        "test_fraction": fraction,
        **({} if group is None else {"group": group}),
        "data": data_digest(features, split, None if group is None else by_rule),
    }
    if group_duplicates:
        settings["group_duplicates"] = duplicate_threshold
    if calibrate:
        settings["calibrate"] = True
    path = Path(out) if out else beside(features.path, head_name(head, params, seed, settings))
    checkpoint = path.with_name(path.name + CHECKPOINT)
    fit_on(
        estimator,
        features.X,
        features.y,
        split.train,
        val_rows=split.val,
        groups=features.groups,
        extent=features.extent,
        checkpoint=checkpoint,
        told=told,
    )
    settings |= _other_start(estimator, features)
    leaks, _ = find_leaks(
        features,
        split.held_out,
        features,
        np.concatenate([split.train, split.val]),
        threshold=duplicate_threshold,
    )
    metadata = describe(features, split, settings, estimator, groups=together)
    metadata["leaks"] = leaks.counts()
    if calibrate:
        metadata["calibration"] = fit_calibration(
            estimator,
            features.X,
            features.y,
            split,
            groups=features.groups,
            extent=features.extent,
            seed=seed,
        )
    made = keep(path, estimator, features, split, metadata, leaks=leaks, force=force)
    checkpoint.unlink(missing_ok=True)
    return made


def fit_like(
    head: str | os.PathLike[str],
    cache: str | os.PathLike[str] | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    force: bool = False,
    device: str = "auto",
    cache_dir: str | os.PathLike[str] = "cache",
    told: Callable[[Mapping[str, Any]], None] | None = None,
) -> Fit:
    """Fit on another cache as a head was fitted: its kind, parameters, seed, fraction and groups.

    Parameters that were left to their defaults keep the values they had then, whatever the
    defaults of this version. On a cache of the same images the split is the same as well.

    Parameters
    ----------
    head : the head file to repeat.
    cache, out, force, device, cache_dir, told : as of `fit_head`.

    Raises
    ------
    HeadError
        No usable head, or one that does not say how it was fitted.
    CacheError, InputError
        As `fit_head`, and for a final head, which chose nothing itself.
    """
    file = load_recorded(head)
    settings = file.metadata.get("settings")
    if not isinstance(settings, dict) or "seed" not in settings:
        raise HeadError(f"{file.path} does not say how it was fitted: fit it again")
    if is_final(file):
        raise InputError(
            f"{file.path} is final: its settings were chosen before; name the head it repeats "
            f"({file.metadata['final'].get('head')})"
        )
    defaults = type(file.head)().get_params()
    params = {
        name: value
        for name, value in file.head.get_params().items()
        if name not in ("device", "random_state", *file.head.OF_FEATURES)
        and value != defaults[name]
    }
    if _STARTS_FROM in settings:
        params["weights"] = file.head.get_params()["weights"]
    features = load(cache if cache is not None else newest_cache(cache_dir))  # checked below
    fraction = settings["test_fraction"]
    return fit_head(
        features.path,
        head=file.kind,
        out=out,
        force=force,
        seed=settings["seed"],
        test_fraction=None if has_own_split(features.y, features.split_codes) else fraction,
        group=settings.get("group"),
        device=device,
        calibrate=settings.get("calibrate", False),
        group_duplicates="group_duplicates" in settings,
        duplicate_threshold=settings.get("group_duplicates", recorded_threshold(file.metadata)),
        told=told,
        **params,
    )


def _other_start(estimator: Head, features: FeatureSet) -> dict[str, str]:
    """Of a tail, the weights it started from, where they are not those recorded in the cache."""
    started_from = getattr(estimator, "started_from_", None)
    if started_from in (None, features.spec.get("weights_sha256")):
        return {}
    return {_STARTS_FROM: started_from}


def keep(
    path: Path,
    estimator: Head,
    features: FeatureSet,
    split: Split,
    metadata: Mapping[str, Any],
    *,
    leaks: Leaks | None = None,
    force: bool,
) -> Fit:
    """Write a fitted head, at `path` or at a numbered name beside it, and read it back.

    Parameters
    ----------
    path : where it would lie.
    estimator, features, split : what was fitted, on which rows of what.
    metadata : of `describe`.
    leaks : between its held-out and its training images.
    force : replace a head of other settings that lies there.
    """
    path, replaced = free_path(path, metadata["settings"], force=force)
    save_head(
        path,
        estimator,
        classes=tuple(features.classes[label] for label in estimator.classes_),
        metadata=metadata,
        split={
            "train": features.sha256[split.train],
            "val": features.sha256[split.val],
            "held_out": features.sha256[split.held_out],
        },
    )
    return Fit(path, load_head(path), split, features, leaks, replaced)


def _check_classes(features: FeatureSet, split: Split) -> None:
    labels = np.unique(features.y[split.train])
    if len(labels) < 2:
        names = ", ".join(features.names[label] for label in labels)
        whole = ""
        if len(split.held_out) and (features.groups >= 0).any():
            whole = (
                "; groups are held out whole, and one that is a class takes it away: name others"
            )
        raise InputError(
            f"a head needs images of at least two classes to train on; {features.path} has "
            f"{len(split.train)} training images of {len(labels)} class ({names}){whole}"
        )
