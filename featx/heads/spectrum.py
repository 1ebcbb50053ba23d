"""Ridge regression on one-hot targets: one eigen-decomposition serves every penalty.

With rows Z (n, d), centred and times the square roots of their weights, and targets Y (n, k) of
+1 and -1, centred likewise, the coefficients are ``(Z'Z + alpha I)^-1 Z'Y`` and, what is the same,
``Z' (ZZ' + alpha I)^-1 Y``. The smaller of the two matrices is decomposed once; from its
eigenvalues and eigenvectors come the coefficients for any alpha, and what every row would have
been given by a fit without it (Rifkin & Lippert 2007, "Notes on Regularized Least Squares",
equations 7 and 12, here with an intercept and weights). X is read in blocks and never copied whole.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.linalg import blas
from torch import Tensor

from featx.heads.base import FloatArray, IntArray, standardised_blocks, standardised_columns

_COLUMN_BYTES: Final = 64 << 20  # of float64 columns standardised at once
_SCORED_ROWS: Final = 1024  # scored at once, for all penalties
_EPS: Final = float(np.finfo(np.float64).eps)


class Scores(NamedTuple):
    """Scores of some rows by a fit without them, ``(raw + shift) * factor``, and their classes.

    Kept in parts: which score is the largest does not depend on `shift` and `factor`.
    """

    i: int  # of the alphas
    raw: Tensor  # (b, k)
    shift: Tensor  # (b,)
    factor: Tensor  # (b,)
    y: Tensor  # (b,)

    def whole(self) -> Tensor:
        """(b, k)"""
        return (self.raw + self.shift[:, None]) * self.factor[:, None]

    def right(self) -> Tensor:
        """(b,) bool: whether the row's class has the largest score."""
        return self.raw.argmax(dim=1) == self.y

    def squares(self) -> Tensor:
        """(b,): of score less target, summed over the classes."""
        k = self.raw.shape[1]
        own = self.raw.gather(1, self.y[:, None])[:, 0]
        total = self.raw.sum(dim=1)
        squares = torch.linalg.vector_norm(self.raw, dim=1).square()
        squares += self.shift * (2 * total + k * self.shift)
        # (target - score)^2 of targets +1 at y and -1 elsewhere
        total, own = total + k * self.shift, own + self.shift
        return squares * self.factor.square() + 2 * self.factor * (total - 2 * own) + k


class Spectrum(ABC):
    """Rows and targets, decomposed.

    Parameters
    ----------
    X : (n, d) float, perhaps a memory map
    y : (n,) int64, class numbers below `n_classes`
    weight : (n,) float64, above 0
    rows : (m,) int64, optional
        The rows to fit; all by default.
    centre, scale : (d,) float64
        ``Z = (X - centre) / scale``; `centre` is the weighted mean of the rows.
    n_classes : int
    device : str
        One that has float64.

    Attributes
    ----------
    centre : (d,) float64
        As given.
    offset : (k,) float64
        The weighted mean of the targets.
    mean_eigenvalue : float
        Of the decomposed matrix, over the eigenvalues that may differ from 0.
    """

    mean_eigenvalue: float

    def __init__(
        self,
        X: npt.NDArray[Any],
        y: IntArray,
        weight: FloatArray,
        rows: IntArray | None,
        centre: FloatArray,
        scale: FloatArray,
        *,
        n_classes: int,
        device: str,
    ) -> None:
        self._X, self._rows = X, rows
        self.centre, self._scale, self._device = centre, scale, device
        self._y = torch.from_numpy(y if rows is None else y[rows]).to(device)
        self._weight = torch.from_numpy(weight if rows is None else weight[rows]).to(device)
        shares = np.bincount(self._y.cpu(), self._weight.cpu(), minlength=n_classes)
        self._total = float(shares.sum())
        self.offset = torch.from_numpy(2 * shares / self._total - 1).to(device)  # (k,), mean target

    @abstractmethod
    def left_out(self, alphas: Sequence[float]) -> Iterator[tuple[slice, Scores]]:
        """Every row by a fit without it, in parts, for each alpha."""

    @abstractmethod
    def scores(self, X: npt.NDArray[Any], y: IntArray, alphas: Sequence[float]) -> Iterator[Scores]:
        """Other rows (m, d) and their classes (m,), in parts, for each alpha."""

    @abstractmethod
    def coefficients(self, alpha: float) -> tuple[FloatArray, FloatArray]:
        """(k, d) on the rows standardised by `centre` and `scale`, and intercepts (k,)."""

    def _blocks(self, X: npt.NDArray[Any], rows: IntArray | None) -> Iterator[tuple[slice, Tensor]]:
        for part, block in standardised_blocks(X, self.centre, self._scale, rows):
            yield part, torch.from_numpy(block).to(self._device)

    def _small_blocks(
        self, X: npt.NDArray[Any], rows: IntArray | None
    ) -> Iterator[tuple[slice, Tensor]]:
        for part, block in self._blocks(X, rows):
            for start in range(0, len(block), _SCORED_ROWS):
                Z = block[start : start + _SCORED_ROWS]
                yield slice(part.start + start, part.start + start + len(Z)), Z

    def _others(self, i: int, scores: Tensor, y: IntArray) -> Scores:
        """Scores that are whole."""
        zero = torch.zeros(len(scores), dtype=torch.float64, device=self._device)
        return Scores(i, scores, zero, zero + 1, torch.from_numpy(y).to(self._device))


