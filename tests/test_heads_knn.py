"""Tests of featx.heads.knn and featx.heads.neighbours."""

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from sklearn.preprocessing import StandardScaler, normalize

import featx.heads.neighbours
from featx.errors import InputError
from featx.heads import NEIGHBOURS_GRID, KNNHead
from featx.heads.neighbours import nearest, unit_rows, votes


def birds(n=120, d=20, k=4, seed=0, noise=1.5):
    """Classes of different directions, features of a network: none below 0."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % k)
    X = np.abs(3 * np.random.default_rng(9).normal(size=(k, d)))[y] + noise * rng.normal(
        size=(n, d)
    )
    return np.maximum(X, 0).astype(np.float32), y


def knn(n_neighbors=None, **keywords):
    return KNNHead(n_neighbors, device="cpu", **keywords)


def dinov2(train, y, test, q, n_classes, temperature=0.07):
    """KnnModule.forward of DINOv2's eval/knn.py for one k, on one device."""
    train, test = (
        torch.nn.functional.normalize(torch.from_numpy(X).double()) for X in (train, test)
    )
    similarity, indices = (test @ train.T).topk(q, largest=True, sorted=True)
    labels = torch.from_numpy(y)[indices]
    transform = torch.nn.functional.softmax(similarity / temperature, 1)
    one_hot = torch.nn.functional.one_hot(labels, n_classes)
    return (one_hot * transform[..., None]).sum(1).numpy()


@pytest.mark.parametrize("q", [1, 10, 20, 100])
def test_the_weighted_vote_is_dinov2s(q):
    X, y = birds()
    other, _ = birds(200, seed=1)
    head = knn(q).fit(X, y)
    shares = dinov2(X, y, other, q, 4)
    assert np.array_equal(head.predict(other), shares.argmax(axis=1))
    assert np.allclose(head.predict_proba(other), (q * shares + 1 / 4) / (q + 1), atol=1e-5)


@pytest.mark.parametrize("q", [1, 5, 20])
@pytest.mark.parametrize("standardise", [False, True])
def test_the_uniform_vote_is_scikit_learns_by_cosine(q, standardise):
    X, y = birds()
    other, _ = birds(200, seed=1)
    head = knn(q, weights="uniform", standardise=standardise).fit(X, y)
    scaler = StandardScaler(with_mean=standardise, with_std=standardise).fit(X.astype(float))
    theirs = KNeighborsClassifier(q, metric="cosine").fit(scaler.transform(X.astype(float)), y)
    shares = theirs.predict_proba(scaler.transform(other.astype(float)))
    assert np.allclose(head.predict_proba(other), (q * shares + 1 / 4) / (q + 1), atol=1e-12)


@pytest.mark.parametrize("weights", ["uniform", "exponential"])
def test_the_number_is_chosen_by_leaving_out_each_row(weights):
    X, y = birds(60, noise=3)
    head = knn(weights=weights).fit(X, y)
    grid = [q for q in NEIGHBOURS_GRID if q < 60]
    assert head.cv_results_["n_neighbors"] == grid
    p = np.empty((len(grid), 60, 4))
    for i in range(60):
        others = np.arange(60) != i
        for j, q in enumerate(grid):
            one = knn(q, weights=weights).fit(X[others], y[others])
            p[j, i] = one.predict_proba(X[i : i + 1])[0]
    accuracy = (p.argmax(axis=2) == y).mean(axis=1)
    assert np.allclose(head.cv_results_["accuracy"], accuracy)
    losses = [log_loss(y, one) for one in p]
    assert np.allclose(head.cv_results_["log_loss"], losses, atol=1e-6)
    assert head.n_neighbors_ == grid[int(np.lexsort((losses, -accuracy))[0])]
    assert head.chosen_on_ == "leave-one-out"


def test_among_equally_accurate_numbers_the_one_of_least_log_loss_is_taken():
    X, y = birds(noise=0.1)
    results = knn().fit(X, y).cv_results_
    equal = [q for q, a in zip(results["n_neighbors"], results["accuracy"], strict=True) if a == 1]
    losses = results["log_loss"][: len(equal)]
    assert equal[0] == 1
    assert knn().fit(X, y).n_neighbors_ == equal[int(np.argmin(losses))] > 1


def test_validation_rows_choose_where_there_are_some():
    X, y = birds(60, noise=3)
    X_val, y_val = birds(90, noise=3, seed=1)
    head = knn().fit(X, y, X_val=X_val, y_val=y_val)
    assert head.cv_results_["n_neighbors"] == [q for q in NEIGHBOURS_GRID if q <= 60]
    theirs = [knn(q).fit(X, y).score(X_val, y_val) for q in head.cv_results_["n_neighbors"]]
    assert np.allclose(head.cv_results_["accuracy"], theirs)
    assert head.chosen_on_ == "validation rows"


