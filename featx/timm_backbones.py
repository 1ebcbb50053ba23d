"""Models of timm, an optional package: how one is built, its weights, and their transform."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from featx.errors import InputError, MissingExtraError, WeightsError
from featx.frozen import Backbone, freeze, non_finite, seeded, with_weights, wrong_size
from featx.spelling import did_you_mean
from featx.transforms import Transform
from featx.weight_files import sha256_file
from featx.weights import state_dict_sha256

_INTERPOLATIONS = {"bilinear", "bicubic", "nearest"}


def build(name: str, *, pretrained: bool, num_classes: int | None = None) -> nn.Module:
    """A timm model by timm's name, in training mode.

    Parameters
    ----------
    name
        Without ``timm:`` before it; with or without timm's tag (``resnet18.a1_in1k``).
    pretrained
        Whether timm loads its own weights (downloaded through its hub).
    num_classes
        Number of outputs; None: the model's own.

    Raises
    ------
    MissingExtraError
        timm is not installed.
    InputError
        timm has no such model, or no weights for it.
    WeightsError
        The weights cannot be downloaded.
    """
    timm = _timm()
    if not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models())
        raise InputError(f"unknown timm model {name!r}{hint} timm.list_models() lists them")
    try:
        options = {} if num_classes is None else {"num_classes": num_classes}
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **options)
    except (OSError, RuntimeError, ValueError, LookupError) as error:
        if not pretrained:
            raise InputError(f"timm cannot build {name!r}: {error}") from error
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WeightsError(
            f"weights of timm:{name} cannot be had ({first[:200]}). Give a file with "
            "--weights PATH (.pth or .safetensors), or try the pipeline without pretrained "
            "weights with --weights random."
        ) from error
    return model


def load_timm(
    name: str, path: Path | None, *, pretrained: bool, seed: int, overrides: Mapping[str, Any]
) -> Backbone:
    """One of timm's models with its weights, and the transform of timm's own weights of it.

    Parameters
    ----------
    name
        With ``timm:`` before it.
    path
        The weights' file; None: timm's own where `pretrained`, else random ones.
    seed
        Of random weights, and of a classifier that the file has none for.
    overrides
        Fields of the transform to replace.

    Raises
    ------
    MissingExtraError, InputError, WeightsError
        As `build`; a file that cannot be read or is another network's; a size it does not take.
    """
    model_name = name.removeprefix("timm:")
    notes: tuple[str, ...] = ()
    untrained: tuple[str, ...] = ()
    if pretrained:
        with seeded(seed):
            network = build(model_name, pretrained=True)
    else:
        network, notes, untrained = with_weights(
            lambda n_outputs: build(model_name, pretrained=False, num_classes=n_outputs), path, seed
        )
    freeze(network)
    fields, transform_notes = transform_fields(network)
    transform = Transform(**(fields | dict(overrides)))
    if has_fixed_input(network) and transform.crop != fields["crop"]:
        raise wrong_size(name, f"exactly {fields['crop']}", transform.crop)
    if not pretrained:
        transform_notes += ("transform assumed: that of timm's own weights of this model",)
    return Backbone(
        name=name,
        network=network,
        transform=transform,
        classes=(),
        weights=weights_tag(network) if pretrained else path.name if path else "random",
        weights_sha256=sha256_file(path) if path else state_dict_sha256(network.state_dict()),
        weights_path=str(path) if path else None,
        notes=(*notes, *non_finite(network), *transform_notes),
        untrained=untrained,
    )


def transform_fields(model: nn.Module) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Fields of the transform that timm's data config of a model asks for, and notes.

    The resize is ``floor(crop / crop_pct)``, as in `timm.data.transforms_factory`.
    """
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(model)
    crop = int(config["input_size"][-1])
    notes = []
    if config.get("crop_mode", "center") != "center":
        notes.append(
            f"timm asks for crop mode {config['crop_mode']!r} for these weights; featx resizes "
            "the short side and crops the centre"
        )
    interpolation = str(config["interpolation"])
    if interpolation not in _INTERPOLATIONS:
        notes.append(f"timm asks for {interpolation!r} interpolation; featx uses bicubic")
        interpolation = "bicubic"
    fields = {
        "resize": math.floor(crop / float(config["crop_pct"])),
        "crop": crop,
        "mean": tuple(float(value) for value in config["mean"]),
        "std": tuple(float(value) for value in config["std"]),
        "interpolation": interpolation,
    }
    return fields, tuple(notes)


def has_fixed_input(model: nn.Module) -> bool:
    """Whether a model takes one input size only, as timm's config of it says."""
    return bool((getattr(model, "pretrained_cfg", None) or {}).get("fixed_input_size"))


def weights_tag(model: nn.Module) -> str:
    """timm's tag of the weights a model was made with (``a1_in1k``), or ``pretrained``."""
    config = getattr(model, "pretrained_cfg", None) or {}
    return str(config.get("tag") or "pretrained")


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise MissingExtraError(
            "timm: backbones need the timm package; install it with: pip install 'featx[timm]'"
        ) from error
    return timm
