"""Tests of featx.heads.centroid."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import StandardScaler, normalize

import featx.heads.base
from featx.folds import cross_validation_folds
from featx.heads import CentroidHead


def birds(n=90, d=12, k=3, seed=0, noise=2.0):
    rng = np.random.default_rng(seed)
    y = np.r_[np.arange(k), rng.integers(0, k, n - k)]
    X = np.random.default_rng(9).normal(size=(k, d))[y] + noise * rng.normal(size=(n, d))
    return (X * rng.uniform(0.1, 50, d) + rng.normal(0, 20, d)).astype(np.float32), y


def centroid(metric="euclidean", **keywords):
    return CentroidHead(metric, device="cpu", **keywords)


each_metric = pytest.mark.parametrize("metric", ["euclidean", "cosine"])


def scores(Z, means, metric):
    """Minus half the squared distance, or the cosine, in so many words."""
    if metric == "cosine":
        return normalize(Z) @ normalize(means).T
    return -((Z[:, None] - means[None]) ** 2).sum(axis=2) / 2


def softmax(logits):
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def test_the_nearest_class_mean_is_scikit_learns():
    X, y = birds()
    other, _ = birds(300, seed=1)
    scaler = StandardScaler().fit(X.astype(np.float64))
    theirs = NearestCentroid().fit(scaler.transform(X.astype(np.float64)), y)
    head = centroid().fit(X, y)
    assert np.allclose(head.means_, theirs.centroids_)
    other = other.astype(np.float64)
    assert np.array_equal(head.predict(other), theirs.predict(scaler.transform(other)))


@each_metric
def test_probabilities_are_the_softmax_of_distances_over_the_temperature(metric):
    X, y = birds()
    head = centroid(metric).fit(X, y)
    Z = StandardScaler().fit_transform(X.astype(np.float64))
    means = np.stack([Z[y == c].mean(axis=0) for c in range(3)])
    expected = softmax(scores(Z, means, metric) / head.temperature_)
    assert np.allclose(head.predict_proba(X), expected, atol=1e-9)


def one_more_loss(scores, y, temperature):
    p = softmax(scores / temperature)
    return -np.log(p[np.arange(len(y)), y]).mean() - np.log(p).mean() / len(y)


def is_best(scores, y, temperature):
    tried = min(one_more_loss(scores, y, t) for t in temperature * np.geomspace(0.2, 5, 300))
    return one_more_loss(scores, y, temperature) <= tried + 1e-6


@each_metric
def test_the_temperature_is_fitted_with_every_row_out_of_its_own_mean(metric):
    X, y = birds()
    y[0] = 7  # alone in its class: it cannot be left out
    head = centroid(metric).fit(X, y)
    Z = StandardScaler().fit_transform(X.astype(np.float64))
    numbers = np.searchsorted(head.classes_, y)
    left_out = np.empty((90, 4))
    for i in range(1, 90):
        means = [Z[(numbers == c) & (np.arange(90) != i)].mean(axis=0) for c in range(4)]
        left_out[i] = scores(Z[i : i + 1], np.stack(means), metric)[0]
    assert head.accuracy_ == pytest.approx((left_out[1:].argmax(axis=1) == numbers[1:]).mean())
    assert is_best(left_out[1:], numbers[1:], head.temperature_)
    assert head.chosen_on_ == "leave-one-out"


@each_metric
def test_groups_are_taken_out_in_folds_that_part_none(metric):
    X, y = birds(80)
    groups = np.r_[0, 0, np.arange(1, 40).repeat(2)]
    y[:2] = 5  # a class in one group only
    head = centroid(metric, cv=4).fit(X, y, groups=groups)
    Z = StandardScaler().fit_transform(X.astype(np.float64))
    numbers = np.searchsorted(head.classes_, y)
    found, true = [], []
    for train, val in cross_validation_folds(numbers, n_folds=4, groups=groups):
        known = np.unique(numbers[train])
        means = np.stack([Z[train][numbers[train] == c].mean(axis=0) for c in known])
        near = scores(Z[val], means, metric)
        near -= scores(Z[val], np.zeros((1, 12)), metric)
        everything = np.repeat(near.min(axis=1, keepdims=True), 4, axis=1)
        everything[:, known] = near
        found.append(everything)
        true.append(numbers[val])
    found, true = np.concatenate(found), np.concatenate(true)
    assert head.accuracy_ == pytest.approx((found.argmax(axis=1) == true).mean())
    assert is_best(found, true, head.temperature_)
    assert head.chosen_on_ == "4-fold cross-validation"


def test_validation_rows_fit_the_temperature_where_there_are_some():
    X, y = birds()
    X_val, y_val = birds(60, seed=1)
    head = centroid().fit(X, y, X_val=X_val, y_val=y_val)
    scaler = StandardScaler().fit(X.astype(np.float64))
    found = scores(scaler.transform(X_val.astype(np.float64)), head.means_, "euclidean")
    assert is_best(found, y_val, head.temperature_)
    assert head.accuracy_ == head.score(X_val, y_val)
    assert head.chosen_on_ == "validation rows"


def test_where_no_row_can_be_left_out_the_temperature_is_one():
    head = centroid().fit(np.eye(3), [0, 1, 2])
    assert (head.temperature_, head.accuracy_, head.chosen_on_) == (1.0, None, "nothing")


@each_metric
def test_small_blocks_change_nothing(metric, monkeypatch):
    X, y = birds()
    groups = np.arange(90) // 2
    before = centroid(metric).fit(X, y), centroid(metric).fit(X, y, groups=groups)
    monkeypatch.setattr(featx.heads.base, "_BLOCK_BYTES", 7 * 12 * 8)
    after = centroid(metric).fit(X, y), centroid(metric).fit(X, y, groups=groups)
    for a, b in zip(before, after, strict=True):
        assert np.allclose(a.means_, b.means_, atol=1e-12)
        assert a.temperature_ == pytest.approx(b.temperature_, rel=1e-6)
        assert a.accuracy_ == b.accuracy_


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@each_metric
def test_the_gpu_finds_the_same_means(metric):
    X, y = birds()
    for keywords in ({}, {"X_val": X[:20], "y_val": y[:20]}, {"groups": np.arange(90) // 2}):
        cpu, gpu = (
            CentroidHead(metric, device=device).fit(X, y, **keywords) for device in ("cpu", "cuda")
        )
        assert np.allclose(gpu.means_, cpu.means_, atol=1e-12)
        assert gpu.accuracy_ == cpu.accuracy_
        assert gpu.temperature_ == pytest.approx(cpu.temperature_, rel=1e-3)
