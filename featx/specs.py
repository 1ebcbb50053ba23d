"""What is asked of an extraction, as data: options, rules, the spec, the cache's name."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from featx.datasets.packed import find
from featx.errors import InputError
from featx.identity import INPUT, BackboneIdentity, FrontIdentity
from featx.images import ImageTable
from featx.room import size_in_bytes

_SPLIT_FOLDERS: Final = ("train", "val", "valid", "validation", "test", "images")
_MAGIC: Final = frozenset("*?[")
_NOT_OF_PIXELS: Final = ("pool", "precision")  # they change nothing there
_MAX_NAME_BYTES: Final = 180  # file systems allow 255; endings such as .partial come on top

MAX_STORE_SIZE: Final = 10_000  # as of a transform
PIXEL_TYPE: Final = "uint8"  # what pixels are stored as


@dataclass(frozen=True)
class ExtractOptions:
    """Everything that can be asked of an extraction; the defaults are the recommended ones.

    Attributes
    ----------
    backbone : name of a network, see `featx backbones`; or ``package.module:factory`` of one's own.
    weights : ``default`` (the architecture's IMAGENET1K_V1), ``DEFAULT`` (torchvision's newest),
        the name of a published entry, a file, or ``random``.
    seed : of random weights.
    cut : where the network is cut, see `featx cuts BACKBONE`. At ``input`` no network is executed:
        the pictures are stored as they would enter it, uint8 before mean and std, unpooled, so
        that engine, device, precision and batch size are of no consequence.
    pool : ``auto``, ``avg``, ``max``, ``gem``, ``none``; ``cls``, ``cls+avg`` for transformers.
    decode : ``fast`` or ``exact``.
    exif : apply the EXIF orientation.
    max_pixels : larger images are refused from their header.
    engine : what executes the network: ``auto``, or one of `featx.engines.choice.ENGINES`.
    device, precision, batch_size, workers : how to run; ``None`` for the fixed rule's choice.
    dtype : what features are stored as, ``float32`` or ``float16``; pixels are uint8.
    store_size : of pixels, None: as they would enter the network. Else whole pictures are stored,
        not cropped, for random crops to see all of them: the long side of each is made so many
        pixels if it is longer, it lies at the top left, and the rest is 0.
    transform : fields of the preprocessing to override: resize, crop, mean, std, interpolation.
    label_from, split_folders : rules of the image list, see `featx.images.list_images`.
    """

    backbone: str = "densenet121"
    weights: str = "default"
    seed: int = 0
    cut: str = "penultimate"
    pool: str = "auto"
    decode: str = "fast"
    exif: bool = True
    max_pixels: int = 100_000_000
    engine: str = "auto"
    device: str = "auto"
    precision: str | None = None
    batch_size: int | None = None
    workers: int | None = None
    dtype: str = "float32"
    store_size: int | None = None
    transform: Mapping[str, Any] = field(default_factory=dict)
    label_from: str = "first"
    split_folders: bool | None = None

    def __post_init__(self) -> None:
        for name, allowed in (
            ("decode", ("fast", "exact")),
            ("dtype", ("float32", "float16")),
            ("label_from", ("first", "leaf")),
        ):
            if getattr(self, name) not in allowed:
                raise InputError(
                    f"{name} must be {' or '.join(allowed)}, got {getattr(self, name)!r}"
                )
        for name in ("batch_size", "workers", "max_pixels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        if self.cut == INPUT:
            self._check_pixels()
        elif self.store_size is not None:
            raise InputError(
                f"store_size is of pixels, at cut input; at cut {self.cut} features are stored. "
                "Leave it out, or extract the pixels in a run of their own"
            )

    def _check_pixels(self) -> None:
        """Refuse what cannot be done to pixels."""
        if self.store_size is not None and not 1 <= self.store_size <= MAX_STORE_SIZE:
            raise InputError(
                f"store_size must be 1 to {MAX_STORE_SIZE:,} pixels, got {self.store_size}"
            )
        if self.dtype != ExtractOptions.dtype:
            raise InputError(
                f"pixels (cut input) are stored as uint8, so {self.dtype} cannot be had for them; "
                "leave it out, or extract the other cuts in a run of their own"
            )
        if self.pool not in ("auto", "none"):
            raise InputError(
                f"pixels (cut input) are stored as they are, so pool {self.pool!r} cannot be had "
                "for them; use none, or extract the other cuts in a run of their own"
            )


@dataclass(frozen=True)
class ExtractRules:
    """How an extraction treats the cache that is there, and images that cannot be used.

    Attributes
    ----------
    fresh : start over, replacing what is there.
    prune : accept that the folder has moved, or that more than a tenth of its images or all of a
        class are gone.
    retry_failed : try images again whose content failed before; those that could not be read are
        tried on every run.
    rehash : read every file again, and the cache too; equal size and time of modification prove
        nothing.
    mix_plans : add rows even where machine, device or versions differ from those of the cache.
    max_failed : share of the images, 0 to 1, that may fail before the run counts as failed.
    on_error : ``record`` an image that cannot be used and go on, or ``stop`` at the first.
    max_size : what new caches may take, such as ``50GB``; ``none`` also where the disk has not
        that much room.
    """

    fresh: bool = False
    prune: bool = False
    retry_failed: bool = False
    rehash: bool = False
    mix_plans: bool = False
    max_failed: float = 0.1
    on_error: str = "record"
    max_size: str = "100GB"

    def __post_init__(self) -> None:
        size_in_bytes(self.max_size)
        if self.on_error not in ("record", "stop"):
            raise InputError(f"on_error must be record or stop, got {self.on_error!r}")
        if not 0 <= self.max_failed <= 1:
            raise InputError(
                f"max_failed must be a share from 0 to 1 (0.1 is a tenth), got {self.max_failed}"
            )


def make_spec(
    options: ExtractOptions,
    table: ImageTable,
    backbone: BackboneIdentity,
    front: FrontIdentity,
    feature_shape: tuple[int, ...],
    precision: str,
) -> dict[str, Any]:
    """What was asked, as JSON: the part of an extraction that decides what the features mean."""
    return {
        "schema": 1,
        "backbone": backbone.name,
        "weights_sha256": backbone.weights_sha256,
        "cut": front.cut,
        "pool": front.pool,
        "layout": front.layout,
        "shape": list(feature_shape),
        "transform": backbone.transform.to_dict(),
        "decode": options.decode,
        "exif": options.exif,
        "max_pixels": options.max_pixels,
        "precision": precision,
        "dtype": PIXEL_TYPE if front.is_pixels else options.dtype,
        **({} if options.store_size is None else {"store_size": options.store_size}),
        # how the images were found does not matter where the rules of their labels are the same
        "images": {name: rule for name, rule in table.rules.items() if name != "source"},
        **({"code_sha256": front.code_sha256} if front.code_sha256 else {}),
    }


def default_name(
    images: str | os.PathLike[str], options: ExtractOptions, backbone: BackboneIdentity
) -> str:
    """File name of a cache: the folder, the backbone, and every option that is not the default.

    ``birds-densenet121.h5``, ``birds-densenet121@features.denseblock3+pool=max.h5``.
    """
    name = f"{_source_name(images)}-{backbone.name.replace(':', '.')}"
    if options.cut != "penultimate":
        name += f"@{options.cut}"
    standard = ExtractOptions()
    extras: dict[str, str] = {}
    if options.weights != standard.weights:
        shown = backbone.weights if not Path(options.weights).exists() else ""
        if options.weights == "random":
            shown = "random" if options.seed == standard.seed else f"random{options.seed}"
        extras["weights"] = shown or backbone.weights_sha256[:8]
    for key in ("pool", "decode", "dtype", "precision", "store_size", "max_pixels", "label_from"):
        value = getattr(options, key)
        is_standard = value == getattr(standard, key) or (key == "precision" and value == "fp32")
        if not is_standard and not (options.cut == INPUT and key in _NOT_OF_PIXELS):
            extras[key] = str(value)
    if not options.exif:
        extras["exif"] = "off"
    if options.split_folders is not None:
        extras["split_folders"] = "on" if options.split_folders else "off"
    for key, value in sorted(options.transform.items()):
        text = ",".join(f"{v:g}" for v in value) if isinstance(value, (tuple, list)) else str(value)
        extras[key] = text
    name += "".join(f"+{key}={value}" for key, value in extras.items())
    if len(os.fsencode(name)) > _MAX_NAME_BYTES:
        digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
        name = os.fsencode(name)[:_MAX_NAME_BYTES].decode("utf-8", "ignore") + f"~{digest}"
    return name + ".h5"


def _source_name(images: str | os.PathLike[str]) -> str:
    """A short name for the images: the data set's, the folder's, or the list's without ending."""
    text = os.fspath(images)
    place = find(text)
    if place is not None:
        return place.name.partition(":")[2]
    if _MAGIC & set(text) and not Path(text).exists():
        parts = Path(text).parts
        plain = next(i for i, part in enumerate(parts) if _MAGIC & set(part))
        text = str(Path(*parts[:plain]))
    path = Path(text).resolve()
    if path.is_file():
        return path.stem
    if path.name.lower() in _SPLIT_FOLDERS:
        return f"{path.parent.name}-{path.name}".lstrip("-")
    return path.name or "images"
