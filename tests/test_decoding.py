"""One file becomes its own pixels, or an error that says why not."""

from __future__ import annotations

import csv
import io
import os
import struct
import sys
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps

from featx import decoding
from featx.decoding import DecodeOptions, decode, from_pil, read_image
from featx.errors import ImageError

REAL_DATA = Path(os.environ.get("FEATX_REAL_DATA", Path(__file__).parents[1].parent / "shared"))
AWKWARD = REAL_DATA / "data" / "awkward"
OPTIONS = DecodeOptions()


def picture(h: int = 40, w: int = 56, seed: int = 0) -> np.ndarray:
    """Return smooth colours with some texture, as photographs have."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((w, h), Image.Resampling.BICUBIC)
    noise = rng.integers(-9, 10, (h, w, 3))
    return np.clip(np.asarray(image).astype(int) + noise, 0, 255).astype(np.uint8)


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def jpeg(h: int = 40, w: int = 56, *, mode: str = "RGB", **options: object) -> bytes:
    return encoded(Image.fromarray(picture(h, w)).convert(mode), "JPEG", **options)


def with_orientation(value: object, format: str = "JPEG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    image = Image.fromarray(picture(20, 30))
    options = {"tiffinfo": {0x0112: value}} if format == "TIFF" else {"exif": exif.tobytes()}
    return encoded(image, format, **options)


def png(w: int, h: int, rows: bytes, *, depth: int = 8) -> bytes:
    """Return an RGB PNG written by hand: its header may promise more than its rows hold."""
    header = struct.pack(">IIBBBBB", w, h, depth, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


# --- JPEG, fast and exact -------------------------------------------------------------------------

JPEGS = {
    "4:4:4": jpeg(subsampling=0),
    "4:2:2": jpeg(subsampling=1),
    "4:2:0": jpeg(subsampling=2),
    "low quality": jpeg(quality=5),
    "progressive": jpeg(progressive=True),
    "restart markers": jpeg(restart_marker_rows=1),
    "gray": jpeg(mode="L"),
    "gray progressive": jpeg(mode="L", progressive=True),
    "RGB kept": jpeg(keep_rgb=True),
    "odd size": jpeg(37, 53),
    "one pixel": jpeg(1, 1),
    "one column": jpeg(300, 1),
    "one row": jpeg(1, 301),
}


@pytest.mark.parametrize("name", JPEGS)
def test_fast_jpeg_has_the_bits_of_pillow(name: str) -> None:
    pytest.importorskip("simplejpeg")
    data = JPEGS[name]
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    exact, fast = (decode(data, OPTIONS, fast=fast) for fast in (False, True))
    assert np.array_equal(exact, expected)
    assert np.array_equal(fast, expected)
    assert fast.dtype == np.uint8
    assert fast.flags.c_contiguous
    assert fast.flags.writeable
    assert exact.flags.writeable


def test_fast_jpeg_really_goes_through_simplejpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    simplejpeg = pytest.importorskip("simplejpeg")
    calls = []
    real = simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *a, **k: calls.append(1) or real(*a, **k))
    decode(jpeg(), OPTIONS, fast=True)
    decode(jpeg(mode="L"), OPTIONS, fast=True)
    assert len(calls) == 2
    decode(jpeg(), OPTIONS, fast=False)
    decode(jpeg(mode="CMYK"), OPTIONS, fast=True)
    decode(encoded(Image.new("RGB", (4, 4))), OPTIONS, fast=True)
    assert len(calls) == 2


def test_without_simplejpeg_pillow_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = decode(JPEGS["4:2:0"], OPTIONS, fast=True)
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    decoding.jpeg_module.cache_clear()
    try:
        assert decoding.jpeg_module() is None
        assert np.array_equal(decode(JPEGS["4:2:0"], OPTIONS, fast=True), expected)
    finally:
        decoding.jpeg_module.cache_clear()


def test_a_jpeg_simplejpeg_refuses_is_left_to_pillow() -> None:
    data = jpeg() + b"trailing"
    damaged = bytearray(jpeg(80, 80, quality=90))
    damaged[-200] ^= 0xFF
    for candidate in (data, bytes(damaged)):
        exact = outcome(candidate, fast=False)
        fast = outcome(candidate, fast=True)
        assert type(exact) is type(fast)
        assert np.array_equal(exact, fast)


def outcome(data: bytes, *, fast: bool, options: DecodeOptions = OPTIONS) -> object:
    """Return the pixels, or the status of the refusal."""
    try:
        return decode(data, options, fast=fast)
    except ImageError as error:
        return error.status


# --- orientation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_as_pillow_does(orientation: int, fast: bool) -> None:
    data = with_orientation(orientation)
    image = Image.open(io.BytesIO(data))
    turned = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(decode(data, OPTIONS, fast=fast), turned)
    assert np.array_equal(decode(data, DecodeOptions(exif=False), fast=fast), np.asarray(image))
    assert np.array_equal(from_pil(Image.open(io.BytesIO(data))), turned)


@pytest.mark.parametrize("format", ["TIFF", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_means_the_same_in_every_format(orientation: int, format: str) -> None:
    options = {"lossless": True} if format == "WEBP" else {}
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = picture(20, 30)
    data = encoded(Image.fromarray(stored), format, exif=exif.tobytes(), **options)
    reference = Image.fromarray(stored)
    reference.getexif()[0x0112] = orientation
    turned = np.asarray(ImageOps.exif_transpose(reference))
    assert np.array_equal(decode(data, OPTIONS, fast=True), turned)
    assert np.array_equal(decode(data, DecodeOptions(exif=False), fast=True), stored)


@pytest.mark.parametrize("value", [0, 9, 255, 60000])
def test_an_orientation_out_of_range_is_ignored(value: int) -> None:
    upright = decode(with_orientation(1), OPTIONS, fast=True)
    assert np.array_equal(decode(with_orientation(value), OPTIONS, fast=True), upright)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("cut", [7, 12, 20, 25])
def test_damaged_exif_never_loses_the_picture(cut: int, fast: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "maker" * 20
    data = encoded(Image.fromarray(picture(20, 30)), "JPEG", exif=exif.tobytes()[:cut])
    pixels = decode(data, OPTIONS, fast=fast)
    assert pixels.shape in ((20, 30, 3), (30, 20, 3))


@pytest.mark.parametrize("exif", [b"MM", b"MM\0*\0\0"])
def test_exif_that_cannot_be_parsed_counts_as_upright(exif: bytes) -> None:
    stored = picture(20, 30)
    data = encoded(Image.fromarray(stored), "PNG", exif=exif)
    with pytest.raises((SyntaxError, struct.error)):
        Image.open(io.BytesIO(data)).getexif()
    assert np.array_equal(decode(data, OPTIONS, fast=True), stored)


# --- modes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "YCbCr", "HSV", "RGBX"])
def test_plain_modes_are_pillows_own_conversion(mode: str) -> None:
    image = Image.fromarray(picture()).convert(mode)
    assert np.array_equal(from_pil(image), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGBa", "La"])
def test_what_hides_under_transparent_pixels_does_not_show(mode: str) -> None:
    hidden = picture(8, 8)
    alpha = np.zeros((8, 8), np.uint8)
    alpha[:4] = 255
    image = Image.fromarray(np.dstack([hidden, alpha]))
    if mode in ("LA", "La"):
        image = image.convert("LA")
    shown = np.asarray(image.convert("RGB"))
    pixels = from_pil(image.convert(mode))
    assert np.array_equal(pixels[:4], shown[:4])
    assert (pixels[4:] == 255).all()
    assert not (shown[4:] == 255).all()


def test_a_palette_with_alpha_is_looked_up_and_laid_over_white() -> None:
    image = Image.new("PA", (3, 1))
    image.putpalette([1, 2, 3, 40, 50, 60])
    for x, value in enumerate([(1, 255), (1, 0), (0, 255)]):
        image.putpixel((x, 0), value)
    assert from_pil(image).tolist() == [[[40, 50, 60], [255, 255, 255], [1, 2, 3]]]


def test_half_transparent_pixels_are_blended_with_white() -> None:
    pixels = from_pil(Image.new("RGBA", (1, 1), (0, 100, 200, 51)))  # 20 % opaque
    assert pixels.tolist() == [[[204, 224, 244]]]


@pytest.mark.parametrize("transparency", [2, bytes([255, 255, 0, 255])])
def test_a_transparent_palette_colour_is_white(transparency: object) -> None:
    image = Image.new("P", (2, 2))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    image.putdata([0, 1, 2, 3])
    data = encoded(image, transparency=transparency)
    expected = [[[10, 20, 30], [40, 50, 60]], [[255, 255, 255], [100, 110, 120]]]
    assert decode(data, OPTIONS, fast=True).tolist() == expected


@pytest.mark.parametrize(
    ("mode", "key", "values", "expected"),
    [
        ("L", 7, [7, 8], [255, 8]),
        ("1", 0, [0, 255], [255, 255]),
        ("RGB", (1, 2, 3), [(1, 2, 3), (1, 2, 4)], [255, 1]),
        ("I;16", 0x1234, [0x1234, 0x1235], [255, 0x12]),
    ],
)
def test_a_colour_declared_transparent_is_white(
    mode: str, key: object, values: list, expected: list
) -> None:
    image = Image.new(mode, (2, 1))
    for x, value in enumerate(values):
        image.putpixel((x, 0), value)
    pixels = decode(encoded(image, transparency=key), OPTIONS, fast=True)
    assert pixels[0, :, 0].tolist() == expected


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B"])
def test_sixteen_bit_gray_is_its_high_byte_as_in_pillows_sixteen_bit_rgb(mode: str) -> None:
    values = np.array([[0, 255, 256, 0x1234, 0xFFFF]], np.uint16)
    order = ">u2" if mode == "I;16B" else "<u2"
    image = Image.frombytes(mode, (5, 1), values.astype(order).tobytes())
    assert from_pil(image)[0, :, 0].tolist() == [0, 0, 1, 0x12, 0xFF]
    rgb = np.repeat(values[:, :, None], 3, axis=2).astype(">u2")
    data = png(5, 1, b"\0" + rgb.tobytes(), depth=16)
    assert np.array_equal(decode(data, OPTIONS, fast=True), from_pil(image))


@pytest.mark.parametrize(
    ("mode", "values", "expected"),
    [
        ("I", [0, 7, 255], [0, 7, 255]),
        ("I", [0, 256, 65535], [0, 1, 255]),
        ("I", [-100, 0, 100], [0, 128, 255]),
        ("I", [0, 2**31 - 1, 2**30], [0, 255, 128]),
        ("I", [70000, 70000, 70000], [0, 0, 0]),
        ("F", [0.0, 0.5, 1.0], [0, 128, 255]),
        ("F", [0.0, 100.4, 255.0], [0, 100, 255]),
        ("F", [-1.0, 0.0, 1.0], [0, 128, 255]),
        ("F", [-3e38, 0.0, 3e38], [0, 128, 255]),
        ("F", [0.25, np.nan, 0.5], [64, 0, 128]),
        ("F", [np.inf, -np.inf, 300.0], [0, 0, 0]),
        ("F", [np.nan, np.nan, np.nan], [0, 0, 0]),
    ],
)
def test_values_without_a_nominal_range_follow_their_own(
    mode: str, values: list, expected: list
) -> None:
    image = Image.fromarray(np.array([values], np.int32 if mode == "I" else np.float32))
    assert image.mode == mode
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = from_pil(image)
    assert pixels[0, :, 0].tolist() == expected
    assert (pixels == pixels[:, :, :1]).all()


def test_lab_becomes_srgb() -> None:
    image = Image.new("LAB", (1, 1), (255, 128, 128))
    assert np.abs(from_pil(image).astype(int) - 255).max() <= 1
    red = from_pil(Image.new("LAB", (1, 1), (136, 208, 195)))[0, 0]  # L 53, a 80, b 67
    assert red[0] > 240
    assert red[1:].max() < 30


def test_an_animation_is_its_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for format in ("GIF", "PNG", "WEBP", "TIFF"):
        lossless = {"lossless": True} if format == "WEBP" else {}
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **lossless)
        assert decode(data, OPTIONS, fast=True)[0, 0].tolist() == [255, 0, 0], format


def test_from_pil_does_not_change_its_image() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([1, 2, 3, 4, 5, 6])
    image.info["transparency"] = 0
    before = image.convert("RGB").tobytes(), image.getpalette(), dict(image.info)
    from_pil(image)
    assert (image.convert("RGB").tobytes(), image.getpalette(), dict(image.info)) == before
    image.info.clear()  # the palette itself must not have become transparent
    assert image.convert("RGBA").getpixel((0, 0)) == (1, 2, 3, 255)


# --- refusals -------------------------------------------------------------------------------------


def whole_files() -> dict[str, bytes]:
    image = Image.fromarray(picture(60, 60))
    return {
        "jpeg": jpeg(60, 60),
        "progressive": jpeg(60, 60, progressive=True),
        "png": encoded(image),
        "gif": encoded(image, "GIF"),
        "bmp": encoded(image, "BMP"),
        "tiff": encoded(image, "TIFF"),
        "tiff lzw": encoded(image, "TIFF", compression="tiff_lzw"),
        "webp": encoded(image, "WEBP"),
        "ppm": encoded(image, "PPM"),
    }


@pytest.mark.parametrize("users_choice", [False, True])
@pytest.mark.parametrize("name", whole_files())
def test_a_truncated_file_is_an_error_never_filled_with_gray(
    name: str, users_choice: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", users_choice)
    data = whole_files()[name]
    assert decode(data, OPTIONS, fast=True).shape == (60, 60, 3)
    for kept in (0.95, 0.7, 0.4):
        for fast in (False, True):
            with pytest.raises(ImageError) as caught:
                decode(data[: int(len(data) * kept)], OPTIONS, fast=fast)
            assert caught.value.status == 3
    assert users_choice is ImageFile.LOAD_TRUNCATED_IMAGES


def test_more_than_max_pixels_is_refused_from_the_header_with_both_numbers() -> None:
    with pytest.raises(ImageError, match=r"60,000 x 50,000 = 3,000,000,000 .* 100,000,000") as info:
        decode(png(60_000, 50_000, bytes(1000)), OPTIONS, fast=True)
    assert info.value.status == 4
    with pytest.raises(ImageError, match="56 x 40 = 2,240 pixels, more than 2,239") as info:
        decode(jpeg(), DecodeOptions(max_pixels=2239), fast=True)
    assert info.value.status == 4
    assert decode(jpeg(), DecodeOptions(max_pixels=2240), fast=True).shape == (40, 56, 3)


def promising_webp(side: int, kind: str) -> bytes:
    """A small WebP whose header says that it is a square of `side` pixels."""
    frames = [Image.fromarray(picture(8, 8, seed)) for seed in (0, 1)]
    options = {"save_all": True, "append_images": frames[1:]} if kind == "VP8X" else {}
    data = bytearray(encoded(frames[0], "WEBP", lossless=kind != "VP8 ", **options))
    at = data.index(kind.encode()) + 8
    if kind == "VP8X":
        data[at + 4 : at + 10] = (side - 1).to_bytes(3, "little") * 2
    elif kind == "VP8L":
        bits = int.from_bytes(data[at + 1 : at + 5], "little") >> 28 << 28
        bits |= (side - 1) | (side - 1) << 14
        data[at + 1 : at + 5] = bits.to_bytes(4, "little")
    else:
        data[at + 6 : at + 10] = struct.pack("<HH", side, side)
    return bytes(data)


@pytest.mark.parametrize(("kind", "side"), [("VP8X", 40_000), ("VP8L", 16_384), ("VP8 ", 16_383)])
def test_a_large_webp_is_refused_before_its_decoder_reserves_canvases(
    kind: str, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reserve(*_: object) -> None:
        raise AssertionError("the decoder was made")

    data = promising_webp(side, kind)
    assert decode(promising_webp(8, kind), OPTIONS, fast=True).shape == (8, 8, 3)
    monkeypatch.setattr(decoding, "_open", reserve)
    with pytest.raises(ImageError, match=f"{side:,} x {side:,} = ") as caught:
        decode(data, OPTIONS, fast=True)
    assert caught.value.status == 4


def test_pillows_own_limit_neither_refuses_nor_warns_nor_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for data in whole_files().values():
            assert decode(data, OPTIONS, fast=False).shape == (60, 60, 3)
    assert Image.MAX_IMAGE_PIXELS == 100
    assert decoding._held == []


def test_settings_of_pillow_survive_threads_and_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    whole = list(whole_files().values())
    files = [data[: len(data) // 2] for data in whole] + whole

    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda data: outcome(data, fast=False), files * 5))
    wanted = ([3] * len(whole) + [(60, 60, 3)] * len(whole)) * 5
    assert [g if isinstance(g, int) else g.shape for g in got] == wanted
    assert Image.MAX_IMAGE_PIXELS == 100
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_warnings_as_errors_lose_no_picture_in_threads() -> None:
    warned = encoded(Image.fromarray(picture(20, 30)), "TIFF", tiffinfo={305: "x" * 40})
    at = warned.index(struct.pack("<HHI", 305, 2, 41))
    warned = warned[: at + 4] + struct.pack("<I", 2**24) + warned[at + 8 :]  # a tag without an end
    with pytest.warns(UserWarning, match="data"):
        Image.open(io.BytesIO(warned)).load()
    results = []

    def work() -> None:
        results.extend(outcome(warned, fast=True) for _ in range(5))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert warnings.filters[0][0] == "error"
    assert len(results) == 20
    assert all(isinstance(r, np.ndarray) and r.shape == (20, 30, 3) for r in results)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (bytes(100), "all 100 bytes are zero"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture of a known format"),
        (b"%PDF-1.4\n", "not a picture of a known format"),
        (b"\xff\xd8\xff\xe0" + bytes(20), "JPEG"),
    ],
)
def test_what_is_no_picture_is_named(data: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=words) as caught:
        decode(data, OPTIONS, fast=True)
    assert caught.value.status == 3
    assert "\n" not in str(caught.value)


def test_heic_without_its_extra_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    data = struct.pack(">I", 24) + b"ftypheic" + bytes(40)
    with pytest.raises(ImageError, match=r"pip install 'featx\[heic\]'"):
        decode(data, OPTIONS, fast=True)


@pytest.mark.parametrize("error", decoding.DECODER_ERRORS)
def test_whatever_a_decoder_raises_becomes_an_image_error(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise error("what\nit said")

    monkeypatch.setattr(decoding, "rgb_of", broken)
    with pytest.raises(ImageError, match="what it said") as caught:
        decode(jpeg(), OPTIONS, fast=False)
    assert caught.value.status == 3
    with pytest.raises(ImageError, match="what it said"):
        from_pil(Image.new("RGB", (1, 1)))


@given(st.sampled_from(sorted(whole_files())), st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_damaged_bytes_end_in_pixels_or_an_image_error(name: str, draws: st.DataObject) -> None:
    data = bytearray(FILES[name])
    for _ in range(draws.draw(st.integers(1, 4))):
        data[draws.draw(st.integers(0, len(data) - 1))] = draws.draw(st.integers(0, 255))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = outcome(bytes(data), fast=True, options=DecodeOptions(max_pixels=10**6))
    assert got in (3, 4) if isinstance(got, int) else got.shape[2] == 3


FILES = whole_files()


def test_an_unreadable_file_has_its_own_status(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.jpg", tmp_path):
        with pytest.raises(ImageError) as caught:
            read_image(path)
        assert caught.value.status == 2
        assert str(tmp_path) not in str(caught.value)
    (tmp_path / "a.jpg").write_bytes(b"abc")
    assert read_image(tmp_path / "a.jpg") == b"abc"


def test_a_file_too_large_to_be_a_photograph_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "MAX_FILE_BYTES", 2)
    (tmp_path / "a.jpg").write_bytes(b"abc")
    with pytest.raises(ImageError, match="3 bytes, more than 2") as caught:
        read_image(tmp_path / "a.jpg")
    assert caught.value.status == 4


# --- real files -----------------------------------------------------------------------------------


def awkward_rows() -> list[dict[str, str]]:
    if not (AWKWARD / "manifest.csv").is_file():
        return []
    with (AWKWARD / "manifest.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.real_data
@pytest.mark.skipif(not AWKWARD.is_dir(), reason="no FEATX_REAL_DATA with data/awkward")
def test_every_awkward_file_ends_as_its_manifest_says() -> None:
    rows = awkward_rows()
    assert len(rows) > 100
    wrong = []
    for row in rows:
        data = read_image(AWKWARD / row["file"])
        exact, fast = (outcome(data, fast=fast) for fast in (False, True))
        if not np.array_equal(exact, fast):
            wrong.append((row["file"], "fast and exact differ"))
        elif row["decodes_with_pillow"] != "decodes":
            if exact not in (3, 4):
                wrong.append((row["file"], "decoded", row["decodes_with_pillow"]))
        elif isinstance(exact, int):
            wrong.append((row["file"], exact))
        elif exact.shape[:2] != upright_size(row, data):
            wrong.append((row["file"], exact.shape, row["size"]))
    assert wrong == []


def upright_size(row: dict[str, str], data: bytes) -> tuple[int, int]:
    """Return (h, w) after EXIF; the manifest's size of TIFF is after it already."""
    w, h = map(int, row["size"].split("x"))
    turns = int(row["exif_orientation"] or 1) >= 5 and row["format"] != "TIFF"
    return (w, h) if turns else (h, w)


@pytest.mark.real_data
@pytest.mark.skipif(not (REAL_DATA / "data" / "birds").is_dir(), reason="no FEATX_REAL_DATA")
def test_fast_has_the_bits_of_pillow_on_real_photographs() -> None:
    files = sorted((REAL_DATA / "data" / "birds").glob("*/*/*.jpg"))[::6]
    assert len(files) > 50
    for file in files:
        data = read_image(file)
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert np.array_equal(decode(data, DecodeOptions(exif=False), fast=True), expected), file


def test_a_file_too_short_to_be_a_picture_is_not_called_a_bad_bitmap() -> None:
    with pytest.raises(ImageError, match="not a picture of a known format: it starts with 78"):
        decode(b"x", DecodeOptions(), fast=False)
