"""Duplicates: exact ones by their bytes, near ones by their features, and nothing else."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.decomposition import PCA

import featx
from featx import likeness
from featx.duplicates import (
    Images,
    find_duplicates,
    merged_groups,
    nearest_duplicates,
)
from featx.errors import InputError
from featx.likeness import Likeness

UNKNOWN = np.zeros((1, 32), np.uint8)


def random_features(n: int, d: int = 100, seed: int = 0) -> np.ndarray:
    """Different images, as a network sees them: nothing below 0, all a little alike."""
    rng = np.random.default_rng(seed)
    return (3 + rng.normal(size=(n, d))).clip(0).astype(np.float32)


def different_files(n: int) -> np.ndarray:
    return np.random.default_rng(9).integers(1, 256, (n, 32), np.uint8)


def similarities(X: np.ndarray) -> np.ndarray:
    """(n, n), by scikit-learn's principal components and all at once."""
    r = min(32, len(X) // 8, X.shape[1] // 2)
    pca = PCA(svd_solver="full").fit(X.astype(np.float64))
    along = pca.transform(X.astype(np.float64))  # the cosine is the same in rotated axes
    along[:, :r] *= np.sqrt(pca.explained_variance_[r] / pca.explained_variance_[:r])
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    return along @ along.T


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likeness, "_MOST_ROWS", 7)


def test_a_copied_file_is_an_exact_duplicate_and_another_file_is_none() -> None:
    X, sha256 = random_features(40), different_files(40)
    assert find_duplicates(X, sha256).n_groups == 0
    sha256[31] = sha256[4]
    found = find_duplicates(X, sha256)
    assert np.flatnonzero(found.groups >= 0).tolist() == [4, 31]
    pairs = found.pairs
    assert (pairs.first.tolist(), pairs.second.tolist()) == ([4], [31])
    assert (pairs.exact.tolist(), pairs.similarity.tolist()) == ([True], [1.0])


def test_almost_the_same_features_are_a_near_duplicate_and_others_are_none() -> None:
    X, sha256 = random_features(40), different_files(40)
    X[31] = X[4] + 0.05 * random_features(1, seed=5)[0]
    found = find_duplicates(X, sha256)
    assert np.flatnonzero(found.groups >= 0).tolist() == [4, 31]
    assert not found.pairs.exact.any()
    assert found.pairs.similarity[0] == pytest.approx(similarities(X)[4, 31], abs=1e-6)
    stricter = find_duplicates(X, sha256, threshold=float(found.pairs.similarity[0]) + 1e-5)
    assert stricter.n_groups == 0


def test_what_all_images_have_in_common_makes_no_duplicates() -> None:
    X = random_features(40) + 100  # any two have a cosine above 0.99
    assert find_duplicates(X, different_files(40)).n_groups == 0


