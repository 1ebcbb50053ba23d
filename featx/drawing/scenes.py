"""What is behind and before the bird; nothing here knows which species it is."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Colour = tuple[float, float, float]  # red, green, blue, 0 to 255
Point = tuple[float, float]

# Far colour, near colour, ground colour of each scene: muted, as what lies out of focus is, so that
# the plumage and not the scene decides what even an untrained network sees.
_SCENES: tuple[tuple[Colour, Colour, Colour], ...] = (
    ((123, 153, 176), (172, 184, 186), (119, 139, 98)),  # clear sky over a meadow
    ((100, 127, 97), (145, 161, 113), (105, 113, 84)),  # leaves
    ((184, 150, 118), (192, 177, 145), (131, 118, 98)),  # evening
    ((148, 159, 160), (167, 175, 173), (136, 143, 134)),  # mist
    ((134, 160, 160), (160, 177, 172), (108, 134, 139)),  # lake
    ((162, 155, 134), (178, 174, 154), (153, 139, 111)),  # sand
)


def uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A number from `low` to `high`."""
    return low + (high - low) * float(rng.random())


def _shade(colour: Colour, rng: np.random.Generator, spread: float) -> tuple[int, int, int]:
    moved = np.array(colour) * uniform(rng, 1 - spread, 1 + spread)
    moved += (rng.random(3) - 0.5) * 80 * spread
    red, green, blue = np.clip(moved, 0, 255).astype(int)
    return int(red), int(green), int(blue)


def _leaf(draw: ImageDraw.ImageDraw, rng: np.random.Generator, size: Point, colour: Colour) -> None:
    """A leaf somewhere in the picture, of any size and direction."""
    w, h = size
    x, y, turn = uniform(rng, 0, w), uniform(rng, 0, h), uniform(rng, 0, 2 * math.pi)
    length = uniform(rng, 0.05, 0.14) * w
    along = np.array([0.0, 0.3, 0.7, 1.0, 0.7, 0.3]) * length
    across = np.array([0.0, 0.22, 0.2, 0.0, -0.2, -0.22]) * length
    outline = [
        (x + a * math.cos(turn) - b * math.sin(turn), y + a * math.sin(turn) + b * math.cos(turn))
        for a, b in zip(along.tolist(), across.tolist(), strict=True)
    ]
    draw.polygon(outline, fill=_shade(colour, rng, 0.25))


def blade(draw: ImageDraw.ImageDraw, rng: np.random.Generator, size: Point, colour: Colour) -> None:
    """A blade of grass rising from the lower edge."""
    w, h = size
    x, tall = uniform(rng, 0, w), uniform(rng, 0.06, 0.22) * h
    lean, half = uniform(rng, -0.06, 0.06) * w, 0.006 * w
    points = [(x - half, h), (x + lean, h - tall), (x + half, h)]
    draw.polygon(points, fill=_shade(colour, rng, 0.25))


def scene(rng: np.random.Generator, size: tuple[int, int]) -> tuple[Image.Image, Colour]:
    """The background, out of focus, and the colour of its ground."""
    w, h = size
    far, near, ground = _SCENES[int(rng.integers(len(_SCENES)))]
    depth = np.linspace(0, 1, h)[:, None, None]
    sky = np.array(_shade(far, rng, 0.15)) * (1 - depth) + np.array(_shade(near, rng, 0.15)) * depth
    image = Image.fromarray(np.broadcast_to(sky, (h, w, 3)).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(4, 12))):  # discs of light, as an open lens makes them
        x, y, r = uniform(rng, 0, w), uniform(rng, 0, 0.8 * h), uniform(rng, 0.02, 0.11) * w
        draw.ellipse((x - r, y - r, x + r, y + r), fill=_shade(near, rng, 0.22))
    horizon = uniform(rng, 0.58, 0.9) * h
    bumps = [(w * step / 6, horizon + uniform(rng, -0.05, 0.05) * h) for step in range(7)]
    draw.polygon([(0, h), *bumps, (w, h)], fill=_shade(ground, rng, 0.15))
    if rng.random() < 0.6:
        twig = [(uniform(rng, -0.1, 0.3) * w, uniform(rng, 0, h)),
                (uniform(rng, 0.4, 0.6) * w, uniform(rng, 0, h)),
                (uniform(rng, 0.7, 1.1) * w, uniform(rng, 0, h))]  # fmt: skip
        width = max(1, round(uniform(rng, 0.012, 0.035) * w))
        draw.line(twig, fill=_shade((104, 82, 62), rng, 0.25), width=width, joint="curve")
    for _ in range(int(rng.integers(2, 14))):
        _leaf(draw, rng, size, (96, 136, 70))
    return image.filter(ImageFilter.GaussianBlur(uniform(rng, 0.011, 0.023) * w)), ground
