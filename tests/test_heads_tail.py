"""The rest of a network as a head: what is trained, what is not, and how it goes on."""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.base import clone
from torch import nn
from torchvision.models import ConvNeXt, DenseNet
from torchvision.models.convnext import CNBlockConfig
from torchvision.ops import StochasticDepth

from featx.cut import split_at
from featx.errors import HeadError, InputError
from featx.heads import TailHead
from featx.heads.row_view import RowView
from featx.heads.tail_network import Tail
from featx.heads.tail_training import TailRecipe, _factors


class Asks(nn.Module):
    """Drops by its own mode."""

    def forward(self, x):
        return F.dropout(x, 0.5, training=self.training)


class Tiny(nn.Module):
    """A residual, an in-place ReLU, BatchNorm on both sides of the cut `first`."""

    def __init__(self, drop=None, channels=3):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(channels, 6, 3, padding=1), nn.BatchNorm2d(6))
        self.relu = nn.ReLU(inplace=True)
        self.second = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6))
        self.drop = drop or nn.Identity()
        self.fc = nn.Linear(6, 9)

    def forward(self, x):
        x = self.relu(self.first(x))
        x = x + self.second(x)
        return self.fc(self.drop(x.mean((2, 3))))


def tiny(drop=None, channels=3):
    """With statistics that training would move."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Tiny(drop, channels)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return network.eval().requires_grad_(False)


def features(n=48, k=3, seed=0):
    """Classes that differ in one channel each; (n, 6, 4, 4) as after `first`."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % k)
    X = rng.normal(size=(n, 6, 4, 4))
    X[np.arange(n), y] += 4
    return X.astype(np.float32), y


def head(network=None, **params):
    standard = {"epochs": 3, "batch_size": 16, "lr": 0.01, "device": "cpu"}
    return TailHead(network or tiny(), cut="first", **(standard | params))


def bits(fitted):
    return {name: value.tobytes() for name, value in fitted._tensors().items()}


def test_it_learns_and_is_a_classifier():
    X, y = features()
    names = np.array(["crow", "麻雀", "wren"])[y]
    fitted = head(epochs=8, lr=0.05).fit(X, names)
    assert fitted.score(X, names) > 0.9
    assert fitted.classes_.tolist() == ["crow", "wren", "麻雀"]
    p = fitted.predict_proba(X)
    assert p.shape == (48, 3)
    assert np.allclose(p.sum(axis=1), 1)
    losses = [row["train_loss"] for row in fitted.history_]
    assert losses[-1] < losses[0] / 2
    assert clone(fitted).get_params()["cut"] == "first"


def small_densenet():
    return DenseNet(4, (1, 1), 8, drop_rate=0.5, num_classes=5)


def small_convnext():
    return ConvNeXt([CNBlockConfig(8, None, 2)], stochastic_depth_prob=0.9, num_classes=5)


@pytest.mark.parametrize(
    ("network", "cut", "shape"),
    [
        (lambda: tiny(nn.Dropout(0.5)), "first", (6, 4, 4)),
        (lambda: tiny(Asks()), "first", (6, 4, 4)),
        (lambda: tiny(StochasticDepth(0.5, "row")), "first", (6, 4, 4)),
        (small_densenet, "features.pool0", (8, 8, 8)),
        (small_convnext, "features.0", (8, 8, 8)),
    ],
    ids=["layer", "function", "stochastic depth", "DenseNet", "ConvNeXt"],
)
def test_what_drops_in_training_is_not_fixed_to_evaluation(network, cut, shape):
    torch.manual_seed(0)
    network = network().eval()
    tail = Tail(network, cut, 4)
    x = torch.randn(8, *shape)
    tail.train()
    assert not torch.equal(tail(x), tail(x))
    tail.eval()
    assert torch.equal(tail(x), tail(x))
    whole = copy.deepcopy(network)
    container, _, leaf = tail.classifier.rpartition(".")
    setattr(whole.get_submodule(container), leaf, tail._evaluated.get_submodule(tail.classifier))
    assert torch.equal(tail(x), split_at(whole, cut)[1](x))


