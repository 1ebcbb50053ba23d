"""Tests of featx.heads.logistic and its solver."""

import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import featx.heads.base
import featx.heads.solver
import featx.heads.spaces
import featx.heads.standardised
from featx.errors import InputError
from featx.folds import cross_validation_folds
from featx.heads import C_GRID, DINOV2_C_GRID, LogisticHead
from featx.heads.base import learn_standardisation
from featx.heads.loss import LogLoss
from featx.heads.solver import Problem
from featx.heads.spaces import FeatureSpace, SpanSpace, leading_axes
from featx.heads.standardised import FeatureRows, WorkingRows, gram


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


def objective(head, X, y):
    """The objective as the docstring defines it, divided by C and the number of rows."""
    penalty = (head.coef_**2).sum() / (2 * head.C_ * len(X))
    return log_loss(y, head.predict_proba(X)) + penalty


@pytest.mark.parametrize("small_work", [50_000_000, 0], ids=["float64", "float32"])
@pytest.mark.parametrize("C", [1e3, 1e5])
def test_weak_penalties_are_solved_to_a_relative_gap_where_tol_would_stop_far_from_it(
    C, small_work, monkeypatch
):
    monkeypatch.setattr(featx.heads.solver, "_SMALL_WORK", small_work)
    X, y = deep_features(80, 200, 4)
    head = LogisticHead(C=C).fit(X, y)
    assert head.converged_
    assert head.gradient_norm_ <= head.enough_ < head.tol
    monkeypatch.setattr(featx.heads.solver, "_SMALL_WORK", 50_000_000)
    nearest = objective(LogisticHead(C=C, tol=1e-10).fit(X, y), X, y)
    assert nearest <= objective(head, X, y) < (1 + 1e-4) * nearest


def test_a_fit_that_ends_at_a_weak_penalty_before_the_gap_is_reached_is_told():
    X, y = deep_features(80, 200, 4)
    with pytest.warns(ConvergenceWarning, match=r"above \d\.\de-\d\d, tol at so large a C; raise"):
        head = LogisticHead(C=1e5, max_iter=5).fit(X, y)
    assert not head.converged_


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
        LogisticHead(C=1.0, tol=1e-18).fit(X, y)


def test_fits_that_chose_c_and_stopped_early_are_told():
    X, y = deep_features(100, 20, 4)
    with pytest.warns(ConvergenceWarning) as told:
        head = LogisticHead(cs=(1e-4, 100.0), max_iter=8).fit(X, y)
    assert any("the fits that chose C did not converge" in str(w.message) for w in told)
    assert head.cv_results_["converged"] == [True, False]


@pytest.mark.parametrize("shape", [(300, 60), (60, 300)])
def test_leading_axes_save_most_iterations(monkeypatch, shape):
    n, d = shape
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(d, d)) * (np.arange(1, d + 1) ** -1.5)[:, None]  # strongly correlated
    y = np.arange(n) % 4
    X = (rng.normal(size=(n, d)) + 0.5 * rng.normal(size=(4, d))[y]) @ mix
    ours = LogisticHead(C=1.0).fit(X, y)
    monkeypatch.setattr(featx.heads.spaces.Space, "precondition", lambda self, g, *_: g)
    plain = LogisticHead(C=1.0).fit(X, y)
    assert ours.n_iter_ < 0.3 * plain.n_iter_
    assert np.allclose(ours.coef_, plain.coef_, atol=1e-3)


def problem(X, y, *, others=None):
    mean, scale = learn_standardisation(X)
    return Problem(
        FeatureRows(X, None, mean, scale),
        y,
        np.ones(len(X)),
        n_classes=y.max() + 1,
        intercept=True,
        device="cpu",
        others=None if others is None else FeatureRows(others, None, mean, scale),
    )


