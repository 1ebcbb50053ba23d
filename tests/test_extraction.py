"""Extraction: one pass, reused, resumed, extended, and never a row that is not its file's."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from synthetic import TINY

import featx
import featx.extraction
import featx.filling
from featx.backbones import load_backbone
from featx.cache import CacheWriter, Status, open_cache, partial_path, verify
from featx.devices import torch_threads
from featx.engines.eager import EagerEngine
from featx.engines.openvino import is_installed
from featx.errors import (
    CacheError,
    ImageError,
    InputError,
    StoppedError,
    TooManyFailedError,
    WeightsError,
)
from featx.extraction import Listener, run_extraction
from featx.images import list_images
from featx.specs import ExtractOptions, ExtractRules

pytestmark = pytest.mark.usefixtures("kept_decoders")

Folder = Callable[..., Path]


def extract(images: Path, tmp_path: Path, **changes: Any) -> Any:
    stage = {"out", "listener", *(field.name for field in fields(ExtractRules))}
    options = ExtractOptions(**{**TINY, **{k: v for k, v in changes.items() if k not in stage}})
    rest = {k: v for k, v in changes.items() if k in stage}
    return run_extraction(images, options, cache_dir=tmp_path / "cache", **rest)


def interrupt_before_the_first_row(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any
) -> None:
    def fail(self: CacheWriter, *rest: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(CacheWriter, "put", fail)
        with pytest.raises(KeyboardInterrupt):
            extract(images, tmp_path, **changes)


def test_features_are_those_of_each_file(colour_folder: Folder, tmp_path: Path) -> None:
    done = extract(colour_folder(), tmp_path)
    fs = done.features
    assert fs.X.shape == (18, 512)
    assert fs.paths == sorted(fs.paths)
    assert [fs.classes[label] for label in fs.y] == [path.split("/")[0] for path in fs.paths]
    backbone = load_backbone("squeezenet1_1", weights="random", transform=TINY["transform"])
    for i in (0, 7, 17):
        pixels = np.asarray(Image.open(fs.files[i]))
        exact = backbone.transform.resize_crop(pixels, mode="fast")
        batch = backbone.transform.normalise(torch.from_numpy(exact).permute(2, 0, 1)[None])
        with torch.no_grad():
            expected = backbone.network.features(batch).mean(dim=(2, 3))[0].numpy()
        assert np.abs(fs.X[i] - expected).max() <= 1e-5 * np.abs(expected).max()
    assert verify(fs.path).ok


def test_a_second_run_makes_no_forward_pass_and_says_so(
    colour_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = extract(colour_folder(), tmp_path)
    assert first.forward_passes == 5
    before = first.features.path.read_bytes()
    calls: list[int] = []
    monkeypatch.setattr(EagerEngine, "__call__", lambda self, pixels: calls.append(1))
    told: list[str] = []
    second = extract(tmp_path / "birds", tmp_path, listener=Listener(tell=told.append))
    assert (second.forward_passes, calls) == (0, [])
    assert any("no forward pass" in sentence for sentence in told)
    assert np.array_equal(second.features.X, first.features.X)
    assert second.features.path.read_bytes() == before


def test_a_bad_image_is_recorded_and_the_run_goes_on(colour_folder: Folder, tmp_path: Path) -> None:
    root = colour_folder()
    good = extract(root, tmp_path, out=tmp_path / "good.h5").features
    (root / "green" / "a_text.jpg").write_text("no picture")
    (root / "red" / "zero.png").write_bytes(b"")
    data = (root / "blue" / "blue1.png").read_bytes()
    (root / "blue" / "cut.png").write_bytes(data[: len(data) // 2])
    fs = extract(root, tmp_path, max_failed=0.15).features  # 3 of 21
    assert [(f.path, f.status.name) for f in fs.failed] == [
        ("blue/cut.png", "UNDECODABLE"),
        ("green/a_text.jpg", "UNDECODABLE"),
        ("red/zero.png", "UNDECODABLE"),
    ]
    assert fs.paths == good.paths  # what failed is in no row, what is good is where it was
    assert np.array_equal(fs.X, good.X)
    assert np.array_equal(fs.y, good.y)


def test_without_one_usable_image_nothing_gets_its_final_name(tmp_path: Path) -> None:
    folder = tmp_path / "bad" / "a"
    folder.mkdir(parents=True)
    (folder / "a.jpg").write_text("no picture")
    with pytest.raises(TooManyFailedError, match=r"none of the 1 images .*1 undecodable"):
        extract(tmp_path / "bad", tmp_path)
    assert not list((tmp_path / "cache").glob("*.h5"))


def test_an_interrupted_run_resumes_to_the_same_bits_and_repeats_nothing(
    colour_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = colour_folder()
    whole = extract(root, tmp_path, out=tmp_path / "whole.h5").features
    put = CacheWriter.put
    seen: list[int] = []

    def put_twice(self: CacheWriter, rows: np.ndarray, *rest: Any) -> None:
        if len(seen) >= 8:
            raise KeyboardInterrupt
        seen.extend(rows.tolist())
        put(self, rows, *rest)

    monkeypatch.setattr(CacheWriter, "put", put_twice)
    with pytest.raises(KeyboardInterrupt):
        extract(root, tmp_path, out=tmp_path / "stopped.h5")
    monkeypatch.setattr(CacheWriter, "put", put)
    assert not (tmp_path / "stopped.h5").exists()
    done = extract(root, tmp_path, out=tmp_path / "stopped.h5")
    assert (done.decision.action, done.decision.kept) == ("resume", 8)
    assert done.forward_passes == 3  # ten rows of eighteen
    assert np.array_equal(done.features.X, whole.X)
    assert np.array_equal(done.features.sha256, whole.sha256)


def test_a_resume_replays_the_batch_size_of_the_run_it_continues(
    colour_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = colour_folder()
    interrupt_before_the_first_row(root, tmp_path, monkeypatch, batch_size=3)
    done = extract(root, tmp_path, batch_size=None)
    assert done.features.plan["batch_size"] == 3
    assert done.forward_passes == 6


def test_only_new_and_changed_images_are_computed(colour_folder: Folder, tmp_path: Path) -> None:
    root = colour_folder()
    first = extract(root, tmp_path).features
    Image.new("RGB", (50, 50), "yellow").save(root / "red" / "new.png")
    Image.new("RGB", (50, 50), "black").save(root / "blue" / "blue0.png")
    touched = root / "blue" / "blue1.png"
    os.utime(touched, ns=(1, 1))  # another time, the same content
    done = extract(root, tmp_path)
    assert str(done.decision) == "19 images: 17 kept, 1 new, 1 changed"
    assert done.forward_passes == 1
    fresh = extract(root, tmp_path, fresh=True)
    assert np.array_equal(done.features.X, fresh.features.X)
    row = done.features.paths.index("blue/blue0.png")
    assert not np.array_equal(done.features.X[row], first.X[first.paths.index("blue/blue0.png")])


def test_other_settings_get_their_own_default_name(colour_folder: Folder, tmp_path: Path) -> None:
    root = colour_folder()
    names = {
        extract(root, tmp_path, **change).features.path.name
        for change in (
            {},
            {"decode": "exact"},
            {"dtype": "float16"},
            {"seed": 7},
            {"cut": "features"},
            {"pool": "max"},
        )
    }
    start = "birds-squeezenet1_1"
    end = "crop=64+resize=64.h5"
    assert names == {
        f"{start}+weights=random+{end}",
        f"{start}+weights=random+decode=exact+{end}",
        f"{start}+weights=random+dtype=float16+{end}",
        f"{start}+weights=random7+{end}",
        f"{start}@features+weights=random+{end}",
        f"{start}+weights=random+pool=max+{end}",
    }


def test_default_names_are_short(tmp_path: Path) -> None:
    from featx.specs import default_name

    class Backbone:
        name, weights, weights_sha256 = "densenet121", "IMAGENET1K_V1", "ab" * 32

    def name(source: str, **options: Any) -> str:
        return default_name(source, ExtractOptions(**options), Backbone())  # type: ignore[arg-type]

    assert name("birds/") == "birds-densenet121.h5"
    assert name("some/birds/train") == "birds-train-densenet121.h5"
    assert name("birds/*/*.jpg") == "birds-densenet121.h5"
    assert name("birds", cut="features.denseblock3") == "birds-densenet121@features.denseblock3.h5"
    weights = tmp_path / "mine.pth"
    weights.touch()
    assert name("birds", weights=str(weights)) == "birds-densenet121+weights=abababab.h5"
    (tmp_path / "list.csv").touch()
    assert name(str(tmp_path / "list.csv")) == "list-densenet121.h5"


def test_an_out_file_of_another_spec_is_refused_by_name(
    colour_folder: Folder, tmp_path: Path
) -> None:
    root = colour_folder()
    extract(root, tmp_path, out=tmp_path / "a.h5")
    with pytest.raises(CacheError, match=r"decode: 'fast' there, 'exact' asked.*--fresh"):
        extract(root, tmp_path, out=tmp_path / "a.h5", decode="exact")
    with pytest.raises(CacheError, match="weights_sha256"):
        extract(root, tmp_path, out=tmp_path / "a.h5", seed=1)
    with pytest.raises(CacheError, match=r"transform\.mean"):
        extract(
            root, tmp_path, out=tmp_path / "a.h5",
            transform={"resize": 64, "crop": 64, "mean": (0.5, 0.5, 0.5)},
        )  # fmt: skip


def test_rows_of_another_plan_are_added_only_when_told(
    colour_folder: Folder, tmp_path: Path
) -> None:
    root = colour_folder()
    extract(root, tmp_path)
    Image.new("RGB", (50, 50), "yellow").save(root / "red" / "new.png")
    with pytest.raises(CacheError, match=r"batch_size: 4 there, 2 now.*--mix-plans"):
        extract(root, tmp_path, batch_size=2)
    done = extract(root, tmp_path, batch_size=2, mix_plans=True)
    plans = [(p["rows"], p["plan"]["batch_size"]) for p in done.report["plans"]]
    assert plans == [([[0, 11], [13, 18]], 4), ([[12, 12]], 2)]
    assert done.features.plan["batch_size"] == 4  # of the rows that were kept


def test_a_whole_cache_is_reused_under_any_plan(colour_folder: Folder, tmp_path: Path) -> None:
    root = colour_folder()
    extract(root, tmp_path)
    assert extract(root, tmp_path, batch_size=2).decision.action == "reuse"


def test_features_do_not_depend_on_their_batch_neighbours(
    colour_folder: Folder, tmp_path: Path
) -> None:
    root = colour_folder()
    whole = extract(root, tmp_path).features
    for label in ("blue", "green"):
        for file in (root / label).iterdir():
            if not file.stem.endswith("3"):
                file.unlink()
    few = extract(root, tmp_path, out=tmp_path / "few.h5").features
    rows = [whole.paths.index(path) for path in few.paths]
    assert np.array_equal(few.X, whole.X[rows])


def test_frozen_means_frozen(colour_folder: Folder, tmp_path: Path) -> None:
    from featx.pipeline import build_pipeline

    options = ExtractOptions(**{**TINY, "backbone": "mobilenet_v2"})
    pipeline = build_pipeline(options)
    network = pipeline.backbone.network
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert any(name.endswith("running_mean") for name in before)
    pixels = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), dtype=np.uint8)
    features = pipeline.engine(pixels)
    assert features.shape == (4, 1280)
    assert not network.training
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_densenet_features_end_in_the_final_relu(colour_folder: Folder, tmp_path: Path) -> None:
    root = colour_folder(per_class=2)
    options = {"backbone": "densenet121", "transform": {"resize": 64, "crop": 64}}
    vector = extract(root, tmp_path, **options).features
    assert vector.X.shape == (6, 1024)
    assert vector.X.min() >= 0
    maps = extract(root, tmp_path, pool="none", **options).features
    assert maps.features.shape == (6, 1024, 2, 2)
    assert maps.X.shape == (6, 4096)
    assert maps.X.min() >= 0
    assert np.allclose(maps.features.mean(axis=(2, 3)), vector.X, rtol=1e-4, atol=1e-6)


def test_weights_that_cannot_be_had_are_never_replaced_by_random_ones(
    colour_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*args: Any, **kwargs: Any) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    with pytest.raises(WeightsError) as caught:
        extract(colour_folder(), tmp_path, weights="default")
    text = str(caught.value)
    assert caught.value.exit_code == 7
    for part in ("squeezenet1_1-b8a52dc0.pth", "https://", "--weights", "random", "checkpoints"):
        assert part in text
    assert not (tmp_path / "cache").exists()


def test_bad_options_are_told_before_anything_is_read() -> None:
    for change, message in (
        ({"decode": "slow"}, "decode must be fast or exact, got 'slow'"),
        ({"dtype": "int8"}, "dtype must be float32 or float16"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"label_from": "last"}, "label_from must be first or leaf"),
    ):
        with pytest.raises(InputError, match=message):
            ExtractOptions(**change)


def test_the_public_function_gives_the_features(colour_folder: Folder, tmp_path: Path) -> None:
    fs = featx.extract(colour_folder(), cache_dir=tmp_path / "c", **TINY)
    assert fs.X.shape == (18, 512)
    assert (
        fs.spec["weights_sha256"] == load_backbone("squeezenet1_1", weights="random").weights_sha256
    )
    assert fs.plan["engine"] == "torch-eager"
    assert open_cache(fs.path).run["done"] == 18
    assert not partial_path(fs.path).exists()


def test_the_folders_split_is_kept(colour_folder: Folder, tmp_path: Path) -> None:
    fs = extract(colour_folder(parts=("train", "val")), tmp_path).features
    assert sorted(set(fs.split.tolist())) == ["train", "val"]
    assert all(path.startswith(part) for path, part in zip(fs.paths, fs.split, strict=True))
    assert fs.classes == ("blue", "green", "red")


def test_a_touched_file_does_not_change_the_plan_of_rows_that_are_kept(
    colour_folder: Folder, tmp_path: Path
) -> None:
    root = colour_folder()
    extract(root, tmp_path)
    os.utime(root / "red" / "red0.png", ns=(1, 1))
    kept = extract(root, tmp_path, batch_size=2)
    assert (kept.forward_passes, kept.features.plan["batch_size"]) == (0, 4)
    Image.new("RGB", (50, 50), "yellow").save(root / "red" / "new.png")
    with pytest.raises(CacheError, match="--mix-plans"):
        extract(root, tmp_path, batch_size=2)


def test_a_start_without_a_single_row_binds_nobody_to_its_plan(
    colour_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = colour_folder()
    interrupt_before_the_first_row(root, tmp_path, monkeypatch, batch_size=3)
    done = extract(root, tmp_path, batch_size=2)
    assert done.features.plan["batch_size"] == 2
    assert [p["plan"]["batch_size"] for p in done.report["plans"]] == [2]


def test_fresh_forgets_the_batch_size_of_the_old_cache(
    colour_folder: Folder, tmp_path: Path
) -> None:
    root = colour_folder()
    extract(root, tmp_path, batch_size=2)
    assert extract(root, tmp_path, batch_size=None, fresh=True).features.plan["batch_size"] == 16


def test_images_that_failed_are_tried_again_on_request_until_they_work(
    colour_folder: Folder, tmp_path: Path
) -> None:
    root = colour_folder(per_class=1)
    good = {file: file.read_bytes() for file in root.rglob("*.png")}
    for file in good:
        file.write_bytes(b"cut short")
    times = {file: file.stat() for file in good}
    with pytest.raises(TooManyFailedError, match="--retry-failed"):
        extract(root, tmp_path)
    for file, data in good.items():  # the same time and size: as where a disk was not there
        file.write_bytes(data)
        os.utime(file, ns=(times[file].st_atime_ns, times[file].st_mtime_ns))
    assert len(extract(root, tmp_path, retry_failed=True).features) == 3


def test_a_moved_folder_is_followed_once_pruned(colour_folder: Folder, tmp_path: Path) -> None:
    root = colour_folder()
    extract(root, tmp_path, out=tmp_path / "a.h5")
    moved = root.rename(tmp_path / "moved")
    with pytest.raises(CacheError, match="--prune"):
        extract(moved, tmp_path, out=tmp_path / "a.h5")
    done = extract(moved, tmp_path, out=tmp_path / "a.h5", prune=True)
    assert done.forward_passes == 0
    assert all(file.is_file() for file in done.features.files)
    assert extract(moved, tmp_path, out=tmp_path / "a.h5").decision.action == "reuse"


def test_a_cut_behind_a_dropped_classifier_is_refused(
    colour_folder: Folder, tmp_path: Path
) -> None:
    from torchvision import models

    state = models.squeezenet1_1(num_classes=7).state_dict()
    del state["classifier.1.bias"]
    torch.save(state, tmp_path / "headless.pth")
    weights = str(tmp_path / "headless.pth")
    root = colour_folder(per_class=1)
    with pytest.raises(InputError, match=r"lies behind classifier\.1\.weight.*would be random"):
        extract(root, tmp_path, weights=weights, cut="logits")
    assert extract(root, tmp_path, weights=weights).features.X.shape == (3, 512)


def test_a_finished_cache_is_reused_where_nothing_can_be_written(
    colour_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = colour_folder()
    extract(root, tmp_path)

    def locked(path: Path) -> Any:
        raise AssertionError("a reuse takes no lock")

    monkeypatch.setattr("featx.filling.cache_lock", locked)
    assert extract(root, tmp_path).decision.action == "reuse"


def test_folders_with_brackets_and_endless_names_have_caches_of_their_own(
    colour_folder: Folder, tmp_path: Path
) -> None:
    fs = extract(colour_folder("birds [2020]", per_class=1), tmp_path).features
    assert fs.path.name.startswith("birds [2020]-squeezenet1_1")
    long = [extract(colour_folder("麻" * 78 + end, per_class=1), tmp_path) for end in "ab"]
    names = [done.features.path.name for done in long]
    assert len(set(names)) == 2
    assert all(len(os.fsencode(name)) < 220 for name in names)


def test_the_cache_file_must_end_in_h5(colour_folder: Folder, tmp_path: Path) -> None:
    for out in ("a.hdf5", "a", "."):
        with pytest.raises(InputError, match=r"ends in \.h5"):
            extract(colour_folder(f"b{out}", per_class=1), tmp_path, out=tmp_path / out)


def test_a_glob_and_its_folder_share_their_cache(
    colour_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = colour_folder(per_class=2)
    first = extract(root, tmp_path)
    again = extract(Path(str(root / "**" / "*.png")), tmp_path)
    assert (again.decision.action, again.features.path) == ("reuse", first.features.path)


def test_a_class_that_lost_all_its_images_may_go_if_that_is_meant(
    colour_folder: Folder, tmp_path: Path
) -> None:
    root, out = colour_folder(), tmp_path / "a.h5"
    extract(root, tmp_path, out=out)
    (root / "blue").rename(tmp_path / "away")
    (root / "blue").mkdir()
    with pytest.raises(InputError, match=r"hold no images: blue; .* with --prune"):
        extract(root, tmp_path, out=out)
    told: list[str] = []
    pruned = extract(root, tmp_path, out=out, prune=True, listener=Listener(tell=told.append))
    assert "no images in blue" in told
    assert (pruned.decision.kept, pruned.decision.gone, pruned.forward_passes) == (12, 6, 0)
    (root / "blue").rmdir()  # the same as if its folder had gone too
    assert extract(root, tmp_path, out=out).decision.action == "reuse"
    features = featx.load(out)
    assert features.classes == ("green", "red")
    assert [features.classes[y] for y in features.y] == [p.split("/")[0] for p in features.paths]
    (tmp_path / "away").rename(root / "blue")  # and its images may come back
    assert featx.extract(root, out=out, **TINY).classes == ("blue", "green", "red")


def break_images(root: Path, count: int) -> None:
    for file in sorted(root.rglob("*.png"))[:count]:
        file.write_bytes(b"cut short")


def test_more_failures_than_allowed_finish_nothing_and_lose_nothing(
    colour_folder: Folder, tmp_path: Path
) -> None:
    root = colour_folder(per_class=10)  # 30 images
    break_images(root, 4)
    with pytest.raises(TooManyFailedError) as error:
        extract(root, tmp_path, out=tmp_path / "a.h5")
    assert str(error.value).startswith("4 of the 30 images could not be used (4 undecodable; blue/")
    assert str(error.value).endswith(
        "Mend or remove them and run the same command again (--retry-failed tries unchanged ones "
        "too), or accept them with --max-failed 0.14"
    )
    assert error.value.exit_code == 1
    assert not (tmp_path / "a.h5").exists()
    done = extract(root, tmp_path, out=tmp_path / "a.h5", max_failed=0.14)
    assert (done.forward_passes, len(done.features), len(done.features.failed)) == (0, 26, 4)


def test_failures_that_were_accepted_once_are_accepted_until_something_is_to_be_computed(
    colour_folder: Folder, tmp_path: Path
) -> None:
    root, out = colour_folder(per_class=10), tmp_path / "a.h5"
    break_images(root, 6)
    extract(root, tmp_path, out=out, max_failed=0.2)
    assert extract(root, tmp_path, out=out).decision.action == "reuse"
    with pytest.raises(TooManyFailedError):
        extract(root, tmp_path, out=out, retry_failed=True)
    assert extract(root, tmp_path, out=out).decision.action == "reuse"  # whatever that run left
    Image.new("RGB", (50, 50), "yellow").save(root / "red" / "new.png")
    done = extract(root, tmp_path, out=out, max_failed=0.2)
    assert (done.decision.kept, done.forward_passes) == (30, 1)
    assert not partial_path(out).exists()


def test_a_tenth_of_bad_images_is_not_too_many(colour_folder: Folder, tmp_path: Path) -> None:
    root = colour_folder(per_class=10)
    break_images(root, 3)
    assert len(extract(root, tmp_path).features.failed) == 3


def test_a_run_may_stop_at_the_first_bad_image_and_goes_on_once_it_is_mended(
    colour_folder: Folder, tmp_path: Path
) -> None:
    root = colour_folder()
    bad = root / "green" / "green3.png"
    good = bad.read_bytes()
    bad.write_bytes(b"cut short")
    with pytest.raises(ImageError, match=r"^green/green3\.png cannot be used \(undec.*stop"):
        extract(root, tmp_path, on_error="stop")
    with pytest.raises(ImageError, match="green3"):  # it is met again, not passed over
        extract(root, tmp_path, on_error="stop")
    bad.write_bytes(good)
    done = extract(root, tmp_path, on_error="stop")
    assert len(done.features) == 18
    assert done.decision.kept == 8  # two batches of four came before it

    bad.write_bytes(b"cut short")
    assert len(extract(root, tmp_path).features.failed) == 1
    with pytest.raises(ImageError, match="green3"):  # also where it was recorded before
        extract(root, tmp_path, on_error="stop")


def test_what_could_not_be_read_is_tried_on_every_run(
    colour_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = colour_folder()
    away, bad = root / "red" / "away.png", root / "red" / "red0.png"
    bad.rename(away)
    bad.symlink_to(away)
    table = list_images(root)
    monkeypatch.setattr(
        "featx.extraction.list_images", lambda *_, **__: table
    )  # as if it were there
    data = away.read_bytes()
    away.unlink()
    first = extract(root, tmp_path, max_failed=0.5)
    assert {f.status for f in first.features.failed} == {Status.UNREADABLE}
    still = extract(root, tmp_path)
    assert (still.decision.action, still.decision.again) == ("reuse", 0)
    away.write_bytes(data)
    again = extract(root, tmp_path)
    assert (again.decision.again, again.forward_passes, again.features.failed) == (2, 1, ())


def test_renamed_images_and_copies_make_no_forward_pass(
    colour_folder: Folder, tmp_path: Path
) -> None:
    root = colour_folder()
    before = extract(root, tmp_path).features
    (root / "blue").rename(root / "azure")  # a third of the images under another name and label
    (root / "red" / "copy.png").write_bytes((root / "green" / "green2.png").read_bytes())
    done = extract(root, tmp_path)
    assert done.forward_passes == 0
    assert str(done.decision) == "19 images: 19 kept (7 under another name), 0 new"
    row_of = {path: row for row, path in enumerate(before.paths)}
    for path, x in zip(done.features.paths, done.features.X, strict=True):
        old = path.replace("azure", "blue").replace("red/copy", "green/green2")
        assert np.array_equal(x, before.X[row_of[old]])
    assert done.features.classes == ("azure", "green", "red")


def test_an_edit_that_hides_its_time_is_found_by_rehashing(
    colour_folder: Folder, tmp_path: Path
) -> None:
    root = colour_folder()
    file = root / "red" / "red0.bmp"
    for colour in ("red", "green"):
        Image.open(root / colour / f"{colour}0.png").save(root / colour / f"{colour}0.bmp")
    before = extract(root, tmp_path).features.X.copy()
    times = file.stat()
    shutil.copyfile(root / "green" / "green0.bmp", file)  # as many bytes, another picture
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert extract(root, tmp_path).decision.action == "reuse"
    done = extract(root, tmp_path, rehash=True)
    assert done.decision.kept == 20  # its new content has a row under another name
    assert not np.array_equal(done.features.X, before)


def test_rehashing_believes_no_byte_of_a_finished_cache_either(
    colour_folder: Folder, tmp_path: Path
) -> None:
    root, out = colour_folder(), tmp_path / "a.h5"
    extract(root, tmp_path, out=out)
    assert extract(root, tmp_path, out=out, rehash=True).decision.action == "reuse"
    whole, file = out.read_bytes(), open_cache(out)
    for column, told in (("features", "1 of its rows"), ("errors", "errors")):
        damaged = bytearray(whole)
        damaged[file.offsets[column] + 3 * file.columns[column].row_bytes] ^= 1
        out.write_bytes(damaged)
        assert extract(root, tmp_path, out=out).decision.action == "reuse"  # which does not look
        words = rf"a\.h5 is damaged \({told}\); mend it with `featx verify --repair .*a\.h5`, or"
        with pytest.raises(CacheError, match=words):
            extract(root, tmp_path, out=out, rehash=True)
        assert out.read_bytes() == damaged


def test_asked_to_stop_it_finishes_the_batch_in_hand_and_says_how_to_go_on(
    colour_folder: Folder, tmp_path: Path
) -> None:
    root = colour_folder()
    settled: list[int] = []
    listener = Listener(advance=settled.append, stop=lambda: sum(settled) >= 8)
    # two batches of four, and one that was under way
    with pytest.raises(StoppedError, match=r"12 of 18 images are done and kept in .*\.partial; r"):
        extract(root, tmp_path, listener=listener)
    done = extract(root, tmp_path)
    assert (done.decision.action, done.decision.kept) == ("resume", 12)
    assert str(done.decision) == "18 images: 12 kept, 6 still to do, 0 new"


def test_a_stop_that_comes_with_the_last_batch_changes_nothing(
    colour_folder: Folder, tmp_path: Path
) -> None:
    root = colour_folder()
    settled: list[int] = []
    listener = Listener(advance=settled.append, stop=lambda: sum(settled) == 18)
    assert len(extract(root, tmp_path, listener=listener).features) == 18


def test_a_resume_computes_with_the_threads_of_the_run_it_continues(
    colour_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = colour_folder()
    used: list[int] = []
    forward = EagerEngine.__call__

    def seen(self: EagerEngine, pixels: np.ndarray) -> np.ndarray:
        used.append(torch.get_num_threads())
        return forward(self, pixels)

    monkeypatch.setattr(EagerEngine, "__call__", seen)
    now = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with pytest.raises(StoppedError):
            extract(root, tmp_path, listener=Listener(stop=lambda: True))
        torch.set_num_threads(1)
        extract(root, tmp_path)
        assert set(used) == {3}
        assert torch.get_num_threads() == 1  # and the caller's own are put back
        used.clear()
        extract(root, tmp_path, fresh=True)
        assert set(used) == {1}
    finally:
        torch.set_num_threads(now)


def test_rules_out_of_range_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"max_failed must be a share from 0 to 1 .*, got 10"):
        featx.extract(tmp_path, max_failed=10)
    with pytest.raises(InputError, match="on_error must be record or stop, got 'skip'"):
        featx.extract(tmp_path, on_error="skip")


def test_rows_that_rotted_are_computed_again_and_told_of(
    colour_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = colour_folder()
    whole = extract(root, tmp_path, out=tmp_path / "a.h5").features.X.copy()
    file = open_cache(tmp_path / "a.h5")
    with file.path.open("r+b") as stream:
        stream.seek(file.offsets["features"] + 5 * file.columns["features"].row_bytes)
        stream.write(b"\xff\x01")
    image = Image.open(root / "red" / "red0.png")
    image.save(root / "red" / "red9.png", compress_level=1)
    told: list[str] = []
    done = extract(root, tmp_path, out=tmp_path / "a.h5", listener=Listener(tell=told.append))
    assert "1 of the kept rows are damaged: computed again" in told
    assert np.array_equal(done.features.X[:18], whole)
    (plan,) = done.report["plans"]
    assert plan["rows"] == [[0, 18]]


def stop_after(batches: int) -> Listener:
    settled: list[int] = []
    return Listener(advance=settled.append, stop=lambda: len(settled) >= batches)


def test_a_start_from_nothing_that_was_stopped_goes_on_with_the_same_command(
    colour_folder: Folder, tmp_path: Path
) -> None:
    root, out = colour_folder(), tmp_path / "a.h5"
    extract(root, tmp_path, out=out)
    for done in (8, 16):  # a batch of four, and one that was under way
        with pytest.raises(StoppedError, match=f"{done} of 18"):
            extract(root, tmp_path, out=out, fresh=True, listener=stop_after(1))
    told: list[str] = []
    assert extract(root, tmp_path, out=out, listener=Listener(tell=told.append)).forward_passes == 0
    assert any("what an unfinished `featx extract --fresh` has done" in line for line in told)
    last = extract(root, tmp_path, out=out, fresh=True)
    assert (last.decision.action, last.forward_passes) == ("resume", 1)
    again = extract(root, tmp_path, out=out, fresh=True)  # that one is finished: from nothing
    assert (again.decision.action, again.forward_passes) == ("create", 5)


def test_another_start_from_nothing_leaves_nothing_of_the_one_before(
    colour_folder: Folder, tmp_path: Path
) -> None:
    root, out = colour_folder(), tmp_path / "a.h5"
    for changes in ({"batch_size": 2}, {"decode": "exact"}):
        with pytest.raises(StoppedError):
            extract(root, tmp_path, out=out, fresh=True, listener=stop_after(1))
        made = extract(root, tmp_path, out=out, fresh=True, **changes)
        assert made.decision.action == "create"


def test_half_a_folder_that_vanished_while_it_was_read_is_not_dropped(
    colour_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, out = colour_folder(), tmp_path / "a.h5"
    extract(root, tmp_path, out=out)
    table = list_images(root)
    (root / "red").rename(tmp_path / "away")
    with monkeypatch.context() as patch:
        patch.setattr("featx.extraction.list_images", lambda *_, **__: table)
        with pytest.raises(TooManyFailedError, match="6 of the 18 images"):
            extract(root, tmp_path, out=out, rehash=True)
    with pytest.raises(CacheError, match=r"6 of the 18 images .* no longer under"):
        extract(root, tmp_path, out=out)
    (tmp_path / "away").rename(root / "red")
    assert len(extract(root, tmp_path, out=out).features) == 18


def test_rows_of_a_damaged_cache_never_look_whole_again(
    colour_folder: Folder, tmp_path: Path
) -> None:
    root, out = colour_folder(), tmp_path / "a.h5"
    extract(root, tmp_path, out=out)
    whole = out.read_bytes()
    Image.new("RGB", (50, 50), "yellow").save(root / "red" / "new.png")
    file = open_cache(out)
    for column, byte in (("sha256", 0x7F), ("status", 3), ("status", 0x81)):
        out.write_bytes(whole)
        with out.open("r+b") as stream:
            stream.seek(file.offsets[column] + 3 * file.columns[column].row_bytes)
            stream.write(bytes([byte]))
        damaged = out.read_bytes()
        with pytest.raises(CacheError, match=r"damaged, so .* mend it with `featx verify --repair"):
            extract(root, tmp_path, out=out)
        assert out.read_bytes() == damaged
        assert not partial_path(out).exists()


def test_a_useless_unfinished_file_does_not_hide_a_finished_cache(
    colour_folder: Folder, tmp_path: Path
) -> None:
    root, out = colour_folder(), tmp_path / "a.h5"
    extract(root, tmp_path, out=out)
    partial_path(out).write_text("no cache")
    assert extract(root, tmp_path, out=out).decision.action == "reuse"
    Image.new("RGB", (50, 50), "yellow").save(root / "red" / "new.png")
    told: list[str] = []
    made = extract(root, tmp_path, out=out, listener=Listener(tell=told.append))
    assert (made.decision.kept, made.forward_passes) == (18, 1)
    assert sum("a.h5.partial" in line for line in told) == 1
    out.unlink()
    partial_path(out).write_text("no cache")
    with pytest.raises(CacheError, match="--fresh"):
        extract(root, tmp_path, out=out)


def test_what_another_run_finished_meanwhile_is_not_done_again(
    colour_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, out = colour_folder(), tmp_path / "a.h5"
    lock = featx.filling.cache_lock

    @contextmanager
    def late(path: Path) -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setattr("featx.filling.cache_lock", lock)
            extract(root, tmp_path, out=out)
        with lock(path):
            yield

    monkeypatch.setattr("featx.filling.cache_lock", late)
    made = extract(root, tmp_path, out=out)
    assert (made.decision.action, made.forward_passes) == ("reuse", 0)


def test_a_link_to_a_cache_stays_a_link(colour_folder: Folder, tmp_path: Path) -> None:
    root, link = colour_folder(), tmp_path / "link.h5"
    (tmp_path / "large_disk").mkdir()
    link.symlink_to(tmp_path / "large_disk" / "a.h5")
    for _ in range(2):
        extract(root, tmp_path, out=link)
        assert link.is_symlink()
        assert verify(tmp_path / "large_disk" / "a.h5").ok


def test_the_home_folder_is_meant_everywhere(
    colour_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = colour_folder()
    home, name = images.parent, images.name
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    made = featx.extract(f"~/{name}", cache_dir="~/caches", **TINY).path
    assert made.parent == home / "caches"
    assert open_cache(made).run["source"] == str(home / name)
    assert not (tmp_path / "here/~").exists()
    assert featx.extract(f"~/{name}", out="~/a.h5", **TINY).path == home / "a.h5"
    assert featx.load("~/a.h5").path == home / "a.h5"
    there = featx.extract(f"~/{name}", cache_dir="~nobody_here", **TINY).path
    assert there.absolute().parent == tmp_path / "here/~nobody_here"
    with pytest.raises(CacheError, match="there is no cache at ~nobody_here"):
        featx.load("~nobody_here")
    assert featx.verify("~/a.h5").ok
    featx.fit_head("~/a.h5", head="centroid", out=home / "b.safetensors")
    assert featx.evaluate("~/a.h5", "~/b.safetensors").head == home / "b.safetensors"
    assert len(featx.predict("~/b.safetensors", ["~/a.h5"]).files) == 18


# --- the engine -----------------------------------------------------------------------------------


@pytest.mark.skipif(not is_installed(), reason="OpenVINO has no wheel for this platform")
def test_a_resume_replays_the_engine_of_the_run_it_continues(
    colour_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = colour_folder()
    asked = {"engine": "auto", "batch_size": None}
    whole = extract(root, tmp_path, out=tmp_path / "whole.h5", **asked)
    plan = open_cache(whole.features.path).plan
    assert (plan["engine"], plan["batch_size"]) == ("openvino", 1)
    assert plan["versions"]["openvino"]
    # few images at a time, so that some are left; no bit depends on how many
    with torch_threads(1), pytest.raises(StoppedError):
        extract(root, tmp_path, listener=stop_after(3), mix_plans=True, **asked)
    monkeypatch.setattr("featx.engines.choice.default_engine", lambda *_: "torch-eager")
    resumed = extract(root, tmp_path, **asked)
    assert resumed.decision.action == "resume"
    assert resumed.features.X.tobytes() == whole.features.X.tobytes()
    fresh = extract(root, tmp_path, fresh=True, **asked)  # by the rule of today
    assert open_cache(fresh.features.path).plan["engine"] == "torch-eager"


@pytest.mark.skipif(not is_installed(), reason="OpenVINO has no wheel for this platform")
def test_rows_of_another_engine_are_not_mixed_in_unasked(
    colour_folder: Folder, tmp_path: Path
) -> None:
    root = colour_folder()
    extract(root, tmp_path, engine="openvino", batch_size=4)
    Image.new("RGB", (50, 50), "yellow").save(root / "red" / "new.png")
    with pytest.raises(CacheError, match="engine: 'openvino' there, 'torch-eager' now"):
        extract(root, tmp_path, engine="torch-eager")
    mixed = extract(root, tmp_path, engine="torch-eager", mix_plans=True)
    engines = [entry["plan"]["engine"] for entry in mixed.report["plans"]]
    assert engines == ["openvino", "torch-eager"]


def test_an_engine_that_is_no_longer_there_is_told_of_by_name(
    colour_folder: Folder, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="engine must be auto, torch-eager or"):
        extract(colour_folder(per_class=1), tmp_path, engine="tensorrt")


@pytest.mark.skipif(not is_installed(), reason="OpenVINO has no wheel for this platform")
def test_an_engine_is_checked_on_images_of_the_folder_and_a_bad_one_is_passed_over(
    colour_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featx.engines import choice

    seen: list[np.ndarray] = []
    check = choice.check_agreement

    def spied(engine: Any, work: Any, pictures: np.ndarray) -> Any:
        seen.append(pictures)
        return check(engine, work, pictures)

    monkeypatch.setattr(choice, "check_agreement", spied)
    root = colour_folder(per_class=1)
    (root / "blue" / "a.png").write_text("no picture")
    asked = {"engine": "openvino", "batch_size": 1, "seed": 7, "max_failed": 0.5}
    done = extract(root, tmp_path, **asked)
    assert len(done.features.failed) == 1
    assert seen[0].shape == (4, 64, 64, 3)  # the three good ones, and noise
    means = seen[0][:3].mean(axis=(1, 2))
    assert means.argmax(axis=1).tolist() == [2, 1, 0]  # blue, green, red


def test_float16_stores_the_float32_features_rounded(colour_folder: Folder, tmp_path: Path) -> None:
    root = colour_folder(per_class=2)
    whole, half = (
        featx.extract(root, **TINY, cache_dir=tmp_path, dtype=dtype)
        for dtype in ("float32", "float16")
    )
    assert half.X.dtype == np.float16
    assert np.array_equal(half.X, whole.X.astype(np.float16))
    assert not np.array_equal(half.X, whole.X)
