"""What a loader gives, as bytes between processes and as a batch for an engine."""

from __future__ import annotations

import numpy as np
import pytest

from featx.loading import AnyLoader, Loader, ManyLoader, Picture, batch_of
from featx.resampling import Windows
from featx.transforms import Transform

PLAIN = Transform(resize=16, crop=12, mean=(0.0,) * 3, std=(1.0,) * 3)
GREY = PLAIN.replace(mean=(0.0,), std=(1.0,), channels=1)
SHA256 = b"s" * 32
LEFT = Loader(PLAIN, windows=True)
MANY = ManyLoader((Loader(PLAIN), Loader(PLAIN.replace(crop=9)), Loader(GREY)))
LOADERS = [Loader(PLAIN), LEFT, MANY, Loader(GREY), Loader(GREY, windows=True)]


def picture(h: int, w: int, loader: AnyLoader = LEFT) -> Picture:
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(noise(h, w)).save(stream, "PNG")
    return loader.picture(stream.getvalue(), SHA256)


def noise(h: int, w: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (h, w, 3), dtype=np.uint8)


@pytest.mark.parametrize("loader", LOADERS, ids=["resized", "left", "many", "grey", "grey left"])
@pytest.mark.parametrize(("h", "w"), [(1, 1), (30, 40), (16, 20), (60, 20), (64, 64), (65, 66)])
def test_a_picture_survives_the_way_between_processes(loader: AnyLoader, h: int, w: int) -> None:
    before = picture(h, w, loader)
    body = bytearray(b"".join(loader.packed(before)))
    least, most = loader.body_bytes
    assert least <= len(body) <= most
    after = loader.unpacked(body, SHA256)
    assert np.array_equal(after.pixels, before.pixels)
    assert (after.sha256, after.window) == (SHA256, before.window)


def test_pixels_of_another_shape_are_a_defect() -> None:
    for loader in LOADERS:
        with pytest.raises(AssertionError):
            loader.packed(Picture(noise(12, 13), SHA256))


def test_a_batch_of_resized_pictures_is_an_array_and_black_where_there_are_none() -> None:
    batch = batch_of([Picture(noise(12, 12), SHA256), Picture(noise(12, 12) // 2, SHA256)], 3)
    assert isinstance(batch, np.ndarray)
    assert np.array_equal(batch, [noise(12, 12), noise(12, 12) // 2, np.zeros((12, 12, 3))])


def test_one_picture_that_is_left_to_be_resized_makes_it_a_batch_of_windows() -> None:
    pictures = [picture(16, 20), picture(30, 40), picture(16, 20)]
    batch = batch_of(pictures, 5)
    assert isinstance(batch, Windows)
    assert (len(batch), batch.crop) == (5, 12)
    assert [window is None for _, window in batch.parts] == [True, False, True]
    assert isinstance(batch_of([picture(16, 20)], 5), np.ndarray)


@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
@pytest.mark.parametrize("windows", [False, True])
def test_one_channel_is_the_grey_that_pillow_makes_of_the_file(mode: str, windows: bool) -> None:
    import io

    from PIL import Image

    image = Image.fromarray(noise(30, 40)).convert(mode)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    loader = Loader(GREY.replace(resize=None, crop=30), windows=windows)
    got = loader.picture(stream.getvalue(), SHA256).pixels
    assert got.shape == (30, 30, 1)
    assert np.array_equal(got[..., 0], np.asarray(image.convert("L"))[:, 5:35])
    left = Loader(GREY, windows=True).picture(stream.getvalue(), SHA256)
    assert left.window is not None
    assert left.pixels.shape == left.window.shape
    assert left.pixels.shape[2] == 1


def test_grey_and_colour_are_made_of_one_decoding() -> None:
    whole = picture(30, 40, MANY)
    colour, _, grey = MANY.parts(whole)
    assert (colour.pixels.shape, grey.pixels.shape) == ((12, 12, 3), (12, 12, 1))
    assert np.array_equal(grey.pixels, picture(30, 40, Loader(GREY)).pixels)
