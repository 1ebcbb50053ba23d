"""A start without PyTorch: what a network was found to be when it was prepared for OpenVINO.

Importing PyTorch and torchvision takes three seconds, and building, loading and tracing a network
another. An engine that was prepared needs none of them, nor does the spec, once it is known what
the name, the weights' file, the cut and the pooling came to. That is kept beside the prepared
networks, under everything it depends on, and believed only while the weights' file has the bytes
that it had.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from featx.devices import Device, Precision
from featx.engines.base import CannotRunError
from featx.engines.choice import OPENVINO, keep, package_versions
from featx.engines.openvino import is_installed
from featx.engines.store import Prepared, load_prepared
from featx.errors import WeightsError
from featx.home import at_home
from featx.identity import BackboneIdentity, FrontIdentity
from featx.own_network import is_own
from featx.specs import ExtractOptions
from featx.transforms import Transform
from featx.weight_files import is_local_weights, sha256_file

# What PyTorch takes its number of threads and its folder of weights from.
_ENVIRONMENT: Final = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "TORCH_HOME",
    "XDG_CACHE_HOME",
    "HOME",
    "USERPROFILE",
)


@dataclass(frozen=True)
class Known:
    """What a network was found to be by an earlier run.

    Attributes
    ----------
    backbone, front : as that run found them; the weights' file was read again just now.
    identity : of the prepared network, as in `featx.engines.base.Work`.
    batch_size : images per call where none is asked for.
    threads : that PyTorch computes with where it is not told.
    versions : of PyTorch and torchvision, as they name themselves.
    """

    backbone: BackboneIdentity
    front: FrontIdentity
    identity: Mapping[str, Any]
    batch_size: int
    threads: int
    versions: Mapping[str, str]


def is_possible(options: ExtractOptions, device: Device) -> bool:
    """Whether this program, by what is asked of it, might do without PyTorch.

    Where that is imported already nothing is to be gained, and its number of threads may have been
    changed. Random weights have no file that would tell them by its bytes.
    """
    return (
        "torch" not in sys.modules
        and device.kind == "cpu"
        and options.engine in ("auto", OPENVINO)
        and options.weights != "random"
        and not is_own(options.backbone)  # its code may have changed
        and is_installed()
    )


def recall(options: ExtractOptions, precision: Precision) -> Known | None:
    """What an earlier run, asked for the same, found; None where it cannot be told."""
    try:
        kept = load_prepared(_key(options, precision))
    except CannotRunError:  # OpenVINO cannot be imported
        return None
    if kept is None:
        return None
    facts = kept.facts
    path, sha256 = facts["backbone"]["weights_path"], facts["backbone"]["weights_sha256"]
    try:
        if not is_local_weights(path) or sha256_file(path) != sha256:
            return None
    except WeightsError:
        return None
    named = {
        **facts["backbone"],
        "transform": Transform.from_dict(facts["backbone"]["transform"]),
        **{name: tuple(facts["backbone"][name]) for name in ("classes", "notes")},
    }
    front = {**facts["front"], "notes": tuple(facts["front"]["notes"])}
    return Known(
        BackboneIdentity(**named),
        FrontIdentity(**front),
        facts["identity"],
        facts["batch_size"],
        facts["threads"],
        facts["versions"],
    )


def remember(options: ExtractOptions, precision: Precision, known: Known) -> None:
    """Keep what was found for the next run; to be called where PyTorch was not imported before."""
    backbone = known.backbone
    if backbone.weights_path is None:
        return
    facts = {
        "backbone": {
            "name": backbone.name,
            "transform": backbone.transform.to_dict(),
            "classes": list(backbone.classes),
            "weights": backbone.weights,
            "weights_sha256": backbone.weights_sha256,
            "weights_path": backbone.weights_path,
            "notes": list(backbone.notes),
        },
        "front": asdict(known.front),
        "identity": dict(known.identity),
        "batch_size": known.batch_size,
        "threads": known.threads,
        "versions": dict(known.versions),
    }
    keep(_key(options, precision), Prepared(b"", b"", facts))


def _key(options: ExtractOptions, precision: Precision) -> dict[str, Any]:
    """All that a network's identity can depend on, but for the bytes of its weights."""
    file = at_home(options.weights)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "what": "identity",
        "backbone": options.backbone,
        "weights": options.weights,
        "file": str(file.resolve()) if file.is_file() else "",
        "seed": options.seed,
        "cut": options.cut,
        "pool": options.pool,
        "transform": {name: _plain(value) for name, value in sorted(options.transform.items())},
        "precision": precision,
        "versions": package_versions(options.backbone),
        "environment": {name: os.environ.get(name, "") for name in _ENVIRONMENT},
        "cores": cores,
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
