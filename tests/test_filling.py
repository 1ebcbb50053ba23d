"""Several caches in one pass: each as it is alone, and every image read and decoded once."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from synthetic import TINY

import featx
from featx.cache import cache_lock, open_cache, partial_path
from featx.errors import DiskError, ImageError, InputError, LockedError, StoppedError
from featx.extraction import Listener, combinations, extract_many, run_extractions
from featx.filling import make_report
from featx.forward import StageTimes
from featx.loading import Loader, ManyLoader
from featx.specs import ExtractOptions
from featx.transforms import Transform

Folder = Callable[..., Path]
CUTS = ("penultimate", "features.3")
COMMON: dict[str, Any] = {**TINY}
COMMON.pop("backbone")
COMMON.pop("weights")


def options(**changes: Any) -> ExtractOptions:
    return ExtractOptions(**{**TINY, **changes})


def many(root: Path, folder: Path, **changes: Any) -> tuple[featx.FeatureSet, ...]:
    asked = {**COMMON, "backbones": ["squeezenet1_1", "resnet18"], "cuts": ["penultimate"]}
    return extract_many(root, weights="random", cache_dir=folder, **{**asked, **changes})


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often every image is read, also by the decoding processes: they are not used here."""
    count: Counter[str] = Counter()
    read = Loader.read

    def counted(self: Loader, path: Path) -> bytes:
        count[path.name] += 1
        return read(self, path)

    monkeypatch.setattr(Loader, "read", counted)
    monkeypatch.setattr("multiprocessing.spawn.get_executable", lambda: None)
    return count


@pytest.mark.filterwarnings("ignore:images are decoded in this process")
def test_several_networks_get_what_each_gets_alone_from_images_read_once(
    colour_folder: Folder, tmp_path: Path, opened: Counter[str]
) -> None:
    root = colour_folder()
    (root / "red" / "bad.png").write_text("no picture")
    squeezed, residual = many(root, tmp_path / "together", max_failed=0.2)
    assert set(opened.values()) == {1}
    assert len(opened) == 19
    for features, backbone in ((squeezed, "squeezenet1_1"), (residual, "resnet18")):
        alone = featx.extract(
            root, **{**TINY, "backbone": backbone}, cache_dir=tmp_path / "alone", max_failed=0.2
        )
        assert features.path.name == alone.path.name
        assert features.X.tobytes() == alone.X.tobytes()
        assert features.paths == alone.paths
        assert [bad.path for bad in features.failed] == ["red/bad.png"]
        assert featx.verify(features.path).ok
        assert features.fingerprint == alone.fingerprint


@pytest.mark.filterwarnings("ignore:images are decoded in this process")
def test_networks_of_other_input_sizes_share_the_decoded_image(
    colour_folder: Folder, tmp_path: Path, opened: Counter[str]
) -> None:
    root = colour_folder()
    asked = [options(), options(backbone="resnet18", transform={"resize": 40, "crop": 32})]
    together = run_extractions(root, asked, cache_dir=tmp_path / "together")
    assert set(opened.values()) == {1}
    for done, each in zip(together, asked, strict=True):
        (alone,) = run_extractions(root, [each], cache_dir=tmp_path / "alone")
        assert done.features.X.tobytes() == alone.features.X.tobytes()


def test_several_cuts_fill_a_cache_each(colour_folder: Folder, tmp_path: Path) -> None:
    root = colour_folder()
    vector, pooled = many(root, tmp_path, backbones=["squeezenet1_1"], cuts=CUTS)
    assert "@features.3" in pooled.path.name
    assert (vector.X.shape[1], pooled.X.shape[1]) == (512, 128)
    alone = featx.extract(root, **TINY, cut="features.3", cache_dir=tmp_path / "alone")
    assert pooled.X.tobytes() == alone.X.tobytes()


def test_what_holds_for_several_caches_is_told_once(colour_folder: Folder, tmp_path: Path) -> None:
    told: list[str] = []
    asked = [options(), options(cut="features.3"), options(backbone="resnet18")]
    run_extractions(colour_folder(), asked, cache_dir=tmp_path, listener=Listener(tell=told.append))
    assert told.count("weights are random (seed 0): features of an untrained network") == 1
    assert sum(" (random), cut " in sentence for sentence in told) == 3


