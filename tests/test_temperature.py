"""Temperature scaling: the least log-loss there is, and no image's classes in another order."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from scipy.stats import chi2
from sklearn.metrics import log_loss

import featx.temperature
from featx.errors import InputError
from featx.temperature import (
    BOUNDS,
    at_temperature,
    fit_temperature,
    temperature_interval,
)


def drawn(n: int = 4000, k: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are calibrated as they are, and classes drawn from them."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(n, k))
    y = (rng.random((n, 1)) > softmax(logits, axis=1).cumsum(axis=1)).sum(axis=1)
    return logits, y


@pytest.mark.parametrize("true", [0.4, 1.0, 3.0])
def test_the_temperature_that_spoilt_the_logits_is_found(true: float) -> None:
    logits, y = drawn()
    assert fit_temperature(logits * true, y) == pytest.approx(true, rel=0.05)


def test_no_other_temperature_has_a_smaller_log_loss() -> None:
    logits, y = drawn(n=200)
    logits *= 2.5
    best = fit_temperature(logits, y)

    def loss(temperature: float) -> float:
        return log_loss(y, softmax(logits / temperature, axis=1), labels=range(5))

    assert loss(best) < loss(1.0)
    grid = np.geomspace(*BOUNDS, 2001)
    assert all(loss(best) <= loss(t) + 1e-12 for t in grid)
    assert loss(best) < min(loss(best * 0.999), loss(best * 1.001))


def test_logarithms_of_probabilities_are_as_good_as_logits() -> None:
    logits, y = drawn(n=300)
    shifted = fit_temperature(log_softmax(logits, axis=1), y)
    assert shifted == pytest.approx(fit_temperature(logits, y), rel=1e-6)


def test_it_does_not_depend_on_how_the_rows_are_cut_into_blocks(monkeypatch) -> None:
    logits, y = drawn(n=301)
    whole = fit_temperature(logits, y)
    monkeypatch.setattr(featx.temperature, "_BLOCK", 64)
    assert fit_temperature(logits, y) == pytest.approx(whole, rel=1e-9)


def test_rows_that_are_all_right_say_nothing_of_how_sure_is_too_sure() -> None:
    logits, _ = drawn(n=50)
    assert fit_temperature(logits, logits.argmax(axis=1)) == 1.0


def test_a_class_of_probability_0_stays_so_and_does_not_count_where_it_is_the_true_one() -> None:
    logits, y = drawn(n=300)
    logits[:, 4] = -np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fit_temperature(logits, y)
    possible = y != 4
    assert not possible.all()
    assert found == pytest.approx(fit_temperature(logits[possible], y[possible]), rel=1e-6)
    assert found == pytest.approx(fit_temperature(logits[possible, :4], y[possible]), rel=1e-6)
    assert (at_temperature(softmax(logits, axis=1), found)[:, 4] == 0).all()
    assert fit_temperature([[0.0, -np.inf]], [1]) == 1.0


def test_an_interval_covers_the_true_temperature_about_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(200):
        logits, y = drawn(n=80, k=3, seed=seed)
        found = fit_temperature(logits, y)
        low, high = temperature_interval(logits, y, found)
        assert low < found < high
        covered += low <= 1 <= high
    assert 180 <= covered <= 198


def test_an_interval_ends_where_twice_the_loss_has_grown_by_chi_squares_percentile() -> None:
    logits, y = drawn(n=100)
    found = fit_temperature(logits, y)

    def loss(temperature: float) -> float:
        return log_loss(y, softmax(logits / temperature, axis=1), labels=range(5), normalize=False)

    for end in temperature_interval(logits, y, found):
        assert 2 * (loss(end) - loss(found)) == pytest.approx(chi2.ppf(0.95, 1), rel=1e-4)
    assert temperature_interval([[1.0, 0.0]] * 3, [0, 0, 1], 2.0)[1] == pytest.approx(BOUNDS[1])


@pytest.mark.parametrize("temperature", [0.05, 0.7, 1.0, 1.9, 40.0])
def test_probabilities_at_a_temperature_are_softmax_of_divided_logits(temperature: float) -> None:
    logits, _ = drawn(n=200)
    found = at_temperature(softmax(logits, axis=1), temperature)
    np.testing.assert_allclose(found, softmax(logits / temperature, axis=1), rtol=1e-9, atol=1e-300)
    np.testing.assert_allclose(found.sum(axis=1), 1)


def test_the_classes_of_an_image_keep_their_order() -> None:
    logits, _ = drawn(n=500, k=30)
    p = softmax(4 * logits, axis=1)
    order = np.argsort(p, axis=1, kind="stable")
    for temperature in (0.3, 1.7, 8.0):
        found = np.take_along_axis(at_temperature(p, temperature), order, axis=1)
        assert (np.diff(found, axis=1) >= 0).all()
        assert np.array_equal(at_temperature(p, temperature).argmax(axis=1), p.argmax(axis=1))


def test_at_1_nothing_changes_and_the_argument_never_does() -> None:
    p = softmax(drawn(n=20)[0], axis=1)
    before = p.copy()
    assert np.array_equal(at_temperature(p, 1.0), p)
    at_temperature(p, 2.0)
    assert np.array_equal(p, before)
    assert at_temperature(np.empty((0, 3)), 2.0).shape == (0, 3)


@pytest.mark.parametrize(
    ("logits", "y", "message"),
    [
        ([], [], r"a matrix \(n, k\) of at least one row, got shape \(0,\)"),
        ([[0.0, 1.0]], [0, 1], r"y must be 1 class numbers.* got an array of shape \(2,\)"),
        ([[0.0, 1.0]], [0.5], "y must be 1 class numbers"),
        ([[0.0, 1.0]], [2], "class numbers from 0 to 1, got 2 to 2"),
        ([[0.0, np.nan]], [0], "numbers or -inf"),
        ([[0.0, np.inf]], [0], "numbers or -inf"),
        ([[-np.inf, -np.inf]], [0], "at least one of a row a number"),
    ],
)
def test_what_no_temperature_can_be_fitted_on_is_refused(logits, y, message) -> None:
    with pytest.raises(InputError, match=message):
        fit_temperature(logits, y)


@pytest.mark.parametrize("temperature", [0.0, -1.0, np.nan, np.inf])
def test_a_temperature_is_a_number_above_0(temperature: float) -> None:
    with pytest.raises(InputError, match="must be a number above 0, got"):
        at_temperature([[0.5, 0.5]], temperature)
