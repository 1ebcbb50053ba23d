"""Tests of featx.metrics."""

import json
import warnings

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

import featx.metrics.blocks
import featx.metrics.bootstrap
import featx.metrics.scoring
from featx.errors import InputError
from featx.metrics import Estimate, score


def random_case(n=200, k=8, seed=0):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(k, 0.3), n)
    y = np.where(rng.random(n) < 0.5, p.argmax(1), rng.integers(0, k, n))
    return y, p, [f"class {c}" for c in range(k)]


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")  # scikit-learn's
@pytest.mark.parametrize("k", [2, 3, 8, 30])
@pytest.mark.parametrize("absent", [None, 1])
def test_the_figures_equal_scikit_learns(k, absent):
    y, p, names = random_case(k=k)
    y[y == absent] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = score(y, p, classes=names, bootstrap=5)
    predicted = p.argmax(1)
    assert report.accuracy.value == pytest.approx(sk.accuracy_score(y, predicted))
    assert report.balanced_accuracy.value == pytest.approx(sk.balanced_accuracy_score(y, predicted))
    assert report.macro_f1.value == pytest.approx(
        sk.f1_score(y, predicted, average="macro", labels=np.unique(y), zero_division=0)
    )
    assert report.weighted_f1.value == pytest.approx(
        sk.f1_score(y, predicted, average="weighted", zero_division=0)
    )
    assert report.log_loss.value == pytest.approx(sk.log_loss(y, p, labels=range(k)))
    assert report.brier.value == pytest.approx(((p - np.eye(k)[y]) ** 2).sum(axis=1).mean())
    if absent is None and k > 2:  # scikit-learn's own definition of it, for three classes or more
        theirs = sk.brier_score_loss(y, p, labels=range(k), scale_by_half=False)
        assert report.brier.value == pytest.approx(theirs)
    if k > 5:
        assert report.top5.value == pytest.approx(
            sk.top_k_accuracy_score(y, p, k=5, labels=range(k))
        )
    else:
        assert report.top5 is None
    assert np.array_equal(report.confusion, sk.confusion_matrix(y, predicted, labels=range(k)))
    assert report.confusion.dtype == np.int64


@pytest.mark.parametrize("absent", [False, True])
def test_the_table_of_classes_equals_scikit_learns(absent):
    y, p, names = random_case(n=60, k=9)
    if absent:
        p[:, [2, 7]] = 0
        p /= p.sum(1, keepdims=True)
        y[np.isin(y, [2, 3])] = 4
    theirs = np.array(
        sk.precision_recall_fscore_support(y, p.argmax(1), labels=range(9), zero_division=np.nan)
    ).T
    report = score(y, p, classes=names, bootstrap=0)
    ours = [[c.precision, c.recall, c.f1, c.support] for c in report.per_class]
    assert np.allclose(np.array(ours, float), theirs, equal_nan=True)
    assert [c.name for c in report.per_class] == names
    if absent:
        assert (report.per_class[2].f1, report.per_class[3].recall) == (None, None)
        assert report.n_classes_present == 7


def test_the_baseline_is_the_commonest_training_class_measured_on_the_test_images():
    p = np.full((4, 3), 1 / 3)
    report = score([2, 2, 2, 1], p, classes="abc", train_counts=[1, 9, 3])
    assert report.baseline.class_name == "b"
    assert report.baseline.class_index == 1
    assert report.baseline.commonest_in == "training images"
    assert report.baseline.accuracy.value == 0.25


@pytest.mark.parametrize("counts", [None, [0, 0, 0]])
def test_without_training_counts_the_baseline_is_the_commonest_test_class_and_says_so(counts):
    p = np.full((4, 3), 1 / 3)
    report = score([2, 2, 2, 1], p, classes="abc", train_counts=counts)
    assert (report.baseline.class_name, report.baseline.accuracy.value) == ("c", 0.75)
    assert report.baseline.commonest_in == "test images"


def test_equal_probabilities_count_for_the_first_class_in_top_1_and_top_5_alike():
    p = np.full((7, 7), 1 / 7)
    report = score(np.arange(7), p, classes="abcdefg", bootstrap=0)
    assert report.accuracy.value == pytest.approx(1 / 7)
    assert report.top5.value == pytest.approx(5 / 7)


