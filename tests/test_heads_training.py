"""Tests of the linear and mlp heads and the loop that trains them."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from featx.errors import InputError
from featx.folds import cross_validation_folds
from featx.heads import LR_GRID, LinearHead, MLPHead
from featx.heads import base as base_module
from featx.heads import rows as rows_module
from featx.heads.epochs import _without_loss
from featx.heads.rows import Rows
from featx.heads.stack import Stack
from featx.heads.training import _evaluate, batch_size_of, matmul_precision


def birds(n=130, d=10, k=3, seed=0, spread=1.2):
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % k)
    X = rng.normal(size=(n, d)) + spread * np.random.default_rng(99).normal(size=(k, d))[y]
    return X.astype(np.float32), y


@pytest.fixture
def batches(monkeypatch):
    """Every batch that was trained on, (b, d) or (g, b, d), by epochs."""
    seen = []
    draw = Rows.batches

    def recording(self, *arguments):
        seen.append([])
        for x, y in draw(self, *arguments):
            seen[-1].append(x.clone())
            yield x, y

    monkeypatch.setattr(Rows, "batches", recording)
    return seen


@pytest.mark.parametrize(
    "head", [LinearHead(epochs=30, lr=0.01), MLPHead((16,), epochs=30, lr=0.01)], ids=str
)
def test_the_loss_falls(head):
    head.fit(*birds())
    losses = [epoch["train_loss"] for epoch in head.history_]
    assert losses[4] < losses[0] < np.log(3)
    assert losses[-1] < 0.5 * losses[0]


def test_every_row_is_trained_on_once_an_epoch_the_last_partial_batch_included(batches):
    X, y = birds()
    X[:, 0] = np.arange(130)
    LinearHead(epochs=3, batch_size=32, standardise=False).fit(X, y, X_val=X[:5], y_val=y[:5])
    assert [[len(x) for x in epoch] for epoch in batches] == [[32, 32, 32, 32, 2]] * 3
    orders = [torch.cat(epoch)[:, 0] for epoch in batches]
    for order in orders:
        assert torch.equal(order.sort().values, torch.arange(130.0))
    assert not torch.equal(orders[0], orders[1])  # shuffled anew


def test_validation_figures_are_measured_by_the_weights_that_each_epoch_left():
    X, y = birds()
    X_val, y_val = birds(60, seed=1)
    head = MLPHead((8,), dropout=0.5, epochs=6, patience=None).fit(X, y, X_val=X_val, y_val=y_val)
    assert [epoch["epoch"] for epoch in head.history_] == [1, 2, 3, 4, 5, 6]
    best = head.history_[head.best_epoch_ - 1]
    p = head.predict_proba(X_val)
    assert best["val_accuracy"] == (p.argmax(axis=1) == y_val).mean()
    loss = -np.log(p[np.arange(len(y_val)), y_val]).mean()
    assert best["val_loss"] == pytest.approx(loss, rel=1e-5)


def test_training_figures_are_means_over_the_steps_each_before_its_update():
    X, y = birds()
    head = LinearHead(epochs=6, lr=0.05, batch_size=130).fit(X, y, X_val=X, y_val=y)
    assert head.history_[0]["train_loss"] == pytest.approx(np.log(3))  # of the zero weights
    for now, after in zip(head.history_, head.history_[1:], strict=False):
        assert after["train_loss"] == pytest.approx(now["val_loss"], rel=1e-5)
        assert after["train_accuracy"] == pytest.approx(now["val_accuracy"])
    uneven = LinearHead(epochs=1, lr=1e-12, batch_size=128).fit(X, y, X_val=X, y_val=y)
    assert uneven.history_[0]["train_loss"] == pytest.approx(np.log(3))
    assert uneven.history_[0]["train_accuracy"] == pytest.approx((y == 0).mean(), abs=0.02)


def test_the_best_epoch_is_kept_by_accuracy_then_loss():
    X, y = birds(spread=0.4)
    X_val, y_val = birds(40, seed=1, spread=0.4)
    head = LinearHead(epochs=40, lr=0.2).fit(X, y, X_val=X_val, y_val=y_val)
    scores = [(epoch["val_accuracy"], -epoch["val_loss"]) for epoch in head.history_]
    assert head.best_epoch_ == 1 + max(range(40), key=scores.__getitem__)
    assert head.best_epoch_ < 40  # else keeping the last would do as well
    assert head.score(X_val, y_val) == scores[head.best_epoch_ - 1][0]
    shorter = LinearHead(epochs=head.best_epoch_, lr=0.2).fit(X, y, X_val=X_val, y_val=y_val)
    assert np.array_equal(head.coefs_[0], shorter.coefs_[0])


def test_training_stops_when_patience_runs_out():
    X, y = birds(spread=0.4)
    head = MLPHead((32,), lr=0.01, patience=4, epochs=500).fit(X, y)
    assert len(head.history_) == head.best_epoch_ + 4
    assert len(head.history_) < 500


@pytest.mark.parametrize("groups", [None, np.arange(130) // 5])
def test_without_validation_rows_a_stratified_part_is_set_aside_and_not_learnt_from(groups):
    X, y = birds()
    train, val = cross_validation_folds(y, n_folds=5, groups=groups, seed=2)[0]
    head = LinearHead(epochs=4, validation_fraction=0.2, random_state=2)
    head.fit(X, y, groups=groups)
    assert np.allclose(head.mean_, X[train].mean(axis=0, dtype=np.float64))
    given = LinearHead(epochs=4, random_state=2).fit(X[train], y[train], X_val=X[val], y_val=y[val])
    assert np.array_equal(head.coefs_[0], given.coefs_[0])
    assert head.history_ == given.history_


@pytest.mark.parametrize(
    "head", [LinearHead(epochs=60, lr=0.05), MLPHead((8,), epochs=60, lr=0.05)]
)
def test_a_class_of_one_group_is_trained_on_whatever_is_set_aside(head):
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1, 2], 40)
    groups = np.concatenate([np.zeros(40, int), 1 + np.arange(80) // 4])  # the first class is one
    X = (rng.normal(size=(120, 6)) + 4 * np.eye(3)[y].repeat(2, axis=1)).astype(np.float32)
    head.fit(X, y, groups=groups)
    assert head.n_set_aside_ > 0
    assert (head.predict(X[:40]) == 0).all()


def test_where_every_fold_has_a_class_of_its_own_its_groups_are_trained_on_whole():
    groups = np.repeat([0, 1, 2, 3], 5)
    folds = [  # the last row of either fold is the only one of its class
        (np.arange(10), np.arange(10, 19)),
        (np.arange(10, 20), np.arange(9)),
    ]
    kept, aside = _without_loss(folds, 20, groups)
    assert aside.tolist() == [10, 11, 12, 13, 14]
    assert kept.tolist() == [*range(10), *range(15, 20)]
    with pytest.raises(InputError, match="every group that could be has a class of its own"):
        _without_loss([(np.arange(10), np.arange(10, 19))], 20, np.repeat([0, 1], 10))


def test_where_no_row_can_be_set_aside_the_last_epoch_is_kept_and_that_is_told():
    with pytest.warns(UserWarning, match="no rows could be set aside to choose the epoch"):
        head = LinearHead(epochs=7).fit(np.eye(3), [0, 1, 2])
    assert head.best_epoch_ == 7
    assert head.history_[0]["val_loss"] is None


def test_the_linear_head_finds_what_logistic_regression_finds():
    X, y = birds(300, spread=0.5)
    Z = StandardScaler().fit_transform(X.astype(np.float64))
    theirs = LogisticRegression(C=np.inf, tol=1e-8, max_iter=10_000).fit(Z, y)
    head = LinearHead(epochs=300, lr=0.01, batch_size=300).fit(X, y, X_val=X, y_val=y)
    loss = -np.log(theirs.predict_proba(Z)[np.arange(300), y]).mean()
    assert head.history_[-1]["train_loss"] == pytest.approx(loss, rel=0.01)


def test_weight_decay_shrinks_weights_and_not_biases():
    X, y = birds(200)
    y = np.where(np.arange(200) < 150, 0, y)  # unequal classes need biases
    free = LinearHead(epochs=60, lr=0.01).fit(X, y, X_val=X, y_val=y)
    held = LinearHead(epochs=60, lr=0.01, weight_decay=10.0).fit(X, y, X_val=X, y_val=y)
    assert np.abs(held.coefs_[0]).max() < 0.1 * np.abs(free.coefs_[0]).max()
    assert np.ptp(held.intercepts_[0]) > 0.5


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("optimizer", "adam", "sgd"),
        ("lr", 1e-3, 1e-2),
        ("schedule", "constant", "cosine"),
        ("batch_size", 16, 64),
        ("label_smoothing", 0.0, 0.3),
        ("random_state", 0, 1),
        ("standardise", True, False),
    ],
)
def test_every_setting_of_the_linear_head_reaches_the_training(name, one, other):
    X, y = birds()
    a, b = (LinearHead(epochs=3).set_params(**{name: v}).fit(X, y) for v in (one, other))
    assert not np.allclose(a.coefs_[0], b.coefs_[0], rtol=1e-3)


def test_momentum_reaches_sgd():
    X, y = birds()
    a, b = (LinearHead(epochs=3, optimizer="sgd", momentum=m).fit(X, y) for m in (0.0, 0.9))
    assert np.abs(b.coefs_[0]).max() > 2 * np.abs(a.coefs_[0]).max()


@pytest.mark.parametrize(
    ("name", "one", "other"), [("dropout", 0.0, 0.5), ("weight_decay", 0.0, 5.0)]
)
def test_every_setting_of_the_mlp_head_reaches_the_training(name, one, other):
    X, y = birds()
    a, b = (MLPHead((8,), epochs=8).set_params(**{name: v}).fit(X, y) for v in (one, other))
    assert not np.allclose(a.coefs_[0], b.coefs_[0], rtol=1e-3)


@pytest.mark.parametrize(
    ("n", "batch_size"),
    [(1, 64), (2047, 64), (2048, 128), (4095, 128), (4096, 256), (16_384, 1024), (10**7, 1024)],
)
def test_batches_grow_with_the_rows_while_an_epoch_keeps_16_steps(n, batch_size):
    assert batch_size_of(n) == batch_size


@pytest.mark.parametrize(("asked", "taken", "lr"), [(None, 128, 2**0.5 * 1e-3), (16, 16, 5e-4)])
def test_batches_and_rate_of_the_mlp_follow_the_rows_it_is_trained_on(asked, taken, lr, batches):
    X, y = birds(2300)
    head = MLPHead((4,), epochs=2, batch_size=asked).fit(X, y)  # on 2,070 of them
    assert {len(x) for x in batches[0][:-1]} == {taken}
    assert (head.batch_size_, head.lr_) == (taken, pytest.approx(lr))
    told = MLPHead((4,), epochs=2, batch_size=taken, lr=head.lr_).fit(X, y)
    assert np.array_equal(told.coefs_[0], head.coefs_[0])
    settings = head.choice().params  # another number of rows changes nothing that was chosen on
    assert (settings["batch_size"], settings["lr"]) == (taken, head.lr_)


def test_no_batch_of_the_mlp_is_larger_than_a_window(little_room, batches):
    X, y = birds(4000)
    head = MLPHead((4,), epochs=1).fit(X, y, X_val=X[:9], y_val=y[:9])
    assert (head.batch_size_, head.lr_) == (64, 1e-3)  # of windows of 192 rows
    assert max(len(x) for x in batches[0]) == 64


def test_the_mlp_has_the_layers_asked_for_and_learns_exclusive_or():
    X = np.array([[0, 0], [0, 1], [1, 0], [1, 1]] * 25, np.float32)
    y = (X[:, 0] != X[:, 1]).astype(int)
    head = MLPHead((12, 7), lr=0.01, epochs=100, dropout=0.0).fit(X, y)
    assert [W.shape for W in head.coefs_] == [(12, 2), (7, 12), (2, 7)]
    assert head.score(X, y) == 1
    assert LinearHead().fit(X, y).score(X, y) < 0.8


def test_numpy_predicts_what_the_torch_network_computes():
    X, y = birds()
    head = MLPHead((8, 6), epochs=5).fit(X, y)
    layers = []
    for W, b in zip(head.coefs_, head.intercepts_, strict=True):
        layers += [torch.nn.Linear(*W.shape[::-1]), torch.nn.ReLU()]
        layers[-2].load_state_dict({"weight": torch.tensor(W), "bias": torch.tensor(b)})
    network = torch.nn.Sequential(*layers[:-1])
    Z = torch.tensor(((X - head.mean_) / head.scale_).astype(np.float32))
    expected = network(Z).softmax(dim=1).detach().numpy()
    assert np.allclose(head.predict_proba(X), expected, atol=1e-6)


# Side by side


def test_a_learning_rate_comes_to_the_same_in_a_grid_and_alone():
    X, y = birds(spread=0.4)
    X_val, y_val = birds(40, seed=1, spread=0.4)
    for kind in ("adam", "sgd"):
        common = {"epochs": 12, "optimizer": kind, "schedule": "cosine", "weight_decay": 0.01}
        grid = LinearHead(lr=(1e-4, 0.3, 0.02), **common).fit(X, y, X_val=X_val, y_val=y_val)
        alone = [
            LinearHead(lr=lr, **common).fit(X, y, X_val=X_val, y_val=y_val)
            for lr in (1e-4, 0.3, 0.02)
        ]
        for one, result in zip(alone, grid.lr_results_, strict=True):
            assert result["lr"] == one.lr_
            assert result["best_epoch"] == one.best_epoch_
            rows = [row for row in grid.lr_history_ if row["lr"] == one.lr]
            for row, theirs in zip(rows, one.history_, strict=True):
                assert {"lr": one.lr, **theirs} == pytest.approx(row, rel=1e-5)
        best = alone[[0.0001, 0.3, 0.02].index(grid.lr_)]
        assert np.allclose(grid.coefs_[0], best.coefs_[0], rtol=1e-4, atol=1e-6)
        assert np.allclose(grid.intercepts_[0], best.intercepts_[0], rtol=1e-4, atol=1e-6)
        kept = [row for row in grid.lr_history_ if row["lr"] == grid.lr_]
        assert [{"lr": grid.lr_, **row} for row in grid.history_] == kept


def test_the_best_learning_rate_is_the_one_best_on_validation_rows():
    X, y = birds(spread=0.4)
    head = LinearHead(lr=(1e-7, 0.03), epochs=10).fit(X, y)
    scores = [(row["val_accuracy"], -row["val_loss"]) for row in head.lr_results_]
    assert head.lr_ == 0.03
    assert scores[1] > scores[0]
    swapped = LinearHead(lr=(0.03, 1e-7), epochs=10).fit(X, y)
    assert swapped.lr_ == 0.03
    assert np.array_equal(swapped.best_epoch_, head.best_epoch_)


def test_all_learning_rates_see_one_reading_of_the_batches(batches):
    X, y = birds()
    LinearHead(epochs=2, lr="grid").fit(X, y)
    assert [[tuple(x.shape) for x in epoch] for epoch in batches] == [[(64, 10), (53, 10)]] * 2


def test_the_grid_is_dinov2s():
    head = LinearHead(lr="grid", epochs=2).fit(*birds())
    assert [row["lr"] for row in head.lr_results_] == list(LR_GRID)
    assert (len(LR_GRID), LR_GRID[0], LR_GRID[-1]) == (13, 1e-5, 0.1)


def test_a_learning_rate_that_diverges_is_dropped_by_name_and_the_others_stay():
    X, y = birds()
    common = {"optimizer": "sgd", "epochs": 5}
    with pytest.warns(UserWarning, match=r"left out of the choice: lr 1e\+38 in epoch 2; a lower"):
        grid = LinearHead(lr=(1e38, 0.01), **common).fit(X * 10, y)
    alone = LinearHead(lr=0.01, **common).fit(X * 10, y)
    assert grid.lr_ == 0.01
    assert np.allclose(grid.coefs_[0], alone.coefs_[0], rtol=1e-4, atol=1e-6)
    assert grid.lr_results_[0] == {
        "lr": 1e38, "best_epoch": None, "val_loss": None, "val_accuracy": None, "diverged": 2,
    }  # fmt: skip


def test_a_training_that_diverges_is_told_with_the_way_out():
    X, y = birds()
    common = {"optimizer": "sgd", "standardise": False, "epochs": 5}
    with pytest.raises(InputError, match=r"training diverged .* lr 1e\+38 in epoch \d\): lower lr"):
        LinearHead(lr=1e38, **common).fit(X * 1e3, y)
    with pytest.raises(InputError, match=r"lr 1e\+37 in epoch 1, lr 1e\+38 in epoch 1"):
        LinearHead(lr=(1e37, 1e38), **common).fit(X * 1e3, y)


def test_several_networks_without_rows_to_choose_on_are_refused():
    for head in (LinearHead(lr="grid"), MLPHead(n_seeds=2)):
        with pytest.raises(InputError, match=r"choose among \d+ networks .* give X_val and y_val"):
            head.fit(np.eye(3), [0, 1, 2])


def known(row):
    """Without what is None, which pytest.approx does not take."""
    return {name: value for name, value in row.items() if value is not None}


def seeds_and_each_alone(**params):
    X, y = birds(spread=0.4)
    X_val, y_val = birds(40, seed=1, spread=0.4)
    fit = {"X": X, "y": y, "X_val": X_val, "y_val": y_val}
    both = MLPHead((12, 5), lr=0.01, n_seeds=4, random_state=3, **params).fit(**fit)
    alone = [MLPHead((12, 5), lr=0.01, random_state=s, **params).fit(**fit) for s in range(3, 7)]
    return both, alone


@pytest.mark.parametrize("params", [{"epochs": 8, "patience": None}, {"patience": 3}], ids=str)
def test_a_seed_comes_to_the_same_beside_others_and_alone(params):
    both, alone = seeds_and_each_alone(**params)
    assert len({one.best_epoch_ for one in alone}) > 1  # they do not stop together
    for one, result in zip(alone, both.seed_results_, strict=True):
        assert known(result) == pytest.approx(known(one.seed_results_[0]), rel=1e-4)
    best = alone[both.seed_ - 3]
    assert both.best_epoch_ == best.best_epoch_
    for ours, theirs in zip(both.coefs_, best.coefs_, strict=True):
        assert np.allclose(ours, theirs, rtol=1e-3, atol=1e-5)


def test_the_best_seed_is_kept_and_the_spread_recorded():
    both, _ = seeds_and_each_alone(epochs=4)
    scores = [(row["val_accuracy"], -row["val_loss"]) for row in both.seed_results_]
    assert [row["seed"] for row in both.seed_results_] == [3, 4, 5, 6]
    assert both.seed_ == 3 + max(range(4), key=scores.__getitem__)
    assert scores.index(max(scores)) > 0  # else keeping the first would do as well
    assert len(set(scores)) == 4


# Held or streamed


@pytest.fixture
def little_room(monkeypatch):
    """Windows of 192 rows of 10 features; nothing is held after `drop()`."""
    monkeypatch.setattr(rows_module, "_WINDOW_BYTES", 3 * 64 * 40)
    return lambda: monkeypatch.setattr(rows_module, "_HELD_BYTES", 0)


@pytest.mark.parametrize("head", [LinearHead(epochs=3, lr=(1e-3, 1e-2)), MLPHead((8,), epochs=3)])
def test_rows_too_many_to_hold_are_streamed_with_the_same_bits(head, little_room, batches):
    X, y = birds(1000)
    held = type(head)(**head.get_params()).fit(X, y)
    little_room()
    streamed = type(head)(**head.get_params()).fit(X, y)
    assert len(batches) == 6
    assert len(batches[0]) > 4 * 3  # several windows
    for ours, theirs in zip(held.coefs_, streamed.coefs_, strict=True):
        assert ours.tobytes() == theirs.tobytes()
    assert held.history_ == streamed.history_


def test_seeds_of_streamed_rows_come_to_what_they_come_to_when_held(little_room):
    X, y = birds(1000, spread=0.3)
    held = MLPHead((8,), n_seeds=3, epochs=3).fit(X, y)
    little_room()
    streamed = MLPHead((8,), n_seeds=3, epochs=3).fit(X, y)
    assert streamed.seed_ == held.seed_
    for ours, theirs in zip(streamed.seed_results_, held.seed_results_, strict=True):
        assert known(ours) == pytest.approx(known(theirs), rel=1e-4)


def test_streaming_takes_no_more_than_a_window_and_reads_it_in_the_order_of_the_file(
    little_room, monkeypatch
):
    X, y = birds(1000)
    little_room()
    read, made = [], []
    blocks, empty = rows_module.standardised_blocks, torch.empty

    def recording(X, mean, scale, rows):
        read.append(rows)
        return blocks(X, mean, scale, rows)

    monkeypatch.setattr(rows_module, "standardised_blocks", recording)
    monkeypatch.setattr(torch, "empty", lambda *a, **k: (made.append(a), empty(*a, **k))[1])
    MLPHead((8,), epochs=2).fit(X, y, X_val=X[:100], y_val=y[:100])
    assert max(len(rows) for rows in read) == 192
    assert max(size[0][0] for size in made if isinstance(size[0], tuple)) == 192
    jumps = [(np.diff(rows) != 1).sum() for rows in read]
    assert all((np.diff(rows) > 0).all() for rows in read)
    assert max(jumps) <= 3 + 1  # whole blocks: each is read through
    assert sum(map(len, read)) == 2 * (1000 + 100)


@pytest.mark.parametrize("head", [LinearHead(epochs=3), MLPHead((8,), epochs=3)], ids=str)
@pytest.mark.parametrize("groups", [None, np.arange(600) // 5])
def test_rows_of_one_array_are_fitted_as_the_rows_alone(head, groups):
    X, y = birds(1000)
    mixed = np.random.default_rng(0).permutation(1000)
    rows, val_rows = mixed[:600], mixed[600:700]
    y = np.where(np.isin(np.arange(1000), mixed[:700]), y, -7)  # labels of no other row matter
    a, b = (type(head)(**head.get_params()) for _ in range(2))
    for val, alone in (
        ({"val_rows": val_rows}, {"X_val": X[val_rows], "y_val": y[val_rows]}),
        ({}, {}),
    ):
        a.fit(X, y, rows=rows, groups=groups, **val)
        b.fit(X[rows], y[rows], groups=groups, **alone)
        assert a.history_ == b.history_
        assert a.coefs_[0].tobytes() == b.coefs_[0].tobytes()
        assert a.n_set_aside_ == b.n_set_aside_


def test_rows_of_one_array_are_checked_like_arguments():
    X, y = birds()
    head, rows = LinearHead(epochs=1), np.arange(100)
    with pytest.raises(InputError, match="X has 130 rows, y 129 labels"):
        head.fit(X, y[1:], rows=rows)
    with pytest.raises(InputError, match="at least 2 classes"):
        head.fit(X, y, rows=np.flatnonzero(y == 1))
    with pytest.warns(UserWarning, match="1 of 3 validation rows are of classes without"):
        head.fit(X, np.where(np.arange(130) == 129, 9, y), rows=rows, val_rows=[127, 128, 129])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_features_larger_than_what_may_be_held_are_never_copied(tmp_path, monkeypatch):
    X = np.lib.format.open_memmap(tmp_path / "X.npy", "w+", np.float32, (50_000, 256))
    X[:, :3] = np.eye(3)[np.arange(50_000) % 3]  # 51 MB, of which a block has 0.5 MB
    monkeypatch.setattr(rows_module, "_WINDOW_BYTES", 1 << 20)
    monkeypatch.setattr(rows_module, "_HELD_BYTES", 0)
    monkeypatch.setattr(base_module, "_BLOCK_BYTES", 1 << 20)
    LinearHead(epochs=1).fit(X[:1000], np.arange(1000) % 3)  # what the libraries take at first
    taken = []
    watch(monkeypatch, rows_module, "standardised_blocks", lambda: taken.append(own_memory()))
    before = own_memory()
    rows = np.arange(49_000)
    LinearHead(epochs=1, batch_size=512).fit(
        X, np.arange(50_000) % 3, rows=rows, val_rows=np.arange(49_000, 50_000)
    )
    assert len(taken) > 40
    assert max(taken) - before < 20 << 20


def watch(monkeypatch, module, name, note):
    """Note something at each call of a function."""
    inner = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *a, **k: (note(), inner(*a, **k))[1])


def own_memory():
    """Bytes of this process that are no pages of a file."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+)", status)[1]) * 1024


