"""torchvision's networks with their weights: a published entry's, a file's, or random ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featx import architectures
from featx.architectures import PublishedWeights
from featx.errors import WeightsError
from featx.frozen import (
    Backbone,
    freeze,
    non_finite,
    random_note,
    seeded,
    untrained_keys,
    wrong_size,
)
from featx.keys import classifier_path, load_into, other_outputs, rename_old_keys
from featx.transforms import Transform
from featx.weights import hash_prefix, read_state_dict, state_dict_sha256


def load_random(name: str, seed: int, overrides: Mapping[str, Any]) -> Backbone:
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


def load_file(
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


def entry_by_hash(name: str, path: Path, sha256: str) -> PublishedWeights | None:
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
        raise wrong_size(name, f"exactly {fixed}", transform.crop)
    # Swin's windows are padded: torchvision's min_size is what it was trained at.
    if architectures.family(name) != "swin" and transform.crop < entry.min_size:
        raise wrong_size(name, f"at least {entry.min_size}", transform.crop)
    return transform


def _assumed(name: str, entry: PublishedWeights, overrides: Mapping[str, Any]) -> str:
    changed = f" with {', '.join(sorted(overrides))} as given" if overrides else ""
    return (
        f"transform assumed: that of {name} {entry.name}{changed}; "
        "--resize, --crop, --mean, --std and --interpolation change it"
    )
