"""A head and its network as one state dict, loaded by torchvision itself."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models
from typer.testing import CliRunner

from featx.backbones import load_backbone
from featx.cli import app
from featx.cut import build_front, split_at
from featx.errors import HeadError
from featx.frozen import Backbone
from featx.heads import (
    CentroidHead,
    KNNHead,
    LinearHead,
    LogisticHead,
    MLPHead,
    RidgeHead,
    TailHead,
)
from featx.heads.cached import load_recorded, probabilities
from featx.heads.file import save_head
from featx.whole_network import _maker, export_network, whole_network

NAME = "shufflenet_v2_x0_5"
IMAGES = torch.randn(24, 3, 64, 64, generator=torch.Generator().manual_seed(0))
CLASSES = ("ants", "bees", "wasps")


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone(NAME, weights="random", transform={"resize": 70, "crop": 64})


@pytest.fixture(scope="module")
def features(backbone: Backbone) -> np.ndarray:
    with torch.no_grad():
        return build_front(backbone.network)(IMAGES).numpy()


@pytest.fixture
def record(backbone: Backbone) -> dict[str, Any]:
    """What `fit_head` writes of the features."""
    spec = {
        "backbone": NAME, "weights_sha256": backbone.weights_sha256, "cut": "mean", "pool": "none",
        "decode": "fast", "exif": True, "max_pixels": 10**8, "precision": "fp32",
        "transform": backbone.transform.to_dict(),
    }  # fmt: skip
    plan = {"weights": {"name": "random", "path": "", "seed": 0}}
    words = dict.fromkeys(("file", "path", "fingerprint", "root"), "")
    return {
        "cache": {"spec": spec, "plan": plan, **words},
        "split": {"held_out_name": "", "train_counts": []},
    }


def save(path: Path, head: Any, features: np.ndarray, record: dict[str, Any], k: int = 3) -> Path:
    labels = np.arange(len(features)) % k
    return save_head(path, head.fit(features, labels), classes=CLASSES[:k], metadata=record)


def networks_answer(state: Any, k: int) -> np.ndarray:
    """What torchvision's own network says, with nothing but the state dict."""
    network = models.get_model(NAME, num_classes=k).eval()
    network.load_state_dict(state, strict=True)
    with torch.no_grad():
        return network(IMAGES).softmax(1).numpy()


@pytest.mark.parametrize(
    ("head", "k", "temperature"),
    [
        (LogisticHead(C=1.0), 3, None),
        (LogisticHead(C=1.0), 2, 2.5),
        (LinearHead(epochs=3, validation_fraction=0), 3, 0.5),
        (RidgeHead(alpha=1.0), 2, None),
        (CentroidHead(), 3, None),
    ],
)
def test_torchvisions_network_gives_the_heads_probabilities(
    tmp_path: Path,
    head: Any,
    k: int,
    temperature: float | None,
    features: np.ndarray,
    record: dict[str, Any],
) -> None:
    if temperature:
        record["calibration"] = {"temperature": temperature, "fitted_on": "24 val images"}
    file = load_recorded(save(tmp_path / "a.safetensors", head, features, record, k))
    expected = probabilities(file, features)
    assert np.ptp(expected, axis=0).max() > 0.01
    np.testing.assert_allclose(networks_answer(whole_network(file), k), expected, atol=1e-5)


def test_torchvisions_network_gives_a_tails_probabilities(
    tmp_path: Path, backbone: Backbone, record: dict[str, Any]
) -> None:
    with torch.no_grad():
        front = split_at(backbone.network, "stage4")[0]
        features = front(IMAGES).numpy()
    record["calibration"] = {"temperature": 2.5, "fitted_on": "24 val images"}
    head = TailHead(NAME, weights="random", cut="stage4", epochs=1, device="cpu", batchnorm="learn")
    file = load_recorded(save(tmp_path / "a.safetensors", head, features, record))
    expected = probabilities(file, features)
    np.testing.assert_allclose(networks_answer(whole_network(file), 3), expected, atol=1e-5)


