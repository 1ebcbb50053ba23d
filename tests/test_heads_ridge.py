"""Tests of featx.heads.ridge, featx.heads.spectrum and featx.heads.temperature."""

import tracemalloc

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge, RidgeClassifier, RidgeClassifierCV
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import featx.heads.base
import featx.heads.spectrum
from featx.errors import InputError
from featx.folds import cross_validation_folds
from featx.heads import ALPHA_GRID, RidgeHead
from featx.heads.temperature import smoothed_temperature

SHAPES = [(90, 12, 4), (40, 70, 3), (60, 8, 2), (30, 50, 2)]
each_shape = pytest.mark.parametrize(("n", "d", "k"), SHAPES)


def birds(n, d, k, seed=0, noise=1.5):
    """Classes of different sizes; columns of different scales, far from 0."""
    rng = np.random.default_rng(seed)
    y = np.sort(rng.integers(0, k, n) % rng.integers(1, k + 1, n))
    y[:2], y[-2:] = 0, k - 1
    y = rng.permutation(y)
    X = rng.normal(size=(k, d))[y] + noise * rng.normal(size=(n, d))
    return (X * rng.uniform(0.1, 50, d) + rng.normal(0, 20, d)).astype(np.float32), y


def ridge(**keywords):
    return RidgeHead(device="cpu", **keywords)


@each_shape
@pytest.mark.parametrize("alpha", [1e-2, 1.0, 1e3])
@pytest.mark.parametrize("class_weight", [None, "balanced", {0: 5.0, 1: 0.1}])
def test_the_coefficients_are_scikit_learns(n, d, k, alpha, class_weight):
    X, y = birds(n, d, k)
    ours = ridge(alpha=alpha, class_weight=class_weight).fit(X, y)
    scaler = StandardScaler().fit(X.astype(np.float64))
    Z = scaler.transform(X.astype(np.float64))
    theirs = RidgeClassifier(alpha=alpha, class_weight=class_weight, solver="cholesky").fit(Z, y)
    coef = np.atleast_2d(theirs.coef_)
    assert ours.coef_.shape == coef.shape
    assert np.allclose(ours.coef_, coef, rtol=0, atol=1e-8 * np.abs(coef).max())
    assert np.allclose(ours.intercept_, theirs.intercept_, atol=1e-8)
    other, _ = birds(300, d, k, seed=1)
    assert np.array_equal(ours.predict(other), theirs.predict(scaler.transform(other)))


@pytest.mark.parametrize(("n", "d"), [(90, 12), (40, 70)])
def test_features_as_they_are_give_scikit_learns_coefficients_too(n, d):
    X, y = birds(n, d, 3)
    ours = ridge(alpha=5.0, standardise=False, class_weight="balanced").fit(X, y)
    theirs = RidgeClassifier(alpha=5.0, class_weight="balanced", solver="svd")
    theirs.fit(X.astype(np.float64), y)
    assert np.allclose(ours.coef_, theirs.coef_, atol=1e-8 * np.abs(theirs.coef_).max())
    assert np.allclose(ours.intercept_, theirs.intercept_, atol=1e-8)


@each_shape
@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_leave_one_out_is_as_if_every_row_had_been_left_out_by_itself(n, d, k, class_weight):
    X, y = birds(n, d, k)
    grid = (1e-3, 1.0, 300.0)
    ours = ridge(alphas=grid, class_weight=class_weight).fit(X, y)
    Z = StandardScaler().fit_transform(X.astype(np.float64))
    target = 2.0 * np.eye(k)[y] - 1
    sizes = np.bincount(y)
    weight = np.ones(n) if class_weight is None else (n / (k * sizes))[y]
    right, squares = np.zeros(3), np.zeros(3)
    testable = sizes[y] > 1
    for i in np.flatnonzero(testable):
        others = np.arange(n) != i
        for j, alpha in enumerate(grid):
            one = Ridge(alpha=alpha).fit(Z[others], target[others], sample_weight=weight[others])
            score = one.predict(Z[i : i + 1])[0]
            right[j] += score.argmax() == y[i]
            squares[j] += ((score - target[i]) ** 2).sum()
    n_tested = testable.sum()
    assert np.allclose(ours.cv_results_["accuracy"], right / n_tested)
    assert np.allclose(ours.cv_results_["squared_error"], squares / (n_tested * k), rtol=1e-7)
    assert ours.chosen_on_ == "leave-one-out"


def test_scikit_learns_leave_one_out_chooses_the_same_alpha():
    X, y = birds(200, 30, 5)
    ours = ridge().fit(X, y)
    Z = StandardScaler().fit_transform(X.astype(np.float64))
    alphas = ours.cv_results_["alpha"]
    theirs = RidgeClassifierCV(alphas=alphas, scoring="accuracy").fit(Z, y)
    best = max(ours.cv_results_["accuracy"])
    assert best == pytest.approx(theirs.best_score_)
    assert ours.cv_results_["accuracy"][alphas.index(theirs.alpha_)] == best
    errors = RidgeClassifierCV(alphas=alphas).fit(Z, y)  # its default: the least squared error
    assert errors.alpha_ == alphas[int(np.argmin(ours.cv_results_["squared_error"]))]


