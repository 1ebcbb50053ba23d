"""L-BFGS for penalised multinomial logistic regression, for many strengths of the penalty at once.

The loss depends on the logits alone, and these are linear in the weights. So the logits of a
search direction are computed once, and a step along it is tried by adding a multiple of them: the
line search needs no product with the features. An iteration costs two such products, or a single
one with the rows' Gram matrix.

Large products are in float32; weights, logits, probabilities and the loss in float64. What
float32 loses is given back: the gradient is measured in float64 on the features themselves, and
where it is not yet small enough the solver goes on from there, computing in float32 only what
changes (iterative refinement).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featx.heads.loss import LogLoss
from featx.heads.solution import Batch, Fitted, Solution, enough_norm
from featx.heads.spaces import Anchor, FeatureSpace, Space, SpanSpace, inner
from featx.heads.standardised import FeatureRows

_SMALL_WORK: Final = 50_000_000  # multiply-adds of a product below which float64 costs little
_MEMORY: Final = 6  # L-BFGS corrections kept; 3 to 20 take the same number of iterations
# Wolfe's conditions for a step (Nocedal & Wright 2006, section 3.1), the first as far as rounding
# allows (Hager & Zhang 2005). A trial costs no product with the features: so the second is 0.5
# instead of the usual 0.9, which takes a fifth off the iterations.
_DECREASE: Final = 1e-4
_FLATTER: Final = 0.5
_FLATTER_ONWARD: Final = 0.1  # of the first step along a path, which is the longest
_ROUNDING: Final = 1e-14
_MAX_TRIALS: Final = 30  # steps tried along a direction
_PATIENCE: Final = 30  # iterations that lower neither objective nor gradient, then it ends
_MAX_ANCHORS: Final = 5
_GPU_SHARE: Final = 0.4  # of a GPU's free memory, for problems side by side
_CURVATURE_EVERY: Final = 5  # iterations


class Problem:
    """Rows, labels and weights of one fit; `solve` may be called for many C."""

    def __init__(
        self,
        rows: FeatureRows,
        y: npt.NDArray[np.int64],
        weight: npt.NDArray[np.float64],
        *,
        n_classes: int,
        intercept: bool,
        device: str,
        others: FeatureRows | None = None,
    ) -> None:
        n, d = len(rows), rows.d
        small = n * min(n, d) * n_classes < _SMALL_WORK
        dtype = torch.float64 if small else torch.float32
        kind = SpanSpace if d > n and SpanSpace.fits(n, dtype) else FeatureSpace
        self.rows, self.device, self.k, self.intercept = rows, device, n_classes, intercept
        self.space: Space = kind(rows, others, dtype, device)
        self.loss = LogLoss(y, weight, device)

    def fit(self, C: float, tol: float, max_iter: int, *, gap: float = math.inf) -> Fitted:
        """Solve for one C until the gradient, measured in float64 on the features, is small enough.

        That is as `solve` says of `tol` and `gap`.
        """
        solution = self.solve([C], tol, max_iter, gap=gap)[0]
        n_iter, (anchor, W, b, value) = solution.n_iter, self._measure(solution, C)
        for _ in range(_MAX_ANCHORS):
            if anchor.norm <= self._enough(C, value, tol, gap) or n_iter >= max_iter:
                break
            x = self.space.anchored(solution.x, anchor)
            start = Solution(x, anchor.logits, 0, anchor.norm, converged=False)
            nearer = self.solve([C], tol, max_iter - n_iter, path=[start], anchor=anchor, gap=gap)[
                0
            ]
            n_iter, before, found = n_iter + nearer.n_iter, anchor.norm, self._measure(nearer, C)
            if found[0].norm < before:
                solution, (anchor, W, b, value) = nearer, found
            if found[0].norm > before / 2:
                break
        enough = self._enough(C, value, tol, gap)
        return Fitted(W.cpu().numpy(), b.cpu().numpy(), n_iter, anchor.norm, enough)

    def _enough(self, C: float, value: Tensor, tol: float, gap: float) -> float:
        penalty = torch.full_like(value, 1 / (C * self.loss.total_weight))
        return float(enough_norm(tol, gap, value, penalty))

    def path(
        self,
        Cs: Sequence[float],
        tol: float,
        max_iter: int,
        *,
        together: int | None = None,
        gap: float = math.inf,
    ) -> Iterator[Solution]:
        """Solutions for many C, ascending: each from the one before, or `together` side by side.

        By default one after another on the CPU, and as many side by side as fit on a GPU.
        """
        together = self._fitting() if together is None else together
        last: list[Solution] = []
        for first in range(0, len(Cs), together):
            found = self.solve(Cs[first : first + together], tol, max_iter, path=last, gap=gap)
            yield from found
            last = [*last, *found][-2:]

    def _fitting(self) -> int:
        """How many problems are solved side by side."""
        if not self.device.startswith("cuda"):
            return 1
        # Logits and residuals, four in float64 and one in float32; vectors of the space.
        vectors = self.space.n_parts * (self.space.m + 1) * (4 * 2 * _MEMORY + 8 * 5)
        each = self.k * (len(self.rows) * (4 * 8 + 4) + vectors)
        free = torch.cuda.mem_get_info(self.device)[0]
        return max(1, int(_GPU_SHARE * free / each))

    def solve(
        self,
        Cs: Sequence[float],
        tol: float,
        max_iter: int,
        *,
        path: Sequence[Solution] = (),
        anchor: Anchor | None = None,
        gap: float = math.inf,
    ) -> list[Solution]:
        """Minimise the mean loss plus ``||W||^2 / (2 C sum(weight))`` until ||gradient|| <= tol.

        At weak penalties a small gradient may be far from the minimum: `gap` says how far above
        it, relatively, the objective may still lie, and the gradient becomes as small as shows it.

        Parameters
        ----------
        Cs : B numbers, problems that are solved side by side.
        path : solutions for the stronger penalties just before, the last two or the last; the
            last is where all of them start. At weights 0 by default.
        anchor : of a single problem, what is exact at the start.
        """
        batch = self._begin(Cs, path[-1] if path else None, anchor)
        done: dict[int, Solution] = {}
        for n_iter in range(max_iter + 1):
            norm = inner(batch.gradient, batch.gradient).clamp(min=0).sqrt()
            batch.waited = torch.where(batch.lower | (norm < batch.best), 0, batch.waited + 1)
            batch.best = torch.minimum(norm, batch.best)
            stuck = batch.stuck | (batch.waited >= _PATIENCE)
            converged = norm <= tol
            if converged.any() and gap < math.inf:
                converged = norm <= batch.enough(tol, gap)
            ended = converged | stuck | (n_iter == max_iter)
            if ended.any():
                for i in ended.nonzero()[:, 0].tolist():
                    near = bool(converged[i])
                    done[batch.which[i]] = batch.solution(i, n_iter, float(norm[i]), converged=near)
                if ended.all():
                    break
                batch.keep((~ended).nonzero()[:, 0])
            if n_iter % _CURVATURE_EVERY == 0:
                batch.curvature = self.loss.curvature(batch.residual)
            if n_iter == 0 and len(path) > 1:
                self._go_on(batch, *path[-2:])
            else:
                self._iterate(batch, anchor)
        return [done[i] for i in range(len(Cs))]

    def _begin(self, Cs: Sequence[float], start: Solution | None, anchor: Anchor | None) -> Batch:
        B = len(Cs)
        penalty = 1 / (self.loss.total_weight * torch.tensor(Cs, dtype=torch.float64))
        penalty = penalty.to(self.device)
        if start is None:
            x = self.space.zeros(B, self.k)
            logits = x.new_zeros((B, self.k, len(self.rows)))
        else:
            x, logits = start.x.repeat(1, B, 1, 1), start.logits.repeat(B, 1, 1)
        residual = torch.empty_like(logits)
        loss, _ = self.loss.at(logits, None, penalty, residual)
        if start is None or start.gradient is None:
            gradient = self._gradient(residual, x, penalty, anchor)
        else:  # another penalty changes it by what is known
            gradient = start.gradient.repeat(1, B, 1, 1)
            more = (penalty - start.penalty)[:, None, None]
            gradient[..., :-1].addcmul_(more, x[..., :-1])
        stuck = torch.zeros(B, dtype=torch.bool, device=self.device)
        return Batch(
            which=list(range(B)),
            penalty=penalty,
            x=x,
            logits=logits,
            loss=loss,
            residual=residual,
            spare=torch.empty_like(residual),
            logits_z=torch.empty_like(residual),
            gradient=gradient,
            curvature=penalty,
            stuck=stuck,
            best=torch.full_like(penalty, torch.inf),
            lower=stuck,
            waited=torch.zeros(B, dtype=torch.int64, device=self.device),
            pairs=[],
        )

    def _go_on(self, batch: Batch, before: Solution, start: Solution) -> None:
        """The first step of every problem, onward from `before` through `start`."""
        z = (start.x - before.x).repeat(1, len(batch.which), 1, 1)
        torch.sub(start.logits, before.logits, out=batch.logits_z[:1])
        batch.logits_z[1:] = batch.logits_z[:1]
        down = (inner(batch.gradient, z) < 0)[:, None, None]
        batch.logits_z *= down
        self._step(batch, (z * down).to(self.space.dtype), None, flatter=_FLATTER_ONWARD)
        batch.stuck = torch.zeros_like(batch.stuck)  # L-BFGS's own direction is still to be tried

    def _iterate(self, batch: Batch, anchor: Anchor | None) -> None:
        """One step of every problem in L-BFGS's direction."""
        z = self._direction(batch)
        self.space.logits(z, batch.logits_z)
        self._step(batch, z, anchor, flatter=_FLATTER)

    def _step(self, batch: Batch, z: Tensor, anchor: Anchor | None, *, flatter: float) -> None:
        """A step of every problem along z, whose logits are `logits_z`."""
        slope = inner(batch.gradient, z)
        t, loss, residual, gain, failed = self._search(batch, z, slope, flatter)
        batch.x += t[:, None, None] * z
        batch.logits.addcmul_(batch.logits_z, t[:, None, None])
        batch.loss, batch.lower = loss, gain
        batch.residual, batch.spare = residual, batch.residual
        del batch.pairs[: 1 - _MEMORY]  # before there are more: each is as large as the logits
        gradient = self._gradient(residual, batch.x, batch.penalty, anchor)
        s = t[:, None, None].to(z.dtype) * z
        y = torch.sub(gradient, batch.gradient, out=batch.gradient).to(z.dtype)
        batch.gradient = gradient
        curved = inner(s, y)
        batch.pairs.append((s, y, torch.where(curved > 0, 1 / curved, 0)))
        if failed.any():  # start anew from the preconditioned gradient; after that, give up
            had_pairs = torch.stack([rho for _, _, rho in batch.pairs]).any(dim=0)
            batch.stuck = failed & ~had_pairs
            batch.pairs = [(s, y, rho * ~failed) for s, y, rho in batch.pairs]

    def _gradient(
        self, residual: Tensor, x: Tensor, penalty: Tensor, anchor: Anchor | None
    ) -> Tensor:
        gradient = self.space.gradient(residual, x, penalty, anchor)
        if not self.intercept:
            gradient[..., -1] = 0
        return gradient

    def _direction(self, batch: Batch) -> Tensor:
        """Minus nearly the inverse Hessian times the gradient: L-BFGS's two loops."""
        q = batch.gradient.to(self.space.dtype)
        scales = batch.curvature.to(q.dtype), batch.penalty.to(q.dtype)
        shares = []
        for s, y, rho in reversed(batch.pairs):
            share = rho * inner(q, s)
            q = torch.addcmul(q, y, share[:, None, None], value=-1)
            shares.append(share)
        z = self.space.precondition(q, *scales)
        if batch.pairs:  # scaled to the newest correction
            _, y, rho = batch.pairs[-1]
            size = rho * inner(y, self.space.precondition(y, *scales))
            z = z * torch.where(size > 0, 1 / size, 1)[:, None, None]
        for (s, y, rho), share in zip(batch.pairs, reversed(shares), strict=True):
            z = torch.addcmul(z, s, (share - rho * inner(z, y))[:, None, None])
        return -z

    def _search(
        self, batch: Batch, z: Tensor, slope: Tensor, flatter: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Step lengths (B,), losses and residuals there, who gains by it, who found no step.

        The objective is convex, so that the sign of its slope tells on which side of the minimum
        a step ends. Only changes are taken from `logits_z`, which may be in float32: at 0 the
        slope is the gradient's.
        """
        half = batch.penalty / 2
        xx, zz = (
            half * u[0, ..., :-1].mul(u[-1, ..., :-1]).sum(dim=(-2, -1)) for u in (batch.x, z)
        )
        logits_z = batch.logits_z
        along_0 = torch.linalg.vecdot(batch.residual.flatten(1), logits_z.flatten(1))
        value = batch.loss + xx
        residual = batch.spare
        t, low = torch.ones_like(slope), torch.zeros_like(slope)
        high, slope_low, slope_high = low + torch.inf, slope, low
        for _ in range(_MAX_TRIALS):
            loss, along = self.loss.at(batch.logits, logits_z, t, residual)
            value_t = loss + xx + t * (slope - along_0 + t * zz)
            slope_t = slope + along - along_0 + 2 * t * zz
            lower = value_t <= value + _DECREASE * t * slope + _ROUNDING * value
            ok = (slope_t.abs() <= flatter * slope.abs()) & (lower | (slope_t <= 0))
            if ok.all():
                return t, loss, residual, value_t < value * (1 - _ROUNDING), ~ok
            beyond = slope_t > 0
            reach = slope_t / (slope_low - slope_t)  # to where the secant of the slopes is 0
            further = t + (t - low) * torch.where(reach > 0, reach, 4).clamp(0.1, 4)
            high, slope_high = (
                torch.where(beyond, t, high),
                torch.where(beyond, slope_t, slope_high),
            )
            low, slope_low = torch.where(beyond, low, t), torch.where(beyond, slope_low, slope_t)
            between = low + (high - low) * (slope_low / (slope_low - slope_high)).clamp(0.1, 0.9)
            t = torch.where(ok, t, torch.where(high.isfinite(), between, further))
        t = torch.where(ok, t, 0)
        loss, _ = self.loss.at(batch.logits, logits_z, t, residual)
        return t, loss, residual, ok & (value_t < value * (1 - _ROUNDING)), ~ok

    def _measure(self, solution: Solution, C: float) -> tuple[Anchor, Tensor, Tensor, Tensor]:
        """The gradient at a solution in float64 on the features, the weights (k, d), (k,), and the
        objective ().
        """
        W, b = self.space.weights(solution.x)
        logits = W.new_empty((1, self.k, len(self.rows)))
        residual, sums = torch.empty_like(logits), torch.zeros_like(W)
        loss = W.new_zeros(1)
        for part, block in self.rows.blocks():
            Z = torch.from_numpy(block).to(W.device)  # (b, d)
            logits[0, :, part] = W @ Z.T + b[:, None]
            p = logits[..., part].clone()
            loss += self.loss.to_residual(p, part)
            residual[..., part] = p
            sums.addmm_(p[0], Z)
        strength = C * self.loss.total_weight  # class by class: (k, d) may be as large as many rows
        classes = zip(sums, W, strict=True)
        squares = torch.stack([(s + w / strength).square().sum() for s, w in classes]).sum()
        if self.intercept:
            squares += residual.sum(dim=-1).square().sum()
        value = loss[0] + sum(w.square().sum() for w in W) / (2 * strength)
        return Anchor(float(squares.sqrt()), logits, residual, sums), W, b, value
