"""A name becomes a network, its preprocessing transform, its class names and its identity."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featx import architectures, own_network, timm_backbones
from featx.classics import CLASSICS
from featx.errors import InputError, WeightsError
from featx.frozen import Backbone, freeze, seeded
from featx.home import at_home
from featx.own_network import is_own
from featx.timm_backbones import load_timm
from featx.torchvision_backbones import entry_by_hash, load_file, load_random
from featx.transforms import Transform
from featx.unpublished import N_CLASSES, load_classic, load_own
from featx.weight_files import sha256_file
from featx.weights import (
    check_published_hash,
    checkpoint_folder,
    fetch,
    file_name,
)

_FILE_SUFFIXES = {".pth", ".pt", ".bin", ".safetensors", ".ckpt", ".tar", ".pkl", ".h5"}
_TRANSFORM_FIELDS = ("resize", "crop", "mean", "std", "interpolation")


@dataclass(frozen=True)
class BackboneInfo:
    """What is known of a backbone without building it.

    Attributes
    ----------
    params_millions
        Trainable values / 1e6.
    input_size
        Height and width of the input of the default weights, pixels.
    weights
        Names of the published entries, oldest first.
    downloaded
        Those of `weights` whose file is in torch.hub's folder.
    """

    name: str
    family: str
    params_millions: float
    input_size: int
    weights: tuple[str, ...]
    downloaded: tuple[str, ...]


def list_backbones() -> tuple[BackboneInfo, ...]:
    """All networks `load_backbone` knows by name; nothing is downloaded or built.

    Returns
    -------
    tuple
        Sorted by name. timm's models (``timm:NAME``) are not listed.

    Examples
    --------
    >>> [info.params_millions for info in list_backbones() if info.name == "mobilenet_v2"]
    [3.504872]
    """
    folder = checkpoint_folder()
    infos = []
    for name in CLASSICS:
        infos.append(_info_of_classic(name))
    for name in architectures.architecture_names():
        entries = architectures.published(name)
        default = architectures.published_named(name, "default")
        assert default is not None
        infos.append(
            BackboneInfo(
                name=name,
                family=architectures.family(name),
                params_millions=default.num_params / 1e6,
                input_size=Transform.from_preset(default.preset()).crop,
                weights=tuple(entry.name for entry in entries),
                downloaded=tuple(
                    entry.name for entry in entries if (folder / file_name(entry.url)).is_file()
                ),
            )
        )
    return tuple(sorted(infos, key=lambda info: info.name))


def _info_of_classic(name: str) -> BackboneInfo:
    with torch.device("meta"):
        network = CLASSICS[name].build(N_CLASSES)
    return BackboneInfo(
        name=name,
        family=architectures.family(name),
        params_millions=sum(parameter.numel() for parameter in network.parameters()) / 1e6,
        input_size=CLASSICS[name].crop,
        weights=(),
        downloaded=(),
    )


def load_backbone(
    name: str,
    *,
    weights: str | os.PathLike[str] = "default",
    seed: int = 0,
    transform: Mapping[str, Any] | None = None,
) -> Backbone:
    """Build a network, load its weights and take everything that belongs to them.

    A file given by path that is a published file (by its SHA-256) is treated as that entry in
    everything: transform, class names, `transform_input`, auxiliary heads, image size.

    Parameters
    ----------
    name
        A classification network of torchvision, one of `featx.classics`, ``timm:NAME``, or
        ``package.module:factory``, whose module is imported (see `featx.own_network`): never take
        the name from a file.
    weights
        ``"default"``: ``IMAGENET1K_V1``, or the first published entry where there is none;
        ``"DEFAULT"``: torchvision's newest; an entry's name; a path; ``"random"``.
    seed
        Of ``"random"`` weights, and of a classifier the file has none for. The global random
        number generator is not touched.
    transform
        Values that replace those of the weights' transform: any of ``resize``, ``crop``,
        ``mean``, ``std``, ``interpolation``.

    Raises
    ------
    InputError
        Unknown name, entry or transform field; an input size the network cannot take.
    MissingExtraError
        A timm model without timm.
    WeightsError
        The weights cannot be downloaded or read, are damaged, or are another network's.

    Examples
    --------
    >>> backbone = load_backbone("squeezenet1_1", weights="random")
    >>> backbone.weights, backbone.transform.crop, backbone.network.training
    ('random', 224, False)
    """
    overrides = _checked_overrides(transform)
    if name.startswith("timm:"):
        pretrained = weights in ("default", "DEFAULT")
        path = None if pretrained or weights == "random" else _existing_file(name, weights)
        return load_timm(name, path, pretrained=pretrained, seed=seed, overrides=overrides)
    if not is_own(name):
        architectures.check_name(name)
    if name in CLASSICS or is_own(name):
        path = None if weights == "random" else _existing_file(name, weights)
        load = load_classic if name in CLASSICS else load_own
        return load(name, path, seed=seed, overrides=overrides)
    if weights == "random":
        return load_random(name, seed, overrides)
    entry = architectures.published_named(name, weights) if isinstance(weights, str) else None
    if entry is not None:
        path = fetch(entry.url, label=f"{name} {entry.name}")
        sha256 = sha256_file(path)
        check_published_hash(path, sha256, entry.url)
    else:
        path = _existing_file(name, weights)
        sha256 = sha256_file(path)
        entry = entry_by_hash(name, path, sha256)
    return load_file(name, path, sha256, entry, seed, overrides)


def bare_network(name: str, *, crop: int, for_weights: bool) -> nn.Module:
    """The network of a name without values, on PyTorch's device ``meta``: layers and shapes.

    Nothing is read, downloaded or imported for it; the user's own code is only run where the user
    gave its name in this process.

    Parameters
    ----------
    name
        As of `load_backbone`.
    crop
        Side of its images, which decides the form of a vision transformer.
    for_weights
        Whether it was built for weights of a file, or for random ones.

    Raises
    ------
    InputError
        Unknown name.
    HeadError
        A name of code that the user has not given.
    MissingExtraError
        A timm model without timm.

    Examples
    --------
    >>> bare_network("resnet18", crop=224, for_weights=True).fc.weight.device
    device(type='meta')
    """
    if name.startswith("timm:"):
        with seeded(0):
            network = timm_backbones.build(name.removeprefix("timm:"), pretrained=False).to("meta")
    elif name in CLASSICS:
        with torch.device("meta"):
            network = CLASSICS[name].build(N_CLASSES)
    elif is_own(name):
        with seeded(0):
            network = own_network.build_given(name).to("meta")
    else:
        architectures.check_name(name)
        entries = architectures.published(name)
        entry = next((entry for entry in entries if entry.min_size == crop), entries[0])
        with torch.device("meta"):
            network = architectures.build(name, entry=entry, for_weights=for_weights)
        architectures.drop_auxiliary(name, network)
    freeze(network)
    return network


def _checked_overrides(transform: Mapping[str, Any] | None) -> dict[str, Any]:
    given = dict(transform or {})
    unknown = sorted(set(given) - set(_TRANSFORM_FIELDS))
    if unknown:
        raise InputError(
            f"unknown transform field {unknown[0]!r}; known are {', '.join(_TRANSFORM_FIELDS)}"
        )
    return {key: value for key, value in given.items() if value is not None}


def _existing_file(name: str, weights: str | os.PathLike[str]) -> Path:
    """The weights file at a path the user gave, absolute; else the error that helps most."""
    path = at_home(weights)
    if path.is_file():
        return path.resolve()
    looks_like_path = path.suffix.lower() in _FILE_SUFFIXES or len(path.parts) > 1
    if path.exists() or looks_like_path or not isinstance(weights, str):
        what = "is a folder" if path.is_dir() else "does not exist"
        raise WeightsError(
            f"weights file {path} {what}; give the path of a .pth or .safetensors file, "
            "an entry's name, or random"
        )
    if name in CLASSICS or is_own(name):
        raise WeightsError(
            f"there are no published weights of {name}, so that --weights {weights} names none: "
            "give the path of a .pth or .safetensors file with --weights, or take random ones "
            "with --weights random (to train it from scratch: --cut input --weights random)"
        )
    if name.startswith("timm:"):
        known = "default (timm's own)"
    else:
        known = ", ".join(entry.name for entry in architectures.published(name))
    raise InputError(
        f"unknown weights {weights!r} of {name}; there are {known}, DEFAULT (the newest), "
        "random, or the path of a .pth or .safetensors file"
    )
