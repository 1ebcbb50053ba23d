"""Networks without published weights: the classics, and the user's own; random or from a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from torch import nn

from featx import own_network
from featx.classics import CLASSICS
from featx.frozen import Backbone, freeze, non_finite, with_weights, wrong_size
from featx.transforms import Transform
from featx.weight_files import sha256_file
from featx.weights import state_dict_sha256

N_CLASSES: Final = 10  # of a classic, where no file's classifier says otherwise
IMAGENET: Final = {  # torchvision.transforms._presets.ImageClassification
    "resize": 256,
    "crop": 224,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}


def classic_transform(name: str) -> Transform:
    """The preprocessing of one of `CLASSICS`."""
    classic = CLASSICS[name]
    return Transform(
        classic.resize, classic.crop, classic.mean, classic.std, channels=len(classic.mean)
    )


def load_classic(
    name: str, path: Path | None, *, seed: int, overrides: Mapping[str, Any]
) -> Backbone:
    """One of `CLASSICS` with its weights and its transform.

    Parameters
    ----------
    path : the weights' file; None: random ones.
    seed : of random weights, and of a classifier that the file has none for.
    overrides : fields of the transform to replace.

    Raises
    ------
    InputError
        A size or a number of channels that the network does not take.
    WeightsError
        The file cannot be read or is another network's.
    """
    classic = CLASSICS[name]
    transform = classic_transform(name).replace(**overrides)
    least, most = classic.sizes
    if not least <= transform.crop <= most:
        takes = f"exactly {least}" if least == most else f"at least {least}"
        raise wrong_size(name, takes, transform.crop)
    network, notes, untrained = with_weights(
        lambda n_outputs: classic.build(n_outputs or N_CLASSES), path, seed
    )
    note = _told(f"transform of {name} ({classic.why})", transform)
    return _backbone(name, network, transform, (*notes, note), untrained, path)


def load_own(name: str, path: Path | None, *, seed: int, overrides: Mapping[str, Any]) -> Backbone:
    """What the user's own code makes (`featx.own_network`), with its weights and a transform.

    The transform is the network's attribute `transform` where that is a `Transform` or a mapping of
    its fields; else ImageNet's, which is said. One number each for `mean` and `std` make it one
    channel.

    Parameters
    ----------
    path, seed, overrides : as of `load_classic`.

    Raises
    ------
    InputError, WeightsError
        As `featx.own_network.build` and `load_classic`.
    """
    own_network.note_given(name)
    takes_classes = own_network.takes_classes(name)

    def make(n_outputs: int | None) -> nn.Module:
        return own_network.build(name, n_outputs if takes_classes else None)

    network, notes, untrained = with_weights(make, path, seed)
    transform, note = _own_transform(name, network, overrides)
    return _backbone(name, network, transform, (*notes, note), untrained, path)


def _own_transform(
    name: str, network: nn.Module, overrides: Mapping[str, Any]
) -> tuple[Transform, str]:
    found = getattr(network, "transform", None)
    fields = found.to_dict() if isinstance(found, Transform) else found
    if isinstance(fields, Mapping):
        origin = f"transform of {name}, its attribute `transform`"
    else:
        fields = IMAGENET
        what = "no attribute" if found is None else f"a {type(found).__name__} as its attribute"
        origin = f"transform assumed: ImageNet's, for the network has {what} `transform`"
    wanted = {**fields, **overrides}
    means = wanted.get("mean")
    if isinstance(means, (tuple, list)) and ("channels" not in fields or "mean" in overrides):
        wanted["channels"] = len(means)
    transform = Transform.from_dict(wanted)
    return transform, _told(origin, transform)


def _told(origin: str, transform: Transform) -> str:
    """A transform in one sentence: where it is from, what it is, and how to change it."""
    colour = "grey" if transform.channels == 1 else "RGB"
    side = "as it is" if transform.resize is None else f"short side {transform.resize}"
    mean, std = (",".join(f"{v:g}" for v in values) for values in (transform.mean, transform.std))
    return (
        f"{origin}: {side}, centre of {transform.crop} x {transform.crop} pixels, {colour}, "
        f"mean {mean}, std {std}; --resize, --crop, --mean, --std and --interpolation change it"
    )


def _backbone(
    name: str,
    network: nn.Module,
    transform: Transform,
    notes: tuple[str, ...],
    untrained: tuple[str, ...],
    path: Path | None,
) -> Backbone:
    freeze(network)
    return Backbone(
        name=name,
        network=network,
        transform=transform,
        classes=(),
        weights="random" if path is None else path.name,
        weights_sha256=sha256_file(path) if path else state_dict_sha256(network.state_dict()),
        weights_path=str(path) if path else None,
        notes=(*non_finite(network), *notes),
        untrained=untrained,
        sized_by_transform=True,
    )
