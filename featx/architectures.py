"""torchvision's classification networks: their names, published weights, how each is built.

What torchvision's own loaders do beside loading (input size, auxiliary heads, `transform_input`)
is here, so that a file given by path can be treated as the same file given by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn
from torchvision import models

from featx.classics import CLASSICS, FAMILY
from featx.errors import InputError
from featx.spelling import did_you_mean

# Networks with auxiliary classifiers, which torchvision's loaders build, load and drop
# (torchvision/models/googlenet.py, inception.py), each with the attributes to drop.
_AUXILIARY = {"googlenet": ("aux1", "aux2"), "inception_v3": ("AuxLogits",)}


@dataclass(frozen=True)
class PublishedWeights:
    """One entry of published weights of one architecture.

    Attributes
    ----------
    architecture, name
        ``"densenet121"``, ``"IMAGENET1K_V1"``.
    url
        Address of the file; the name at its end carries the first digits of its SHA-256.
    preset
        Makes torchvision's `ImageClassification` transform of these weights.
    classes
        Names of the network's outputs, in their order.
    num_params
        Number of trainable values, auxiliary heads left out where torchvision counts so.
    min_size
        Smallest height and width of an input, pixels.
    """

    architecture: str
    name: str
    url: str
    preset: Callable[[], Any]
    classes: tuple[str, ...]
    num_params: int
    min_size: int


@cache
def architecture_names() -> tuple[str, ...]:
    """Names of torchvision's classification networks, sorted (quantised and others left out)."""
    return tuple(sorted(models.list_models(module=models)))


def check_name(name: str) -> None:
    """Refuse a name that is no architecture, with the nearest names.

    Raises
    ------
    InputError
        `name` is unknown.
    """
    names = (*architecture_names(), *CLASSICS)
    if name in names:
        return
    hint = did_you_mean(name.lower().replace("-", "_"), names)
    raise InputError(
        f"unknown backbone {name!r}{hint} `featx backbones` lists them; "
        "a timm model is named timm:NAME, a network of your own package.module:factory"
    )


def family(name: str) -> str:
    """The family of an architecture: ``densenet`` of ``densenet121``, ``classic`` of `CLASSICS`.

    Examples
    --------
    >>> family("wide_resnet50_2"), family("swin_v2_t"), family("mnasnet0_5")
    ('wide_resnet', 'swin', 'mnasnet')
    """
    if name in CLASSICS:
        return FAMILY
    match = re.match(r"wide_resnet|[a-z]+", name)
    assert match is not None, name
    return match.group()


@cache
def published(name: str) -> tuple[PublishedWeights, ...]:
    """Published weights of an architecture, in torchvision's order; the first is its oldest.

    None of a classic.
    """
    if name in CLASSICS:
        return ()
    return tuple(
        PublishedWeights(
            architecture=name,
            name=entry.name,
            url=entry.url,
            preset=entry.transforms,
            classes=tuple(entry.meta["categories"] or ()),
            num_params=int(entry.meta["num_params"]),
            min_size=int(entry.meta["min_size"][0]),
        )
        for entry in models.get_model_weights(name)
    )


def published_named(name: str, wanted: str) -> PublishedWeights | None:
    """The entry that `wanted` names, or None.

    `wanted` is ``"default"`` (``IMAGENET1K_V1``, else the first entry: features of newer training
    recipes transfer worse, Kornblith et al. 2019), ``"DEFAULT"`` (torchvision's newest), or an
    entry's name with or without the class before it (``DenseNet121_Weights.IMAGENET1K_V1``).
    """
    entries = published(name)
    if not entries:
        return None
    by_name = {entry.name: entry for entry in entries}
    if wanted == "default":
        return by_name.get("IMAGENET1K_V1", entries[0])
    if wanted == "DEFAULT":
        return by_name[models.get_model_weights(name).DEFAULT.name]
    return by_name.get(wanted.rpartition(".")[2])


def build(
    name: str, *, entry: PublishedWeights, for_weights: bool, num_classes: int | None = None
) -> nn.Module:
    """An untrained network of the form that `entry`'s weights fit, in training mode.

    Parameters
    ----------
    for_weights
        True: as torchvision builds it before it loads weights (GoogLeNet and Inception with
        `transform_input` and auxiliary heads, without their slow initialisation); call
        `drop_auxiliary` after loading. False: initialised, without auxiliary heads.
    num_classes
        Number of outputs; None: as many as `entry` names.
    """
    options: dict[str, Any] = {}
    if name in _AUXILIARY:
        # init_weights is given because torchvision warns of a change of its default otherwise.
        options |= {"init_weights": not for_weights, "aux_logits": for_weights}
        options |= {"transform_input": for_weights}
    if family(name) == "vit":
        options["image_size"] = entry.min_size
    # VGG's IMAGENET1K_FEATURES entry names no classes
    outputs = num_classes or len(entry.classes) or 1000
    return models.get_model(name, weights=None, num_classes=outputs, **options)


def auxiliary_heads(name: str) -> tuple[str, ...]:
    """Attributes of the network that are auxiliary classifiers, unused in evaluation."""
    return _AUXILIARY.get(name, ())


def drop_auxiliary(name: str, network: nn.Module) -> None:
    """Take the auxiliary heads off, in place, as torchvision's loaders do after loading."""
    for attribute in auxiliary_heads(name):
        setattr(network, attribute, None)
        network.aux_logits = False  # type: ignore[assignment]


def guess(state: Mapping[str, torch.Tensor]) -> str | None:
    """The architecture whose number of values a state dict has, or None.

    The last matrix is taken as the classifier and counted as if it had 1000 outputs, so that
    networks trained on other classes are recognised too.
    """
    count = sum(
        tensor.numel()
        for key, tensor in state.items()
        if tensor.is_floating_point() and not key.endswith(("running_mean", "running_var"))
    )
    matrices = [tensor for tensor in state.values() if tensor.ndim == 2]
    if matrices:
        outputs, inputs = matrices[-1].shape
        count += (1000 - outputs) * (inputs + 1)
    for name in architecture_names():
        if any(entry.num_params == count for entry in published(name)):
            return name
    return None
