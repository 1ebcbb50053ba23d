"""Exact nearest neighbours by cosine, in blocks, with one answer whatever the blocks.

The last bits of a product depend on how it was computed. Similarities are therefore rounded to
2^-24 (single precision near 1, in which the rows are kept) before they are compared, and among
equals the earlier row is nearer.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from featx.heads.base import FloatArray, IntArray

_SHORTEST: Final = 1e-150  # whose square is a float64
_STEPS: Final = 1 << 24  # of similarity, to 1
_BLOCK_BYTES: Final = 64 << 20  # of similarities in float64 held at once
_QUERIES: Final = 1024  # rows searched for at once


class Neighbours(NamedTuple):
    """Of each row its nearest rows, the nearest first."""

    rows: IntArray  # (n, q); -1 where there are fewer than q
    similarity: FloatArray  # (n, q), -1 to 1


def unit_rows(Z: Tensor) -> Tensor:
    """Rows (n, d) at length 1; a row of zeros stays."""
    return torch.nn.functional.normalize(Z, dim=1, eps=_SHORTEST)


def nearest(
    queries: Tensor,
    rows: Tensor,
    q: int,
    *,
    query_units: Tensor | None = None,
    units: Tensor | None = None,
) -> Neighbours:
    """The `q` rows most similar to each query, by dot product.

    Parameters
    ----------
    queries : (m, d), rows : (n, d), float of any kind, of length 1 or 0; n below 2^37
    q : int, at most n
    query_units, units : (m,) and (n,) int64, optional
        A row of the query's own unit is no neighbour.

    Examples
    --------
    >>> rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    >>> nearest(rows[:1], rows, 2).rows.tolist()
    [[0, 2]]
    """
    n, m = len(rows), len(queries)
    found = torch.empty((m, q), dtype=torch.int64)
    step = max(1, _BLOCK_BYTES // (8 * _QUERIES))
    for start in range(0, m, _QUERIES):
        part = slice(start, start + _QUERIES)
        Q = queries[part].to(torch.float64)
        best = torch.empty((len(Q), 0), dtype=torch.int64, device=rows.device)
        for first in range(0, n, step):
            block = rows[first : first + step].to(torch.float64)
            numbers = torch.arange(first, first + len(block), device=rows.device)
            # One whole number a pair, by similarity and then by row: no two are equal.
            keys = (Q @ block.T * _STEPS).round_().to(torch.int64) * n + (n - 1 - numbers)
            if query_units is not None and units is not None:
                own = query_units[part, None] == units[first : first + step]
                keys.masked_fill_(own, _none(n))
            keys = torch.cat([best, keys], dim=1)
            best = keys.topk(min(q, keys.shape[1]), dim=1).values
        found[part] = best.cpu()
    keys_found = found.numpy()
    lacking = keys_found == _none(n)
    similarity = np.where(lacking, -1.0, keys_found // n / _STEPS)
    return Neighbours(np.where(lacking, -1, n - 1 - keys_found % n), similarity)


def _none(n: int) -> int:
    """Below the key of any pair."""
    return -2 * (_STEPS + 1) * n


def votes(
    near: Neighbours, labels: IntArray, n_classes: int, *, temperature: float | None
) -> FloatArray:
    """Each class's share of the neighbours' votes: (n, n_classes), rows sum to 1.

    Parameters
    ----------
    near : of which at least one in each row
    labels : int64, the class of each row that was searched
    temperature : float, optional
        A neighbour's vote weighs exp(similarity / temperature); None: all weigh the same.
    """
    there = near.rows >= 0
    weight = there.astype(np.float64)
    if temperature is not None:
        weight *= np.exp((near.similarity - near.similarity[:, :1]) / temperature)
    weight /= weight.sum(axis=1, keepdims=True)
    cell = np.arange(len(weight))[:, None] * n_classes + labels[near.rows]
    shares = np.bincount(cell[there], weight[there], minlength=len(weight) * n_classes)
    return shares.astype(np.float64).reshape(len(weight), n_classes)
