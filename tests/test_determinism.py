"""The same bits on one machine, whatever the order, neighbours, workers and resumes; and frozen.

Networks have random weights and small inputs: what is proved is arithmetic, which does not depend
on what was learned. Photographs are random noise of differing sizes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from featx.backbones import list_backbones
from featx.cache import CacheWriter
from featx.devices import torch_threads
from featx.engines import openvino
from featx.extraction import run_extraction
from featx.passes import Pipeline
from featx.pipeline import build_pipeline
from featx.specs import ExtractOptions

BATCH = 4
N = 10

# At least one network of every family, with an input as small as it takes.
QUICK = {"mobilenet_v2": 64, "resnet18": 64}
FAMILIES = {
    "alexnet": 64,
    "cifarnet": 32,
    "convnext_tiny": 64,
    "densenet121": 64,
    "densenet_small": 96,
    "efficientnet_b0": 64,
    "efficientnet_v2_s": 64,
    "googlenet": 64,
    "inception_v3": 128,
    "lenet5": 32,
    "maxvit_t": 224,
    "mnasnet1_0": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "regnet_y_400mf": 64,
    "resnet18": 64,
    "resnext50_32x4d": 64,
    "shufflenet_v2_x1_0": 64,
    "squeezenet1_1": 64,
    "swin_t": 64,
    "swin_v2_t": 64,
    "vgg11_bn": 64,
    "vit_b_32": 224,
    "wide_resnet50_2": 64,
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other on a busy machine take most of the time."""
    with torch_threads(1):
        yield


def options_for(backbone: str, **changes: Any) -> ExtractOptions:
    size = FAMILIES[backbone]
    asked: dict[str, Any] = {
        "backbone": backbone,
        "weights": "random",
        "engine": "torch-eager",
        "device": "cpu",
        "batch_size": BATCH,
        "workers": 1,
        "transform": {"resize": size, "crop": size},
        **changes,
    }
    return ExtractOptions(**asked)


def pixels_of(pipeline: Pipeline, n: int = N) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, *pipeline.loader.shape), dtype=np.uint8)


def rows_of(pipeline: Pipeline, pixels: np.ndarray, order: list[int]) -> dict[int, bytes]:
    """Bits of the features of each picture, computed in this order, the last batch padded."""
    found = {}
    for start in range(0, len(order), BATCH):
        taken = order[start : start + BATCH]
        batch = np.zeros((BATCH, *pixels.shape[1:]), np.uint8)
        batch[: len(taken)] = pixels[taken]
        features = pipeline.engine(batch)
        found.update({i: features[slot].tobytes() for slot, i in enumerate(taken)})
    return found


def check_neighbours(backbone: str, *threads_tried: int, engine: str = "torch-eager") -> None:
    """A row's bits depend neither on its place in the batch nor on who sits beside it."""
    pipeline = build_pipeline(options_for(backbone, engine=engine))
    assert pipeline.engine.name == engine
    pixels = pixels_of(pipeline)
    for threads in threads_tried:
        with torch_threads(threads):
            expected = rows_of(pipeline, pixels, list(range(N)))
            assert len(set(expected.values())) == N  # the pictures can be told apart
            for order in (
                list(reversed(range(N))),
                [*range(1, N), 0],  # every place shifted by one
                [3, 0, 7],  # a subset, beside padding
                [5],  # alone
                [9, 9, 9, 9],  # beside itself
            ):
                found = rows_of(pipeline, pixels, order)
                assert found.items() <= expected.items(), (threads, order)


