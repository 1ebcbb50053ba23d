"""A second run starts without PyTorch, and gives the same bits; whatever changed, it does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from featx import devices
from featx.backbones import load_backbone
from featx.cut import build_front
from featx.engines import openvino
from featx.extraction import run_extraction
from featx.quick_start import Known, is_possible, recall, remember
from featx.specs import ExtractOptions

pytestmark = pytest.mark.skipif(not openvino.is_installed(), reason="OpenVINO has no wheel here")

PROGRAM = """
import json, sys
from featx.extraction import run_extraction
from featx.specs import ExtractOptions
images, out, weights, options = json.loads(sys.argv[1])
made = run_extraction(images, ExtractOptions(
    backbone="squeezenet1_1", weights=weights, device="auto", workers=1, **options), out=out)
print(json.dumps({"torch": "torch" in sys.modules, "plan": dict(made.features.plan),
                  "spec": dict(made.features.spec), "kept": made.decision.kept}))
"""
SMALL = {"transform": {"resize": 64, "crop": 64}}


def run(images: Path, out: Path, weights: Path, **options: Any) -> dict[str, Any]:
    """An extraction in a fresh program; what it says of itself."""
    arguments = json.dumps([str(images), str(out), str(weights), {**SMALL, **options}])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def features(path: Path) -> np.ndarray:
    with h5py.File(path) as file:
        return np.asarray(file["features"])


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "squeezenet.pth"
    torch.save(load_backbone("squeezenet1_1", weights="random").network.state_dict(), path)
    return path


def test_the_second_run_needs_no_pytorch_and_gives_the_same_bits(
    tmp_path: Path, weights: Path, colour_folder: Callable[..., Path], monkeypatch: Any
) -> None:
    monkeypatch.setenv("FEATX_ENGINE_FOLDER", str(tmp_path / "engines"))
    images = colour_folder(per_class=2)
    mine = tmp_path / "mine.pth"
    mine.write_bytes(weights.read_bytes())
    first = run(images, tmp_path / "first.h5", mine)
    second = run(images, tmp_path / "second.h5", mine)
    assert first["plan"]["engine"] == "openvino"
    if devices._may_have_accelerator():  # then PyTorch has to be asked for it
        second = run(images, tmp_path / "second.h5", mine, fresh=True, device="cpu")
    assert (first["torch"], second["torch"]) == (True, False)
    assert second["plan"] == first["plan"]
    assert second["spec"] == first["spec"]
    assert np.array_equal(features(tmp_path / "second.h5"), features(tmp_path / "first.h5"))
    # an unchanged folder: nothing to do, and PyTorch is not imported to find that out
    again = run(images, tmp_path / "second.h5", mine)
    assert (again["torch"], again["kept"]) == (False, 6)
    # other weights under the same name are other weights
    state = torch.load(mine, weights_only=True)
    torch.save({key: value * 1.25 for key, value in state.items()}, mine)
    monkeypatch.setattr("featx.pipeline.is_possible", lambda *asked: True)  # as in a fresh program
    options = ExtractOptions("squeezenet1_1", weights=str(mine), device="cpu", **SMALL)
    third = run_extraction(images, options, out=tmp_path / "third.h5").features
    assert third.spec["weights_sha256"] != first["spec"]["weights_sha256"]
    assert not np.allclose(third.features, features(tmp_path / "first.h5"))


@pytest.fixture
def known(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> Known:
    monkeypatch.setenv("FEATX_ENGINE_FOLDER", str(tmp_path / "engines"))
    backbone = load_backbone("squeezenet1_1", weights=weights)
    front = build_front(backbone.network)
    return Known(backbone, front.identity, {"a": 1}, 1, 2, {"torch": torch.__version__})


def test_what_is_remembered_is_all_that_is_told_and_recorded(known: Known, weights: Path) -> None:
    options = ExtractOptions(backbone="squeezenet1_1", weights=str(weights))
    assert recall(options, "fp32") is None
    remember(options, "fp32", known)
    found = recall(options, "fp32")
    assert found is not None
    ours, theirs = found.backbone, known.backbone
    for name in ("name", "transform", "classes", "weights", "weights_sha256", "weights_path"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.notes == theirs.notes
    assert ours.notes  # the transform that is assumed
    assert replace(found, backbone=known.backbone) == known


@pytest.mark.parametrize(
    "changed",
    [
        {"cut": "logits"},
        {"pool": "none"},
        {"seed": 1},
        {"transform": {"crop": 200}},
        {"backbone": "squeezenet1_0"},
    ],
    ids=str,
)
def test_anything_else_that_is_asked_for_is_not_known(
    known: Known, weights: Path, changed: dict[str, Any]
) -> None:
    options = ExtractOptions(backbone="squeezenet1_1", weights=str(weights))
    remember(options, "fp32", known)
    assert recall(options, "fp32") is not None
    assert recall(replace(options, **changed), "fp32") is None
    assert recall(options, "bf16") is None


def test_it_is_believed_only_while_the_weights_have_the_bytes_they_had(
    known: Known, weights: Path, tmp_path: Path
) -> None:
    options = ExtractOptions(backbone="squeezenet1_1", weights="default")  # a name, not a path
    path = tmp_path / "published.pth"
    path.write_bytes(weights.read_bytes())
    backbone = replace(known.backbone, weights_path=str(path))  # type: ignore[type-var]
    remember(options, "fp32", replace(known, backbone=backbone))
    assert recall(options, "fp32") is not None
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # size and time as they were
    assert recall(options, "fp32") is None
    path.unlink()
    assert recall(options, "fp32") is None


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "TORCH_HOME"])
def test_another_environment_is_another_start(
    known: Known, weights: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    options = ExtractOptions(backbone="squeezenet1_1", weights=str(weights))
    remember(options, "fp32", known)
    monkeypatch.setenv(name, "3")
    assert recall(options, "fp32") is None


def test_weights_without_a_file_are_not_remembered(known: Known, weights: Path) -> None:
    options = ExtractOptions(backbone="squeezenet1_1", weights=str(weights))
    backbone = replace(known.backbone, weights_path=None)  # type: ignore[type-var]
    remember(options, "fp32", replace(known, backbone=backbone))
    assert recall(options, "fp32") is None


def test_it_is_for_programs_without_pytorch_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    options, cpu = ExtractOptions(), devices.Device("cpu", "")
    assert not is_possible(options, cpu)  # PyTorch is imported here
    monkeypatch.delitem(sys.modules, "torch")
    assert is_possible(options, cpu)
    assert not is_possible(options, devices.Device("cuda:0", ""))
    assert not is_possible(replace(options, engine="torch-eager"), cpu)
    assert not is_possible(replace(options, weights="random"), cpu)
    assert not is_possible(replace(options, backbone="nets:make"), cpu)  # its code may change


def test_where_there_may_be_a_gpu_pytorch_is_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    device_file = tmp_path / "nvidiactl"
    monkeypatch.setattr(devices, "_DEVICE_FILES", (str(device_file),))
    monkeypatch.setattr(devices.sys, "platform", "linux")
    assert not devices._may_have_accelerator()
    device_file.touch()
    assert devices._may_have_accelerator()
    device_file.unlink()
    monkeypatch.setattr(devices.sys, "platform", "darwin")
    assert devices._may_have_accelerator()