def _add_square(gram: Tensor, A: Tensor) -> None:
    """Add A A' to the lower triangle of `gram` (m, m); on the CPU at half of a product's cost."""
    if gram.device.type != "cpu":
        gram.addmm_(A, A.T)
        return
    a = A.numpy()
    upper = gram.numpy().T  # BLAS counts by columns
    a, transposed = (a, 0) if a.flags.f_contiguous else (a.T, 1)
    blas.dsyrk(1.0, a, beta=1.0, c=upper, trans=transposed, overwrite_c=1)


class Covariance(Spectrum):
    """d <= n: ``Z'Z = V diag(values) V'``."""

    def __init__(self, *rows: Any, **options: Any) -> None:
        super().__init__(*rows, **options)
        d, k = self._X.shape[1], len(self.offset)
        gram = torch.zeros((d, d), dtype=torch.float64, device=self._device)
        sums = torch.zeros((d, k), dtype=torch.float64, device=self._device)
        for part, Z in self._blocks(self._X, self._rows):
            root = self._weight[part, None].sqrt()
            Z *= root
            one_hot = torch.nn.functional.one_hot(self._y[part], k) * root
            sums.addmm_(Z.T, one_hot)
            _add_square(gram, Z.T)
        values, self._V = torch.linalg.eigh(gram)
        self._values = values.clamp(min=0)
        self._moments = 2 * (self._V.T @ sums)  # V'Z'Y; the mean target falls out, Z being centred
        self._leverage: dict[float, Tensor] = {}
        self.mean_eigenvalue = float(self._values.mean())

    def _weights(self, alphas: Sequence[float]) -> Tensor:
        """(d, a * k) on the principal axes: side by side, so that one large product serves all."""
        return torch.cat([self._moments / (self._values + a)[:, None] for a in alphas], dim=1)

    def _scores(self, Z: Tensor, weights: Tensor) -> Iterator[tuple[int, Tensor]]:
        """(b, d), (d, a * k) -> a times (b, k)."""
        yield from enumerate(
            part + self.offset for part in (Z @ weights).split(len(self.offset), 1)
        )

    def left_out(self, alphas: Sequence[float]) -> Iterator[tuple[slice, Scores]]:
        known = all(alpha in self._leverage for alpha in alphas)
        weights = self._weights(alphas)
        if known:  # the coefficients suffice: no rotation
            weights = self._V @ weights
        shrinkage = torch.stack([1 / (self._values + alpha) for alpha in alphas], dim=1)  # (d, a)
        for alpha in alphas:
            self._leverage.setdefault(alpha, torch.empty_like(self._weight))
        for part, Z in self._small_blocks(self._X, self._rows):
            if not known:
                Z = Z @ self._V
                H = (Z.square() @ shrinkage + 1 / self._total) * self._weight[part, None]
                for alpha, leverage in zip(alphas, H.T, strict=True):
                    self._leverage[alpha][part] = leverage
            y = self._y[part]
            every = torch.arange(len(y), device=self._device)
            for i, raw in self._scores(Z, weights):
                # (score - leverage * target) / (1 - leverage), of targets +1 at y, else -1
                leverage = self._leverage[alphas[i]][part]
                raw[every, y] -= 2 * leverage
                yield part, Scores(i, raw, leverage, 1 / (1 - leverage).clamp(min=_EPS), y)

    def scores(self, X: npt.NDArray[Any], y: IntArray, alphas: Sequence[float]) -> Iterator[Scores]:
        weights = self._V @ self._weights(alphas)
        for part, Z in self._small_blocks(X, None):
            for i, scores in self._scores(Z, weights):
                yield self._others(i, scores, y[part])

    def coefficients(self, alpha: float) -> tuple[FloatArray, FloatArray]:
        W = self._V @ self._weights([alpha])
        return W.T.cpu().numpy(), self.offset.cpu().numpy()


