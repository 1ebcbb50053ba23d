"""What a network is, as data: all that is told and recorded of it, without the network itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from featx.transforms import Transform

INPUT: Final = "input"  # the cut before everything


@dataclass(frozen=True, eq=False)
class BackboneIdentity:
    """A network's name, weights, preprocessing and class names.

    Attributes
    ----------
    name
        ``"densenet121"``, ``"timm:resnet18"``.
    transform
        How an image becomes the network's input.
    classes
        Names of the network's outputs; empty where they are not known.
    weights
        ``"IMAGENET1K_V1"``, ``"random"`` or a file's name, as shown to people.
    weights_sha256
        Of the file's bytes; of the canonical state dict (`weights.state_dict_sha256`) where
        there is no file.
    weights_path
        The file, absolute; None where there is none.
    notes
        Sentences the user must be told: a transform that was assumed, a classifier that was
        dropped, keys that were missing.
    """

    name: str
    transform: Transform
    classes: tuple[str, ...]
    weights: str
    weights_sha256: str
    weights_path: str | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class FrontIdentity:
    """Where a network is cut, and what is pooled there.

    Attributes
    ----------
    cut
        Name of the value that is taken, resolved: ``flatten`` where ``penultimate`` was asked.
    pool
        One of ``avg max gem none cls cls+avg``: what ``auto`` came to.
    layout
        Of a feature: ``vector`` (n, d), or where nothing is pooled the cut's own, ``nchw``,
        ``nhwc``, ``tokens``, ``nct`` or ``other``.
    notes
        Sentences for the user: what ``auto`` was taken to mean.
    code_sha256
        Of what the user's own network computes up to there (`featx.own_network.code_sha256`);
        empty of others, which their name tells.
    """

    cut: str
    pool: str
    layout: str
    notes: tuple[str, ...] = ()
    code_sha256: str = ""

    @property
    def is_pixels(self) -> bool:
        """Whether a feature is the picture itself, uint8 as it was decoded and cropped."""
        return (self.cut, self.layout) == (INPUT, PIXELS.layout)


PIXELS: Final = FrontIdentity(INPUT, "none", "nhwc")
