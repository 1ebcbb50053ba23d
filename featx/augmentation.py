"""Random changes to stored pixels, made anew each time a network is trained on them.

A picture is cut out, resized, mirrored, turned and given other colours on the device that trains.
What is random is drawn on the CPU, for each picture by itself, so that a generator gives the same
pictures on every device but for rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Generator, Tensor

from featx.batch_resize import Spans, resized
from featx.errors import InputError
from featx.transforms import Transform

# What a word without a number stands for.
WORDS: Final[Mapping[str, float]] = {
    "flip": 0.5,
    "crop": 0.08,
    "pad": 4,
    "color": 0.4,
    "rotate": 15,
}
_TRIES: Final = 10  # to find a part that fits, as torchvision's RandomResizedCrop
_RATIO: Final = (3 / 4, 4 / 3)  # width over height of such a part (Szegedy et al. 2015)
_GREY: Final = (0.2989, 0.587, 0.114)  # torchvision's rgb_to_grayscale


@dataclass(frozen=True)
class Augmentation:
    """What is done to pictures at random; calling it does it to a batch.

    Attributes
    ----------
    transform : the preprocessing of the network; where nothing is cut out, its resize and centre
        crop are what is begun with, as in `plain`.
    flip : probability, 0 to 1, of a mirrored picture.
    crop : least share of a picture's area, above 0 to 1, that is cut out and resized, as by
        torchvision's `RandomResizedCrop`; 0: none is.
    pad : pixels of black that may come in at each side, as the picture is shifted: a random crop of
        the padded picture (He et al. 2016, for CIFAR with 4).
    color : brightness, contrast and saturation are each multiplied by 1 - color to 1 + color, in
        random order, as by torchvision's `ColorJitter`.
    rotate : largest angle in degrees, either way round; the corners become black.

    Raises
    ------
    InputError
        For a value outside these; for `crop` and `pad` together, which both choose the part.

    Examples
    --------
    >>> transform = Transform(resize=36, crop=32, mean=(0.5,) * 3, std=(0.5,) * 3)
    >>> augment = Augmentation.parse("flip,pad=2", transform)
    >>> augment.words
    'flip,pad=2'
    >>> pixels = torch.zeros((4, 32, 32, 3), dtype=torch.uint8)
    >>> augment(pixels, None, torch.Generator().manual_seed(0)).shape
    torch.Size([4, 3, 32, 32])
    """

    transform: Transform
    flip: float = 0.0
    crop: float = 0.0
    pad: int = 0
    color: float = 0.0
    rotate: float = 0.0

    def __post_init__(self) -> None:
        highest = {"flip": 1, "crop": 1, "pad": self.transform.crop, "color": 1, "rotate": 180}
        for name, most in highest.items():
            value = getattr(self, name)
            if not 0 <= value <= most:
                raise InputError(f"augment {name} must be a number from 0 to {most}, got {value}")
        if self.pad != int(self.pad):
            raise InputError(f"augment pad must be a whole number of pixels, got {self.pad}")
        if self.crop and self.pad:
            raise InputError("augment takes crop or pad, not both: each chooses the part by itself")

    @classmethod
    def parse(cls, words: str, transform: Transform) -> Augmentation:
        """Return what words such as ``flip,crop,color`` or ``flip,crop=0.35`` ask for.

        Raises
        ------
        InputError
            For a word that is none of `WORDS`, one that comes twice, and for no number after ``=``.
        """
        asked: dict[str, float] = {}
        for word in filter(None, (part.strip() for part in words.split(","))):
            name, _, number = word.partition("=")
            if name not in WORDS or name in asked:
                twice = "twice" if name in asked else f"unknown; known are {', '.join(WORDS)}"
                raise InputError(f"augment word {name!r} is {twice}")
            try:
                asked[name] = float(number) if "=" in word else WORDS[name]
            except ValueError as error:
                raise InputError(f"augment {word!r} has no number after =") from error
        return cls(transform, **asked)  # type: ignore[arg-type]  # a pad of whole pixels is checked

    @property
    def words(self) -> str:
        """What `parse` takes to the same; empty where nothing is random."""
        asked = {name: getattr(self, name) for name in WORDS}
        return ",".join(
            name if value == WORDS[name] else f"{name}={value:g}"
            for name, value in asked.items()
            if value
        )

    def __call__(self, pixels: Tensor, extent: Tensor | None, generator: Generator) -> Tensor:
        """Pictures as a network is trained on them, before its mean and std.

        Parameters
        ----------
        pixels : (b, h, w, c) uint8 on any device, as a cache of the cut `input` has them.
        extent : (b, 2), height and width of what is picture; None where pictures are stored
            cropped.
        generator : of the CPU.

        Returns
        -------
        (b, c, crop, crop) float32 in 0 to 1, on that device.
        """
        b, size = len(pixels), self.transform.crop
        heights, widths = _sizes(pixels, extent, self.transform)
        if self.crop:
            down, across = _random_parts(heights, widths, self.crop, size, generator)
        else:
            down, across = _centre_parts(heights, widths, self.transform, extent is not None)
        if self.pad:
            shifts = torch.randint(-int(self.pad), int(self.pad) + 1, (2, b), generator=generator)
            down, across = down.shifted(shifts[0]), across.shifted(shifts[1])
        if self.crop or self.pad or extent is not None:
            made = resized(pixels, down, across, size, self.transform.interpolation).div_(255)
        else:
            made = _as_they_are(pixels)
        if self.flip:
            mirrored = torch.rand(b, generator=generator) < self.flip
            there = mirrored.to(made.device)[:, None, None, None]
            made = torch.where(there, made.flip(-1), made)
        if self.rotate:
            angles = _uniform(b, -self.rotate, self.rotate, generator)
            made = rotated(made, angles)
        return jittered(made, self.color, generator) if self.color else made


def plain(pixels: Tensor, extent: Tensor | None, transform: Transform) -> Tensor:
    """Stored pictures as a network is tested on them, before its mean and std.

    Parameters
    ----------
    pixels, extent : as of `Augmentation`.
    transform : of the network; whole pictures are resized and cropped as it says.

    Returns
    -------
    (b, c, crop, crop) float32 in 0 to 1, on the device of `pixels`.
    """
    heights, widths = _sizes(pixels, extent, transform)
    if extent is None:
        return _as_they_are(pixels)
    down, across = _centre_parts(heights, widths, transform, True)
    return resized(pixels, down, across, transform.crop, transform.interpolation).div_(255)


def rotated(pictures: Tensor, angles: Tensor) -> Tensor:
    """Pictures (b, c, s, s) turned by `angles` (b,) in degrees, counter-clockwise as torchvision's.

    Bilinear; what comes from outside is black.
    """
    turn = torch.deg2rad(angles).to(pictures.device, torch.float32)
    sin, cos, none = turn.sin(), turn.cos(), torch.zeros_like(turn)
    there = torch.stack([cos, -sin, none, sin, cos, none], dim=1).view(-1, 2, 3)
    with torch.autocast(pictures.device.type, enabled=False):
        grid = torch.nn.functional.affine_grid(there, list(pictures.shape), align_corners=False)
        return torch.nn.functional.grid_sample(pictures, grid, align_corners=False)


def jittered(pictures: Tensor, strength: float, generator: Generator) -> Tensor:
    """Pictures (b, c, s, s) in 0 to 1 of other brightness, contrast and saturation."""
    b = len(pictures)
    factors = _uniform((3, b), 1 - strength, 1 + strength, generator).to(torch.float32)
    order = torch.rand((b, 3), generator=generator).argsort(dim=1)  # of each picture its own
    made = pictures.clone()
    for step in range(3):
        for number, change in enumerate(COLOUR_CHANGES.values()):
            rows = (order[:, step] == number).nonzero()[:, 0]
            there = rows.to(made.device)
            made[there] = change(made[there], factors[number, rows].to(made.device))
    return made


def _brightness(pictures: Tensor, factors: Tensor) -> Tensor:
    return _blended(pictures, torch.zeros_like(pictures[:, :1]), factors)


def _contrast(pictures: Tensor, factors: Tensor) -> Tensor:
    return _blended(pictures, _grey(pictures).mean(dim=(1, 2, 3), keepdim=True), factors)


def _saturation(pictures: Tensor, factors: Tensor) -> Tensor:
    return _blended(pictures, _grey(pictures), factors)


# By the names of torchvision's ColorJitter; pictures (b, c, s, s) and factors (b,).
COLOUR_CHANGES: Final[Mapping[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "brightness": _brightness,
    "contrast": _contrast,
    "saturation": _saturation,
}


def _blended(pictures: Tensor, others: Tensor, factors: Tensor) -> Tensor:
    share = factors[:, None, None, None]
    return (share * pictures + (1 - share) * others).clamp_(0, 1)


def _grey(pictures: Tensor) -> Tensor:
    """(b, 1, s, s) of one or three channels."""
    if pictures.shape[1] == 1:
        return pictures
    weights = torch.tensor(_GREY, device=pictures.device).view(-1, 1, 1)
    return (pictures * weights).sum(dim=1, keepdim=True)


def _as_they_are(pixels: Tensor) -> Tensor:
    return pixels.permute(0, 3, 1, 2).to(torch.float32).div_(255)


def _sizes(pixels: Tensor, extent: Tensor | None, transform: Transform) -> tuple[Tensor, Tensor]:
    """(b,) float64 heights and widths of what is picture."""
    b, h, w, _ = pixels.shape
    if extent is not None:
        height, width = extent.to("cpu", torch.float64).unbind(dim=1)
        return height, width
    if (h, w) != (transform.crop, transform.crop):
        raise InputError(
            f"pictures of {h} x {w} pixels are not cropped to {transform.crop}, so it must be said "
            "how much of each is picture (extent)"
        )
    side = torch.full((b,), float(h), dtype=torch.float64)
    return side, side


def _centre_parts(
    heights: Tensor, widths: Tensor, transform: Transform, is_whole: bool
) -> tuple[Spans, Spans]:
    """Along both axes: the short side resized and the centre kept, by the rules of `Transform`."""
    new_h, new_w = heights, widths
    if is_whole and transform.resize is not None:
        shorter = torch.minimum(heights, widths)
        # torchvision.transforms.functional._compute_resized_output_size
        new_h, new_w = ((transform.resize * side / shorter).floor() for side in (heights, widths))
    return _centred(heights, new_h, transform.crop), _centred(widths, new_w, transform.crop)


def _centred(side: Tensor, new: Tensor, crop: int) -> Spans:
    """The whole of an axis, resized to `new` pixels, of which the middle `crop` are kept."""
    # torchvision.transforms.functional.center_crop
    first = torch.where(new >= crop, ((new - crop) / 2).round(), -((crop - new) / 2).floor())
    return Spans(torch.zeros_like(side), side, new, first)


def _random_parts(
    heights: Tensor, widths: Tensor, least: float, size: int, generator: Generator
) -> tuple[Spans, Spans]:
    """Parts of random area, shape and place, as torchvision's RandomResizedCrop draws them."""
    b = len(heights)
    area = (heights * widths)[:, None] * _uniform((b, _TRIES), least, 1, generator)
    low, high = (math.log(ratio) for ratio in _RATIO)
    ratio = _uniform((b, _TRIES), low, high, generator).exp()
    w, h = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (w > 0) & (h > 0) & (w <= widths[:, None]) & (h <= heights[:, None])
    first = fits.to(torch.int8).argmax(dim=1, keepdim=True)  # the first that fits
    found = fits.any(dim=1)
    w, h = w.gather(1, first)[:, 0], h.gather(1, first)[:, 0]
    place = torch.rand((2, b), generator=generator, dtype=torch.float64)
    top = (place[0] * (heights - h + 1)).floor()
    left = (place[1] * (widths - w + 1)).floor()
    # where none fits, as much of the middle as the shape allows
    w_else = torch.minimum(widths, (heights * _RATIO[1]).round())
    h_else = torch.minimum(heights, (widths / _RATIO[0]).round())
    w, h = torch.where(found, w, w_else), torch.where(found, h, h_else)
    top = torch.where(found, top, ((heights - h) / 2).floor())
    left = torch.where(found, left, ((widths - w) / 2).floor())
    n, none = torch.full_like(h, size), torch.zeros_like(h)
    return Spans(top, top + h, n, none), Spans(left, left + w, n, none)


def _uniform(shape: int | tuple[int, ...], low: float, high: float, generator: Generator) -> Tensor:
    """Numbers from `low` to `high`, float64."""
    drawn = torch.rand(shape, generator=generator, dtype=torch.float64)
    return low + (high - low) * drawn
