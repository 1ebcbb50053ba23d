"""A tail as a stage: from a cache to a head file, interrupted, measured, predicted, refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from safetensors import safe_open
from synthetic import TINY
from typer.testing import CliRunner

import featx
from featx.backbones import load_backbone
from featx.cache import CacheWriter, Rows
from featx.cli import app
from featx.cli.training import telling_epochs
from featx.errors import HeadError, InputError, StoppedError, WeightsError
from featx.evaluation import evaluate
from featx.finalising import fit_final
from featx.fitting import fit_head, fit_like
from featx.heads import TailHead, load_head, save_head
from featx.heads.contents import canonical, digest_of
from featx.prediction import predict

pytestmark = pytest.mark.usefixtures("kept_decoders")

QUICK: dict[str, Any] = {"head": "tail", "epochs": 2, "device": "cpu"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of coloured images, cut in SqueezeNet's last block: (512, 3, 3) each."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("birds")
    rng = np.random.default_rng(0)
    for label, colour in {"red": (200, 40, 40), "green": (40, 180, 60)}.items():
        (folder / "images" / label).mkdir(parents=True)
        for i in range(8):
            pixels = np.clip(np.array(colour) + rng.integers(-40, 40, (40, 40, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / label / f"{i}.png")
    features = featx.extract(
        folder / "images", cut="features.11", pool="none", cache_dir=folder / "cache", **TINY
    )
    return features.path


def test_a_tail_is_fitted_measured_and_predicts_files_as_it_does_their_features(cache, capsys):
    fit = fit_head(cache, **QUICK)
    assert fit.path.name.endswith(".tail+epochs=2.safetensors")
    assert [path.suffix for path in fit.path.parent.glob("*.checkpoint*")] == []
    head = fit.file.head
    assert isinstance(head, TailHead)
    assert (head.backbone, head.weights, head.cut) == ("squeezenet1_1", "random", "features.11.cat")
    assert fit.file.metadata["settings"]["params"] == {"epochs": 2}
    assert fit.file.metadata["split"]["chosen_on"].endswith("of the training images, set aside")
    evaluation = featx.evaluate(head=fit.path, bootstrap=0)
    assert evaluation.report.n == 4
    cached = predict(fit.path, cache)
    files = predict(fit.path, cached.files, device="cpu", engine="torch-eager", batch_size=3)
    assert np.allclose(files.probabilities, cached.probabilities, atol=1e-5)
    assert featx.load(cache).X.shape == (16, 512 * 3 * 3)


def test_a_tail_is_measured_on_the_device_that_is_asked_for(cache, tmp_path, monkeypatch):
    head = fit_head(cache, out=tmp_path / "a.safetensors", head="tail", epochs=1, device="cpu")
    used = []
    logits = TailHead._all_logits

    def recording(self, *rows):
        used.append(self.predict_device)
        self.predict_device = "cpu"
        return logits(self, *rows)

    monkeypatch.setattr(TailHead, "_all_logits", recording)
    monkeypatch.setattr("featx.evaluation.resolve_device", lambda name: SimpleNamespace(name=name))
    for device in ("auto", "another"):
        evaluate(cache, head.path, device=device, bootstrap=0)
    assert used == ["cpu", "another"]


def test_an_interrupted_fit_goes_on_from_beside_the_head(cache, tmp_path):
    whole = fit_head(cache, **QUICK | {"epochs": 3}, out=tmp_path / "whole.safetensors")

    def stop(row):
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    out = tmp_path / "head.safetensors"
    with pytest.raises(KeyboardInterrupt):
        fit_head(cache, **QUICK | {"epochs": 3}, out=out, told=stop)
    assert [path.name for path in tmp_path.glob("head*")] == ["head.safetensors.checkpoint"]
    heard = []
    fit_head(cache, **QUICK | {"epochs": 3}, out=out, told=heard.append)
    assert [row["epoch"] for row in heard] == [3]
    assert out.read_bytes() == whole.path.read_bytes()
    assert [path.name for path in tmp_path.glob("head*")] == ["head.safetensors"]


def test_the_same_settings_are_repeated_on_another_cache_and_on_all_images(cache, tmp_path):
    first = fit_head(cache, **QUICK, batchnorm="learn", out=tmp_path / "a.safetensors")
    again = fit_like(first.path, cache, out=tmp_path / "b.safetensors", device="cpu")
    assert again.path.read_bytes() == first.path.read_bytes()
    final = fit_final(first.path, device="cpu", bootstrap=0)
    assert len(final.split.train) == 16
    assert final.file.head.best_epoch_ == 2
    assert not list(tmp_path.glob("*.checkpoint"))


def test_whole_pictures_are_augmented_and_predicted_as_files_are(tmp_path, colour_folder):
    images = colour_folder(per_class=4, size=96)
    options = TINY | {"cut": "input", "store_size": 80, "cache_dir": tmp_path}
    cache = featx.extract(images, **options).path
    fit = fit_head(cache, **QUICK | {"epochs": 1}, augment="crop,flip")
    assert fit.file.head.whole_
    assert featx.evaluate(head=fit.path, bootstrap=0).report.n == 3
    cached = predict(fit.path, cache)
    files = predict(fit.path, cached.files)
    assert np.array_equal(files.probabilities, cached.probabilities)
    with pytest.raises(InputError, match=r"\(--store-size\) needs validation images"):
        fit_head(cache, **QUICK, calibrate=True)
    asked = {"head": "tail", "epochs": 1, "device": "cpu", "augment": "crop,flip"}
    curve = featx.learning_curve(cache, shots=[1], repeats=1, **asked)
    tested = featx.evaluate(head=fit.path, bootstrap=0).report.accuracy.value
    assert curve.points[-1].accuracies == (tested,)  # on all images it is the same head


def test_training_on_pixels_may_start_from_other_weights_than_those_recorded(tmp_path, cache):
    weights = tmp_path / "lenet.pth"
    torch.save(load_backbone("lenet5", weights="random", seed=3).network.state_dict(), weights)
    folder = cache.parents[1] / "images"
    asked = {"backbone": "lenet5", "weights": str(weights), "cut": "input"}
    pixels = featx.extract(folder, cache_dir=tmp_path, **asked).path
    first, second = (
        fit_head(pixels, **QUICK, **given, out=tmp_path / f"{i}.safetensors")
        for i, given in enumerate(({}, {"weights": "random"}))
    )
    firsts, seconds = (file.head.get_params() for file in map(load_head, (first.path, second.path)))
    assert firsts["weights"] == str(weights)
    assert seconds["weights"] == "random"
    for fitted in (first, second):
        assert featx.evaluate(pixels, fitted.path).report.n == 4


def test_tails_that_start_from_other_weights_do_not_replace_each_other(tmp_path, cache):
    for seed in (3, 4):
        state = load_backbone("lenet5", weights="random", seed=seed).network.state_dict()
        torch.save(state, tmp_path / f"{seed}.pth")
    folder = cache.parents[1] / "images"
    asked = {"backbone": "lenet5", "weights": str(tmp_path / "3.pth"), "cut": "input"}
    pixels = featx.extract(folder, cache_dir=tmp_path, **asked).path
    recorded = fit_head(pixels, **QUICK)
    other = fit_head(pixels, **QUICK, weights=str(tmp_path / "4.pth"))
    assert other.path.name == recorded.path.name.replace(".safetensors", "-2.safetensors")
    assert fit_head(pixels, **QUICK, weights=str(tmp_path / "3.pth")).path == recorded.path
    again = fit_like(other.path, pixels)  # it starts where that head did
    assert (again.path, again.replaced) == (other.path, True)
    assert torch.equal(*(f.file.head.tail_.values()["fc3.weight"] for f in (again, other)))


def test_default_weights_are_asked_for_not_those_that_happened_to_be_recorded(tmp_path, cache):
    folder = cache.parents[1] / "images"
    pixels = featx.extract(
        folder, cache_dir=tmp_path, backbone="lenet5", weights="random", cut="input"
    ).path
    with pytest.raises(WeightsError, match="there are no published weights of lenet5"):
        fit_head(pixels, **QUICK, weights="default")


def test_cross_validation_fits_tails_anew(cache):
    found = featx.cross_validate(cache, head="tail", cv=2, repeats=1, epochs=1, device="cpu")
    assert len(found.folds) == 2


def pooled(tmp_path: Path, **changes: Any) -> Path:
    spec = {
        "schema": 1, "backbone": "squeezenet1_1", "weights_sha256": "0" * 64, "cut": "features.12",
        "pool": "avg", "layout": "vector", "shape": [4], "transform": {}, "decode": "fast",
        "exif": True, "max_pixels": 10, "precision": "fp32", **changes,
    }  # fmt: skip
    rows = Rows(
        paths=[b"%d.jpg" % i for i in range(8)], labels=np.arange(8) % 2,
        split=np.zeros(8, np.uint8), groups=np.full(8, -1), size_bytes=np.arange(8),
        mtime_ns=np.arange(8), classes=("a", "b"),
    )  # fmt: skip
    plan = {"engine": "torch-eager", "batch_size": 4, "weights": {"name": "random", "path": ""}}
    path = tmp_path / "pooled.h5"
    writer = CacheWriter.create(path, rows, root="/", spec=spec, plan=plan, feature_shape=(4,))
    sha256 = np.arange(8 * 32, dtype=np.uint8).reshape(8, 32)
    writer.put(np.arange(8), np.ones((8, 4), np.float32), sha256)
    writer.finish(path, {"images": 8})
    return path


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({}, InputError, r"these were pooled \(avg\): extract them with --pool none"),
        ({"backbone": "imported:x"}, InputError, "but these were imported"),
        (
            {"pool": "none"},
            HeadError,
            "made with squeezenet1_1 weights of SHA-256 0000000000000000",
        ),
    ],
)
def test_features_that_no_tail_can_be_fitted_on_are_refused(tmp_path, changes, error, words):
    if changes.get("pool") == "none":
        changes |= {"transform": _transform()}
    with pytest.raises(error, match=words):
        fit_head(pooled(tmp_path, **changes), **QUICK)


def _transform() -> dict[str, Any]:
    from featx.transforms import Transform

    return Transform(resize=64, crop=64, mean=(0.5,) * 3, std=(0.5,) * 3).to_dict()


# The head file


@pytest.fixture(scope="module")
def saved(cache: Path) -> Path:
    return fit_head(cache, **QUICK, out=cache.with_name("saved.safetensors")).path


def test_a_loaded_tail_predicts_the_same_bits(saved, cache, tmp_path):
    X = featx.load(cache).X
    head = load_head(saved).head
    assert isinstance(head, TailHead)
    again = save_head(tmp_path / "again.safetensors", head, classes=["green", "red"])
    assert np.array_equal(load_head(again).head.predict_proba(X), head.predict_proba(X))
    fitted = TailHead(**head.get_params()).fit(X, featx.load(cache).y)
    assert fitted.predict_proba(X).shape == (16, 2)


def test_a_head_of_a_network_without_a_name_cannot_be_saved(tmp_path):
    from torch import nn

    network = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    fitted = TailHead(network, cut="1", epochs=1, device="cpu").fit(X, np.arange(8) % 2)
    with pytest.raises(InputError, match="a head of a network that has no name cannot be saved"):
        save_head(tmp_path / "a.safetensors", fitted, classes=["a", "b"])


@pytest.mark.parametrize(
    ("part", "changes", "words"),
    [
        ("params", {"backbone": "os:system"}, "featx imports no code because a file names it"),
        ("params", {"backbone": "squeezenet1_0"}, "its network cannot be built|expected"),
        ("params", {"cut": "features.99"}, "its network cannot be built: unknown cut"),
        ("params", {"cut": "features.3"}, "its tensors are not those of such a head"),
        ("params", {"transform": {"crop": 1}}, "a parameter cannot be used: a transform has"),
        ("params", {"epochs": -1}, "a parameter cannot be used: epochs"),
        ("facts", {"shape_": [512, 3, 4]}, "its rows are said to hold 4608 values"),
        ("facts", {"shape_": [-512, -3, 3]}, "garbled: shape_ is no counts"),
        ("facts", {"shape_": "many"}, "garbled: shape_ is no counts"),
        ("facts", {"pixels_": 1}, "garbled: pixels_ is no bool"),
        ("facts", {"pixels_": True}, "tensor 'mean' is"),
    ],
)
def test_a_tail_file_made_to_harm_is_refused(saved, tmp_path, part, changes, words):
    with safe_open(saved, framework="np") as file:
        header = json.loads(file.metadata()["featx"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    header[part] = header[part] | changes
    header["digest"] = digest_of(header, tensors)
    path = tmp_path / "forged.safetensors"
    path.write_bytes(safetensors.numpy.save(tensors, {"featx": canonical(header)}))
    with pytest.raises(HeadError, match=words):
        load_head(path)


def test_values_that_give_no_numbers_are_refused(saved, cache):
    head = load_head(saved).head
    values = {name: value.clone() for name, value in head.tail_.values().items()}
    values["classifier.1.weight"] += 3e38
    head.tail_.set_values(values)
    with pytest.raises(HeadError, match="give no numbers as logits"):
        head.predict(featx.load(cache).X * 1e30)


# The command line


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_the_command_line_trains_draws_and_says_what_was_chosen(cache, tmp_path):
    out = tmp_path / "a.safetensors"
    options = ["--head", "tail", "--epochs", "2", "--device", "cpu", "--batchnorm", "frozen"]
    options += ["--lr", "0.01", "--lr-ratio", "0.5", "--warmup", "0.1", "--optimizer", "sgd"]
    done = run(
        "fit-head", str(cache), *options, "--out", str(out), "--curves", str(tmp_path / "c.png")
    )
    assert done.exit_code == 0, done.output
    assert "of the training images, set aside" in done.output
    assert "epoch " in done.output
    assert (tmp_path / "c.png").stat().st_size > 1000
    params = load_head(out).head.get_params()
    assert (params["lr"], params["lr_ratio"], params["warmup"]) == (0.01, 0.5, 0.1)
    refused = run("fit-head", str(cache), "--head", "logistic", "--batchnorm", "learn")
    assert refused.exit_code == 2
    assert "head 'logistic' has no parameter batchnorm (of tail), nor such" in refused.output


ROW = {"epoch": 7, "train_loss": 0.5, "train_accuracy": 0.75, "val_loss": None}


def test_a_training_that_goes_on_says_so(capsys):
    with telling_epochs() as told:
        told(ROW)
        told(ROW | {"epoch": 8})
    assert capsys.readouterr().err.count("going on after epoch 6, up to which") == 1
    with telling_epochs() as told:
        told(ROW | {"epoch": 1})
        told(ROW | {"epoch": 2})
    assert "going on" not in capsys.readouterr().err


def test_ctrl_c_in_the_final_fit_does_not_promise_what_the_first_had(cache, tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("featx.finalising.fit_final", interrupted)
    options = ["--head", "tail", "--epochs", "2", "--device", "cpu", "--final"]
    ended = run("fit-head", str(cache), *options, "--out", str(tmp_path / "a.safetensors"))
    assert ended.exit_code == 130
    assert "kept up to epoch" not in ended.output


def test_ctrl_c_says_what_is_kept():

    def interrupted(*rows):
        with telling_epochs() as told:
            for row in rows:
                told(row)
            raise KeyboardInterrupt

    with pytest.raises(StoppedError, match="kept up to epoch 7, run the same command"):
        interrupted(ROW)
    with pytest.raises(KeyboardInterrupt):
        interrupted()