def test_it_starts_from_the_networks_values_with_a_classifier_drawn_by_seed():
    network = tiny()
    values = Tail(network, "first", 4, seed=1).values()
    kept = {name: value for name, value in values.items() if not name.startswith("fc.")}
    assert set(kept) == {name for name in network.state_dict() if name.startswith("second.")}
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in kept.items())
    assert values["fc.weight"].shape == (4, 6)
    assert not torch.equal(
        values["fc.weight"], Tail(network, "first", 4, seed=2).values()["fc.weight"]
    )
    assert torch.equal(values["fc.weight"], Tail(network, "first", 4, seed=1).values()["fc.weight"])


def test_the_network_it_was_given_neither_changes_nor_gets_gradients():
    network = tiny()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    fitted = head(network, batchnorm="learn").fit(*features())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(name.startswith("tail.first") for name in fitted._tensors())


class Norm(nn.BatchNorm2d):
    """One that is traced through, as timm's are: its mode is part of the graph."""

    def forward(self, x):
        moving = self.running_mean, self.running_var
        return F.batch_norm(x, *moving, self.weight, self.bias, self.training)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, Norm])
@pytest.mark.parametrize("batchnorm", ["frozen", "learn", None])
def test_batchnorms_statistics_stay_unless_they_are_to_learn(batchnorm, norm):
    network = tiny()
    network.second[1] = norm(6)
    network.eval()
    values = head(network, batchnorm=batchnorm).fit(*features())._tensors()
    still = all(
        np.array_equal(values[f"tail.second.1.{name}"], value)
        for name, value in network.second[1].named_buffers()
        if f"tail.second.1.{name}" in values  # one that is traced through counts no batches
    )
    assert still is (batchnorm != "learn")
    assert not np.array_equal(values["tail.second.1.weight"], network.second[1].weight)
    assert not np.array_equal(values["tail.second.0.weight"], network.second[0].weight)


