"""The audit: planted wrong labels, duplicates and outliers are found, and not where none are."""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors
from synthetic import TINY, write_cache
from typer.testing import CliRunner

import featx
from featx import auditing
from featx.auditing import _neighbour_similarity, audit
from featx.cli import app
from featx.errors import InputError, MissingExtraError

needs_cleanlab = pytest.mark.skipif(
    importlib.util.find_spec("cleanlab") is None,
    reason="needs cleanlab: pip install '.[audit]'",
)
NAMES = ("Great tit", "Grue cendrée", "麻雀")


def labels_with(wrong: dict[int, int], n: int = 120) -> np.ndarray:
    labels = np.arange(n) % 3
    for row, label in wrong.items():
        labels[row] = label
    return labels


def relabelled(path: Path, wrong: dict[int, int], **options: object) -> Path:
    """A cache whose features are of the true classes while some labels are wrong."""

    def plant(features: np.ndarray, sha256: np.ndarray) -> None:
        centres = 3.0 * np.eye(16)
        for row, label in wrong.items():
            features[row] += centres[row % 3] - centres[label]

    return write_cache(path, n=120, labels=labels_with(wrong), plant=plant, **options)  # type: ignore[arg-type]


# Labels


@needs_cleanlab
def test_planted_wrong_labels_are_found_and_right_ones_are_not(tmp_path: Path) -> None:
    clean = audit(relabelled(tmp_path / "clean.h5", {}))
    assert (clean.wrong_labels, clean.judged, clean.accuracy) == ((), 120, 1.0)
    found = audit(relabelled(tmp_path / "a.h5", {17: 0, 60: 2}))
    assert found.wrong_labels is not None
    assert {(w.path, w.label, w.suggested) for w in found.wrong_labels} == {
        ("000017.jpg", NAMES[0], NAMES[2]),
        ("000060.jpg", NAMES[2], NAMES[0]),
    }
    assert [w.p_label for w in found.wrong_labels] == sorted(w.p_label for w in found.wrong_labels)
    assert all(w.p_label < 0.1 < 0.9 < w.p_suggested for w in found.wrong_labels)
    assert found.accuracy == pytest.approx(118 / 120)


@needs_cleanlab
def test_the_verdict_is_that_of_cleanlab_on_out_of_fold_probabilities(tmp_path: Path) -> None:
    from cleanlab.filter import find_label_issues

    from featx.crossfit import out_of_fold
    from featx.heads import LogisticHead

    path = relabelled(tmp_path / "a.h5", {17: 0, 60: 2, 33: 1}, spread=1.5)
    found = audit(path, duplicate_threshold=1.0)
    features = featx.load(path)
    head = LogisticHead().fit(features.X, features.y)
    assert found.C == head.C_
    log_p, _ = out_of_fold(head, features.X, features.y)
    expected = find_label_issues(
        features.y, np.exp(log_p), return_indices_ranked_by="self_confidence", n_jobs=1
    )
    assert found.wrong_labels is not None
    assert [w.path for w in found.wrong_labels] == [features.paths[i] for i in expected]


def test_duplicates_and_groups_are_not_parted_when_labels_are_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def watched(estimator, X, y, *, groups, seed):
        seen.append(groups)
        return np.log(np.full((len(y), 3), 1 / 3)), np.ones(len(y), bool)

    monkeypatch.setattr(auditing, "out_of_fold", watched)
    monkeypatch.setattr(
        auditing, "_confident_learning", lambda: lambda labels, p: np.zeros(0, np.int64)
    )

    def plant(features: np.ndarray, sha256: np.ndarray) -> None:
        features[20], sha256[20] = features[50], sha256[50]
        features[21] = features[51] + 0.001

    own = np.full(60, -1)
    own[[50, 53]] = 8
    audit(write_cache(tmp_path / "a.h5", groups=own, plant=plant), duplicate_threshold=0.95)
    groups = seen[0]
    assert groups[53] == groups[50]
    assert groups[20] == groups[50] >= 0
    assert groups[21] == groups[51] >= 0
    assert (np.delete(groups, [20, 50, 53, 21, 51]) == -1).all()


