"""Comparing classifiers on the same images: paired, exact, and corrected for many."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from featx.comparison import compare_accuracies, exchanged, holm, mcnemar
from featx.errors import InputError


def test_the_difference_is_that_of_the_accuracies_and_its_interval_is_paired() -> None:
    rng = np.random.default_rng(0)
    first = rng.random(400) < 0.9
    second = first.copy()
    second[:12] = ~second[:12]  # the two differ on twelve images only
    (pair,) = compare_accuracies(np.stack([first, second]), ["a", "b"])
    assert pair.accuracy.value == pytest.approx(first.mean() - second.mean())
    assert pair.only_first + pair.only_second == 12
    # Unpaired, the interval would be that of two samples of 400: more than 0.08 wide.
    assert pair.accuracy.low is not None
    assert pair.accuracy.high is not None
    assert 0 < pair.accuracy.high - pair.accuracy.low < 0.04
    assert pair.accuracy.low <= pair.accuracy.value <= pair.accuracy.high


def test_the_interval_has_the_width_that_statistics_says() -> None:
    rng = np.random.default_rng(1)
    right = rng.random((2, 2_000)) < [[0.8], [0.7]]
    (pair,) = compare_accuracies(right, ["a", "b"], bootstrap=4_000)
    per_image = right[0].astype(float) - right[1]
    expected = 2 * 1.96 * per_image.std() / np.sqrt(per_image.size)
    assert pair.accuracy.low is not None
    assert pair.accuracy.high is not None
    assert pair.accuracy.high - pair.accuracy.low == pytest.approx(expected, rel=0.1)


def test_mcnemar_is_the_exact_binomial_test_of_the_discordant_images() -> None:
    assert mcnemar(8, 1) == pytest.approx(2 * (1 + 9) / 2**9)
    assert mcnemar(30, 14) == pytest.approx(binomtest(14, 44).pvalue)
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 5) == 1.0


def test_p_values_are_corrected_for_all_pairs() -> None:
    rng = np.random.default_rng(2)
    right = rng.random((4, 300)) < [[0.9], [0.85], [0.8], [0.5]]
    pairs = compare_accuracies(right, list("abcd"), bootstrap=0)
    assert [(pair.first, pair.second) for pair in pairs] == [
        ("a", "b"), ("a", "c"), ("a", "d"), ("b", "c"), ("b", "d"), ("c", "d"),
    ]  # fmt: skip
    p = np.array([pair.p for pair in pairs])
    adjusted = np.array([pair.p_adjusted for pair in pairs])
    assert np.array_equal(adjusted, holm(p))
    smallest = int(p.argmin())
    assert adjusted[smallest] == min(1.0, 6 * p[smallest])
    assert (adjusted >= p).all()
    assert (adjusted > p).any()


def test_holm_steps_down_and_never_exceeds_one() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]


def test_even_where_nothing_differs_few_comparisons_raise_an_alarm() -> None:
    alarms = 0
    for seed in range(60):
        right = np.random.default_rng(seed).random((5, 200)) < 0.8
        pairs = compare_accuracies(right, list("abcde"), bootstrap=0)
        alarms += any(pair.p_adjusted < 0.05 for pair in pairs)
        assert any(pair.p < pair.p_adjusted for pair in pairs)
    assert alarms <= 6  # 3 are expected at most, and uncorrected it is more than 10


def test_draws_are_the_same_in_any_block(monkeypatch: pytest.MonkeyPatch) -> None:
    right = np.random.default_rng(3).random((3, 50)) < 0.7
    whole = compare_accuracies(right, list("abc"), bootstrap=100, seed=4)
    monkeypatch.setattr("featx.comparison._BLOCK", 300)
    assert compare_accuracies(right, list("abc"), bootstrap=100, seed=4) == whole
    assert compare_accuracies(right, list("abc"), bootstrap=100, seed=5) != whole


@pytest.mark.parametrize(
    ("right", "names", "words"),
    [
        (np.ones((2, 3)), ["a", "b"], "must be bool of shape"),
        (np.ones((2, 3), bool), ["a"], r"shape \(1, n\), one row for each name"),
        (np.ones((1, 3), bool), ["a"], "at least two classifiers"),
        (np.ones((2, 0), bool), ["a", "b"], "one image"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    right: np.ndarray, names: list[str], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        compare_accuracies(right, names)


def test_of_two_that_always_answer_alike_no_interval_is_told() -> None:
    right = np.array([[True] * 30, [True] * 30])
    (pair,) = compare_accuracies(right, ["a", "b"], bootstrap=100)
    assert (pair.accuracy.value, pair.accuracy.low, pair.accuracy.high) == (0, None, None)


def test_no_draws_no_interval() -> None:
    (pair,) = compare_accuracies(np.eye(2, dtype=bool), ["a", "b"], bootstrap=0)
    assert pair.accuracy.low is None
    with pytest.raises(InputError, match="0 or more draws"):
        compare_accuracies(np.eye(2, dtype=bool), ["a", "b"], bootstrap=-1)


def test_copies_in_one_group_are_no_more_evidence() -> None:
    rng = np.random.default_rng(3)
    right = rng.random((2, 40)) < [[0.9], [0.7]]
    (once,) = compare_accuracies(right, ["a", "b"], bootstrap=500)
    copies = np.tile(right, (1, 5))
    (grouped,) = compare_accuracies(
        copies, ["a", "b"], groups=np.tile(np.arange(40), 5), bootstrap=500
    )
    (single,) = compare_accuracies(copies, ["a", "b"], bootstrap=500)
    assert grouped.p == pytest.approx(once.p)
    assert grouped.accuracy.low == pytest.approx(once.accuracy.low)
    assert grouped.accuracy.high == pytest.approx(once.accuracy.high)
    assert single.p < once.p / 10
    (one_group,) = compare_accuracies(right, ["a", "b"], groups=np.zeros(40, int))
    assert (one_group.accuracy.low, one_group.p) == (None, 1.0)


def test_exchanges_of_groups_are_counted_exactly() -> None:
    rng = np.random.default_rng(4)
    first, second = rng.random((2, 30)) < [[0.8], [0.5]]
    unit = np.arange(30) // 4
    more = np.bincount(unit, weights=first.astype(int) - second)
    signs = 2 * (np.arange(2**8)[:, None] >> np.arange(8) & 1) - 1  # every exchange of 8 units
    expected = (abs(signs @ more) >= abs(more.sum())).mean()
    assert exchanged(first, second, unit) == pytest.approx(expected)
