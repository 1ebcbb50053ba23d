"""Leaks: held-out images of which a duplicate was trained on are found, counted and named."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import accuracy_score
from synthetic import SPEC, TINY, write_cache
from typer.testing import CliRunner

import featx
from featx.cli import app
from featx.drawing import draw_birds
from featx.errors import InputError
from featx.evaluation import evaluate
from featx.fitting import fit_head
from featx.heads import load_head, save_head
from featx.leaks import count_parted
from featx.report.tables import write_evaluation

pytestmark = pytest.mark.usefixtures("few_to_choose_from")

SPLIT = np.where(np.arange(60) % 5 == 0, 3, 1).astype(np.uint8)  # 0, 5, 10, … are tested


def planted(
    *, exact: dict[int, int] | None = None, near: dict[int, int] | None = None
) -> Callable[[np.ndarray, np.ndarray], None]:
    """Makes images of one number copies of another: the same bytes, or almost its features."""

    def plant(features: np.ndarray, sha256: np.ndarray) -> None:
        for copy, original in (exact or {}).items():
            features[copy], sha256[copy] = features[original], sha256[original]
        for copy, original in (near or {}).items():
            noise = np.random.default_rng(copy).normal(size=16)
            features[copy] = features[original] + 0.01 * noise

    return plant


def test_a_fit_counts_the_leaks_of_its_split(tmp_path: Path) -> None:
    clean = fit_head(write_cache(tmp_path / "a.h5", split=SPLIT))
    assert (clean.leaks.exact, clean.leaks.near, clean.leaks.compared_with) == (0, 0, 48)
    plant = planted(exact={10: 13}, near={25: 31, 40: 4, 2: 3})  # 2 and 3 are both trained on
    fit = fit_head(write_cache(tmp_path / "b.h5", split=SPLIT, plant=plant))
    found = {(leak.path, leak.trained_path, leak.exact) for leak in fit.leaks.pairs}
    assert found == {
        ("000010.jpg", "000013.jpg", True),
        ("000025.jpg", "000031.jpg", False),
        ("000040.jpg", "000004.jpg", False),
    }
    recorded = fit.file.metadata["leaks"]
    assert recorded == {
        "exact": 1, "near": 2, "threshold": 0.75, "compared_with": 48, "why_exact_only": ""
    }  # fmt: skip


def test_images_chosen_on_leak_too(tmp_path: Path) -> None:
    split = np.array([1, 1, 1, 2, 3], np.uint8)[np.arange(60) % 5]
    fit = fit_head(write_cache(tmp_path / "a.h5", split=split, plant=planted(near={4: 3})))
    assert [(leak.path, leak.trained_path) for leak in fit.leaks.pairs] == [
        ("000004.jpg", "000003.jpg")
    ]


def test_exact_leaks_are_not_tested_and_near_ones_are_counted(tmp_path: Path) -> None:
    plant = planted(exact={10: 13, 15: 13}, near={25: 31, 40: 4})
    path = write_cache(tmp_path / "a.h5", split=SPLIT, plant=plant, spread=2.0)
    file = fit_head(path).file
    result = evaluate(path, bootstrap=100)
    assert result.leaks is not None
    assert (result.leaks.exact, result.leaks.near) == (2, 2)
    assert {(leak.path, leak.trained_path) for leak in result.leaks.pairs} == {
        ("000010.jpg", "000013.jpg"),
        ("000015.jpg", "000013.jpg"),
        ("000025.jpg", "000031.jpg"),
        ("000040.jpg", "000004.jpg"),
    }
    assert result.trained_left_out == 2
    assert result.report.n == 10
    features = featx.load(path)
    left = np.setdiff1d(np.flatnonzero(features.split == "test"), [10, 15, 25, 40])
    without = accuracy_score(features.y[left], file.head.predict(features.X[left]))
    assert result.leaks.accuracy_without is not None
    assert result.leaks.accuracy_without.value == pytest.approx(without)
    assert result.leaks.accuracy_without.low is not None


def test_without_leaks_none_is_told_and_no_second_accuracy(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "a.h5", split=SPLIT)
    fit_head(path)
    leaks = evaluate(path).leaks
    assert leaks is not None
    assert (leaks.pairs, leaks.accuracy_without, leaks.compared_with) == ((), None, 48)


def test_a_copy_in_a_held_out_val_folder_is_the_copy_whichever_file_comes_first(
    tmp_path: Path,
) -> None:
    split = np.where(SPLIT == 3, 2, 1).astype(np.uint8)  # without a test folder val is tested
    path = write_cache(tmp_path / "a.h5", split=split, plant=planted(exact={10: 13, 30: 22}))
    fit_head(path)
    leaks = evaluate(path).leaks
    assert leaks is not None
    assert [(leak.path, leak.trained_path) for leak in leaks.pairs] == [
        ("000010.jpg", "000013.jpg"),
        ("000030.jpg", "000022.jpg"),
    ]


def test_copies_on_both_sides_of_a_split_by_seed_are_exact_leaks(tmp_path: Path) -> None:
    clean = write_cache(tmp_path / "clean.h5")
    fit_head(clean)
    held_out = featx.load(clean, split="held-out")
    trained = featx.load(clean, split="train")
    test = int(held_out.rows[0])
    same_class = trained.rows[trained.y == held_out.y[0]]
    path = write_cache(tmp_path / "a.h5", plant=planted(exact={test: int(same_class[0])}))
    fit = fit_head(path)
    assert fit.leaks.exact == 1
    result = evaluate(path, fit.path)
    assert result.leaks is not None
    assert (result.leaks.exact, result.leaks.near) == (1, 0)
    assert result.report.n == 11
    everything = evaluate(path, fit.path, on="all").leaks  # 47 left out, of which one is a copy
    assert everything is not None
    assert everything.exact == 1


def test_where_trained_images_are_tested_no_leaks_are_counted(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "a.h5", split=SPLIT, plant=planted(near={10: 13}))
    fit_head(path)
    result = evaluate(path, on="all", include_trained=True)
    assert result.leaks is None
    assert result.to_dict()["leaks"] is None


def external(folder: Path, own: Path | None = None) -> Path:
    """A test set of its own with a copy of image 2 and an image almost like image 3."""
    other = own or folder / "a.h5"

    def plant(features: np.ndarray, sha256: np.ndarray) -> None:
        own = featx.load(other)
        features[5], sha256[5] = own.X[2], own.sha256[2]
        features[6] = own.X[3] + np.float32(0.01)

    return write_cache(folder / "x.h5", n=30, first_image=900, root="/other", plant=plant)


def test_an_external_test_is_compared_with_the_cache_of_the_head(tmp_path: Path) -> None:
    head = fit_head(write_cache(tmp_path / "a.h5", split=SPLIT)).path
    result = evaluate(external(tmp_path), head, duplicate_threshold=0.95)
    assert result.leaks is not None
    assert [(leak.path, leak.trained_path, leak.exact) for leak in result.leaks.pairs] == [
        ("000905.jpg", "000002.jpg", True),
        ("000906.jpg", "000003.jpg", False),
    ]
    assert result.leaks.compared_with == 48


@pytest.mark.parametrize("why", ["gone", "damaged"])
def test_without_the_cache_of_the_head_only_exact_leaks_are_found(tmp_path: Path, why: str) -> None:
    head = fit_head(write_cache(tmp_path / "a.h5", split=SPLIT)).path
    other = external(tmp_path)
    if why == "gone":
        (tmp_path / "a.h5").unlink()
    else:
        data = bytearray((tmp_path / "a.h5").read_bytes())
        data[data.index(featx.load(tmp_path / "a.h5").X[0].tobytes())] ^= 1
        (tmp_path / "a.h5").write_bytes(data)
    result = evaluate(other, head)
    assert result.leaks is not None
    assert result.leaks.compared_with == 0
    assert [(leak.path, leak.trained_path) for leak in result.leaks.pairs] == [("000905.jpg", None)]


def test_a_head_that_says_two_things_of_its_cache_is_compared_with_none(tmp_path: Path) -> None:
    head = fit_head(write_cache(tmp_path / "a.h5", split=SPLIT)).path
    external_set = external(tmp_path)
    (tmp_path / "a.h5").unlink()
    other = write_cache(tmp_path / "b.h5", split=SPLIT, spec={**SPEC, "pool": "max"})
    file = load_head(head)
    file.metadata["cache"]["fingerprint"] = featx.load(other).fingerprint
    save_head(head, file.head, classes=file.classes, metadata=file.metadata, split=file.split)
    leaks = evaluate(external_set, head).leaks
    assert leaks is not None
    assert (leaks.exact, leaks.compared_with) == (1, 0)


def test_the_threshold_is_that_of_the_fit_unless_another_is_given(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "a.h5", split=SPLIT)
    fit_head(path, duplicate_threshold=0.5)
    result = evaluate(path).leaks
    assert result is not None
    assert result.threshold == 0.5
    assert result.near > 0  # images of one class are that much alike here
    strict = evaluate(path, duplicate_threshold=0.99).leaks
    assert strict is not None
    assert (strict.threshold, strict.near) == (0.99, 0)
    for wrong in (0.0, 2.0):
        with pytest.raises(InputError, match="above 0 and at most 1"):
            evaluate(path, duplicate_threshold=wrong)
        with pytest.raises(InputError, match="above 0 and at most 1"):
            fit_head(path, duplicate_threshold=wrong)


def test_too_many_images_are_compared_only_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant = planted(exact={10: 13}, near={25: 31})
    path = write_cache(tmp_path / "a.h5", split=SPLIT, plant=plant)
    monkeypatch.setattr("featx.leaks._MOST_PRODUCTS", 12 * 48 * 16 - 1)
    unasked = fit_head(path)
    assert (unasked.leaks.exact, unasked.leaks.near, unasked.leaks.compared_with) == (1, 0, 0)
    assert "too many images" in unasked.file.metadata["leaks"]["why_exact_only"]
    assert fit_head(path, duplicate_threshold=0.9).leaks.near == 1
    assert fit_head(path, group_duplicates=True).leaks.near == 1
    told = CliRunner().invoke(app, ["fit-head", str(path)]).output
    assert "near ones were not looked for: there are too many images" in " ".join(told.split())
    monkeypatch.setattr("featx.leaks._MOST_PRODUCTS", 12 * 48 * 16)
    assert fit_head(path).leaks.near == 1


def test_an_old_head_that_recorded_no_leaks_is_evaluated(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "a.h5", split=SPLIT)
    file = load_head(fit_head(path).path)
    old = {key: value for key, value in file.metadata.items() if key != "leaks"}
    for told in (old, {**old, "leaks": 3}, {**old, "leaks": {"threshold": "high"}}):
        save_head(file.path, file.head, classes=file.classes, metadata=told, split=file.split)
        leaks = evaluate(path, file.path).leaks
        assert leaks is not None
        assert leaks.threshold == 0.75


def test_grouped_duplicates_are_never_parted(tmp_path: Path) -> None:
    pairs = {i: i + 30 for i in range(0, 15)}  # of one class: 30 is a multiple of 3
    plant = planted(exact={i: pairs[i] for i in range(8)}, near={i: pairs[i] for i in range(8, 15)})
    path = write_cache(tmp_path / "a.h5", plant=plant)
    apart = fit_head(path)
    assert apart.leaks.exact > 0
    assert apart.leaks.near > 0
    together = fit_head(path, group_duplicates=True)
    assert (together.leaks.exact, together.leaks.near) == (0, 0)
    held = set(together.split.held_out.tolist())
    assert all((i in held) == (j in held) for i, j in pairs.items())
    assert together.path.name == "a.logistic+group-duplicates=0.75.safetensors"
    assert together.file.metadata["settings"]["group_duplicates"] == 0.75
    assert "group_duplicates" not in apart.file.metadata["settings"]
    train = featx.load(path, split="train", group_duplicates=True)
    assert np.array_equal(train.sha256, together.file.split["train"])
    assert evaluate(path, together.path).leaks.pairs == ()  # type: ignore[union-attr]


def test_grouped_duplicates_are_not_parted_when_c_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featx.heads import LogisticHead

    seen = []
    fit = LogisticHead.fit
    monkeypatch.setattr(
        LogisticHead,
        "fit",
        lambda self, *a, **k: (seen.append(k.get("groups")), fit(self, *a, **k))[1],
    )
    path = write_cache(tmp_path / "a.h5", split=SPLIT, plant=planted(near={1: 31, 2: 32}))
    fit_head(path)
    fit_head(path, group_duplicates=True)
    assert seen[0] is None
    assert sorted(np.unique(seen[1], return_counts=True)[1].tolist()) == [2, 2, 44]


def test_grouped_duplicates_are_united_with_the_groups_of_the_cache(tmp_path: Path) -> None:
    groups = np.full(60, -1)
    groups[[0, 3, 6]] = 5  # of one class
    path = write_cache(tmp_path / "a.h5", groups=groups, plant=planted(near={6: 36, 9: 39}))
    united = featx.load(path).with_duplicates_grouped().groups
    assert len(set(united[[0, 3, 6, 36]])) == 1
    assert united[9] == united[39] != united[0]
    fit = fit_head(path, group_duplicates=True)
    held = set(fit.split.held_out.tolist())
    assert len({row in held for row in (0, 3, 6, 36)}) == 1


def test_a_given_split_is_kept_though_duplicates_are_grouped(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "a.h5", split=SPLIT, plant=planted(near={10: 13}))
    fit = fit_head(path, group_duplicates=True)
    assert fit.split.notes == (
        "1 group(s) have images both in train and in test: the given split was kept, and its "
        "result may be too good",
    )
    assert fit.leaks.near == 1


def test_the_report_as_files_names_every_leak(tmp_path: Path) -> None:
    plant = planted(exact={10: 13}, near={25: 31})
    path = write_cache(tmp_path / "a.h5", split=SPLIT, plant=plant)
    fit_head(path)
    write_evaluation(tmp_path / "report", evaluate(path, bootstrap=0))
    with (tmp_path / "report" / "leaks.csv").open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.reader(stream))
    assert rows[0] == ["path", "trained on", "similarity", "kind"]
    assert [row[:2] + row[3:] for row in rows[1:]] == [
        ["000010.jpg", "000013.jpg", "exact"],
        ["000025.jpg", "000031.jpg", "near"],
    ]
    told = json.loads((tmp_path / "report" / "report.json").read_text("utf-8"))["leaks"]
    assert (told["exact"], told["near"], len(told["pairs"])) == (1, 1, 2)
    assert told["accuracy_without"]["value"] == pytest.approx(1.0)


def test_the_commands_tell_of_leaks_and_of_none(tmp_path: Path) -> None:
    def run(*arguments: object) -> str:
        result = CliRunner().invoke(app, [*map(str, arguments)])
        assert result.exit_code == 0, result.output
        return " ".join(result.output.split())

    clean = write_cache(tmp_path / "clean.h5", split=SPLIT, root="/clean")
    told = run("fit-head", clean)
    assert "leaks: none of 12 held-out images has a duplicate among the 48 trained" in told
    told = run("evaluate", clean)
    assert "leaks: 0 exact (left out), 0 near (tested; similarity 0.75) among 48 images" in told
    assert "accuracy without" not in told
    plant = planted(exact={10: 13}, near={25: 31})
    path = write_cache(tmp_path / "a.h5", split=SPLIT, plant=plant)
    told = run("fit-head", path, "--duplicate-threshold", 0.9)
    assert "leaks: 2 of 12 held-out images have a duplicate among the 48" in told
    assert "(1 exact, 1 near, similarity 0.9)" in told
    told = run("evaluate", path)
    assert "leaks: 1 exact (left out), 1 near (tested; similarity 0.9) among 48" in told
    assert "accuracy without 1 near duplicate" in told
    head = tmp_path / "a.logistic.safetensors"
    path.rename(tmp_path / "gone")
    told = run("evaluate", external(tmp_path, own=tmp_path / "gone"), head)
    assert "leaks: 1 exact (left out); near duplicates were not looked for" in told
    assert "the cache that the head was fitted on is not there" in told
    told = run("fit-head", clean, "--group-duplicates")
    assert "clean.logistic+group-duplicates=0.75.safetensors" in told


def test_a_copied_and_a_stored_again_picture_are_found_in_a_folder(tmp_path: Path) -> None:
    birds = draw_birds(tmp_path / "drawn", images_per_species=8, size_px=96)
    root = tmp_path / "birds"
    for i, file in enumerate(birds):
        target = root / ("test" if i % 4 == 0 else "train") / file.parent.name / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    options = {**TINY, "out": tmp_path / "a.h5"}
    featx.extract(root, **options)
    clean = fit_head(tmp_path / "a.h5").leaks
    assert (clean.exact, clean.near) == (0, 0)
    copied, again = birds[1], birds[2]
    shutil.copyfile(copied, root / "test" / copied.parent.name / "copied.jpg")
    with Image.open(again) as image:
        image.save(root / "test" / again.parent.name / "again.jpg", quality=70)
    featx.extract(root, **options)
    fit = fit_head(tmp_path / "a.h5")
    for leaks in (fit.leaks, evaluate(tmp_path / "a.h5", fit.path).leaks):
        assert leaks is not None
        assert {(Path(leak.path).name, Path(leak.trained_path or "").name, leak.exact)
                for leak in leaks.pairs} == {
            ("copied.jpg", copied.name, True),
            ("again.jpg", again.name, False),
        }  # fmt: skip


def test_caches_of_the_same_images_in_other_features_are_not_compared(tmp_path: Path) -> None:
    head = fit_head(write_cache(tmp_path / "a.h5", split=SPLIT)).path
    other = external(tmp_path)
    changed = {**SPEC, "weights_sha256": "f" * 64}
    write_cache(tmp_path / "a.h5", split=SPLIT, spec=changed)  # extracted anew meanwhile
    leaks = evaluate(other, head).leaks
    assert leaks is not None
    assert leaks.compared_with == 0


def test_images_are_parted_from_duplicates_outside_their_group() -> None:
    groups = np.array([-1, -1, 4, 4, -1, 4, 7])
    assert count_parted(groups, np.array([0, 0, -1, -1, -1, -1, -1])) == 2
    assert count_parted(groups, np.array([-1, -1, 0, 0, -1, 0, -1])) == 0
    assert count_parted(groups, np.array([-1, -1, 0, 0, -1, 0, 0])) == 4
    assert count_parted(groups, np.full(7, -1)) == 0
