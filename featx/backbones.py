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
from featx.architectures import PublishedWeights
from featx.classics import CLASSICS
from featx.errors import InputError, WeightsError
from featx.frozen import Backbone, freeze, non_finite, random_note, seeded, untrained_keys
from featx.keys import classifier_path, load_into, other_outputs, rename_old_keys
from featx.own_network import is_own
from featx.transforms import Transform
from featx.unpublished import N_CLASSES, load_classic, load_own
from featx.weight_files import sha256_file
from featx.weights import (
    check_published_hash,
    checkpoint_folder,
    fetch,
    file_name,
    hash_prefix,
    read_state_dict,
    state_dict_sha256,
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
        return _load_timm(name, weights, seed, overrides)
    if not is_own(name):
        architectures.check_name(name)
    if name in CLASSICS or is_own(name):
        path = None if weights == "random" else _existing_file(name, weights)
        load = load_classic if name in CLASSICS else load_own
        return load(name, path, seed=seed, overrides=overrides)
    if weights == "random":
        return _load_random(name, seed, overrides)
    entry = architectures.published_named(name, weights) if isinstance(weights, str) else None
    if entry is not None:
        path = fetch(entry.url, label=f"{name} {entry.name}")
        sha256 = sha256_file(path)
        check_published_hash(path, sha256, entry.url)
    else:
        path = _existing_file(name, weights)
        sha256 = sha256_file(path)
        entry = _entry_by_hash(name, path, sha256)
    return _load_file(name, path, sha256, entry, seed, overrides)


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
    path = Path(weights).expanduser()
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


def _entry_by_hash(name: str, path: Path, sha256: str) -> PublishedWeights | None:
    """The published entry whose file this is, or None; another architecture's is refused."""
    for architecture in (name, *architectures.architecture_names()):
        for entry in architectures.published(architecture):
            prefix = hash_prefix(entry.url)
            if prefix is None or not sha256.startswith(prefix):
                continue
            if architecture == name:
                return entry
            raise WeightsError(
                f"{path} is a file of another network: the published weights {entry.name} of "
                f"{architecture}; give --backbone {architecture}"
            )
    return None


def _load_random(name: str, seed: int, overrides: Mapping[str, Any]) -> Backbone:
    entry = architectures.published(name)[0]
    network = _build(name, entry, seed, for_weights=False)
    freeze(network)
    return Backbone(
        name=name,
        network=network,
        transform=_transform(name, entry, network, overrides),
        classes=(),
        weights="random",
        weights_sha256=state_dict_sha256(network.state_dict()),
        weights_path=None,
        notes=(
            random_note(seed),
            _assumed(name, entry, overrides),
        ),
    )


def _load_file(
    name: str,
    path: Path,
    sha256: str,
    entry: PublishedWeights | None,
    seed: int,
    overrides: Mapping[str, Any],
) -> Backbone:
    """Build the network that a file's weights fit, and load them; `entry` where it is published."""
    family = architectures.family(name)
    state = rename_old_keys(read_state_dict(path), family)
    form = entry or _form_for(name, state)
    network = _build(name, form, seed, for_weights=True)
    auxiliary = architectures.auxiliary_heads(name)
    classifier = classifier_path(network, auxiliary=auxiliary)
    n_outputs = other_outputs(state, network, classifier)
    if n_outputs is not None:
        network = _build(name, form, seed, for_weights=True, num_classes=n_outputs)
    guess = architectures.guess(state)
    notes = load_into(
        network,
        state,
        classifier=classifier,
        auxiliary=auxiliary,
        source=str(path),
        looks_like=guess if guess != name else None,
    )
    architectures.drop_auxiliary(name, network)
    freeze(network)
    return Backbone(
        name=name,
        network=network,
        transform=_transform(name, form, network, overrides),
        classes=entry.classes if entry else (),
        weights=entry.name if entry else path.name,
        weights_sha256=sha256,
        weights_path=str(path.resolve()),
        notes=(
            *notes,
            *non_finite(network),
            *(() if entry else (_assumed(name, form, overrides),)),
        ),
        untrained=untrained_keys(network, state),
    )


def _form_for(name: str, state: Mapping[str, torch.Tensor]) -> PublishedWeights:
    """The first published entry that takes inputs of the file's size: a ViT's is in its keys."""
    entries = architectures.published(name)
    embedding = state.get("encoder.pos_embedding")
    patch = state.get("conv_proj.weight")
    if embedding is not None and patch is not None and embedding.ndim == 3 and patch.ndim == 4:
        # (1, 1 + side * side, d): one class token and a square of patches
        side = round((embedding.shape[1] - 1) ** 0.5) * patch.shape[-1]
        return next((entry for entry in entries if entry.min_size == side), entries[0])
    return entries[0]


def _build(
    name: str,
    entry: PublishedWeights,
    seed: int,
    *,
    for_weights: bool,
    num_classes: int | None = None,
) -> nn.Module:
    with seeded(seed):
        return architectures.build(
            name, entry=entry, for_weights=for_weights, num_classes=num_classes
        )


def _transform(
    name: str, entry: PublishedWeights, network: nn.Module, overrides: Mapping[str, Any]
) -> Transform:
    transform = Transform.from_preset(entry.preset())
    if overrides:
        transform = transform.replace(**overrides)
    fixed = getattr(network, "image_size", None) or (
        entry.min_size if architectures.family(name) == "maxvit" else None
    )
    if fixed is not None and transform.crop != fixed:
        raise _wrong_size(name, f"exactly {fixed}", transform.crop)
    # Swin's windows are padded: torchvision's min_size is what it was trained at.
    if architectures.family(name) != "swin" and transform.crop < entry.min_size:
        raise _wrong_size(name, f"at least {entry.min_size}", transform.crop)
    return transform


def _wrong_size(name: str, takes: str, crop: int) -> InputError:
    return InputError(f"{name} takes images of {takes} pixels a side, got a crop of {crop}")


def _assumed(name: str, entry: PublishedWeights, overrides: Mapping[str, Any]) -> str:
    changed = f" with {', '.join(sorted(overrides))} as given" if overrides else ""
    return (
        f"transform assumed: that of {name} {entry.name}{changed}; "
        "--resize, --crop, --mean, --std and --interpolation change it"
    )


def _load_timm(
    name: str, weights: str | os.PathLike[str], seed: int, overrides: Mapping[str, Any]
) -> Backbone:
    model_name = name.removeprefix("timm:")
    pretrained = weights in ("default", "DEFAULT")
    with seeded(seed):
        network = timm_backbones.build(model_name, pretrained=pretrained)
    notes: tuple[str, ...] = ()
    untrained: tuple[str, ...] = ()
    path: Path | None = None
    if pretrained:
        shown = timm_backbones.weights_tag(network)
    elif weights == "random":
        shown = "random"
        notes = (random_note(seed),)
    else:
        path = _existing_file(name, weights)
        shown = path.name
        state = read_state_dict(path)
        classifier = classifier_path(network)
        n_outputs = other_outputs(state, network, classifier)
        if n_outputs is not None:
            with seeded(seed):
                network = timm_backbones.build(model_name, pretrained=False, num_classes=n_outputs)
        notes = load_into(network, state, classifier=classifier, source=str(path))
        untrained = untrained_keys(network, state)
    freeze(network)
    fields, transform_notes = timm_backbones.transform_fields(network)
    transform = Transform(**(fields | dict(overrides)))
    if timm_backbones.has_fixed_input(network) and transform.crop != fields["crop"]:
        raise _wrong_size(name, f"exactly {fields['crop']}", transform.crop)
    if not pretrained:
        transform_notes += ("transform assumed: that of timm's own weights of this model",)
    return Backbone(
        name=name,
        network=network,
        transform=transform,
        classes=(),
        weights=shown,
        weights_sha256=sha256_file(path) if path else state_dict_sha256(network.state_dict()),
        weights_path=str(path) if path else None,
        notes=(*notes, *non_finite(network), *transform_notes),
        untrained=untrained,
    )
