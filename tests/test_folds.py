"""Tests of featx.folds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featx.errors import InputError
from featx.folds import cross_validation_folds, leave_out_units


@given(st.lists(st.integers(0, 5), min_size=2, max_size=50), st.integers(2, 6), st.integers(0, 3))
@settings(max_examples=80, deadline=None)
def test_folds_part_every_row_of_a_class_of_two_once_and_keep_its_class_in_training(
    labels, n_folds, seed
):
    labels = np.array(labels)
    counts = np.bincount(labels)
    if counts.max() < 2:
        return
    folds = cross_validation_folds(labels, n_folds=n_folds, seed=seed)
    validated = np.concatenate([val for _, val in folds])
    assert np.array_equal(np.sort(validated), np.flatnonzero(counts[labels] >= 2))
    sizes = [len(val) for _, val in folds]
    assert max(sizes) - min(sizes) <= 1
    for train, val in folds:
        assert not set(train) & set(val)
        assert set(labels[val]) <= set(labels[train])
        per_class = np.bincount(labels[val], minlength=6)[: len(counts)]
        assert (np.abs(per_class - counts / n_folds)[counts > 1] < 1 + 1e-9).all()


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 7)), min_size=4, max_size=60),
    st.integers(0, 2),
)
@settings(max_examples=80, deadline=None)
def test_folds_never_part_a_group_and_validate_no_class_they_did_not_train_on(rows, seed):
    labels, groups = np.array(rows).T
    try:
        folds = cross_validation_folds(labels, n_folds=3, groups=groups, seed=seed)
    except InputError:
        return
    assert sum(len(val) for _, val in folds) == len(set(np.concatenate([v for _, v in folds])))
    for train, val in folds:
        assert not set(groups[train]) & set(groups[val]) - {-1}
        assert set(labels[val]) <= set(labels[train])


def test_grouped_folds_are_stratified():
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(120), rng.integers(1, 6, 120))
    labels = rng.integers(0, 4, 120)[groups]
    folds = cross_validation_folds(labels, groups=groups)
    shares = [np.bincount(labels[val], minlength=4) / np.bincount(labels) for _, val in folds]
    assert np.min(shares) > 0.15
    assert np.max(shares) < 0.25


def test_folds_depend_on_the_seed_alone():
    labels = np.repeat([0, 1, 2], 10)
    a, b, c = (cross_validation_folds(labels, seed=s)[0][1].tolist() for s in (0, 0, 1))
    assert a == b != c


@pytest.mark.parametrize(
    ("labels", "keywords", "message"),
    [
        ([0, 1, 2], {}, "cross-validation needs a class with two images in two groups: got 3"),
        ([0, 0], {"groups": [1, 1]}, r"in 1 groups; add images, name other groups \(one that is a"),
        ([0, 0, -1], {}, "needs a label for every row"),
        ([0, 0], {"n_folds": 1}, "n_folds must be at least 2, got 1"),
    ],
)
def test_what_cannot_be_folded_is_refused(labels, keywords, message):
    with pytest.raises(InputError, match=message):
        cross_validation_folds(labels, **keywords)


def test_leave_one_out_leaves_out_rows_or_groups_and_knows_what_it_cannot_test():
    units, testable = leave_out_units([0, 0, 1, 2, 2])
    assert units.tolist() == [0, 1, 2, 3, 4]
    assert testable.tolist() == [True, True, False, True, True]
    units, testable = leave_out_units([0, 0, 1, 0, 2, 2], groups=[7, 7, -1, -1, 3, 3])
    assert units[0] == units[1]
    assert len(set(units.tolist())) == 4
    assert testable.tolist() == [True, True, False, True, False, False]
    with pytest.raises(InputError, match="groups must be as long as labels"):
        leave_out_units([0, 1], groups=[1])
