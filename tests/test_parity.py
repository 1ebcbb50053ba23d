"""Features equal the library's own: the reference model, hooked, under its published transform."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models

import featx
from featx.heads import HEADS

# One network of each kind of preprocessing: 256/224 bilinear, 342/299 with `transform_input`,
# a bicubic preset, and 232/224; small members, since random weights say as much as trained ones.
NETWORKS = ["densenet121", "mobilenet_v2", "googlenet", "efficientnet_b0", "regnet_y_400mf"]


def photographs(folder: Path) -> list[Path]:
    """Pictures with gradients, edges and noise, of odd sizes, upright, wide and small."""
    rng = np.random.default_rng(0)
    files = []
    for i, (h, w) in enumerate([(375, 500), (301, 223), (640, 427), (90, 130)]):
        y, x = np.mgrid[0:h, 0:w]
        waves = 127 + 90 * np.sin(x / (9 + i))[..., None] * np.cos(y / 13)[..., None]
        pixels = waves + np.array([20, -10, 0]) + rng.normal(0, 12, (h, w, 3))
        pixels[h // 3 : h // 2, w // 4 : w // 2] = (200, 30, 40 * i)
        file = folder / f"{i}.jpg"
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(file, quality=92)
        files.append(file)
    return files


def reference(name: str, files: list[Path], state: dict[str, torch.Tensor]) -> np.ndarray:
    """What enters the last linear layer of torchvision's own network, by a hook."""
    builder: dict[str, Any] = {
        "googlenet": {"aux_logits": False, "transform_input": False, "init_weights": False}
    }
    network = models.get_model(name, weights=None, **builder.get(name, {})).eval()
    network.load_state_dict(state)
    transform = models.get_model_weights(name).IMAGENET1K_V1.transforms()
    last = [module for module in network.modules() if isinstance(module, torch.nn.Linear)][-1]
    seen: list[torch.Tensor] = []
    last.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    with torch.no_grad():
        for file in files:
            with Image.open(file) as image:
                network(transform(image.convert("RGB"))[None])
    return torch.cat(seen).numpy()


def relative(a: np.ndarray, b: np.ndarray) -> float:
    """Largest max|a - b| / max|b| of any row."""
    return float((np.abs(a - b).max(axis=1) / np.abs(b).max(axis=1)).max())


@pytest.mark.parametrize("name", NETWORKS)
def test_features_equal_hooking_the_reference_model(name: str, tmp_path: Path) -> None:
    from featx.backbones import load_backbone

    files = photographs(tmp_path)
    expected = reference(
        name, files, dict(load_backbone(name, weights="random").network.state_dict())
    )
    options: dict[str, Any] = {"weights": "random", "device": "cpu"}
    eager: dict[str, Any] = {**options, "engine": "torch-eager", "batch_size": 4}
    exact = featx.FeatureExtractor(name, decode="exact", **eager).transform(files)
    assert relative(exact, expected) <= 1e-5
    fast = featx.FeatureExtractor(name, decode="fast", **eager).transform(files)
    assert relative(fast, exact) <= 5e-3
    chosen = featx.FeatureExtractor(name, decode="exact", **options).transform(files)
    assert relative(chosen, expected) <= 1e-4


@pytest.mark.real_data
@pytest.mark.slow
def test_fast_decoding_changes_no_class_on_real_photographs(real_data: Path) -> None:
    files = sorted((real_data / "data" / "birds" / "val").rglob("*.jpg"))
    weights = str(real_data / "weights" / "mobilenet_v2-e36a8f4b.pth")
    made = {
        decode: featx.FeatureExtractor(
            "mobilenet_v2", weights=weights, cut="logits", decode=decode, device="cpu"
        ).transform(files)
        for decode in ("exact", "fast")
    }
    assert (made["exact"].argmax(axis=1) == made["fast"].argmax(axis=1)).all()
    features = {
        decode: featx.FeatureExtractor(
            "mobilenet_v2", weights=weights, decode=decode, device="cpu"
        ).transform(files)
        for decode in ("exact", "fast")
    }
    assert relative(features["fast"], features["exact"]) <= 5e-3


@pytest.mark.real_data
@pytest.mark.slow
@pytest.mark.parametrize(
    ("images", "weights", "least"),
    [
        ("hymenoptera", "mobilenet_v2-e36a8f4b.pth", 0.92),
        ("birds", "mobilenet_v2_inat_birds-f6f62bbf.pth", 0.94),
    ],
)
def test_real_photographs_are_classified_as_well_as_published(
    real_data: Path, tmp_path: Path, images: str, weights: str, least: float
) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features = featx.extract(
        real_data / "data" / images,
        backbone="mobilenet_v2",
        weights=str(real_data / "weights" / weights),
        cache_dir=tmp_path,
    )
    fit = featx.fit_head(features.path)
    report = featx.evaluate(features.path, fit.path).report
    assert report.accuracy.value >= least
    assert report.accuracy.low > report.baseline.accuracy.value
    for head in HEADS:
        other = featx.evaluate(features.path, featx.fit_head(features.path, head=head).path).report
        assert other.accuracy.value >= 0.9, head
        assert other.accuracy.low > other.baseline.accuracy.high, head
    train = featx.load(features.path, split="train")
    test = featx.load(features.path, split="held-out")
    plain = make_pipeline(
        StandardScaler(), LogisticRegression(C=fit.file.head.C_, tol=1e-8, max_iter=5000)
    )
    assert plain.fit(train.X, train.y).score(test.X, test.y) == report.accuracy.value

    # what --store float16 keeps, and what the README says of it
    half = [features.with_images(fit.file.split[part]) for part in ("train", "held_out")]
    halved = [(part.X.astype(np.float16), part.y) for part in half]
    head = HEADS["logistic"](C=fit.file.head.C_).fit(*halved[0])
    assert head.score(*halved[1]) == report.accuracy.value
    lost = np.linalg.norm(halved[1][0] - half[1].X, axis=1) / np.linalg.norm(half[1].X, axis=1)
    assert round(lost.mean(), 4) == 0.0002
