"""Rows of a memory map as a matrix: heads give the same bits from it, and nothing is copied."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from synthetic import write_cache

from featx.errors import InputError
from featx.fitting import fit_head
from featx.heads import HEADS
from featx.heads.making import fit_on, make_head
from featx.heads.row_view import RowView, part_of


def test_it_indexes_like_the_rows_it_stands_for() -> None:
    X = np.arange(60.0).reshape(12, 5)
    rows = np.array([7, 2, 9, 0])
    view, plain = RowView(X, rows), X[rows]
    assert (view.shape, view.size, view.dtype, len(view)) == ((4, 5), 20, X.dtype, 4)
    for key in (slice(1, 3), np.array([3, 0]), np.array([True, False, True, False])):
        assert np.array_equal(view[key], plain[key])
    for key in ((slice(None), slice(1, 4)), (np.array([2, 1]), slice(0, 2))):
        assert np.array_equal(view[key], plain[key])
    assert np.array_equal(part_of(view, np.array([1, 3]))[:], plain[[1, 3]])
    assert isinstance(part_of(view, np.array([1])), RowView)
    assert np.array_equal(part_of(plain, np.array([1])), plain[[1]])


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("has_val", [False, True])
def test_heads_are_the_same_bits_from_a_view_and_from_copies(kind: str, has_val: bool) -> None:
    rng = np.random.default_rng(0)
    y = np.arange(120) % 3
    X = (rng.normal(size=(120, 7)) + 2 * np.eye(3, 7)[y]).astype(np.float32)
    rows, val = np.sort(rng.permutation(120)[:80]), np.arange(100, 120)
    rows = np.setdiff1d(rows, val)
    groups = np.arange(120) // 2
    options = {"epochs": 3} if kind in ("linear", "mlp") else {}
    heads = [make_head(kind, options, device="cpu", seed=0) for _ in range(2)]
    fit_on(heads[0], X, y, rows, val_rows=val if has_val else None, groups=groups)
    keywords = {"X_val": X[val], "y_val": y[val]} if has_val else {}
    heads[1].fit(X[rows], y[rows], groups=groups[rows], **keywords)
    assert np.array_equal(heads[0].predict_proba(X), heads[1].predict_proba(X))
    assert heads[0].choice() == heads[1].choice()


@pytest.mark.parametrize("kind", ["logistic", "ridge", "centroid"])
def test_the_rows_of_a_cache_are_not_copied(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_cache(tmp_path / "a.h5", n=300)
    X = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.float32,
                                  shape=(300, 40_000))  # fmt: skip
    y = np.arange(300) % 3
    X[:] = np.random.default_rng(0).normal(size=X.shape)
    X[:, :3] += 5 * np.eye(3)[y]
    for module in ("base", "standardised", "spectrum", "row_view"):  # blocks of a few rows
        for name in ("_BLOCK_BYTES", "_COLUMN_BYTES"):
            monkeypatch.setattr(f"featx.heads.{module}.{name}", 1 << 20, raising=False)
    monkeypatch.setattr("featx.heads.standardised._HELD_BYTES", 0)
    fit_head(path, head=kind)  # what is imported late is imported now
    params = {"logistic": {"C": 1.0}, "ridge": {"alpha": 1e4}, "centroid": {}}[kind]
    head = make_head(kind, params, device="cpu", seed=0)
    tracemalloc.start()
    try:
        fit_on(head, X, y, np.arange(0, 300, 1))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < X.nbytes / 2  # PyTorch's own memory is not counted, copies of X by NumPy are


def test_values_that_are_no_numbers_are_refused() -> None:
    X = np.zeros((6, 2), np.float32)
    X[4, 1] = np.nan
    head = make_head("ridge", {}, device="cpu", seed=0)
    with pytest.raises(InputError, match="NaN or infinite"):
        fit_on(head, X, np.arange(6) % 2, np.arange(6))
