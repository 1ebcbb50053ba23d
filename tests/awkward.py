"""A folder of files that image tools stumble over, each with the state it must end in.

Deterministic: the same bytes wherever it is written. What a platform cannot have (names that are
no UTF-8, pipes, links) is left out there.
"""

from __future__ import annotations

import io
import os
import struct
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

DONE, UNREADABLE, UNDECODABLE, TOO_LARGE, SKIPPED = (
    "DONE", "UNREADABLE", "UNDECODABLE", "TOO_LARGE", "SKIPPED"
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Awkward:
    """A file of the folder and what must become of it.

    Attributes
    ----------
    path : below the folder, in the file system's bytes.
    state : name of its status, or SKIPPED: no row at all.
    says : part of the reason, or of why it was passed over.
    pixels : (h, w, 3) uint8, what a DONE file shows.
    """

    path: bytes
    state: str
    says: str = ""
    pixels: np.ndarray | None = None


def write_awkward(root: Path, *, proof: Path) -> list[Awkward]:
    """Write the folder `root`.

    Parameters
    ----------
    proof : a file that the payloads in it would make, were they run.

    Returns
    -------
    list of Awkward
        Sorted by path.
    """
    root.mkdir(parents=True)
    made = []
    for name, data, state, says in (*_damaged(), *_not_pictures(proof), *_bombs()):
        (root / name).write_bytes(data)
        made.append(Awkward(name.encode(), state, says))
    for name, data, pixels in (*_odd_pictures(), *_turned(), *_good()):
        (root / name).write_bytes(data)
        made.append(Awkward(name.encode(), DONE, pixels=pixels))
    made += _odd_names(root)
    if os.name == "posix":
        made += _no_plain_files(root)
    return sorted(made, key=lambda file: file.path)


# --- pictures -------------------------------------------------------------------------------------


def picture(h: int = 24, w: int = 32, seed: int = 0) -> np.ndarray:
    """Smooth colours, (h, w, 3) uint8; each seed gives others."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((w, h), Image.Resampling.BICUBIC))


def encoded(image: Image.Image | np.ndarray, format: str = "PNG", **options: object) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(file, format, **options)
    return file.getvalue()


def shown_by_pillow(data: bytes) -> np.ndarray:
    """What Pillow, asked directly, shows of a file of a plain mode."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged EXIF, which is what is wanted
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))


def chunk(name: bytes, body: bytes, *, crc: int = 0) -> bytes:
    """A PNG chunk; `crc` other than 0 spoils its checksum."""
    check = zlib.crc32(name + body) ^ crc
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", check)