def check_frozen(backbone: str) -> None:
    """Neither a parameter nor a statistic of BatchNorm moves when the network runs."""
    pipeline = build_pipeline(options_for(backbone))
    network = pipeline.backbone.network
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    pipeline.engine(pixels_of(pipeline, BATCH))
    assert not any(module.training for module in network.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("backbone", QUICK)
def test_a_row_does_not_depend_on_its_neighbours_or_its_place(backbone: str) -> None:
    check_neighbours(backbone, 1)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", FAMILIES)
def test_a_row_of_any_family_does_not_depend_on_its_neighbours(backbone: str) -> None:
    check_neighbours(backbone, 1, 2)


@pytest.mark.slow
@pytest.mark.skipif(not openvino.is_installed(), reason="OpenVINO has no wheel here")
@pytest.mark.parametrize("backbone", FAMILIES)
def test_openvino_agrees_for_every_family_and_repeats_to_the_bit(backbone: str) -> None:
    check_neighbours(backbone, 1, engine="openvino")  # insisted on, it agrees or is refused


@pytest.mark.slow
@pytest.mark.parametrize("backbone", FAMILIES)
def test_a_run_moves_no_parameter_and_no_statistic_of_any_family(backbone: str) -> None:
    check_frozen(backbone)


def test_every_family_is_tried() -> None:
    families = {info.family for info in list_backbones()}
    tried = {info.family for info in list_backbones() if info.name in FAMILIES}
    assert tried == families


# --- whole runs, from the files -----------------------------------------------------------------


def photographs(root: Path, names: list[str]) -> Path:
    """The same pictures whatever their names, in the order of the list."""
    root.mkdir(parents=True)
    for i, name in enumerate(names):
        rng = np.random.default_rng(i)
        noise = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
        image = Image.fromarray(noise).resize((60 + 7 * i, 90 - 3 * i), Image.Resampling.BILINEAR)
        image.save(root / name, quality=90)
    return root


def bits(images: Path, out: Path, **changes: Any) -> dict[bytes, bytes]:
    """SHA-256 of every usable image -> bytes of its features."""
    backbone = changes.pop("backbone", "mobilenet_v2")
    rules = {"mix_plans": changes.pop("mix_plans", False), "max_failed": 1.0}
    features = run_extraction(images, options_for(backbone, **changes), out=out, **rules).features
    return {
        sha256.tobytes(): row.tobytes()
        for sha256, row in zip(features.sha256, features.X, strict=True)
    }


NAMES = [f"{i:02d}.jpg" for i in range(N)]


def test_workers_names_order_and_bad_files_between_change_no_bit(tmp_path: Path) -> None:
    expected = bits(photographs(tmp_path / "birds", NAMES), tmp_path / "a.h5")
    assert len(expected) == N
    assert bits(tmp_path / "birds", tmp_path / "b.h5", workers=5) == expected
    shuffled = [f"{(7 * i + 3) % N:02d}-other.jpg" for i in range(N)]
    other = photographs(tmp_path / "other place", shuffled)
    (other / "00-a.jpg").write_bytes(b"no image")
    (other / "04-z.jpg").write_bytes((other / shuffled[0]).read_bytes()[:300])
    assert bits(other, tmp_path / "c.h5") == expected


def interrupted(images: Path, out: Path, batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    put, seen = CacheWriter.put, []

    def stop(self: CacheWriter, rows: np.ndarray, *rest: Any) -> None:
        if len(seen) == batches:
            raise KeyboardInterrupt
        seen.append(rows)
        put(self, rows, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(CacheWriter, "put", stop)
        with pytest.raises(KeyboardInterrupt):
            bits(images, out)


def test_a_resume_replays_the_number_of_threads_and_so_the_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    birds = photographs(tmp_path / "birds", NAMES)
    expected = bits(birds, tmp_path / "whole.h5")
    interrupted(birds, tmp_path / "resumed.h5", 1, monkeypatch)
    with torch_threads(2):
        assert bits(birds, tmp_path / "resumed.h5") == expected
        assert torch.get_num_threads() == 2  # as it was


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["densenet121", "efficientnet_b0", "vit_b_32", "swin_t"])
@pytest.mark.parametrize("decode", ["fast", "exact"])
def test_runs_of_other_families_repeat_to_the_bit(
    tmp_path: Path, backbone: str, decode: str
) -> None:
    birds = photographs(tmp_path / "birds", NAMES)
    asked: dict[str, Any] = {"backbone": backbone, "decode": decode}
    expected = bits(birds, tmp_path / "a.h5", workers=1, **asked)
    few = photographs(tmp_path / "few", NAMES)
    for name in NAMES[1::2]:
        (few / name).unlink()
    assert bits(few, tmp_path / "b.h5", workers=3, **asked).items() <= expected.items()
    whole = photographs(tmp_path / "again", NAMES)
    for name in NAMES[::2]:
        (whole / name).rename(tmp_path / name)
    bits(whole, tmp_path / "c.h5", **asked)
    for name in NAMES[::2]:  # between and before those that are there
        (tmp_path / name).rename(whole / name)
    assert bits(whole, tmp_path / "c.h5", **asked) == expected


@pytest.mark.slow
@pytest.mark.parametrize("batches", [0, 1, 2])
def test_a_resume_after_any_batch_gives_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: int
) -> None:
    birds = photographs(tmp_path / "birds", NAMES)
    expected = bits(birds, tmp_path / "whole.h5")
    interrupted(birds, tmp_path / "resumed.h5", batches, monkeypatch)
    assert bits(birds, tmp_path / "resumed.h5") == expected