def test_each_cache_gets_only_the_rows_it_lacks(colour_folder: Folder, tmp_path: Path) -> None:
    root = colour_folder()
    featx.extract(root, **TINY, cache_dir=tmp_path)
    Image.new("RGB", (40, 40), (9, 9, 9)).save(root / "red" / "new.png")
    asked = [options(), options(backbone="resnet18")]
    first, second = run_extractions(root, asked, cache_dir=tmp_path)
    assert (first.decision.kept, first.forward_passes) == (18, 1)
    assert (second.decision.kept, second.forward_passes) == (0, 5)
    again = run_extractions(root, asked, cache_dir=tmp_path)
    assert [done.forward_passes for done in again] == [0, 0]


def test_stopped_together_they_go_on_together(colour_folder: Folder, tmp_path: Path) -> None:
    root = colour_folder()
    asked = [options(), options(backbone="resnet18")]
    settled: list[int] = []
    listener = Listener(advance=settled.append, stop=lambda: sum(settled) >= 8)
    with pytest.raises(StoppedError, match="run the same command to go on"):
        run_extractions(root, asked, cache_dir=tmp_path / "a", listener=listener)
    unfinished = sorted((tmp_path / "a").glob("*.partial"))
    kept = [int((open_cache(path, partial=True).map("status") == 1).sum()) for path in unfinished]
    assert len(kept) == 2
    assert sum(kept) == sum(settled)
    totals: list[int] = []
    done = run_extractions(
        root, asked, cache_dir=tmp_path / "a", listener=Listener(start=totals.append)
    )
    assert totals == [36 - sum(kept)]
    whole = run_extractions(root, asked, cache_dir=tmp_path / "b")
    for resumed, expected in zip(done, whole, strict=True):
        assert resumed.features.X.tobytes() == expected.features.X.tobytes()


def test_a_cache_that_resumes_under_other_threads_waits_its_turn(
    colour_folder: Folder, tmp_path: Path
) -> None:
    from featx.devices import torch_threads

    root = colour_folder()
    asked = [options(), options(backbone="resnet18")]
    with torch_threads(2):
        whole = run_extractions(root, asked, cache_dir=tmp_path / "whole")
        stop = Listener(stop=lambda: True)
        with pytest.raises(StoppedError):
            run_extractions(root, asked[:1], cache_dir=tmp_path / "a", listener=stop)
    with torch_threads(1):
        first, second = run_extractions(root, asked, cache_dir=tmp_path / "a")
    assert first.decision.action == "resume"
    assert first.features.X.tobytes() == whole[0].features.X.tobytes()
    plans = [open_cache(done.features.path).plan["threads"] for done in (first, second)]
    assert plans == [2, 1]


