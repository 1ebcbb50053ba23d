"""Where the weights of a linear classifier live, and what makes its minimisation short there.

With no more features than rows: on the features. With more, in the span of the rows, where the
best weights lie (the representer theorem; Kimeldorf & Wahba 1971): a weight vector is ``a @ Z``,
kept as its coordinates a and its image ``a @ K``, K = Z @ Z.T, so that inner products with it
cost no product with K.

A vector of a space is a tensor (p, B, k, m + 1): p = 1 on the features (m = d), 2 in the span
(m = n; coordinates, image); B problems side by side; the last column holds the intercepts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from featx.heads.standardised import FeatureRows, WorkingRows, gram

# Up to this size all eigenvectors are taken; of larger matrices the leading ones, by subspace
# iteration. The other axes differ so much less that L-BFGS copes with them: taking 32 or all
# changes the number of iterations by a tenth, either way.
_MAX_EXACT: Final = 128
_N_LEADING: Final = 32
_N_EXTRA: Final = 32
_N_PASSES: Final = 3
_MAX_COVARIANCE: Final = 4096  # features; with more, (d, d) is never formed
_GRAM_BYTES: Final = 2 << 30  # a Gram matrix up to this size is held
# Axes of less than this share of the largest variance hold rounding errors, not features.
_SMALLEST_AXIS: Final = {torch.float64: 1e-13, torch.float32: 1e-6}


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of vectors, problem by problem, in a's precision: (B,)."""
    return torch.linalg.vecdot(a[0].flatten(1), b[-1].flatten(1).to(a.dtype))


@dataclass(frozen=True)
class Axes:
    """Leading eigenvectors of a positive semi-definite A (m, m), or Ritz vectors near them."""

    vectors: Tensor  # (m, q), orthonormal
    values: Tensor  # (q,) of vectors.T @ A @ vectors, which is diagonal
    images: Tensor  # (m, q), A @ vectors
    rest: Tensor  # (), what the other eigenvalues are taken for


def leading_axes(times: Callable[[Tensor], Tensor], m: int, like: Tensor) -> Axes:
    """All eigenvectors of a small matrix A (m, m), the leading ones of a large one.

    By subspace iteration from seeded random vectors (Halko, Martinsson & Tropp 2011, alg. 4.4).

    Parameters
    ----------
    times : (m, q) -> A times it.
    like : of the dtype and device of the result.
    """
    if m <= _MAX_EXACT:
        A = times(torch.eye(m, dtype=like.dtype, device=like.device))
        values, vectors = torch.linalg.eigh(A.double())
        values, vectors = values.to(like), vectors.to(like)
        images = vectors * values
    else:
        generator = torch.Generator().manual_seed(0)
        Q = torch.randn((m, _N_LEADING + _N_EXTRA), generator=generator).to(like)
        for _ in range(_N_PASSES):
            Q = torch.linalg.qr(times(Q)).Q
        images = times(Q)
        values, turn = torch.linalg.eigh((Q.T @ images).double())
        values, turn = values[_N_EXTRA:].to(like), turn[:, _N_EXTRA:].to(like)
        vectors, images = Q @ turn, images @ turn
    keep = values > _SMALLEST_AXIS[like.dtype] * values[-1]
    if not keep.any():  # all rows are the same
        keep[-1], values[-1] = True, 1
    return Axes(vectors[:, keep], values[keep], images[:, keep], values[keep][0])


@dataclass(frozen=True)
class Anchor:
    """What was computed in float64 at a point, for one problem."""

    norm: float  # of the gradient
    logits: Tensor  # (1, k, n)
    residual: Tensor  # (1, k, n), the loss's derivatives by the logits
    sums: Tensor  # (k, d), the rows weighted by them


