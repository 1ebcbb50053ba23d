"""Networks without published weights: the classics, random or from a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from torch import nn

from featx import architectures
from featx.classics import CLASSICS
from featx.errors import InputError
from featx.frozen import Backbone, freeze, non_finite, random_note, seeded, untrained_keys
from featx.keys import classifier_path, load_into, other_outputs
from featx.transforms import Transform
from featx.weight_files import sha256_file
from featx.weights import read_state_dict, state_dict_sha256

N_CLASSES: Final = 10  # of a classic, where no file's classifier says otherwise


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
        raise InputError(
            f"{name} takes images of {takes} pixels a side, got a crop of {transform.crop}"
        )
    note = (
        f"transform of {name} ({classic.why}): {_in_words(transform)}; "
        "--resize, --crop, --mean, --std and --interpolation change it"
    )
    return _loaded(name, classic.build, transform, note, path, seed)


def _in_words(transform: Transform) -> str:
    colour = "grey" if transform.channels == 1 else "RGB"
    mean, std = (",".join(f"{v:g}" for v in values) for values in (transform.mean, transform.std))
    return (
        f"short side {transform.resize}, centre of {transform.crop} x {transform.crop} pixels, "
        f"{colour}, mean {mean}, std {std}"
    )


def _loaded(
    name: str,
    build: Callable[[int], nn.Module],
    transform: Transform,
    note: str,
    path: Path | None,
    seed: int,
) -> Backbone:
    """The network with random weights or, with as many outputs as it has, those of a file."""
    with seeded(seed):
        network = build(N_CLASSES)
    notes: tuple[str, ...] = (random_note(seed),)
    untrained: tuple[str, ...] = ()
    if path is not None:
        state = read_state_dict(path)
        classifier = classifier_path(network)
        n_outputs = other_outputs(state, network, classifier)
        if n_outputs is not None:
            with seeded(seed):
                network = build(n_outputs)
        notes = load_into(
            network,
            state,
            classifier=classifier,
            source=str(path),
            looks_like=architectures.guess(state),
        )
        untrained = untrained_keys(network, state)
    freeze(network)
    return Backbone(
        name=name,
        network=network,
        transform=transform,
        classes=(),
        weights="random" if path is None else path.name,
        weights_sha256=sha256_file(path) if path else state_dict_sha256(network.state_dict()),
        weights_path=str(path) if path else None,
        notes=(*notes, *non_finite(network), note),
        untrained=untrained,
        traced_at=(2, transform.channels, transform.crop, transform.crop),
    )
