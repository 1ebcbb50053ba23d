"""Tests of featx.splits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featx.errors import InputError
from featx.splits import make_split


def none(n):
    return np.zeros(n, np.int64)


def parts(split):
    return split.train, split.val, split.held_out


@given(
    st.lists(st.integers(0, 6), min_size=2, max_size=60), st.integers(0, 5), st.floats(0.05, 0.9)
)
@settings(max_examples=80, deadline=None)
def test_every_class_with_two_images_is_on_both_sides_and_lone_images_are_trained_on(
    labels, seed, fraction
):
    labels = np.array(labels)
    counts = np.bincount(labels, minlength=7)
    if counts.max() < 2:
        return
    split = make_split(labels, none(len(labels)), seed=seed, test_fraction=fraction)
    assert np.array_equal(np.sort(np.concatenate(parts(split))), np.arange(len(labels)))
    held = np.bincount(labels[split.held_out], minlength=7)
    train = np.bincount(labels[split.train], minlength=7)
    for c in range(7):
        if counts[c] >= 2:
            assert held[c] == min(max(int(counts[c] * fraction + 0.5), 1), counts[c] - 1)
            assert train[c] >= 1
        else:
            assert held[c] == 0
    assert all(part.dtype == np.int64 and (np.diff(part) > 0).all() for part in parts(split))


def test_a_fifth_of_each_class_is_held_out_by_default():
    labels = np.repeat([0, 1], [100, 10])
    split = make_split(labels, none(110))
    assert np.bincount(labels[split.held_out]).tolist() == [20, 2]
    assert split.val.size == 0
    assert split.chosen_on == "5-fold cross-validation"
    assert split.held_out_name == "held-out 20 %"
    assert split.source == "stratified by seed 0, 20 % held out"


def test_the_same_seed_gives_the_same_split_and_another_seed_another():
    labels = np.repeat(np.arange(5), 20)
    first, again, other = (make_split(labels, none(100), seed=s) for s in (3, 3, 4))
    assert np.array_equal(first.held_out, again.held_out)
    assert not np.array_equal(first.held_out, other.held_out)


def test_the_split_is_pinned_so_that_no_release_moves_an_image_to_the_other_side():
    assert make_split(np.arange(20) % 2, none(20), seed=0).held_out.tolist() == [4, 6, 9, 15]


def test_images_of_another_class_do_not_move_the_split_of_a_class():
    labels = np.repeat([0, 1], 30)
    more = np.concatenate([labels, np.full(9, 2)])
    held = make_split(labels, none(60)).held_out
    held_more = make_split(more, none(69)).held_out
    assert np.array_equal(held, held_more[held_more < 60])


def test_unlabelled_rows_are_in_no_part_and_are_counted():
    labels = np.array([-1, 0, 0, 1, 1, -1])
    split = make_split(labels, none(6))
    assert np.sort(np.concatenate(parts(split))).tolist() == [1, 2, 3, 4]
    assert split.unlabelled == 2


def test_with_train_val_and_test_choices_are_made_on_val_and_test_is_held_out():
    split = make_split([0, 1, 0, 1, 0, 1, 0], [1, 1, 2, 2, 3, 3, 0])
    assert [p.tolist() for p in parts(split)] == [[0, 1], [2, 3], [4, 5]]
    assert (split.chosen_on, split.held_out_name) == ("val", "test")
    assert split.source == "train/val/test of the images"
    assert split.left_out == 1


@pytest.mark.parametrize(("code", "name"), [(2, "val"), (3, "test")])
def test_with_two_parts_choices_are_made_inside_train_and_the_other_is_held_out(code, name):
    split = make_split([0, 1, 0, 1, -1], [1, 1, code, code, code])
    assert [p.tolist() for p in parts(split)] == [[0, 1], [], [2, 3]]
    assert (split.chosen_on, split.held_out_name) == ("5-fold cross-validation", name)


@pytest.mark.parametrize("code", [1, 2, 3])
def test_one_kind_of_code_only_is_split_by_seed(code):
    labels = np.repeat([0, 1], 10)
    split = make_split(labels, np.full(20, code))
    assert np.array_equal(split.held_out, make_split(labels, none(20)).held_out)


def test_a_part_whose_images_are_all_unlabelled_does_not_count_as_a_part():
    split = make_split([0, 0, 1, 1, -1, -1], [1, 1, 2, 2, 3, 3])
    assert split.held_out_name == "val"


def test_a_given_split_that_parts_a_group_is_kept_and_said():
    split = make_split([0, 1, 0, 1], [1, 1, 3, 3], groups=[7, -1, 7, -1])
    assert split.held_out.tolist() == [2, 3]
    assert "1 group(s) have images both in train and in test" in split.notes[0]


def groups_are_whole(groups, *sides):
    seen = [set(groups[s][groups[s] >= 0].tolist()) for s in sides]
    return all(not (a & b) for i, a in enumerate(seen) for b in seen[i + 1 :])


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(-1, 9)), min_size=4, max_size=80),
    st.integers(0, 3),
)
@settings(max_examples=80, deadline=None)
def test_groups_are_never_parted_by_a_seeded_split(rows, seed):
    labels, groups = np.array(rows).T
    try:
        split = make_split(labels, none(len(labels)), groups=groups, seed=seed)
    except InputError:
        # Only where all is one group, or no class has two images.
        n_units = len(np.unique(groups[groups >= 0])) + (groups < 0).sum()
        assert n_units == 1 or np.bincount(labels).max() < 2
        return
    assert groups_are_whole(groups, split.train, split.held_out)
    assert np.array_equal(np.sort(np.concatenate(parts(split))), np.arange(len(labels)))
    assert len(split.train)


def test_with_groups_every_class_of_two_groups_is_on_both_sides_near_the_fraction():
    rng = np.random.default_rng(0)
    group_label = rng.integers(0, 8, 200)
    groups = np.repeat(np.arange(200), rng.integers(1, 9, 200))
    labels = group_label[groups]
    split = make_split(labels, none(len(labels)), groups=groups)
    held = np.bincount(labels[split.held_out], minlength=8) / np.bincount(labels, minlength=8)
    assert held.min() > 0.1
    assert held.max() < 0.3
    assert "200 groups kept whole" in split.source


def test_a_class_that_lives_in_one_group_is_trained_on_and_said():
    labels = np.array([0, 0, 0, 0, 1, 1])
    split = make_split(labels, none(6), groups=[0, 0, 1, 1, 2, 2], test_fraction=0.4)
    assert set(labels[split.held_out]) == {0}
    assert split.notes[0] == "1 class(es) could not be parted: all in train, not measured"


@pytest.mark.parametrize("seed", range(5))
def test_a_group_with_the_only_images_of_a_class_is_trained_on_however_well_it_would_fit(seed):
    labels = np.array([*range(6), *range(6), *range(6), *range(6), 6])
    groups = np.repeat([0, 1, 2, 3], [6, 6, 6, 7])  # class 6 lives in group 3 only
    split = make_split(labels, none(25), groups=groups, seed=seed, test_fraction=0.5)
    assert len(split.held_out) == 12
    assert 3 not in groups[split.held_out]


def test_where_every_group_has_a_class_of_its_own_a_group_is_held_out_and_the_loss_said():
    labels = np.array([0, 9, 1, 9, 2, 9])
    split = make_split(labels, none(6), groups=[0, 0, 1, 1, 2, 2])
    assert len(split.held_out) == 2
    assert "1 class(es) live in one group that had to be held out" in split.notes[1]


@pytest.mark.parametrize(
    ("groups", "why"),
    [(np.arange(40) // 20, "groups are kept whole"), (None, "each class is parted by itself")],
)
def test_a_share_that_could_not_be_held_out_is_not_claimed(groups, why):
    labels = np.arange(40) % 2 if groups is not None else np.arange(40) // 2
    split = make_split(labels, none(40), groups=groups)
    assert len(split.held_out) == 20
    assert split.held_out_name == "held-out 50 %"
    assert split.source.startswith("stratified by seed 0, 50 % held out")
    assert split.notes == (f"20 % were to be held out, and 50 % are, as {why}",)


def test_a_share_within_a_percentage_point_has_the_name_of_what_was_asked_for():
    names = [
        make_split(np.zeros(n, int), none(n), test_fraction=fraction).held_out_name
        for n, fraction in ((100, 0.21), (100, 0.204), (10, 0.21), (10, 0.22))
    ]
    assert names == ["held-out 21 %", "held-out 20.4 %", "held-out 21 %", "held-out 20 %"]


def test_groups_of_one_image_each_are_no_groups():
    labels = np.repeat([0, 1], 10)
    split = make_split(labels, none(20), groups=np.arange(20))
    assert np.array_equal(split.held_out, make_split(labels, none(20)).held_out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([-1, -1], [0, 0]), "a split needs labelled images: all 2 are unlabelled"),
        (([0, 1, 2], [0, 0, 0]), r"nothing can be held out: 3 labelled image\(s\) of 3"),
        (([0, 0], [2, 3]), "split into val and test, but none is in train"),
        (([0, 0], [0]), r"split_codes must be as long as labels \(2\), got 1"),
        (([0, 0], [0, 4]), "split_codes must be 0 .* got 0 to 4"),
        (([0.5, 1.5], [0, 0]), "labels must be a vector of whole numbers"),
        (([[0], [0]], [0, 0]), r"got an array of shape \(2, 1\)"),
    ],
)
def test_what_cannot_be_split_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        make_split(*arguments)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"seed": -1}, "seed must be a whole number, 0 or more, got -1"),
        ({"seed": 0.5}, "seed must be a whole number"),
        ({"test_fraction": 1.0}, "test_fraction must be between 0 and 1, got 1.0"),
        ({"groups": [3, 3]}, "nothing can be held out"),
    ],
)
def test_bad_settings_are_refused(keywords, message):
    with pytest.raises(InputError, match=message):
        make_split([0, 0], [0, 0], **keywords)