def test_rates_fall_from_the_classifier_to_the_first_layer():
    tail = Tail(tiny(), "first", 4)
    rates = [rate for _, rate in tail.rates(0.01)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    named = {id(parameter): rate for parameter, rate in tail.rates(0.01)}
    assert named[id(tail._evaluated.get_submodule("fc").bias)] == 1
    assert named[id(tail._evaluated.get_submodule("second.0").bias)] == pytest.approx(0.01)
    assert {rate for _, rate in tail.rates(1.0)} == {1.0}


def recipe(**changes):
    values = {
        "optimizer": "adamw", "lr": 1.0, "lr_ratio": 1.0, "momentum": 0.9, "weight_decay": 0.0,
        "epochs": 4, "batch_size": 8, "schedule": "cosine", "warmup": 0.25, "label_smoothing": 0.0,
        "patience": None, "precision": "fp32", "seed": 0,
    }  # fmt: skip
    return TailRecipe(**(values | changes))


def test_rates_rise_in_the_warm_up_then_fall_by_a_cosine():
    factors = [f for epoch in range(1, 5) for f in _factors(recipe(), 5, epoch)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[5] == 1.0
    assert factors[5 + 15 // 2] == pytest.approx(0.5, abs=0.06)
    assert all(a > b for a, b in pairwise(factors[5:]))
    assert 0 < factors[-1] < 0.02
    constant = [*_factors(recipe(schedule="constant", warmup=0.0), 5, 1)]
    assert constant == [1.0] * 5


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_weight_decay_makes_weights_smaller(optimizer):
    X, y = features()
    sizes = []
    for decay in (0.0, 5.0):
        fitted = head(optimizer=optimizer, lr_ratio=1.0, weight_decay=decay).fit(X, y)
        sizes.append(np.linalg.norm(fitted._tensors()["tail.second.0.weight"]))
    assert sizes[1] < 0.9 * sizes[0]


def test_the_same_seed_gives_the_same_bits_and_leaves_the_global_generator_alone():
    X, y = features()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = head(tiny(nn.Dropout(0.5))).fit(X, y)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    assert bits(head(tiny(nn.Dropout(0.5))).fit(X, y)) == bits(first)
    assert bits(head(tiny(nn.Dropout(0.5)), random_state=1).fit(X, y)) != bits(first)


def test_less_precision_is_of_the_training_steps_only():
    X, y = features()
    fitted = head(precision="bf16").fit(X, y)
    assert bits(fitted) != bits(head().fit(X, y))
    assert fitted.history_[-1]["train_loss"] < fitted.history_[0]["train_loss"]
    assert {value.dtype for value in fitted.tail_.values().values()} <= {torch.float32, torch.int64}


def test_the_best_epoch_on_validation_rows_is_kept():
    X, y = features()
    X_val, y_val = features(24, seed=1)
    y_val[:12] = y_val[:12][::-1]  # so that growing sure costs
    fitted = head(epochs=8, lr=0.05, schedule="constant").fit(X, y, X_val=X_val, y_val=y_val)
    best = max(fitted.history_, key=lambda row: (row["val_accuracy"], -row["val_loss"]))
    assert fitted.best_epoch_ == best["epoch"] < 8
    p = fitted.predict_proba(X_val)
    assert -np.log(p[np.arange(24), y_val]).mean() == pytest.approx(best["val_loss"], rel=1e-4)
    assert fitted.score(X_val, y_val) == best["val_accuracy"]
    assert fitted.choice(24).what == f"epoch {best['epoch']}"
    assert fitted.choice(24).params["epochs"] == best["epoch"]


def test_rows_are_set_aside_to_choose_on_where_none_are_given():
    X, y = features()
    fitted = head(validation_fraction=0.25).fit(X, y)
    assert fitted.n_set_aside_ == 12
    assert fitted.choice().on == "12 of the training images, set aside"
    assert fitted.choice().params["epochs"] == 3  # of a cosine fewer would be another schedule
    alone = head(validation_fraction=0.0).fit(X, y)
    assert (alone.best_epoch_, alone.history_[-1]["val_loss"]) == (3, None)
    assert alone.choice().on.startswith("nothing")


def test_training_stops_where_nothing_has_gained_for_long():
    X, y = features()
    fitted = head(epochs=30, patience=2, lr=0.05).fit(X, y)
    assert len(fitted.history_) == fitted.best_epoch_ + 2 < 30


@pytest.mark.parametrize(
    "params",
    [{}, {"optimizer": "sgd", "batchnorm": "learn"}, {"patience": 3, "validation_fraction": 0.0}],
    ids=["adamw", "sgd", "no validation rows"],
)
@pytest.mark.parametrize("stopped_after", [1, 4])
def test_an_interrupted_training_goes_on_and_ends_with_the_same_bits(
    tmp_path, params, stopped_after
):
    X, y = features()
    network = tiny(nn.Sequential(nn.Dropout(0.5), Asks()))
    whole = head(network, epochs=5, **params).fit(X, y)

    def stop(row):
        if row["epoch"] == stopped_after:
            raise KeyboardInterrupt

    path = tmp_path / "a.checkpoint"
    with pytest.raises(KeyboardInterrupt):
        head(network, epochs=5, **params).fit(X, y, checkpoint=path, told=stop)
    assert [file.name for file in tmp_path.iterdir()] == ["a.checkpoint"]
    epochs = []
    with torch.random.fork_rng():
        torch.manual_seed(7)  # another process: what is dropped must not depend on it
        resumed = head(network, epochs=5, **params).fit(
            X, y, checkpoint=path, told=lambda row: epochs.append(row["epoch"])
        )
    assert epochs == list(range(stopped_after + 1, 6))
    assert bits(resumed) == bits(whole)
    assert resumed.history_ == whole.history_
    assert resumed.best_epoch_ == whole.best_epoch_


def test_a_training_goes_on_from_its_last_epoch_and_keeps_the_best_one_before(tmp_path):
    X, y = features()
    y = np.random.default_rng(0).permutation(y)  # nothing to learn: a later epoch is no better
    whole = head(epochs=6).fit(X, y)
    assert whole.best_epoch_ < 4

    def stop(row):
        if row["epoch"] == 4:
            raise KeyboardInterrupt

    path = tmp_path / "a.checkpoint"
    with pytest.raises(KeyboardInterrupt):
        head(epochs=6).fit(X, y, checkpoint=path, told=stop)
    resumed = head(epochs=6).fit(X, y, checkpoint=path)
    assert bits(resumed) == bits(whole)
    assert resumed.history_ == whole.history_


def test_a_training_is_not_gone_on_with_where_any_value_has_changed(tmp_path):
    X, y = (np.concatenate([values] * 5) for values in features())  # 240 rows
    path = tmp_path / "a.checkpoint"
    for changed in (False, True):
        X[101].flat[-1] += 0.01 * changed
        rows = []
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            head(tiny()).fit(X, y, checkpoint=path, told=rows.append)
        assert [row["epoch"] for row in rows] == [1, 2, 3]
        assert len(heard) == changed


def test_a_fit_leaves_the_generators_of_gpus_alone(monkeypatch):
    unfitted = head(tiny())
    monkeypatch.setattr("torch.cuda.manual_seed_all", None)  # what torch.manual_seed calls
    unfitted.fit(*features())


@pytest.mark.parametrize("change", ["lr", "labels", "values", "weights"])
def test_a_checkpoint_of_another_training_is_told_and_not_gone_on_with(tmp_path, change):
    X, y = features()
    path = tmp_path / "a.checkpoint"
    head().fit(X, y, checkpoint=path)
    before = path.read_bytes()
    network, params = tiny(), {}
    if change == "lr":
        params = {"lr": 0.02}
    elif change == "labels":
        y = (y + 1) % 3
    elif change == "values":
        X = X + 1
    else:
        network.second[0].weight += 1
    epochs = []
    with pytest.warns(
        UserWarning, match="another training: settings, images, threads or versions differ"
    ):
        head(network, **params).fit(
            X, y, checkpoint=path, told=lambda row: epochs.append(row["epoch"])
        )
    assert epochs == [1, 2, 3]
    assert (tmp_path / "a.checkpoint.old").read_bytes() == before  # hours, perhaps
    with pytest.warns(UserWarning, match="now called a.checkpoint.old2"):
        head(tiny(), lr=0.3).fit(X, y, checkpoint=path)
    assert (tmp_path / "a.checkpoint.old").read_bytes() == before


@pytest.mark.parametrize("change", ["rows", "labels", "validation rows", "validation labels"])
def test_a_checkpoint_of_other_rows_or_labels_is_not_gone_on_with(tmp_path, change):
    X, y = features(300)
    path = tmp_path / "a.checkpoint"
    rows, val_rows = np.arange(100), np.arange(100, 200)
    head(epochs=1).fit(X, y, rows=rows, val_rows=val_rows, checkpoint=path)
    which = val_rows if change.startswith("validation") else rows
    changed = which[2]  # not one of those whose values are looked at
    if change.endswith("labels"):
        y[changed] = (y[changed] + 1) % 3
    else:
        which[2] = 200 + np.flatnonzero(y[200:] == y[changed])[0]
    with pytest.warns(UserWarning, match="another training"):
        head(epochs=1).fit(X, y, rows=rows, val_rows=val_rows, checkpoint=path)


@pytest.mark.parametrize(
    ("name", "value"), [("get_num_threads", lambda: 99), ("__version__", "2.99.0")]
)
def test_a_checkpoint_of_other_circumstances_is_not_gone_on_with(
    tmp_path, monkeypatch, name, value
):
    X, y = features()
    head(epochs=1).fit(X, y, checkpoint=tmp_path / "a")
    monkeypatch.setattr(torch, name, value)
    with pytest.warns(UserWarning, match="threads or versions differ"):
        head(epochs=1).fit(X, y, checkpoint=tmp_path / "a")


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"{}"])
def test_a_file_that_is_no_checkpoint_is_told(tmp_path, content):
    path = tmp_path / "a.checkpoint"
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="training starts from the first epoch"):
        head().fit(*features(), checkpoint=path)