def test_heads_that_are_no_last_layer_are_refused(
    tmp_path: Path, features: np.ndarray, record: dict[str, Any]
) -> None:
    for head, words in (
        (KNNHead(n_neighbors=2), "is a knn head, which is no layer"),
        (MLPHead(epochs=1, validation_fraction=0), "is a mlp head, which is no layer"),
        (CentroidHead(metric="cosine"), "is a centroid head by cosine, which is no layer"),
    ):
        path = save(tmp_path / "a.safetensors", head, features, record)
        with pytest.raises(HeadError, match=words):
            export_network(path)
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_features_that_do_not_enter_the_last_layer_are_refused(
    tmp_path: Path, features: np.ndarray, record: dict[str, Any]
) -> None:
    file = load_recorded(save(tmp_path / "a.safetensors", CentroidHead(), features, record))
    squeezed = load_backbone("squeezenet1_1", weights="random").weights_sha256
    for changed, words in (
        ({"cut": "stage3"}, "fitted on features at stage3, pool none; a head replaces the last"),
        ({"pool": "max"}, "pool max; a head"),
        ({"weights_sha256": "0" * 64}, "weights of SHA-256 0000000000000000"),
        # a convolution, with a ReLU and a pool after it
        ({"backbone": "squeezenet1_1", "weights_sha256": squeezed}, "not end in its classifier"),
    ):
        cache = {**record["cache"], "spec": {**record["cache"]["spec"], **changed}}
        with pytest.raises(HeadError, match=words):
            whole_network(replace(file, metadata={**record, "cache": cache}))


def test_a_last_layer_without_a_bias_takes_no_head(
    tmp_path: Path,
    backbone: Backbone,
    features: np.ndarray,
    record: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = load_recorded(save(tmp_path / "a.safetensors", CentroidHead(), features, record))
    network = copy.deepcopy(backbone.network)
    network.fc = nn.Linear(network.fc.in_features, 5, bias=False)
    monkeypatch.setattr(
        "featx.whole_network.backbone_of_spec", lambda *a, **k: replace(backbone, network=network)
    )
    with pytest.raises(HeadError, match="ends in no Linear with a bias"):
        whole_network(file)


def test_the_command_writes_two_files_and_says_how_the_network_is_loaded(
    tmp_path: Path, features: np.ndarray, record: dict[str, Any]
) -> None:
    record["calibration"] = {"temperature": 2.5, "fitted_on": "24 val images"}
    head = save(tmp_path / "a.logistic.safetensors", LogisticHead(C=1.0), features, record)

    def run(*arguments: Any, code: int = 0) -> Any:
        made = CliRunner().invoke(app, ["export", str(head), *map(str, arguments)])
        assert made.exit_code == code, made.output
        return made

    made = run("--to", "state-dict")
    assert "a network of 3 classes, 1.5 MB" in made.stdout
    assert "its last layer (fc), standardisation and the temperature 2.5 folded in" in made.stderr
    assert f"network = torchvision.models.{NAME}(num_classes=3)\n" in made.stderr
    assert "images: short side to 70 (bilinear), centre of 64 x 64" in made.stderr
    written = torch.load(tmp_path / "a.logistic.pth", weights_only=True)
    expected = probabilities(load_recorded(head), features)
    np.testing.assert_allclose(networks_answer(written, 3), expected, atol=1e-5)
    indices = tmp_path / "class_indices.json"
    assert json.loads(indices.read_text()) == {"0": "ants", "1": "bees", "2": "wasps"}

    again = json.loads(run("--to", "state-dict", "--json").stdout)
    assert (again["written"], again["layer"]) == (False, "fc")
    assert "HEAD.safetensors --to state-dict" in run(code=2).output
    assert "a head has none" in run("--to", "state-dict", "--split", "train", code=2).output
    assert "ends in .pth" in run("--to", "state-dict", "--out", "a.pt", code=2).output
    indices.write_text("{}")
    refused = run("--to", "state-dict", "--out", tmp_path / "b.pth", code=2)
    assert "class_indices.json is there already" in refused.output
    assert not (tmp_path / "b.pth").exists()
    other = tmp_path / "other/net.pth"
    other.parent.mkdir()
    other.write_bytes(b"another network")
    assert "net.pth is there already" in run("--to", "state-dict", "--out", other, code=2).output
    assert [each.name for each in other.parent.iterdir()] == ["net.pth"]


def test_the_line_that_makes_the_network_says_what_its_form_needs(backbone: Backbone) -> None:
    for name, options in (
        ("googlenet", "aux_logits=False, init_weights=False, transform_input=True"),
        ("inception_v3", "aux_logits=False, init_weights=False, transform_input=True"),
        ("vit_b_16", "image_size=384"),
    ):
        asked = {"image_size": 384} if name == "vit_b_16" else {"transform_input": True}
        asked |= {"init_weights": False} if name != "vit_b_16" else {}
        with torch.device("meta"):
            network = models.get_model(name, weights=None, **asked)
        line = _maker(replace(backbone, name=name, network=network), 5)
        assert line == f"torchvision.models.{name}(num_classes=5, {options})"
    of_timm = _maker(replace(backbone, name="timm:resnet18"), 5)
    assert of_timm == "timm.create_model('resnet18', num_classes=5)"
    classic = load_backbone("lenet5", weights="random")
    assert _maker(classic, 5) == "featx.classics.LeNet5(num_classes=5)"
