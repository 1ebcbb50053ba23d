"""Pooling of a feature map's positions, and of tokens with a class token."""

from __future__ import annotations

import torch
from torch import nn

POOLS = ("auto", "avg", "max", "gem", "none", "cls", "cls+avg")
# Radenovic, Tolias, Chum 2018 (arXiv:1711.02512), equation 3: p = 3 where it is not trained;
# eps as in the authors' code (cirtorch/layers/functional.py, gem).
GEM_P = 3.0
GEM_EPS = 1e-6


class Pool(nn.Module):
    """Pool the positions of a batch of maps.

    Parameters
    ----------
    kind
        ``avg``, ``max``, ``gem`` (generalised mean, p = 3, of values clamped at 1e-6), ``none``,
        ``cls`` (the class token), ``cls+avg`` (class token, then the mean of the others).
    spatial
        Axes that hold positions: (2, 3) of (n, c, h, w).
    prefix_tokens
        Tokens at the start of axis 1 that stand for no position; avg, max and gem leave them out.

    Examples
    --------
    >>> Pool("max", spatial=(2, 3))(torch.arange(8.0).reshape(1, 2, 2, 2))
    tensor([[3., 7.]])
    """

    def __init__(self, kind: str, *, spatial: tuple[int, ...], prefix_tokens: int = 0) -> None:
        super().__init__()
        assert kind in POOLS
        assert kind != "auto", "build_front decides what auto means"
        self.kind = kind
        self.spatial = spatial
        self.prefix_tokens = prefix_tokens

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(n, c, h, w), (n, h, w, c), (n, t, d) or (n, c, t) -> (n, c); none: as it is."""
        if self.kind == "none":
            return features
        if self.kind == "cls":
            return features[:, 0]
        positions = features[:, self.prefix_tokens :] if self.prefix_tokens else features
        if self.kind == "cls+avg":
            return torch.cat([features[:, 0], positions.mean(dim=1)], dim=1)
        if self.kind == "avg":
            return positions.mean(dim=self.spatial)
        if self.kind == "max":
            return positions.amax(dim=self.spatial)
        # Cubes of half-precision values overflow or lose all digits: the sum is taken in float32.
        powers = positions.float().clamp(min=GEM_EPS).pow(GEM_P).mean(dim=self.spatial)
        return powers.pow(1 / GEM_P).to(features.dtype)

    def extra_repr(self) -> str:
        """What `repr` shows in the brackets."""
        return f"{self.kind!r}, spatial={self.spatial}, prefix_tokens={self.prefix_tokens}"
