"""The cut `input`: pixels as they would enter the network, stored as uint8; no network runs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
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
from featx.backbones import load_backbone
from featx.cache import CacheWriter, Status, open_cache, verify
from featx.cli import app
from featx.cut import Front
from featx.duplicates import find_duplicates
from featx.engines import openvino
from featx.errors import InputError
from featx.extraction import Listener, run_extraction, run_extractions
from featx.featureset import FeatureSet
from featx.identity import PIXELS as PIXELS_FRONT
from featx.pipeline import build_pipeline
from featx.repairing import repair
from featx.specs import ExtractOptions
from featx.transforms import Transform

pytestmark = pytest.mark.usefixtures("kept_decoders")

Folder = Callable[..., Path]

PIXELS: dict[str, Any] = {
    **TINY,
    "cut": "input",
    "workers": 1,
    "transform": {"resize": 24, "crop": 20},
}


def extract(
    images: Path, tmp_path: Path, *, listener: Listener | None = None, **changes: Any
) -> Any:
    rules = {
        name: changes.pop(name) for name in ("max_failed", "fresh", "rehash") if name in changes
    }
    options = ExtractOptions(**{**PIXELS, **changes})
    return run_extraction(images, options, cache_dir=tmp_path, listener=listener, **rules)


def picture_of(fs: FeatureSet, i: int) -> np.ndarray:
    """What the network's own transform makes of file i, before mean and std."""
    transform = Transform.from_dict(fs.spec["transform"])
    return transform.resize_crop(np.asarray(Image.open(fs.files[i]).convert("RGB")))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks that cannot be executed, nor cut to be."""

    def refuse(*arguments: Any, **keywords: Any) -> None:
        raise AssertionError("a network is executed or prepared")

    monkeypatch.setattr(torch.nn.Module, "__call__", refuse)
    monkeypatch.setattr(Front, "__init__", refuse)


@pytest.mark.usefixtures("no_network")
def test_pixels_are_those_that_would_enter_the_network(
    colour_folder: Folder, tmp_path: Path
) -> None:
    told: list[str] = []
    done = extract(colour_folder(), tmp_path, listener=Listener(tell=told.append))
    fs = done.features
    assert (fs.features.shape, fs.features.dtype) == ((18, 20, 20, 3), np.uint8)
    assert (fs.X.shape, fs.X.dtype) == ((18, 1200), np.uint8)
    for i in range(len(fs)):
        assert np.array_equal(fs.features[i], picture_of(fs, i))
    wanted = {"cut": "input", "layout": "nhwc", "dtype": "uint8", "pool": "none"}
    assert {name: fs.spec[name] for name in wanted} == wanted
    assert fs.spec["shape"] == [20, 20, 3]
    backbone = load_backbone("squeezenet1_1", weights="random", transform=PIXELS["transform"])
    assert fs.spec["weights_sha256"] == backbone.weights_sha256
    assert fs.spec["transform"] == backbone.transform.to_dict()
    assert done.forward_passes == 0
    assert any("which is not executed" in sentence for sentence in told)
    assert fs.path.name == "birds-squeezenet1_1@input+weights=random+crop=20+resize=24.h5"
    assert verify(fs.path).ok
    with h5py.File(fs.path) as file:
        assert file["features"].dtype == np.uint8
        assert file.attrs["format"] == b"featx cache 2"  # earlier readers say to upgrade


def test_a_bad_image_is_zeros_and_its_status_says_so(colour_folder: Folder, tmp_path: Path) -> None:
    root = colour_folder()
    (root / "green" / "bad.jpg").write_text("no picture")
    fs = extract(root, tmp_path).features
    assert [image.path for image in fs.failed] == ["green/bad.jpg"]
    assert len(fs) == 18
    file = open_cache(fs.path)
    (row,) = np.flatnonzero(file.read("status") != Status.DONE).tolist()
    assert not file.read("features")[row].any()
    for i in range(len(fs)):
        assert np.array_equal(fs.features[i], picture_of(fs, i))


def test_a_failed_row_that_is_not_zeros_is_found(tmp_path: Path, colour_folder: Folder) -> None:
    root = colour_folder()
    (root / "green" / "bad.jpg").write_text("no picture")
    path = extract(root, tmp_path).features.path
    file = open_cache(path)
    (row,) = np.flatnonzero(file.read("status") != Status.DONE).tolist()
    row_bytes = file.columns["features"].row_bytes
    ones = b"\1" * row_bytes
    from featx.cache.crc32 import crc32_of

    with path.open("r+b") as stream:  # with a checksum that is right for them
        stream.seek(file.offsets["features"] + row * row_bytes)
        stream.write(ones)
        stream.seek(file.offsets["crc32"] + 4 * row)
        stream.write(crc32_of(np.frombuffer(ones, np.uint8)[None]).tobytes())
    assert verify(path).bad_rows == (row,)


def test_an_interrupted_run_resumes_to_the_same_bytes(
    colour_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = colour_folder(per_class=14)  # 42: more than one batch
    whole = extract(root, tmp_path / "whole").features
    put, seen = CacheWriter.put, []

    def once(self: CacheWriter, rows: np.ndarray, *rest: Any) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.extend(rows.tolist())
        put(self, rows, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(CacheWriter, "put", once)
        with pytest.raises(KeyboardInterrupt):
            extract(root, tmp_path / "stopped")
    done = extract(root, tmp_path / "stopped")
    assert (done.decision.action, done.decision.kept) == ("resume", 32)
    assert np.array_equal(done.features.X, whole.X)


def test_only_new_and_changed_images_are_decoded_however_the_network_would_run(
    colour_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = colour_folder()
    first = extract(root, tmp_path)
    again = extract(root, tmp_path)
    assert (again.decision.action, again.features.path) == ("reuse", first.features.path)
    Image.new("RGB", (30, 30), "yellow").save(root / "red" / "new.png")
    Image.new("RGB", (30, 30), "black").save(root / "blue" / "blue0.png")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    more = extract(root, tmp_path, precision="bf16", batch_size=7, engine="auto", pool="none")
    assert (more.features.path, more.features.fingerprint) == (
        first.features.path,
        first.features.fingerprint,
    )
    assert str(more.decision) == "19 images: 17 kept, 1 new, 1 changed"
    for i in range(len(more.features)):
        assert np.array_equal(more.features.features[i], picture_of(more.features, i))


def test_a_damaged_row_is_mended(colour_folder: Folder, tmp_path: Path) -> None:
    fs = extract(colour_folder(), tmp_path).features
    before, pixels = fs.path.read_bytes(), np.array(fs.features)
    file = open_cache(fs.path)
    at = file.offsets["features"] + 5 * file.columns["features"].row_bytes
    damaged = bytearray(before)
    damaged[at] ^= 1
    fs.path.write_bytes(bytes(damaged))
    assert verify(fs.path).bad_rows == (5,)
    done = repair(fs.path)
    assert (done.decision.kept, done.forward_passes) == (17, 0)
    assert verify(fs.path).ok
    with h5py.File(fs.path) as mended:
        assert np.array_equal(mended["features"][:], pixels)


def test_features_of_the_same_pass_are_those_of_a_pass_of_their_own(
    colour_folder: Folder, tmp_path: Path
) -> None:
    root = colour_folder()
    options = ExtractOptions(**{**PIXELS, "transform": {"resize": 64, "crop": 64}})
    deep = ExtractOptions(**TINY)
    pixels, features = run_extractions(root, [options, deep], cache_dir=tmp_path / "both")
    alone = run_extraction(root, deep, cache_dir=tmp_path / "alone").features
    assert features.features.X.dtype == np.float32
    assert np.array_equal(features.features.X, alone.X)
    assert (pixels.forward_passes, features.forward_passes) == (0, 5)
    for i in (0, 9, 17):
        assert np.array_equal(pixels.features.features[i], picture_of(pixels.features, i))


def test_the_network_makes_of_stored_pixels_what_it_makes_of_files(
    colour_folder: Folder, tmp_path: Path
) -> None:
    root = colour_folder(per_class=1)
    fs = extract(root, tmp_path, transform={"resize": 64, "crop": 64}).features
    deep = run_extraction(root, ExtractOptions(**TINY), cache_dir=tmp_path).features
    backbone = load_backbone("squeezenet1_1", weights="random", transform=TINY["transform"])
    batch = torch.from_numpy(np.array(fs.features)).permute(0, 3, 1, 2)
    with torch.no_grad():
        maps = backbone.network.features(backbone.transform.normalise(batch))
    expected = maps.mean(dim=(2, 3)).numpy()
    assert np.abs(deep.X - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"dtype": "float16"}, r"pixels \(cut input\) are stored as uint8, so float16 cannot"),
        ({"pool": "avg"}, r"pixels \(cut input\) are stored as they are, so pool 'avg' cannot"),
    ],
)
def test_what_cannot_be_done_to_pixels_is_refused(changes: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        ExtractOptions(**{**PIXELS, **changes})


def test_logistic_regression_on_pixels_from_fit_to_predict_and_without_the_weights(
    colour_folder: Folder, tmp_path: Path
) -> None:
    root = colour_folder(per_class=10)
    weights = tmp_path / "weights.pth"
    torch.save(load_backbone("squeezenet1_1", weights="random").network.state_dict(), weights)
    fs = extract(root, tmp_path, weights=str(weights)).features
    weights.unlink()  # the head starts from no layer of the network
    fitted = featx.fit_head(fs.path, head="logistic", C=1.0)
    evaluation = featx.evaluate(fs.path, fitted.path)
    assert evaluation.report.accuracy.value == 1.0
    files = fs.files[::7]
    by_file = featx.predict(fitted.path, files)
    of_cache = featx.predict(fitted.path, fs.path)
    assert np.array_equal(by_file.probabilities, of_cache.probabilities[::7])


def test_a_head_takes_rows_of_pixels_as_they_are_and_gives_what_it_gives_for_floats() -> None:
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    X = (rng.integers(0, 100, (60, 48)) + 50 * y[:, None]).astype(np.uint8)
    from featx.heads import LogisticHead

    ours, theirs = LogisticHead(C=0.1).fit(X, y), LogisticHead(C=0.1).fit(X.astype(np.float64), y)
    assert np.array_equal(ours.predict_proba(X), theirs.predict_proba(X.astype(np.float64)))
    kept = ours._checked(X, y)[0]
    assert kept.dtype == np.uint8
    assert np.shares_memory(kept, X)


def test_the_extractor_gives_pixels(colour_folder: Folder, tmp_path: Path) -> None:
    fs = extract(colour_folder(per_class=1), tmp_path).features
    extractor = featx.FeatureExtractor(
        "squeezenet1_1",
        weights="random",
        cut="input",
        device="cpu",
        preprocessing=PIXELS["transform"],
    )
    X = extractor.fit_transform(fs.files)
    assert X.dtype == np.uint8
    assert np.array_equal(X, fs.X)


def test_duplicates_are_found_among_pixels(colour_folder: Folder, tmp_path: Path) -> None:
    root = tmp_path / "noise"
    (root / "a").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(12):
        image = Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8))
        image.save(root / "a" / f"{i:02}.png")
    shutil.copy(root / "a" / "00.png", root / "a" / "copy.png")
    coarse = np.asarray(Image.open(root / "a" / "01.png")) // 16 * 16
    Image.fromarray(coarse).save(root / "a" / "coarse.png")
    fs = extract(root, tmp_path).features
    pairs = find_duplicates(fs.X, fs.sha256).pairs
    assert [
        (fs.paths[i], fs.paths[j])
        for i, j in sorted(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
    ] == [("a/00.png", "a/copy.png"), ("a/01.png", "a/coarse.png")]


def test_pixels_are_exported_as_what_they_are(colour_folder: Folder, tmp_path: Path) -> None:
    fs = extract(colour_folder(per_class=1), tmp_path).features
    npz = featx.export(fs.path, to="npz").path
    with np.load(npz) as arrays:
        assert arrays["X"].dtype == np.uint8
        assert np.array_equal(arrays["X"], fs.features)
    line = featx.export(fs.path, to="csv").path.read_text().splitlines()[1]
    assert line.split(",")[6:] == [str(value) for value in fs.X[0].tolist()]


def test_the_command_says_what_is_stored(colour_folder: Folder, tmp_path: Path) -> None:
    root = colour_folder(per_class=1)
    arguments = [
        "extract", "--backbone", "squeezenet1_1", "--weights", "random", "--crop", "20",
        "--resize", "24", "--cache-dir", str(tmp_path), "--device", "cpu",
    ]  # fmt: skip
    done = CliRunner().invoke(
        app, [*arguments, "--cut", "input", "--json", str(root)], catch_exceptions=False
    )
    told = json.loads(done.stdout)
    assert (told["features"], told["forward_passes"], told["done"]) == ("20x20x3 uint8", 0, 3)
    refused = CliRunner().invoke(
        app, [*arguments, "--cut", "input", "--store", "float16", str(root)]
    )
    assert refused.exit_code == 2


def test_a_second_run_asks_no_network_what_is_known(
    colour_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not openvino.is_installed():
        pytest.skip("OpenVINO has no wheel here")
    weights = tmp_path / "weights.pth"
    torch.save(load_backbone("squeezenet1_1", weights="random").network.state_dict(), weights)
    options = ExtractOptions(**{**PIXELS, "weights": str(weights)})
    monkeypatch.setenv("FEATX_ENGINE_FOLDER", str(tmp_path / "engines"))
    monkeypatch.setattr("featx.pipeline.is_possible", lambda *asked: True)
    first = build_pipeline(options, quick=True)
    monkeypatch.setattr("featx.backbones.load_backbone", None)
    second = build_pipeline(options, quick=True)
    for name in ("name", "weights", "weights_sha256", "weights_path", "transform", "notes"):
        assert getattr(second.backbone, name) == getattr(first.backbone, name)
    assert (second.loader, second.threads) == (first.loader, first.threads)
    assert second.front == first.front == PIXELS_FRONT


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_four_times_the_pixels_take_no_more_memory(tmp_path: Path) -> None:
    def peak_bytes(n: int) -> int:
        folder = tmp_path / str(n) / "a"
        folder.mkdir(parents=True)
        Image.new("RGB", (32, 32), "red").save(folder / "0.png")
        for i in range(1, n):
            shutil.copy(folder / "0.png", folder / f"{i}.png")
        command = [
            sys.executable, "-m", "featx", "extract", "--backbone", "squeezenet1_1", "--weights",
            "random", "--cut", "input", "--cache-dir", str(tmp_path), "--json", str(folder.parent),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return int(json.loads(done.stdout)["run"]["peak_memory_bytes"])

    few, many = 300, 1200
    pixels_bytes = (many - few) * 224 * 224 * 3
    assert peak_bytes(many) - peak_bytes(few) <= 0.2 * pixels_bytes
