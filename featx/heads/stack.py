"""Small networks of the same layers side by side, with the algebra of their training.

The gradients are written out, as autograd spends longer on networks of this size than their
matrix products take. Axis g is the networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final, Literal, Self

import numpy as np
import torch
from torch import Tensor
from torch.optim.adam import adam

_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8  # PyTorch's defaults for Adam
# float16 ends at 65,504: the sum over so many rows of |probability - target| <= 1 times a
# standardised feature stays below.
_FP16_ROWS: Final = 1024


class Stack:
    """g networks: Linear, (ReLU, dropout, Linear)...

    Attributes
    ----------
    weights : list of (g, n_out, n_in) float32, one a layer
    biases : list of (g, 1, n_out) float32
    weight_grads, bias_grads : the same shapes
        As `backward` left them.
    """

    def __init__(self, weights: list[Tensor], biases: list[Tensor]) -> None:
        self.weights, self.biases = weights, biases
        self.weight_grads = [torch.empty_like(weight) for weight in weights]
        self.bias_grads = [torch.empty_like(bias) for bias in biases]

    @classmethod
    def drawn(
        cls, sizes: Sequence[int], generators: Sequence[torch.Generator], device: str
    ) -> Self:
        """Hidden layers as He et al. 2015 (eq. 10, uniform); the last is 0: all classes equal."""
        weights = [torch.empty(len(generators), m, n) for n, m in pairwise(sizes)]
        for i, generator in enumerate(generators):
            for weight in weights:
                bound = 0.0 if weight is weights[-1] else (6 / weight.shape[2]) ** 0.5
                weight[i].uniform_(-bound, bound, generator=generator)
        biases = [torch.zeros(len(generators), 1, m) for m in sizes[1:]]
        return cls([w.to(device) for w in weights], [b.to(device) for b in biases])

    def forward(
        self, x: Tensor, *, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, list[Tensor]]:
        """Logits (g, b, k) and what entered each layer, from rows that all share, or (g, b, d)."""
        entering, inputs = x, []
        for weight, bias in zip(self.weights, self.biases, strict=True):
            if entering.ndim == 3 and len(weight) == 1:
                entering = entering[0]
            inputs.append(entering)
            if entering.ndim == 2:  # (b, d): one product for all networks
                z = _product(entering, weight.flatten(0, 1).mT, dtype)
                z = z.unflatten(1, weight.shape[:2]).transpose(0, 1)
            else:
                z = _product(entering, weight.mT, dtype)
            z = z.add_(bias)  # (g, b, n_out)
            if weight is not self.weights[-1]:
                entering = z.clamp_(min=0)
        return z, inputs

    def backward(self, inputs: list[Tensor], delta: Tensor, *, dtype: torch.dtype) -> None:
        """Gradients of the mean loss, from (g, b, k) of the sum's in the logits."""
        b = delta.shape[1]
        in_full = dtype == delta.dtype  # else of the sum, whose gradients do not vanish in few bits
        fewer = max(1.0, b / _FP16_ROWS) if dtype == torch.float16 else 1.0
        delta = delta / (b if in_full else fewer)
        for i in reversed(range(len(self.weights))):
            factor = delta.to(dtype)
            if inputs[i].ndim == 2:
                flat = factor.transpose(0, 1).flatten(1)  # (b, g * n_out)
                _product(flat.mT, inputs[i], dtype, out=self.weight_grads[i].flatten(0, 1))
            else:
                _product(factor.mT, inputs[i], dtype, out=self.weight_grads[i])
            torch.sum(delta, dim=1, keepdim=True, out=self.bias_grads[i])
            if i:
                delta = _product(factor, self.weights[i], dtype).mul_(inputs[i].sign())
        if not in_full:
            for gradient in (*self.weight_grads, *self.bias_grads):
                gradient.mul_(fewer / b)

    def thinned(self, units: Sequence[Tensor]) -> Stack:
        """The networks of these hidden units (g, kept) alone, one tensor a hidden layer.

        What leaves a unit is multiplied so that the mean stays, in the weights that it enters.
        """
        weights, biases = list(self.weights), list(self.biases)
        for i, kept in enumerate(units):
            factor = self._factor(i, kept)
            rows = weights[i].flatten(0, 1).index_select(0, self._rows(i, kept))
            weights[i] = rows.unflatten(0, kept.shape)
            biases[i] = biases[i].gather(2, kept.unsqueeze(1))
            columns = kept.unsqueeze(1).expand(-1, weights[i + 1].shape[1], -1)
            weights[i + 1] = weights[i + 1].gather(2, columns).mul_(factor)
        return Stack(weights, biases)

    def take_gradients(self, thinned: Stack, units: Sequence[Tensor]) -> None:
        """Gradients as a backward of `thinned` left them; 0 for the units that were left out."""
        for i, gradient in enumerate(thinned.weight_grads):
            whole, entered = self.weight_grads[i], gradient
            if i:  # by what the units before it were multiplied
                columns = units[i - 1].unsqueeze(1).expand_as(gradient)
                entered = gradient.new_zeros((*gradient.shape[:2], whole.shape[2]))
                entered.scatter_(2, columns, gradient * self._factor(i - 1, units[i - 1]))
            bias = thinned.bias_grads[i]
            if i == len(units):
                whole.copy_(entered)
                self.bias_grads[i].copy_(bias)
                continue
            rows = whole.zero_().flatten(0, 1)
            rows.index_copy_(0, self._rows(i, units[i]), entered.flatten(0, 1))
            self.bias_grads[i].zero_().scatter_(2, units[i].unsqueeze(1), bias)

    def _rows(self, i: int, kept: Tensor) -> Tensor:
        """Units (g, kept) of hidden layer i -> their places in (g * n_out)."""
        g, n_out = self.weights[i].shape[:2]
        return (kept + n_out * torch.arange(g, device=kept.device).unsqueeze(1)).flatten()

    def _factor(self, i: int, kept: Tensor) -> float:
        return self.weights[i].shape[1] / kept.shape[1]

    def finite(self) -> Tensor:
        """(g,) bool: whether every weight of a network is a finite number."""
        tensors = (*self.weights, *self.biases)
        return torch.stack([t.flatten(1).isfinite().all(dim=1) for t in tensors]).all(dim=0)

    def network(self, i: int) -> tuple[list[Tensor], list[Tensor]]:
        """Copies of one network's weights (n_out, n_in) and biases (n_out,)."""
        return [w[i].clone() for w in self.weights], [b[i, 0].clone() for b in self.biases]

    def only(self, which: Sequence[int]) -> Stack:
        """The networks at these places."""
        index = list(which)
        return Stack([w[index] for w in self.weights], [b[index] for b in self.biases])