def test_what_a_row_gets_does_not_depend_on_the_rows_beside_it():
    X, y = features(40)
    fitted = head().fit(X, y)
    together = fitted.predict_proba(X)
    for rows in ([3], [3, 39, 0], np.arange(40)[::-1]):
        assert np.array_equal(fitted.predict_proba(X[rows]), together[rows])
    assert fitted.predict_proba(X[:0]).shape == (0, 3)


def test_maps_matrices_memory_maps_and_views_are_the_same_rows(tmp_path):
    X, y = features()
    expected = bits(head().fit(X, y))
    np.save(tmp_path / "X.npy", X.reshape(48, -1))
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    more = np.concatenate([X[::-1], X]).reshape(96, -1)
    flat = {"shape": (6, 4, 4)}
    assert bits(head(**flat).fit(mapped, y)) == expected
    assert bits(head(**flat).fit(RowView(more, np.arange(48, 96)), y)) == expected
    labels = np.concatenate([np.full(48, -1), y])
    assert bits(head(**flat).fit(more, labels, rows=np.arange(48, 96))) == expected
    half = head().fit(X.astype(np.float16), y)
    assert bits(half) == bits(head().fit(X.astype(np.float16).astype(np.float32), y))


class Counting:
    """Rows that remember how many were read at once."""

    def __init__(self, X):
        self.X, self.dtype, self.shape, self.most = X, X.dtype, X.shape, 0

    def __len__(self):
        return len(self.X)

    def __getitem__(self, rows):
        assert (np.diff(rows) > 0).all()  # in the order of the file
        self.most = max(self.most, len(rows))
        return self.X[rows]


