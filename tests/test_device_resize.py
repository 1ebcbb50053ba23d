"""Resizing where the network runs gives the bits of the CPU's, and what is asked of CUDA is pinned.

There is no GPU here: the arithmetic is the same on every device, and `PretendCuda` looks at what
one would be told. `pytest -m cuda` compares a real one.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import featx
from featx import device_resize, pipeline
from featx.device_resize import resized, why_not
from featx.engines import choice, eager
from featx.engines.base import Work
from featx.engines.eager import EagerEngine
from featx.extraction import run_extractions
from featx.extractor import FeatureExtractor
from featx.loading import Loader, Picture, batch_of
from featx.resampling import MAX_WINDOW_BYTES, Windows, why_pillow
from featx.specs import ExtractOptions
from featx.transforms import Transform

CPU = torch.device("cpu")
GREY = Transform(256, 224, (0.5,), (0.25,), channels=1)
IMAGENET = Transform(256, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


def part_of(transform: Transform, pixels: np.ndarray) -> Picture:
    """A picture as a loader gives it that leaves resizing to others."""
    window = transform.window(*pixels.shape[:2])
    if window is None:
        return Picture(transform.resize_crop(pixels), bytes(32))
    return Picture(window.of(pixels), bytes(32), window)


def by_pillow(transform: Transform, pixels: np.ndarray) -> np.ndarray:
    return transform.resize_crop(pixels, mode="exact")


def noise(h: int, w: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


def windows_of(transform: Transform, pictures: Sequence[np.ndarray], batch_size: int) -> Windows:
    batch = batch_of([part_of(transform, pixels) for pixels in pictures], batch_size)
    assert isinstance(batch, Windows), "not one of them is left to be resized"
    return batch


# --- the bits -------------------------------------------------------------------------------------


@given(
    sizes=st.lists(st.tuples(st.integers(1, 120), st.integers(1, 120)), min_size=1, max_size=6),
    resize=st.integers(1, 60),
    crop=st.integers(1, 60),
    missing=st.integers(0, 2),
    max_values=st.sampled_from([1, 20_000, 2**24]),
    seed=st.integers(0, 2**32),
    channels=st.sampled_from([1, 3]),
)
@settings(max_examples=120, deadline=None)
def test_any_batch_has_the_bits_of_pillow(
    sizes: list[tuple[int, int]],
    resize: int,
    crop: int,
    missing: int,
    max_values: int,
    seed: int,
    channels: int,
) -> None:
    base = IMAGENET if channels == 3 else GREY
    transform = base.replace(resize=resize, crop=crop)
    pictures = [noise(h, w, seed + i)[..., :channels] for i, (h, w) in enumerate(sizes)]
    # at least one is to be resized
    pictures.append(noise(2 * resize + 1, 2 * resize + 1)[..., :channels])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_resize, "_MAX_VALUES", max_values)
        got = resized(windows_of(transform, pictures, len(pictures) + missing), CPU).numpy()
    assert got.dtype == np.uint8
    for i, pixels in enumerate(pictures):
        assert np.array_equal(got[i], by_pillow(transform, pixels)), pixels.shape
    assert got.shape[0] == len(pictures) + missing
    assert not got[len(pictures) :].any()


@pytest.mark.parametrize(("resize", "crop"), [(256, 224), (342, 299), (232, 224), (64, 80)])
def test_photographs_of_many_sizes_in_one_batch(resize: int, crop: int) -> None:
    transform = IMAGENET.replace(resize=resize, crop=crop)
    sizes = [(375, 500), (500, 375), (333, 500), (480, 640), (200, 300), (256, 256), (342, 600)]
    pictures = [noise(h, w) for h, w in sizes] + [np.full((375, 500, 3), 255, np.uint8)]
    pictures += [noise(375, 500) // 128 * 255, noise(375, 500) // 254]  # extremes; halves
    got = resized(windows_of(transform, pictures, len(pictures)), CPU).numpy()
    for i, pixels in enumerate(pictures):
        assert np.array_equal(got[i], by_pillow(transform, pixels)), i
        assert np.array_equal(got[i], transform.resize_crop(pixels)), i


def test_sums_are_rounded_half_up() -> None:
    pixels = np.zeros((2, 2, 3), np.uint8)
    pixels[:, 1] = [1, 2, 3]
    got = resized(windows_of(IMAGENET.replace(resize=1, crop=1), [pixels], 1), CPU)
    assert got.tolist() == [[[[1, 1, 2]]]]


# --- what is left to be resized -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("h", "w", "changes", "left"),
    [
        (375, 500, {}, True),
        (200, 150, {}, True),  # made larger
        (50, 60, {"resize": 40, "crop": 64}, True),  # with black around it
        (256, 300, {}, False),  # is large enough as it is
        (375, 500, {"resize": None}, False),
        (375, 500, {"interpolation": "bicubic"}, False),
        (600, 300, {}, False),  # tall: Pillow may turn its passes round
        (1100, 1100, {}, False),  # shrinks more than four times, and is large
        (90, 90, {"resize": 22, "crop": 22}, False),  # shrinks more than four times
        (660, 660, {}, True),
        (700, 700, {}, False),  # more than a pipe takes at once
    ],
)
def test_a_picture_is_left_to_be_resized_where_that_is_sure_and_cheap(
    h: int, w: int, changes: dict[str, Any], left: bool
) -> None:
    window = IMAGENET.replace(**changes).window(h, w)
    assert (window is not None) is left
    if window is not None:
        assert window.of(noise(h, w)).shape == window.shape
        assert np.prod(window.shape) <= MAX_WINDOW_BYTES


def test_no_more_of_a_picture_is_kept_than_its_crop_needs() -> None:
    pixels = noise(375, 500)
    window = IMAGENET.window(375, 500)
    assert window is not None
    (top, bottom), (left, right) = window.down.reach, window.across.reach
    changed = pixels.copy()
    changed[:top], changed[bottom:], changed[:, :left], changed[:, right:] = 0, 0, 0, 0
    assert np.array_equal(by_pillow(IMAGENET, changed), by_pillow(IMAGENET, pixels))
    for y, x in [(top, left), (bottom - 1, right - 1)]:  # and its corners are needed
        other = pixels.copy()
        other[y, x] = 255 - other[y, x] // 128 * 255
        assert not np.array_equal(by_pillow(IMAGENET, other), by_pillow(IMAGENET, pixels))


# --- bounds ---------------------------------------------------------------------------------------


class Counting(TorchDispatchMode):
    """Counts operations, and the most values that one of them gives."""

    n = most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.n += 1
        if isinstance(result, torch.Tensor) and result.dtype == torch.int32:
            self.most = max(self.most, result.numel())
        return result


def counted(windows: Windows) -> Counting:
    with Counting() as count:
        resized(windows, CPU)
    return count


def test_the_number_of_operations_does_not_grow_with_the_pictures() -> None:
    few, many = ([noise(60, 80, seed) for seed in range(n)] for n in (2, 20))
    transform = IMAGENET.replace(resize=30, crop=24)
    assert counted(windows_of(transform, few, 2)).n == counted(windows_of(transform, many, 20)).n


@pytest.mark.parametrize(("h", "w"), [(60, 80), (10, 12)])
def test_what_is_computed_at_a_time_is_bounded(
    h: int, w: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = windows_of(IMAGENET.replace(resize=30, crop=24), [noise(h, w)] * 40, 40)
    assert counted(windows).most > 50_000
    monkeypatch.setattr(device_resize, "_MAX_VALUES", 10_000)
    assert 1_000 < counted(windows).most <= 10_000


# --- what CUDA is told ----------------------------------------------------------------------------


class PretendCuda(TorchFunctionMode):
    """Lets tensors be made "on CUDA", where they are not, and notes how they travel there."""

    def __init__(self) -> None:
        super().__init__()
        self.pinned: set[int] = set()
        self.sent: list[tuple[bool, bool]] = []  # from pinned memory, without waiting
        self.kept: list[torch.Tensor] = []  # so that no number is used twice

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.pin_memory:
            self.pinned.add(args[0].data_ptr())
            return args[0]
        if func is torch.Tensor.to and isinstance(args[1], torch.device):
            assert args[1].type == "cuda"
            self.sent.append((args[0].data_ptr() in self.pinned, kwargs["non_blocking"]))
            return args[0]
        if kwargs.get("device") is not None:
            kwargs["device"] = CPU
        pinned = kwargs.pop("pin_memory", False)
        result = func(*args, **kwargs)
        if isinstance(result, torch.Tensor):
            self.kept.append(result)
        if pinned:
            self.pinned.add(result.data_ptr())
        return result


def test_what_travels_to_cuda_is_pinned_and_nobody_waits_for_it() -> None:
    pictures = [noise(60, 80), noise(50, 40), noise(30, 90)]
    transform = IMAGENET.replace(resize=30, crop=24)
    windows = windows_of(transform, pictures, 4)
    with PretendCuda() as cuda:
        got = resized(windows, torch.device("cuda:0"))
    assert np.array_equal(got[:3].numpy(), [by_pillow(transform, one) for one in pictures])
    assert len(cuda.sent) == 8
    assert set(cuda.sent) == {(True, True)}


@pytest.mark.cuda
@needs_cuda
def test_a_gpu_has_the_bits_of_the_cpu() -> None:
    sizes = [(375, 500), (500, 375), (333, 500), (480, 640), (200, 300), (256, 256), (90, 120)]
    windows = windows_of(IMAGENET, [noise(h, w) for h, w in sizes * 20], 144)
    there = torch.device("cuda:0")
    assert torch.equal(resized(windows, there).cpu(), resized(windows, CPU))
    assert why_not(there) is None


# --- where it is used -----------------------------------------------------------------------------


def work(crop: int) -> Work:
    torch.manual_seed(0)
    front = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, stride=2), torch.nn.Flatten())
    return Work(
        front.eval().requires_grad_(False),
        IMAGENET.normalise,
        featx.devices.Device("cpu", "as asked"),
        "fp32",
        (crop, crop),
        {},
    )


def test_an_engine_gives_the_features_of_resized_pictures() -> None:
    transform = IMAGENET.replace(resize=30, crop=24)
    pictures = [noise(60, 80), noise(50, 40), noise(30, 90)]
    engine = EagerEngine(work(24), batch_size=4)
    crops = np.zeros((4, 24, 24, 3), np.uint8)
    crops[:3] = [by_pillow(transform, pixels) for pixels in pictures]
    assert np.array_equal(engine(windows_of(transform, pictures, 4)), engine(crops))


def test_memory_is_tried_out_with_the_largest_pictures_there_may_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken: list[Any] = []

    class Taking(EagerEngine):
        def __call__(self, pixels: Any) -> np.ndarray:
            taken.append(pixels)
            return super().__call__(pixels)

    for crop in (24, 224):
        monkeypatch.setattr(eager, "_RESIZING", {"cpu"})
        choice._try_out(Taking(work(crop), batch_size=2), work(crop))
        transform = IMAGENET.replace(resize=crop, crop=crop)
        largest = max(
            int(np.prod(window.shape))
            for side in range(crop, 4 * crop + 3)
            if (window := transform.window(side, side))
        )
        tried = taken.pop()
        assert isinstance(tried, Windows)
        assert [pixels.size for pixels, _ in tried.parts] == [largest] * 2
        assert not taken
        monkeypatch.setattr(eager, "_RESIZING", set())
        choice._try_out(Taking(work(crop), batch_size=2), work(crop))
        assert isinstance(taken.pop(), np.ndarray)


@pytest.fixture
def resizing(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Resize where the network runs also on the CPU; how many pictures a batch had is noted."""
    sizes: list[int] = []

    def noted(windows: Windows, device: torch.device) -> torch.Tensor:
        sizes.append(sum(window is not None for _, window in windows.parts))
        return resized(windows, device)

    monkeypatch.setattr(eager, "_RESIZING", {"cpu"})
    monkeypatch.setattr(eager, "resized", noted)
    return sizes


