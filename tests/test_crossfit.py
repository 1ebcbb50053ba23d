"""Out-of-fold predictions: every row by a head that has not seen it, with the choices kept."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from featx.crossfit import out_of_fold
from featx.errors import InputError
from featx.folds import cross_validation_folds
from featx.heads import LogisticHead, MLPHead
from featx.heads.row_view import RowView


def rows(n: int = 90, k: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % k
    return rng.normal(size=(n, 6)) + 1.5 * np.eye(k, 6)[y], y


def test_rows_of_a_view_are_predicted_without_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = rows()
    head = LogisticHead(C=0.3).fit(X, y)
    kinds = []
    predict = LogisticHead.predict_proba

    def recording(self: LogisticHead, X: object) -> np.ndarray:
        kinds.append(type(X))
        return predict(self, X)

    monkeypatch.setattr(LogisticHead, "predict_proba", recording)
    found, _ = out_of_fold(head, RowView(X, np.arange(90)), y, seed=4, cv=3)
    assert kinds == [RowView] * 3
    assert np.array_equal(found, out_of_fold(head, X, y, seed=4, cv=3)[0])


def test_each_row_is_predicted_as_by_scikit_learn_on_the_other_folds() -> None:
    X, y = rows()
    head = LogisticHead(C=0.3, tol=1e-8).fit(X, y)
    found, has_one = out_of_fold(head, X, y, seed=4, cv=3)
    assert has_one.all()
    for train, val in cross_validation_folds(y, n_folds=3, seed=4):
        theirs = make_pipeline(StandardScaler(), LogisticRegression(C=0.3, tol=1e-9))
        theirs.fit(X[train], y[train])
        np.testing.assert_allclose(np.exp(found[val]), theirs.predict_proba(X[val]), atol=1e-5)


def test_a_nearest_neighbour_never_finds_the_row_itself() -> None:
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(200, 4)), rng.integers(0, 2, 200)  # labels that nothing tells
    nearest = KNeighborsClassifier(1).fit(X, y)
    assert nearest.score(X, y) == 1.0
    found, _ = out_of_fold(nearest, X, y)
    assert 0.35 < (found.argmax(axis=1) == y).mean() < 0.65


def test_what_the_fit_chose_is_not_chosen_anew(monkeypatch) -> None:
    X, y = rows()
    head = LogisticHead(cs=(1e-3, 1e-1), cv=3).fit(X, y)
    fitted = []
    plain = LogisticHead.fit
    monkeypatch.setattr(
        LogisticHead, "fit", lambda self, *a, **k: fitted.append(self.C) or plain(self, *a, **k)
    )
    out_of_fold(head, X, y, cv=3)
    assert fitted == [head.C_] * 3
    assert head.C is None  # the head itself is as it was


def test_groups_are_not_parted_and_reach_the_head() -> None:
    X, y = rows(n=120)
    groups = np.arange(120) // 6
    seen = []

    class Watching(LogisticHead):
        def fit(self, X, y, *, X_val=None, y_val=None, groups=None):
            seen.append(set(groups.tolist()))
            return super().fit(X, y, groups=groups)

    watching = Watching(C=1.0).fit(X, y, groups=groups)
    out_of_fold(watching, X, y, groups=groups, cv=4)
    folds = cross_validation_folds(y, n_folds=4, groups=groups)
    assert seen[1:] == [set(groups[train].tolist()) for train, _ in folds]
    assert all(
        not s & set(groups[val].tolist()) for s, (_, val) in zip(seen[1:], folds, strict=True)
    )


def test_a_lone_image_has_no_prediction_and_a_class_that_a_fold_lacks_has_probability_0() -> None:
    X, y = rows(n=60)
    y[0] = 7  # the one image of its class
    groups = np.full(60, -1)
    groups[y == 2] = 5  # a class in one group: either all or nothing of it is in a fold
    head = LogisticHead(C=1.0).fit(X, y)
    found, has_one = out_of_fold(head, X, y, groups=groups)
    assert not has_one[0]
    assert not has_one[y == 2].any()
    assert has_one[(y == 1) | (y == 0)].all()
    assert np.isnan(found[~has_one]).all()
    np.testing.assert_allclose(np.exp(found[has_one]).sum(axis=1), 1)
    assert np.isneginf(found[has_one, 2]).any()


def test_a_head_that_chooses_its_epoch_does_so_inside_the_fold() -> None:
    X, y = rows()
    head = MLPHead(hidden=(8,), epochs=3, device="cpu").fit(X, y)
    found, has_one = out_of_fold(head, X, y, cv=3)
    again, _ = out_of_fold(head, X, y, cv=3)
    assert has_one.all()
    assert np.array_equal(found, again)


def test_where_nothing_can_be_left_out_it_says_so() -> None:
    X, y = rows(n=20, k=2)
    head = LogisticHead(C=1.0).fit(X, y)
    with pytest.raises(InputError, match="a class with two images in two groups"):
        out_of_fold(head, X[:2], y[:2])


def test_a_fold_without_which_one_class_is_left_has_no_predictions() -> None:
    X, y = rows(n=20, k=2)
    groups = np.where(y == 1, 99, np.arange(20))
    groups[0] = 99  # all of class 1 and one image of class 0
    head = LogisticHead(C=1.0).fit(X, y)
    _, has_one = out_of_fold(head, X, y, groups=groups)
    alone = [val for train, val in cross_validation_folds(y, groups=groups) if y[train].max() == 0]
    assert len(alone) == 1
    assert np.flatnonzero(~has_one).tolist() == sorted([*alone[0], *np.flatnonzero(y == 1)])
