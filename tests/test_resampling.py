"""Products of matrices give the bits of Pillow's bilinear resize, for any picture."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from featx import resampling
from featx.resampling import is_worthwhile, matches_pillow, resized_window

# (h, w) before and after: smaller, larger, one axis each way, odd, halves, thirds, one pixel, and
# the sizes of photographs
SIZES = [
    ((375, 500), (256, 341)),
    ((333, 500), (256, 384)),
    ((500, 375), (341, 256)),
    ((342, 299), (391, 342)),
    ((480, 640), (232, 309)),
    ((64, 64), (32, 32)),
    ((99, 66), (33, 22)),
    ((31, 90), (64, 45)),
    ((7, 7), (8, 8)),
    ((9, 9), (8, 8)),
    ((1, 1), (5, 3)),
    ((3, 1), (2, 9)),
    ((130, 170), (1, 1)),
    ((97, 131), (83, 113)),
]


def hard_pictures(h: int, w: int) -> dict[str, np.ndarray]:
    """Return pictures of extremes, of edges at every pixel, and of sums half way between values."""
    rng = np.random.default_rng(h * 1000 + w)
    y, x = np.mgrid[:h, :w]
    gray = {
        "white": np.full((h, w), 255),
        "checkerboard": (x + y) % 2 * 255,
        "columns": x % 2 * 255,
        "rows": y // 2 % 2 * 255,
        "halves": (x + y) % 2,
        "ramp": (x + 3 * y) % 256,
    }
    pictures = {name: np.repeat(v[..., None], 3, axis=2) for name, v in gray.items()}
    pictures["noise"] = rng.integers(0, 256, (h, w, 3))
    pictures["extremes"] = rng.integers(0, 2, (h, w, 3)) * 255
    pictures["tints"] = rng.integers(127, 129, (h, w, 3))
    return {name: v.astype(np.uint8) for name, v in pictures.items()}


def by_pillow(pixels: np.ndarray, h: int, w: int) -> np.ndarray:
    """Return Pillow's resize, along the rows first whatever the shape."""
    image = Image.fromarray(pixels).resize((w, pixels.shape[0]), Image.Resampling.BILINEAR)
    return np.asarray(image.resize((w, h), Image.Resampling.BILINEAR))


@pytest.mark.parametrize(("size", "new"), SIZES)
def test_a_resized_picture_has_the_bits_of_pillow(
    size: tuple[int, int], new: tuple[int, int]
) -> None:
    for name, pixels in hard_pictures(*size).items():
        got = resized_window(pixels, new, (0, 0), new)
        assert np.array_equal(got, by_pillow(pixels, *new)), name
        assert got.flags.c_contiguous
        assert got.flags.owndata


@given(st.tuples(*[st.integers(1, 150)] * 4), st.data())
@settings(max_examples=150, deadline=None)
def test_any_window_of_any_size_is_that_part_of_pillows(
    sizes: tuple[int, int, int, int], draws: st.DataObject
) -> None:
    h, w, new_h, new_w = sizes
    top, left = draws.draw(st.integers(0, new_h - 1)), draws.draw(st.integers(0, new_w - 1))
    n_rows = draws.draw(st.integers(1, new_h - top))
    n_columns = draws.draw(st.integers(1, new_w - left))
    rng = np.random.default_rng(draws.draw(st.integers(0, 2**32)))
    pixels = rng.integers(0, 256, (h, w, 3), dtype=np.uint8)
    expected = by_pillow(pixels, new_h, new_w)[top : top + n_rows, left : left + n_columns]
    got = resized_window(pixels, (new_h, new_w), (top, left), (n_rows, n_columns))
    assert np.array_equal(got, expected)


@pytest.mark.parametrize("n", [1, 7, 50, 10**6])
def test_rows_taken_some_at_a_time_give_the_same(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = hard_pictures(75, 100)["noise"]
    monkeypatch.setattr(resampling, "_MAX_PLANES", 3 * 100 * n)
    got = resized_window(pixels, (51, 68), (0, 0), (51, 68))
    assert np.array_equal(got, by_pillow(pixels, 51, 68))


def test_no_sum_needs_more_bits_than_a_float_has() -> None:
    for n_in, n_out in [(500, 341), (375, 256), (1000, 250), (10, 97), (7, 1)]:
        weights = resampling._weights(n_in, n_out, 0, n_out)
        for first, end, low, high, matrix in weights.blocks:
            assert matrix.shape == (high - low, end - first)
            units = matrix * 2**22
            assert np.array_equal(units, np.rint(units))
            assert matrix.min() >= 0
            assert 255 * matrix.sum(axis=0).max() + 0.5 < 256


def test_what_is_cut_off_was_rounded_half_up() -> None:
    pixels = np.zeros((2, 2, 3), np.uint8)
    pixels[:, 1] = [1, 2, 3]
    assert resized_window(pixels, (1, 1), (0, 0), (1, 1)).tolist() == [[[1, 1, 2]]]


def test_threads_do_not_share_memory() -> None:
    pictures = [hard_pictures(90 + i, 120)["noise"] for i in range(4)]
    expected = [by_pillow(pixels, 64, 85) for pixels in pictures]

    def right(i: int) -> bool:
        got = resized_window(pictures[i % 4], (64, 85), (0, 0), (64, 85))
        return np.array_equal(got, expected[i % 4])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(right, range(400)))


def test_one_result_is_not_overwritten_by_the_next() -> None:
    one, other = hard_pictures(30, 40)["noise"], hard_pictures(30, 40)["white"]
    first = resized_window(one, (20, 27), (0, 0), (20, 27))
    resized_window(other, (20, 27), (0, 0), (20, 27))
    assert np.array_equal(first, by_pillow(one, 20, 27))


def test_a_pillow_that_resizes_otherwise_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    matches_pillow.cache_clear()
    assert matches_pillow()
    real = Image.Image.resize
    for change in (Image.Resampling.HAMMING, Image.Resampling.BOX):
        monkeypatch.setattr(Image.Image, "resize", lambda im, size, _, c=change: real(im, size, c))
        matches_pillow.cache_clear()
        assert not matches_pillow()
    monkeypatch.undo()
    matches_pillow.cache_clear()


@pytest.mark.parametrize(
    ("h", "w", "new_h", "new_w", "expected"),
    [
        (375, 500, 256, 341, True),
        (200, 300, 256, 384, True),
        (256, 300, 256, 300, False),
        (256, 300, 300, 300, False),
        (1024, 1024, 256, 256, True),
        (1030, 1030, 256, 256, False),
        (300, 400, 9000, 12000, True),
        (3900, 3900, 1000, 1000, False),
        (20, 20, 1000, 1000, False),
    ],
)
def test_it_is_used_where_it_is_faster_and_needs_little_memory(
    h: int, w: int, new_h: int, new_w: int, expected: bool
) -> None:
    crop = 224 if new_h != 1000 else 1000
    assert is_worthwhile(h, w, new_h, new_w, crop) is expected