OPTIONS: dict[str, Any] = {
    "backbone": "squeezenet1_1",
    "weights": "random",
    "device": "cpu",
    "engine": "torch-eager",
    "batch_size": 4,
    "transform": {"resize": 72, "crop": 64, "interpolation": "bilinear"},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of many sizes, of which some are resized where they are decoded, and bad files."""
    root = tmp_path / "pictures"
    root.mkdir()
    sizes = [(100, 130), (72, 90), (130, 100), (60, 80), (400, 300), (300, 100), (96, 97), (10, 12)]
    for i, (h, w) in enumerate(sizes * 3):
        Image.fromarray(noise(h, w, i)).save(root / f"{i:02d}.{'png' if i % 3 else 'jpg'}")
    (root / "03b.jpg").write_bytes(b"no picture")
    Image.new("RGB", (2_000_000, 1)).save(root / "07b.png")  # 72 x 144,000,000 resized
    return root


@pytest.mark.parametrize("changes", [{}, {"decode": "exact"}])
def test_an_extraction_has_the_same_bits_wherever_pictures_are_resized(
    folder: Path, tmp_path: Path, request: pytest.FixtureRequest, changes: dict[str, Any]
) -> None:
    keywords = {**OPTIONS, **changes}
    plain = featx.extract(folder, out=tmp_path / "plain.h5", **keywords)
    sizes: list[int] = request.getfixturevalue("resizing")
    there = featx.extract(folder, out=tmp_path / "there.h5", **keywords)
    assert sum(sizes) == (0 if changes else 15)  # without those of 72, 400 and 300 rows
    assert np.array_equal(there.X, plain.X)
    assert len(there) == 24
    assert [(bad.path, bad.reason) for bad in there.failed] == [
        (bad.path, bad.reason) for bad in plain.failed
    ]
    assert dict(there.spec) == dict(plain.spec)


def test_several_networks_share_what_is_decoded(
    folder: Path, tmp_path: Path, resizing: list[int]
) -> None:
    keywords = {**OPTIONS, "backbones": ["squeezenet1_1"], "cuts": ["penultimate", "features.3"]}
    del keywords["backbone"]
    both = featx.extract_many(folder, cache_dir=tmp_path / "both", **keywords)
    assert sum(resizing) == 2 * 15
    eager_only = featx.extract(folder, out=tmp_path / "one.h5", **OPTIONS)
    assert np.array_equal(both[0].X, eager_only.X)


def test_networks_of_different_sizes_have_their_pictures_resized_where_they_are_decoded(
    folder: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    asked = [
        ExtractOptions(**OPTIONS),
        ExtractOptions(**{**OPTIONS, "transform": {**OPTIONS["transform"], "resize": 80}}),
    ]
    plain = run_extractions(folder, asked, cache_dir=tmp_path / "plain")
    sizes: list[int] = request.getfixturevalue("resizing")
    there = run_extractions(folder, asked, cache_dir=tmp_path / "there")
    assert sum(sizes) == 0
    for ours, theirs in zip(there, plain, strict=True):
        assert np.array_equal(ours.features.X, theirs.features.X)


def test_the_benchmark_measures_what_an_extraction_does(
    folder: Path, tmp_path: Path, resizing: list[int]
) -> None:
    rates = featx.bench(folder, seconds=0.05, cache_dir=tmp_path / "none", **OPTIONS)
    assert rates.forward.images_per_s > 0
    assert max(resizing) > 1


def test_paths_and_arrays_share_a_batch_of_a_transformer(
    folder: Path, monkeypatch: pytest.MonkeyPatch, resizing: list[int]
) -> None:
    paths = sorted(folder.glob("0[0-2].*"))
    images = [paths[0], noise(90, 90), paths[1], Image.fromarray(noise(100, 80)), paths[2]]
    extractor: Callable[[], FeatureExtractor] = lambda: FeatureExtractor(  # noqa: E731
        "squeezenet1_1",
        weights="random",
        device="cpu",
        engine="torch-eager",
        batch_size=5,
        preprocessing=OPTIONS["transform"],
    )
    there = extractor().transform(images)
    assert resizing == [2]
    monkeypatch.setattr(eager, "_RESIZING", set())
    assert np.array_equal(there, extractor().transform(images))


@pytest.mark.parametrize("fault", ["other bits", "no such operation"])
def test_a_device_that_resizes_otherwise_is_not_asked_to(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = torch.Tensor.index_select

    def faulty(values: torch.Tensor, dim: int, index: torch.Tensor) -> torch.Tensor:
        if fault == "other bits":
            return real(values, dim, index).clamp(max=254)
        raise NotImplementedError("'index_select' not implemented\nfor 'Byte'")

    monkeypatch.setattr(eager, "_RESIZING", {"cpu"})
    options = ExtractOptions(**OPTIONS)
    assert pipeline.build_pipeline(options).loader.windows
    monkeypatch.setattr(torch.Tensor, "index_select", faulty)
    said = {
        "other bits": "its pixels are not those of the CPU",
        "no such operation": "'index_select' not implemented for 'Byte'",
    }[fault]
    with pytest.warns(RuntimeWarning, match=f"not resized on cpu, because {said}; the decoding"):
        assert not pipeline.build_pipeline(options).loader.windows


@pytest.fixture
def other_pillow(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One that resizes by another filter, which nobody knows yet."""
    real, hamming = Image.Image.resize, Image.Resampling.HAMMING
    monkeypatch.setattr(Image.Image, "resize", lambda im, size, _: real(im, size, hamming))
    why_pillow.cache_clear()
    yield
    why_pillow.cache_clear()


@pytest.mark.usefixtures("other_pillow")
@pytest.mark.parametrize("compiled", [True, False])
def test_where_pillow_resizes_otherwise_no_device_is_asked_to(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eager, "_RESIZING", {"cpu"})
    if not compiled:
        monkeypatch.setitem(sys.modules, "featx._resample", None)
    with pytest.warns(RuntimeWarning, match="its pixels are not those of the CPU"):
        assert not pipeline.build_pipeline(ExtractOptions(**OPTIONS)).loader.windows


def test_the_cpu_is_left_to_the_decoding_processes() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not pipeline.build_pipeline(ExtractOptions(**OPTIONS)).loader.windows
    assert not EagerEngine(work(24), batch_size=1).resizes
    assert sorted(eager._RESIZING) == ["cuda"]


def test_a_loader_of_windows_is_a_loader_of_the_same_pictures(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(noise(100, 130)).save(path)
    transform = IMAGENET.replace(resize=72, crop=64)
    plain, left = Loader(transform)(path), Loader(transform, windows=True)(path)
    batch = batch_of([left], 1)
    assert isinstance(batch, Windows)
    assert np.array_equal(resized(batch, CPU)[0], plain.pixels)
    assert left.sha256 == plain.sha256
    assert left.pixels.base is None  # the whole picture is not kept with it
