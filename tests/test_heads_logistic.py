"""Tests of featx.heads.logistic and its solver."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import featx.heads.solver
from featx.errors import InputError
from featx.heads import C_GRID, LogisticHead
from featx.heads.solver import rotate
from featx.splits import cross_validation_folds


def deep_features(n, d, k, seed=0, noise=1.0):
    """Correlated, non-negative, of very different scales, as a network's are."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(d, d)) * (np.arange(1, d + 1) ** -0.7)[:, None]
    y = rng.permutation(np.arange(n) % k)
    Z = noise * rng.normal(size=(n, d)) + 0.5 * rng.normal(size=(k, d))[y]
    return (np.maximum(Z @ mix, 0) + 0.05 * rng.random((n, d))).astype(np.float32), y


def theirs(X, y, C, *, standardise=True, **keywords):
    scaler = StandardScaler(with_mean=standardise, with_std=standardise)
    model = LogisticRegression(C=C, tol=1e-9, max_iter=100_000, **keywords)
    return make_pipeline(scaler, model).fit(X.astype(np.float64), y)


@pytest.mark.parametrize(("n", "d", "k"), [(200, 20, 4), (60, 90, 3), (120, 15, 2), (40, 80, 2)])
@pytest.mark.parametrize("C", [1e-3, 1.0, 100.0])
def test_the_coefficients_are_scikit_learns(n, d, k, C):
    X, y = deep_features(n, d, k)
    ours, model = LogisticHead(C=C, tol=1e-7).fit(X, y), theirs(X, y, C)
    coef, intercept = model[-1].coef_, model[-1].intercept_
    assert ours.coef_.shape == coef.shape
    assert np.abs(ours.coef_ - coef).max() < 1e-3 * np.abs(coef).max()
    assert np.allclose(ours.intercept_, intercept, rtol=1e-3, atol=1e-3)
    other, _ = deep_features(500, d, k, seed=1)
    assert np.array_equal(ours.predict(other), model.predict(other))
    assert np.allclose(ours.predict_proba(other), model.predict_proba(other), atol=1e-3)
    assert np.allclose(
        ours.decision_function(other), model.decision_function(other), atol=1e-2, rtol=1e-3
    )


@pytest.mark.parametrize(
    "keywords",
    [
        {"fit_intercept": False},
        {"standardise": False},
        {"fit_intercept": False, "standardise": False},
        {"class_weight": "balanced"},
        {"class_weight": {0: 5.0, 1: 1.0, 2: 0.1}},
    ],
    ids=str,
)
def test_the_variants_are_scikit_learns_too(keywords):
    X, y = deep_features(150, 12, 3)
    X, y = X[(y > 0) | (np.arange(150) < 50)], y[(y > 0) | (np.arange(150) < 50)]
    ours = LogisticHead(C=0.5, tol=1e-7, **keywords).fit(X, y)
    model = theirs(X, y, 0.5, **keywords)[-1]
    assert np.abs(ours.coef_ - model.coef_).max() < 1e-3 * np.abs(model.coef_).max()
    assert np.allclose(ours.intercept_, model.intercept_, rtol=1e-3, atol=1e-4)


def objective_gradient(head, X, y):
    """The gradient as the docstring defines it, from the fitted attributes alone."""
    Z = (X - head.mean_) / head.scale_
    residual = head.predict_proba(X) - np.eye(len(head.classes_))[y]
    gW = residual.T @ Z / len(X) + head.coef_ / (head.C_ * len(X))
    return np.sqrt((gW**2).sum() + (residual.mean(axis=0) ** 2).sum())


@pytest.mark.parametrize("d", [20, 200])
def test_the_gradient_norm_that_is_told_is_the_gradients_norm_at_the_solution(d):
    X, y = deep_features(80, d, 4)
    head = LogisticHead(C=1.0).fit(X, y)
    assert head.converged_
    assert 0 < head.gradient_norm_ <= head.tol == 1e-6
    assert objective_gradient(head, X, y) == pytest.approx(head.gradient_norm_, rel=1e-3)


