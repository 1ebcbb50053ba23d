"""How an extraction runs, as data: the plan, and which rows of a cache were made under which."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from featx.cache import CacheFile, Decision, canonical_json, differing_fields
from featx.devices import Device, accelerator_name
from featx.engines.base import Engine
from featx.engines.choice import ENGINES, OPENVINO, Running
from featx.errors import CacheError
from featx.identity import BackboneIdentity
from featx.versions import versions_of

# What two plans must share before their rows may stand in one cache unasked: all that can change
# a bit of a feature. The number of decoding workers cannot, nor where the weights' file lies.
PLAN_BITS: Final = ("engine", "device", "batch_size", "threads", "machine", "versions")

_MAX_PLANS: Final = 8  # so that the run report stays within its room in the file
_MAX_RUNS: Final = 200


def make_plan(
    engine: Engine,
    backbone: BackboneIdentity,
    device: Device,
    *,
    versions: Mapping[str, str],
    workers: int,
    threads: int,
    seed: int,
) -> dict[str, Any]:
    """How an extraction runs on this machine, and where its weights lay, as JSON.

    `versions` are those of PyTorch and torchvision.
    """
    import PIL

    return {
        "engine": engine.name,
        "device": device.kind,
        "batch_size": engine.batch_size,
        "workers": workers,
        "threads": threads,
        "weights": {"name": backbone.weights, "path": backbone.weights_path or "", "seed": seed},
        "machine": {
            "system": platform.system(),
            "processor": platform.machine(),
            "accelerator": accelerator_name(device),
        },
        "versions": {
            **versions,
            "pillow": PIL.__version__,
            "numpy": np.__version__,
            **_versions_of_extras(backbone.name, engine.name),
        },
    }


def replayed(plan: Mapping[str, Any]) -> Running:
    """What a plan says of how to run, as far as it makes sense here: it is read from a file."""
    engine = plan.get("engine")
    batch_size, threads = (
        value if type(value := plan.get(name)) is int and value > 0 else None
        for name in ("batch_size", "threads")
    )
    known = engine if engine in ENGINES else None
    return Running(known, batch_size, threads, suits=known)


def _versions_of_extras(backbone: str, engine: str) -> dict[str, str]:
    """Versions of the optional packages that can change a feature, where they are installed."""
    names = ["simplejpeg", "pillow-heif"]
    names += ["timm"] * backbone.startswith("timm:") + ["openvino"] * (engine == OPENVINO)
    return versions_of(names)


def differing_bits(
    ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Dotted names of what differs between two plans and can change a bit, with both values."""
    return differing_fields(
        {name: ours.get(name) for name in PLAN_BITS},
        {name: theirs.get(name) for name in PLAN_BITS},
    )


def check_plan(decision: Decision, plan: Mapping[str, Any]) -> None:
    """Refuse to add rows under another plan than the cache's: their bits might differ.

    Parameters
    ----------
    decision : what was decided.
    plan : of this run.

    Raises
    ------
    CacheError
        The plans differ in what can change a bit; the fields are named.
    """
    if decision.source is None or not decision.kept:
        return
    differing = differing_bits(plan, decision.source.plan)
    if differing:
        told = "; ".join(
            f"{k}: {theirs!r} there, {ours!r} now" for k, (ours, theirs) in differing.items()
        )
        raise CacheError(
            f"{decision.source.path} was computed otherwise ({told}), so new rows could differ in "
            "their last digits. Say --mix-plans to add them all the same, or --fresh to start over"
        )


def recorded_plans(source: CacheFile | None) -> list[dict[str, Any]]:
    """Which rows of a cache were computed under which plan, as its run report says.

    Where no report can be read all rows count as computed under the plan the cache was made with:
    there is none yet where a run was killed between making its file and noting its plans.
    """
    if source is None:
        return []
    try:
        plans: list[dict[str, Any]] = source.run["plans"]
        for entry in plans:
            canonical_json(entry["plan"])
            if not all(0 <= first <= last for first, last in entry["rows"]):
                raise ValueError(f"rows {entry['rows']}")
    except (CacheError, LookupError, TypeError, ValueError):
        return [{"plan": source.plan, "rows": [[0, len(source) - 1]]}]
    return plans


def plans_by_row(
    recorded: Sequence[Mapping[str, Any]],
    source_rows: np.ndarray,
    plan: Mapping[str, Any],
    computed: np.ndarray,
) -> list[dict[str, Any]]:
    """Which rows of a new cache are computed under which plan.

    Parameters
    ----------
    recorded : `recorded_plans` of the cache that rows are taken from.
    source_rows : (n,) int64; for each image its row there, or -1.
    plan : of this run.
    computed : (m,) int64 numbers of the rows that this run computes.

    Returns
    -------
    Plans with their rows, as runs: first and last number, in the numbering of the new cache.
    """
    kept = np.setdiff1d(np.flatnonzero(source_rows >= 0), computed)
    told: list[dict[str, Any]] = []
    for entry in recorded:
        under = np.zeros(len(kept), bool)
        for first, last in entry["rows"]:
            under |= (source_rows[kept] >= first) & (source_rows[kept] <= last)
        if under.any():
            told.append({"plan": entry["plan"], "rows": _runs(kept[under])})
    if len(computed):
        same = [entry for entry in told if entry["plan"] == dict(plan)]
        if same:
            rows = [np.arange(first, last + 1) for first, last in same[0]["rows"]]
            same[0]["rows"] = _runs(np.union1d(np.concatenate(rows), computed))
        else:
            told.append({"plan": dict(plan), "rows": _runs(computed)})
    return told[-_MAX_PLANS:]


def _runs(rows: np.ndarray) -> list[list[int]]:
    """Ascending row numbers as [first, last] of each run; past the room for them, as one."""
    breaks = np.flatnonzero(np.diff(rows) != 1)
    firsts, lasts = rows[[0, *(breaks + 1)]], rows[[*breaks, -1]]
    if len(firsts) > _MAX_RUNS:
        return [[int(rows[0]), int(rows[-1])]]
    return [[int(first), int(last)] for first, last in zip(firsts, lasts, strict=True)]
