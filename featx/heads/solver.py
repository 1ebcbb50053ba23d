"""L-BFGS for penalised multinomial logistic regression, in coordinates that make it short.

The features are rotated to their principal axes, which changes neither the loss nor ||W||, and
each axis is divided by the square root of the curvature it would have at equal probabilities.
Deep features are strongly correlated; this takes away most of the iterations that costs. With
more features than rows the solution lies in the rows' span (the representer theorem), so that
only n of the d axes are left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize
from torch import Tensor

# Above this the eigenvectors (cubic in it) cost more than they save; then no rotation.
_MAX_ROTATED: Final = 4096
# Axes of less than this share of the largest variance hold rounding errors, not features.
_SMALLEST_AXIS: Final = 1e-13
# Past the first few fits probabilities are far from equal, and curvature below that at equality:
# a tenth took the fewest iterations over the default grid of C.
_CURVATURE: Final = 0.1
_MEMORY: Final = 10  # L-BFGS corrections kept, SciPy's default
_RESTARTS: Final = 3  # after a line search that failed by rounding


@dataclass(frozen=True)
class Rotated:
    """Rows in principal axes: ``Z - shift = R @ V.T``.

    With d <= n, `back` is V (d, r). With d > n, V is never formed: `back` is V's coordinates in
    the rows, (n, r), and `rows` the centred rows themselves, (n, d). Unrotated, both are None.
    """

    R: Tensor  # (n, r)
    variance: Tensor  # (r,), times n
    shift: Tensor  # (d,)
    back: Tensor | None
    rows: Tensor | None

    def to_features(self, W: Tensor) -> Tensor:
        """Weights on the axes (k, r) -> weights on the features (k, d)."""
        if self.back is None:
            return W
        W = W @ self.back.T
        return W if self.rows is None else W @ self.rows


@dataclass(frozen=True)
class Solution:
    """Weights on the axes (k, r) and intercepts (k,), and how they were reached."""

    W: Tensor
    b: Tensor
    n_iter: int
    gradient_norm: float


def rotate(Z: Tensor, *, centre: bool) -> Rotated:
    """Rotate rows (n, d) float64 to their principal axes; Z is used up (overwritten).

    Centring is exact because the intercept, which takes it back, is not penalised.
    """
    n, d = Z.shape
    shift = Z.mean(dim=0) if centre else torch.zeros(d, dtype=Z.dtype, device=Z.device)
    Z -= shift
    if min(n, d) > _MAX_ROTATED:
        return Rotated(Z, Z.square().sum(dim=0), shift, None, None)
    wide = d > n
    variance, V = torch.linalg.eigh(Z @ Z.T if wide else Z.T @ Z)
    keep = variance > _SMALLEST_AXIS * variance[-1].clamp(min=torch.finfo(Z.dtype).tiny)
    variance, V = variance[keep], V[:, keep]  # (r,), (min(n, d), r)
    if wide:
        root = variance.sqrt()
        return Rotated(V * root, variance, shift, V / root, Z)
    R = Z @ V
    return Rotated(R, variance, shift, V, None)


class Problem:
    """Rows, labels and weights of one fit; `solve` may be called for many C."""

    def __init__(
        self, rotated: Rotated, y: Tensor, weight: Tensor, *, n_classes: int, intercept: bool
    ) -> None:
        self.rotated = rotated
        self.target = torch.nn.functional.one_hot(y, n_classes).to(rotated.R.dtype)  # (n, k)
        self.total_weight = float(weight.sum())
        self.share = (weight / self.total_weight)[:, None]  # (n, 1), sums to 1
        self.k = n_classes
        self.intercept = intercept

    def solve(
        self, C: float, tol: float, max_iter: int, *, start: Solution | None = None
    ) -> Solution:
        """Minimise the mean loss plus ``||W||^2 / (2 C sum(weight))`` until ||gradient|| <= tol."""
        R = self.rotated.R
        n, r = R.shape
        penalty = 1 / (C * self.total_weight)
        curvature = _CURVATURE / self.k
        scale = (curvature * self.rotated.variance / n + penalty).rsqrt()  # (r,)
        b_scale = curvature**-0.5 if self.intercept else 0.0
        W, b = self._zeros() if start is None else (start.W, start.b)
        if not self.intercept:
            b = b * 0
        x = torch.cat([(W / scale).ravel(), b * curvature**0.5]).cpu().numpy()
        norm = np.inf
        n_iter = 0

        def unpack(x: npt.NDArray[np.float64]) -> tuple[Tensor, Tensor]:
            t = torch.from_numpy(x).to(R.device)
            return t[: self.k * r].view(self.k, r) * scale, t[self.k * r :] * b_scale

        def objective(x: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
            nonlocal norm
            W, b = unpack(x)
            value, gW, gb = self._loss(W, b, penalty)
            norm = float(torch.cat([gW.ravel(), gb]).norm())
            return value, torch.cat([(gW * scale).ravel(), gb * b_scale]).cpu().numpy()

        def stop(intermediate_result: Any) -> None:  # the last point evaluated is the accepted one
            if norm <= tol:
                raise StopIteration

        for _ in range(_RESTARTS):
            options = {
                "maxiter": max_iter - n_iter,
                "maxfun": 20 * max_iter,
                "maxcor": _MEMORY,
                "maxls": 50,
                "ftol": 0.0,
                "gtol": 0.0,
            }
            found = minimize(
                objective, x, jac=True, method="L-BFGS-B", callback=stop, options=options
            )
            x, n_iter = found.x, n_iter + int(found.nit)
            objective(x)  # sets the norm at the point that is returned
            if norm <= tol or n_iter >= max_iter:
                break
        W, b = unpack(x)
        return Solution(W, b, n_iter, norm)

    def _loss(self, W: Tensor, b: Tensor, penalty: float) -> tuple[float, Tensor, Tensor]:
        """The objective and its gradients: (k, r), (k,)."""
        R = self.rotated.R
        logits = R @ W.T + b  # (n, k)
        log_p = logits - torch.logsumexp(logits, dim=1, keepdim=True)
        loss = -(self.share * log_p * self.target).sum()
        residual = (log_p.exp() - self.target) * self.share  # (n, k)
        gb = residual.sum(dim=0)
        return (
            float(loss + 0.5 * penalty * W.square().sum()),
            residual.T @ R + penalty * W,
            gb if self.intercept else torch.zeros_like(gb),
        )

    def coefficients(
        self, solution: Solution
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Weights (k, d) and intercepts (k,) on the features as they were before `rotate`."""
        W = self.rotated.to_features(solution.W)
        b = solution.b - W @ self.rotated.shift
        return W.cpu().numpy(), b.cpu().numpy()

    def _zeros(self) -> tuple[Tensor, Tensor]:
        R = self.rotated.R
        W = torch.zeros((self.k, R.shape[1]), dtype=R.dtype, device=R.device)
        return W, W.new_zeros(self.k)