def test_classes_far_apart_make_no_duplicates_of_their_members() -> None:
    X = random_features(60)
    X += 40 * np.eye(3, 100)[np.arange(60) % 3]  # any two of one class have a cosine above 0.9
    centred = X - X.mean(axis=0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    assert (centred[::3] @ centred[::3].T).mean() > 0.9
    assert find_duplicates(X, different_files(60)).n_groups == 0


def test_what_similarity_is_taken_by_is_learnt_from_a_sample_of_many_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    X = random_features(300, d=20)
    X[:, 0] *= 9
    whole = Likeness.learn(X)
    assert np.abs(whole.directions @ whole.directions.T - np.eye(10)).max() < 1e-9
    assert (whole.factors <= 1).all()
    assert np.abs(whole.directions[0]).argmax() == 0
    monkeypatch.setattr(likeness, "_SAMPLE", 100)
    sample = Likeness.learn(X)
    assert np.abs(sample.directions[0]).argmax() == 0
    assert sample.factors[0] == pytest.approx(whole.factors[0], rel=0.3)
    assert np.array_equal(sample.mean, whole.mean)
    monkeypatch.setattr(likeness, "_BLOCK_BYTES", 8 * 20 * 16)  # room for 32 rows
    assert len(Likeness.learn(X).factors) == 4


def test_few_images_are_compared_by_centred_features_alone() -> None:
    assert len(Likeness.learn(random_features(7)).factors) == 0
    assert len(Likeness.learn(np.ones((50, 3), np.float32)).factors) == 0
    assert find_duplicates(random_features(1), different_files(1)).groups.tolist() == [-1]
    none = find_duplicates(random_features(0), different_files(0))
    assert (len(none.groups), len(none.pairs)) == (0, 0)


def test_duplicates_of_a_duplicate_are_of_its_group() -> None:
    X = random_features(40)
    far = np.linspace(0, 1, 5)[:, None] * (X[1] - X[0])
    X[10:15] = X[0] + far  # a burst from one picture to another
    threshold = float(similarities(X)[np.arange(10, 14), np.arange(11, 15)].min()) - 1e-3
    assert similarities(X)[10, 14] < threshold
    groups = find_duplicates(X, different_files(40), threshold=threshold).groups
    assert len(set(groups[10:15])) == 1
    assert groups[10] >= 0


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.9])
def test_blocks_find_what_the_whole_matrix_holds(threshold: float) -> None:
    from scipy.sparse.csgraph import connected_components

    X, labels = random_features(60, d=12), np.arange(60) % 3
    X[50:] = X[:10] + 0.05 * random_features(10, d=12, seed=1)
    S = similarities(X)
    np.fill_diagonal(S, -1)
    found = find_duplicates(X, different_files(60), labels=labels, threshold=threshold)
    component = connected_components(threshold <= S)[1]
    same = component[:, None] == component
    assert np.array_equal(found.groups >= 0, same.sum(axis=1) > 1)
    grouped = found.groups >= 0
    assert np.array_equal(
        (found.groups[:, None] == found.groups)[np.ix_(grouped, grouped)],
        same[np.ix_(grouped, grouped)],
    )
    for pairs, allowed in (
        (found.pairs, np.ones((60, 60), bool)),
        (found.conflicts, labels[:, None] != labels),
    ):
        alike = np.where(allowed, S, -1)
        best = {
            (min(i, j), max(i, j))
            for i, j in enumerate(alike.argmax(axis=1).tolist())
            if alike[i, j] >= threshold
        }
        assert set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) == best
        assert pairs.similarity == pytest.approx(S[pairs.first, pairs.second], abs=1e-6)
        assert (np.diff(pairs.similarity) <= 0).all()


def test_memory_does_not_grow_with_the_pairs() -> None:
    n = 12_000  # all similarities at once would take 576 MB in float32
    X, sha256 = random_features(n, d=6), different_files(n)
    tracemalloc.start()
    try:
        find_duplicates(X, sha256, threshold=0.99999)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 80 << 20


def test_many_copies_of_one_picture_are_one_group_and_not_all_pairs_are_listed() -> None:
    X, sha256 = random_features(300), different_files(300)
    X[100:200] = X[100]  # stored a hundred times with other metadata
    sha256[200:250] = sha256[200]
    found = find_duplicates(X, sha256)
    assert found.n_groups == 2
    assert len(found.pairs) <= 2 * 300
    named = {*found.pairs.first.tolist(), *found.pairs.second.tolist()}
    assert named == {*range(100, 250)}


def test_images_that_differ_from_the_mean_by_rounding_alone_are_like_nothing() -> None:
    X = np.full((20, 5), 0.1, np.float32)
    X[3] = np.nextafter(X[3], 1)
    assert find_duplicates(X, different_files(20)).n_groups == 0


def test_files_of_unknown_content_are_not_copies_of_each_other() -> None:
    X, sha256 = random_features(20), np.repeat(UNKNOWN, 20, axis=0)
    assert find_duplicates(X, sha256).n_groups == 0
    one, other = (Images(X, sha256, np.arange(first, first + 10)) for first in (0, 10))
    assert not nearest_duplicates(one, other, likeness=None).exact.any()