@pytest.mark.parametrize("d", [20, 200])
def test_products_in_float32_reach_what_float64_reaches(monkeypatch, d):
    X, y = deep_features(80, d, 4)
    exact = LogisticHead(C=1.0, tol=1e-10).fit(X, y)
    monkeypatch.setattr(featx.heads.solver, "_SMALL_WORK", 0)
    assert problem(X, y).space.dtype == torch.float32
    head = LogisticHead(C=1.0, tol=1e-10).fit(X, y)
    assert head.converged_
    assert objective_gradient(head, X, y) == pytest.approx(head.gradient_norm_, rel=1e-2)
    assert np.allclose(head.coef_, exact.coef_, atol=1e-8)
    # It is the refinement that reaches it, and without it what is told is still the truth.
    monkeypatch.setattr(featx.heads.solver, "_MAX_ANCHORS", 0)
    with pytest.warns(ConvergenceWarning, match=r"above tol=1.0e-10"):
        head = LogisticHead(C=1.0, tol=1e-10).fit(X, y)
    assert objective_gradient(head, X, y) == pytest.approx(head.gradient_norm_, rel=1e-3)


@pytest.mark.parametrize("d", [12, 150])
@pytest.mark.parametrize("together", [3, 9])
def test_values_of_c_side_by_side_give_what_one_after_another_gives(d, together):
    X, y = deep_features(90, d, 3, noise=2)
    Cs = [10.0**power for power in range(-4, 5)]
    whole = problem(X, y)
    alone = list(whole.path(Cs, 1e-8, 1000, together=1))
    beside = list(whole.path(Cs, 1e-8, 1000, together=together))
    assert max(s.gradient_norm for s in alone + beside) <= 1e-8
    assert len({s.n_iter for s in beside}) > 3  # each ends when it is done, not with the last
    for a, b in zip(alone, beside, strict=True):
        W, V = whole.space.weights(a.x)[0], whole.space.weights(b.x)[0]
        assert (W - V).norm() < 1e-3 * W.norm()
    assert list(whole.path(Cs, 1e-8, 2, together=9))[-1].gradient_norm > 1e-8  # it says so


def test_the_choice_of_c_is_the_same_side_by_side(monkeypatch):
    X, y = deep_features(100, 12, 3, noise=2)
    one_by_one = LogisticHead().fit(X, y)
    monkeypatch.setattr(LogisticHead, "_together", 7)
    beside = LogisticHead().fit(X, y)
    assert beside.C_ == one_by_one.C_
    assert beside.cv_results_["accuracy"] == pytest.approx(one_by_one.cv_results_["accuracy"])
    assert beside.cv_results_["log_loss"] == pytest.approx(
        one_by_one.cv_results_["log_loss"], rel=1e-2
    )


def test_the_path_starts_each_c_from_the_one_before():
    X, y = deep_features(200, 20, 4)
    Cs = [10.0 ** (power / 4) for power in range(-8, 5)]
    whole = problem(X, y)
    onward = sum(s.n_iter for s in whole.path(Cs, 1e-6, 1000))
    cold = sum(whole.solve([C], 1e-6, 1000)[0].n_iter for C in Cs)
    warm, last = 0, []
    for C in Cs:
        last = whole.solve([C], 1e-6, 1000, path=last)
        warm += last[0].n_iter
    assert warm < 0.9 * cold
    assert onward < 0.9 * warm  # and in the direction of the two before


def test_a_path_goes_on_where_no_step_is_found_in_the_direction_of_the_two_before(monkeypatch):
    X, y = deep_features(100, 20, 4)
    monkeypatch.setattr(featx.heads.solver, "_FLATTER_ONWARD", -1.0)  # none is ever flat enough
    found = list(problem(X, y).path([0.1, 1.0, 10.0], 1e-6, 1000))
    assert max(s.gradient_norm for s in found) <= 1e-6


def test_the_gradient_at_the_start_of_a_penalty_is_that_of_the_one_before_and_its_change():
    X, y = deep_features(200, 20, 4)
    whole = problem(X, y)
    before, start = whole.path([0.1, 1.0], 1e-4, 1000)
    known = whole._begin([3.0, 5.0], start, None)
    fresh = whole._begin([3.0, 5.0], replace(start, gradient=None), None)
    assert torch.allclose(known.gradient, fresh.gradient, rtol=0, atol=1e-14)
    assert before.penalty == 10 * start.penalty == pytest.approx(1 / (200 * 0.1))


