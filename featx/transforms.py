"""A preprocessing transform as data: how pixels become a network's input, exactly and fast.

The transform of a published network is torchvision's `ImageClassification`: resize the short side,
crop the centre, scale to 0..1, normalise. `exact` gives its bits as it works on Pillow images;
`fast` leaves out what the crop does not keep, and may be 1 of 255 off.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from featx.errors import ImageError, InputError
from featx.resampling import (
    INTERPOLATIONS,
    MAX_SHRINKING,
    MAX_WINDOW_BYTES,
    Axis,
    Window,
    image_of,
    pixels_of,
    resized_window,
)

if TYPE_CHECKING:
    import torch
    from PIL import Image

# Resizing the short side of a strip of 1 x 20,000 pixels to 256 would need 1.3 gigapixels, of 4
# bytes each in Pillow.
MAX_RESIZED_PIXELS = 100_000_000
# Pillow resizes along the rows, then along the columns, rounding between. Since Pillow 13 pictures
# taller than twice their width go the other way round (python-pillow/Pillow#9549).
MAX_ROWS_FIRST = 1.9  # height over width
TOO_LARGE = 4  # the cache's status code
_NUMBERS = {3: "three finite numbers (red, green, blue)", 1: "one finite number (grey)"}


@dataclass(frozen=True)
class Transform:
    """Resize the short side, crop the centre, normalise.

    Attributes
    ----------
    resize : short side after resizing, in pixels; None: not resized.
    crop : side of the centre crop, in pixels; where the picture is smaller, black is added.
    mean, std : one number a channel, on the scale 0..1.
    interpolation : bilinear, bicubic, nearest, box, hamming or lanczos.
    antialias : True; Pillow always does, and so does `fast`.
    channels : 3 of RGB, or 1 of grey (`featx.image_modes.grey_of`).

    Raises
    ------
    InputError
        For a value outside these, in one sentence.

    Examples
    --------
    >>> transform = Transform(resize=256, crop=224, mean=(0.5,) * 3, std=(0.5,) * 3)
    >>> transform.resize_crop(np.zeros((300, 400, 3), np.uint8), mode="exact").shape
    (224, 224, 3)
    """

    resize: int | None
    crop: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"
    antialias: bool = True
    channels: int = 3

    def __post_init__(self) -> None:
        for name in ("resize", "crop"):
            value = getattr(self, name)
            if value is None and name == "resize":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 10_000:
                raise InputError(
                    f"{name} must be a whole number of pixels, 1 to 10,000, got {value!r}"
                )
        if self.channels not in _NUMBERS or isinstance(self.channels, bool):
            raise InputError(f"channels must be 3 (RGB) or 1 (grey), got {self.channels!r}")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if not _are_numbers(values, self.channels):
                expected = _NUMBERS[self.channels]
                raise InputError(f"{name} must be {expected}, got {values!r}")
            object.__setattr__(self, name, tuple(float(v) for v in values))
        if min(self.std) <= 0:
            raise InputError(f"std must be above 0 in every channel, got {self.std}")
        if self.interpolation not in INTERPOLATIONS:
            raise InputError(
                f"interpolation must be one of {', '.join(INTERPOLATIONS)}, "
                f"got {self.interpolation!r}"
            )
        if self.antialias is not True:
            raise InputError(
                f"antialias must be True, got {self.antialias!r}: published transforms resize "
                "Pillow images, which is always antialiased"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the transform as plain JSON values."""
        values = dataclasses.asdict(self) | {"mean": list(self.mean), "std": list(self.std)}
        if self.channels == 3:  # as before there were others: fingerprints stay as they are
            del values["channels"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Transform:
        """Return the transform of `to_dict`; raise `InputError` for other fields or values."""
        names = {field.name for field in dataclasses.fields(cls)}
        missing = names - {"interpolation", "antialias", "channels"} - set(values)
        if missing or set(values) - names:
            raise InputError(
                f"a transform has the fields {', '.join(sorted(names))}; got "
                f"{', '.join(sorted(map(str, values)))}"
            )
        return cls(**values)

    @classmethod
    def from_preset(cls, preset: Any) -> Transform:
        """Return the transform of a published network.

        Parameters
        ----------
        preset
            torchvision's ``weights.transforms()`` (`ImageClassification`), or timm's data config
            (the dictionary of ``timm.data.resolve_data_config``).

        Raises
        ------
        InputError
            For what a `Transform` cannot say: a crop that is not square, squashing, borders.
        """
        if isinstance(preset, Mapping):
            return cls._from_timm(preset)
        try:
            crop, resize = list(preset.crop_size), list(preset.resize_size)
            mean, std = tuple(preset.mean), tuple(preset.std)
            interpolation = str(getattr(preset.interpolation, "value", preset.interpolation))
        except (AttributeError, TypeError) as error:
            raise InputError(
                "a preset must have crop_size, resize_size, mean, std and interpolation, as "
                f"torchvision's ImageClassification has; got {preset!r}"
            ) from error
        if len(resize) != 1 or len(set(crop)) != 1:
            raise InputError(
                f"the preset resizes to {resize} and crops to {crop}; only a short side and a "
                "square crop can be represented"
            )
        return cls(resize[0], crop[0], mean, std, _pillow_name(interpolation))

    @classmethod
    def _from_timm(cls, config: Mapping[str, Any]) -> Transform:
        """Return the evaluation transform of a timm config (timm/data/transforms_factory.py)."""
        try:
            channels, h, w = config["input_size"]
            mean, std = tuple(config["mean"]), tuple(config["std"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"a timm data config must have input_size (3, h, w), mean and std; got {config!r}"
            ) from error
        crop_mode = config.get("crop_mode") or "center"
        if crop_mode != "center" or h != w or channels != 3:
            raise InputError(
                f"a crop of {h} x {w} in mode {crop_mode!r} from {channels} channels cannot be "
                "represented; only a square centre crop of RGB can"
            )
        # timm's default and its rounding: DEFAULT_CROP_PCT, transforms_imagenet_eval
        resize = math.floor(h / (config.get("crop_pct") or 0.875))
        return cls(resize, h, mean, std, _pillow_name(config.get("interpolation") or "bilinear"))

    def replace(self, **overrides: Any) -> Transform:
        """Return the transform with fields replaced; raise `InputError` for unknown ones."""
        return Transform.from_dict({**dataclasses.asdict(self), **overrides})

    def resize_crop(
        self, pixels: np.ndarray, *, mode: Literal["exact", "fast"] = "fast"
    ) -> np.ndarray:
        """Return the centre of a picture, resized and cropped.

        Parameters
        ----------
        pixels : (h, w, channels) uint8.
        mode
            `exact`: the bits of torchvision's transform on Pillow images. `fast`: at most 1 of 255
            off for any picture. Bilinear and bicubic ones take a sixth of the time on a processor
            with AVX2, half with any compiled kernel (`featx doctor`), else nine tenths. The bits
            are the same while Pillow keeps to the order of its two passes.

        Returns
        -------
        (crop, crop, channels) uint8 array
            C-contiguous and writable.

        Raises
        ------
        ImageError
            Status 4 when the resized picture would have more than 100 megapixels.
        """
        if mode not in ("exact", "fast"):
            raise InputError(f"mode must be 'exact' or 'fast', got {mode!r}")
        h, w = pixels.shape[:2]
        new_h, new_w = self._resized_size(h, w)
        if (new_h, new_w) == (h, w):
            return _center_crop(pixels, self.crop)
        if mode == "fast" and h <= MAX_ROWS_FIRST * w:
            (top, _), (left, _) = _span(new_h, self.crop), _span(new_w, self.crop)
            shape = min(self.crop, new_h), min(self.crop, new_w)
            part = resized_window(pixels, (new_h, new_w), (top, left), shape, self.interpolation)
            return part if shape == (self.crop, self.crop) else _center_crop(part, self.crop)
        return _crop_of_resized(pixels, new_h, new_w, self.crop, INTERPOLATIONS[self.interpolation])

    def shrunk(
        self, pixels: np.ndarray, side: int, *, mode: Literal["exact", "fast"] = "fast"
    ) -> np.ndarray:
        """Return a whole picture (h, w, c) uint8, its long side `side` if it was longer.

        By Pillow's filter of `interpolation`, and in the ways of `resize_crop`. A smaller picture
        is returned as it is.
        """
        h, w = pixels.shape[:2]
        long = max(h, w)
        if long <= side:
            return pixels
        new = new_h, new_w = max(1, round(side * h / long)), max(1, round(side * w / long))
        if mode == "fast" and h <= MAX_ROWS_FIRST * w:
            return resized_window(pixels, new, (0, 0), new, self.interpolation)
        resample = INTERPOLATIONS[self.interpolation]
        return pixels_of(_resized(pixels, new_h, new_w, resample))

    def window(self, h: int, w: int) -> Window | None:
        """Return the part of an h x w picture that `resize_crop` needs, if others may resize it.

        `featx.device_resize` makes of it the bits of `resize_crop` in mode `fast`.

        Returns
        -------
        None where the picture is to be resized here: another filter than the bilinear, a tall
        picture, one more than four times too large, or of which more than 1 MB would be needed;
        and where nothing is resized.

        Raises
        ------
        ImageError
            As `resize_crop`.
        """
        new_h, new_w = self._resized_size(h, w)
        if (
            (new_h, new_w) == (h, w)
            or self.interpolation != "bilinear"
            or h > MAX_ROWS_FIRST * w
            or max(h / new_h, w / new_w) > MAX_SHRINKING
        ):
            return None
        (top, above), (left, before) = _span(new_h, self.crop), _span(new_w, self.crop)
        window = Window(
            Axis(h, new_h, top, min(self.crop, new_h), above),
            Axis(w, new_w, left, min(self.crop, new_w), before),
            self.crop,
            self.channels,
        )
        return window if math.prod(window.shape) <= MAX_WINDOW_BYTES else None

    def _resized_size(self, h: int, w: int) -> tuple[int, int]:
        """Return height and width after resizing, truncated as torchvision does.

        torchvision.transforms.functional._compute_resized_output_size
        """
        if self.resize is None:
            return h, w
        short, long = min(h, w), max(h, w)
        new_long = int(self.resize * long / short)
        if self.resize * new_long > MAX_RESIZED_PIXELS:
            raise ImageError(
                f"{w:,} x {h:,} pixels would become {self.resize:,} x {new_long:,} = "
                f"{self.resize * new_long:,}, more than {MAX_RESIZED_PIXELS:,}",
                status=TOO_LARGE,
            )
        return (new_long, self.resize) if w <= h else (self.resize, new_long)

    def normalise(self, batch: torch.Tensor) -> torch.Tensor:
        """Return a batch as the network takes it.

        The operations are those of torchvision's `convert_image_dtype` and `normalize`, in their
        order, so that the bits are the same on every device.

        Parameters
        ----------
        batch : (n, channels, h, w) uint8 tensor on any device; not changed.

        Returns
        -------
        (n, channels, h, w) float32 tensor on the same device
        """
        import torch

        mean = torch.as_tensor(self.mean, dtype=torch.float32, device=batch.device)
        std = torch.as_tensor(self.std, dtype=torch.float32, device=batch.device)
        scaled = batch.to(torch.float32).div_(255.0)
        return scaled.sub_(mean.view(-1, 1, 1)).div_(std.view(-1, 1, 1))


def _are_numbers(values: object, n: int) -> bool:
    return (
        isinstance(values, Sequence)
        and not isinstance(values, str)
        and len(values) == n
        and all(isinstance(v, int | float) and math.isfinite(v) for v in values)
    )


def _pillow_name(interpolation: str) -> str:
    """Return the name among `INTERPOLATIONS` that means the same on Pillow images."""
    return "nearest" if interpolation == "nearest-exact" else interpolation


def _span(size: int, crop: int) -> tuple[int, int]:
    """Return where a centre crop starts in an axis, and the black before it (one of them is 0).

    torchvision.transforms.functional.center_crop: rounds half to even, pads the smaller half first.
    """
    return (round((size - crop) / 2.0), 0) if size >= crop else (0, (crop - size) // 2)


def _center_crop(pixels: np.ndarray, crop: int) -> np.ndarray:
    """Return (crop, crop, c): the centre of the picture, black where it does not reach."""
    h, w = pixels.shape[:2]
    (top, above), (left, before) = _span(h, crop), _span(w, crop)
    part = pixels[top : top + crop, left : left + crop]
    if part.shape[:2] == (crop, crop):
        return part.copy()
    out = np.zeros((crop, crop, pixels.shape[2]), np.uint8)
    out[above : above + part.shape[0], before : before + part.shape[1]] = part
    return out


def _resized(pixels: np.ndarray, h: int, w: int, resample: int) -> Image.Image:
    """Return Pillow's resize to h x w.

    One call of Pillow, as torchvision makes it: which of its two passes comes first depends on its
    version and the shape, so that doing them apart would not keep the bits for sure.
    """
    from PIL import Image

    return image_of(pixels).resize((w, h), Image.Resampling(resample))


def _crop_of_resized(pixels: np.ndarray, h: int, w: int, crop: int, resample: int) -> np.ndarray:
    """Return (crop, crop, c): the centre of `_resized`."""
    resized = _resized(pixels, h, w, resample)
    (top, _), (left, _) = _span(h, crop), _span(w, crop)
    # Cut in Pillow, so that only the crop is turned into an array.
    part = resized.crop((left, top, min(left + crop, w), min(top + crop, h)))
    return _center_crop(pixels_of(part), crop)