def test_rows_of_a_group_do_not_vote_for_each_other_in_the_choice():
    X, _ = birds(40)
    y = np.random.default_rng(3).permutation(np.arange(40) % 2)  # labels that mean nothing
    X, y, groups = np.repeat(X, 2, axis=0), np.repeat(y, 2), np.repeat(np.arange(40), 2)
    assert max(knn().fit(X, y).cv_results_["accuracy"]) == 1
    head = knn().fit(X, y, groups=groups)
    assert max(head.cv_results_["accuracy"]) < 0.75
    assert head.cv_results_["n_neighbors"][-1] == 50
    assert head.chosen_on_ == "leave-one-group-out"
    # Of a copy of each row, one in each group, the group of 79 rows has one neighbour only.
    uneven = np.r_[np.zeros(79, int), 1]
    y[-1] = y[0]
    assert set(knn().fit(X, y, groups=uneven).cv_results_["accuracy"]) <= set(
        np.arange(81) / (y == y[0]).sum()
    )


def test_nothing_to_choose_on_is_told_and_a_given_number_needs_nothing():
    X, y = np.eye(3), [0, 1, 2]
    with pytest.raises(InputError, match="n_neighbors cannot be chosen: no class has two rows"):
        knn().fit(X, y)
    head = knn(20).fit(X, y)
    assert head.n_neighbors_ == 3
    assert head.predict(X).tolist() == y


def test_among_equally_similar_rows_the_earlier_is_nearer_wherever_it_lies(monkeypatch):
    rng = np.random.default_rng(0)
    copies = np.tile(rng.normal(size=(5, 33)), (300, 1))
    rows = unit_rows(torch.from_numpy(copies)).to(torch.float32)
    near = nearest(rows[:7], rows, 40)
    assert near.rows[:5].tolist() == [list(range(i, 200, 5)) for i in range(5)]
    monkeypatch.setattr(featx.heads.neighbours, "_BLOCK_BYTES", 8 * 1024 * 11)
    monkeypatch.setattr(featx.heads.neighbours, "_QUERIES", 3)
    again = nearest(rows[:7], rows, 40)
    assert np.array_equal(again.rows, near.rows)
    assert np.array_equal(again.similarity, near.similarity)


def test_the_last_bits_of_a_similarity_decide_nothing():
    rows = torch.tensor([[0.5 - 1e-13, 0], [0.5, 0], [0.5 + 1e-13, 0]], dtype=torch.float64)
    near = nearest(torch.tensor([[1.0, 0]], dtype=torch.float64), rows, 3)
    assert near.rows.tolist() == [[0, 1, 2]]
    assert near.similarity.tolist() == [[0.5, 0.5, 0.5]]


def test_the_search_is_exact_in_blocks_of_any_size(monkeypatch):
    X, _ = birds(500, 40)
    queries, _ = birds(70, 40, seed=1)
    rows, queries = (normalize(A.astype(np.float64)) for A in (X, queries))
    distance, index = (
        NearestNeighbors(n_neighbors=30, metric="cosine").fit(rows).kneighbors(queries)
    )
    monkeypatch.setattr(featx.heads.neighbours, "_BLOCK_BYTES", 8 * 13 * 17)
    monkeypatch.setattr(featx.heads.neighbours, "_QUERIES", 13)
    near = nearest(torch.from_numpy(queries), torch.from_numpy(rows), 30)
    assert np.array_equal(near.rows, index)
    assert np.allclose(near.similarity, 1 - distance, atol=2**-24)


def test_a_query_with_fewer_neighbours_than_asked_for_has_none_in_their_place():
    rows = unit_rows(torch.from_numpy(np.arange(1.0, 13).reshape(4, 3)))
    units = torch.tensor([0, 0, 0, 1])
    near = nearest(rows, rows, 2, query_units=units, units=units)
    assert near.rows.tolist() == [[3, -1], [3, -1], [3, -1], [2, 1]]
    for temperature in (None, 0.07):
        shares = votes(near, np.array([0, 0, 0, 1]), 2, temperature=temperature)
        assert shares.tolist() == [[0, 1], [0, 1], [0, 1], [1, 0]]


def test_rows_of_zeros_have_neighbours_too():
    X, y = birds()
    X[3] = 0
    p = knn(5).fit(X, y).predict_proba(X[:4])
    assert np.isfinite(p).all()


def test_the_rows_are_kept_at_length_one_in_single_precision():
    X, y = birds()
    head = knn(5).fit(X * 1e4, y)
    assert head.rows_.dtype == np.float32
    assert np.allclose(head.rows_, normalize(X.astype(np.float64)), atol=1e-7)
    assert np.array_equal(head.labels_, y)


def test_three_neighbours_make_no_certainty():
    X, y = birds(k=2, noise=0.1)
    assert knn(3).fit(X, y).predict_proba(X).max() == pytest.approx((3 + 0.5) / 4)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_the_gpu_chooses_the_same_number():
    X, y = birds(noise=3)
    for keywords in ({}, {"X_val": X[:20], "y_val": y[:20]}, {"groups": np.arange(120) // 2}):
        cpu, gpu = (KNNHead(device=device).fit(X, y, **keywords) for device in ("cpu", "cuda"))
        assert gpu.cv_results_ == cpu.cv_results_
        assert np.array_equal(gpu.predict_proba(X), cpu.predict_proba(X))
