"""Preprocessing is the published transform: exactly, or within 1 of 255 in less time."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.models import get_model_weights, list_models
from torchvision.transforms import functional
from torchvision.transforms._presets import ImageClassification

from featx import transforms
from featx.errors import ImageError, InputError
from featx.transforms import INTERPOLATIONS, Transform

REAL_DATA = Path(os.environ.get("FEATX_REAL_DATA", Path(__file__).parents[1].parent / "shared"))
GREY = Transform(256, 224, (0.5,), (0.25,), channels=1)
IMAGENET = Transform(256, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# (h, w): one pixel, strips, smaller than the crop, equal to the resize or crop, odd, large
SIZES = [(1, 1), (223, 401), (1, 9), (256, 256), (31, 33), (375, 500), (2, 3), (9, 1), (224, 224)]
SIZES += [(256, 340), (500, 333), (601, 600), (257, 301), (730, 277)]


def published() -> dict[Transform, Any]:
    """Return every distinct preset among torchvision's classification weights."""
    presets: dict[Transform, Any] = {}
    for name in list_models(module=torchvision.models):
        for weights in get_model_weights(name):
            preset = weights.transforms()
            presets.setdefault(Transform.from_preset(preset), preset)
    return presets


PRESETS = published()


@functools.cache
def pictures(h: int, w: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Return pictures with noise, gradients, edges and texture as in photographs."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:h, :w]
    coarse = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((w, h), Image.Resampling.BICUBIC))
    gradient = (x * 255 // max(w - 1, 1) + y * 255 // max(h - 1, 1)) // 2
    edges = ((x // 7 + y // 11) % 2) * 255
    return {
        "noise": rng.integers(0, 256, (h, w, 3), dtype=np.uint8),
        "gradient": np.repeat(gradient[:, :, None], 3, axis=2).astype(np.uint8),
        "edges": np.repeat(edges[:, :, None], 3, axis=2).astype(np.uint8),
        "photo": np.clip(smooth + rng.normal(0, 12, (h, w, 3)), 0, 255).astype(np.uint8),
    }


def tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


# --- exact ----------------------------------------------------------------------------------------


def test_torchvision_publishes_the_presets_this_file_proves() -> None:
    assert len(PRESETS) >= 25
    assert {transform.interpolation for transform in PRESETS} == {"bilinear", "bicubic"}


@pytest.mark.parametrize("transform", PRESETS, ids=str)
def test_exact_has_the_bits_of_every_published_preset(transform: Transform) -> None:
    preset = PRESETS[transform]
    for h, w in SIZES[:8:2] if transform.crop > 300 else SIZES:
        pixels = pictures(h, w)["photo"]
        expected = preset(Image.fromarray(pixels))
        batch = tensor(transform.resize_crop(pixels, mode="exact"))
        assert torch.equal(transform.normalise(batch)[0], expected), (h, w)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(("resize", "crop"), [(64, 56), (40, 64), (33, 32)])
def test_exact_has_the_bits_of_torchvision_for_every_filter(
    interpolation: str, resize: int, crop: int
) -> None:
    mode = functional.InterpolationMode(interpolation)
    transform = IMAGENET.replace(resize=resize, crop=crop, interpolation=interpolation)
    preset = ImageClassification(crop_size=crop, resize_size=resize, interpolation=mode)
    for h, w in [(1, 1), (1, 50), (50, 1), (20, 31), (64, 64), (65, 130), (131, 97), (33, 40)]:
        pixels = pictures(h, w)["noise"]
        expected = preset(Image.fromarray(pixels))
        got = transform.normalise(tensor(transform.resize_crop(pixels, mode="exact")))[0]
        assert torch.equal(got, expected), (h, w)


@given(
    st.integers(1, 120), st.integers(1, 120), st.integers(1, 60), st.integers(1, 60), st.integers()
)
@settings(max_examples=60, deadline=None)
def test_exact_has_the_bits_of_torchvision_at_any_size(
    h: int, w: int, resize: int, crop: int, seed: int
) -> None:
    pixels = np.random.default_rng(abs(seed)).integers(0, 256, (h, w, 3), dtype=np.uint8)
    image = functional.resize(Image.fromarray(pixels), [resize])
    expected = np.asarray(functional.center_crop(image, [crop]))
    transform = IMAGENET.replace(resize=resize, crop=crop)
    assert np.array_equal(transform.resize_crop(pixels, mode="exact"), expected)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("resize", "crop"), [(64, 56), (40, 64), (None, 48)])
def test_one_channel_has_the_bits_of_torchvision_on_grey_images(
    interpolation: str, resize: int | None, crop: int
) -> None:
    mode = functional.InterpolationMode(interpolation)
    transform = GREY.replace(resize=resize, crop=crop, interpolation=interpolation)
    for h, w in [(1, 1), (1, 50), (20, 31), (64, 64), (65, 130), (131, 97), (50, 10)]:
        pixels = pictures(h, w)["noise"][..., :1]
        image = Image.fromarray(pixels[..., 0])
        if resize is not None:
            image = functional.resize(image, [resize], mode)
        image = functional.center_crop(image, [crop])
        expected = functional.normalize(functional.to_tensor(image), [0.5], [0.25])
        exact = transform.resize_crop(pixels, mode="exact")
        assert torch.equal(transform.normalise(tensor(exact))[0], expected), (h, w)
        assert exact.shape == transform.resize_crop(pixels).shape == (crop, crop, 1)
        assert difference(transform, pixels) <= 1


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize(("h", "w"), [(5, 5), (6, 9), (8, 8), (9, 5), (3, 20), (20, 3), (11, 12)])
def test_without_resize_the_centre_is_cropped_and_black_added(h: int, w: int, mode: Any) -> None:
    pixels = pictures(h, w)["noise"]
    expected = np.asarray(functional.center_crop(Image.fromarray(pixels), [8]))
    assert np.array_equal(
        IMAGENET.replace(resize=None, crop=8).resize_crop(pixels, mode=mode), expected
    )


# --- fast -----------------------------------------------------------------------------------------


def difference(transform: Transform, pixels: np.ndarray) -> int:
    exact, fast = (transform.resize_crop(pixels, mode=mode) for mode in ("exact", "fast"))
    return int(np.abs(exact.astype(int) - fast).max())


@pytest.mark.parametrize("kind", ["noise", "gradient", "edges", "photo"])
@pytest.mark.parametrize("transform", list(PRESETS)[::2], ids=str)
def test_fast_is_within_one_of_exact(transform: Transform, kind: str) -> None:
    for h, w in SIZES[-4:-1] if transform.crop > 300 else SIZES[-7:]:
        assert difference(transform, pictures(h, w)[kind]) <= 1, (h, w)


@pytest.mark.parametrize(("h", "w"), [(380, 200), (400, 200), (401, 200), (600, 200), (640, 33)])
def test_fast_is_within_one_of_exact_on_tall_pictures(h: int, w: int) -> None:
    for kind, pixels in pictures(h, w).items():
        assert difference(IMAGENET, pixels) <= 1, kind


@given(st.integers(1, 150), st.integers(1, 150), st.integers(1, 70), st.integers())
@settings(max_examples=25, deadline=None)
def test_fast_is_within_one_of_exact_at_any_size(h: int, w: int, resize: int, seed: int) -> None:
    pixels = np.random.default_rng(abs(seed)).integers(0, 256, (h, w, 3), dtype=np.uint8)
    for interpolation in INTERPOLATIONS:
        transform = IMAGENET.replace(resize=resize, crop=50, interpolation=interpolation)
        assert difference(transform, pixels) <= 1, interpolation


@pytest.mark.parametrize(
    ("interpolation", "h", "w", "calls"),
    [
        ("bilinear", 300, 400, [((256, 341), (16, 58), (224, 224), "bilinear")]),
        ("bilinear", 1100, 1100, [((256, 256), (16, 16), (224, 224), "bilinear")]),
        ("bicubic", 300, 400, [((256, 341), (16, 58), (224, 224), "bicubic")]),
        ("lanczos", 300, 400, [((256, 341), (16, 58), (224, 224), "lanczos")]),
        ("bilinear", 600, 200, []),  # tall
    ],
)
def test_fast_resizes_only_what_the_crop_keeps(
    interpolation: str, h: int, w: int, calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    real = transforms.resized_window
    monkeypatch.setattr(
        transforms, "resized_window", lambda pixels, *a: seen.append(a) or real(pixels, *a)
    )
    pixels = pictures(h, w)["photo"]
    transform = IMAGENET.replace(interpolation=interpolation)
    expected = transform.resize_crop(pixels, mode="exact")
    assert seen == []
    assert np.array_equal(transform.resize_crop(pixels, mode="fast"), expected)
    assert seen == calls


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "box"])
@pytest.mark.parametrize(
    ("h", "w"), [(300, 400), (400, 300), (90, 40), (40, 90), (33, 2), (48, 48)]
)
def test_a_whole_picture_is_shrunk_by_pillow_in_either_mode(
    interpolation: str, h: int, w: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real = transforms.resized_window
    monkeypatch.setattr(transforms, "resized_window", lambda *a: calls.append(a[1:4]) or real(*a))
    transform = IMAGENET.replace(interpolation=interpolation)
    filter_ = Image.Resampling[interpolation.upper()]
    pixels = pictures(h, w)["noise"]
    new = max(1, round(48 * h / max(h, w))), max(1, round(48 * w / max(h, w)))
    expected = pixels
    if max(h, w) > 48:
        expected = np.asarray(Image.fromarray(pixels).resize(new[::-1], filter_))
    assert np.array_equal(transform.shrunk(pixels, 48, mode="exact"), expected)
    assert calls == []
    assert np.array_equal(transform.shrunk(pixels, 48), expected)
    assert calls == ([(new, (0, 0), new)] if max(h, w) > 48 and h <= 1.9 * w else [])


@pytest.mark.real_data
@pytest.mark.skipif(not (REAL_DATA / "data" / "birds").is_dir(), reason="no FEATX_REAL_DATA")
def test_fast_is_within_one_of_exact_on_real_photographs() -> None:
    files = sorted((REAL_DATA / "data" / "birds").glob("*/*/*.jpg"))[::11]
    assert len(files) > 50
    for file in files:
        pixels = np.array(Image.open(file).convert("RGB"))
        for resize, crop in [(256, 224), (342, 299)]:
            assert difference(IMAGENET.replace(resize=resize, crop=crop), pixels) <= 1, file


# --- what comes out -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize(("h", "w"), [(300, 400), (256, 256), (10, 10)])
def test_the_crop_is_its_own_writable_array_and_the_input_is_left_alone(
    h: int, w: int, mode: Any
) -> None:
    pixels = pictures(h, w)["photo"].copy()
    before = pixels.copy()
    pixels.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        crop = IMAGENET.resize_crop(pixels, mode=mode)
    assert crop.shape == (224, 224, 3)
    assert crop.dtype == np.uint8
    assert crop.flags.c_contiguous
    assert crop.flags.writeable
    assert crop.flags.owndata
    crop[:] = 0
    assert np.array_equal(pixels, before)


def test_normalise_has_torchvisions_bits_and_leaves_the_batch_alone() -> None:
    batch = tensor(pictures(16, 16)["noise"]).contiguous()
    batch = torch.cat([batch, torch.arange(768).reshape(1, 3, 16, 16).to(torch.uint8)])
    before = batch.clone()
    transform = IMAGENET.replace(std=(0.00392156862745098, 0.5, 1.0))
    expected = functional.normalize(
        functional.convert_image_dtype(batch, torch.float),
        list(transform.mean),
        list(transform.std),
    )
    for layout in (torch.contiguous_format, torch.channels_last):
        got = transform.normalise(batch.contiguous(memory_format=layout))
        assert torch.equal(got, expected)
        assert got.dtype == torch.float32
    assert torch.equal(batch, before)


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize(("h", "w"), [(20_000, 1), (1, 20_000)])
def test_an_extreme_strip_is_refused_with_its_numbers(h: int, w: int, mode: Any) -> None:
    numbers = r"256 x 5,120,000 = 1,310,720,000, more than 100,000,000"
    with pytest.raises(ImageError, match=numbers) as caught:
        IMAGENET.resize_crop(np.zeros((h, w, 3), np.uint8), mode=mode)
    assert caught.value.status == 4
    small = IMAGENET.replace(resize=2, crop=2)
    assert small.resize_crop(np.zeros((h, w, 3), np.uint8), mode=mode).shape == (2, 2, 3)


# --- as data --------------------------------------------------------------------------------------


def test_a_transform_survives_json() -> None:
    for transform in [*PRESETS, IMAGENET.replace(resize=None), GREY]:
        assert Transform.from_dict(json.loads(json.dumps(transform.to_dict()))) == transform


def test_what_is_recorded_of_three_channels_is_as_it_was_before_there_were_others() -> None:
    assert list(IMAGENET.to_dict()) == [
        "resize", "crop", "mean", "std", "interpolation", "antialias"
    ]  # fmt: skip
    assert GREY.to_dict()["channels"] == 1


def test_equal_transforms_are_equal_whatever_their_numbers_came_as() -> None:
    listed = Transform(256, 224, [0, 0, 0], [1, 1, 1])  # type: ignore[arg-type]
    assert listed == Transform(256, 224, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert hash(listed) == hash(Transform(256, 224, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
    assert json.dumps(listed.to_dict()["mean"]) == "[0.0, 0.0, 0.0]"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"crop": 0}, "crop must be a whole number of pixels, 1 to 10,000, got 0"),
        ({"crop": -3}, "crop must be .* got -3"),
        ({"crop": 22.5}, "crop must be .* got 22.5"),
        ({"crop": None}, "crop must be .* got None"),
        ({"crop": True}, "crop must be .* got True"),
        ({"resize": 0}, "resize must be .* got 0"),
        ({"resize": 10_001}, "resize must be .* got 10001"),
        ({"mean": (0.5,)}, r"mean must be three finite numbers .*, got \(0.5,\)"),
        ({"mean": "abc"}, "mean must be three finite numbers"),
        ({"mean": 0.5}, "mean must be three finite numbers"),
        ({"mean": (0.5, 0.5, float("nan"))}, "mean must be three finite numbers"),
        ({"std": (1.0, 1.0)}, "std must be three finite numbers"),
        ({"channels": 2}, r"channels must be 3 \(RGB\) or 1 \(grey\), got 2"),
        ({"channels": True}, "channels must be .* got True"),
        ({"channels": 1}, r"mean must be one finite number \(grey\), got \(0.485, "),
        ({"std": (0.2, 0.0, 0.2)}, "std must be above 0 in every channel"),
        ({"std": (0.2, -1.0, 0.2)}, "std must be above 0 in every channel"),
        ({"interpolation": "cubic"}, "interpolation must be one of nearest, .* got 'cubic'"),
        ({"antialias": False}, "antialias must be True, got False"),
        ({"size": 3}, "a transform has the fields .* got .*size"),
    ],
)
def test_a_wrong_value_is_one_clear_sentence(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        IMAGENET.replace(**overrides)
    assert "\n" not in str(caught.value)


def test_replace_leaves_the_original_alone() -> None:
    assert IMAGENET.replace(crop=100).crop == 100
    assert IMAGENET.crop == 224


def test_a_missing_field_is_named() -> None:
    values = IMAGENET.to_dict()
    del values["std"]
    with pytest.raises(InputError, match=r"a transform has the fields .*std"):
        Transform.from_dict(values)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(InputError, match="mode must be 'exact' or 'fast', got 'faster'"):
        IMAGENET.resize_crop(np.zeros((9, 9, 3), np.uint8), mode="faster")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resize_size": [256, 200]}, "only a short side and a square crop"),
        ({"crop_size": [224, 200]}, "only a short side and a square crop"),
        ({"mean": None}, "a preset must have crop_size"),
    ],
)
def test_a_preset_that_cannot_be_represented_is_refused(
    changes: dict[str, Any], message: str
) -> None:
    preset = ImageClassification(crop_size=224)
    with pytest.raises(InputError, match=message):
        Transform.from_preset(SimpleNamespace(**{**vars(preset), **changes}))
    with pytest.raises(InputError, match="a preset must have"):
        Transform.from_preset(object())


