"""Prediction: every image in its place, bad ones named, other weights refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from synthetic import write_cache

import featx
from featx.errors import HeadError, InputError, WeightsError
from featx.extraction import run_extraction
from featx.fitting import fit_head
from featx.heads import load_head, save_head
from featx.prediction import predict
from featx.specs import ExtractOptions
from featx.temperature import at_temperature
from featx.weight_files import sha256_file

pytestmark = pytest.mark.usefixtures("kept_decoders")

Folder = Callable[..., Path]


@pytest.fixture
def fitted(colour_folder: Folder, tmp_path: Path) -> tuple[Path, Path, Path]:
    """A folder of red, green and blue images, its cache, and a head that names the colours."""
    root = colour_folder()
    options = ExtractOptions(
        backbone="squeezenet1_1", weights="random", device="cpu", batch_size=4,
        transform={"resize": 64, "crop": 64},
    )  # fmt: skip
    features = run_extraction(root, options, cache_dir=tmp_path / "cache").features
    return root, features.path, fit_head(features.path, C=1.0).path


def test_files_folders_and_globs_are_predicted_in_the_order_given(
    fitted: tuple[Path, Path, Path],
) -> None:
    root, _, head = fitted
    one = root / "red" / "red0.png"
    made = predict(head, [one, root / "blue", str(root / "green" / "*.png")])
    assert [Path(p).parent.name for p in made.paths] == ["red"] + ["blue"] * 6 + ["green"] * 6
    named = [made.classes[label] for label in made.labels]
    assert named == [Path(path).parent.name for path in made.paths]
    assert made.probabilities.shape == (13, 3)
    assert np.allclose(made.probabilities.sum(axis=1), 1)


def test_a_cache_needs_no_forward_pass_and_says_the_same_as_its_files(
    fitted: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, cache, head = fitted
    from_files = predict(head, root, batch_size=4)
    monkeypatch.setattr("featx.prediction.pipeline_of_spec", None)  # no network can be built now
    from_cache = predict(head, cache)
    assert [Path(p).name for p in from_cache.paths] == [Path(p).name for p in from_files.paths]
    assert np.array_equal(from_cache.probabilities, from_files.probabilities)


def test_files_too_are_predicted_at_the_temperature_unless_told_otherwise(
    fitted: tuple[Path, Path, Path],
) -> None:
    root, _, head = fitted
    file = load_head(head)
    metadata = {**file.metadata, "calibration": {"temperature": 2.0, "fitted_on": "40 val images"}}
    save_head(head, file.head, classes=file.classes, metadata=metadata, split=file.split)
    calibrated, plain = predict(head, root / "red"), predict(head, root / "red", calibrated=False)
    assert np.array_equal(calibrated.probabilities, at_temperature(plain.probabilities, 2.0))
    assert not np.array_equal(calibrated.probabilities, plain.probabilities)
    assert (calibrated.temperature, plain.temperature) == (2.0, None)


def test_the_last_partial_batch_is_predicted(fitted: tuple[Path, Path, Path]) -> None:
    root, _, head = fitted
    for batch_size in (1, 4, 5, 100):
        assert len(predict(head, root, batch_size=batch_size)) == 18


def test_a_single_image_is_predicted_like_one_of_many(fitted: tuple[Path, Path, Path]) -> None:
    root, _, head = fitted
    many = predict(head, root)
    one = predict(head, many.paths[7])
    assert np.abs(one.probabilities[0] - many.probabilities[7]).max() < 1e-5


def test_unreadable_files_are_named_and_the_others_still_predicted(
    fitted: tuple[Path, Path, Path],
) -> None:
    root, _, head = fitted
    (root / "red" / "red1.png").write_bytes(b"\x89PNG broken")
    made = predict(head, root)
    assert len(made) == 17
    assert [Path(image.path).name for image in made.failed] == ["red1.png"]
    assert made.failed[0].reason
    named = [made.classes[label] for label in made.labels]
    assert named == [Path(path).parent.name for path in made.paths]  # nothing has shifted


def test_records_hold_the_best_classes_first(fitted: tuple[Path, Path, Path]) -> None:
    root, _, head = fitted
    record = predict(head, root / "red" / "red0.png").to_records(top_k=2)[0]
    assert record["class"] == "red"
    assert record["top"][0]["class"] == "red"
    assert len(record["top"]) == 2
    assert record["top"][0]["probability"] == record["probability"]
    assert record["top"][0]["probability"] > record["top"][1]["probability"]


def test_weights_of_another_hash_are_refused(
    fitted: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    import torch

    from featx.backbones import load_backbone

    root, _, head = fitted
    other = load_backbone("squeezenet1_1", weights="random", seed=5).network
    torch.save(other.state_dict(), tmp_path / "other.pth")
    with pytest.raises(HeadError, match=r"made with squeezenet1_1 weights of SHA-256 .* has "):
        predict(head, root, weights=str(tmp_path / "other.pth"))


def test_weights_are_found_where_they_lay_and_else_asked_for(
    colour_folder: Folder, tmp_path: Path
) -> None:
    import torch

    from featx.backbones import load_backbone

    root, weights = colour_folder(per_class=3), tmp_path / "mine.pth"
    network = load_backbone("squeezenet1_1", weights="random", seed=9).network
    torch.save(network.state_dict(), weights)
    options: dict[str, Any] = {
        "backbone": "squeezenet1_1", "device": "cpu", "engine": "torch-eager", "batch_size": 4,
    }  # fmt: skip
    features = featx.extract(
        root, weights=str(weights), cache_dir=tmp_path / "c", transform={"resize": 64, "crop": 64},
        **options,
    )  # fmt: skip
    assert features.spec["weights_sha256"] == sha256_file(weights)
    head = fit_head(features.path, C=1.0).path
    assert len(predict(head, root)) == 9
    moved = weights.rename(tmp_path / "moved.pth")
    with pytest.raises(
        WeightsError, match=r"mine\.pth .*no longer there; give the file with --weights"
    ) as caught:
        predict(head, root)
    assert caught.value.exit_code == 7
    assert len(predict(head, root, weights=str(moved))) == 9


def test_what_is_not_there_is_told(fitted: tuple[Path, Path, Path], tmp_path: Path) -> None:
    root, cache, head = fitted
    with pytest.raises(InputError, match=r"none\.jpg"):
        predict(head, tmp_path / "none.jpg")
    with pytest.raises(InputError, match="no images to predict"):
        predict(head, [])
    with pytest.raises(InputError, match="not both"):
        predict(head, [cache, root])
    with pytest.raises(HeadError):
        predict(tmp_path / "none.safetensors", root)


def test_a_cache_of_other_features_is_refused(
    fitted: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(HeadError, match="does not fit"):
        predict(fitted[2], write_cache(tmp_path / "other.h5"))


def test_the_extractor_gives_the_caches_features_inside_a_pipeline(
    fitted: tuple[Path, Path, Path],
) -> None:
    from sklearn.base import clone
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    _, cache, _ = fitted
    fs = featx.load(cache)
    extractor = featx.FeatureExtractor(
        "squeezenet1_1", weights="random", device="cpu", batch_size=4,
        preprocessing={"resize": 64, "crop": 64},
    )  # fmt: skip
    files = fs.files
    assert np.array_equal(clone(extractor).fit_transform(files), fs.X)
    opened = [Image.open(file) for file in files]
    arrays = [np.asarray(image) for image in opened]
    assert np.array_equal(extractor.transform(opened), fs.X)
    assert np.array_equal(extractor.transform(np.stack(arrays)), fs.X)
    model = make_pipeline(extractor, LogisticRegression(max_iter=10_000)).fit(files, fs.y)
    assert model.score(files, fs.y) == 1.0
    assert len(extractor.get_feature_names_out()) == fs.X.shape[1] == extractor.n_features_out_


def test_the_extractor_names_a_bad_image_and_drops_nothing(tmp_path: Path) -> None:
    from featx.errors import ImageError

    extractor = featx.FeatureExtractor(
        "squeezenet1_1", weights="random", preprocessing={"resize": 32, "crop": 32}
    )
    (tmp_path / "bad.jpg").write_text("no picture")
    good = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ImageError, match=r"image 1 \(.*bad\.jpg\) cannot be used"):
        extractor.transform([good, tmp_path / "bad.jpg"])
    with pytest.raises(InputError, match=r"must be uint8 of shape .* got float64 \(8, 8, 3\)"):
        extractor.transform([good.astype(float)])
    with pytest.raises(InputError, match="a path, a PIL image or a uint8 array, got int"):
        extractor.transform([7])
    grey = extractor.transform([good[..., 0]])
    assert np.array_equal(grey, extractor.transform([good]))


def test_a_pickled_extractor_is_small_and_builds_its_network_again() -> None:
    import pickle

    extractor = featx.FeatureExtractor(
        "squeezenet1_1", weights="random", preprocessing={"resize": 32, "crop": 32}
    ).fit()
    images = [np.full((16, 16, 3), 99, np.uint8)]
    data = pickle.dumps(extractor)
    assert len(data) < 10_000
    assert np.array_equal(pickle.loads(data).transform(images), extractor.transform(images))


def test_only_bad_images_give_no_predictions_and_name_each(
    fitted: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_text("no picture")
    made = predict(fitted[2], bad)
    assert (len(made), made.probabilities.shape) == (0, (0, 3))
    assert [image.path for image in made.failed] == [str(bad)]


def test_predictions_of_a_cache_say_where_the_files_are(fitted: tuple[Path, Path, Path]) -> None:
    _, cache, head = fitted
    assert all(file.is_file() for file in predict(head, cache).files)


def test_one_path_is_no_list_of_images() -> None:
    with pytest.raises(InputError, match="must be a list of images, got one path"):
        featx.FeatureExtractor("squeezenet1_1", weights="random").transform("a.jpg")


def test_a_cache_is_no_head(fitted: tuple[Path, Path, Path]) -> None:
    root, cache, _ = fitted
    with pytest.raises(HeadError, match="is a cache, not a head"):
        predict(cache, root)


def test_no_images_give_no_features(fitted: tuple[Path, Path, Path]) -> None:
    extractor = featx.FeatureExtractor(
        "squeezenet1_1", weights="random", preprocessing={"resize": 32, "crop": 32}
    )
    assert extractor.transform([]).shape == (0, 512)


def test_timms_own_weights_are_found_again_by_their_default_name() -> None:
    from featx.recorded import _recorded_weights

    recorded = {"name": "a1_in1k", "path": "", "seed": 0}
    assert _recorded_weights(recorded, "timm:resnet18") == "default"
    assert _recorded_weights({"name": "random"}, "timm:resnet18") == "random"
    assert _recorded_weights({"name": "IMAGENET1K_V2"}, "resnet50") == "IMAGENET1K_V2"


def test_predictions_run_on_the_engine_that_is_asked_for(fitted: tuple[Path, Path, Path]) -> None:
    root, _, head = fitted
    files = sorted((root / "red").iterdir())[:2]
    expected = featx.predict(head, files)
    eager = featx.predict(head, files, engine="torch-eager")
    assert np.allclose(eager.probabilities, expected.probabilities, atol=1e-4)
    with pytest.raises(InputError, match="torch-cudagraph runs on CUDA"):
        featx.predict(head, files, engine="torch-cudagraph", device="cpu")
