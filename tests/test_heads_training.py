"""Tests of the linear and mlp heads and the loop that trains them."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import featx.heads.training as training
from featx.errors import InputError
from featx.heads import LinearHead, MLPHead
from featx.splits import cross_validation_folds


def birds(n=130, d=10, k=3, seed=0, spread=1.2):
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % k)
    X = rng.normal(size=(n, d)) + spread * np.random.default_rng(99).normal(size=(k, d))[y]
    return X.astype(np.float32), y


@pytest.fixture
def batches(monkeypatch):
    """The positions of every batch that was taken."""
    seen = []
    batch = training.Rows.batch

    def recording(self, which):
        seen.append(which.clone())
        return batch(self, which)

    monkeypatch.setattr(training.Rows, "batch", recording)
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
    LinearHead(epochs=3, batch_size=32).fit(X, y, X_val=X[:5], y_val=y[:5])
    per_epoch = 5 + 1 + 1  # 130 rows: four batches of 32 and one of 2; then train and val measured
    assert len(batches) == 3 * per_epoch
    orders = []
    for epoch in range(3):
        steps = batches[epoch * per_epoch :][:5]
        assert [len(which) for which in steps] == [32, 32, 32, 32, 2]
        orders.append(torch.cat(steps))
        assert torch.equal(orders[-1].sort().values, torch.arange(130))
    assert not torch.equal(orders[0], orders[1])  # shuffled anew


def test_the_history_is_measured_by_the_weights_that_each_epoch_left():
    X, y = birds()
    X_val, y_val = birds(60, seed=1)
    head = MLPHead((8,), dropout=0.5, epochs=6, patience=None).fit(X, y, X_val=X_val, y_val=y_val)
    assert [epoch["epoch"] for epoch in head.history_] == [1, 2, 3, 4, 5, 6]
    best = head.history_[head.best_epoch_ - 1]
    for part, features, labels in (("train", X, y), ("val", X_val, y_val)):
        p = head.predict_proba(features)
        assert best[f"{part}_accuracy"] == (p.argmax(axis=1) == labels).mean()
        loss = -np.log(p[np.arange(len(labels)), labels]).mean()
        assert best[f"{part}_loss"] == pytest.approx(loss, rel=1e-5)


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


def test_the_mlp_has_the_layers_asked_for_and_learns_exclusive_or():
    X = np.array([[0, 0], [0, 1], [1, 0], [1, 1]] * 25, np.float32)
    y = (X[:, 0] != X[:, 1]).astype(int)
    head = MLPHead((12, 7), lr=0.01, epochs=100, dropout=0.0).fit(X, y)
    assert [W.shape for W in head.coefs_] == [(12, 2), (7, 12), (2, 7)]
    assert head.score(X, y) == 1
    assert LinearHead().fit(X, y).score(X, y) < 0.8


def test_dropout_keeps_the_mean_and_does_nothing_when_predicting():
    layer = training.Dropout(0.3, torch.Generator().manual_seed(0))
    x = torch.ones(100_000)
    assert layer(x).mean() == pytest.approx(1, abs=0.01)
    assert (layer(x) == 0).float().mean() == pytest.approx(0.3, abs=0.01)
    assert torch.equal(layer.eval()(x), x)


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


def test_rows_too_many_to_hold_are_gathered_batch_by_batch_with_the_same_result(monkeypatch):
    X, y = birds()
    held = LinearHead(epochs=3).fit(X, y)
    monkeypatch.setattr(training, "_WORKING_COPY_BYTES", 100)
    gathered = LinearHead(epochs=3).fit(X, y)
    assert held.coefs_[0].tobytes() == gathered.coefs_[0].tobytes()
    assert held.history_ == gathered.history_


def test_a_training_that_diverges_is_told_with_the_way_out():
    X, y = birds()
    with pytest.raises(InputError, match=r"training diverged in epoch \d+ .* lower lr"):
        LinearHead(optimizer="sgd", lr=1e38, standardise=False, epochs=5).fit(X * 1e3, y)


def test_low_precision_trains_and_is_refused_where_the_device_has_none():
    X, y = birds()
    head = LinearHead(device="cpu", precision="bf16", epochs=20, lr=0.01).fit(X, y)
    assert head.score(X, y) > 0.9
    full = LinearHead(device="cpu", epochs=20, lr=0.01).fit(X, y)
    assert not np.array_equal(head.coefs_[0], full.coefs_[0])
    with pytest.raises(InputError, match="precision 'tf32' is not available on cpu"):
        LinearHead(device="cpu", precision="tf32").fit(X, y)


def test_the_global_matmul_precision_is_put_back():
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    with training.matmul_precision("tf32"):
        assert matmul.fp32_precision == "tf32"
    assert matmul.fp32_precision == before


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
@pytest.mark.parametrize("head", [LinearHead(epochs=20), MLPHead((16,), epochs=20)], ids=str)
def test_the_gpu_trains_in_every_precision_and_repeats_to_the_bit(head, precision):
    X, y = birds()
    head.set_params(device="cuda", precision=precision)
    first = head.fit(X, y).predict_proba(X)
    assert np.array_equal(head.fit(X, y).predict_proba(X), first)
    assert head.score(X, y) > 0.9
