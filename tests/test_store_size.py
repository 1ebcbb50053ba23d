"""Whole pictures in a cache of pixels (`store_size`): all of each is there, and how much it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from synthetic import TINY
from typer.testing import CliRunner

import featx
from featx.augmentation import plain
from featx.cache import CacheWriter, Status, open_cache, partial_path, verify
from featx.cache.skeleton import size_of
from featx.cli import app
from featx.decoding import DecodeOptions
from featx.errors import HeadError, InputError
from featx.extraction import run_extraction, run_extractions
from featx.identity import BackboneIdentity
from featx.images import list_images
from featx.loading import Loader, ManyLoader
from featx.pipeline import pixel_pipeline
from featx.repairing import repair
from featx.specs import ExtractOptions
from featx.target import rows_of
from featx.transforms import Transform

pytestmark = pytest.mark.usefixtures("kept_decoders")

WHOLE: dict[str, Any] = {
    **TINY,
    "cut": "input",
    "workers": 1,
    "transform": {"resize": 24, "crop": 20},
    "store_size": 32,
}
SIZES = {
    "a/tall.png": (80, 30),
    "a/wide.png": (40, 64),
    "b/small.png": (25, 29),
    "b/strip.png": (200, 2),
}
EXTENTS = {
    "a/tall.png": (32, 12),
    "a/wide.png": (20, 32),
    "b/small.png": (25, 29),
    "b/strip.png": (32, 1),
}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Four pictures of different shapes, and a file that is none."""
    rng = np.random.default_rng(0)
    for name, (h, w) in SIZES.items():
        file = tmp_path / "pictures" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(1, 256, (h, w, 3), np.uint8)).save(file)
    (tmp_path / "pictures" / "b" / "bad.jpg").write_text("no picture")
    return tmp_path / "pictures"


def extract(images: Path, folder: Path, **changes: Any) -> Any:
    options = ExtractOptions(**{**WHOLE, **changes})
    return run_extraction(images, options, cache_dir=folder, max_failed=0.5)


def whole(file: Path) -> np.ndarray:
    """What is stored of a file, by Pillow."""
    image = Image.open(file)
    if max(image.size) > 32:
        h, w = EXTENTS["/".join(file.parts[-2:])]
        image = image.resize((w, h), Image.Resampling.BILINEAR)
    return np.asarray(image)


def test_all_of_every_picture_is_stored_and_the_rest_is_0(pictures: Path, tmp_path: Path) -> None:
    fs = extract(pictures, tmp_path).features
    assert (fs.features.shape, fs.features.dtype) == ((4, 32, 32, 3), np.uint8)
    assert (fs.extent.shape, fs.extent.dtype) == ((4, 2), np.uint16)
    assert {path: tuple(e) for path, e in zip(fs.paths, fs.extent.tolist(), strict=True)} == EXTENTS
    for i, (h, w) in enumerate(fs.extent.tolist()):
        assert np.array_equal(fs.features[i, :h, :w], whole(fs.files[i]))
        assert not fs.features[i, h:].any()
        assert not fs.features[i, :, w:].any()
    assert (fs.spec["store_size"], fs.spec["shape"]) == (32, [32, 32, 3])
    assert fs.path.name.endswith("@input+weights=random+store_size=32+crop=20+resize=24.h5")
    assert verify(fs.path).ok
    assert fs.take(np.array([2, 0])).extent.tolist() == fs.extent[[2, 0]].tolist()
    file = open_cache(fs.path)
    (bad,) = np.flatnonzero(file.read("status") != Status.DONE).tolist()
    assert file.read("extent")[bad].tolist() == [0, 0]
    with h5py.File(fs.path) as opened:
        assert opened["extent"].dtype == np.uint16
    table = rows_of(list_images(pictures))
    foretold = size_of(table, (32, 32, 3), "uint8", has_extent=True)
    assert 0 <= fs.path.stat().st_size - foretold < 8192  # its attributes


def test_without_it_there_is_no_extent_and_the_spec_is_as_it_was(
    pictures: Path, tmp_path: Path
) -> None:
    fs = extract(pictures, tmp_path, store_size=None).features
    assert fs.extent is None
    assert "store_size" not in fs.spec
    assert "extent" not in open_cache(fs.path).columns


def test_plain_makes_of_a_picture_that_was_not_shrunk_what_the_transform_does(
    pictures: Path, tmp_path: Path
) -> None:
    fs = extract(pictures, tmp_path).features
    row = fs.paths.index("b/small.png")
    transform = Transform.from_dict(fs.spec["transform"])
    pixels = torch.from_numpy(np.array(fs.features[row : row + 1]))
    ours = plain(pixels, torch.from_numpy(fs.extent[row : row + 1].astype(np.int64)), transform)
    theirs = transform.resize_crop(np.asarray(Image.open(fs.files[row])), mode="exact")
    assert np.abs(ours[0].permute(1, 2, 0).numpy() * 255 - theirs).max() <= 1.01


