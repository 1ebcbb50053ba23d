"""Calibrated heads: fitted without the test images, told as such, and measured both ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import log_loss
from synthetic import write_cache

import featx
from featx.errors import HeadError
from featx.evaluation import evaluate
from featx.fitting import fit_head
from featx.heads import load_head, save_head
from featx.heads.cached import load_recorded, probabilities
from featx.prediction import predict
from featx.temperature import at_temperature

OVERSURE: dict[str, Any] = {"C": 100.0}  # hardly any penalty: far surer than it is right


def with_val(tmp_path: Path, **options: Any) -> Path:
    split = np.array([1, 1, 1, 2, 3], np.uint8)[np.arange(150) % 5]
    return write_cache(tmp_path / "val.h5", n=150, split=split, spread=2.5, **options)


def without_val(tmp_path: Path) -> Path:
    return write_cache(tmp_path / "a.h5", n=150, spread=2.5)


def test_the_temperature_is_fitted_on_the_validation_rows_where_there_are_some(
    tmp_path: Path,
) -> None:
    path = with_val(tmp_path)
    file = fit_head(path, calibrate=True, **OVERSURE).file
    found = file.metadata["calibration"]
    X, y = featx.load(path, split="val", return_X_y=True)
    p = file.head.predict_proba(X)
    losses = {t: log_loss(y, at_temperature(p, t)) for t in np.geomspace(0.05, 50, 400)}
    assert found["temperature"] == pytest.approx(min(losses, key=losses.get), rel=0.02)
    low, high = found["interval"]
    assert 1 < low < found["temperature"] < high
    assert (found["fitted_on"], found["n"]) == ("30 val images", 30)
    assert found["n_wrong"] == (p.argmax(axis=1) != y).sum() > 0
    assert found["log_loss"]["before"] == pytest.approx(log_loss(y, p))
    assert found["log_loss"]["after"] == pytest.approx(min(losses.values()), rel=1e-3)
    assert found["ece"]["after"] < found["ece"]["before"]


def test_without_validation_rows_it_is_fitted_on_training_rows_out_of_their_fold(
    tmp_path: Path,
) -> None:
    path = without_val(tmp_path)
    file = fit_head(path, calibrate=True, **OVERSURE).file
    found = file.metadata["calibration"]
    assert found["fitted_on"] == "120 out-of-fold training images"
    X, y = featx.load(path, split="train", return_X_y=True)
    seen = log_loss(y, file.head.predict_proba(X))
    assert (
        found["log_loss"]["before"] > 3 * seen
    )  # what the head says of rows it has seen is no use
    assert found["log_loss"]["after"] < found["log_loss"]["before"]


@pytest.mark.parametrize("make", [with_val, without_val])
def test_the_test_images_have_no_part_in_it(tmp_path: Path, make: Any) -> None:
    """Other labels and features of held-out images leave every byte of the calibration."""
    path = make(tmp_path)
    held_out = featx.load(path, split="held-out")
    before = fit_head(path, calibrate=True, **OVERSURE).file.metadata["calibration"]
    everything = featx.load(path)
    labels = everything.y.copy()
    labels[held_out.rows] = (labels[held_out.rows] + 1) % 3
    split = np.where(np.isin(np.arange(150), held_out.rows), 3, everything.split_codes)
    split[split == 0] = 1  # the same rows, now as folders of their own
    shifted = write_cache(tmp_path / "b.h5", n=150, spread=2.5, labels=labels, split=split)
    assert not np.array_equal(featx.load(shifted).X, everything.X)
    after = fit_head(shifted, calibrate=True, **OVERSURE).file.metadata["calibration"]
    assert after == before


def test_evaluation_reports_the_figures_at_the_temperature_and_without(tmp_path: Path) -> None:
    path = with_val(tmp_path)
    fit = fit_head(path, calibrate=True, **OVERSURE)
    result = evaluate(path, fit.path, bootstrap=20)
    X, y = featx.load(path, split="test", return_X_y=True)
    plain = fit.file.head.predict_proba(X)
    temperature = fit.file.metadata["calibration"]["temperature"]
    calibrated = softmax(np.log(plain) / temperature, axis=1)
    np.testing.assert_allclose(result.probabilities, calibrated, rtol=1e-9)
    assert result.report.log_loss.value == pytest.approx(log_loss(y, calibrated))
    assert result.uncalibrated is not None
    assert result.uncalibrated.log_loss.value == pytest.approx(log_loss(y, plain))
    assert result.report.accuracy == result.uncalibrated.accuracy
    told = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert told["calibration"]["temperature"] == temperature
    assert told["uncalibrated"]["brier"]["value"] == result.uncalibrated.brier.value
    assert told["uncalibrated"]["reliability"] != told["reliability"]


def test_a_head_that_is_not_calibrated_has_one_report(tmp_path: Path) -> None:
    fit = fit_head(without_val(tmp_path))
    assert "calibration" not in fit.file.metadata
    result = evaluate(head=fit.path)
    assert (result.uncalibrated, result.calibration) == (None, None)
    assert result.to_dict()["uncalibrated"] is None
    assert np.array_equal(
        result.probabilities,
        fit.file.head.predict_proba(featx.load(result.cache, split="held-out").X),
    )


def test_predictions_are_at_the_temperature_unless_told_otherwise(tmp_path: Path) -> None:
    path = without_val(tmp_path)
    fit = fit_head(path, calibrate=True, **OVERSURE)
    own = fit.file.head.predict_proba(featx.load(path).X)
    temperature = fit.file.metadata["calibration"]["temperature"]
    calibrated, plain = predict(fit.path, path), predict(fit.path, path, calibrated=False)
    assert np.array_equal(plain.probabilities, own)
    assert np.array_equal(calibrated.probabilities, at_temperature(own, temperature))
    assert np.array_equal(calibrated.labels, plain.labels)
    assert (calibrated.temperature, plain.temperature) == (temperature, None)
    assert predict(fit_head(path).path, path).temperature is None


def test_the_protocol_says_what_each_decision_was_made_on(tmp_path: Path) -> None:
    path = with_val(tmp_path)
    fit = fit_head(path, calibrate=True)
    assert evaluate(path, fit.path).protocol == {
        "trained_on": "90 images",
        "chosen_on": "30 val images",
        "calibrated_on": "30 val images",
        "tested_on": "30 images (test images)",
        "test_images_used_for": "these figures only",
        "intervals_draw": "single images",
    }
    plain = fit_head(without_val(tmp_path)).path
    told = evaluate(head=plain, on="all", include_trained=True).protocol
    assert told["calibrated_on"] == "nothing"
    assert told["chosen_on"] == "5-fold cross-validation"
    assert (
        told["tested_on"] == "150 images (all labelled images, images it was trained on included)"
    )
    assert told["test_images_used_for"] == "training too: no measure of new images"


def test_rows_that_are_all_right_fit_no_temperature_and_the_file_says_so(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "a.h5", spread=0.1)
    found = fit_head(path, calibrate=True).file.metadata["calibration"]
    assert (found["temperature"], found["interval"]) == (1.0, None)
    assert found["fitted_on"] == "nothing: all 48 out-of-fold training images are right"
    assert evaluate(path).protocol["calibrated_on"] == found["fitted_on"]


def test_a_calibrated_head_has_a_name_of_its_own_and_the_same_bytes_each_time(
    tmp_path: Path,
) -> None:
    path = without_val(tmp_path)
    plain = fit_head(path, C=1.0)
    first = fit_head(path, C=1.0, calibrate=True)
    assert first.path.name == "a.logistic+C=1+calibrated.safetensors"
    before = first.path.read_bytes()
    assert fit_head(path, C=1.0, calibrate=True).replaced
    assert first.path.read_bytes() == before
    X = featx.load(path).X
    assert np.array_equal(  # the head itself is the same
        first.file.head.predict_proba(X), plain.file.head.predict_proba(X)
    )


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_every_head_can_be_calibrated(tmp_path: Path, head: str) -> None:
    fit = fit_head(without_val(tmp_path), head=head, calibrate=True, epochs=5, device="cpu")
    assert fit.file.metadata["calibration"]["n"] == 120
    assert fit.file.metadata["calibration"]["n_wrong"] > 0


def test_validation_images_of_classes_that_were_not_trained_on_are_left_out(
    tmp_path: Path,
) -> None:
    labels = np.arange(150) % 3
    labels[np.arange(150) % 15 == 3] = 3  # validation images all
    four = ("a", "b", "c", "d")
    path = with_val(tmp_path, labels=labels, classes=four)
    with pytest.warns(UserWarning, match="classes without training rows"):
        found = fit_head(path, calibrate=True).file.metadata["calibration"]
    assert found["n"] == 30 - (labels == 3).sum() < 30


@pytest.mark.parametrize(
    "calibration",
    [
        {"temperature": 0.0, "fitted_on": "x"},
        {"temperature": 1e9, "fitted_on": "x"},
        {"temperature": "1.5", "fitted_on": "x"},
        {"temperature": True, "fitted_on": "x"},
        {"temperature": 1.5},
        [1.5],
    ],
)
def test_a_calibration_that_makes_no_sense_is_refused(tmp_path: Path, calibration: Any) -> None:
    fit = fit_head(without_val(tmp_path), C=1.0)
    file = load_head(fit.path)
    save_head(
        fit.path,
        file.head,
        classes=file.classes,
        metadata={**file.metadata, "calibration": calibration},
        split=file.split,
    )
    with pytest.raises(HeadError, match=r"a calibration that cannot be used .*fit the head again"):
        load_recorded(fit.path)


def test_no_rows_have_no_probabilities(tmp_path: Path) -> None:
    file = fit_head(without_val(tmp_path), calibrate=True, **OVERSURE).file
    assert probabilities(file, np.empty((0, 16), np.float32)).shape == (0, 3)
