"""A small folder of drawn birds: the sample images of `featx demo`, by numpy and Pillow alone.

Each picture is a bird on a random scene. The species decides shape and plumage; everything else
(scene, light, clutter, place, size, turn, direction, pose) is drawn from one random stream that
knows nothing of the species, so that a classifier can only succeed by looking at the bird.
"""

from __future__ import annotations

import io
import math
import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from featx.drawing.birds import PAINTERS, Brush, Pose
from featx.drawing.scenes import blade, scene, uniform
from featx.errors import InputError
from featx.image_sources import is_hidden

SPECIES: tuple[str, ...] = tuple(PAINTERS)
"""The class folders `draw_birds` writes, sorted."""

_OVERSAMPLING = 2  # shapes are drawn so many times larger and then averaged: smooth edges
_MIN_SIZE_PX = 64  # below this the species cannot be told apart


def _bird(rng: np.random.Generator, size: tuple[int, int], species: str) -> Image.Image:
    """One bird on a transparent layer of `size`, in any pose, place and size."""
    w, h = size
    reach = uniform(rng, 0.36, 0.44) * min(w, h)  # pixels of one bird unit
    flip = 1.0 if rng.random() < 0.5 else -1.0
    turn = math.radians(uniform(rng, -14, 14))
    stretch = uniform(rng, 0.93, 1.07)
    centre = (w * uniform(rng, 0.45, 0.55), h * uniform(rng, 0.44, 0.56))
    linear = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    linear = linear @ np.diag([flip * stretch, 1 / stretch]) * reach
    matrix = np.concatenate([linear, np.array(centre)[:, None]], axis=1) * _OVERSAMPLING
    tint = uniform(rng, 0.92, 1.03) * (1 + (rng.random(3) - 0.5) * 0.08)
    layer = Image.new("RGBA", (w * _OVERSAMPLING, h * _OVERSAMPLING))
    pose = Pose(*(2 * rng.random(4) - 1).tolist())
    PAINTERS[species](Brush(layer, matrix, tint), pose)
    return layer.reduce(_OVERSAMPLING)


def _picture(
    rng: np.random.Generator, species: str, size_px: int, aspect: float = 1.0
) -> Image.Image:
    """One complete picture: scene, shadow, bird in its light, grass before it, grain."""
    w, h = (round(side * uniform(rng, 0.9, 1.2)) for side in (size_px, size_px * aspect))
    image, ground = scene(rng, (w, h))
    layer = _bird(rng, (w, h), species)
    alpha = layer.getchannel("A")
    shadow = alpha.filter(ImageFilter.GaussianBlur(0.02 * w)).point(lambda a: a // 3)
    image.paste((40, 40, 44), (round(0.02 * w), round(0.03 * h)), shadow)
    light = np.linspace(1.1, 0.82, h)[:, None, None]  # from above
    feathers = 1 + (rng.random((h, w, 1)) - 0.5) * 0.12
    plumage = np.asarray(layer.convert("RGB")) * light * feathers
    image.paste(Image.fromarray(np.clip(plumage, 0, 255).astype(np.uint8)), (0, 0), alpha)
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(0, 26))):
        blade(draw, rng, (w, h), ground)
    grain = rng.integers(-7, 8, size=(h, w, 1))
    exposure = uniform(rng, 0.93, 1.03)
    pixels = np.clip(np.asarray(image) * exposure + grain, 0, 255)
    return Image.fromarray(pixels.astype(np.uint8))


def _jpeg(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=90)
    return stream.getvalue()


def _check_folder(folder: Path, wanted: set[Path]) -> None:
    """Refuse a folder that holds anything else: drawings never mix with somebody's photographs.

    What no listing of images takes up, as the .DS_Store of a file manager, is nothing else.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, not a folder; name a new or empty folder to draw in")
    inside = folder.rglob("*") if folder.is_dir() else ()
    others = sorted(
        path
        for path in inside
        if not path.is_dir()
        and path not in wanted
        and not any(is_hidden(os.fsencode(name)) for name in path.relative_to(folder).parts)
    )
    if others:
        raise InputError(
            f"{folder} already holds {len(others)} other file{'s' if len(others) > 1 else ''} "
            f"(the first: {others[0].relative_to(folder)}); name a new or empty folder to draw in"
        )


def draw_birds(
    folder: str | os.PathLike[str],
    *,
    seed: int = 0,
    images_per_species: int = 24,
    size_px: int = 256,
    aspect: float = 1.0,
) -> tuple[Path, ...]:
    """Draw a labelled folder of birds: one class folder for each name in `SPECIES`.

    The same arguments give the same bytes on one version of Pillow and numpy. A file that already
    holds them is left untouched, so a second call changes nothing.

    Parameters
    ----------
    folder
        A folder that is new, empty, or was drawn before with the same number of images or fewer;
        hidden files in it are left alone.
    seed
        Any integer from 0; another seed gives other pictures of the same species.
    images_per_species
        Pictures in each class folder, at least 1.
    size_px
        About how wide and high the pictures are, in pixels, at least 64: each side of each
        picture is 0.9 to 1.2 times as long.
    aspect
        Height over width, at most 1: the pictures are about ``size_px * aspect`` high, at least 64.

    Returns
    -------
    tuple of Path
        The files, JPEG, sorted by species and number.

    Raises
    ------
    InputError
        For a folder that holds other files, and for a number out of range.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     files = draw_birds(folder, images_per_species=1, size_px=64)
    ...     [file.parent.name for file in files][:3]
    ['Blue_jay', 'Grue_cendrée', 'Mallard_duck']
    """
    for name, value, least in (
        ("seed", seed, 0),
        ("images_per_species", images_per_species, 1),
        ("size_px", size_px, _MIN_SIZE_PX),
    ):
        if value < least:
            raise InputError(f"{name} must be at least {least}; got {value}")
    if not _MIN_SIZE_PX / size_px <= aspect <= 1:
        raise InputError(
            f"aspect must be at most 1, and size_px times aspect at least {_MIN_SIZE_PX}; "
            f"got {aspect} and {size_px}"
        )
    folder = Path(folder)
    files = {
        folder / species / f"{species.lower()}_{number + 1:02d}.jpg": (species, (seed, row, number))
        for row, species in enumerate(SPECIES)
        for number in range(images_per_species)
    }
    _check_folder(folder, set(files))
    for file, (species, entropy) in files.items():
        # A stream for each picture: the first ten are the same whether 10 or 100 are drawn.
        data = _jpeg(_picture(np.random.default_rng(entropy), species, size_px, aspect))
        if not (file.is_file() and file.read_bytes() == data):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
    return tuple(files)
