"""The benchmark's photographs: chosen from a folder, or drawn with the statistics of nature.

Drawn ones have the amplitude spectrum of natural scenes, about 1/f (Field, "Relations between the
statistics of natural images and the response properties of cortical cells", JOSA A 1987), and their
order of colour contrasts: light, then blue against yellow, then red against green (Ruderman, Cronin
and Chiao, "Statistics of cone responses to natural images", JOSA A 1998). What matters here is that
decoding, resizing and a network find as much to do in them as in photographs, so they are saved at
the quality and about the size in bytes of photographs from the web.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, UnidentifiedImageError

WIDTH, HEIGHT = 500, 375
QUALITY: Final = 92
PER_FOLDER: Final = 50
_SUFFIXES: Final = (".jpg", ".jpeg", ".png")  # what every peer takes
_ORIENTATION: Final = 0x0112  # EXIF; 2 to 8 ask for a turn
# Light, blue against yellow, red against green: contrast of each, and what it adds to R, G, B.
_CONTRASTS: Final = np.array([0.19, 0.05, 0.02])
_AXES: Final = np.array([[1.0, 1.0, 1.0], [-0.6, -0.6, 1.2], [1.0, -1.0, 0.0]])


@dataclass(frozen=True)
class Gathered:
    """Images ready for every peer.

    Attributes
    ----------
    folder : class folders with the images.
    count, size_bytes : how many they are, and the sum of their files.
    left_out : images that not every peer could take the same way, counted by reason.
    source : where they come from, for the results.
    """

    folder: Path
    count: int
    size_bytes: int
    left_out: dict[str, int]
    source: str


def photograph(rng: np.random.Generator, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """One drawn photograph, (height, width, 3) uint8."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = np.inf  # the mean is set below
    spectrum = frequency ** -rng.uniform(1.0, 1.4)
    noise = np.fft.rfft2(rng.standard_normal((3, height, width)))
    fields = np.fft.irfft2(noise * spectrum, s=(height, width))  # (3, height, width)
    fields /= fields.std(axis=(1, 2), keepdims=True)
    contrasts = _CONTRASTS * rng.uniform(0.7, 1.3, 3)
    pixels = np.einsum("phw,p,pc->hwc", fields, contrasts, _AXES) + rng.uniform(0.35, 0.6)
    return np.asarray((pixels * 255).clip(0, 255), dtype=np.uint8)


def draw_photographs(folder: Path, n: int, *, seed: int = 0) -> None:
    """Write `n` drawn JPEG files in class folders below `folder`; every fourth stands upright."""
    for i in range(n):
        rng = np.random.default_rng((seed, i))
        size = (HEIGHT, WIDTH) if i % 4 == 3 else (WIDTH, HEIGHT)
        path = folder / f"class{i // PER_FOLDER:04d}" / f"{i:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photograph(rng, *size)).save(path, quality=QUALITY)


def gather(images: Path, folder: Path, *, n: int | None = None) -> Gathered:
    """Put `n` images of `images`, evenly spread over it, into `folder`, and read each once.

    Images that the peers treat differently are left out and counted: featx turns them as their
    EXIF data say and composes transparency, the others do not, and all but featx end at a file
    that is no image.

    Raises
    ------
    ValueError
        There are fewer than `n` images that all can use, or none.
    """
    left_out: Counter[str] = Counter()
    usable = []
    for path in sorted(images.rglob("*")):
        if path.suffix.lower() not in _SUFFIXES or not path.is_file():
            continue
        reason = _unusable(path)
        if reason:
            left_out[reason] += 1
        else:
            usable.append(path)
    wanted = len(usable) if n is None else n
    if not 0 < wanted <= len(usable):
        raise ValueError(f"{images} has {len(usable)} images that every peer takes; asked: {n}")
    size_bytes = 0
    for i in range(wanted):
        path = usable[i * len(usable) // wanted]
        inside = path.relative_to(images)
        target = folder / (inside if len(inside.parts) > 1 else Path("images", inside))
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, target)
        except OSError:  # another file system
            shutil.copyfile(path, target)
        size_bytes += len(target.read_bytes())  # from here on it is in memory
    return Gathered(folder, wanted, size_bytes, dict(left_out), images.name)


def _unusable(path: Path) -> str:
    """Why not every peer could take this image the same way; empty where all can."""
    with contextlib.suppress(UnidentifiedImageError, OSError), Image.open(path) as image:
        if image.getexif().get(_ORIENTATION, 1) in range(2, 9):
            return "turned by EXIF"
        return "" if image.mode in ("RGB", "L") else f"of mode {image.mode}"
    return "no image"