class Space(ABC):
    """A space for the weights of B problems on the same rows."""

    rows: FeatureRows
    m: int
    n_parts: int  # p

    def __init__(self, axes: Axes) -> None:
        self.axes = axes

    @property
    def dtype(self) -> torch.dtype:
        """Of the products with the rows, and of what is multiplied."""
        return self.axes.vectors.dtype

    def zeros(self, B: int, k: int) -> Tensor:
        """B times all weights 0, in float64."""
        device = self.axes.vectors.device
        return torch.zeros((self.n_parts, B, k, self.m + 1), dtype=torch.float64, device=device)

    def precondition(self, g: Tensor, curvature: Tensor, penalty: Tensor) -> Tensor:
        """Nearly the inverse Hessian times g.

        The Hessian is taken for ``curvature * Z.T @ Z / n + penalty`` in every class, and along
        all but the leading axes for a multiple of g. One curvature for all classes keeps the sum
        of the weights over the classes 0, along which the loss does not curve.

        Parameters
        ----------
        curvature : (B,), the mean p (1 - p) over rows and classes.
        penalty : (B,)
        """
        curvature, penalty, n = curvature[:, None, None], penalty[:, None, None], len(self.rows)
        rest = 1 / (curvature * self.axes.rest / n + penalty)  # (B, 1, 1)
        along = 1 / (curvature * self.axes.values / n + penalty) - rest  # (B, 1, q)
        out = torch.empty_like(g)
        self._apply(g[..., :-1], along, out[..., :-1])
        out[..., :-1] += rest * g[..., :-1]
        out[..., -1] = g[..., -1] / curvature[:, 0]
        return out

    @abstractmethod
    def _apply(self, g: Tensor, along: Tensor, out: Tensor) -> None:
        """Write the part of g along each axis, times `along` (B, 1, q), to out."""

    @abstractmethod
    def logits(self, x: Tensor, out: Tensor) -> None:
        """Write logits of the rows to `out`, (B, k, n)."""

    @abstractmethod
    def other_logits(self, x: Tensor) -> Tensor:
        """Logits of the other rows: (B, k, m)."""

    @abstractmethod
    def gradient(
        self, residual: Tensor, x: Tensor, penalty: Tensor, anchor: Anchor | None = None
    ) -> Tensor:
        """The gradient at x, from the loss's derivatives by the logits, (B, k, n)."""

    def anchored(self, x: Tensor, anchor: Anchor) -> Tensor:
        """x, with what its parts say of the rows made exact."""
        return x

    @abstractmethod
    def weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of one problem: (k, d), (k,) float64 on the standardised features."""


class FeatureSpace(Space):
    """Weights on the features themselves."""

    n_parts = 1

    def __init__(
        self, rows: FeatureRows, others: FeatureRows | None, dtype: torch.dtype, device: str
    ) -> None:
        self.rows, self.m = rows, rows.d
        self._working = WorkingRows(rows, dtype, device)
        self._others = None if others is None else WorkingRows(others, dtype, device)
        like = torch.empty(0, dtype=dtype, device=device)
        if self.m <= _MAX_COVARIANCE:
            A = self._working.covariance()
            super().__init__(leading_axes(A.__matmul__, self.m, like))
        else:
            super().__init__(
                leading_axes(
                    lambda Q: self._working.sums(self._working.products(Q.T)).T, self.m, like
                )
            )

    def _apply(self, g: Tensor, along: Tensor, out: Tensor) -> None:
        V = self.axes.vectors
        torch.matmul((g[0] @ V) * along, V.T, out=out[0])

    def logits(self, x: Tensor, out: Tensor) -> None:
        self._working.products(x[0, ..., :-1], out)
        out += x[0, ..., -1:]

    def other_logits(self, x: Tensor) -> Tensor:
        assert self._others is not None
        return self._others.products(x[0, ..., :-1]) + x[0, ..., -1:]

    def gradient(
        self, residual: Tensor, x: Tensor, penalty: Tensor, anchor: Anchor | None = None
    ) -> Tensor:
        g = penalty[:, None, None] * x
        if anchor is None:
            g[0, ..., :-1] += self._working.sums(residual)
        else:
            g[0, ..., :-1] += self._working.sums(residual, anchor.residual) + anchor.sums
        g[0, ..., -1] = residual.sum(dim=-1)
        return g

    def weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x[0, 0].double()
        return x[:, :-1], x[:, -1]


class SpanSpace(Space):
    """Weights in the span of the rows; K is held, (n, n), and the rows are not."""

    n_parts = 2

    def __init__(
        self, rows: FeatureRows, others: FeatureRows | None, dtype: torch.dtype, device: str
    ) -> None:
        self.rows, self.m = rows, len(rows)
        self._K, self._cross = gram(rows, others, dtype, device)
        super().__init__(leading_axes(self._K.__matmul__, self.m, self._K))

    @staticmethod
    def fits(n: int, dtype: torch.dtype) -> bool:
        """Whether K is held; otherwise the weights are on the features, however many."""
        return n * n * dtype.itemsize <= _GRAM_BYTES

    def _apply(self, g: Tensor, along: Tensor, out: Tensor) -> None:
        axes = self.axes
        # The axes of the weights are u @ Z / sqrt(value), orthonormal although u may only be near
        # an eigenvector; the part of g along one is read off its image.
        part = (g[1] @ (axes.vectors / axes.values)) * along  # (B, k, q)
        torch.matmul(part, axes.vectors.T, out=out[0])
        torch.matmul(part, axes.images.T, out=out[1])

    def logits(self, x: Tensor, out: Tensor) -> None:
        torch.add(x[1, ..., :-1], x[0, ..., -1:], out=out)

    def other_logits(self, x: Tensor) -> Tensor:
        return x[0, ..., :-1].to(self.dtype) @ self._cross.T + x[0, ..., -1:]

    def gradient(
        self, residual: Tensor, x: Tensor, penalty: Tensor, anchor: Anchor | None = None
    ) -> Tensor:
        g = torch.empty_like(x)  # its coordinates are exact where the logits are
        g[0, ..., :-1] = residual + penalty[:, None, None] * x[0, ..., :-1]
        g[1, ..., :-1] = g[0, ..., :-1].to(self.dtype) @ self._K
        g[..., -1] = residual.sum(dim=-1)
        return g

    def anchored(self, x: Tensor, anchor: Anchor) -> Tensor:
        x = x.clone()
        x[1, ..., :-1] = anchor.logits - x[0, ..., -1:]
        return x

    def weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a = x[0, 0].double()
        W = a.new_zeros((len(a), self.rows.d))
        for part, block in self.rows.blocks():
            W.addmm_(a[:, part], torch.from_numpy(block).to(a.device))
        return W, a[:, -1]
