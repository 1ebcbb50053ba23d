"""Resizing has the bits of Pillow's for any picture, by the compiled kernel and without it."""

from __future__ import annotations

import importlib
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from featx import resampling
from featx.resampling import kernel, resized_window, weights_of, why_pillow

# Whether there is what installing featx needs to compile its kernel.
COMPILER = (
    shutil.which((sysconfig.get_config_var("CC") or "cl").split()[0])
    and Path(sysconfig.get_path("include"), "Python.h").is_file()
)
needs_kernel = pytest.mark.skipif(not COMPILER, reason="there is no C compiler")
WITH_KERNEL = ("bilinear", "bicubic")

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
    ((900, 700), (60, 47)),  # fifteen times smaller
    ((5, 200), (5, 90)),  # one axis stays as it is
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


def by_pillow(pixels: np.ndarray, h: int, w: int, interpolation: str = "bilinear") -> np.ndarray:
    """Return Pillow's resize, along the rows first whatever the shape."""
    filter_ = Image.Resampling[interpolation.upper()]
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    image = image.resize((w, pixels.shape[0]), filter_).resize((w, h), filter_)
    return np.asarray(image).reshape(h, w, -1)


@pytest.fixture
def fresh() -> Iterator[None]:
    """What was found out about the kernel is forgotten, before and after."""
    why_pillow.cache_clear()
    yield
    why_pillow.cache_clear()


