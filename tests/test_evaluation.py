"""Evaluation: never on images that were trained on, and every omission counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import accuracy_score, log_loss
from synthetic import CLASSES, SPEC, write_cache

import featx
from featx.cache import canonical_json, open_cache, seal_of
from featx.cache.seal import sealed
from featx.cross_validation import cross_validate
from featx.errors import CacheError, HeadError, InputError
from featx.evaluation import evaluate
from featx.featureset import FeatureSet
from featx.few_shot import learning_curve
from featx.fitting import fit_head
from featx.heads import LogisticHead, save_head
from featx.heads.base import Head
from featx.heads.making import probabilities_of
from featx.heads.row_view import RowView


def test_the_held_out_images_are_measured_and_agree_with_scikit_learn(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "a.h5", n=200, spread=2.0)
    fit = fit_head(path)
    result = evaluate(cache_dir=tmp_path)
    X, y = featx.load(path, split="held-out", return_X_y=True)
    proba = fit.file.head.predict_proba(X)
    assert result.report.n == len(y)
    assert result.report.accuracy.value == pytest.approx(accuracy_score(y, proba.argmax(axis=1)))
    assert result.report.log_loss.value == pytest.approx(log_loss(y, proba))
    assert result.report.accuracy.low < result.report.accuracy.value < result.report.accuracy.high
    assert result.trained_left_out == 0
    assert result.report.classes == ("Great tit", "Grue cendrée", "麻雀")


@pytest.mark.parametrize("head", ["logistic", "mlp", "knn"])
def test_tested_rows_are_read_a_block_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str
) -> None:
    path = write_cache(tmp_path / "a.h5", n=200)
    fit_head(path, head=head)
    expected = evaluate(cache_dir=tmp_path).probabilities
    read: list[int] = []
    take = RowView.__getitem__

    def recording(self: RowView, key: object) -> np.ndarray:
        read.append(len(found := take(self, key)))
        return found

    monkeypatch.setattr(RowView, "__getitem__", recording)
    monkeypatch.setattr("featx.heads.base._BLOCK_BYTES", 7 * 16 * 8)
    monkeypatch.setattr("featx.heads.row_view._BLOCK_BYTES", 7 * 16 * 4)
    monkeypatch.setattr(FeatureSet, "take", None)
    assert np.allclose(evaluate(cache_dir=tmp_path).probabilities, expected, rtol=1e-12)
    assert max(read) == 7
    assert sum(read) == 2 * len(expected)  # to be sure that they are finite, and to predict


@pytest.mark.parametrize("stage", ["cross_validation", "few_shot", "calibration"])
def test_no_stage_copies_the_rows_that_it_predicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    split = np.repeat(np.array([1, 2, 3], np.uint8), 40)
    path = write_cache(tmp_path / "a.h5", n=120, split=split)
    kinds = []

    def recording(estimator: Head, X: object, *others: Any) -> np.ndarray:
        kinds.append(type(X))
        return probabilities_of(estimator, X, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(f"featx.{stage}.probabilities_of", recording)
    if stage == "cross_validation":
        cross_validate(path, head="ridge", cv=3, repeats=1)
    elif stage == "few_shot":
        learning_curve(path, head="ridge", shots=(2,), repeats=1)
    else:
        fit_head(path, head="ridge", calibrate=True)
    assert set(kinds) == {RowView}


def test_beside_the_accuracy_stands_the_majority_baseline(tmp_path: Path) -> None:
    labels = np.where(np.arange(100) % 10 < 7, 0, np.arange(100) % 3)
    path = write_cache(tmp_path / "a.h5", n=100, labels=labels)
    fit_head(path)
    baseline = evaluate(path).report.baseline
    _, y = featx.load(path, split="held-out", return_X_y=True)
    assert baseline.class_name == "Great tit"
    assert baseline.commonest_in == "training images"
    assert baseline.accuracy.value == pytest.approx((y == 0).mean())


def test_images_that_were_trained_on_are_left_out_and_counted(tmp_path: Path) -> None:
    head = fit_head(write_cache(tmp_path / "a.h5")).path
    other = write_cache(tmp_path / "b.h5", n=60, first_image=30, root="/elsewhere")
    trained = {row.tobytes() for row in fit_head(tmp_path / "a.h5").file.split["train"]}
    expected = sum(row.tobytes() in trained for row in featx.load(other).sha256)
    assert expected > 0
    all_rows = evaluate(other, head, on="all")
    assert all_rows.trained_left_out == expected
    assert all_rows.report.n == 60 - expected


def test_trained_images_are_recognised_after_the_folder_has_changed(tmp_path: Path) -> None:
    fit = fit_head(write_cache(tmp_path / "a.h5"))
    moved = np.where(np.arange(60) < 30, 1, 2).astype(np.uint8)  # now half of it is called val
    write_cache(tmp_path / "a.h5", split=moved)
    result = evaluate(tmp_path / "a.h5", fit.path)
    trained = {row.tobytes() for row in fit.file.split["train"]}
    tested = featx.load(tmp_path / "a.h5")
    rows = [tested.paths.index(path) for path in result.paths]
    assert result.report.n > 0
    assert not trained & {tested.sha256[row].tobytes() for row in rows}


def test_only_told_to_it_tests_on_trained_images_and_says_so(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "a.h5")
    fit_head(path)
    result = evaluate(path, on="all", include_trained=True, cache_dir=tmp_path)
    assert result.report.n == 60
    assert "images it was trained on included" in result.tested_on


def test_a_test_folder_is_held_out_and_val_is_chosen_on(tmp_path: Path) -> None:
    split = np.array([1, 1, 1, 2, 3], np.uint8)[np.arange(60) % 5]
    path = write_cache(tmp_path / "a.h5", split=split)
    fit = fit_head(path)
    result = evaluate(path, fit.path)
    assert result.tested_on == "test images"
    assert result.report.n == 12
    assert {int(p.split(".")[0]) % 5 for p in result.paths} == {4}
    assert evaluate(path, fit.path, on="all").trained_left_out == 48  # val was chosen on


def test_an_external_test_matches_classes_by_name(tmp_path: Path) -> None:
    head = fit_head(write_cache(tmp_path / "a.h5")).path
    classes = ("9.Oystercatcher", "Grue cendrée", "Great tit")  # other order, other numbering
    labels = np.arange(1000, 1030) % 3
    centres = {0: 2, 1: 1, 2: 0}  # the features of the class of that name
    external = write_cache(
        tmp_path / "x.h5",
        n=30,
        first_image=1000,
        labels=np.array([centres[label] for label in labels]),
        root="/other",
    )
    renamed = _relabel(external, labels, classes)
    result = evaluate(renamed, head)
    assert result.unknown == {"Oystercatcher": int((labels == 0).sum())}
    assert result.report.n == int((labels != 0).sum())
    assert result.report.accuracy.value == 1.0


def _relabel(path: Path, labels: np.ndarray, classes: tuple[str, ...]) -> Path:
    """The cache with other labels and class names for the same features."""
    import h5py

    width = max(len(name.encode()) for name in classes)
    with h5py.File(path, "r+") as file:
        assert file["classes"].dtype.itemsize >= width
        file["labels"][:] = labels
        file["classes"][:] = [name.encode() for name in classes]
    file = open_cache(path)
    with path.open("r+b") as stream:  # seal it again
        stream.seek(file.offsets["run"])
        report = canonical_json(sealed({}, seal_of(file)[1])).encode()
        stream.write(report.ljust(file.columns["run"].nbytes, b"\0"))
        stream.flush()
        stream.seek(file.offsets["digest"])
        stream.write(seal_of(file)[0])
    return path


def test_a_cache_of_other_features_is_refused_by_name(tmp_path: Path) -> None:
    head = fit_head(write_cache(tmp_path / "a.h5")).path
    other = write_cache(tmp_path / "b.h5", spec={**SPEC, "weights_sha256": "f" * 64, "pool": "max"})
    with pytest.raises(HeadError, match=r"does not fit .*weights_sha256: .*pool: 'max', not 'avg'"):
        evaluate(other, head)


def test_nothing_left_to_test_on_is_an_error_that_counts(tmp_path: Path) -> None:
    fit = fit_head(write_cache(tmp_path / "a.h5"))
    trained = [int.from_bytes(row[:8].tobytes(), "little") for row in fit.file.split["train"]]
    one = write_cache(tmp_path / "b.h5", n=1, first_image=trained[0], root="/x")
    with pytest.raises(InputError, match=r"no image of .* is left to test .*: 1 were trained on"):
        evaluate(one, fit.path, on="all")


def test_failed_and_unlabelled_images_are_counted(tmp_path: Path) -> None:
    labels = np.arange(60) % 3
    labels[:4] = -1
    path = write_cache(tmp_path / "a.h5", labels=labels, failed=(7, 8))
    fit_head(path)
    result = evaluate(path, cache_dir=tmp_path)
    assert (result.unlabelled, result.failed) == (4, 2)


def test_the_cache_of_a_head_is_found_by_its_record_after_a_move(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    fit_head(write_cache(tmp_path / "one" / "a.h5"))
    (tmp_path / "one").rename(tmp_path / "two")
    assert evaluate(cache_dir=tmp_path / "two").cache == tmp_path / "two" / "a.h5"
    (tmp_path / "two" / "a.h5").unlink()
    with pytest.raises(CacheError, match=r"the cache that a\.logistic.* was fitted on \(a\.h5\)"):
        evaluate(cache_dir=tmp_path / "two")


def test_a_head_without_a_record_of_its_features_is_refused(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "a.h5")
    X, y = featx.load(path, return_X_y=True)
    save_head(tmp_path / "own.safetensors", LogisticHead(C=1.0).fit(X, y), classes=CLASSES)
    with pytest.raises(HeadError, match=r"does not say what it was fitted on \(no cache\.spec\)"):
        evaluate(path, tmp_path / "own.safetensors")


def test_without_a_head_the_error_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(HeadError, match="fit one with `featx fit-head`"):
        evaluate(cache_dir=tmp_path)


def test_the_report_as_json_has_no_rounding_and_no_numpy(tmp_path: Path) -> None:
    import json

    path = write_cache(tmp_path / "a.h5")
    fit_head(path)
    told = evaluate(path, cache_dir=tmp_path).to_dict()
    assert json.loads(json.dumps(told)) == told
    assert sum(map(sum, told["confusion"])) == told["n"]
    assert len(CLASSES) == told["k"]


def test_the_report_says_what_moves_its_figures(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "a.h5")
    fit = fit_head(path, seed=5, C=2.0, group=r"(\d{5})\d\.jpg")
    told = evaluate(path, fit.path).to_dict()["recorded"]
    assert told["params"] == fit.file.head.get_params()
    assert told["params"]["standardise"] is True
    assert told["fit"] == fit.file.metadata["fit"]
    assert told["settings"]["seed"] == 5
    assert told["versions"]["scikit-learn"]
    assert told["split"]["source"] == fit.file.metadata["split"]["source"]
    assert "held_out_groups" not in told["split"]


def test_figures_of_a_fit_that_has_not_converged_say_so(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "a.h5", spread=2.5)
    converged, fit = fit_head(path, C=10.0), None
    with pytest.warns(ConvergenceWarning):
        fit = fit_head(path, C=10.0, max_iter=1, out=tmp_path / "early.safetensors")
    n = len(fit.file.split["train"])
    trained_on = evaluate(path, fit.path).protocol["trained_on"]
    assert trained_on == f"{n} images (the fit did not converge)"
    assert evaluate(path, converged.path).protocol["trained_on"] == f"{n} images"


def test_a_set_that_shares_one_image_with_the_heads_own_is_an_external_test(
    tmp_path: Path,
) -> None:
    fit = fit_head(write_cache(tmp_path / "a.h5"))
    for part, left_out in (("train", 1), ("held_out", 0)):
        numbers = [int.from_bytes(row[:8].tobytes(), "little") for row in fit.file.split[part]]
        other = write_cache(tmp_path / f"{part}.h5", n=25, first_image=max(numbers), root="/o")
        trained = {row.tobytes() for row in fit.file.split["train"]}
        expected = sum(row.tobytes() in trained for row in featx.load(other).sha256)
        result = evaluate(other, fit.path)
        assert result.tested_on == "all labelled images"
        assert result.trained_left_out == expected >= left_out
        assert result.report.n == 25 - expected


def test_a_cache_of_the_same_name_from_another_folder_is_not_taken_for_the_heads_own(
    tmp_path: Path,
) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    fit = fit_head(write_cache(tmp_path / "one" / "a.h5", root="/one"))
    write_cache(tmp_path / "two" / "a.h5", first_image=900, root="/two")
    moved = fit.path.rename(tmp_path / "two" / fit.path.name)
    assert evaluate(head=moved).cache == tmp_path / "one" / "a.h5"


def test_intervals_draw_the_groups_that_the_head_recorded_and_no_rule_is_followed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_cache(tmp_path / "a.h5", n=200, spread=2.5)
    fit = fit_head(path, group=r"(\d{5})\d\.jpg")  # ten images each, by their names
    alone = fit_head(path, C=1.0)
    monkeypatch.setattr("featx.grouping.group_images", None)
    found = evaluate(path, fit.path)
    _, first, tens = np.unique([name[:5] for name in found.paths], True, True)
    assert np.array_equal(found.groups, np.argsort(np.argsort(first))[tens])
    assert found.protocol["intervals_draw"] == "whole groups (4 groups, 0 images alone)"
    assert evaluate(path, alone.path).protocol["intervals_draw"] == "single images"
    external = write_cache(
        tmp_path / "b.h5", first_image=500, groups=np.arange(60) // 6, root="/elsewhere"
    )
    assert evaluate(external, fit.path).protocol["intervals_draw"].startswith("whole groups (10 ")
    for garbled in (["a"] * 40, [0], {"0": 0}, [2**70] * 40):
        split = fit.file.metadata["split"] | {"held_out_groups": garbled}
        save_head(
            fit.path, fit.file.head, classes=CLASSES,
            metadata={**fit.file.metadata, "split": split}, split=fit.file.split,
        )  # fmt: skip
        with pytest.raises(HeadError, match="which of its held-out images belong together"):
            evaluate(path, fit.path)


def test_what_to_test_on_is_one_of_two_words(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="on must be 'held-out' or 'all', got 'heldout'"):
        evaluate(on="heldout", cache_dir=tmp_path)  # type: ignore[arg-type]
