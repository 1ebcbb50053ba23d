"""Nested, repeated cross-validation: nothing is tested on what it was fitted or chosen on."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import t
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from synthetic import write_cache
from typer.testing import CliRunner

import featx
from featx.cli import app
from featx.cross_validated import corrected_interval
from featx.cross_validation import cross_validate, cross_validate_like
from featx.errors import InputError
from featx.fitting import fit_head
from featx.folds import cross_validation_folds
from featx.heads import LogisticHead
from featx.heads.making import fit_on

pytestmark = pytest.mark.usefixtures("few_to_choose_from")

FAST: dict[str, Any] = {"repeats": 2, "cv": 3, "device": "cpu"}


def run(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    return result.exit_code, result.stdout, result.stderr


def test_every_figure_is_the_mean_over_fits_that_scikit_learn_repeats(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "a.h5", n=120, spread=3.0)
    found = cross_validate(path, C=0.1, **FAST)
    X, y = featx.load(path, return_X_y=True)
    accuracies, predicted = [], np.full((2, 120), -1)
    for repeat in range(2):
        for train, test in cross_validation_folds(y, n_folds=3, seed=repeat):
            model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, tol=1e-8))
            predicted[repeat, test] = model.fit(X[train], y[train]).predict(X[test])
            accuracies.append((predicted[repeat, test] == y[test]).mean())
    assert found.figures["accuracy"].value == pytest.approx(np.mean(accuracies))
    assert np.array_equal(found.y_pred, predicted)
    assert [fold.report.accuracy.value for fold in found.folds] == pytest.approx(accuracies)
    assert found.figures["baseline"].value == pytest.approx(1 / 3, abs=0.05)
    assert found.chosen == {}
    assert (found.n, found.k, found.never_tested) == (120, 3, 0)


def test_choices_are_made_anew_inside_each_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[set[bytes], int]] = []
    fit = LogisticHead.fit

    def recorded(self: LogisticHead, X: np.ndarray, y: np.ndarray, **rest: Any) -> LogisticHead:
        assert self.C is None
        assert "X_val" not in rest
        seen.append(({row.tobytes() for row in X}, len(X)))
        return fit(self, X, y, **rest)

    monkeypatch.setattr(LogisticHead, "fit", recorded)
    path = write_cache(tmp_path / "a.h5", n=60, spread=3.0)
    found = cross_validate(path, **FAST)
    X = featx.load(path).X
    assert len(seen) == 6
    parts = [
        part for repeat in range(2) for part in
        cross_validation_folds(featx.load(path).y, n_folds=3, seed=repeat)
    ]  # fmt: skip
    for (rows, n), (train, test) in zip(seen, parts, strict=True):
        assert n == len(train)
        assert rows == {row.tobytes() for row in X[train]}
        assert not rows & {row.tobytes() for row in X[test]}
    assert sum(found.chosen.values()) == 6
    assert all(choice.startswith("C ") for choice in found.chosen)


def test_no_information_no_better_than_the_baseline(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 2, 80)
    path = write_cache(tmp_path / "a.h5", n=80, labels=labels, classes=("a", "b"), spread=1000.0)
    found = cross_validate(path, cv=5, repeats=4, device="cpu")
    accuracy = found.figures["accuracy"]
    assert accuracy.low is not None
    assert accuracy.high is not None
    assert accuracy.low < 0.5 < accuracy.high


def test_images_of_one_group_are_in_one_fold(tmp_path: Path) -> None:
    root = tmp_path / "birds"
    root.mkdir()
    path = write_cache(tmp_path / "a.h5", n=60, root=str(root))
    paths = featx.load(path).paths
    group = {name: i // 6 for i, name in enumerate(paths)}
    (root / "nests.csv").write_text(
        "\n".join(["path,nest", *(f"{name},{number}" for name, number in group.items())])
    )
    found = cross_validate(path, group="nest", C=1.0, **FAST)
    groups = np.array([group[name] for name in found.paths])
    assert found.groups == "10 groups by 'nest' of nests.csv"
    y = featx.load(path).y
    expected = cross_validation_folds(y, n_folds=3, groups=groups, seed=0)
    assert [fold.report.n for fold in found.folds[:3]] == [len(test) for _, test in expected]
    for _, test in expected:  # 20 images in 10 groups of 6: no group in two folds
        inside = set(groups[test].tolist())
        assert not inside & set(np.delete(groups, test).tolist())


def test_folds_that_are_drawn_again_are_fitted_and_counted_once(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "a.h5", groups=np.arange(60) // 15, spread=3.0)  # four groups
    once = cross_validate(path, C=1.0, cv=5, repeats=1, device="cpu")
    fits = []
    often = cross_validate(
        path, C=1.0, cv=5, repeats=10, device="cpu", advance=lambda *done: fits.append(done)
    )
    assert fits == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert often.figures == once.figures
    assert (often.cv, often.repeats, len(often.folds)) == (4, 1, 4)
    assert often.y_pred.shape == (1, 60)
    assert often.to_dict()["asked"] == {"cv": 5, "repeats": 10}
    assert often.notes == (
        "5 folds were asked for, 4 could be made: only 4 groups or images alone can be tested",
        "10 repeats were asked for, 1 counted: the other draws gave the same folds again and "
        "measure nothing new",
    )
    code, stdout, stderr = run("evaluate", path, "--cv", 5, "--out", tmp_path / "report")
    assert code == 0
    assert "4 folds, drawn once" in stdout
    assert all(note in stderr for note in often.notes)
    header = (tmp_path / "report" / "cross_validated.csv").read_text("utf-8-sig").split("\n")[0]
    assert header.rstrip() == "path,true,repeat 0"


def test_every_partition_that_was_drawn_is_counted(tmp_path: Path) -> None:
    groups = np.arange(60) // 15
    path = write_cache(tmp_path / "a.h5", groups=groups, spread=3.0)
    found = cross_validate(path, C=1.0, cv=2, repeats=10, device="cpu")
    y = featx.load(path).y
    seen: dict[frozenset[bytes], list[np.ndarray]] = {}
    for seed in range(10):
        parts = cross_validation_folds(y, n_folds=2, groups=groups, seed=seed)
        seen.setdefault(frozenset(test.tobytes() for _, test in parts), [t for _, t in parts])
    assert 1 < len(seen) <= 3  # four groups are two pairs in three ways
    assert (found.cv, found.repeats, found.y_pred.shape) == (2, len(seen), (len(seen), 60))
    assert [(fold.repeat, fold.fold) for fold in found.folds] == [
        (repeat, fold) for repeat in range(len(seen)) for fold in range(2)
    ]
    expected = [
        (predicted[test] == y[test]).mean()
        for predicted, tests in zip(found.y_pred, seen.values(), strict=True)
        for test in tests
    ]
    assert [fold.report.accuracy.value for fold in found.folds] == pytest.approx(expected)
    assert len(found.notes) == 1
    plain = cross_validate(write_cache(tmp_path / "b.h5"), C=1.0, **FAST)
    assert (plain.cv, plain.repeats, plain.notes) == (3, 2, ())


def test_duplicates_that_folds_may_part_are_counted_and_can_be_kept_together(
    tmp_path: Path,
) -> None:
    clean = cross_validate(write_cache(tmp_path / "clean.h5"), C=1.0, **FAST)
    assert (clean.parted_duplicates, clean.duplicate_threshold) == (0, 0.75)
    labels = np.arange(60) % 3
    labels[59] = -1

    def plant(features: np.ndarray, sha256: np.ndarray) -> None:
        features[40], sha256[40] = features[1], sha256[1]
        features[[42, 45]] = features[3] + 0.001
        features[59] = features[5] + 0.001  # one of the two is in no fold

    path = write_cache(tmp_path / "a.h5", labels=labels, plant=plant)
    assert cross_validate(path, C=1.0, **FAST).parted_duplicates == 5
    kept = cross_validate(path, C=1.0, group_duplicates=True, **FAST)
    assert kept.parted_duplicates == 0
    assert kept.groups == "none; duplicates of similarity 0.75 or more"
    assert kept.to_dict()["parted_duplicates"] == 0
    groups = featx.load(path).with_duplicates_grouped().groups[:59]
    assert len(set(groups[[3, 42, 45]])) == 1
    expected = cross_validation_folds(labels[:59], n_folds=3, groups=groups, seed=0)
    assert [fold.report.n for fold in kept.folds[:3]] == [len(test) for _, test in expected]
    code, _, stderr = run("evaluate", path, "--cv", "3", "--repeats", "1")
    assert code == 0
    assert "leaks: 5 of 59 images have a duplicate that the folds may part" in " ".join(
        stderr.split()
    )
    code, stdout, stderr = run(
        "evaluate", path, "--cv", "3", "--repeats", "1", "--group-duplicates"
    )
    assert "3 folds, drawn once" in stdout
    assert code == 0
    assert "leaks: 0 of 59 images" in " ".join(stderr.split())


def test_duplicates_and_groups_are_kept_together_also_inside_the_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray] = []

    def watched(
        estimator: Any, X: Any, y: Any, rows: Any, *, groups: np.ndarray, **others: Any
    ) -> None:
        seen.append(groups)
        fit_on(estimator, X, y, rows, groups=groups, **others)

    monkeypatch.setattr("featx.cross_validation.fit_on", watched)
    own = np.full(60, -1)
    own[[3, 6]] = 9

    def plant(features: np.ndarray, sha256: np.ndarray) -> None:
        features[42] = features[3] + 0.001

    path = write_cache(tmp_path / "a.h5", groups=own, plant=plant)
    cross_validate(path, C=1.0, group_duplicates=True, **FAST)
    assert seen[0][3] == seen[0][6] == seen[0][42] >= 0


def test_too_many_images_are_looked_through_for_duplicates_only_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_cache(tmp_path / "a.h5")
    monkeypatch.setattr("featx.leaks._MOST_PRODUCTS", 60 * 60 * 16 - 1)
    assert cross_validate(path, C=1.0, **FAST).parted_duplicates is None
    asked = cross_validate(path, C=1.0, duplicate_threshold=0.99, **FAST)
    assert (asked.parted_duplicates, asked.duplicate_threshold) == (0, 0.99)
    _, _, stderr = run("evaluate", path, "--cv", "3", "--repeats", "1")
    assert "leaks: duplicates were not looked for" in stderr


def test_the_interval_is_corrected_for_training_sets_that_share_images() -> None:
    values = [0.8, 0.9, 0.85, 0.95, 0.9, 0.8]
    found = corrected_interval(values, 0.5)
    assert found.low is not None
    assert found.high is not None
    half = t.ppf(0.975, 5) * np.std(values, ddof=1) * np.sqrt(1 / 6 + 0.5)
    assert found.high - found.value == pytest.approx(half)
    assert found.value - found.low == pytest.approx(half)
    assert corrected_interval(values, 0.9, largest=0.99).high == 0.99
    assert corrected_interval([0.7], 0.5).low is None
    agreed = corrected_interval([0.95, 0.95], 0.5)  # by chance: no reason to be certain
    assert (agreed.value, agreed.low, agreed.high) == (0.95, None, None)


def test_lone_classes_and_unlabelled_images_are_counted(tmp_path: Path) -> None:
    labels = np.arange(60) % 2
    labels[:4], labels[4] = -1, 2
    found = cross_validate(write_cache(tmp_path / "a.h5", labels=labels), C=1.0, **FAST)
    assert (found.n, found.unlabelled, found.never_tested) == (56, 4, 1)
    assert (found.y_pred[:, found.y_true == 2] == -1).all()
    assert (found.y_pred[:, found.y_true != 2] >= 0).all()


def test_what_cannot_be_cross_validated_is_said(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "a.h5", labels=np.full(60, -1))
    with pytest.raises(InputError, match="no labelled images"):
        cross_validate(path, **FAST)
    with pytest.raises(InputError, match="head must be one of"):
        cross_validate(path, head="tree")
    with pytest.raises(InputError, match="has no parameter depth"):
        cross_validate(path, depth=3)
    with pytest.raises(InputError, match="repeats must be a whole number"):
        cross_validate(path, repeats=0)
    with pytest.raises(InputError, match="n_folds must be at least 2"):
        cross_validate(write_cache(tmp_path / "b.h5"), cv=1)


def test_the_command_prints_what_python_returns_and_writes_it(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "a.h5", n=60, spread=2.0)
    arguments = ("evaluate", path, "--cv", 3, "--repeats", 2, "--device", "cpu")
    code, stdout, stderr = run(*arguments, "--out", tmp_path / "report")
    assert code == 0, stderr
    found = cross_validate(path, **FAST)
    accuracy = found.figures["accuracy"]
    assert f"{accuracy.value:.3f}  {accuracy.low:.3f} to {accuracy.high:.3f}" in stdout
    assert "3 folds, drawn 2 times" in stdout
    assert "chosen inside the fits: C " in stderr
    code, stdout, _ = run(*arguments, "--json")
    assert json.loads(stdout) == json.loads(json.dumps(found.to_dict()))
    with (tmp_path / "report" / "folds.csv").open(encoding="utf-8-sig") as stream:
        folds = list(csv.DictReader(stream))
    assert [float(row["accuracy"]) for row in folds] == [
        fold.report.accuracy.value for fold in found.folds
    ]
    with (tmp_path / "report" / "cross_validated.csv").open(encoding="utf-8-sig") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["path"] for row in rows] == list(found.paths)
    right = np.mean([row["repeat 0"] == row["true"] for row in rows])
    assert right == pytest.approx((found.y_pred[0] == found.y_true).mean())


def test_a_head_brings_its_cache_and_its_groups(tmp_path: Path) -> None:
    root = tmp_path / "birds"
    root.mkdir()
    path = write_cache(tmp_path / "a.h5", n=60, root=str(root), spread=2.0)
    paths = featx.load(path).paths
    (root / "nests.csv").write_text(
        "\n".join(["path,nest", *(f"{name},{i // 4}" for i, name in enumerate(paths))])
    )
    head = fit_head(path, group="nest", group_duplicates=True, duplicate_threshold=0.99).path
    write_cache(tmp_path / "newer.h5", first_image=500)  # the newest, but not the head's
    code, stdout, _ = run("evaluate", head, "--cv", 2, "--repeats", 1, "--cache-dir", tmp_path,
                          "--device", "cpu", "--json")  # fmt: skip
    assert code == 0
    parsed = json.loads(stdout)
    assert Path(parsed["cache"]) == path
    assert parsed["groups"].startswith("15 groups by 'nest'")
    assert "duplicates" in parsed["groups"]


def test_a_head_stands_for_the_way_it_was_fitted(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "a.h5", n=60, spread=2.0)
    head = fit_head(path, head="linear", epochs=3, device="cpu").path
    code, stdout, _ = run(
        "evaluate", path, head, "--cv", 2, "--repeats", 1, "--device", "cpu", "--json"
    )
    assert code == 0
    parsed = json.loads(stdout)
    assert (parsed["head"], parsed["params"]) == ("linear", {"epochs": 3})
    found = cross_validate_like(head, cv=2, repeats=1, device="cpu")  # on the cache of the head
    assert found.to_dict() == parsed
    weighted = fit_head(path, C=0.1, class_weight={0: 5.0, 1: 1.0, 2: 1.0}, device="cpu").path
    found = cross_validate_like(weighted, cv=2, repeats=1, device="cpu")
    assert found.params == {"C": 0.1, "class_weight": {0: 5.0, 1: 1.0, 2: 1.0}}
    code, _, stderr = run("evaluate", path, head, "--cv", 2, "--head", "mlp")
    assert code == 2
    assert "give one" in stderr
    code, _, stderr = run("evaluate", path, "--group", "parent")
    assert code == 2
    assert "go with --cv" in stderr


def test_a_fold_that_leaves_one_class_to_train_on_is_left_out_and_told(tmp_path: Path) -> None:
    labels = np.array([0] * 10 + [1] * 4)
    groups = np.array([1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 9, 9, 9, 9])
    path = write_cache(tmp_path / "a.h5", n=14, classes=("a", "b"), labels=labels, groups=groups)
    found = cross_validate(path, head="ridge", cv=5, repeats=1)
    assert (found.cv, len(found.folds)) == (4, 4)
    assert found.never_tested == 6  # the other class, and what was tested beside it
    assert found.notes == (
        "5 folds were asked for, 4 could be made: others would leave but one class to train on",
    )
