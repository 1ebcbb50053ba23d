"""A grid of images with captions: what `featx show` and `featx predict --show` write."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image, ImageDraw

from featx.decoding import DecodeOptions, decode, read_image
from featx.errors import ImageError, InputError
from featx.report.fonts import TextFonts, fonts_for

Mark = Literal["ok", "wrong"] | None

_PAPER, _INK, _GREY, _TILE = (255, 255, 255), (32, 33, 36), (110, 112, 118), (236, 237, 240)
# Okabe and Ito's bluish green and vermilion: told apart by readers of any colour vision; the sign
# in the corner says the same without colour.
_MARK_COLOURS = {"ok": (0, 158, 115), "wrong": (213, 94, 0)}
_TILE_PX, _MIN_TILE_PX = 160, 48
_MAX_CAPTION_LINES = 3
_MAX_PIXELS = 100_000_000  # a grid is for looking at; more would not open in a viewer
_ELLIPSIS = "…"


@dataclass(frozen=True)
class _Pen:
    """Measures and writes text of one size, each character with a face that has it."""

    fonts: TextFonts
    size_px: int

    @property
    def line_px(self) -> int:
        return round(self.size_px * 1.35)

    def width(self, text: str) -> float:
        runs = self.fonts.runs(text)
        return sum(face.pillow(self.size_px).getlength(stretch) for face, stretch in runs)

    def write(
        self,
        draw: ImageDraw.ImageDraw,
        centre_x: float,
        top: float,
        text: str,
        ink: tuple[int, ...],
    ) -> None:
        x = centre_x - self.width(text) / 2
        for face, stretch in self.fonts.runs(text):
            font = face.pillow(self.size_px)
            # A common baseline: faces differ in how far they reach above it.
            draw.text((x, top + self.size_px), stretch, fill=ink, font=font, anchor="ls")
            x += font.getlength(stretch)

    def wrap(self, text: str, width_px: float, max_lines: int) -> list[str]:
        """Lines of at most `width_px`; what does not fit in `max_lines` ends in an ellipsis."""
        lines: list[str] = []
        for paragraph in text.split("\n"):
            lines += self._fill(self.fonts.shown(paragraph), width_px)
        if len(lines) > max_lines:
            rest = " ".join(lines[max_lines - 1 :])
            lines = [*lines[: max_lines - 1], self._shorten(rest, width_px)]
        return lines

    def _fill(self, text: str, width_px: float) -> list[str]:
        lines, line = [], ""
        for word in text.split():
            trial = f"{line} {word}" if line else word
            if self.width(trial) <= width_px:
                line = trial
                continue
            if line:
                lines.append(line)
            line = word
            while self.width(line) > width_px and len(line) > 1:  # a word longer than a line
                end = self._fitting(line, width_px)
                lines.append(line[:end])
                line = line[end:]
        return [*lines, line] if line else lines

    def _fitting(self, text: str, width_px: float) -> int:
        """How many leading characters fit, at least one."""
        low, high = 1, len(text)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (
                (middle, high) if self.width(text[:middle]) <= width_px else (low, middle - 1)
            )
        return low

    def _shorten(self, text: str, width_px: float) -> str:
        room = max(width_px - self.width(_ELLIPSIS), 1)
        return text[: self._fitting(text, room)].rstrip() + _ELLIPSIS


def _thumbnail(file: Path | str, side_px: int) -> Image.Image | str:
    """The picture within a square of `side_px`, or the reason why there is none."""
    if isinstance(file, str):
        return file
    try:
        pixels = decode(read_image(file), DecodeOptions(), fast=False)  # (h, w, 3) uint8
    except ImageError as error:
        return str(error)
    image = Image.fromarray(pixels)
    scale = side_px / max(image.size)
    w, h = (max(1, round(side * scale)) for side in image.size)
    # Small pictures are enlarged without smoothing, so that 32 pixels look like 32 pixels.
    kind = Image.Resampling.LANCZOS if scale <= 1 else Image.Resampling.NEAREST
    return image.resize((w, h), kind)


def _badge(draw: ImageDraw.ImageDraw, corner: tuple[int, int], size: int, mark: str) -> None:
    """A disc with a tick or a cross whose upper right corner is `corner`."""
    x, y = corner[0] - size, corner[1]
    draw.ellipse((x, y, x + size, y + size), fill=_MARK_COLOURS[mark], outline=_PAPER, width=2)
    line = max(2, size // 8)
    at = [(x + size * u, y + size * v) for u, v in _BADGE_LINES[mark]]
    for start, end in zip(at[::2], at[1::2], strict=True):
        draw.line([start, end], fill=_PAPER, width=line)


_BADGE_LINES = {
    "ok": ((0.27, 0.52), (0.44, 0.69), (0.43, 0.69), (0.74, 0.34)),
    "wrong": ((0.32, 0.32), (0.68, 0.68), (0.68, 0.32), (0.32, 0.68)),
}


def _draw_tile(
    sheet: Image.Image,
    file: Path | str,
    mark: Mark,
    corner: tuple[int, int],
    tile_px: int,
    pen: _Pen,
) -> None:
    draw = ImageDraw.Draw(sheet)
    x, y = corner
    frame = max(3, tile_px // 40)
    box = (x, y, x + tile_px - 1, y + tile_px - 1)
    draw.rectangle(box, fill=_MARK_COLOURS[mark] if mark else _TILE)
    inner = tile_px - 2 * frame if mark else tile_px
    start = frame if mark else 0
    draw.rectangle((x + start, y + start, x + start + inner - 1, y + start + inner - 1), fill=_TILE)
    picture = _thumbnail(file, inner)
    if isinstance(picture, str):
        room = max(1, inner // pen.line_px - 1)
        lines = pen.wrap(picture, inner - 12, room)
        top = y + (tile_px - len(lines) * pen.line_px) / 2
        for row, line in enumerate(lines):
            pen.write(draw, x + tile_px / 2, top + row * pen.line_px, line, _GREY)
    else:
        left, top_px = (tile_px - picture.width) // 2, (tile_px - picture.height) // 2
        sheet.paste(picture, (x + left, y + top_px))
    if mark:
        size = max(14, tile_px // 8)
        _badge(draw, (x + tile_px - frame - 2, y + frame + 2), size, mark)


def _check(
    files: Sequence[Path | str], captions: Sequence[str], marks: Sequence[Mark], tile_px: int
) -> None:
    if not files:
        raise InputError("a grid needs at least one image; got none")
    if len(captions) != len(files) or len(marks) != len(files):
        raise InputError(
            f"a grid needs one caption and one mark for each image; got {len(files)} images, "
            f"{len(captions)} captions and {len(marks)} marks"
        )
    unknown = sorted({str(mark) for mark in marks} - {"ok", "wrong", "None"})
    if unknown:
        raise InputError(f"a mark must be 'ok', 'wrong' or None; got {', '.join(unknown)}")
    if tile_px < _MIN_TILE_PX:
        raise InputError(f"tile_px must be at least {_MIN_TILE_PX}; got {tile_px}")


@dataclass(frozen=True)
class _Page:
    """Where everything of a grid lies, before anything is drawn; sizes in pixels."""

    pen: _Pen
    big: _Pen
    heading: list[str]
    lines: list[list[str]]  # of each caption
    rows: list[range]
    row_px: list[int]
    gap: int
    head_px: int
    width: int

    @property
    def height(self) -> int:
        return self.head_px + sum(self.row_px)


def _page(captions: Sequence[str], columns: int | None, tile_px: int, title: str | None) -> _Page:
    n = len(captions)
    columns = min(n, math.ceil(math.sqrt(1.4 * n))) if columns is None else columns
    if columns < 1:
        raise InputError(f"columns must be at least 1; got {columns}")
    columns, gap = min(columns, n), max(8, tile_px // 12)
    paragraphs = "\n".join([*captions, title or "", _ELLIPSIS]).split("\n")
    pen = _Pen(fonts_for(paragraphs), max(11, tile_px // 12))
    big = _Pen(pen.fonts, round(pen.size_px * 1.5))
    width = columns * (tile_px + gap) + gap
    heading = big.wrap(title, width - 2 * gap, 2) if title else []
    lines = [pen.wrap(caption, tile_px, _MAX_CAPTION_LINES) for caption in captions]
    rows = [range(first, min(first + columns, n)) for first in range(0, n, columns)]
    text_px = [max(len(lines[i]) for i in row) * pen.line_px for row in rows]
    row_px = [tile_px + gap + text + gap // 3 for text in text_px]
    head_px = gap + len(heading) * big.line_px + (gap // 2 if heading else 0)
    return _Page(pen, big, heading, lines, rows, row_px, gap, head_px, width)


def image_grid(
    files: Sequence[Path | str],
    captions: Sequence[str],
    *,
    columns: int | None = None,
    tile_px: int = _TILE_PX,
    marks: Sequence[Mark] | None = None,
    title: str | None = None,
) -> Image.Image:
    """Draw thumbnails in rows, each with its caption below it.

    Parameters
    ----------
    files
        n image files, shown in this order from the upper left. A text instead of a path is the
        reason why a file is not to be decoded, and is written in its place.
    captions
        n texts in any script, wrapped to three lines; a newline begins a new line. Characters
        that no font has appear as `U+9EBB` (`featx.report.fonts.glyph_warning` says so in words).
    columns
        Thumbnails in a row; None for a grid somewhat wider than high.
    tile_px
        Side of the square each thumbnail lies in, in pixels, at least 48.
    marks
        n of "ok" (green frame and tick), "wrong" (red frame and cross) or None (no frame).
    title
        A line above the grid.

    Returns
    -------
    PIL.Image.Image
        RGB. A file that cannot be read or decoded is a grey tile with the reason.

    Raises
    ------
    InputError
        For no images, lists of different lengths, an unknown mark, a number out of range, or a
        grid of more than 100 megapixels.

    Examples
    --------
    >>> import tempfile
    >>> from featx.drawing import draw_birds
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     birds = draw_birds(folder, images_per_species=1, size_px=64)
    ...     image_grid(birds, [bird.parent.name for bird in birds], columns=3).mode
    'RGB'
    """
    marks = [None] * len(files) if marks is None else marks
    _check(files, captions, marks, tile_px)
    page = _page(captions, columns, tile_px, title)
    if page.width * page.height > _MAX_PIXELS:
        raise InputError(
            f"a grid of {len(files)} images at tile_px={tile_px} would have {page.width} x "
            f"{page.height} pixels; show fewer images or use smaller tiles"
        )
    sheet = Image.new("RGB", (page.width, page.height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for row_number, line in enumerate(page.heading):
        top = page.gap / 2 + row_number * page.big.line_px
        page.big.write(draw, page.width / 2, top, line, _INK)
    y, pen = page.head_px, page.pen
    for row, row_px in zip(page.rows, page.row_px, strict=True):
        for column, i in enumerate(row):
            x = page.gap + column * (tile_px + page.gap)
            _draw_tile(sheet, files[i], marks[i], (x, y), tile_px, pen)
            for line_number, line in enumerate(page.lines[i]):
                top = y + tile_px + page.gap // 3 + line_number * pen.line_px
                pen.write(draw, x + tile_px / 2, top, line, _INK)
        y += row_px
    return sheet


def n_fitting(captions: Sequence[str], *, columns: int | None = None) -> int:
    """How many of the first images with these captions `image_grid` has the pixels for.

    Parameters
    ----------
    captions, columns
        As of `image_grid`.
    """
    n = min(len(captions), _MAX_PIXELS // _TILE_PX**2)  # no caption is wrapped in vain
    while n > 1:
        page = _page(captions[:n], columns, _TILE_PX, None)
        pixels = page.width * page.height
        if pixels <= _MAX_PIXELS:
            break
        n = min(n - 1, n * _MAX_PIXELS // pixels)
    return n
