"""Heads side by side: on the same images, none of which any of them was trained on."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from synthetic import SPEC, write_cache
from typer.testing import CliRunner

from featx.cli import app
from featx.comparing import compare, fit_heads, leaderboard
from featx.comparison import compare_accuracies
from featx.errors import CacheError, HeadError, InputError
from featx.evaluation import evaluate
from featx.fitting import fit_head
from featx.heads import HEADS

OTHER = {**SPEC, "backbone": "resnet18"}


def run(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    return result.exit_code, result.stdout, result.stderr


def test_heads_of_two_backbones_are_ranked_on_the_same_images(tmp_path: Path) -> None:
    good = write_cache(tmp_path / "good.h5", n=200, spread=0.8)
    poor = write_cache(tmp_path / "poor.h5", n=200, spread=4.0, spec=OTHER)
    heads = [fit_head(path).path for path in (poor, good)]
    found = compare(heads)
    assert [entry.backbone for entry in found.entries] == ["squeezenet1_1", "resnet18"]
    assert [entry.name for entry in found.entries] == ["good.logistic", "poor.logistic"]
    assert found.n == 39
    for entry, cache in zip(found.entries, (good, poor), strict=True):
        assert entry.report.accuracy == evaluate(cache, entry.head).report.accuracy
    (pair,) = found.pairs
    assert (pair.first, pair.second) == ("good.logistic", "poor.logistic")
    assert pair.accuracy.value == pytest.approx(
        found.entries[0].report.accuracy.value - found.entries[1].report.accuracy.value
    )
    assert pair.p < 0.01


def test_images_that_one_of_them_was_trained_on_are_left_out_for_all(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "a.h5", n=200, spread=3.0)
    first, second = fit_head(path), fit_head(path, seed=1)
    found = compare([first.path, second.path])
    held_out = [{row.tobytes() for row in fit.file.split["held_out"]} for fit in (first, second)]
    assert found.n == len(held_out[0] & held_out[1]) < 39
    tested = {first.features.sha256[first.features.paths.index(p)].tobytes() for p in found.paths}
    assert tested == held_out[0] & held_out[1]
    assert [entry.own for entry in found.entries] == [39, 39]


def test_rows_are_matched_by_image_and_not_by_number(tmp_path: Path) -> None:
    split = np.where(np.arange(120) % 4 == 0, 2, 1).astype(np.uint8)
    a = write_cache(tmp_path / "a.h5", n=120, split=split, spread=2.0)
    # the same folder, but for its first 21 images, which were deleted since
    b = write_cache(tmp_path / "b.h5", n=99, first_image=21, split=split[21:], spread=2.0)
    found = compare([fit_head(a, device="cpu").path, fit_head(b, device="cpu").path])
    assert found.n == 24
    assert set(found.paths) == {f"{i:06d}.jpg" for i in range(24, 120, 4)}
    for entry in found.entries:
        whole = evaluate(entry.cache, entry.head)
        rows = [whole.paths.index(path) for path in found.paths]
        right = whole.probabilities[rows].argmax(axis=1) == whole.y_true[rows]
        assert entry.report.accuracy.value == pytest.approx(right.mean())


def test_leaks_are_counted_of_each_head_on_the_images_compared(tmp_path: Path) -> None:
    split = np.where(np.arange(60) % 4 == 0, 2, 1).astype(np.uint8)

    def plant(features: np.ndarray, sha256: np.ndarray) -> None:
        features[[4, 8]] = features[[1, 5]] + 0.001
        sha256[12] = sha256[3]

    leaky = write_cache(tmp_path / "leaky.h5", split=split, plant=plant)
    clean = write_cache(tmp_path / "clean.h5", split=split, spec=OTHER)
    # tests no image before the seventh
    short = write_cache(tmp_path / "short.h5", n=54, first_image=6, split=split[6:], spec=OTHER)
    heads = [fit_head(path).path for path in (leaky, clean, short)]
    leaks = {entry.cache: entry.leaks for entry in compare(heads[:2]).entries}
    assert [(leaks[path].exact, leaks[path].near) for path in (leaky, clean)] == [(1, 2), (0, 0)]
    found = compare(heads)
    told = {entry["name"]: entry["leaks"] for entry in found.to_dict()["heads"]}
    assert told["leaky.logistic"]["near"] == 1  # image 8; image 4 is not compared on
    assert told["leaky.logistic"]["exact"] == 1
    code, stdout, stderr = run("compare", *heads)
    assert code == 0, stderr
    (line,) = [line for line in stdout.splitlines() if line.startswith("leaks: ")]
    assert "leaky.logistic: 1 exact (left out), 1 near (tested; similarity 0.75)" in line
    assert "clean.logistic: 0 exact (left out), 0 near" in line


def test_a_cache_stands_for_its_newest_head_or_gets_one(tmp_path: Path) -> None:
    a = write_cache(tmp_path / "a.h5")
    b = write_cache(tmp_path / "b.h5", spec=OTHER)
    fitted = fit_head(b, head="linear", epochs=2, device="cpu").path
    found = compare([a, b])
    assert {entry.head for entry in found.entries} == {
        tmp_path / "a.logistic.safetensors",
        fitted,
    }


def test_a_folder_gives_a_table_for_each_set_of_test_images(tmp_path: Path) -> None:
    a, b = write_cache(tmp_path / "a.h5"), write_cache(tmp_path / "b.h5", spec=OTHER)
    other = write_cache(tmp_path / "other.h5", first_image=500, root="/elsewhere")
    lonely = write_cache(tmp_path / "lonely.h5", first_image=900, root="/nowhere")
    heads = [fit_head(path).path for path in (a, b, other)]
    (tmp_path / "broken.safetensors").write_bytes(b"no head")
    board = leaderboard(tmp_path)
    assert [{e.head for e in c.entries} for c in board.comparisons] == [set(heads[:2]), {heads[2]}]
    assert board.comparisons[1].pairs == ()
    assert set(board.skipped) == {lonely, tmp_path / "broken.safetensors"}
    assert "no head was fitted" in board.skipped[lonely]


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    a = write_cache(tmp_path / "a.h5")
    far = write_cache(tmp_path / "far.h5", first_image=500)
    with pytest.raises(InputError, match="at least two different heads"):
        compare([fit_head(a).path, a])
    with pytest.raises(InputError, match="no test image in common"):
        compare([a, far])
    with pytest.raises(InputError, match="is a folder"):
        compare([a, tmp_path])
    with pytest.raises(HeadError, match="there is no head in"):
        leaderboard(tmp_path / "empty")


def test_an_image_of_two_classes_is_refused(tmp_path: Path) -> None:
    split = np.where(np.arange(60) % 4 == 0, 2, 1).astype(np.uint8)
    a = write_cache(tmp_path / "a.h5", split=split)
    labels = np.arange(60) % 3
    labels[4] = 0  # it was 1
    b = write_cache(tmp_path / "b.h5", split=split, labels=labels, spec=OTHER)
    with pytest.raises(CacheError, match=r"000004\.jpg is 'Grue cendrée' in .* 'Great tit' in"):
        compare([a, b])


def test_the_command_prints_a_table_and_warns_of_choosing_by_it(tmp_path: Path) -> None:
    good = write_cache(tmp_path / "good.h5", n=200, spread=0.8)
    poor = write_cache(tmp_path / "poor.h5", n=200, spread=4.0, spec=OTHER)
    code, stdout, stderr = run("compare", good, poor)
    assert code == 0
    rows = [line for line in stdout.splitlines() if ".logistic" in line]
    assert rows[0].startswith("good.logistic")
    assert rows[1].startswith("poor.logistic")
    assert "resnet18" in rows[1]
    assert " -0." in rows[1]
    assert "has chosen by its test images" in stderr
    code, stdout, _ = run("compare", good, poor, "--json", "--bootstrap", 0)
    parsed = json.loads(stdout)
    assert [head["name"] for head in parsed["heads"]] == ["good.logistic", "poor.logistic"]
    assert parsed["pairs"][0]["accuracy"]["value"] > 0
    assert parsed["pairs"][0]["accuracy"]["low"] is None
    assert f"{0 - parsed['pairs'][0]['accuracy']['value']:+.3f}" in rows[1]


def test_groups_that_a_split_kept_whole_are_drawn_and_exchanged_whole(tmp_path: Path) -> None:
    groups = np.arange(240) // 4
    paths = [
        write_cache(tmp_path / name, n=240, spread=spread, groups=groups)
        for name, spread in (("a.h5", 2.0), ("b.h5", 3.0))
    ]
    heads = [fit_head(path).path for path in paths]
    found = compare(heads)
    assert len(np.unique(found.groups)) == found.n // 4 == 12
    alone = compare_accuracies(
        np.stack([_right(paths, head) for head in heads]), ["a", "b"], groups=found.groups
    )[0]
    assert found.pairs[0].accuracy == alone.accuracy
    assert found.pairs[0].p == alone.p
    for path, entry in zip(paths, found.entries, strict=True):
        assert entry.report.accuracy == evaluate(path, entry.head).report.accuracy
    clause = "whole groups (12 groups, 0 images alone)"
    assert found.to_dict()["intervals_draw"] == clause
    names = [head.name.removesuffix(".safetensors") for head in heads]
    assert found.to_dict()["grouped_by"] == names
    other = fit_head(write_cache(tmp_path / "c.h5", n=240, spread=2.5)).path
    told = run("compare", heads[0], other)[1]
    assert "intervals draw, and p exchanges, whole groups (" in told
    assert ", as the split of a.logistic kept them" in told


def _right(paths: list[Path], head: Path) -> np.ndarray:
    tested = evaluate(next(path for path in paths if path.stem == head.name[0]), head)
    return tested.probabilities.argmax(axis=1) == tested.y_true


def _table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text("utf-8-sig").splitlines()))


def test_a_comparison_is_written_as_tables(tmp_path: Path) -> None:
    heads = [
        fit_head(write_cache(tmp_path / name, n=200, spread=spread)).path
        for name, spread in (("a.h5", 2.0), ("b.h5", 3.0))
    ]
    code, stdout, stderr = run("compare", *heads, "--json", "--out", tmp_path / "new" / "out")
    assert (code, stderr.count("wrote ")) == (0, 1)
    folder, told = tmp_path / "new" / "out", json.loads(stdout)
    assert json.loads((folder / "comparison.json").read_text("utf-8")) == told
    rows, pairs = (_table(folder / name) for name in ("heads.csv", "pairs.csv"))
    assert [row["name"] for row in rows] == [head["name"] for head in told["heads"]]
    for row, head in zip(rows, told["heads"], strict=True):
        assert float(row["accuracy low"]) == head["accuracy"]["low"]
        assert (int(row["images"]), int(row["near leaks"])) == (told["n"], head["leaks"]["near"])
    assert float(pairs[0]["accuracy difference"]) == told["pairs"][0]["accuracy"]["value"]
    assert float(pairs[0]["p (Holm)"]) == told["pairs"][0]["p_adjusted"]
    code, _, stderr = run("compare", tmp_path, "--bootstrap", 0, "--out", folder)
    assert code == 0
    assert [row["accuracy low"] for row in _table(folder / "heads.csv")] == ["", ""]
    (tmp_path / "file").touch()
    assert run("compare", *heads, "--out", tmp_path / "file")[0] == 6


def test_without_names_all_heads_of_the_folder_are_ranked(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "a.h5")
    fit_head(path)
    fit_head(path, C=1e-4)
    write_cache(tmp_path / "b.h5", first_image=500)
    (tmp_path / "broken.safetensors").write_bytes(b"no head")
    write_cache(tmp_path / "c.h5", first_image=900)
    (tmp_path / "c.tail.safetensors").write_bytes(b"no head")
    code, stdout, stderr = run("compare", "--cache-dir", tmp_path)
    assert code == 0
    assert stdout.count("a.logistic") == 2
    (line,) = [line for line in stdout.splitlines() if line.startswith("leaks: ")]
    assert line.endswith("48 images trained or chosen on, of each head")
    assert "only p is corrected" not in stderr  # one pair
    assert f"left out: {tmp_path / 'b.h5'}: no head was fitted on it" in stderr.replace("\n", " ")
    assert stderr.count("broken.safetensors") == 1
    assert "c.tail.safetensors" in stderr
    assert f"{tmp_path / 'c.h5'}: no head" not in stderr.replace("\n", " ")  # one cannot be read
    code, stdout, _ = run("compare", tmp_path, "--json")
    assert len(json.loads(stdout)["comparisons"][0]["heads"]) == 2


def test_heads_of_other_labels_for_the_same_images_have_a_table_of_their_own(
    tmp_path: Path,
) -> None:
    labels, split = np.arange(120) % 3, np.array([1, 1, 1, 3], np.uint8)[np.arange(120) % 4]
    for name, of_first in (("a.h5", 0), ("b.h5", 0), ("c.h5", 1)):
        labels[3] = of_first  # of a test image
        fit_head(write_cache(tmp_path / name, n=120, labels=labels, split=split))
    board = leaderboard(tmp_path, bootstrap=0)
    names = [[entry.name for entry in found.entries] for found in board.comparisons]
    assert sorted(map(sorted, names)) == [["a.logistic", "b.logistic"], ["c.logistic"]]


def test_every_head_is_fitted_on_one_split_and_ranked(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "a.h5", spread=1.5)
    told = []
    fits, found = fit_heads(path, device="cpu", advance=lambda fit: told.append(fit.path), seed=2)
    assert [fit.file.kind for fit in fits] == list(HEADS)
    assert told == [fit.path for fit in fits]
    assert {entry.kind for entry in found.entries} == set(HEADS)
    assert found.n == 12
    accuracies = [entry.report.accuracy.value for entry in found.entries]
    assert accuracies == sorted(accuracies, reverse=True)
    code, stdout, stderr = run("fit-head", path, "--head", "all", "--seed", 2, "--device", "cpu")
    assert code == 0, stderr
    rows = [line.split()[0] for line in stdout.splitlines() if line.startswith("a.")]
    assert rows == [entry.name for entry in found.entries]
    assert "chosen on 5-fold cross-validation" in stderr
    assert "95 % (each alone)" in stdout
    assert "only p is corrected for all 15 pairs" in stderr
    code, _, stderr = run("fit-head", path, "--head", "all", "--C", 1)
    assert code == 2
    assert "leave its options away" in stderr
    with pytest.raises(InputError, match="at least two kinds"):
        fit_heads(path, kinds=["ridge"])


def test_like_and_shots_take_no_other_settings(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "a.h5")
    head = fit_head(path, seed=1).path
    code, stdout, _ = run("fit-head", path, "--like", head, "--json")
    assert code == 0
    assert json.loads(stdout)["settings"]["seed"] == 1
    code, _, stderr = run("fit-head", path, "--like", head, "--C", 1)
    assert code == 2
    assert "leave the others away" in stderr
    code, _, stderr = run("fit-head", path, "--shots", "1", "--final")
    assert code == 2
    assert "writes no head" in stderr