def test_the_size_is_told_and_too_large_caches_are_refused_before_any_image(
    colour_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, told = colour_folder(), list[str]()
    stop = Listener(tell=told.append, stop=lambda: True)
    with pytest.raises(StoppedError):
        run_extractions(root, [options()], cache_dir=tmp_path, listener=stop)
    (partial,) = tmp_path.glob("*.partial")
    (size,) = [line.split()[3] for line in told if line.startswith("the cache takes")]
    assert abs(partial.stat().st_size - 1000 * float(size)) < 16_384

    monkeypatch.setattr("featx.filling.run_together", None)  # no image is read
    other = [options(), options(pool="none")]
    with pytest.raises(InputError, match=r"the cache takes .* kB, and --max-size allows 100\.0 kB"):
        run_extractions(root, other, cache_dir=tmp_path, max_size="100kB")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(DiskError, match=rf"and {tmp_path} has 1\.0 kB free"):
        run_extractions(root, other, cache_dir=tmp_path)
    assert [*tmp_path.glob("b*.h5*")] == [partial]
    # none tries it all the same, and nobody asks about a cache that is only to be gone on with
    for asked, max_size in ((other[1], "none"), (other[0], "1kB")):
        with pytest.raises(TypeError, match="not callable"):
            run_extractions(root, [asked], cache_dir=tmp_path, max_size=max_size)


def test_a_cache_that_another_run_holds_keeps_all_from_beginning(
    colour_folder: Folder, tmp_path: Path
) -> None:
    root = colour_folder()
    squeezed, residual = many(root, tmp_path)
    residual.path.unlink()
    squeezed.path.unlink()
    with cache_lock(residual.path), pytest.raises(LockedError):
        many(root, tmp_path)
    assert not squeezed.path.exists()
    assert len(many(root, tmp_path)[1]) == 18


def test_too_many_failures_of_all_are_told_and_nothing_is_lost(
    colour_folder: Folder, tmp_path: Path
) -> None:
    from featx.errors import TooManyFailedError

    root = colour_folder()
    for i in range(4):
        (root / "red" / f"red{i}.png").write_text("no picture")
    with pytest.raises(TooManyFailedError, match="4 of the 18 images"):
        many(root, tmp_path)
    assert len(list(tmp_path.glob("*.partial"))) == 2
    assert [len(features) for features in many(root, tmp_path, max_failed=0.5)] == [14, 14]


def test_what_cannot_be_asked_for_together_is_refused(
    colour_folder: Folder, tmp_path: Path
) -> None:
    root = colour_folder(per_class=1)
    with pytest.raises(InputError, match=r"two of what is asked for would go into .*\.h5"):
        many(root, tmp_path, backbones=["squeezenet1_1"] * 2)
    with pytest.raises(InputError, match="2 weights for 3 backbones"):
        combinations(options(), ["a", "b", "c"], ["penultimate"], ["random", "default"])
    with pytest.raises(InputError, match="--out names one cache, but 2 are asked for"):
        run_extractions(root, [options()] * 2, out=tmp_path / "a.h5")
    with pytest.raises(InputError, match="exif must be the same for all"):
        run_extractions(root, [options(), options(backbone="resnet18", exif=False)])
    assert not list(tmp_path.glob("*.h5*"))
    assert not partial_path(tmp_path / "a.h5").exists()


def test_weights_and_cuts_are_given_to_networks_in_their_order() -> None:
    asked = combinations(options(), ["a", "b"], ["x", "y"], ["one", "two"])
    assert [(each.backbone, each.weights, each.cut) for each in asked] == [
        ("a", "one", "x"), ("a", "one", "y"), ("b", "two", "x"), ("b", "two", "y"),
    ]  # fmt: skip
    assert {each.weights for each in combinations(options(), ["a", "b"], ["x"], ["one"])} == {"one"}


# --- one decoded image for many -------------------------------------------------------------------


def transform(size: int) -> Transform:
    return Transform(resize=size, crop=size, mean=(0.0,) * 3, std=(1.0,) * 3)


def test_parts_of_a_picture_are_those_of_each_loader(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    loaders = tuple(Loader(transform(size)) for size in (8, 30, 17))
    together = ManyLoader(loaders)
    parts = together.parts(together(path))
    assert [part.pixels.shape for part in parts] == [loader.shape for loader in loaders]
    for part, loader in zip(parts, loaders, strict=True):
        alone = loader(path)
        assert np.array_equal(part.pixels, alone.pixels)
        assert part.sha256 == alone.sha256
    path.write_bytes(b"no picture")
    with pytest.raises(ImageError) as caught:
        together(path)
    assert any(caught.value.sha256)


def test_an_image_too_large_for_one_network_serves_the_other(
    colour_folder: Folder, tmp_path: Path
) -> None:
    root = colour_folder()
    Image.new("RGB", (12_000, 1)).save(root / "red" / "strip.png")  # 100 x 1,200,000 resized
    asked = [
        options(transform={"resize": 64, "crop": 64}),
        options(backbone="resnet18", transform={"resize": 100, "crop": 64}),
    ]
    small, large = run_extractions(root, asked, cache_dir=tmp_path)
    assert (len(small.features), len(large.features)) == (19, 18)
    assert [bad.path for bad in large.features.failed] == ["red/strip.png"]


# --- the run report -------------------------------------------------------------------------------


def test_the_report_names_the_stage_that_had_least_to_spare() -> None:
    class Kept:
        kept = 0

    times = StageTimes(wall_s=10, decode_s=12, forward_s=19, write_s=1, workers=2, engines=2)
    report = make_report(times, Kept())  # type: ignore[arg-type]
    assert report["busy"] == {"decode": 0.6, "forward": 0.95, "write": 0.1}
    assert report["slowest"] == "forward"
    assert report["peak_memory_bytes"] is None or report["peak_memory_bytes"] > 2**20


def test_the_report_lies_in_the_cache(colour_folder: Folder, tmp_path: Path) -> None:
    features = featx.extract(colour_folder(), **TINY, cache_dir=tmp_path)
    report = open_cache(features.path).run
    assert report["slowest"] in report["busy"]
    assert 0 < report["busy"]["forward"] <= 1
    assert report["images_per_s"] > 0
