"""Fonts for any script: which faces draw a text, and what is shown where no face can.

Class names come from folder names, so a plot may have to show 麻雀 beside Grue cendrée. The first
face is always the DejaVu Sans that matplotlib ships; others are added only for characters it lacks.
A character that no font on the machine has is shown as its code point (`U+9EBB`), never as an
empty box.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import matplotlib
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from PIL import ImageFont

from featx.counting import first_few

# Sans-serif families that cover large scripts and come with Linux, macOS or Windows, best first.
# A simplified-Chinese face precedes the others because one face must serve all Han characters.
_PREFERRED_FAMILIES = (
    "Noto Sans CJK SC",
    "Noto Sans SC",
    "Source Han Sans SC",
    "Source Han Sans CN",
    "Noto Sans CJK JP",
    "Noto Sans CJK TC",
    "Noto Sans CJK KR",
    "PingFang SC",
    "Hiragino Sans GB",
    "Heiti SC",
    "STHeiti",
    "Microsoft YaHei",
    "SimHei",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "Yu Gothic",
    "Hiragino Sans",
    "Malgun Gothic",
    "Apple SD Gothic Neo",
    "Noto Sans",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "Nirmala UI",
    "Leelawadee UI",
    "Segoe UI",
    "Arial Unicode MS",
)

# Faces whose character map promises more than they draw: boxes for every code point, or bitmaps in
# colour that neither matplotlib nor Pillow draws at any size.
_UNUSABLE_WORDS = ("lastresort", "last resort", "emoji", "blank", "barcode")

_PLAIN_WEIGHTS = (400, "normal", "regular", "book")

# A package that holds nothing but Noto Sans CJK (SIL Open Font License). It is never imported, for
# importing it changes matplotlib's settings; only its font file is used.
_BUNDLED_PACKAGE, _BUNDLED_FILE = "notojp_matplotlib", "fonts/NotoSansCJKjp-Regular.otf"

_ADVICE = (
    "install a font that has them (Debian, Ubuntu: apt install fonts-noto-core fonts-noto-cjk; "
    "elsewhere: https://fonts.google.com/noto; Chinese, Japanese, Korean anywhere: "
    "pip install notojp-matplotlib)"
)


@dataclass(frozen=True)
class FontFace:
    """One face of one font file, by the family name under which matplotlib finds it."""

    family: str
    file: Path
    index: int = 0

    @property
    def characters(self) -> frozenset[int]:
        """Code points that this face draws; empty for a file that cannot be loaded."""
        return _characters(str(self.file), self.index)

    def pillow(self, size_px: float) -> ImageFont.FreeTypeFont:
        """This face for Pillow, with letters of `size_px` pixels."""
        return _pillow_font(str(self.file), self.index, size_px)


@lru_cache(maxsize=64)
def _pillow_font(file: str, index: int, size_px: float) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size_px, index=index)


@lru_cache(maxsize=512)
def _characters(file: str, index: int) -> frozenset[int]:
    try:
        # `face_index` came with matplotlib 3.11; before, there was only the first face.
        font = FT2Font(file, face_index=index) if index else FT2Font(file)
        return frozenset(font.get_charmap())
    except (RuntimeError, OSError, TypeError, ValueError):
        return frozenset()  # damaged or of a kind FreeType does not know: it draws nothing


def _base_face() -> FontFace:
    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return FontFace("DejaVu Sans", file)


def _installed_face(family: str) -> FontFace | None:
    """The file matplotlib would take for `family`: its coverage is what counts."""
    wanted = _properties((family,), 10.0)
    try:
        found = font_manager.findfont(wanted, fallback_to_default=False)
    except ValueError:
        return None
    return FontFace(family, Path(str(found)), int(getattr(found, "face_index", 0)))


def _bundled_face() -> FontFace | None:
    """The face of the font package, where it is installed."""
    spec = find_spec(_BUNDLED_PACKAGE)  # finds a top-level package without importing it
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        file = Path(folder) / _BUNDLED_FILE
        if file.is_file():
            return FontFace("Noto Sans CJK JP", file)
    return None


def _more_faces() -> Iterator[FontFace]:
    """Faces beyond the base, best first: known families, the font package, then any other font."""
    fonts = font_manager.fontManager.ttflist
    installed = {entry.name for entry in fonts}
    known = [family for family in _PREFERRED_FAMILIES if family in installed]
    # Of the others only those with an ordinary weight: matplotlib would log its choice otherwise.
    plain = {
        entry.name
        for entry in fonts
        if entry.weight in _PLAIN_WEIGHTS and (entry.style, entry.stretch) == ("normal", "normal")
    }
    faces = (_installed_face(family) for family in known)
    yield from (face for face in faces if face)
    bundled = _bundled_face()
    if bundled:
        yield bundled
    for family in sorted(plain.difference(known)):
        if not any(word in family.lower() for word in _UNUSABLE_WORDS):
            face = _installed_face(family)
            if face:
                yield face


def _properties(families: tuple[str, ...], size_pt: float) -> font_manager.FontProperties:
    # Everything is named, so that a user's rcParams cannot choose a face whose coverage is unknown.
    return font_manager.FontProperties(
        family=list(families),
        style="normal",
        variant="normal",
        weight="normal",
        stretch="normal",
        size=size_pt,
    )


def _is_invisible(character: str) -> bool:
    """Whether leaving the character out loses nothing to see (joiners, variation selectors)."""
    return unicodedata.category(character) == "Cf" or "\ufe00" <= character <= "\ufe0f"


def _normalise(text: str) -> str:
    return unicodedata.normalize("NFC", str(text))


@dataclass(frozen=True)
class TextFonts:
    """The faces that draw a set of texts, in the order in which a character looks for one.

    Attributes
    ----------
    faces
        DejaVu Sans, then what the texts need beyond it.
    missing
        Characters of the texts that no face has, sorted; `shown` writes them as code points.
    """

    faces: tuple[FontFace, ...]
    missing: tuple[str, ...] = ()

    @property
    def warning(self) -> str | None:
        """One line for the user about characters without a font; None where there are none."""
        if not self.missing:
            return None
        some = first_few(self.missing, 5, _code_point)
        return f"no font here has the characters {some}, shown by their codes; {_ADVICE}"

    def _face_of(self, character: str) -> int | None:
        code = ord(character)
        return next((i for i, face in enumerate(self.faces) if code in face.characters), None)

    def shown(self, text: str) -> str:
        """`text` in NFC with every character that no face has written as `U+9EBB`."""
        words: list[str] = []  # escapes stand apart from their neighbours
        escaped = True
        for character in _normalise(text):
            has_face = unicodedata.category(character) != "Cc" and (
                self._face_of(character) is not None
            )
            if not has_face and _is_invisible(character):
                continue
            if not has_face and unicodedata.category(character) == "Zs":
                character, has_face = " ", True
            if words and (escaped or not has_face) and character != " " and words[-1][-1] != " ":
                words.append(" ")
            words.append(character if has_face else _code_point(character))
            escaped = not has_face
        return "".join(words)

    def runs(self, text: str) -> tuple[tuple[FontFace, str], ...]:
        """`shown(text)` cut into stretches of one face each, for Pillow, which has no fall-back."""
        runs: list[tuple[int, str]] = []
        for character in self.shown(text):
            face = self._face_of(character) or 0
            if runs and (character == " " or runs[-1][0] == face):
                runs[-1] = (runs[-1][0], runs[-1][1] + character)
            else:
                runs.append((face, character))
        return tuple((self.faces[face], stretch) for face, stretch in runs)

    def properties(self, size_pt: float) -> font_manager.FontProperties:
        """The faces as matplotlib's fall-back list, at `size_pt` points.

        A face from the font package is made known to matplotlib's font list of this process;
        no setting and no default changes.
        """
        known = {entry.name for entry in font_manager.fontManager.ttflist}
        for face in self.faces:
            if face.family not in known:
                font_manager.fontManager.addfont(str(face.file))
        return _properties(tuple(face.family for face in self.faces), size_pt)


def _code_point(character: str) -> str:
    return f"U+{ord(character):04X}"


def fonts_for(texts: Iterable[str]) -> TextFonts:
    """Find faces that together draw every character of `texts`.

    Parameters
    ----------
    texts
        Class names, captions, titles: any script, also names that are not valid Unicode (lone
        surrogates from `os.fsdecode`).

    Returns
    -------
    TextFonts
        Always usable; what no font has is in `missing`.

    Examples
    --------
    >>> fonts = fonts_for(["Grue cendrée"])
    >>> [face.family for face in fonts.faces], fonts.shown("Grue cendrée"), fonts.warning
    (['DejaVu Sans'], 'Grue cendrée', None)
    """
    base = _base_face()
    needed = {c for text in texts for c in _normalise(text)}
    drawable = {c for c in needed if unicodedata.category(c) not in ("Cc", "Cs", "Zs")}
    faces = [base]
    open_ = {c for c in drawable if ord(c) not in base.characters and not _is_invisible(c)}
    if open_:
        for face in _more_faces():
            covered = {c for c in open_ if ord(c) in face.characters}
            if covered:
                faces.append(face)
                open_ -= covered
            if not open_:
                break
    unwritable = {c for c in needed if unicodedata.category(c) in ("Cc", "Cs")}
    return TextFonts(tuple(faces), tuple(sorted(open_ | unwritable)))


def glyph_warning(texts: Iterable[str]) -> str | None:
    """One line naming characters of `texts` that no font here has, and what to install; or None."""
    return fonts_for(line for text in texts for line in str(text).split("\n")).warning