class Dropout:
    """Hidden units that each network trains in a step, drawn by a seed of its own.

    Of each layer so many are left out (Srivastava et al. 2014), the same for all rows of a batch
    (Graham et al. 2015, "Efficient batchwise dropout training using submatrices"): the products of
    the thinned networks are smaller by as much, and no masks are drawn.
    """

    def __init__(self, rate: float, hidden: Sequence[int], seeds: Sequence[int]) -> None:
        self._sizes = [(size, max(1, round((1 - rate) * size))) for size in hidden]
        self._draws: list[Any] = [np.random.SFC64(seed) for seed in seeds]

    def only(self, which: Sequence[int]) -> None:
        """Go on with the networks at these places."""
        self._draws = [self._draws[i] for i in which]

    def units(self, device: torch.device) -> list[Tensor]:
        """(g, kept) int64 for each hidden layer, in ascending order."""
        return [
            torch.from_numpy(
                np.sort([draw.random_raw(size).argsort()[:kept] for draw in self._draws])
            ).to(device)
            for size, kept in self._sizes
        ]


def cross_entropy(logits: Tensor, y: Tensor, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """Plain losses (g, b), and the gradient (g, b, k) of their smoothed sum in the logits.

    The targets of label smoothing are (1 - s) onehot + s / k (Szegedy et al. 2016, eq. after 7).
    """
    log_p = logits.log_softmax(dim=2)
    target = y.expand(logits.shape[:2]).unsqueeze(2)  # (g, b, 1)
    losses = log_p.gather(2, target)
    delta = log_p.exp_()
    right = losses.exp() - (1 - label_smoothing)
    if label_smoothing:
        share = label_smoothing / logits.shape[2]
        delta, right = delta.sub_(share), right - share
    return losses.squeeze(2).neg(), delta.scatter_(2, target, right)


class Update:
    """Adam, AdamW or SGD as torch.optim's, on every network of a stack with its own rate.

    Weight decay is for the weights, not for the biases.
    """

    def __init__(
        self,
        stack: Stack,
        kind: Literal["adam", "adamw", "sgd"],
        lrs: Sequence[float],
        *,
        weight_decay: float,
        momentum: float,
    ) -> None:
        self.kind, self.lrs = kind, list(lrs)
        self.weight_decay, self.momentum = weight_decay, momentum
        self.n_steps = 0.0
        tensors = (*stack.weights, *stack.biases)
        self._first = [torch.zeros_like(tensor) for tensor in tensors]
        self._second = [torch.zeros_like(tensor) for tensor in tensors if kind != "sgd"]
        self._prepare(stack)

    def only(self, which: Sequence[int], stack: Stack) -> None:
        """Go on with the networks at these places, which are now `stack`."""
        index = list(which)
        self.lrs = [self.lrs[i] for i in index]
        self._first = [tensor[index] for tensor in self._first]
        self._second = [tensor[index] for tensor in self._second]
        self._prepare(stack)

    def step(self, factor: float) -> None:
        """Change the networks by their gradients; `factor` is the schedule's, of every rate."""
        self.n_steps += 1
        if self.kind == "sgd":
            rates = self._rates * -factor
            for tensor, gradient, speed, decay in self._sgd:
                if decay:
                    gradient.add_(tensor, alpha=decay)
                tensor.addcmul_(speed.mul_(self.momentum).add_(gradient), rates)
            return
        for lr, decay, (tensors, gradients, first, second), steps in self._adam:
            adam(
                tensors,
                gradients,
                first,
                second,
                [],
                steps,
                fused=True,
                decoupled_weight_decay=self.kind == "adamw",
                amsgrad=False,
                beta1=_BETA1,
                beta2=_BETA2,
                lr=lr * factor,
                weight_decay=decay,
                eps=_EPS,
                maximize=False,
            )

    def _prepare(self, stack: Stack) -> None:
        """What each step takes, laid out once."""
        tensors = [*stack.weights, *stack.biases]
        gradients = [*stack.weight_grads, *stack.bias_grads]
        decays = [self.weight_decay] * len(stack.weights) + [0.0] * len(stack.biases)
        device = tensors[0].device
        if self.kind == "sgd":
            self._rates = torch.tensor(self.lrs, device=device).view(-1, 1, 1)
            self._sgd = list(zip(tensors, gradients, self._first, decays, strict=True))
            return
        places = [slice(i, i + 1) for i in range(len(self.lrs))]
        if len(set(self.lrs)) == 1:
            places = [slice(None)]  # one call for all
        self._adam = []
        for lr, place in zip(self.lrs, places, strict=False):
            for decay in sorted(set(decays)):
                here = [i for i, of in enumerate(decays) if of == decay]
                lists = [
                    [column[i][place] for i in here]
                    for column in (tensors, gradients, self._first, self._second)
                ]
                steps = [torch.tensor(self.n_steps, device=device) for _ in here]
                self._adam.append((lr, decay, lists, steps))


def _product(a: Tensor, b: Tensor, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """The matrix product, of factors rounded to `dtype`; float32 as `dtype` is narrower."""
    if dtype.itemsize >= 4:
        return torch.matmul(a, b, out=out)
    product = torch.matmul(a.to(dtype), b.to(dtype))
    return product.float() if out is None else out.copy_(product)