def test_a_solver_that_stopped_early_is_never_hidden():
    X, y = deep_features(100, 20, 4)
    with pytest.warns(ConvergenceWarning, match=r"after 3 iterations .* raise max_iter \(now 3\)"):
        head = LogisticHead(C=10.0, max_iter=3).fit(X, y)
    assert not head.converged_
    assert head.n_iter_ == 3
    assert head.gradient_norm_ > head.tol


def test_a_tolerance_below_float64_is_told_as_such():
    X, y = deep_features(100, 20, 4)
    with pytest.warns(ConvergenceWarning, match="float64 goes no further here; accept a larger"):
        LogisticHead(C=1.0, tol=1e-15).fit(X, y)


def test_fits_that_chose_c_and_stopped_early_are_told():
    X, y = deep_features(100, 20, 4)
    with pytest.warns(ConvergenceWarning) as told:
        head = LogisticHead(cs=(1e-4, 100.0), max_iter=8).fit(X, y)
    assert any("the fits that chose C did not converge" in str(w.message) for w in told)
    assert head.cv_results_["converged"] == [True, False]


def test_principal_axes_save_most_iterations(monkeypatch):
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(60, 60)) * (np.arange(1, 61) ** -1.5)[:, None]  # strongly correlated
    y = np.arange(300) % 4
    X = (rng.normal(size=(300, 60)) + 0.5 * rng.normal(size=(4, 60))[y]) @ mix
    rotated = LogisticHead(C=1.0).fit(X, y)
    monkeypatch.setattr(featx.heads.solver, "_MAX_ROTATED", 0)
    plain = LogisticHead(C=1.0).fit(X, y)
    assert rotated.n_iter_ < 0.3 * plain.n_iter_
    assert np.allclose(rotated.coef_, plain.coef_, atol=1e-3)


@pytest.mark.parametrize("shape", [(30, 8), (8, 30)])
def test_a_rotation_keeps_the_rows_and_gives_weights_back(shape):
    Z = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before = Z.clone()
    rotated = rotate(Z, centre=True)
    W = torch.randn(3, rotated.R.shape[1], dtype=torch.float64)
    assert rotated.R.shape[1] == min(shape[0] - 1, shape[1])  # centring takes one
    assert torch.allclose(
        rotated.R @ W.T, (before - rotated.shift) @ rotated.to_features(W).T, atol=1e-9
    )
    assert torch.allclose(rotated.to_features(W).norm(), W.norm())


def test_constant_and_repeated_features_do_no_harm():
    X, y = deep_features(80, 10, 3)
    X = np.hstack([X, X, np.full((80, 2), 7, np.float32)])
    head = LogisticHead(C=1.0).fit(X, y)
    assert head.converged_
    assert np.allclose(head.coef_[:, :10], head.coef_[:, 10:20], atol=1e-6)
    assert np.abs(head.coef_[:, 20:]).max() < 1e-9


def by_hand(X, y, parts, C):
    """Accuracy and log-loss over validation parts, each fold standardised and fitted alone."""
    p, truth = [], []
    for train, val in parts:
        p.append(theirs(X[train], y[train], C).predict_proba(X[val]))
        truth.append(y[val])
    p, truth = np.concatenate(p), np.concatenate(truth)
    return accuracy_score(truth, p.argmax(1)), log_loss(truth, p)


def check_choice(head, X, y, parts):
    grid = [0.001, 0.1, 10.0]
    accuracy, loss = zip(*(by_hand(X, y, parts, C) for C in grid), strict=True)
    assert head.cv_results_["C"] == grid
    assert head.cv_results_["accuracy"] == pytest.approx(accuracy, abs=0.011)
    assert head.cv_results_["log_loss"] == pytest.approx(loss, rel=0.01)
    best = max(range(3), key=lambda i: (accuracy[i], -loss[i]))
    assert grid[best] == head.C_


