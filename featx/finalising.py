"""A head to be used: the settings that were measured, fitted anew on every labelled image."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from featx.devices import resolve_device
from featx.errors import HeadError, InputError
from featx.evaluation import evaluate
from featx.featureset import load
from featx.fitting import CHECKPOINT, Fit, keep
from featx.grouping import kept_together
from featx.heads.cached import load_recorded
from featx.heads.making import fit_on, make_head
from featx.protocol import describe
from featx.recorded import settle_on_features
from featx.splits import Split

_ENDING = ".final.safetensors"


def fit_final(
    head: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    force: bool = False,
    device: str = "auto",
    bootstrap: int = 1000,
    told: Callable[[Mapping[str, Any]], None] | None = None,
) -> Fit:
    """Fit a measured head's settings on all labelled images of its cache, to be used on new ones.

    The head is first measured on its held-out images, and that report is kept in the new file: it
    is the honest figure for a head fitted this way, most likely a little low, since the new one
    has seen more images. The new head can no longer be measured on these images, and `evaluate`
    refuses to. Nothing is chosen again: C, or the learning rate and the number of epochs, are
    those of the measured head.

    Parameters
    ----------
    head : a head file that `fit_head` made; its cache must still be there.
    out : the file; by default beside the head, ``NAME.final.safetensors``.
    force : replace another head that has this name.
    device : where to fit.
    bootstrap : draws for the intervals of the report; 0 for none.
    told : as of `fit_head`.

    Raises
    ------
    InputError
        The head is final already.
    HeadError, CacheError
        No usable head, or its cache is not found.

    Examples
    --------
    >>> made = fit_final("cache/birds-densenet121.logistic.safetensors")  # doctest: +SKIP
    >>> made.file.metadata["final"]["report"]["accuracy"]["value"]  # doctest: +SKIP
    0.961
    """
    if out is not None and Path(out).suffix != ".safetensors":
        raise InputError(
            f"--out names the head file, which ends in .safetensors, got {os.fspath(out)!r}"
        )
    file = load_recorded(head)
    if "final" in file.metadata:
        raise InputError(f"{file.path} is final already: it was fitted on all labelled images")
    choice = file.metadata.get("fit", {}).get("choice", {})
    settings = file.metadata.get("settings", {})
    if not isinstance(choice.get("params"), dict) or "seed" not in settings:
        raise HeadError(
            f"{file.path} does not say what it chose: fit it again with `featx fit-head`"
        )
    evaluation = evaluate(head=file.path, bootstrap=bootstrap)
    features = load(evaluation.cache)  # every byte was checked by evaluate
    features, together, _ = kept_together(
        features, settings.get("group"), settings.get("group_duplicates")
    )
    params = {
        name: value
        for name, value in file.head.get_params().items()
        if name not in ("device", "random_state")
    }
    params |= choice["params"]
    estimator = make_head(
        file.kind, params, device=resolve_device(device).name, seed=settings["seed"]
    )
    settle_on_features(estimator, features.spec, features.plan)
    rows = np.flatnonzero(features.y >= 0)
    path = Path(out) if out else _beside(file.path)
    checkpoint = path.with_name(path.name + CHECKPOINT)
    fit_on(
        estimator,
        features.X,
        features.y,
        rows,
        groups=features.groups,
        extent=features.extent,
        checkpoint=checkpoint,
        told=told,
    )
    none = np.empty(0, np.int64)
    split = Split(
        train=rows,
        val=none,
        held_out=none,
        source="all labelled images",
        held_out_name="none",
        chosen_on="val",
        unlabelled=len(features) - len(rows),
    )
    metadata = describe(features, split, {**settings, "final": True}, estimator, groups=together)
    metadata["split"]["chosen_on"] = file.metadata["split"].get("chosen_on", "")
    metadata["final"] = {
        "head": file.path.name,
        "choice": choice,
        "report": evaluation.to_dict(),
    }
    if "calibration" in file.metadata:  # of the head before: nothing is left to fit another on
        metadata["calibration"] = file.metadata["calibration"]
    made = keep(path, estimator, features, split, metadata, force=force)
    checkpoint.unlink(missing_ok=True)
    return made


def _beside(head: Path) -> Path:
    return head.with_name(head.name.removesuffix(".safetensors") + _ENDING)