@needs_cleanlab
def test_unlabelled_images_and_lone_classes_are_not_judged(tmp_path: Path) -> None:
    labels = labels_with({})
    labels[:6] = -1
    path = write_cache(tmp_path / "a.h5", n=120, labels=labels)
    found = audit(path)
    assert (found.n, found.judged) == (120, 114)
    lone = np.where(np.arange(120) < 119, 0, 1)
    none = audit(write_cache(tmp_path / "b.h5", n=120, labels=lone))
    assert none.wrong_labels is None
    assert none.notes[0].startswith("labels were not looked at: ")
    one = audit(write_cache(tmp_path / "c.h5", labels=np.zeros(60, np.int64)))
    assert one.notes == ("labels were not looked at: it takes labels of two classes, got 1",)


def test_without_cleanlab_the_error_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cleanlab", "cleanlab.filter"):
        monkeypatch.setitem(sys.modules, name, None)
    path = write_cache(tmp_path / "a.h5")
    with pytest.raises(MissingExtraError, match=r"pip install 'featx\[audit\]', or .*--no-labels"):
        audit(path)
    found = audit(path, labels=False)
    assert (found.wrong_labels, found.judged, found.C, found.notes) == (None, 0, None, ())


# Duplicates and outliers


def test_a_planted_duplicate_with_another_label_is_a_conflict(tmp_path: Path) -> None:
    def plant(features: np.ndarray, sha256: np.ndarray) -> None:
        features[20], sha256[20] = features[51], sha256[51]  # labels 2 and 0
        features[21] = features[41] + 0.001  # 0 and 2
        features[22] = features[52] + 0.001  # both 1

    only: dict[str, Any] = {"labels": False, "duplicate_threshold": 0.95}
    clean = audit(write_cache(tmp_path / "clean.h5"), **only)
    assert (clean.conflicts, clean.duplicates, clean.groups) == ((), (), 0)
    found = audit(write_cache(tmp_path / "a.h5", plant=plant), **only)
    assert [(p.path, p.other_path, p.label, p.other_label, p.exact) for p in found.conflicts] == [
        ("000020.jpg", "000051.jpg", NAMES[2], NAMES[0], True),
        ("000021.jpg", "000041.jpg", NAMES[0], NAMES[2], False),
    ]
    assert found.groups == 3
    assert {p.path for p in found.duplicates} == {"000020.jpg", "000021.jpg", "000022.jpg"}
    assert found.duplicates[0].similarity == 1.0


def test_a_planted_stranger_is_an_outlier(tmp_path: Path) -> None:
    def plant(features: np.ndarray, sha256: np.ndarray) -> None:
        features[7] = 10.0 * np.eye(16)[15]

    clean = audit(write_cache(tmp_path / "clean.h5", n=120), labels=False)
    assert "000007.jpg" not in {o.path for o in clean.outliers}
    found = audit(write_cache(tmp_path / "a.h5", n=120, plant=plant), labels=False)
    assert found.outliers[0].path == "000007.jpg"
    assert found.outliers[0].label == NAMES[1]
    assert [o.similarity for o in found.outliers] == sorted(o.similarity for o in found.outliers)
    X = featx.load(tmp_path / "a.h5").X
    distances, _ = NearestNeighbors(n_neighbors=10, metric="cosine").fit(X).kneighbors()
    similarity = 1 - distances[:, -1]
    low, high = np.percentile(similarity, [25, 75])
    assert found.outlier_fence == pytest.approx(low - 1.5 * (high - low), abs=1e-6)
    expected = np.flatnonzero(similarity < found.outlier_fence)
    assert {o.path for o in found.outliers} == {f"{row:06d}.jpg" for row in expected}
    assert found.outliers[0].similarity == pytest.approx(similarity[7], abs=1e-6)


