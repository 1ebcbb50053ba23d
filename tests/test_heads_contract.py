"""Every head keeps the whole scikit-learn contract, and the promises all heads make."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import featx.heads.base
from featx.errors import InputError
from featx.heads import CentroidHead, KNNHead, LinearHead, LogisticHead, MLPHead, RidgeHead
from featx.heads.base import learn_standardisation, standardised_blocks

QUICK = [
    LogisticHead(cs=(1e-2, 1.0), cv=2, device="cpu"),
    LinearHead(epochs=15, lr=0.05, device="cpu"),
    MLPHead(hidden=(8,), epochs=15, lr=0.02, device="cpu"),
    RidgeHead(device="cpu"),
    KNNHead(device="cpu"),
    KNNHead(3, weights="uniform", standardise=True, device="cpu"),
    CentroidHead(device="cpu"),
    CentroidHead("cosine", device="cpu"),
]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.filterwarnings("ignore:no rows could be set aside:UserWarning")
@parametrize_with_checks(QUICK)
def test_the_head_passes_scikit_learns_check(estimator, check):
    check(estimator)


def birds(n=120, d=12, k=4, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % k)
    X = rng.normal(size=(n, d)) + 1.5 * rng.normal(size=(k, d))[y]
    return (X * rng.uniform(0.1, 50, d) + rng.normal(0, 20, d)).astype(dtype), y


each_head = pytest.mark.parametrize("head", QUICK, ids=lambda h: type(h).__name__)


@each_head
def test_the_same_seed_gives_the_same_bits_and_leaves_the_global_generators_alone(head):
    X, y = birds()
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002  # the global generator is what must not move
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = clone(head).fit(X, y)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    torch.manual_seed(8)
    again = clone(head).fit(X, y)
    for name, tensor in first._tensors().items():
        assert tensor.tobytes() == again._tensors()[name].tobytes(), name


@each_head
def test_a_fit_leaves_the_number_of_threads_alone(head):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        clone(head).fit(*birds())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@each_head
def test_float16_and_memory_maps_are_fitted_without_a_change(head, tmp_path):
    X, y = birds(dtype=np.float16)
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    p = clone(head).fit(mapped, y).predict_proba(mapped)
    assert np.array_equal(p, clone(head).fit(X, y).predict_proba(X))
    assert np.allclose(p, clone(head).fit(X.astype(np.float64), y).predict_proba(X), atol=1e-6)


@each_head
def test_arguments_are_not_changed(head):
    X, y = birds(dtype=np.float64)
    before = X.copy(), y.copy()
    clone(head).fit(X, y, X_val=X[:20], y_val=y[:20]).predict_proba(X)
    assert np.array_equal(X, before[0])
    assert np.array_equal(y, before[1])


@each_head
def test_a_torch_tensor_predicts_like_the_array(head):
    X, y = birds()
    fitted = clone(head).fit(torch.from_numpy(X), y)
    assert np.array_equal(fitted.predict_proba(torch.from_numpy(X)), fitted.predict_proba(X))


@each_head
def test_many_rows_are_predicted_in_blocks_that_change_nothing(head, monkeypatch):
    X, y = birds()
    fitted = clone(head).fit(X, y)
    whole = fitted.predict_proba(X)
    sizes = []
    blocks = featx.heads.base.standardised_blocks
    monkeypatch.setattr(featx.heads.base, "_BLOCK_BYTES", 7 * 12 * 8)
    monkeypatch.setattr(
        featx.heads.base,
        "standardised_blocks",
        lambda *a: ((sizes.append(len(Z)), (rows, Z))[1] for rows, Z in blocks(*a)),
    )
    assert np.allclose(fitted.predict_proba(X), whole, rtol=0, atol=1e-14)
    assert max(sizes) == 7
    assert sum(sizes) == len(X)


@each_head
@pytest.mark.parametrize("labels", [["wren", "crow", "tit"], [7, -3, 40]])
def test_labels_are_given_back_as_they_came(head, labels):
    X, y = birds(k=3)
    y = np.array(labels)[y]
    fitted = clone(head).fit(X, y)
    assert fitted.classes_.tolist() == sorted(labels)
    assert (fitted.predict(X) == y).mean() > 0.9
    assert fitted.predict(X).dtype == y.dtype


@each_head
def test_probabilities_sum_to_one_even_for_rows_far_away(head):
    X, y = birds()
    fitted = clone(head).fit(X, y)
    p = fitted.predict_proba(X * 1e6)
    assert np.isfinite(p).all()
    assert np.allclose(p.sum(axis=1), 1)


@each_head
def test_validation_rows_are_not_trained_on(head):
    X, y = birds()
    other = X[:30] * 3 + 100
    head = clone(head).set_params(standardise=True)
    a = clone(head).fit(X, y, X_val=X[:30], y_val=y[:30])
    b = clone(head).fit(X, y, X_val=other, y_val=y[:30])
    assert np.array_equal(a.mean_, b.mean_)
    assert np.allclose(a.mean_, X.mean(axis=0, dtype=np.float64))


@each_head
def test_validation_rows_of_an_unknown_class_are_left_out_and_told(head):
    X, y = birds()
    known = clone(head).fit(X, y, X_val=X[:30], y_val=y[:30])
    with pytest.warns(UserWarning, match="2 of 32 validation rows are of classes without"):
        told = clone(head).fit(X, y, X_val=X[:32], y_val=[*y[:30], 99, 98])
    for name, tensor in known._tensors().items():
        assert np.array_equal(tensor, told._tensors()[name])


@each_head
@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"X_val": np.zeros((1, 12))}, "X_val and y_val go together"),
        ({"X_val": np.zeros((2, 12)), "y_val": [0]}, "X_val has 2 rows, y_val 1 labels"),
        ({"X_val": np.zeros((1, 12)), "y_val": [9]}, "no validation row is of a class"),
    ],
)
def test_validation_rows_that_do_not_fit_are_refused(head, keywords, message):
    with pytest.raises(InputError, match=message):
        clone(head).fit(*birds(), **keywords)


@each_head
def test_one_class_is_refused(head):
    X, _ = birds()
    with pytest.raises(InputError, match="needs training rows of at least 2 classes, got one"):
        clone(head).fit(X, np.full(len(X), 5))


@each_head
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("device", 3, "device must be a device's name, got 3"),
        ("device", "tpu", "device must be auto, cpu, cuda"),
        ("standardise", "yes", "standardise must be True or False, got 'yes'"),
        ("random_state", None, "random_state must be a whole number, .* got None"),
        ("random_state", -1, "random_state must be a whole number, .* got -1"),
    ],
)
def test_a_bad_common_parameter_is_told_in_one_sentence(head, name, value, message):
    with pytest.raises(InputError, match=message):
        clone(head).set_params(**{name: value}).fit(*birds())


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (LogisticHead(C=0), "C must be a number above 0 or None, got 0"),
        (LogisticHead(C="1"), "C must be a number above 0 or None, got '1'"),
        (LogisticHead(cs=()), "cs must be default, dinov2 or several numbers above"),
        (LogisticHead(cs="all"), "cs must be default, .* got 'all'"),
        (LogisticHead(cs=3), "cs must be default, dinov2"),
        (LogisticHead(cv=1), "cv must be a whole number of folds, 2 or more, got 1"),
        (LogisticHead(tol=0), "tol must be a number above 0"),
        (LogisticHead(max_iter=1.5), "max_iter must be a whole number"),
        (LogisticHead(class_weight="even"), "class_weight must be balanced, or in Python a dict"),
        (LinearHead(optimizer="adamw"), "optimizer must be 'adam' or 'sgd', got 'adamw'"),
        (LinearHead(lr=-1), "lr must be a number above 0"),
        (LinearHead(lr=()), r"lr must be a number above 0, several different ones, .* got \(\)"),
        (LinearHead(lr=(0.1, 0)), "lr must be a number above 0"),
        (LinearHead(lr=(0.1, 0.1)), "lr must be .* several different ones"),
        (LinearHead(lr="all"), "lr must be .* or grid, got 'all'"),
        (LinearHead(schedule="step"), "schedule must be 'constant' or 'cosine', got 'step'"),
        (LinearHead(epochs=0), "epochs must be a whole number above 0, got 0"),
        (LinearHead(batch_size=True), "batch_size must be a whole number above 0, got True"),
        (LinearHead(label_smoothing=1), "label_smoothing must be 0 to below 1"),
        (LinearHead(validation_fraction=0.9), "validation_fraction must be a fraction from 0"),
        (LinearHead(precision="int8"), "precision must be fp32, tf32, bf16 or fp16, got"),
        (MLPHead(lr=(0.1, 0.2)), "lr must be a number above 0"),
        (MLPHead(n_seeds=0), "n_seeds must be a whole number above 0, got 0"),
        (MLPHead(n_seeds=2, random_state=2**63 - 1), "random_state must be below 2.*63"),
        (MLPHead(hidden=()), "hidden must be a sequence of at least one layer size above 0"),
        (MLPHead(hidden=64), "hidden must be a sequence .* got 64"),
        (MLPHead(dropout=1.0), "dropout must be 0 to below 1, got 1.0"),
        (MLPHead(patience=0), "patience must be a whole number of epochs above 0, or None"),
        (RidgeHead(alpha=0), "alpha must be a number above 0 or None, got 0"),
        (RidgeHead(alphas=(1, -1)), "alphas must be 'default' or a sequence of numbers above 0"),
        (RidgeHead(alphas="gcv"), "alphas must be 'default'"),
        (RidgeHead(cv=1.5), "cv must be a whole number of folds, 2 or more, got 1.5"),
        (RidgeHead(class_weight={0: 0}), "class_weight must be balanced, or in Python a dict of"),
        (KNNHead(0), "n_neighbors must be a whole number, 1 or more, or None, got 0"),
        (KNNHead(weights="distance"), "weights must be 'exponential' or 'uniform', got 'distance'"),
        (KNNHead(temperature=0), "temperature must be a number, 0.000001 or more, got 0"),
        (CentroidHead("manhattan"), "metric must be 'euclidean' or 'cosine', got 'manhattan'"),
        (CentroidHead(cv=1), "cv must be a whole number of folds, 2 or more, got 1"),
        (RidgeHead(class_weight="even"), "class_weight must be balanced, or in Python a dict of"),
    ],
    ids=str,
)
def test_a_bad_parameter_is_told_in_one_sentence(head, message):
    with pytest.raises(InputError, match=message):
        head.fit(*birds())


def test_standardisation_is_standard_scalers():
    X, _ = birds(dtype=np.float64)
    X[:, 3] = 1e8 / 3  # constant
    X[:, 4] = 0
    X[:, 5] = 1e6 + X[:, 5] * 1e-3
    theirs = StandardScaler().fit(X)
    mean, scale = learn_standardisation(X)
    assert np.allclose(mean, theirs.mean_, rtol=1e-12)
    assert np.allclose(scale, theirs.scale_, rtol=1e-7)
    assert scale[3] == scale[4] == 1


def test_standardisation_of_some_rows_in_blocks_is_that_of_the_rows(monkeypatch):
    X, _ = birds()
    rows = np.arange(3, 90, 2)
    whole = learn_standardisation(X[rows])
    monkeypatch.setattr(featx.heads.base, "_BLOCK_BYTES", 5 * 12 * 8)
    monkeypatch.setattr(featx.heads.base, "_PIECE_BYTES", 2 * 12 * 8)
    assert np.allclose(learn_standardisation(X, rows), whole, rtol=1e-12)
    blocks = [(part, Z.copy()) for part, Z in standardised_blocks(X, *whole, rows)]
    assert [len(Z) for _, Z in blocks][:-1] == [5] * (len(blocks) - 1)
    Z = (X[rows].astype(np.float64) - whole[0]) / whole[1]
    assert np.array_equal(np.concatenate([block for _, block in blocks]), Z)