def test_an_interrupted_run_keeps_extents_and_one_that_is_damaged_is_computed_again(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = extract(pictures, tmp_path / "whole").features
    target = tmp_path / "stopped" / expected.path.name
    with monkeypatch.context() as patch:
        patch.setattr(CacheWriter, "finish", lambda *rest: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            extract(pictures, tmp_path / "stopped")
    file = open_cache(partial_path(target), partial=True)
    with file.path.open("r+b") as stream:
        stream.seek(file.offsets["extent"])
        stream.write(b"\1")
    done = extract(pictures, tmp_path / "stopped")
    assert done.decision.action == "resume"
    assert np.array_equal(done.features.extent, expected.extent)
    assert np.array_equal(done.features.X, expected.X)


def test_extents_are_taken_over_with_their_rows(pictures: Path, tmp_path: Path) -> None:
    before = extract(pictures, tmp_path).features
    expected = dict(zip(before.paths, before.extent.tolist(), strict=True))
    Image.new("RGB", (20, 10), "red").save(pictures / "a" / "new.png")
    done = extract(pictures, tmp_path)
    assert str(done.decision) == "6 images: 5 kept, 1 new"
    fs = done.features
    found = dict(zip(fs.paths, fs.extent.tolist(), strict=True))
    assert found == {**expected, "a/new.png": [10, 20]}


def test_a_damaged_extent_is_found_and_mended(pictures: Path, tmp_path: Path) -> None:
    fs = extract(pictures, tmp_path).features
    extent, pixels = np.array(fs.extent), np.array(fs.features)
    file = open_cache(fs.path)
    with fs.path.open("r+b") as stream:
        stream.seek(file.offsets["extent"] + 4)
        stream.write(b"\7")
    found = verify(fs.path)
    assert (found.bad_rows, found.bad_columns) == ((1,), ("extent",))
    repair(fs.path)
    assert verify(fs.path).ok
    mended = featx.load(fs.path)
    assert np.array_equal(mended.extent, extent)
    assert np.array_equal(mended.features, pixels)


def test_whole_pictures_go_with_others_in_one_pass(pictures: Path, tmp_path: Path) -> None:
    alone = extract(pictures, tmp_path / "alone").features
    deep = ExtractOptions(**{**TINY, "workers": 1})
    options = [ExtractOptions(**WHOLE), deep]
    both = run_extractions(pictures, options, cache_dir=tmp_path, max_failed=0.5)
    assert np.array_equal(both[0].features.X, alone.X)
    assert np.array_equal(both[0].features.extent, alone.extent)
    assert both[1].features.X.dtype == np.float32


def test_bytes_of_a_picture_that_cannot_be_are_refused() -> None:
    transform = Transform(resize=24, crop=20, mean=(0.5,) * 3, std=(0.5,) * 3)
    loader = Loader(transform, DecodeOptions(), store_size=32)
    picture = loader.picture_of(np.full((9, 40, 3), 7, np.uint8), bytes(32))
    body = b"".join(loader.packed(picture))
    assert loader.body_bytes == (len(body), len(body))
    again = loader.unpacked(body, bytes(32))
    assert (again.extent, picture.extent) == ((7, 32), (7, 32))
    assert np.array_equal(again.pixels, picture.pixels)
    for wrong in (b"\0\0\1\0", b"\1\0\41\0"):  # 0 x 1 and 1 x 33
        with pytest.raises(ValueError, match="no picture of"):
            loader.unpacked(wrong + body[4:], bytes(32))
    many = ManyLoader((loader, Loader(transform, windows=True)))
    assert not many.loaders[1].windows


def test_a_head_on_whole_pictures_predicts_files_and_not_other_caches(
    pictures: Path, tmp_path: Path
) -> None:
    for i in range(6):  # enough for a split
        for name in ("a", "b"):
            colour = (200, 20, 20) if name == "a" else (20, 20, 200)
            Image.new("RGB", (40 + i, 30), colour).save(pictures / name / f"{i}.png")
    fs = extract(pictures, tmp_path, store_size=20).features
    fitted = featx.fit_head(fs.path, head="centroid")
    by_file = featx.predict(fitted.path, fs.files[:3])
    assert np.array_equal(
        by_file.probabilities, featx.predict(fitted.path, fs.path).probabilities[:3]
    )
    cropped = extract(pictures, tmp_path, store_size=None).features  # of the same shape
    with pytest.raises(HeadError, match="store_size: None, not 20"):
        featx.predict(fitted.path, cropped.path)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"cut": "penultimate"}, "store_size is of pixels, at cut input; at cut penultimate"),
        ({"store_size": 0}, "store_size must be 1 to 10,000 pixels, got 0"),
        ({"store_size": 19}, "must be at least the crop of the network, 20 pixels, got 19"),
    ],
)
def test_what_makes_no_sense_is_refused(
    changes: Any, told: str, pictures: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=told):
        extract(pictures, tmp_path, **changes)


def test_a_transform_that_does_not_resize_is_refused() -> None:
    plain_crop = Transform(resize=None, crop=20, mean=(0.5,) * 3, std=(0.5,) * 3)
    backbone = BackboneIdentity("tiny", plain_crop, (), "random", "0" * 64, None, ())
    with pytest.raises(InputError, match="this transform crops them as they are"):
        pixel_pipeline(backbone, ExtractOptions(cut="input", store_size=32))


def test_the_command_takes_it(pictures: Path, tmp_path: Path) -> None:
    (pictures / "b" / "bad.jpg").unlink()
    arguments = [
        "extract", "--backbone", "squeezenet1_1", "--weights", "random", "--crop", "20",
        "--resize", "24", "--cache-dir", str(tmp_path), "--device", "cpu", "--workers", "1",
        "--cut", "input", "--store-size", "32", "--json", str(pictures),
    ]  # fmt: skip
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert json.loads(done.stdout)["features"] == "32x32x3 uint8"