def test_intervals_are_the_percentiles_of_figures_taken_anew_on_drawn_images():
    y, p, names = random_case(n=50, k=6)
    report = score(y, p, classes=names, train_counts=[1, 2, 3, 4, 5, 6], bootstrap=200, seed=5)
    rng = np.random.default_rng(5)
    draws = [rng.integers(0, 50, 50) for _ in range(200)]
    bare = [score(y[d], p[d], classes=names, bootstrap=0) for d in draws]
    means = ("accuracy", "top5", "balanced_accuracy", "macro_f1", "weighted_f1", "log_loss")
    for name in (*means, "brier", "average_precision", "roc_auc"):
        low, high = np.percentile([getattr(r, name).value for r in bare], [2.5, 97.5])
        ours = getattr(report, name)
        assert (ours.low, ours.high) == pytest.approx((low, high)), name
    low, high = np.percentile([(y[d] == 5).mean() for d in draws], [2.5, 97.5])
    assert (report.baseline.accuracy.low, report.baseline.accuracy.high) == (low, high)


def test_where_images_belong_together_whole_groups_are_drawn():
    y, p, names = random_case(n=50, k=6)
    groups = np.where(np.arange(50) < 44, np.arange(50) % 11, -1)  # and six images alone
    report = score(y, p, classes=names, groups=groups, bootstrap=200, seed=5)
    members = [np.flatnonzero(groups == g) for g in range(11)] + [
        np.array([i]) for i in range(44, 50)
    ]
    rng = np.random.default_rng(5)
    draws = [np.concatenate([members[u] for u in rng.integers(0, 17, 17)]) for _ in range(200)]
    bare = [score(y[d], p[d], classes=names, bootstrap=0) for d in draws]
    for name in ("accuracy", "macro_f1", "weighted_f1", "log_loss", "average_precision", "roc_auc"):
        low, high = np.percentile([getattr(r, name).value for r in bare], [2.5, 97.5])
        ours = getattr(report, name)
        assert (ours.low, ours.high) == pytest.approx((low, high)), name


def test_copies_in_one_group_make_an_interval_no_narrower():
    y, p, names = random_case(n=60)
    once = score(y, p, classes=names, bootstrap=300).accuracy
    four = score(
        np.tile(y, 4), np.tile(p, (4, 1)), classes=names, groups=np.tile(np.arange(60), 4),
        bootstrap=300,
    ).accuracy  # fmt: skip
    assert (four.low, four.high) == pytest.approx((once.low, once.high))


def test_of_a_single_group_nothing_can_be_drawn():
    y, p, names = random_case()
    report = score(y, p, classes=names, groups=np.zeros(len(y), int))
    assert report.accuracy.low is report.log_loss.low is report.roc_auc.low is None
    with pytest.raises(InputError, match="groups must be one whole number for each"):
        score(y, p, classes=names, groups=[0, 1])


def test_an_interval_covers_the_true_accuracy_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        right = rng.random(80) < 0.7
        p = np.where(right[:, None], [0.2, 0.8], [0.8, 0.2])
        accuracy = score(np.ones(80, int), p, classes="ab", bootstrap=200, seed=trial).accuracy
        covered += accuracy.low <= 0.7 <= accuracy.high
    assert 0.88 < covered / 200 < 0.99


def test_the_intervals_do_not_depend_on_how_the_draws_are_cut_into_blocks(monkeypatch):
    y, p, names = random_case(n=37, k=7)
    whole = score(y, p, classes=names, bootstrap=50).to_dict()
    monkeypatch.setattr(featx.metrics.blocks, "_BLOCK", 200)
    assert score(y, p, classes=names, bootstrap=50).to_dict() == whole


def test_the_seed_decides_the_draws():
    y, p, names = random_case()
    first, again, other = (
        score(y, p, classes=names, bootstrap=50, seed=s).log_loss for s in (1, 1, 2)
    )
    assert first == again
    assert first.low != other.low


def test_resampling_never_holds_more_than_a_block(monkeypatch):
    held = []
    counts = featx.metrics.bootstrap.row_counts
    monkeypatch.setattr(featx.metrics.blocks, "_BLOCK", 10_000)
    monkeypatch.setattr(
        featx.metrics.bootstrap, "row_counts", lambda v, k: held.append(v.size) or counts(v, k)
    )
    y, p, names = random_case(n=500)
    score(y, p, classes=names, bootstrap=300)
    assert max(held) <= 10_000


@pytest.mark.parametrize("right", [True, False])
def test_where_all_images_are_alike_shares_have_the_exact_interval_and_others_none(right):
    y, n_units = np.arange(60) % 3, 20
    p = np.eye(3)[y if right else (y + 1) % 3] * 0.7 + 0.1
    report = score(y, p, classes=list("abc"), groups=np.arange(60) // 3)
    exact = binomtest(n_units if right else 0, n_units).proportion_ci(method="exact")
    found = report.accuracy
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high))
    assert found.value == float(right)
    for figure in (report.balanced_accuracy, report.macro_f1, report.weighted_f1):
        assert (figure.value, figure.low, figure.high) == (float(right), None, None)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (1, 2), (1, 7), (5, 1), (3, 2)])
