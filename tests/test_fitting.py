"""Fitting a head: what it is trained on, what it is called, and that nothing is overwritten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from synthetic import CLASSES, SPEC, write_cache

import featx
from featx.errors import CacheError, HeadError, InputError
from featx.fitting import fit_head, fit_like
from featx.heads import HEADS, LinearHead, load_head, save_head


def hashes(rows: np.ndarray) -> set[bytes]:
    return {row.tobytes() for row in rows}


def test_a_head_is_fitted_on_the_newest_cache_beside_it(tmp_path: Path) -> None:
    write_cache(tmp_path / "old.h5")
    path = write_cache(tmp_path / "new.h5", first_image=500)
    fit = fit_head(cache_dir=tmp_path)
    assert fit.path == tmp_path / "new.logistic.safetensors"
    assert fit.features.path == path
    assert fit.file.classes == CLASSES


def test_the_split_is_stored_by_image_hash_and_covers_every_image_once(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "a.h5")
    file = load_head(fit_head(path).path)
    train, held_out = hashes(file.split["train"]), hashes(file.split["held_out"])
    assert not train & held_out
    assert train | held_out == hashes(featx.load(path).sha256)
    assert len(held_out) == 12


@pytest.mark.parametrize(
    ("codes", "parts"),
    [
        ((1, 2), ("train", "held-out")),
        ((1, 3), ("train", "held-out")),
        ((1, 2, 3), ("train", "val", "held-out")),
        ((0,), ("train", "held-out")),
    ],
)
def test_load_gives_exactly_the_rows_of_fit_head(
    tmp_path: Path, codes: tuple[int, ...], parts: tuple[str, ...]
) -> None:
    split = np.array(codes, np.uint8)[np.arange(60) // 3 % len(codes)]
    path = write_cache(tmp_path / "a.h5", split=split)
    file = fit_head(path).file
    for part in parts:
        stored = file.split[part.replace("-", "_")]
        assert np.array_equal(featx.load(path, split=part).sha256, stored)
    if "val" not in parts:
        assert len(file.split["val"]) == 0


def test_plain_scikit_learn_on_the_same_rows_agrees(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "a.h5", n=300, spread=2.0)
    head = fit_head(path).file.head
    X, y = featx.load(path, split="train", return_X_y=True)
    X_test, y_test = featx.load(path, split="held-out", return_X_y=True)
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=head.C_, tol=1e-8))
    reference.fit(X, y)
    assert np.abs(head.predict_proba(X_test) - reference.predict_proba(X_test)).max() < 1e-4
    assert head.score(X_test, y_test) == reference.score(X_test, y_test)


def test_the_held_out_rows_are_never_looked_at(tmp_path: Path) -> None:
    split = np.where(np.arange(60) % 5 == 0, 2, 1).astype(np.uint8)
    plain = write_cache(tmp_path / "a.h5", split=split)
    labels = np.arange(60) % 3
    shuffled = np.where(split == 2, (labels + 1) % 3, labels)
    wrong = write_cache(tmp_path / "b.h5", split=split, labels=shuffled)  # held-out rows differ
    X = featx.load(plain).X
    for head in HEADS:
        a, b = fit_head(plain, head=head, device="cpu"), fit_head(wrong, head=head, device="cpu")
        assert np.array_equal(a.file.head.predict_proba(X), b.file.head.predict_proba(X)), head


def test_a_network_is_trained_on_the_memory_map_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []
    fit = LinearHead.fit

    def recording(self: LinearHead, X: np.ndarray, y: np.ndarray, **keywords: Any) -> LinearHead:
        given.append(X)
        return fit(self, X, y, **keywords)

    monkeypatch.setattr(LinearHead, "fit", recording)
    fitted = fit_head(write_cache(tmp_path / "a.h5"), head="linear", epochs=2)
    assert np.shares_memory(given[0], fitted.features.features)


@pytest.mark.parametrize("head", HEADS)
def test_the_same_command_gives_the_same_bytes(tmp_path: Path, head: str) -> None:
    path = write_cache(tmp_path / "a.h5")
    first = fit_head(path, head=head)
    before = first.path.read_bytes()
    second = fit_head(path, head=head)
    assert (second.path, second.replaced) == (first.path, True)
    assert second.path.read_bytes() == before


def test_a_head_of_other_settings_is_never_overwritten(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "a.h5")
    names = [
        fit_head(path).path.name,
        fit_head(path, C=0.5).path.name,
        fit_head(path, seed=3).path.name,
        fit_head(path, head="mlp", hidden=(32, 16), epochs=3).path.name,
    ]
    assert names == [
        "a.logistic.safetensors",
        "a.logistic+C=0.5.safetensors",
        "a.logistic+seed=3.safetensors",
        "a.mlp+epochs=3+hidden=32,16.safetensors",
    ]
    kept = (tmp_path / "a.logistic.safetensors").read_bytes()
    write_cache(tmp_path / "a.h5", n=90)  # the folder has grown: the same name, other data
    assert fit_head(path).path.name == "a.logistic-2.safetensors"
    assert (tmp_path / "a.logistic.safetensors").read_bytes() == kept
    assert fit_head(path, force=True).path.name == "a.logistic.safetensors"
    assert (tmp_path / "a.logistic.safetensors").read_bytes() != kept


def test_a_head_of_many_settings_gets_a_name_that_files_can_have(tmp_path: Path) -> None:
    path = write_cache(tmp_path / f"{'é' * 80}.h5")
    settings = {"hidden": (8,), "lr": 0.01, "batch_size": 8, "weight_decay": 0.1, "patience": 2}
    fits = [fit_head(path, head="mlp", epochs=n, dropout=0.1, **settings) for n in (1, 2)]
    names = [fit.path.name for fit in fits]
    assert names[0] != names[1]
    for name in names:
        assert name.startswith("é" * 80 + ".mlp+batch_size=8")
        assert len(f".{name}.checkpoint".encode()) + len(".final-99.01234567.tmp") <= 255
    assert fit_head(path, head="mlp", epochs=1, dropout=0.1, **settings).replaced


def test_a_file_that_is_no_head_is_never_overwritten(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "a.h5")
    (tmp_path / "a.logistic.safetensors").write_text("my notes")
    assert fit_head(path).path.name == "a.logistic-2.safetensors"
    assert (tmp_path / "a.logistic.safetensors").read_text() == "my notes"


def test_failed_and_unlabelled_images_are_not_trained_on(tmp_path: Path) -> None:
    labels = np.arange(60) % 3
    labels[5:10] = -1
    path = write_cache(tmp_path / "a.h5", labels=labels, failed=(0, 1, 2))
    file = fit_head(path).file
    assert len(file.split["train"]) + len(file.split["held_out"]) == 60 - 5 - 3


def test_the_head_file_tells_how_it_came_about(tmp_path: Path) -> None:
    metadata = fit_head(write_cache(tmp_path / "a.h5"), C=0.1).file.metadata
    assert metadata["settings"]["params"] == {"C": 0.1}
    assert metadata["cache"]["spec"]["backbone"] == "squeezenet1_1"
    assert metadata["split"]["train_counts"] == [16, 16, 16]
    assert metadata["fit"]["converged"] is True
    assert set(metadata["versions"]) == {"featx", "torch", "scikit-learn", "numpy", "python"}


def test_the_record_says_truly_what_choices_were_made_on(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "a.h5")  # 48 training images

    def told(head: str = "logistic", **params: object) -> str:
        return fit_head(path, head=head, **params).file.metadata["split"]["chosen_on"]

    assert told() == "5-fold cross-validation"
    assert told(cv=3) == "3-fold cross-validation"
    assert told(C=1.0) == "nothing: C was given"
    aside = fit_head(path, head="linear", epochs=2)
    n = aside.file.head.n_set_aside_
    assert 3 <= n <= 6  # a tenth, and every class in it
    assert aside.file.metadata["split"]["chosen_on"] == f"{n} of the training images, set aside"
    first = aside.file.head.history_[0]["train_accuracy"] * (48 - n)
    assert first == pytest.approx(round(first))
    split = np.array([1, 1, 1, 2, 3], np.uint8)[np.arange(60) % 5]
    given = write_cache(tmp_path / "b.h5", split=split)
    record = fit_head(given, head="linear", epochs=2).file.metadata["split"]
    assert record["chosen_on"] == "12 val images"
    assert told("ridge") == "leave-one-out"
    assert told("ridge", alpha=1.0) == "nothing: alpha was given"
    assert told("knn") == told("centroid") == "leave-one-out"
    assert told("knn", n_neighbors=3) == "nothing: n_neighbors was given"


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("codes", [(0,), (1, 1, 1, 2, 3)])
def test_every_head_records_what_it_chose_and_how_well_that_did(
    head: str, codes: tuple[int, ...], tmp_path: Path
) -> None:
    split = np.array(codes, np.uint8)[np.arange(60) % len(codes)]
    metadata = fit_head(write_cache(tmp_path / "a.h5", split=split), head=head).file.metadata
    choice = metadata["fit"]["choice"]
    assert set(choice) == {"what", "on", "accuracy", "params"}
    assert choice["what"]
    assert choice["accuracy"] > 0.5  # of three classes
    assert choice["on"] == metadata["split"]["chosen_on"]
    assert choice["on"].endswith("val images") == (len(codes) > 1)


def test_errors_say_what_is_missing(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "a.h5")
    with pytest.raises(
        InputError, match=r"head must be one of logistic, linear, mlp, .* got 'svm'"
    ):
        fit_head(path, head="svm")
    with pytest.raises(
        InputError, match=r"no parameter hidden \(of mlp\), nor .*; its own are C, "
    ):
        fit_head(path, hidden=(3,))
    with pytest.raises(CacheError, match=r"there is no cache in .*empty; make one with"):
        fit_head(cache_dir=tmp_path / "empty")
    one = write_cache(tmp_path / "one.h5", labels=np.zeros(60, np.int64), classes=("only",))
    with pytest.raises(InputError, match=r"at least two classes .* of 1 class \(only\)"):
        fit_head(one)
    two = np.arange(60) % 2
    parted = write_cache(tmp_path / "two.h5", labels=two, groups=two, classes=("a", "b"))
    with pytest.raises(InputError, match=r"of 1 class .*; groups are held out whole, and one that"):
        fit_head(parted)
    none = write_cache(tmp_path / "none.h5", labels=np.full(60, -1), classes=())
    with pytest.raises(InputError, match="labelled images"):
        fit_head(none)


def test_a_fraction_is_refused_where_the_images_have_a_split_of_their_own(tmp_path: Path) -> None:
    split = np.where(np.arange(60) % 5 == 0, 2, 1).astype(np.uint8)
    path = write_cache(tmp_path / "a.h5", split=split)
    with pytest.raises(InputError, match=r"have a split of their own: leave --test-fraction away"):
        fit_head(path, test_fraction=0.5)


def test_a_part_without_labels_is_no_split_of_ones_own(tmp_path: Path) -> None:
    split = np.where(np.arange(60) % 5 == 0, 3, 1).astype(np.uint8)
    labels = np.where(split == 3, -1, np.arange(60) % 3)
    path = write_cache(tmp_path / "a.h5", split=split, labels=labels)
    fit = fit_head(path, test_fraction=0.5)
    assert len(fit.split.held_out) == 24
    again = fit_like(fit.path, path, out=tmp_path / "b.safetensors")
    assert again.path.read_bytes() == fit.path.read_bytes()


def test_like_looks_for_leaks_by_the_threshold_that_the_head_was_fitted_with(
    tmp_path: Path,
) -> None:
    path = write_cache(tmp_path / "a.h5")
    fit = fit_head(path, duplicate_threshold=0.5)
    again = fit_like(fit.path, path, out=tmp_path / "b.safetensors")
    assert again.path.read_bytes() == fit.path.read_bytes()
    assert again.file.metadata["leaks"]["threshold"] == 0.5


def test_load_takes_the_fraction_that_the_head_was_fitted_with(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "a.h5")
    file = fit_head(path, test_fraction=0.5).file
    held_out = featx.load(path, split="held-out", test_fraction=0.5)
    assert np.array_equal(held_out.sha256, file.split["held_out"])
    assert len(held_out) == 30


def test_a_head_file_goes_into_a_new_folder_and_must_have_its_ending(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "a.h5")
    assert fit_head(path, out=tmp_path / "new" / "x.safetensors").path.is_file()
    with pytest.raises(InputError, match=r"ends in \.safetensors"):
        fit_head(path, out=tmp_path / "myhead")


def test_images_outside_the_given_split_are_counted(tmp_path: Path) -> None:
    split = np.array([1, 1, 1, 3, 0], np.uint8)[np.arange(60) % 5]
    file = fit_head(write_cache(tmp_path / "a.h5", split=split)).file
    assert file.metadata["split"]["left_out"] == 12


def test_groups_by_a_rule_are_never_parted_and_recorded(tmp_path: Path) -> None:
    root = tmp_path / "birds"
    root.mkdir()
    path = write_cache(tmp_path / "a.h5", n=60, root=str(root), spread=2.0)
    paths = featx.load(path).paths
    nest = {name: i // 4 for i, name in enumerate(paths)}
    (root / "nests.csv").write_text(
        "\n".join(["path,nest", *(f"{name},{number}" for name, number in nest.items())])
    )
    fit = fit_head(path, group="nest")
    assert fit.path.name == "a.logistic+group=nest.safetensors"
    parts = [{nest[paths[row]] for row in rows} for rows in (fit.split.train, fit.split.held_out)]
    assert not parts[0] & parts[1]
    assert fit.file.metadata["split"]["groups"] == "15 groups by 'nest' of nests.csv"
    assert fit.file.metadata["settings"]["group"] == "nest"
    plain = fit_head(path)
    both = [
        {nest[paths[row]] for row in rows} for rows in (plain.split.train, plain.split.held_out)
    ]
    assert both[0] & both[1]  # without the rule they are parted


@pytest.mark.parametrize("kind", HEADS)
def test_a_fit_is_repeated_on_another_cache(tmp_path: Path, kind: str) -> None:
    first = write_cache(tmp_path / "a.h5", spread=2.0)
    second = write_cache(tmp_path / "b.h5", spread=2.0, spec={**SPEC, "backbone": "resnet18"})
    other = not HEADS[kind]().standardise  # than the default
    asked = {"head": kind, "seed": 3, "test_fraction": 0.3, "standardise": other, "device": "cpu"}
    made = fit_head(first, **asked)
    again = fit_like(made.path, second, device="cpu")
    expected = fit_head(second, **asked)
    assert again.path == expected.path
    assert expected.replaced
    assert np.array_equal(again.file.split["train"], made.file.split["train"])
    assert again.file.head.get_params() == made.file.head.get_params()


def test_a_repeated_fit_keeps_what_were_the_defaults_then(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "a.h5")
    made = fit_head(path, head="mlp", epochs=3, device="cpu")
    file = load_head(made.path)
    older = file.head.set_params(batch_size=7)  # as if it had been the default
    save_head(made.path, older, classes=file.classes, metadata=file.metadata, split=file.split)
    assert "batch_size" not in file.metadata["settings"]["params"]
    again = fit_like(made.path, path, out=tmp_path / "again.safetensors", device="cpu")
    assert again.file.head.batch_size == 7


def test_a_head_that_does_not_say_how_it_was_fitted_is_not_repeated(tmp_path: Path) -> None:
    made = fit_head(write_cache(tmp_path / "a.h5"))
    metadata = {k: v for k, v in made.file.metadata.items() if k != "settings"}
    save_head(made.path, made.file.head, classes=CLASSES, metadata=metadata)
    with pytest.raises(HeadError, match="does not say how it was fitted"):
        fit_like(made.path, made.features.path)


def test_the_split_of_any_head_is_found_in_its_cache(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "a.h5")
    head = fit_head(path, seed=4, test_fraction=0.4).file
    held_out = featx.load(path).with_images(head.split["held_out"])
    assert np.array_equal(held_out.sha256, head.split["held_out"])
    assert np.array_equal(
        held_out.y, featx.load(path, split="held-out", seed=4, test_fraction=0.4).y
    )
    few = featx.load(path).with_images(head.split["held_out"], without=head.split["held_out"][:3])
    assert np.array_equal(few.sha256, head.split["held_out"][3:])
