"""Leaks: held-out images of which a duplicate was trained on, so that they test memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from featx.duplicates import DEFAULT_THRESHOLD, Images, nearest_duplicates
from featx.featureset import FeatureSet
from featx.likeness import Likeness
from featx.metrics import Estimate

TOO_MANY: Final = "there are too many images to compare unasked (--duplicate-threshold asks)"
NO_CACHE: Final = "the cache that the head was fitted on is not there"
_MOST_PRODUCTS: Final = 4e12  # one or two minutes on two cores


@dataclass(frozen=True)
class Leak:
    """A held-out image and the image it is a duplicate of.

    `trained_path` is None where the cache that was trained on is not at hand.
    """

    path: str
    trained_path: str | None
    similarity: float
    exact: bool


def recorded_threshold(metadata: Mapping[str, Any]) -> float | None:
    """The least similarity of a near duplicate that a head was fitted with; None: the default."""
    recorded = metadata.get("leaks")
    threshold = recorded.get("threshold") if isinstance(recorded, dict) else None
    if isinstance(threshold, (int, float)) and 0 < threshold <= 1:
        return None if threshold == DEFAULT_THRESHOLD else float(threshold)
    return None


@dataclass(frozen=True)
class Leaks:
    """Duplicates between held-out images and those that were trained or chosen on.

    Attributes
    ----------
    pairs : a pair for each held-out image that has a duplicate, exact ones first, then the most
        similar.
    threshold : the least similarity of a near duplicate.
    compared_with : trained-on images whose features were compared; 0 where only exact duplicates
        were looked for.
    why_exact_only : the reason for that, as a clause; empty where features were compared.
    accuracy_without : accuracy on the tested images without near duplicates; None where nothing
        is tested (yet), where there are none, or where no image is left.
    """

    pairs: tuple[Leak, ...]
    threshold: float
    compared_with: int
    why_exact_only: str = ""
    accuracy_without: Estimate | None = None

    @property
    def exact(self) -> int:
        """Held-out images whose files have the bytes of one trained on; they are never tested."""
        return sum(pair.exact for pair in self.pairs)

    @property
    def near(self) -> int:
        """Held-out images that have a near duplicate among those trained on."""
        return len(self.pairs) - self.exact

    def counts(self) -> dict[str, Any]:
        """What a head file records."""
        return {
            "exact": self.exact,
            "near": self.near,
            "threshold": self.threshold,
            "compared_with": self.compared_with,
            "why_exact_only": self.why_exact_only,
        }

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        without = self.accuracy_without
        return self.counts() | {
            "accuracy_without": None if without is None else without.to_dict(),
            "pairs": [dict(vars(pair)) for pair in self.pairs],
        }


def find_leaks(
    held_out: FeatureSet,
    rows: np.ndarray,
    trained: FeatureSet,
    trained_rows: np.ndarray,
    *,
    threshold: float | None,
) -> tuple[Leaks, np.ndarray]:
    """Duplicates of held-out images among trained-on ones, of one cache or of two.

    Parameters
    ----------
    held_out, trained : caches whose features mean the same.
    rows, trained_rows : (n,), (m,) int64, positions in them.
    threshold : the least similarity of a near duplicate. None is the default, and compares no
        features where that would take more than a few minutes: above 4e12 multiplications.

    Returns
    -------
    leaks : Leaks
    leaked : (n,) bool, which of `rows` have a duplicate, exact or near.
    """
    d = trained.X.shape[1]
    compared = threshold is not None or can_compare_unasked(len(rows), len(trained_rows), d)
    threshold = DEFAULT_THRESHOLD if threshold is None else threshold
    found = nearest_duplicates(
        Images(held_out.X, held_out.sha256, rows),
        Images(trained.X, trained.sha256, trained_rows),
        likeness=Likeness.learn(trained.X) if compared else None,
        threshold=threshold,
    )
    leaked = found.other >= 0
    positions = np.flatnonzero(leaked)
    order = np.lexsort((rows[positions], -found.similarity[positions], ~found.exact[positions]))
    pairs = tuple(
        Leak(
            held_out.paths[rows[position]],
            trained.paths[found.other[position]],
            float(found.similarity[position]),
            bool(found.exact[position]),
        )
        for position in positions[order]
    )
    if not compared:
        return Leaks(pairs, threshold, 0, TOO_MANY), leaked
    return Leaks(pairs, threshold, len(trained_rows)), leaked


def can_compare_unasked(n: int, n_others: int, d: int) -> bool:
    """Whether n images are compared with others, d features each, without being told to."""
    return n * n_others * d <= _MOST_PRODUCTS


def count_parted(groups: np.ndarray, duplicates: np.ndarray) -> int:
    """Images with a duplicate that is not in their group, so that a fold may part the two.

    Parameters
    ----------
    groups : (n,) int64, what is kept together; -1 is alone.
    duplicates : (n,) int64, groups of duplicates; -1 has none.
    """
    rows = np.flatnonzero(duplicates >= 0)
    unit = np.where(groups >= 0, groups, groups.max(initial=-1) + 1 + np.arange(len(groups)))[rows]
    of = duplicates[rows]
    in_several = np.unique(np.stack([of, unit], axis=1), axis=0)[:, 0]
    parted = np.flatnonzero(np.bincount(in_several) > 1)
    return int(np.isin(of, parted).sum())