def png(
    w: int, h: int, rows: bytes, *, depth: int = 8, colour: int = 2, before: bytes = b""
) -> bytes:
    """A PNG of raw scan lines; its header may promise more than they hold."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, depth, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows, 9))
    return b"\x89PNG\r\n\x1a\n" + header + before + body + chunk(b"IEND", b"")


def _good() -> Iterator[tuple[str, bytes, np.ndarray]]:
    for i in range(6):
        yield f"good{i}.png", encoded(picture(40, 30, i)), picture(40, 30, i)


def _odd_pictures() -> Iterator[tuple[str, bytes, np.ndarray]]:
    """Pictures that are whole, however odd: name, bytes, pixels."""
    plain = picture(seed=7)
    jpeg = encoded(plain, "JPEG", quality=95)
    shown = shown_by_pillow(jpeg)
    yield "png_named.jpg", encoded(plain), plain
    yield "jpeg_named.png", jpeg, shown
    yield "trailing.jpg", jpeg + b"\0trailing bytes" * 9, shown
    yield "huge_app.jpg", jpeg[:2] + (b"\xff\xe5\xff\xff" + bytes(65533)) * 40 + jpeg[2:], shown
    yield "bad_icc.jpg", encoded(plain, "JPEG", quality=95, icc_profile=b"no profile" * 20), shown
    yield "bad_icc.png", encoded(plain, icc_profile=b"no profile" * 20), plain
    progressive = encoded(plain, "JPEG", quality=95, progressive=True)
    yield "progressive.jpg", progressive, shown_by_pillow(progressive)
    mpo = encoded(plain, "MPO", save_all=True, append_images=[Image.fromarray(plain[::-1])])
    yield "two.mpo", mpo, shown_by_pillow(mpo)
    yield from _animated()
    cmyk = Image.fromarray(plain).convert("CMYK")
    adobe = encoded(cmyk, "JPEG", quality=95)
    yield "cmyk_adobe.jpg", adobe, shown_by_pillow(adobe)
    bare = _without_segment(adobe, 0xEE)
    yield "cmyk_bare.jpg", bare, shown_by_pillow(bare)
    yield "cmyk.tiff", encoded(cmyk, "TIFF"), np.asarray(cmyk.convert("RGB"))
    gray = plain[:, :, 0]
    three = np.repeat(gray[:, :, None], 3, axis=2)
    wide = gray.astype(np.uint16) * 256 + 77
    yield "gray16.png", encoded(wide), three
    yield "gray16.tiff", encoded(wide, "TIFF"), three
    yield "float.tiff", encoded(gray.astype(np.float32) / 255, "TIFF"), three
    half = np.dstack([gray, np.where(np.arange(32) < 16, 255, 0) + 0 * gray]).astype(np.uint8)
    white = np.where((np.arange(32) < 16)[None, :, None], three, 255).astype(np.uint8)
    yield "gray_alpha.png", encoded(Image.fromarray(half, "LA")), white
    palette = Image.fromarray(gray % 4, "L").convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    colours = np.array([[10, 20, 30], [255, 255, 255], [70, 80, 90], [100, 110, 120]], np.uint8)
    yield "palette.png", encoded(palette, transparency=1), colours[gray % 4]
    bits = Image.fromarray(gray > 128).convert("1")
    yield "one_bit.png", encoded(bits), np.repeat((gray > 128)[:, :, None] * np.uint8(255), 3, 2)
    yield "one_pixel.png", encoded(plain[:1, :1]), plain[:1, :1]
    for name, h, w in (("thin.png", 5000, 1), ("flat.png", 1, 5000)):
        yield name, encoded(picture(h, w)), picture(h, w)
    yield "top_down.bmp", _top_down(plain), plain
    tiff = encoded(plain, "TIFF")
    yield "loop.tiff", _self_linked(tiff), plain


def _animated() -> Iterator[tuple[str, bytes, np.ndarray]]:
    colours = [np.full((24, 32, 3), v, np.uint8) for v in ((250, 10, 20), (0, 200, 90))]
    frames = [Image.fromarray(c) for c in colours]
    more = {"save_all": True, "append_images": frames[1:]}
    yield "animated.gif", encoded(frames[0], "GIF", **more), colours[0]
    yield "animated.webp", encoded(frames[0], "WEBP", lossless=True, **more), colours[0]
    yield "animated.png", encoded(frames[0], "PNG", **more), colours[0]


def _turned() -> Iterator[tuple[str, bytes, np.ndarray]]:
    """EXIF orientations: the eight there are, and values that mean nothing."""
    plain = picture(20, 30, seed=9)
    turns: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        2: np.fliplr,
        3: lambda x: np.rot90(x, 2),
        4: np.flipud,
        5: lambda x: x.transpose(1, 0, 2),
        6: lambda x: np.rot90(x, -1),
        7: lambda x: np.rot90(x, 2).transpose(1, 0, 2),
        8: np.rot90,
    }
    for value in (*range(10), 65535):
        exif = Image.Exif()
        exif[0x0112] = value
        data = encoded(plain, "JPEG", quality=95, exif=exif.tobytes())
        shown = turns.get(value, lambda x: x)(shown_by_pillow(data))
        yield f"turned{value}.jpg", data, np.ascontiguousarray(shown)
    garbage = encoded(plain, "JPEG", quality=95, exif=b"Exif\0\0MM\0*" + b"\xff" * 60)
    yield "turned_garbage.jpg", garbage, shown_by_pillow(garbage)


def _without_segment(jpeg: bytes, marker: int) -> bytes:
    at = jpeg.index(bytes([0xFF, marker]))
    return jpeg[:at] + jpeg[at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big") :]


def _top_down(pixels: np.ndarray) -> bytes:
    data = bytearray(encoded(np.ascontiguousarray(pixels[::-1]), "BMP"))
    data[22:26] = struct.pack("<i", -pixels.shape[0])
    return bytes(data)


def _self_linked(tiff: bytes) -> bytes:
    """The TIFF with its first directory named as the one that follows it."""
    (first,) = struct.unpack("<I", tiff[4:8])
    (n,) = struct.unpack("<H", tiff[first : first + 2])
    after = first + 2 + 12 * n
    return tiff[:after] + tiff[4:8] + tiff[after + 4 :]


# --- what is no picture, or not a whole one -------------------------------------------------------


def _damaged() -> Iterator[tuple[str, bytes, str, str]]:
    plain = picture(60, 60)
    for format in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM"):
        data = encoded(plain, format)
        ending = format.lower().replace("tiff", "tif")
        yield f"cut.{ending}", data[: len(data) * 2 // 3], UNDECODABLE, ""
    whole = encoded(plain)
    text = chunk(b"tEXt", b"Comment\0hello", crc=1)
    yield "bad_text_crc.png", whole[:33] + text + whole[33:], UNDECODABLE, "checksum"
    at = whole.index(b"IDAT")
    yield "bad_header_crc.png", whole[:29] + b"\0\0\0\0" + whole[33:], UNDECODABLE, ""
    yield "bad_data.png", whole[: at + 20] + b"\xff" * 8 + whole[at + 28 :], UNDECODABLE, ""
    yield "no_frames.gif", b"GIF89a" + struct.pack("<HHBBB", 9, 9, 0, 0, 0) + b";", UNDECODABLE, ""
    jpeg = encoded(plain, "JPEG")
    lossless = jpeg.replace(b"\xff\xc0", b"\xff\xc3", 1)
    yield "lossless.jpg", lossless, UNDECODABLE, ""


def _not_pictures(proof: Path) -> Iterator[tuple[str, bytes, str, str]]:
    yield "empty.jpg", b"", UNDECODABLE, "empty (0 bytes)"
    yield "zeros.jpg", bytes(4096), UNDECODABLE, "all 4,096 bytes are zero"
    yield "text.jpg", b"This is no picture.\n" * 9, UNDECODABLE, "not a picture of a known format"
    yield "page.jpg", b"<!DOCTYPE html><html>404</html>", UNDECODABLE, "web page"
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>'
    yield "drawing.png", svg, UNDECODABLE, "SVG"
    eps = postscript(proof)
    yield "script.jpg", eps, UNDECODABLE, "not a picture of a known format"
    dos = b"\xc5\xd0\xd3\xc6" + struct.pack("<IIIIIIH", 30, len(eps), 0, 0, 0, 0, 0) + eps
    yield "script.png", dos, UNDECODABLE, ""
    yield "script.eps", eps, SKIPPED, ".eps file"
    psd = b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 9, 9, 8, 3) + bytes(300)
    yield "layers.jpg", psd, UNDECODABLE, ""
    cards = ("SIMPLE  =                    T", "BITPIX  =                    8",
             "NAXIS   =                    2", "NAXIS1  =                    9",
             "NAXIS2  =                    9", "END")  # fmt: skip
    fits = "".join(card.ljust(80) for card in cards).ljust(2880).encode() + bytes(2880)
    yield "stars.jpg", fits, UNDECODABLE, ""
    plain = picture(32, 32)
    for format in ("ICO", "ICNS", "TGA", "PCX", "SGI", "JPEG2000", "DDS"):
        yield f"{format.lower()}_named.jpg", encoded(plain, format), UNDECODABLE, ""


def postscript(proof: Path) -> bytes:
    """An EPS that, given to an interpreter, would make the file `proof`."""
    name = os.fsencode(proof)
    return (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
        b"(%pipe%touch " + name + b") (w) file closefile\n"
        b"mark /OutputFile (%pipe%touch " + name + b") (pdfwrite)finddevice putdeviceprops\n"
        b"showpage\n%%EOF\n"
    )


def _bombs() -> Iterator[tuple[str, bytes, str, str]]:
    """Small files that promise, or hold, far more than a picture needs."""
    side = 20_000
    says = "20,000 x 20,000 = 400,000,000 pixels, more than 100,000,000"
    yield "promise.png", png(side, side, bytes(1000)), TOO_LARGE, says
    line = b"\0" + bytes(side // 8)
    yield "bomb.png", png(side, side, line * side, depth=1, colour=0), TOO_LARGE, says
    jpeg = bytearray(encoded(picture(8, 8), "JPEG"))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", side, side)
    yield "promise.jpg", bytes(jpeg), TOO_LARGE, says
    bmp = bytearray(encoded(picture(8, 8), "BMP"))
    bmp[18:26] = struct.pack("<ii", side, side)
    yield "promise.bmp", bytes(bmp), TOO_LARGE, says
    gif = bytearray(encoded(picture(8, 8), "GIF"))
    gif[6:10] = struct.pack("<HH", side, side)
    yield "promise.gif", bytes(gif), TOO_LARGE, says
    yield "promise.ppm", b"P6 20000 20000 255\n" + bytes(99), TOO_LARGE, says
    tiff = bytearray(encoded(picture(8, 8), "TIFF"))
    for tag in (256, 257):
        at = tiff.index(struct.pack("<HHI", tag, 4, 1))
        tiff[at + 8 : at + 12] = struct.pack("<I", side)
    yield "promise.tif", bytes(tiff), TOO_LARGE, says
    packed = zlib.compress(bytes(2**26), 9)
    for name, body in (
        (b"zTXt", b"Comment\0\0" + packed),
        (b"iTXt", b"Comment\0\1\0\0\0" + packed),
    ):
        text = encoded(picture())
        text = text[:33] + chunk(name, body) + text[33:]
        yield f"bomb_{name.decode()}.png", text, UNDECODABLE, "too large"


# --- names, and what is no plain file -------------------------------------------------------------


def _odd_names(root: Path) -> list[Awkward]:
    """One picture under each name that is hard to print, split or sort."""
    names = [
        b"new\nline.png", b"tab\t.png", b"comma, quote'.png", b'double".png', b"-rf.png",
        b"trailing space .png", b" leading.png", "🐦.png".encode(), "e\u0301.png".encode(),
        b"caf\xe9.png", b"\xff\xfe.png", b"\x1b[31mred.png", b"carriage\rreturn.png",
        b"%s%n{0}.png", b"$(touch proof).png", b"back\\slash.png", b"n" * 246 + b".png",
        b"bad\nline\ttab.jpg",
    ]  # fmt: skip
    made = []
    for i, name in enumerate(names):
        pixels = picture(30, 40, seed=100 + i)
        bad = name.endswith(b".jpg")
        try:
            (root / os.fsdecode(name)).write_bytes(b"no picture\n" if bad else encoded(pixels))
        except (OSError, ValueError):  # a name this file system does not take
            continue
        if bad:
            made.append(Awkward(name, UNDECODABLE, "starts with"))
        else:
            made.append(Awkward(name, DONE, pixels=pixels))
    return made


def _no_plain_files(root: Path) -> list[Awkward]:
    """Links, pipes and folders called like images, and files that are there but cannot be read."""
    (root / "dangling.jpg").symlink_to("nowhere.jpg")
    (root / "loop_a.jpg").symlink_to("loop_b.jpg")
    (root / "loop_b.jpg").symlink_to("loop_a.jpg")
    os.mkfifo(root / "pipe.jpg")
    (root / "folder.jpg").mkdir()
    (root / "folder.jpg" / "again").symlink_to("..", target_is_directory=True)
    (root / "folder.jpg" / "in_it.png").write_bytes(encoded(picture(seed=50)))
    (root / "linked.png").symlink_to("good0.png")
    made = [
        Awkward(b"dangling.jpg", SKIPPED, "dangling symbolic link"),
        Awkward(b"loop_a.jpg", SKIPPED, "symbolic link loop"),
        Awkward(b"loop_b.jpg", SKIPPED, "symbolic link loop"),
        Awkward(b"folder.jpg/again", SKIPPED, "symbolic link loop"),
        Awkward(b"pipe.jpg", SKIPPED, "not a regular file"),
        Awkward(b"folder.jpg/in_it.png", DONE, pixels=picture(seed=50)),
        Awkward(b"linked.png", DONE, pixels=picture(40, 30, 0)),
    ]
    if sys.platform == "linux":  # a plain file by its looks, whose first byte cannot be read
        (root / "io_error.jpg").symlink_to("/proc/self/mem")
        made.append(Awkward(b"io_error.jpg", UNREADABLE, "Input/output error"))
    if os.geteuid() != 0:
        (root / "forbidden.png").write_bytes(encoded(picture()))
        (root / "forbidden.png").chmod(0)
        made.append(Awkward(b"forbidden.png", UNREADABLE, "Permission denied"))
    return made
