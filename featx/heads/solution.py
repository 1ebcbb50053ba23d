"""Penalised problems on their way to the minimum, side by side, and what was reached of each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from featx.heads.spaces import inner


@dataclass(frozen=True)
class Solution:
    """One problem's weights, how they were reached, and what the next problem learns from them."""

    x: Tensor  # (p, 1, k, m + 1) float64, a vector of the space
    logits: Tensor  # (1, k, n) float64, of the rows
    n_iter: int
    gradient_norm: float
    converged: bool
    penalty: float = 0.0
    gradient: Tensor | None = None  # (p, 1, k, m + 1)


@dataclass(frozen=True)
class Fitted:
    """Weights on the standardised features, and the norm of the gradient there in float64."""

    W: npt.NDArray[np.float64]  # (k, d)
    b: npt.NDArray[np.float64]  # (k,)
    n_iter: int
    gradient_norm: float
    enough: float  # the norm at which it has converged


@dataclass
class Batch:
    """Problems under way, side by side, and what is known of each at its x."""

    which: list[int]
    penalty: Tensor  # (B,)
    x: Tensor  # (p, B, k, m + 1)
    logits: Tensor  # (B, k, n)
    loss: Tensor  # (B,)
    residual: Tensor  # (B, k, n), the loss's derivatives by the logits
    spare: Tensor  # (B, k, n), written by the next step: memory anew each time costs much
    logits_z: Tensor  # (B, k, n), of the direction; also written anew
    gradient: Tensor  # (p, B, k, m + 1)
    curvature: Tensor  # (B,), see Space.precondition; from time to time
    stuck: Tensor  # (B,) bool: no step along the preconditioned gradient goes down
    best: Tensor  # (B,) the smallest norm of the gradient so far
    lower: Tensor  # (B,) bool: the last step has lowered the objective
    waited: Tensor  # (B,) iterations since the last gain in either
    # Corrections (s, y, 1 / <s, y>), the oldest first; 0 for the last where a problem has none.
    pairs: list[tuple[Tensor, Tensor, Tensor]]

    def keep(self, which: Tensor) -> None:
        """Only the problems that are still to be solved."""
        self.which = [self.which[i] for i in which.tolist()]
        for name in ("penalty", "logits", "loss", "residual", "spare", "logits_z", "curvature"):
            setattr(self, name, getattr(self, name)[which])
        for name in ("stuck", "best", "lower", "waited"):
            setattr(self, name, getattr(self, name)[which])
        self.x, self.gradient = self.x[:, which], self.gradient[:, which]
        self.pairs = [(s[:, which], y[:, which], rho[which]) for s, y, rho in self.pairs]

    def enough(self, tol: float, gap: float) -> Tensor:
        """The gradient's norm (B,) to be reached: see `enough_norm`."""
        squares = inner(self.x[..., :-1], self.x[..., :-1])
        return enough_norm(tol, gap, self.loss + self.penalty / 2 * squares, self.penalty)

    def solution(self, i: int, n_iter: int, norm: float, *, converged: bool) -> Solution:
        """Problem i as it stands."""
        return Solution(
            self.x[:, i : i + 1],
            self.logits[i : i + 1],
            n_iter,
            norm,
            converged,
            float(self.penalty[i]),
            self.gradient[:, i : i + 1],
        )


def enough_norm(tol: float, gap: float, value: Tensor, penalty: Tensor) -> Tensor:
    """The gradient's norm to reach: `tol`, or less to be within `gap` of the minimum, relatively.

    The penalty makes it strongly convex in the weights: value - minimum <= norm^2 / (2 penalty),
    as far as the gradient is theirs and not the intercept's, which has no penalty.
    """
    return (2 * gap * penalty * value).sqrt().clamp(max=tol)
