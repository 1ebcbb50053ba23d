"""`featx.bench`: every stage has a rate, nothing stays on the disk, and errors are told."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from synthetic import TINY

import featx
from featx import benching, stopwatch
from featx.errors import DiskError, InputError, TooManyFailedError

Folder = Callable[..., Path]
QUICK: dict[str, Any] = {**TINY, "seconds": 0.05, "workers": 1}
KEYS = {
    "backbone", "weights", "cut", "pool", "decode", "engine", "device", "precision", "batch_size",
    "batches_at_a_time", "threads", "workers", "images", "images_are", "feature_shape", "seconds",
    "flops_per_image", "gemm_flops_per_s", "gemm_precision", "stages", "bottleneck", "verdict",
    "failed",
}  # fmt: skip


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_all_stages_are_measured_and_nothing_stays(colour_folder: Folder, tmp_path: Path) -> None:
    told: list[str] = []
    images = colour_folder()
    rates = featx.bench(images, cache_dir=tmp_path / "cache", tell=told.append, **QUICK)
    assert names_in(tmp_path) == ["birds"]  # no cache folder is made either
    for rate in rates.stages:
        assert 0 < rate.images_per_s < math.inf, rate
        assert rate.share is not None
        assert 0 < rate.share < math.inf, rate
        assert rate.measured_on
        assert rate.limit
    assert rates.end_to_end.limit_images_per_s == min(
        stage.images_per_s for stage in (rates.decode, rates.forward, rates.write)
    )
    assert rates.failed == ()
    document = json.loads(json.dumps(rates.to_dict(), allow_nan=False))
    assert set(document) == KEYS
    assert document["images"] == 18
    assert document["feature_shape"] == [512]
    forward = rates.forward.limit_images_per_s
    assert forward == document["gemm_flops_per_s"] / document["flops_per_image"]
    assert any("torch-eager, batches of 4, fp32 on cpu" in sentence for sentence in told)


def test_without_images_pictures_are_drawn_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Path] = []

    def draw(folder: Path, **asked: Any) -> None:
        drawn.append(folder)
        featx_draw(folder, **{**asked, "images_per_species": 1})

    featx_draw = benching.draw_birds
    monkeypatch.setattr(benching, "draw_birds", draw)
    rates = featx.bench(cache_dir=tmp_path, **QUICK)
    assert drawn[0].is_relative_to(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert rates.setting["images"] == 6
    assert "6 drawn images of" in rates.decode_one_core.measured_on


def test_drawn_pictures_are_as_large_as_photographs_of_the_web(tmp_path: Path) -> None:
    options = benching.ExtractOptions()
    table, source = benching._images(None, options, tmp_path, lambda sentence: None)
    sizes = []
    for i in range(len(table)):
        with Image.open(table.file(i)) as image:
            sizes.append(image.size)
    assert source == "drawn images"
    assert len(sizes) == 60
    w, h = np.mean(sizes, axis=0)
    assert abs(w - 500) < 25
    assert abs(h - 375) < 20


def test_of_many_images_only_some_are_read(
    colour_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benching, "MAX_IMAGES", 4)
    rates = featx.bench(colour_folder(), cache_dir=tmp_path, **QUICK)
    assert rates.setting["images"] == 4


def test_bad_images_are_left_out_and_named(colour_folder: Folder, tmp_path: Path) -> None:
    root = colour_folder(per_class=2)
    (root / "red" / "bad.jpg").write_text("no picture")
    rates = featx.bench(root, cache_dir=tmp_path, **QUICK)
    assert [image.path for image in rates.failed] == ["red/bad.jpg"]
    assert rates.setting["images"] == 6
    only = tmp_path / "only"
    only.mkdir()
    (only / "bad.jpg").write_text("no picture")
    with pytest.raises(TooManyFailedError, match=r"none of the 1 images .* \(bad.jpg\) because"):
        featx.bench(only, cache_dir=tmp_path, **QUICK)
    assert names_in(tmp_path) == ["birds", "only"]


def test_a_cut_before_every_product_has_no_roof(colour_folder: Folder, tmp_path: Path) -> None:
    rates = featx.bench(colour_folder(), cache_dir=tmp_path, **QUICK, cut="input")
    assert rates.forward.share is None
    assert rates.forward.limit == ""
    assert rates.setting["flops_per_image"] == 0
    assert rates.setting["feature_shape"] == [64, 64, 3]


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf])
def test_seconds_must_be_above_0(seconds: float, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"seconds must be a number above 0, got {seconds}"):
        featx.bench(cache_dir=tmp_path, seconds=seconds)


@pytest.mark.parametrize("error", [KeyboardInterrupt, DiskError, ZeroDivisionError])
def test_nothing_stays_whatever_ends_it(
    colour_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type
) -> None:
    def put(*arguments: Any) -> None:
        raise error("in the middle")

    monkeypatch.setattr(stopwatch.CacheWriter, "put", put)
    with pytest.raises(error):
        featx.bench(colour_folder(), cache_dir=tmp_path, **QUICK)
    assert names_in(tmp_path) == ["birds"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written_is_named(colour_folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o500)
    with pytest.raises(DiskError, match=r"cannot make a folder in .*cache: permission denied"):
        featx.bench(colour_folder(), cache_dir=tmp_path / "cache", **QUICK)
