"""How each species is drawn: a brush in bird coordinates, and one function a species."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[float, float, float]  # red, green, blue, 0 to 255
Point = tuple[float, float]

_BLACK: Colour = (24, 22, 26)
_WHITE: Colour = (246, 245, 240)


@dataclass(frozen=True)
class Pose:
    """What differs between two pictures of one species; every value is -1 to 1."""

    head: float  # head down or up
    tail: float  # tail down or up
    wing: float  # wing drooping or lifted
    step: float  # feet together or apart


class Brush:
    """Draws in bird coordinates (x forward, y down, about -1 to 1) onto a transparent layer."""

    def __init__(self, layer: Image.Image, matrix: np.ndarray, tint: np.ndarray) -> None:
        self._draw = ImageDraw.Draw(layer)
        self._matrix = matrix  # (2, 3): bird coordinates to pixels of the layer
        self._tint = tint  # (3,): this picture's light
        self._px_per_unit = math.sqrt(abs(np.linalg.det(matrix[:, :2])))

    def _pixels(self, points: np.ndarray) -> list[Point]:
        placed = points @ self._matrix[:, :2].T + self._matrix[:, 2]
        return [(float(x), float(y)) for x, y in placed]

    def _paint(self, colour: Colour) -> tuple[int, int, int, int]:
        red, green, blue = np.clip(np.array(colour) * self._tint, 0, 255).astype(int)
        return int(red), int(green), int(blue), 255

    def smaller(self, factor: float) -> Brush:
        """The same brush with every length `factor` times as long."""
        brush = copy.copy(self)
        brush._matrix = self._matrix * np.array([factor, factor, 1.0])
        brush._px_per_unit = self._px_per_unit * factor
        return brush

    def blob(self, colour: Colour, *points: Point) -> None:
        """Fill a smooth closed outline through `points` (a Catmull-Rom spline)."""
        corners = np.array(points, dtype=float)
        before, after = np.roll(corners, 1, axis=0), np.roll(corners, -1, axis=0)
        later = np.roll(corners, -2, axis=0)
        t = np.linspace(0, 1, 8, endpoint=False)[None, :, None]
        p0, p1, p2, p3 = (p[:, None, :] for p in (before, corners, after, later))
        curve = 0.5 * (
            2 * p1
            + (p2 - p0) * t
            + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2
            + (3 * p1 - p0 - 3 * p2 + p3) * t**3
        )  # (corners, 8, 2)
        self._draw.polygon(self._pixels(curve.reshape(-1, 2)), fill=self._paint(colour))

    def wedge(self, colour: Colour, *points: Point) -> None:
        """Fill a polygon with sharp corners: bills and feather tips."""
        self._draw.polygon(self._pixels(np.array(points, dtype=float)), fill=self._paint(colour))

    def oval(self, colour: Colour, centre: Point, radii: Point, *, degrees: float = 0.0) -> None:
        """Fill an ellipse turned by `degrees`."""
        angle = np.linspace(0, 2 * math.pi, 40, endpoint=False)
        turn = math.radians(degrees)
        along, across = radii[0] * np.cos(angle), radii[1] * np.sin(angle)
        x = centre[0] + along * math.cos(turn) - across * math.sin(turn)
        y = centre[1] + along * math.sin(turn) + across * math.cos(turn)
        self._draw.polygon(self._pixels(np.stack([x, y], axis=1)), fill=self._paint(colour))

    def line(self, colour: Colour, width: float, *points: Point) -> None:
        """Draw an open line; `width` in bird units."""
        pixels = self._pixels(np.array(points, dtype=float))
        thickness = max(2, round(width * self._px_per_unit))
        self._draw.line(pixels, fill=self._paint(colour), width=thickness, joint="curve")

    def eye(self, centre: Point, radius: float, *, iris: Colour = _BLACK) -> None:
        """Draw an eye with the point of light that makes a drawn bird look alive."""
        x, y = centre
        self.oval(iris, centre, (radius, radius))
        if iris != _BLACK:
            self.oval(_BLACK, centre, (radius * 0.55, radius * 0.55))
        self.oval(_WHITE, (x + radius * 0.3, y - radius * 0.35), (radius * 0.3, radius * 0.3))

    def legs(self, colour: Colour, hips: Sequence[Point], foot_y: float, *, step: float) -> None:
        """Draw a straight leg with three toes below each hip."""
        for side, (x, y) in zip((-1.0, 1.0), hips, strict=True):
            foot = x + 0.07 * side * (1 + step)
            self.line(colour, 0.05, (x, y), (foot, foot_y))
            for toe in (-0.12, 0.06, 0.17):
                self.line(colour, 0.04, (foot, foot_y), (foot + toe, foot_y + 0.05))


def _cardinal(brush: Brush, pose: Pose) -> None:
    red, dark = (208, 32, 40), (150, 20, 32)
    tip = 0.82 + 0.12 * pose.tail
    brush.blob(dark, (-0.3, 0.15), (-1.2, tip - 0.1), (-1.25, tip + 0.1), (-0.25, 0.5))
    brush.legs((120, 82, 70), [(-0.05, 0.5), (0.15, 0.5)], 0.93, step=pose.step)
    brush.blob(red, (0.35, -0.45), (0.62, 0.0), (0.4, 0.45), (0.0, 0.62), (-0.45, 0.38),
               (-0.5, 0.1), (-0.1, -0.3))  # fmt: skip
    lift = 0.06 * pose.head
    brush.wedge(red, (0.02, -0.55 - lift), (0.0, -1.16 - lift), (0.5, -0.72 - lift))
    brush.oval(red, (0.33, -0.5 - lift), (0.34, 0.31))
    brush.oval(_BLACK, (0.56, -0.47 - lift), (0.13, 0.18))
    brush.wedge((240, 130, 48), (0.56, -0.6 - lift), (0.9, -0.43 - lift), (0.56, -0.34 - lift))
    brush.eye((0.38, -0.57 - lift), 0.07)
    drop = -0.1 * pose.wing
    brush.blob(dark, (0.2, -0.15), (0.2, 0.2), (-0.2, 0.4 + drop), (-0.72, 0.5 + drop), (-0.3, 0.0))
    brush.line(red, 0.04, (0.05, 0.2), (-0.5, 0.4 + drop))


def _sparrow(brush: Brush, pose: Pose) -> None:
    brown, chestnut, cream = (164, 104, 52), (126, 62, 26), (230, 196, 146)
    tip = 0.42 + 0.15 * pose.tail
    brush.wedge((104, 76, 54), (-0.5, 0.1), (-1.02, tip - 0.12), (-1.0, tip + 0.1), (-0.45, 0.4))
    brush.legs((196, 138, 104), [(-0.1, 0.65), (0.16, 0.65)], 0.95, step=pose.step)
    brush.oval(cream, (0.0, 0.14), (0.66, 0.6))
    brush.blob(brown, (0.35, -0.4), (0.1, -0.1), (-0.2, 0.35), (-0.66, 0.25), (-0.5, -0.25),
               (-0.1, -0.48))  # fmt: skip
    lift = 0.05 * pose.head
    brush.oval(cream, (0.32, -0.42 - lift), (0.4, 0.37))
    brush.blob(chestnut, (-0.06, -0.42 - lift), (0.05, -0.72 - lift), (0.35, -0.84 - lift),
               (0.64, -0.66 - lift), (0.68, -0.52 - lift), (0.3, -0.52 - lift))  # fmt: skip
    brush.oval(_BLACK, (0.2, -0.32 - lift), (0.1, 0.085))
    brush.blob(_BLACK, (0.62, -0.38 - lift), (0.68, -0.22 - lift), (0.5, -0.08), (0.48, -0.26))
    brush.wedge((70, 62, 58), (0.66, -0.52 - lift), (0.88, -0.38 - lift), (0.64, -0.32 - lift))
    brush.eye((0.46, -0.48 - lift), 0.07)
    drop = -0.1 * pose.wing
    brush.blob(chestnut, (0.12, -0.1), (0.08, 0.25), (-0.3, 0.42 + drop), (-0.74, 0.38 + drop),
               (-0.35, -0.05))  # fmt: skip
    for row in range(3):
        brush.line(cream, 0.035, (-0.02 - 0.1 * row, 0.0 + 0.13 * row),
                   (-0.45 - 0.07 * row, 0.15 + 0.12 * row + drop))  # fmt: skip


def _jay(brush: Brush, pose: Pose) -> None:
    blue, deep, pale = (56, 108, 202), (32, 62, 150), (230, 234, 242)
    tip = 0.7 + 0.2 * pose.tail
    brush.blob(blue, (-0.3, 0.05), (-1.35, tip - 0.14), (-1.42, tip + 0.1), (-0.3, 0.4))
    for bar in (0.45, 0.62, 0.79, 0.94):
        x, y = -0.3 - 1.08 * bar, 0.22 + (tip - 0.24) * bar
        brush.line(_BLACK, 0.04, (x + 0.04, y - 0.1), (x - 0.04, y + 0.13))
    brush.legs((60, 56, 62), [(-0.02, 0.5), (0.18, 0.5)], 0.93, step=pose.step)
    brush.blob(pale, (0.3, -0.4), (0.58, 0.0), (0.38, 0.42), (0.0, 0.58), (-0.42, 0.36),
               (-0.45, 0.05), (-0.1, -0.3))  # fmt: skip
    lift = 0.06 * pose.head
    brush.wedge(blue, (0.05, -0.5 - lift), (-0.14, -0.98 - lift), (0.48, -0.72 - lift))
    brush.oval(blue, (0.32, -0.5 - lift), (0.32, 0.28))
    brush.oval(pale, (0.44, -0.4 - lift), (0.2, 0.17))
    brush.line(_BLACK, 0.07, (0.02, -0.55 - lift), (0.1, -0.2), (0.34, -0.08), (0.54, -0.2))
    brush.wedge(_BLACK, (0.58, -0.54 - lift), (1.0, -0.4 - lift), (0.58, -0.34 - lift))
    brush.eye((0.42, -0.52 - lift), 0.065)
    drop = -0.1 * pose.wing
    brush.blob(blue, (0.15, -0.22), (0.22, 0.12), (-0.2, 0.36 + drop), (-0.78, 0.42 + drop),
               (-0.3, -0.08))  # fmt: skip
    brush.line(_WHITE, 0.06, (0.1, 0.14), (-0.3, 0.26 + drop))
    brush.line(deep, 0.05, (0.0, 0.0), (-0.55, 0.28 + drop))


def _crane(brush: Brush, pose: Pose) -> None:
    grey, slate, leg = (128, 138, 156), (66, 74, 92), (52, 50, 56)
    brush = brush.smaller(0.86)  # it is taller than the others
    brush.legs(leg, [(-0.28, 0.3), (-0.1, 0.3)], 1.2, step=pose.step)
    droop = 0.1 * pose.tail
    for feather in (0.0, 0.14, 0.28):
        brush.blob(slate, (-0.4, -0.05 + feather / 2), (-0.9, 0.05 + feather - droop),
                   (-0.86 + feather / 3, 0.42 + feather / 2 - droop), (-0.5, 0.3))  # fmt: skip
    brush.blob(grey, (0.2, -0.2), (0.22, 0.1), (-0.05, 0.34), (-0.5, 0.34), (-0.82, 0.18),
               (-0.5, -0.12), (-0.1, -0.26))  # fmt: skip
    x, y = 0.3 + 0.08 * pose.wing, -0.98 - 0.1 * pose.head
    neck = [(0.08, 0.0), (0.26, -0.28), (0.2, -0.62), (x - 0.04, y + 0.04)]
    brush.line(grey, 0.17, *neck)
    brush.line(slate, 0.13, neck[1], neck[2], neck[3])
    brush.line(_WHITE, 0.06, (0.14, -0.5), (0.15, -0.68), (x - 0.1, y + 0.1))
    brush.oval(slate, (x, y), (0.16, 0.12))
    brush.oval((206, 40, 42), (x, y - 0.09), (0.11, 0.055))
    brush.wedge((196, 176, 120), (x + 0.12, y - 0.06), (x + 0.56, y + 0.08), (x + 0.1, y + 0.06))
    brush.eye((x + 0.05, y - 0.01), 0.045, iris=(226, 120, 30))
    brush.line(slate, 0.045, (0.02, 0.02), (-0.55, 0.16))
    brush.line(slate, 0.045, (-0.02, 0.14), (-0.5, 0.26))


def _owl(brush: Brush, pose: Pose) -> None:
    white, fleck, gold = (244, 242, 234), (112, 104, 98), (250, 196, 40)
    brush.blob((214, 210, 200), (-0.24, 0.5), (-0.3, 1.02 + 0.05 * pose.tail), (0.16, 1.0),
               (0.2, 0.5))  # fmt: skip
    brush.blob(white, (0.0, -0.5), (0.5, -0.2), (0.56, 0.35), (0.3, 0.85), (0.0, 0.93),
               (-0.3, 0.85), (-0.56, 0.35), (-0.5, -0.2))  # fmt: skip
    for row in range(4):
        for column in range(-2, 3):
            x, y = 0.15 * column + 0.07 * (row % 2), 0.14 + 0.17 * row
            brush.line(fleck, 0.035, (x - 0.04, y), (x, y + 0.03), (x + 0.04, y))
    for side in (-1.0, 1.0):
        out = 0.56 + 0.08 * max(pose.wing, 0)
        brush.blob((222, 218, 208), (side * 0.42, -0.2), (side * (out + 0.06), 0.2),
                   (side * out, 0.72), (side * 0.36, 0.82), (side * 0.36, 0.3))  # fmt: skip
        for y in (0.1, 0.3, 0.5):
            brush.line(fleck, 0.035, (side * 0.44, y), (side * 0.56, y + 0.03))
        brush.oval(gold, (side * 0.17, 0.95), (0.13 + 0.02 * pose.step, 0.06))
    x = 0.08 * pose.head
    brush.oval(white, (x * 0.6, -0.52), (0.54, 0.47))
    for side in (-1.0, 1.0):
        brush.oval((214, 208, 196), (x + side * 0.21, -0.5), (0.25, 0.27), degrees=12 * side)
        brush.eye((x + side * 0.2, -0.52), 0.14, iris=gold)
    for side in (-0.3, -0.1, 0.12, 0.32):
        brush.line(fleck, 0.035, (x + side - 0.04, -0.85), (x + side + 0.03, -0.82))
    brush.wedge((60, 54, 50), (x - 0.07, -0.42), (x + 0.07, -0.42), (x, -0.22))


def _duck(brush: Brush, pose: Pose) -> None:
    body, chest, green = (186, 182, 176), (110, 62, 44), (18, 106, 66)
    brush.legs((238, 122, 30), [(-0.15, 0.5), (0.12, 0.5)], 0.78, step=pose.step)
    tip = -0.12 - 0.1 * pose.tail
    brush.blob(_BLACK, (-0.7, 0.0), (-1.15, tip), (-1.0, 0.25), (-0.6, 0.4))
    brush.line(
        _BLACK, 0.06, (-0.8, 0.0), (-0.98, tip - 0.05), (-0.9, tip - 0.17), (-0.8, tip - 0.08)
    )
    brush.blob(body, (0.5, -0.1), (0.62, 0.2), (0.3, 0.55), (-0.3, 0.6), (-0.85, 0.3),
               (-0.75, 0.0), (-0.2, -0.14))  # fmt: skip
    brush.blob(chest, (0.4, -0.25), (0.7, 0.0), (0.62, 0.4), (0.25, 0.54), (0.2, 0.15))
    x, y = 0.58 + 0.05 * pose.wing, -0.62 - 0.07 * pose.head
    brush.line(green, 0.34, (0.48, -0.12), (x - 0.04, y + 0.05))
    brush.line(_WHITE, 0.08, (0.28, -0.17), (0.68, -0.13))
    brush.oval(green, (x, y), (0.3, 0.26))
    brush.blob((244, 196, 52), (x + 0.2, y - 0.06), (x + 0.42, y + 0.0), (x + 0.66, y + 0.02),
               (x + 0.64, y + 0.14), (x + 0.36, y + 0.16), (x + 0.2, y + 0.14))  # fmt: skip
    brush.line((150, 108, 30), 0.025, (x + 0.26, y + 0.08), (x + 0.6, y + 0.09))
    brush.eye((x + 0.08, y - 0.07), 0.065)
    drop = -0.06 * pose.wing
    brush.blob((134, 122, 112), (0.15, 0.02), (0.12, 0.28), (-0.3, 0.42 + drop),
               (-0.86, 0.2 + drop), (-0.4, -0.02))  # fmt: skip
    brush.wedge(
        (44, 72, 186), (-0.3, 0.28 + drop), (-0.02, 0.24), (-0.06, 0.34), (-0.34, 0.38 + drop)
    )


# Class folder -> how the species is drawn. Two names are not ASCII on purpose: the demo shows that
# such names work in tables, files and plots.
PAINTERS: dict[str, Callable[[Brush, Pose], None]] = {
    "Blue_jay": _jay,
    "Grue_cendrée": _crane,
    "Mallard_duck": _duck,
    "Red_cardinal": _cardinal,
    "Snowy_owl": _owl,
    "麻雀": _sparrow,
}