@pytest.mark.parametrize("n", [1, 191, 192, 193, 1000])
def test_an_order_has_every_row_once_and_mixes_from_everywhere(n, little_room):
    orders = [
        list(rows_module.shuffled(n, 10, torch.Generator().manual_seed(seed))) for seed in (0, 0, 1)
    ]
    for windows in orders:
        assert [len(window) for window in windows] == rows_module.window_lengths(n, 10)
        assert torch.equal(torch.cat(windows).sort().values, torch.arange(n))
    assert torch.equal(torch.cat(orders[0]), torch.cat(orders[1]))
    if n == 1000:
        assert not torch.equal(torch.cat(orders[0]), torch.cat(orders[2]))
        first = orders[0][0]
        assert len(set((first // 100).tolist())) >= 4  # not the first rows only
        assert (first.diff() == 1).float().mean() < 0.1  # nor block after block


def test_low_precision_trains_and_is_refused_where_the_device_has_none():
    X, y = birds()
    head = LinearHead(device="cpu", precision="bf16", epochs=20, lr=0.01).fit(X, y)
    assert head.score(X, y) > 0.9
    full = LinearHead(device="cpu", epochs=20, lr=0.01).fit(X, y)
    assert not np.array_equal(head.coefs_[0], full.coefs_[0])
    with pytest.raises(InputError, match="precision 'tf32' is not available on cpu"):
        LinearHead(device="cpu", precision="tf32").fit(X, y)


@pytest.mark.parametrize("room", [True, False])
def test_rows_of_low_precision_take_half_the_memory_and_give_the_same_bits(
    room, little_room, batches, monkeypatch
):
    X, y = birds(1000)
    if not room:
        little_room()
    narrow = MLPHead((8,), device="cpu", precision="bf16", epochs=2).fit(X, y)
    assert {x.dtype for epoch in batches for x in epoch} == {torch.bfloat16}
    of = Rows.of
    if room:
        monkeypatch.setattr(rows_module, "_HELD_BYTES", 2 * X.size)
        whole = X, y, np.arange(1000), np.zeros(10), np.ones(10), "cpu"
        assert of(*whole).held is None
        assert of(*whole, torch.bfloat16).held.nbytes == 2 * X.size
    monkeypatch.setattr(Rows, "of", lambda *given: of(*given[:6]))  # in float32
    wide = MLPHead((8,), device="cpu", precision="bf16", epochs=2).fit(X, y)
    assert batches[-1][0].dtype == torch.float32
    for ours, theirs in zip(narrow.coefs_, wide.coefs_, strict=True):
        assert np.array_equal(ours, theirs)
    assert narrow.history_ == wide.history_


def test_the_global_matmul_precision_is_put_back():
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    with matmul_precision("tf32"):
        assert matmul.fp32_precision == "tf32"
    assert matmul.fp32_precision == before


def test_measuring_is_in_full_precision_whatever_the_training_is_in(monkeypatch):
    X, y = birds()
    precisions = []
    watch(
        monkeypatch,
        Stack,
        "forward",
        lambda: precisions.append(torch.backends.cuda.matmul.fp32_precision),
    )
    val = Rows.of(X, y, np.arange(130), np.zeros(10), np.ones(10), "cpu")
    with matmul_precision("tf32"):
        _evaluate(Stack.drawn((10, 3), [torch.Generator()], "cpu"), val)
    assert precisions == ["ieee"]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
@pytest.mark.parametrize(
    "head",
    [
        LinearHead(epochs=20),
        LinearHead(epochs=20, lr=(1e-3, 1e-2), optimizer="sgd", schedule="cosine"),
        MLPHead((16,), epochs=20),
        MLPHead((16,), epochs=20, n_seeds=3),
    ],
    ids=str,
)
def test_the_gpu_trains_in_every_precision_and_repeats_to_the_bit(head, precision):
    X, y = birds()
    head.set_params(device="cuda", precision=precision)
    first = head.fit(X, y).predict_proba(X)
    assert np.array_equal(head.fit(X, y).predict_proba(X), first)
    assert head.score(X, y) > 0.9