def test_among_equally_accurate_alphas_the_one_of_least_squared_error_is_taken():
    X, y = birds(80, 10, 3, noise=0.1)
    head = ridge().fit(X, y)
    accuracy, error = (np.array(head.cv_results_[name]) for name in ("accuracy", "squared_error"))
    equal = np.flatnonzero(accuracy == accuracy.max())
    assert len(equal) > 3
    assert head.alpha_ == head.cv_results_["alpha"][equal[error[equal].argmin()]]
    assert head.alpha_ != head.cv_results_["alpha"][equal[0]]


@pytest.mark.parametrize(("n", "d"), [(90, 12), (40, 70)])
def test_the_grid_follows_the_size_of_the_features(n, d):
    X, y = birds(n, d, 3)
    head = ridge().fit(X, y)
    mean = n * d / min(d, n - 1)  # standardised: the squares add up to n * d
    assert np.allclose(head.cv_results_["alpha"], np.array(ALPHA_GRID) * mean)
    raw = ridge(standardise=False)
    small, large = (raw.fit(X * scale, y).cv_results_ for scale in (1.0, 1024.0))
    assert np.allclose(np.array(small["alpha"]) * 2**20, large["alpha"])
    assert small["accuracy"] == large["accuracy"]


def test_validation_rows_choose_where_there_are_some():
    X, y = birds(120, 40, 3)
    train, val = np.arange(70), np.arange(70, 120)
    head = ridge().fit(X[train], y[train], X_val=X[val], y_val=y[val])
    scaler = StandardScaler().fit(X[train].astype(np.float64))
    Z = scaler.transform(X.astype(np.float64))
    theirs = [
        RidgeClassifier(alpha=a).fit(Z[train], y[train]).score(Z[val], y[val])
        for a in head.cv_results_["alpha"]
    ]
    assert np.allclose(head.cv_results_["accuracy"], theirs)
    assert head.chosen_on_ == "validation rows"
    few = ridge().fit(X[:35], y[:35], X_val=X[val], y_val=y[val])  # more features than rows
    Z = StandardScaler().fit(X[:35].astype(np.float64)).transform(X.astype(np.float64))
    theirs = [
        RidgeClassifier(alpha=a).fit(Z[:35], y[:35]).score(Z[val], y[val])
        for a in few.cv_results_["alpha"]
    ]
    assert np.allclose(few.cv_results_["accuracy"], theirs)


@pytest.mark.parametrize("d", [10, 60])
def test_where_rows_share_a_group_folds_choose_that_part_none(d):
    X, y = birds(60, d, 3)
    groups = np.arange(60) // 2
    y = y[groups * 2]  # a pair is of one class
    head = ridge(alphas=(0.1, 10.0), cv=4).fit(X, y, groups=groups)
    right = np.zeros(2)
    folds = cross_validation_folds(y, n_folds=4, groups=groups)
    for train, val in folds:
        assert not set(groups[train]) & set(groups[val])
        for j, alpha in enumerate((0.1, 10.0)):
            model = make_pipeline(StandardScaler(), RidgeClassifier(alpha=alpha))
            model.fit(X[train].astype(np.float64), y[train])
            right[j] += (model.predict(X[val]) == y[val]).sum()
    assert np.allclose(head.cv_results_["accuracy"], right / sum(len(val) for _, val in folds))
    assert head.chosen_on_ == "4-fold cross-validation"


def test_leave_one_out_would_leak_among_copies_and_is_not_used_for_them():
    X, _ = birds(40, 30, 2)
    y = np.random.default_rng(3).permutation(np.arange(40) % 2)  # labels that mean nothing
    X, y, groups = np.repeat(X, 3, axis=0), np.repeat(y, 3), np.repeat(np.arange(40), 3)
    assert max(ridge().fit(X, y).cv_results_["accuracy"]) > 0.9
    assert max(ridge().fit(X, y, groups=groups).cv_results_["accuracy"]) < 0.75
    alone = ridge().fit(X, y, groups=np.arange(120))  # no group of two rows
    assert alone.chosen_on_ == "leave-one-out"


def test_rows_that_no_fit_without_them_could_get_right_are_not_counted():
    X, y = birds(41, 6, 3, noise=0.05)
    y[0] = 9  # the only one of its class
    assert max(ridge().fit(X, y).cv_results_["accuracy"]) == 1