def test_duplicates_with_different_labels_are_named_also_behind_nearer_ones() -> None:
    X, sha256 = random_features(40), different_files(40)
    X[20] = X[4] + 0.02 * random_features(1, seed=5)[0]
    X[21] = X[4] + 0.001 * random_features(1, seed=6)[0]
    sha256[30] = sha256[8]
    labels = np.zeros(40, np.int64)
    assert len(find_duplicates(X, sha256, labels=labels).conflicts) == 0
    labels[20] = 1  # the nearest of 4 is 21, of the same label
    labels[30] = 1
    conflicts = find_duplicates(X, sha256, labels=labels).conflicts
    found = set(zip(conflicts.first.tolist(), conflicts.second.tolist(), strict=True))
    assert found in ({(8, 30), (4, 20), (20, 21)}, {(8, 30), (4, 20)}, {(8, 30), (20, 21)})
    assert (conflicts.first[0], conflicts.exact[0]) == (8, True)
    labels[[20, 30]] = -1  # without a label there is no conflict
    assert len(find_duplicates(X, sha256, labels=labels).conflicts) == 0


def test_the_second_and_third_copy_conflict_with_the_first_labelled_one() -> None:
    X, sha256 = random_features(40), different_files(40)
    sha256[[10, 20, 30]] = sha256[5]
    labels = np.zeros(40, np.int64)
    labels[5], labels[20] = -1, 1
    conflicts = find_duplicates(X, sha256, labels=labels).conflicts
    assert (conflicts.first.tolist(), conflicts.second.tolist()) == ([10], [20])


def test_groups_are_united_and_numbered_by_their_first_rows() -> None:
    assert merged_groups([9, -1, 2, 2, 9, -1, 4]).tolist() == [0, -1, 1, 1, 0, -1, -1]
    united = merged_groups([9, -1, 2, 2, 9, -1], [-1, 7, 7, -1, -1, -1])
    assert united.tolist() == [0, 1, 1, 1, 0, -1]


@pytest.mark.usefixtures("small_blocks")
def test_each_image_gets_its_nearest_duplicate_of_another_set() -> None:
    X = random_features(60)
    others = Images(random_features(50, seed=1), different_files(50), np.arange(0, 50, 2))
    sha256 = different_files(110)[50:]
    X[5] = others.X[20] + 0.01
    X[6] = others.X[21]  # not among the rows looked at
    sha256[7] = others.sha256[30]
    X[7] = others.X[12]  # the same bytes count for more
    rows = np.arange(3, 60)
    found = nearest_duplicates(Images(X, sha256, rows), others, likeness=Likeness.learn(others.X))
    hits = {int(rows[i]): int(found.other[i]) for i in np.flatnonzero(found.other >= 0)}
    assert hits == {5: 20, 7: 30}
    assert found.exact.tolist() == [row == 7 for row in rows]
    assert (found.similarity[found.other < 0] == 0).all()


@pytest.mark.parametrize("threshold", [0, -0.5, 1.01, float("nan"), True])
def test_a_threshold_that_is_no_similarity_is_refused(threshold: float) -> None:
    with pytest.raises(InputError, match=r"must be above 0 and at most 1, got .*default is 0\.75"):
        find_duplicates(random_features(3), different_files(3), threshold=threshold)


def test_arrays_of_unequal_length_are_refused() -> None:
    with pytest.raises(InputError, match="got 4, 3 and 4"):
        find_duplicates(random_features(4), different_files(3))


@pytest.mark.real_data
def test_photographs_that_were_stored_again_are_found_and_no_others(
    real_data: Path, tmp_path: Path
) -> None:
    originals = sorted((real_data / "data" / "hymenoptera" / "val").rglob("*.jpg"))
    assert len(originals) > 100
    copies = []
    for number, path in enumerate(originals[::6]):
        copies.append(tmp_path / f"{number}.jpg")
        with Image.open(path) as image:
            w, h = image.size
            changed = image.crop((w // 50, h // 50, w - w // 50, h - h // 50))  # 4 % off
            changed.save(copies[-1], quality=70)
    extractor = featx.FeatureExtractor(
        "mobilenet_v2", weights=str(real_data / "weights" / "mobilenet_v2-e36a8f4b.pth"),
        device="cpu",
    )  # fmt: skip
    X = extractor.transform([*originals, *copies])
    pairs = find_duplicates(X, different_files(len(X))).pairs
    planted = {(6 * number, len(originals) + number) for number in range(len(copies))}
    found = set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
    assert not found - planted
    assert len(found & planted) >= 0.9 * len(planted)