TIMM = {
    "input_size": (3, 224, 224),
    "interpolation": "bicubic",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "crop_pct": 0.9,
    "crop_mode": "center",
}


@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 0.95, 1.0, None])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_a_timm_config_gives_timms_own_pixels(crop_pct: float | None, interpolation: str) -> None:
    data = pytest.importorskip("timm.data")
    config = {**TIMM, "crop_pct": crop_pct, "interpolation": interpolation}
    transform = Transform.from_preset(config)
    reference = data.create_transform(**config, is_training=False)
    pixels = pictures(301, 423)["photo"]
    got = transform.normalise(tensor(transform.resize_crop(pixels, mode="exact")))[0]
    assert torch.equal(got, reference(Image.fromarray(pixels)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop_mode": "squash"}, "mode 'squash' .* cannot be represented"),
        ({"crop_mode": "border"}, "mode 'border' .* cannot be represented"),
        ({"input_size": (3, 224, 256)}, "a crop of 224 x 256 .* cannot be represented"),
        ({"input_size": (1, 28, 28)}, "from 1 channels cannot be represented"),
        ({"input_size": 224}, "a timm data config must have input_size"),
        ({"interpolation": "random"}, "interpolation must be one of"),
    ],
)
def test_a_timm_config_that_cannot_be_represented_is_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Transform.from_preset({**TIMM, **changes})


def test_importing_transforms_imports_neither_torch_nor_pillow() -> None:
    code = "import sys, featx.transforms; print([m for m in ('torch', 'PIL') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