def test_nothing_to_choose_on_is_told_and_a_given_alpha_needs_nothing():
    X, y = np.eye(3), [0, 1, 2]
    with pytest.raises(InputError, match="alpha cannot be chosen: no class has two rows"):
        ridge().fit(X, y)
    head = ridge(alpha=1.0).fit(X, y)
    assert head.temperature_ == 1
    assert head.cv_results_ is None
    assert head.chosen_on_ == "nothing"
    assert head.predict(X).tolist() == y
    with pytest.raises(InputError, match="where rows share a group, two groups"):
        ridge().fit(np.eye(4), [0, 0, 1, 1], groups=[0, 0, 1, 1])


@pytest.mark.parametrize(("n", "d"), [(150, 12), (60, 90)])
def test_the_temperature_has_the_smallest_log_loss_of_the_left_out_scores(n, d):
    X, y = birds(n, d, 3, noise=2.5)
    head = ridge(alpha=30.0).fit(X, y)
    Z = StandardScaler().fit_transform(X.astype(np.float64))
    target = 2.0 * np.eye(3)[y] - 1
    scores = np.array(
        [
            Ridge(alpha=30.0).fit(np.delete(Z, i, 0), np.delete(target, i, 0)).predict(Z[i : i + 1])
            for i in range(n)
        ]
    )[:, 0]

    def loss(temperature):
        logits = scores / temperature
        p = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
        one_more = -np.log(p).mean()
        return log_loss(y, p) + one_more / n

    assert loss(head.temperature_) <= min(map(loss, np.geomspace(0.01, 100, 400))) + 1e-6


def test_probabilities_of_labels_that_mean_nothing_are_not_sure():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(100, 300)), np.arange(100) % 2
    head = ridge(alpha=1.0).fit(X, y)
    assert head.score(X, y) == 1  # more features than rows: all is learnt by heart
    assert head.predict_proba(rng.normal(size=(200, 300))).max() < 0.75


def test_scores_that_tell_nothing_apart_and_scores_that_tell_all():
    y = torch.arange(40) % 2
    assert smoothed_temperature(torch.zeros(40, 2, dtype=torch.float64), y) == 1
    perfect = 2 * torch.nn.functional.one_hot(y).double() - 1
    p_right = 1 / (1 + np.exp(-2 / smoothed_temperature(perfect, y)))
    assert p_right == pytest.approx(1 - 0.5 / 41, abs=1e-4)  # not certainty: 40 of 40 and one half


def test_temperatures_follow_the_scale_of_the_scores():
    rng = np.random.default_rng(0)
    y = torch.from_numpy(np.arange(90) % 3)
    scores = torch.from_numpy(rng.normal(size=(90, 3))) + torch.nn.functional.one_hot(y)
    one = smoothed_temperature(scores, y)
    assert smoothed_temperature(1000 * scores, y) == pytest.approx(1000 * one, rel=1e-6)
    assert smoothed_temperature(scores + 5, y) == pytest.approx(one, rel=1e-6)


@each_shape
def test_small_blocks_change_nothing(n, d, k, monkeypatch):
    X, y = birds(n, d, k)
    keywords = {"X_val": X[:20], "y_val": y[:20]}
    whole, whole_val = ridge().fit(X, y), ridge().fit(X, y, **keywords)
    monkeypatch.setattr(featx.heads.base, "_BLOCK_BYTES", 7 * d * 8)
    monkeypatch.setattr(featx.heads.spectrum, "_COLUMN_BYTES", 5 * n * 8)
    monkeypatch.setattr(featx.heads.spectrum, "_SCORED_ROWS", 3)
    for before, after in [
        (whole, ridge().fit(X, y)),
        (whole_val, ridge().fit(X, y, **keywords)),
    ]:
        assert after.cv_results_["accuracy"] == before.cv_results_["accuracy"]
        assert after.temperature_ == pytest.approx(before.temperature_, rel=1e-6)
        assert np.allclose(after.coef_, before.coef_, atol=1e-9)


@pytest.mark.parametrize(("n", "d"), [(30_000, 32), (32, 30_000)])
def test_the_features_are_never_copied_whole(n, d, monkeypatch):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(n, d)).astype(np.float16), np.arange(n) % 2
    monkeypatch.setattr(featx.heads.base, "_BLOCK_BYTES", 1 << 18)
    monkeypatch.setattr(featx.heads.spectrum, "_COLUMN_BYTES", 1 << 18)
    tracemalloc.start()
    try:
        ridge().fit(X, y)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < n * d * 8 / 2


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@each_shape
def test_the_gpu_finds_the_same_coefficients_and_leaves_out_the_same(n, d, k):
    X, y = birds(n, d, k)
    for keywords in ({}, {"X_val": X[:20], "y_val": y[:20]}, {"groups": np.arange(n) // 2}):
        cpu, gpu = (RidgeHead(device=device).fit(X, y, **keywords) for device in ("cpu", "cuda"))
        assert np.allclose(gpu.coef_, cpu.coef_, atol=1e-8)
        assert gpu.cv_results_["accuracy"] == cpu.cv_results_["accuracy"]
        assert gpu.temperature_ == pytest.approx(cpu.temperature_, rel=1e-3)
