"""Models of timm, an optional package: how one is built, and the transform its weights ask for."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from featx.errors import InputError, MissingExtraError, WeightsError
from featx.spelling import did_you_mean

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
