"""Networks that were trained without classes, such as DINOv2: what they give are the features."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import featx
from featx import timm_backbones
from featx.backbones import load_backbone
from featx.cut import build_front, list_cuts
from featx.errors import InputError, WeightsError
from featx.fitting import fit_head
from featx.heads.tail_network import Tail
from featx.keys import classifier_path, has_classifier, with_classifier
from featx.prediction import predict
from featx.whole_network import whole_network

NAME = "timm:test_byobnet"  # with BatchNorm, and a pool where the classifier would be
QUICK: dict[str, Any] = {"weights": "random", "device": "cpu", "engine": "torch-eager"}


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> Any:
    """timm, whose small network has no classifier unless one is asked for."""
    timm = pytest.importorskip("timm")
    build = timm_backbones.build
    monkeypatch.setattr(
        timm_backbones,
        "build",
        lambda name, *, num_classes=None, **options: build(
            name, num_classes=num_classes or 0, **options
        ),
    )
    return timm


@pytest.mark.parametrize("name", ["timm:test_vit3", "timm:test_convnext", "timm:test_efficientnet"])
def test_penultimate_is_what_the_network_gives(name: str, timm: Any) -> None:
    network = load_backbone(name, weights="random").network
    x = torch.randn(2, 3, 160, 160)
    assert torch.equal(build_front(network)(x), network(x))
    last = list_cuts(network, (1, 3, 160, 160))[-1]
    assert last.aliases == ("penultimate", "logits")
    if "efficientnet" in name:  # the others end in more than a pool
        assert build_front(network, pool="none")(x).ndim == 4


def test_a_file_of_it_loads_whole_or_not_at_all(timm: Any, tmp_path: Path) -> None:
    source = timm.create_model("test_byobnet", num_classes=0)
    torch.save(source.state_dict(), tmp_path / "a.pth")
    backbone = load_backbone(NAME, weights=tmp_path / "a.pth")
    assert backbone.untrained == ()
    assert not any("classifier" in note for note in backbone.notes)
    # the last convolution is a part of what makes the features, not a classifier that may differ
    state = source.state_dict()
    path = [path for path, module in source.named_modules() if isinstance(module, nn.Conv2d)][-1]
    del state[f"{path}.weight"]
    torch.save(state, tmp_path / "b.pth")
    with pytest.raises(WeightsError, match=rf"keys are missing \({path}.weight\)"):
        load_backbone(NAME, weights=tmp_path / "b.pth")


def test_from_images_to_a_head_and_a_tail_and_back(
    timm: Any, colour_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = colour_folder(size=160)
    features = featx.extract(folder, backbone=NAME, cache_dir=tmp_path / "cache", **QUICK)
    network = load_backbone(NAME, weights="random").network
    assert features.X.shape[1] == network.num_features
    fit = fit_head(features.path, head="linear", epochs=2, device="cpu")
    cached = predict(fit.path, features.path)
    state = whole_network(fit.file)
    whole = timm.create_model("test_byobnet", num_classes=len(fit.file.classes)).eval()
    whole.load_state_dict(state)
    pixels = featx.extract(
        folder, backbone=NAME, cut="input", cache_dir=tmp_path / "pixels", **QUICK
    )
    transform = featx.backbones.load_backbone(NAME, weights="random").transform
    batch = torch.from_numpy(np.array(pixels.X).reshape(-1, *pixels.spec["shape"]))
    with torch.no_grad():
        scores = whole(transform.normalise(batch.permute(0, 3, 1, 2))).softmax(1)
    assert np.allclose(scores.numpy(), cached.probabilities, atol=1e-5)

    tail = fit_head(pixels.path, head="tail", epochs=1, device="cpu")
    assert tail.file.head.tail_.classifier == "head.fc"
    whole.load_state_dict(whole_network(tail.file))
    with torch.no_grad():
        scores = whole(transform.normalise(batch.permute(0, 3, 1, 2))).softmax(1)
    assert np.allclose(scores.numpy(), predict(tail.path, pixels.path).probabilities, atol=1e-5)


def test_a_tail_gets_a_classifier_of_its_own(timm: Any) -> None:
    network = timm.create_model("test_vit3", num_classes=0)
    before = torch.random.get_rng_state()
    tails = [Tail(network, "blocks.0", 3, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert tails[0].classifier == "head"
    assert not isinstance(network.head, nn.Linear)  # it was copied
    same, again, other = (tail.values()["head.weight"] for tail in tails)
    assert same.shape == (3, network.num_features)
    assert torch.equal(same, again)
    assert not torch.equal(same, other)


def test_other_networks_are_as_they_were() -> None:
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    network.num_classes = 2  # type: ignore[assignment]
    assert has_classifier(network)
    assert with_classifier(network, 5) is network
    network.num_classes = 0  # type: ignore[assignment]
    assert classifier_path(network) == ""
    with pytest.raises(InputError, match=r"Sequential has no classifier .* no method reset_class"):
        with_classifier(network, 5)


def test_a_network_that_ends_in_no_classifier_says_what_can_be_taken() -> None:
    class Embedding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(12, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.normalize(self.layer(x.flatten(1)))

    shape = (1, 3, 2, 2)
    with pytest.raises(InputError, match=r"no 'penultimate': .* --cut logits takes what it gives"):
        build_front(Embedding().eval(), input_shape=shape)
    front = build_front(Embedding().eval(), cut="logits", input_shape=shape)
    assert front(torch.ones(2, 3, 2, 2)).shape == (2, 4)
