"""The learning curve: drawn from the training images alone, tested on all held-out ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from synthetic import write_cache
from typer.testing import CliRunner

import featx
from featx.cli import app
from featx.errors import InputError
from featx.few_shot import _estimate, draw_shots, learning_curve
from featx.fitting import fit_head
from featx.heads import HEADS, LogisticHead
from featx.heads.making import fit_on

pytestmark = pytest.mark.usefixtures("few_to_choose_from")


def run(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    return result.exit_code, result.stdout, result.stderr


def test_more_images_are_better_and_the_last_point_is_the_whole_head(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "a.h5", n=300, spread=2.0)
    curve = learning_curve(path, shots=(16, 1), repeats=5, device="cpu")
    assert [point.shots for point in curve.points] == [1, 16, None]
    assert [point.n_train for point in curve.points] == [3, 48, 240]
    few, some, everything = curve.points
    assert few.accuracy.value < some.accuracy.value <= everything.accuracy.value + 0.05
    assert few.accuracy.value == pytest.approx(np.mean(few.accuracies))
    assert (len(few.accuracies), len(everything.accuracies)) == (5, 1)
    X, y = featx.load(path, split="held-out", return_X_y=True)
    assert everything.accuracies[0] == fit_head(path, device="cpu").file.head.score(X, y)
    assert curve.n_test == len(y)
    assert curve.baseline == pytest.approx((y == 0).mean())
    for point in curve.points:
        assert point.accuracy.low is not None
        assert point.accuracy.high is not None
        assert point.accuracy.low < point.accuracy.value < point.accuracy.high


def test_copies_of_training_images_are_left_out_of_the_test_and_counted(tmp_path: Path) -> None:
    split = np.array([1, 1, 2, 3], np.uint8)[np.arange(80) % 4]

    def plant(features: np.ndarray, sha256: np.ndarray) -> None:
        sha256[[3, 7]] = sha256[[5, 1]]  # two test images have the bytes of training images
        sha256[11] = sha256[2]  # and one that of a validation image, which no head here sees
        features[15] = features[4]  # nearly the same picture

    def plant_all(features: np.ndarray, sha256: np.ndarray) -> None:
        sha256[split == 3] = sha256[split == 1][:20]

    path = write_cache(tmp_path / "a.h5", n=80, split=split, plant=plant)
    curve = learning_curve(path, shots=(1,), repeats=2, device="cpu")
    assert (curve.n_test, curve.leaks.exact, curve.leaks.near) == (18, 2, 1)
    assert curve.to_dict()["leaks"]["near"] == 1
    _, shown, _ = run("fit-head", path, "--shots", "1", "--repeats", "2")
    assert "leaks: 2 exact (left out), 1 near (tested; similarity 0.75) among 40 images" in shown
    few = ("fit-head", path, "--shots", "1", "--repeats", "2")
    _, shown, _ = run(*few, "--duplicate-threshold", "0.99")
    assert "1 near (tested; similarity 0.99)" in shown
    code, _, said = run(*few, "--group-duplicates")
    assert code
    assert "--shots writes no head" in said
    path = write_cache(tmp_path / "b.h5", n=80, split=split, plant=plant_all)
    with pytest.raises(InputError, match=r"every held-out image of .* is a copy of a training"):
        learning_curve(path, shots=(1,), repeats=2, device="cpu")


def test_heads_see_so_many_training_images_of_each_class_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[np.ndarray, np.ndarray, float | None]] = []
    fit = LogisticHead.fit

    def recorded(self: LogisticHead, X: np.ndarray, y: np.ndarray, **rest: Any) -> LogisticHead:
        seen.append((X, y, self.C))
        assert not rest
        return fit(self, X, y, **rest)

    monkeypatch.setattr(LogisticHead, "fit", recorded)
    split = np.array([1, 1, 1, 2, 3], np.uint8)[np.arange(90) % 5]
    path = write_cache(tmp_path / "a.h5", n=90, split=split)
    curve = learning_curve(path, shots=(1, 2), repeats=2, device="cpu")
    train = {row.tobytes() for row in featx.load(path, split="train").X}
    drawn = [{row.tobytes() for row in X} for X, _, _ in seen]
    assert all(rows <= train for rows in drawn)
    assert [np.bincount(y).tolist() for _, y, _ in seen[:4]] == [[1] * 3] * 2 + [[2] * 3] * 2
    assert drawn[0] < drawn[2]  # the same repeat: the second image comes to the first
    assert drawn[0] != drawn[1]
    assert drawn[4] == train
    assert [C for _, _, C in seen] == [1.0, 1.0, None, None, None]
    assert any("18 val images not used" in note for note in curve.notes)


@pytest.mark.parametrize("head", HEADS)
def test_every_head_can_be_fitted_on_one_image_of_each_class(head: str, tmp_path: Path) -> None:
    path = write_cache(tmp_path / "a.h5")
    curve = learning_curve(path, head=head, shots=(1,), repeats=2, device="cpu")
    point = curve.points[0]
    assert (point.shots, point.n_train) == (1, 3)
    assert 0 < point.accuracy.value < 1


@pytest.mark.parametrize("head", HEADS)
def test_where_every_class_drawn_is_of_one_group_a_heads_fixed_setting_is_taken(
    head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = np.arange(60) % 3 + 3 * (np.arange(60) // 3 < 4)  # two nests of each class
    path = write_cache(tmp_path / "a.h5", groups=groups)
    fitted: list[tuple[int, dict[str, Any]]] = []

    def watched(
        estimator: Any, X: Any, y: Any, rows: Any, *, groups: np.ndarray, extent: None
    ) -> None:
        assert len(np.unique(groups[rows])) == 3
        fitted.append((len(rows), estimator.get_params()))
        fit_on(estimator, X, y, rows, groups=groups)

    monkeypatch.setattr("featx.few_shot.fit_on", watched)
    curve = learning_curve(path, head=head, shots=(2,), repeats=1, device="cpu")
    assert [point.shots for point in curve.points] == [2, None]
    assert len(fitted) == 2
    for _, params in fitted:
        assert {name: params[name] for name in HEADS[head].UNCHOSEN} == HEADS[head].UNCHOSEN


def test_a_class_with_few_images_gives_all_it_has(tmp_path: Path) -> None:
    labels = np.where(np.arange(60) < 5, 2, np.arange(60) % 2)
    path = write_cache(tmp_path / "a.h5", labels=labels)
    curve = learning_curve(path, shots=(8,), repeats=2, device="cpu")
    assert (curve.points[0].n_train, curve.points[0].n_short) == (8 + 8 + 4, 1)


def test_draws_depend_on_seed_and_repeat_only() -> None:
    rows, labels = np.arange(40), np.arange(40) % 4
    first = draw_shots(rows, labels, 3, seed=0, repeat=0)
    assert np.array_equal(first, draw_shots(rows, labels, 3, seed=0, repeat=0))
    assert np.bincount(labels[first]).tolist() == [3, 3, 3, 3]
    assert not np.array_equal(first, draw_shots(rows, labels, 3, seed=0, repeat=1))
    assert not np.array_equal(first, draw_shots(rows, labels, 3, seed=1, repeat=0))


def test_the_interval_counts_both_draws(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    one_test_set = rng.random((1, 200)) < 0.8  # a single repeat: the images alone
    found = _estimate(one_test_set, 0, np.arange(200))
    assert found.low is not None
    assert found.high is not None
    share = one_test_set.mean()
    expected = 2 * 1.96 * np.sqrt(share * (1 - share) / 200)
    assert found.high - found.low == pytest.approx(expected, rel=0.15)
    all_or_nothing = np.repeat(rng.random((20, 1)) < 0.5, 200, axis=1)  # the repeats alone
    found = _estimate(all_or_nothing, 0, np.arange(200))
    assert found.low is not None
    assert found.high is not None
    share = all_or_nothing.mean()
    assert found.high - found.low == pytest.approx(
        2 * 1.96 * np.sqrt(share * (1 - share) / 20), rel=0.15
    )


def test_where_every_answer_is_right_the_interval_is_the_exact_one() -> None:
    found = _estimate(np.ones((3, 40), bool), 0, np.arange(40) // 2)
    assert (found.value, found.low, found.high) == (1, pytest.approx(0.025 ** (1 / 20)), 1)


def test_the_interval_draws_whole_groups(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "a.h5", n=120, spread=2.0, groups=np.arange(120) // 4)
    alone = write_cache(tmp_path / "b.h5", n=120, spread=2.0)
    split = np.array([1, 3], np.uint8)[np.arange(120) // 4 % 2]
    one = write_cache(tmp_path / "c.h5", n=120, groups=np.where(split == 3, 0, -1), split=split)
    seen: list[np.ndarray] = []
    for path_, n_units in ((path, 6), (alone, 24), (one, 1)):
        seen.clear()
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(
                "featx.few_shot._estimate",
                lambda right, seed, unit: seen.append(unit) or _estimate(right, seed, unit),
            )
            curve = learning_curve(path_, shots=(1,), repeats=2, device="cpu")
        assert len(np.unique(seen[0])) == n_units
        assert (curve.points[0].accuracy.low is None) == (n_units == 1)


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"shots": ()}, "at least one number"),
        ({"shots": (0,)}, "shots must be whole numbers, 1 or more, got 0"),
        ({"shots": (1.5,)}, "got 1.5"),
        ({"repeats": 0}, "repeats must be whole numbers"),
        ({"head": "tree"}, "head must be one of"),
        ({"depth": 1}, "no parameter depth"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(
    tmp_path: Path, keywords: dict[str, Any], words: str
) -> None:
    path = write_cache(tmp_path / "a.h5")
    with pytest.raises(InputError, match=words):
        learning_curve(path, **keywords)


def test_a_fraction_is_refused_where_the_images_have_a_split(tmp_path: Path) -> None:
    split = np.array([1, 1, 1, 3], np.uint8)[np.arange(60) % 4]
    path = write_cache(tmp_path / "a.h5", split=split)
    with pytest.raises(InputError, match="have a split of their own: leave --test-fraction away"):
        learning_curve(path, shots=(1,), test_fraction=0.5)
    assert learning_curve(path, shots=(1,), repeats=1, device="cpu").n_test == 15


def test_the_command_prints_the_curve_and_draws_it(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "a.h5", n=120, spread=2.0)
    arguments = ("fit-head", path, "--shots", "1,4", "--repeats", 3, "--device", "cpu")
    code, stdout, stderr = run(*arguments, "--curves", tmp_path / "curve.png")
    assert code == 0, stderr
    curve = learning_curve(path, shots=(1, 4), repeats=3, device="cpu")
    for point in curve.points:
        accuracy = point.accuracy
        assert f"{accuracy.value:.3f}  {accuracy.low:.3f} to {accuracy.high:.3f}" in stdout
    assert "all" in stdout
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.format == "PNG"
    code, stdout, _ = run(*arguments, "--json")
    assert json.loads(stdout) == json.loads(json.dumps(curve.to_dict()))
    assert not list(tmp_path.glob("*.safetensors"))  # a curve is no head
    code, _, stderr = run("fit-head", path, "--repeats", 3)
    assert code == 2
    assert "--repeats goes with --shots" in stderr


@pytest.mark.parametrize(
    ("shots", "words"),
    [
        ("one", "takes numbers separated by commas"),
        ("nan", "takes whole numbers separated by commas"),
        ("1,inf", "takes whole numbers separated by commas"),
        ("1.5", "takes whole numbers separated by commas"),
        ("0", "must be whole numbers, 1 or more"),
    ],
)
def test_shots_that_are_no_number_of_images_are_a_usage_error(
    tmp_path: Path, shots: str, words: str
) -> None:
    code, _, stderr = run("fit-head", write_cache(tmp_path / "a.h5"), "--shots", shots)
    assert code == 2
    assert stderr.startswith(f"featx: --shots {words}, got ")