def test_the_smallest_cases_are_scored(n, k):
    p = np.full((n, k), 1 / k)
    report = score(np.zeros(n, int), p, classes=[str(c) for c in range(k)], bootstrap=20)
    assert report.accuracy == Estimate(1.0, pytest.approx(0.025 ** (1 / n)), 1.0)
    assert report.log_loss.value == pytest.approx(np.log(k))
    assert report.confusion.shape == (k, k)
    assert (report.average_precision, report.roc_auc) == (None, None)  # one class only
    assert report.brier.value == pytest.approx((1 - 1 / k) ** 2 + (k - 1) / k**2)


@pytest.mark.parametrize("decimals", [16, 1])  # 1: most images share their probability with others
@pytest.mark.parametrize("k", [2, 5])
def test_rankings_equal_scikit_learns_also_among_equals(k, decimals):
    y, p, names = random_case(n=150, k=k)
    p = p.round(decimals)
    p /= p.sum(axis=1, keepdims=True)
    report = score(y, p, classes=names, bootstrap=0)
    true = np.eye(k)[y]
    for label, row in enumerate(report.per_class):
        ap = sk.average_precision_score(true[:, label], p[:, label])
        assert row.average_precision == pytest.approx(ap, rel=1e-12)
        assert row.roc_auc == pytest.approx(sk.roc_auc_score(true[:, label], p[:, label]), 1e-12)
    assert report.average_precision.value == pytest.approx(
        sk.average_precision_score(true, p, average="macro")
    )
    theirs = sk.roc_auc_score(y, p[:, 1] if k == 2 else p, multi_class="ovr", average="macro")
    assert report.roc_auc.value == pytest.approx(theirs)


def test_a_class_of_no_image_or_of_every_image_has_no_ranking_and_is_in_no_average():
    y, p, names = random_case(k=4)
    y[y == 2] = 0
    report = score(y, p, classes=names, bootstrap=20)
    assert [(c.average_precision is None, c.roc_auc is None) for c in report.per_class] == [
        (c == 2, c == 2) for c in range(4)
    ]
    others = [0, 1, 3]
    theirs = sk.roc_auc_score(np.eye(4)[y][:, others], p[:, others], average="macro")
    assert report.roc_auc.value == pytest.approx(theirs)
    alone = score(np.ones(9, int), np.tile([0.2, 0.8], (9, 1)), classes="ab", bootstrap=20)
    assert alone.per_class[1].average_precision is None  # every image is of it
    assert alone.average_precision is None


def test_draws_of_one_class_only_do_not_spoil_the_interval_of_a_ranking():
    y = np.array([0, 0, 0, 1])  # a draw in three has no image of class 1
    p = np.array([[0.9, 0.1], [0.7, 0.3], [0.4, 0.6], [0.5, 0.5]])
    auc = score(y, p, classes="ab", bootstrap=100).roc_auc
    assert auc.value == pytest.approx(2 / 3)
    assert 0 <= auc.low < auc.value < auc.high == 1


def test_rankings_of_very_many_images_and_classes_have_no_interval(monkeypatch):
    y, p, names = random_case(n=100, k=8)
    monkeypatch.setattr(featx.metrics.scoring, "MAX_RESAMPLED", 800)
    assert score(y, p, classes=names, bootstrap=20).roc_auc.low is not None
    monkeypatch.setattr(featx.metrics.scoring, "MAX_RESAMPLED", 799)
    report = score(y, p, classes=names, bootstrap=20)
    assert (report.roc_auc.low, report.average_precision.low) == (None, None)
    assert report.brier.low is not None


def guo(y, p, n_bins=15):
    """Expected calibration error as it is written in Guo et al. 2017, eq. 3: bin by bin."""
    confidence, right = p.max(axis=1), p.argmax(axis=1) == y
    error = 0.0
    for m in range(n_bins):
        inside = (confidence > m / n_bins) & (confidence <= (m + 1) / n_bins)
        if inside.any():
            gap = right[inside].mean() - confidence[inside].mean()
            error += inside.sum() / len(y) * abs(gap)
    return error


@pytest.mark.parametrize("k", [2, 8, 30])
def test_the_calibration_error_is_guos_and_the_curve_scikit_learns(k):
    y, p, names = random_case(n=500, k=k)
    report = score(y, p, classes=names, bootstrap=0)
    curve = report.reliability
    assert report.ece.value == pytest.approx(guo(y, p))
    assert curve.count.sum() == 500
    filled = curve.count > 0
    right = p.argmax(axis=1) == y
    accuracy, confidence = calibration_curve(right, p.max(axis=1), n_bins=15)
    np.testing.assert_allclose(curve.accuracy[filled], accuracy)
    np.testing.assert_allclose(curve.confidence[filled], confidence)
    assert np.isnan(curve.accuracy[~filled]).all()
    assert (report.ece.low, report.ece_if_calibrated) == (None, None)