class Gram(Spectrum):
    """d > n: ``ZZ' = Q diag(values) Q'``, by columns; what is constant over rows left out of Q."""

    def __init__(self, *rows: Any, **options: Any) -> None:
        super().__init__(*rows, **options)
        n, k = len(self._y), len(self.offset)
        root = self._weight.sqrt()
        gram = torch.zeros((n, n), dtype=torch.float64, device=self._device)
        step = self._column_step(n)
        for Z in self._columns(self._X, self._rows, step):
            Z *= root[:, None]
            _add_square(gram, Z)
        # Centred rows have one eigenvalue 0, of the eigenvector `root`: the intercept's. It is
        # made the largest instead, and dropped, so that dividing by small alphas amplifies no
        # rounding error of it.
        self.mean_eigenvalue = float(gram.trace()) / max(1, n - 1)
        constant = root / root.norm()
        gram.addr_(constant, constant, alpha=2 * float(gram.trace()) + 1)
        values, Q = torch.linalg.eigh(gram)
        self._values, self._Q = values[:-1].clamp(min=0), Q[:, :-1]
        target = -torch.ones((n, k), dtype=torch.float64, device=self._device)
        target[torch.arange(n, device=self._device), self._y] = 1
        self._root = root
        self._moments = self._Q.T @ (root[:, None] * (target - self.offset))  # (n - 1, k)

    @staticmethod
    def _column_step(n: int) -> int:
        return max(1, _COLUMN_BYTES // (8 * n))

    def _columns(self, X: npt.NDArray[Any], rows: IntArray | None, step: int) -> Iterator[Tensor]:
        """Standardised columns (n, step) in float64, from left to right."""
        for start in range(0, X.shape[1], step):
            part = slice(start, start + step)
            block = np.empty((len(X) if rows is None else len(rows), len(self.centre[part])))
            standardised_columns(X, self.centre, self._scale, rows, part, block)
            yield torch.from_numpy(block).to(self._device)

    def _dual(self, alpha: float) -> Tensor:
        """(n, k): the coefficients are these rows' combination."""
        return self._Q @ (self._moments / (self._values + alpha)[:, None])

    def left_out(self, alphas: Sequence[float]) -> Iterator[tuple[slice, Scores]]:
        for start in range(0, len(self._y), _SCORED_ROWS):
            part = slice(start, start + _SCORED_ROWS)
            Q, y, root = self._Q[part], self._y[part], self._root[part]
            every, one = torch.arange(len(y), device=self._device), torch.ones_like(root)
            for i, alpha in enumerate(alphas):
                shrinkage = 1 / (self._values + alpha)
                dual = Q @ (self._moments * shrinkage[:, None])  # (b, k)
                own = Q.square() @ shrinkage  # (b,), the diagonal of the inverse
                raw = -dual / (own * root)[:, None]  # target - residual, of targets of -1
                raw[every, y] += 2
                yield part, Scores(i, raw, -one, one, y)

    def scores(self, X: npt.NDArray[Any], y: IntArray, alphas: Sequence[float]) -> Iterator[Scores]:
        cross = torch.zeros((len(X), len(self._y)), dtype=torch.float64, device=self._device)
        step = self._column_step(len(X) + len(self._y))
        known = self._columns(self._X, self._rows, step)
        for Z, known_Z in zip(self._columns(X, None, step), known, strict=True):
            cross.addmm_(Z, known_Z.T)
        cross *= self._root
        for i, alpha in enumerate(alphas):
            yield self._others(i, torch.addmm(self.offset, cross, self._dual(alpha)), y)

    def coefficients(self, alpha: float) -> tuple[FloatArray, FloatArray]:
        dual = self._root[:, None] * self._dual(alpha)
        columns = self._columns(self._X, self._rows, self._column_step(len(self._y)))
        W = [(dual.T @ Z).cpu().numpy() for Z in columns]
        return np.hstack(W), self.offset.cpu().numpy()


def weighted_mean(
    X: npt.NDArray[Any], weight: FloatArray, rows: IntArray | None, near: FloatArray
) -> FloatArray:
    """(d,) mean of rows of X with weights (n,), taken from the values' distances to `near`."""
    chosen = weight if rows is None else weight[rows]
    total = np.zeros(X.shape[1])
    for part, Z in standardised_blocks(X, near, np.ones_like(near), rows):
        total += chosen[part] @ Z
    return near + total / chosen.sum()