def test_features_are_read_block_by_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    X = np.random.default_rng(0).normal(size=(101, 16)).astype(np.float32)
    X[3] = 0
    whole = _neighbour_similarity(X)
    distances, _ = NearestNeighbors(n_neighbors=10, metric="cosine").fit(X).kneighbors()
    assert whole == pytest.approx(1 - distances[:, -1], abs=1e-6)
    read: list[int] = []

    class Watched(np.ndarray):
        def __getitem__(self, key: Any) -> Any:
            found = super().__getitem__(key)
            read.append(len(found))
            return np.asarray(found)

    monkeypatch.setattr("featx.auditing._BLOCK", 7 * 16)
    monkeypatch.setattr("featx.auditing._ROWS", 1)
    assert _neighbour_similarity(X.view(Watched)) == pytest.approx(whole, abs=1e-6)
    assert max(read) == 7


def test_copies_of_a_stranger_do_not_hide_it(tmp_path: Path) -> None:
    def plant(features: np.ndarray, sha256: np.ndarray) -> None:
        features[[7, 40, 80]] = 10.0 * np.eye(16)[15]

    found = audit(write_cache(tmp_path / "a.h5", n=120, plant=plant), labels=False)
    assert {o.path for o in found.outliers[:3]} == {"000007.jpg", "000040.jpg", "000080.jpg"}


def test_a_cache_of_one_image_has_nothing_doubtful(tmp_path: Path) -> None:
    found = audit(write_cache(tmp_path / "a.h5", n=1), labels=False)
    assert (found.duplicates, found.outliers) == ((), ())


def test_the_same_audit_twice_says_the_same(tmp_path: Path) -> None:
    path = relabelled(tmp_path / "a.h5", {17: 0})
    assert audit(path, labels=False) == audit(path, labels=False)


def test_a_bad_threshold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="above 0 and at most 1"):
        audit(write_cache(tmp_path / "a.h5"), labels=False, duplicate_threshold=7)


# The command


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["audit", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_prints_writes_and_draws(
    tmp_path: Path, colour_folder: Callable[..., Path]
) -> None:
    root = colour_folder(per_class=4)
    (root / "blue" / "copy.png").write_bytes((root / "red" / "red0.png").read_bytes())
    cache = tmp_path / "a.h5"
    featx.extract(root, out=cache, **TINY)
    only = (cache, "--no-labels", "--duplicate-threshold", 1)
    text = run(*only, "--out", tmp_path / "out", "--show", tmp_path / "grid.png")
    assert "1 pairs of duplicates with different labels" in text
    assert "blue/copy.png" in text
    assert "the first" not in text
    found = featx.audit(cache, labels=False, duplicate_threshold=0.9)
    assert len(found.duplicates) > 1
    more = run(cache, "--no-labels", "--duplicate-threshold", 0.9, "-n", 1)
    assert "(similarity 0.9); the first 1, all by --out or -n" in " ".join(more.split())
    assert (tmp_path / "grid.png").stat().st_size > 1000
    with (tmp_path / "out" / "duplicates.csv").open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert rows[0] == {
        "path": "blue/copy.png",
        "label": "blue",
        "other path": "red/red0.png",
        "other label": "red",
        "similarity": "1.000000",
        "kind": "exact",
    }
    assert sum(row["path"] == "blue/copy.png" and row["kind"] == "exact" for row in rows) == 1
    told = json.loads(run(*only, "--json"))
    assert told == json.loads((tmp_path / "out" / "audit.json").read_text("utf-8"))
    assert told["wrong_labels"] is None
    assert told["conflicts"][0]["other_path"] == "red/red0.png"


@needs_cleanlab
def test_the_command_prints_wrong_labels(tmp_path: Path) -> None:
    path = relabelled(tmp_path / "a.h5", {17: 0})
    text = run(path, "--out", tmp_path / "out")
    assert "1 doubtful labels of 120 judged out of fold" in text
    assert "000017.jpg" in text
    with (tmp_path / "out" / "labels.csv").open(encoding="utf-8-sig", newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert (row["path"], row["label"], row["suggested"]) == ("000017.jpg", NAMES[0], NAMES[2])


def test_a_picture_of_images_that_are_gone_is_refused(tmp_path: Path) -> None:
    def plant(features: np.ndarray, sha256: np.ndarray) -> None:
        sha256[20] = sha256[51]

    path = write_cache(tmp_path / "a.h5", plant=plant)
    arguments = ["audit", str(path), "--no-labels", "--show", str(tmp_path / "grid.png")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "the images are not where" in result.output