def test_a_confidence_on_an_edge_is_in_the_bin_below():
    p = np.array([[1.0, 0.0], [0.6, 0.4], [0.4, 0.6]])  # 0.6 is 9 of 15
    curve = score([0, 0, 0], p, classes="ab", bootstrap=0).reliability
    assert np.flatnonzero(curve.count).tolist() == [8, 14]
    assert curve.accuracy[8] == 0.5


def test_the_calibration_error_of_a_calibrated_head_lies_where_the_report_says():
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(100):
        p = rng.dirichlet([1.0, 1.0, 1.0], 120)
        y = (rng.random((120, 1)) > p.cumsum(axis=1)).sum(axis=1)  # drawn from p: calibrated
        report = score(y, p, classes="abc", bootstrap=200, seed=trial)
        low, high = report.ece_if_calibrated
        inside += low <= report.ece.value <= high
        assert low > 0.02  # by chance alone
    assert 88 <= inside <= 99
    surer = p**3 / (p**3).sum(axis=1, keepdims=True)
    report = score(y, surer, classes="abc", bootstrap=200)
    assert report.ece.value > report.ece_if_calibrated[1]


def test_the_most_confused_pairs_are_named_largest_first():
    y = np.array([0, 0, 0, 1, 1, 2])
    p = np.eye(3)[[1, 1, 0, 2, 1, 2]]
    pairs = score(y, p, classes=["crow", "raven", "rook"]).most_confused
    assert [(q.true, q.predicted, q.count) for q in pairs] == [
        ("crow", "raven", 2),
        ("raven", "rook", 1),
    ]


def test_a_certain_wrong_answer_costs_a_finite_loss_equal_to_scikit_learns():
    p = np.array([[1.0, 0.0], [0.5, 0.5]])
    ours = score([1, 0], p, classes="ab").log_loss.value
    assert ours == pytest.approx(sk.log_loss([1, 0], p))


def test_float32_and_float16_probabilities_are_taken():
    y, p, names = random_case()
    exact = score(y, p, classes=names, bootstrap=0).log_loss.value
    for dtype, tolerance in ((np.float32, 1e-5), (np.float16, 1e-2)):
        rounded = score(y, p.astype(dtype), classes=names, bootstrap=0).log_loss.value
        assert rounded == pytest.approx(exact, tolerance)


def test_rows_that_sum_to_nearly_one_are_normalised():
    y, p, names = random_case()
    exact, scaled = (score(y, q, classes=names, bootstrap=0).log_loss for q in (p, p * 1.0009))
    assert scaled.value == pytest.approx(exact.value, rel=1e-12)


def test_the_report_is_ready_for_json():
    y, p, names = random_case()
    report = score(y, p, classes=names, train_counts=np.arange(8))
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False)) == report.to_dict()
    assert report.to_dict()["reliability"]["accuracy"][0] is None  # no NaN in JSON
    assert report.to_dict()["baseline"]["accuracy"]["value"] == report.baseline.accuracy.value


@pytest.mark.parametrize(
    ("y", "p", "keywords", "message"),
    [
        ([], np.empty((0, 2)), {}, "y_true must be a vector of at least one class number"),
        ([0, 2], np.eye(2), {}, "class numbers from 0 to 1, got 0 to 2"),
        ([-1, 0], np.eye(2), {}, r"got -1 to 0; leave unlabelled images \(-1\) out"),
        ([0, 1], np.eye(3), {}, r"of shape \(2, 2\), .* got shape \(3, 3\)"),
        ([0, 1], np.eye(2) * 2, {}, "rows that sum to 2 to 2"),
        ([0, 1], [[1.5, -0.5], [0, 1]], {}, "smallest value -0.5"),
        ([0, 1], [[np.nan, 1], [0, 1]], {}, "probabilities must be finite"),
        ([0, 1], np.eye(2), {"train_counts": [1]}, r"must hold 2 counts.* shape \(1,\)"),
        ([0, 1], np.eye(2), {"train_counts": [1, -1]}, "must hold 2 counts"),
        ([0, 1], np.eye(2), {"bootstrap": -1}, "bootstrap must be 0 or more draws, got -1"),
    ],
)
def test_what_cannot_be_scored_is_refused(y, p, keywords, message):
    with pytest.raises(InputError, match=message):
        score(y, p, classes=["a", "b"], **keywords)