def test_an_iteration_costs_two_products_with_the_features(monkeypatch):
    X, y = deep_features(200, 20, 4)
    whole, calls = problem(X, y), []
    for name in ("products", "sums"):
        real = getattr(WorkingRows, name)
        monkeypatch.setattr(
            WorkingRows,
            name,
            lambda self, *a, name=name, real=real: (calls.append(name), real(self, *a))[1],
        )
    trials = []
    real_at = LogLoss.at
    monkeypatch.setattr(LogLoss, "at", lambda *a: (trials.append(1), real_at(*a))[1])
    solution = whole.solve([10.0], 1e-6, 1000)[0]
    assert calls.count("products") == solution.n_iter > 10
    assert calls.count("sums") == solution.n_iter + 1
    assert len(trials) > solution.n_iter + 1  # more steps were tried than iterations made


@pytest.mark.parametrize("intercept", [True, False])
def test_in_the_span_of_the_rows_and_on_the_features_the_weights_are_the_same(
    monkeypatch, intercept
):
    X, y = deep_features(60, 150, 3)
    head = LogisticHead(cs=(0.01, 1.0), tol=1e-9, fit_intercept=intercept)
    span = clone(head).fit(X, y)
    monkeypatch.setattr(SpanSpace, "fits", lambda n, dtype: False)
    assert isinstance(problem(X, y).space, FeatureSpace)
    features = clone(head).fit(X, y)
    assert np.allclose(span.coef_, features.coef_, atol=1e-6)
    assert span.cv_results_["log_loss"] == pytest.approx(features.cv_results_["log_loss"], rel=1e-2)
    monkeypatch.setattr(featx.heads.spaces, "_MAX_COVARIANCE", 0)
    assert np.allclose(clone(head).fit(X, y).coef_, features.coef_, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_rows_that_are_not_held_give_the_same_bits(monkeypatch, dtype):
    X, y = deep_features(100, 12, 3)
    monkeypatch.setattr(featx.heads.base, "_BLOCK_BYTES", 7 * 12 * 8)
    held = LogisticHead(cs=(0.1, 1.0)).fit(X.astype(dtype), y)
    monkeypatch.setattr(featx.heads.standardised, "_HELD_BYTES", 0)
    mean, scale = learn_standardisation(X)
    assert WorkingRows(FeatureRows(X, None, mean, scale), torch.float64, "cpu")._held is None
    streamed = LogisticHead(cs=(0.1, 1.0)).fit(X.astype(dtype), y)
    assert np.array_equal(held.coef_, streamed.coef_)
    assert held.cv_results_ == streamed.cv_results_


def test_products_in_parts_of_blocks_are_those_with_all_rows(monkeypatch):
    X, _ = deep_features(100, 12, 3)
    rows = FeatureRows(X, None, *learn_standardisation(X))
    monkeypatch.setattr(featx.heads.base, "_BLOCK_BYTES", 40 * 12 * 8)
    monkeypatch.setattr(featx.heads.standardised, "_PRODUCT_BYTES", 8 * 6 * 15)
    working = WorkingRows(rows, torch.float64, "cpu")
    assert [len(Z) for _, Z in working._parts(6)] == [15, 15, 10, 15, 15, 10, 15, 5]
    Z = torch.from_numpy((X.astype(np.float64) - rows.mean) / rows.scale)
    generator = torch.Generator().manual_seed(0)
    W = torch.randn((2, 3, 12), generator=generator, dtype=torch.float64)
    factors, less = torch.randn((2, 2, 3, 100), generator=generator, dtype=torch.float64)
    out = torch.empty((2, 3, 100), dtype=torch.float64)
    assert working.products(W, out) is out
    assert torch.allclose(out, W @ Z.T, rtol=0, atol=1e-12)
    assert torch.allclose(working.products(W), W @ Z.T, rtol=0, atol=1e-12)
    assert torch.allclose(working.sums(factors), factors @ Z, rtol=0, atol=1e-11)
    assert torch.allclose(working.sums(factors, less), (factors - less) @ Z, rtol=0, atol=1e-11)


def test_a_gram_matrix_by_tiles_and_blocks_is_the_product(monkeypatch):
    X, _ = deep_features(50, 33, 3)
    mean, scale = learn_standardisation(X)
    rows, others = np.arange(0, 50, 2), np.arange(1, 30, 2)
    monkeypatch.setattr(featx.heads.standardised, "_TILE", 4)
    monkeypatch.setattr(featx.heads.standardised, "_COLUMN_BYTES", 8 * 40 * 5)
    K, cross = gram(
        FeatureRows(X, rows, mean, scale),
        FeatureRows(X, others, mean, scale),
        torch.float64,
        "cpu",
    )
    Z = (X.astype(np.float64) - mean) / scale
    assert np.allclose(K, Z[rows] @ Z[rows].T)
    assert np.allclose(cross, Z[others] @ Z[rows].T)
    K, cross = gram(FeatureRows(X, None, mean, scale), None, torch.float64, "cpu")
    assert np.allclose(K, Z @ Z.T)
    assert cross.shape == (0, 50)


@pytest.mark.parametrize("rank", [200, 30])
def test_leading_axes_of_a_large_matrix_are_its_eigenvectors(monkeypatch, rank):
    generator = torch.Generator().manual_seed(1)
    Q = torch.linalg.qr(torch.randn((200, 200), generator=generator, dtype=torch.float64)).Q
    values = 1 / torch.arange(1, 201, dtype=torch.float64) ** 2
    values[rank:] = 0
    A = (Q * values) @ Q.T
    monkeypatch.setattr(featx.heads.spaces, "_MAX_EXACT", 10)
    axes = leading_axes(A.__matmul__, 200, A)
    q = len(axes.values)
    assert q == min(rank, 32)
    assert torch.allclose(axes.values.flip(0)[:20], values[:20], rtol=1e-6)
    assert torch.allclose(axes.vectors.T @ axes.vectors, torch.eye(q, dtype=A.dtype), atol=1e-9)
    assert torch.allclose(axes.images, A @ axes.vectors, atol=1e-12)
    assert axes.rest == axes.values.min() > 0


CHILD = """
import sys
import numpy as np
import featx.heads.base, featx.heads.standardised
from featx.heads import LogisticHead
from featx.memory import peak_memory_bytes

n, d = 300, 100_000  # 120 MB
featx.heads.base._BLOCK_BYTES = featx.heads.standardised._COLUMN_BYTES = 1 << 20
rng = np.random.default_rng(0)
y = np.arange(n) % 3
X = np.empty((n, d), np.float32)
for i in range(n):
    X[i] = rng.random(d, np.float32) + 0.02 * y[i]
LogisticHead(C=1e-4, device="cpu").fit(X[:50, :60], y[:50])  # what torch takes for itself
before = peak_memory_bytes()
LogisticHead(cs=(1e-5, 1e-4), cv=2, device="cpu").fit(X, y)
print((peak_memory_bytes() - before) / X.nbytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads VmHWM")
def test_with_more_features_than_rows_a_fit_takes_less_than_half_the_size_of_x():
    ended = subprocess.run(
        [sys.executable, "-c", CHILD], capture_output=True, text=True, check=True
    )
    assert float(ended.stdout) < 0.5


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


def test_the_losses_that_choose_c_are_those_of_converged_fits():
    X, y = deep_features(200, 80, 5, noise=0.7)
    rows, cs = {"X_val": X[100:], "y_val": y[100:]}, (1.0, 10.0, 100.0, 1e3, 1e5)
    head = LogisticHead(cs=cs).fit(X[:100], y[:100], **rows)
    tight = [log_loss(y[100:], theirs(X[:100], y[:100], C).predict_proba(X[100:])) for C in cs]
    assert head.cv_results_["log_loss"] == pytest.approx(tight, rel=0.01)


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


def test_dinov2s_grid_is_dinov2s():
    X, y = deep_features(60, 10, 3)
    head = LogisticHead(cs="dinov2", cv=2).fit(X, y)
    assert head.cv_results_["C"] == list(DINOV2_C_GRID)
    # dinov2/eval/log_regression.py: C_POWER_RANGE = torch.linspace(-6, 5, 45)
    assert np.allclose(np.log10(DINOV2_C_GRID), np.linspace(-6, 5, 45), atol=1e-12)


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