@pytest.fixture(params=["compiled", "by Pillow"])
def way(request: pytest.FixtureRequest, fresh: None, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the kernel, where it is there, and as if featx had been installed without it."""
    if request.param == "by Pillow":
        monkeypatch.setitem(sys.modules, "featx._resample", None)
    elif not COMPILER:
        pytest.skip("there was no C compiler when featx was installed")
    for interpolation in WITH_KERNEL:
        assert (kernel(interpolation) is None) == (request.param == "by Pillow")
    return request.param


@pytest.mark.parametrize("interpolation", WITH_KERNEL)
@pytest.mark.parametrize(("size", "new"), SIZES)
def test_a_resized_picture_has_the_bits_of_pillow(
    size: tuple[int, int], new: tuple[int, int], interpolation: str, way: str
) -> None:
    for name, pixels in hard_pictures(*size).items():
        expected = by_pillow(pixels, *new, interpolation)
        got = resized_window(pixels, new, (0, 0), new, interpolation)
        assert np.array_equal(got, expected), name
        assert got.flags.c_contiguous
        assert got.flags.owndata
        assert got.flags.writeable
        grey = resized_window(pixels[..., 1:2], new, (0, 0), new, interpolation)
        assert np.array_equal(grey, expected[..., 1:2]), name


@pytest.mark.parametrize("interpolation", WITH_KERNEL)
@given(st.tuples(*[st.integers(1, 150)] * 4), st.data())
@settings(max_examples=120, deadline=None)
def test_any_window_of_any_size_is_that_part_of_pillows(
    interpolation: str, sizes: tuple[int, int, int, int], draws: st.DataObject
) -> None:
    h, w, new_h, new_w = sizes
    top, left = draws.draw(st.integers(0, new_h - 1)), draws.draw(st.integers(0, new_w - 1))
    n_rows = draws.draw(st.integers(1, new_h - top))
    n_columns = draws.draw(st.integers(1, new_w - left))
    channels = draws.draw(st.sampled_from([1, 3]))
    rng = np.random.default_rng(draws.draw(st.integers(0, 2**32)))
    pixels = rng.integers(0, 256, (h, w, channels), dtype=np.uint8)
    expected = by_pillow(pixels, new_h, new_w, interpolation)
    expected = expected[top : top + n_rows, left : left + n_columns]
    window = (new_h, new_w), (top, left), (n_rows, n_columns), interpolation
    assert np.array_equal(resized_window(pixels, *window), expected)
    assert np.array_equal(resampling._by_pillow(pixels, resampling._Part(*window)), expected)


@pytest.mark.parametrize("interpolation", ["nearest", "box", "hamming", "lanczos"])
def test_other_filters_are_left_to_pillow(interpolation: str) -> None:
    pixels = hard_pictures(75, 100)["noise"]
    assert kernel(interpolation) is None
    assert why_pillow(interpolation) == "there is no kernel for this filter"
    got = resized_window(pixels, (51, 68), (3, 4), (40, 50), interpolation)
    assert np.array_equal(got, by_pillow(pixels, 51, 68, interpolation)[3:43, 4:54])


@needs_kernel
def test_featx_is_installed_with_its_kernel_where_there_is_a_compiler() -> None:
    """Without it everything works too, so that nothing else would tell."""
    assert importlib.import_module("featx._resample").resample


def test_no_sum_needs_more_than_32_bits() -> None:
    for interpolation in WITH_KERNEL:
        for n_in, n_out in [(500, 341), (375, 256), (1000, 25), (10, 97), (7, 1), (3, 2)]:
            _, _, weights = weights_of(n_in, n_out, 0, n_out, interpolation)
            most = 255 * np.abs(weights).astype(np.int64).sum(axis=1).max() + 2**21
            assert 255 * 2**22 <= most < 2**31


def test_sums_are_rounded_half_up(way: str) -> None:
    pixels = np.zeros((2, 2, 3), np.uint8)
    pixels[:, 1] = [1, 2, 3]
    assert resized_window(pixels, (1, 1), (0, 0), (1, 1)).tolist() == [[[1, 1, 2]]]


def test_threads_do_not_disturb_each_other(way: str) -> None:
    pictures = [hard_pictures(90 + i, 120)["noise"] for i in range(4)]
    expected = [by_pillow(pixels, 64, 85) for pixels in pictures]

    def right(i: int) -> bool:
        got = resized_window(pictures[i % 4], (64, 85), (0, 0), (64, 85))
        return np.array_equal(got, expected[i % 4])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(right, range(400)))


def test_a_part_of_an_array_is_read_in_its_own_order(way: str) -> None:
    pixels = hard_pictures(80, 120)["noise"]
    for part in (pixels[5:60:2, ::-1], pixels.transpose(1, 0, 2), pixels[..., ::-1]):
        got = resized_window(part, (20, 30), (0, 0), (20, 30))
        assert np.array_equal(got, by_pillow(np.ascontiguousarray(part), 20, 30))


def test_a_pillow_that_resizes_otherwise_is_noticed(
    fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Image.Image.resize
    pixels = hard_pictures(75, 100)["noise"]
    for change in (Image.Resampling.HAMMING, Image.Resampling.BOX):
        monkeypatch.setattr(Image.Image, "resize", lambda im, size, _, c=change: real(im, size, c))
        why_pillow.cache_clear()
        for interpolation in WITH_KERNEL:
            assert kernel(interpolation) is None
            if COMPILER:
                assert why_pillow(interpolation).startswith("this Pillow resizes otherwise")
        got = resized_window(pixels, (51, 68), (0, 0), (51, 68))
        monkeypatch.undo()
        assert np.array_equal(got, by_pillow(pixels, 51, 68, change.name.lower()))


# --- what the kernel takes ------------------------------------------------------------------------


def arguments(**changes: Any) -> list[Any]:
    """What `featx._resample.resample` takes for a picture of 6 x 5 that becomes one of 3 x 2."""
    low_across, weights_across = resampling._table(5, 2, 0, 2, "bilinear")
    low_down, weights_down = resampling._table(6, 3, 0, 3, "bilinear")
    known = {
        "pixels": np.full((6, 5, 3), 200, np.uint8),
        "out": np.zeros((3, 2, 3), np.uint8),
        "low_across": low_across.copy(),
        "weights_across": weights_across.copy(),
        "low_down": low_down.copy(),
        "weights_down": weights_down.copy(),
    }
    assert set(changes) <= set(known)
    return list((known | changes).values())


@needs_kernel
def test_the_kernel_writes_into_the_array_it_is_given() -> None:
    given_ = arguments()
    importlib.import_module("featx._resample").resample(*given_)
    assert (given_[1] == 200).all()


@needs_kernel
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"pixels": np.zeros((6, 5, 4), np.uint8), "out": np.zeros((3, 2, 4), np.uint8)},
            "pictures must be",
        ),
        ({"pixels": np.zeros((6, 5, 3, 1), np.uint8)}, "pictures must be"),
        ({"out": np.zeros((3, 2, 3, 1), np.uint8)}, "pictures must be"),
        ({"pixels": np.zeros((6, 5, 3), np.uint16)}, "pictures must be"),
        ({"pixels": np.zeros((6, 5, 3), np.int8)}, "pictures must be"),
        ({"out": np.zeros((3, 2, 1), np.uint8)}, "pictures must be"),
        ({"out": np.zeros((3, 2, 3), np.float32)}, "pictures must be"),
        ({"out": np.zeros((4, 2, 3), np.uint8)}, "do not belong"),
        ({"out": np.zeros((3, 1, 3), np.uint8)}, "do not belong"),
        ({"pixels": np.zeros((0, 5, 3), np.uint8)}, "do not belong"),
        ({"low_across": np.array([0, 5], np.int32)}, "do not belong"),
        ({"low_across": np.array([-1, 2], np.int32)}, "do not belong"),
        ({"low_across": np.array([0, 2], np.int32)[:1]}, "do not belong"),
        ({"low_across": np.array(0, np.int32)}, "do not belong"),
        ({"low_across": np.zeros((2, 1), np.int32)}, "do not belong"),
        ({"low_across": np.array([0, 2])}, "do not belong"),
        ({"low_down": np.array([0, 2, 6], np.int32)}, "do not belong"),
        ({"low_across": np.zeros(2, np.float32)}, "do not belong"),
        ({"weights_across": np.zeros((2, 3), np.int32)}, "do not belong"),
        ({"weights_across": np.zeros((2, 0), np.int32)}, "do not belong"),
        ({"weights_across": np.zeros((2, 4), np.float32)}, "do not belong"),
        ({"weights_down": np.zeros((3, 4))}, "do not belong"),
        ({"weights_down": np.zeros(12, np.int32)}, "do not belong"),
        ({"weights_down": np.zeros((3, 4, 1), np.int32)}, "do not belong"),
        (
            {
                "out": np.zeros((0, 2, 3), np.uint8),
                "low_down": np.zeros(0, np.int32),
                "weights_down": np.zeros((0, 4), np.int32),
            },
            "do not belong",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        importlib.import_module("featx._resample").resample(*arguments(**changes))


@needs_kernel
def test_arrays_it_cannot_read_or_write_in_place_are_refused() -> None:
    resample = importlib.import_module("featx._resample").resample
    fixed = np.zeros((3, 2, 3), np.uint8)
    fixed.flags.writeable = False
    for changes in ({"out": fixed}, {"pixels": np.zeros((6, 10, 3), np.uint8)[:, ::2]}):
        with pytest.raises(ValueError, match=r"read-only|not C-contiguous"):
            resample(*arguments(**changes))


@needs_kernel
def test_neighbours_beyond_the_picture_are_nothing() -> None:
    """Groups of weights may reach over the end, where Pillow has none."""
    weights = np.full((2, 8), 2**20, np.int32)  # a quarter each
    down = np.full((3, 4), 2**20, np.int32)
    given_ = arguments(weights_across=weights, low_across=np.array([3, 4], np.int32),
                       low_down=np.array([2, 4, 5], np.int32), weights_down=down)  # fmt: skip
    importlib.import_module("featx._resample").resample(*given_)
    assert given_[1][..., 0].tolist() == [[100, 50], [50, 25], [25, 13]]