def test_rows_are_read_a_batch_at_a_time():
    X, y = features(200)
    rows = Counting(X)
    fitted = head(batch_size=16).fit(rows, y)
    assert rows.most == 16
    fitted.predict(rows)
    assert rows.most == 16


def test_no_batch_is_left_with_a_single_row():
    X, y = features(33)
    head(batch_size=16, batchnorm="learn", validation_fraction=0.0).fit(X[:, :, :1, :1], y)


def pixels(n=40, size=8, channels=3):
    rng = np.random.default_rng(0)
    y = np.arange(n) % 2
    X = rng.integers(0, 120, (n, size, size, channels))
    X[y == 1] += 100
    return X.astype(np.uint8), y


def test_pixels_are_normalised_as_for_the_whole_network():
    X, y = pixels()
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    transform = {"resize": 8, "crop": 8, "mean": mean, "std": std}
    plain = ((X / 255 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
    settings = {"cut": "input", "epochs": 2, "device": "cpu"}
    fitted = TailHead(tiny(), transform=transform, **settings).fit(X, y)
    expected = TailHead(tiny(), **settings).fit(plain, y)
    for ours, theirs in zip(fitted.history_, expected.history_, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)
    assert np.allclose(fitted.predict_proba(X), expected.predict_proba(plain), atol=1e-3)
    flat = TailHead(tiny(), transform=transform, **settings).fit(X.reshape(len(X), -1), y)
    assert bits(flat) == bits(fitted)
    with pytest.raises(InputError, match="takes uint8 pixels, got float32"):
        fitted.predict(X.astype(np.float32))


def test_pixels_are_augmented_in_training_only_and_by_seed():
    X, y = pixels()
    transform = {"resize": 8, "crop": 8, "mean": (0.4,) * 3, "std": (0.2,) * 3}
    settings = {"cut": "input", "epochs": 2, "device": "cpu", "transform": transform}
    plain = TailHead(tiny(), **settings).fit(X, y)
    settings["augment"] = "flip,pad=2,color"
    fitted = TailHead(tiny(), **settings).fit(X, y)
    assert bits(fitted) != bits(plain)
    assert bits(fitted) == bits(TailHead(tiny(), **settings).fit(X, y))
    assert np.array_equal(fitted.predict_proba(X), fitted.predict_proba(X))
    p = fitted.predict_proba(X[:4])
    fitted.augment = None
    assert np.array_equal(p, fitted.predict_proba(X[:4]))


def test_whole_pictures_are_cropped_by_the_transform():
    X, y = pixels(size=12)
    X[:, 10:] = 0
    extent = np.tile([10, 12], (len(X), 1)).astype(np.uint16)
    transform = {"resize": 10, "crop": 8, "mean": (0.4,) * 3, "std": (0.2,) * 3}
    settings = {"cut": "input", "epochs": 2, "device": "cpu", "transform": transform}
    cropped = X[:, 1:9, 2:10]  # the centre: the short side is 10 already
    expected = TailHead(tiny(), **settings).fit(cropped, y)
    fitted = TailHead(tiny(), **settings).fit(X, y, extent=extent)
    assert bits(fitted) == bits(expected)
    assert np.array_equal(fitted.predict_proba(X, extent), expected.predict_proba(cropped))
    TailHead(tiny(), **settings, augment="crop,flip").fit(X, y, extent=extent)
    with pytest.raises(InputError, match="not cropped to 8: whole pictures need their extent"):
        TailHead(tiny(), **settings).fit(X, y)
    with pytest.raises(InputError, match="fitted on whole pictures: give the extent of each"):
        fitted.predict(X)
    with pytest.raises(InputError, match="takes no extent"):
        expected.predict_proba(cropped, extent)
    with pytest.raises(InputError, match=r"extent must be \(40, 2\) of pixels, got \(39, 2\)"):
        fitted.predict_proba(X, extent[1:])


def test_from_scratch_batchnorm_learns_and_all_layers_have_one_rate():
    scratch = TailHead("squeezenet1_1", weights="random", cut="input")
    assert scratch._batchnorm() == "learn"
    assert scratch._recipe("fp32").lr_ratio == 1
    assert TailHead("squeezenet1_1")._recipe("fp32").lr_ratio == 0.1


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"batchnorm": "thawed"}, "batchnorm must be frozen or learn, got 'thawed'"),
        ({"optimizer": "adam"}, "optimizer must be adamw or sgd, got 'adam'"),
        ({"schedule": "step"}, "schedule must be cosine or constant"),
        ({"lr": 0.0}, "lr must be a number above 0"),
        ({"lr_ratio": 2.0}, "lr_ratio must be above 0, up to 1"),
        ({"warmup": 1.0}, "warmup must be 0 to below 1"),
        ({"label_smoothing": -0.1}, "label_smoothing must be 0 to below 1"),
        ({"epochs": 0}, "epochs must be a whole number above 0"),
        ({"shape": ()}, "shape must be sizes above 0"),
        ({"backbone": 3}, "backbone must be the name of a network, or a Module"),
        ({"weights_seed": -1}, "weights_seed must be 0 or more"),
        ({"transform": {"crop": 3}}, "a transform has the fields"),
        ({"transform": 3}, "transform must be a dict or None"),
        ({"augment": "flop"}, "augment word 'flop' is unknown"),
        ({"augment": "flip"}, "augment changes pixels, .* of the cut '.*': extract with --cut"),
        ({"cut": "third"}, "unknown cut 'third'"),
        ({"cut": "fc"}, "the cut 'fc' is behind the network's last layer"),
        ({"device": "gpu"}, "device must be auto, cpu"),
        ({"augment": " "}, "augment must be words such as flip,crop, got ' '"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_sentence(params, words):
    with pytest.raises(InputError, match=words):
        TailHead(**({"backbone": tiny(), "cut": "first"} | params)).fit(*features())


@pytest.mark.parametrize(
    ("X", "words"),
    [
        (np.zeros((48, 7), np.float32), r"rows of shape \(7,\) do not enter the network at first"),
        (np.full((48, 6, 4, 4), np.nan, np.float32), "NaN or infinite"),
        (np.zeros((48, 6, 4, 4), np.uint8), "enter at the cut 'input', not 'first'"),
        (np.zeros(48, np.float32), r"X must be \(n, d\) or \(n, \*shape\)"),
        (np.zeros((47, 6, 4, 4), np.float32), "X has 47 rows, y 48 labels"),
    ],
)
def test_rows_that_do_not_fit_are_refused(X, words):
    with pytest.raises(InputError, match=words):
        head().fit(X, np.arange(48) % 3)


class TwoHeads(Tiny):
    """Gives a tuple in training mode, as GoogLeNet does."""

    def forward(self, x):
        x = super().forward(x)
        return (x, x) if self.training else x


def test_a_network_of_several_scores_in_training_is_refused():
    with pytest.raises(InputError, match="in training mode the network gives something else than"):
        head(TwoHeads().eval()).fit(*features())


def test_looking_at_training_mode_moves_nothing():
    made = Tail(tiny(), "first", 3, batchnorm="learn")
    before = {name: value.clone() for name, value in made.values().items()}
    assert made.gives_scores_in_training(torch.randn(1, 6, 4, 4))
    assert all(torch.equal(value, before[name]) for name, value in made.values().items())
    assert not made.training


def test_pooled_features_of_a_named_network_are_refused():
    with pytest.raises(InputError, match=r"hold 512 values, but at features.12 an image has 86,528 "
                       r"\(512x13x13\): the features must not be pooled"):  # fmt: skip
        TailHead("squeezenet1_1", weights="random", cut="features.12", device="cpu").fit(
            np.zeros((6, 512), np.float32), np.arange(6) % 2
        )


def test_other_weights_than_those_that_made_the_features_are_refused():
    wrong = TailHead("squeezenet1_1", weights="random", weights_sha256="0" * 64, device="cpu")
    with pytest.raises(
        HeadError, match="made with squeezenet1_1 weights of SHA-256 0000000000000000…"
    ):
        wrong.fit(np.zeros((6, 512, 3, 3), np.float32), np.arange(6) % 2)


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_a_training_that_diverges_says_so():
    X, y = features()
    with pytest.raises(InputError, match=r"training diverged .* lower lr"):
        head(optimizer="sgd", lr=1e30, batchnorm="learn").fit(X, y)


UNDER_A_LIMIT = """
import re, resource, sys
from pathlib import Path
import numpy as np
from tests.test_heads_tail import head
X = np.load(sys.argv[1], mmap_mode="r")
y = np.arange(len(X)) % 2
settings = {"epochs": 1, "batch_size": 256, "lr": 1e-4}
head(**settings).fit(X[:512], y[:512]).predict(X[:512])
used = int(re.search(r"VmData:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10
resource.setrlimit(resource.RLIMIT_DATA, (used + (256 << 20),) * 2)
fitted = head(**settings).fit(X, y)
print(len(fitted.predict(X)), X.nbytes)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the limit means something else")
def test_rows_four_times_as_large_as_the_memory_are_trained_on_and_predicted(tmp_path):
    path = tmp_path / "X.npy"
    rows = np.lib.format.open_memmap(path, "w+", np.float32, (45_000, 6, 32, 32))  # all 0: a hole
    rows[::2, 0] = 1
    rows.flush()
    done = subprocess.run(
        [sys.executable, "-c", UNDER_A_LIMIT, str(path)], capture_output=True, text=True
    )
    assert done.stdout.split() == ["45000", str(rows.nbytes)], done.stderr
    assert rows.nbytes > 4 * (256 << 20)


def test_a_batch_that_batchnorm_cannot_learn_from_is_one_clear_sentence():
    net = nn.Sequential(nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 2))
    X = np.random.default_rng(0).random((8, 4), np.float32)
    head = TailHead(net, cut="0", batch_size=1, epochs=1, batchnorm="learn", device="cpu")
    with pytest.raises(InputError, match=r"a batch of 1 .*larger --batch-size, or --batchnorm"):
        head.fit(X, np.arange(8) % 2)
    head.set_params(batchnorm="frozen").fit(X, np.arange(8) % 2)