def test_c_is_chosen_by_cross_validation_with_each_fold_standardised_on_its_own():
    X, y = deep_features(100, 12, 3, noise=2)
    head = LogisticHead(cs=(10.0, 0.001, 0.1), cv=4, random_state=3).fit(X, y)
    check_choice(head, X, y, cross_validation_folds(y, n_folds=4, seed=3))


def test_c_is_chosen_on_validation_rows_where_there_are_some():
    X, y = deep_features(160, 12, 3, noise=2)
    head = LogisticHead(cs=(0.001, 0.1, 10.0)).fit(X[:100], y[:100], X_val=X[100:], y_val=y[100:])
    check_choice(head, X, y, [(np.arange(100), np.arange(100, 160))])
    alone = LogisticHead(C=head.C_).fit(X[:100], y[:100])
    assert np.array_equal(head.coef_, alone.coef_)  # validation rows choose, they do not train


def test_among_equally_accurate_c_the_smaller_log_loss_wins():
    X = np.repeat([[0.0], [1.0]], 20, axis=0)
    head = LogisticHead(cs=(0.01, 1.0, 100.0)).fit(X, np.repeat([0, 1], 20))
    assert head.cv_results_["accuracy"] == [1, 1, 1]
    assert head.C_ == 100.0


def test_groups_are_never_parted_when_c_is_chosen():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 6)
    y = np.arange(30)[groups] % 2
    X = rng.normal(size=(30, 60))[groups] + 0.01 * rng.normal(size=(180, 60))
    leaky = LogisticHead(cs=(1.0,)).fit(X, y)
    honest = LogisticHead(cs=(1.0,)).fit(X, y, groups=groups)
    assert leaky.cv_results_["accuracy"][0] == 1  # a group's other images give it away
    assert honest.cv_results_["accuracy"][0] < 0.75


def test_the_default_grid_goes_by_decades():
    X, y = deep_features(60, 10, 3)
    head = LogisticHead().fit(X, y)
    assert head.cv_results_["C"] == list(C_GRID)
    assert np.allclose(np.diff(np.log10(C_GRID)), 1)
    assert head.C_ in C_GRID


def test_a_given_c_is_not_chosen():
    head = LogisticHead(C=0.3).fit(*deep_features(60, 10, 3))
    assert (head.C_, head.cv_results_) == (0.3, None)


def test_classes_too_small_to_fold_are_still_learnt():
    X, y = deep_features(60, 10, 3)
    X, y = np.vstack([X, X[:1] + 50]), np.append(y, 9)
    head = LogisticHead(cs=(1.0, 10.0)).fit(X, y)
    assert head.predict(X[-1:]) == 9


def test_nothing_to_choose_c_on_is_told_with_the_way_out():
    with pytest.raises(InputError, match="or set the parameter yourself instead"):
        LogisticHead().fit(np.eye(3), [0, 1, 2])
    assert LogisticHead(C=1.0).fit(np.eye(3), [0, 1, 2]).predict(np.eye(3)).tolist() == [0, 1, 2]


def test_mps_has_no_float64_so_the_cpu_solves(monkeypatch):
    X, y = deep_features(60, 10, 3)
    monkeypatch.setattr(
        "featx.heads.logistic.resolve_device", lambda name: type("Device", (), {"name": "mps"})
    )
    head = LogisticHead(C=1.0, device="mps").fit(X, y)
    assert head.device_ == "cpu"
    assert head.converged_


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_the_gpu_finds_the_same_coefficients():
    X, y = deep_features(300, 50, 5)
    cpu, gpu = (LogisticHead(C=1.0, device=d, tol=1e-8).fit(X, y) for d in ("cpu", "cuda"))
    assert np.allclose(cpu.coef_, gpu.coef_, atol=1e-5)
    assert np.array_equal(cpu.predict(X), gpu.predict(X))


def test_no_warning_where_all_is_well():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LogisticHead().fit(*deep_features(90, 10, 3))
