"""Whether two ways of taking features gave the same ones: the bounds, and what was found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from benchmarks.runs import Run

# Largest difference of a row, relative to its largest feature.
TORCH_BOUND: Final = 1e-5  # the same arithmetic in the same library, batch by batch
FP32_BOUND: Final = 1e-4  # fp32 in another order of sums
FAST_BOUND: Final = 5e-3  # pixels resized otherwise, each within 1 of 255
# TF32 and fp16 keep 11 bits of a number, and errors pile up from layer to layer: there the angle
# between two rows counts, as 1 minus its cosine.
REDUCED_BOUND: Final = 1e-3


@dataclass(frozen=True)
class Comparison:
    """One comparison.

    Attributes
    ----------
    name : whom it judges.
    what : how it ran, where that is not as usual.
    measure : ``relative`` (largest difference of a row over its largest feature), ``cosine``
        (1 minus the cosine of the angle between rows) or ``top-1`` (images of another class).
    largest : the largest found, over all images.
    bound : what it may be at most.
    """

    name: str
    what: str
    measure: str
    largest: float
    bound: float

    @property
    def ok(self) -> bool:
        """Whether what was found lies within the bound; NaN does not."""
        return self.largest <= self.bound

    def __str__(self) -> str:
        verdict = "agrees" if self.ok else "DISAGREES"
        what = f"{self.name} ({self.what})" if self.what else self.name
        return f"{what}: {verdict}, {self.measure} {self.largest:.3g} (at most {self.bound:g})"


def relative_difference(features: np.ndarray, reference: np.ndarray) -> float:
    """The largest max|a-b| / max|b| of any row, of two (n, d)."""
    difference = np.abs(features - reference).max(axis=1)
    scale = np.abs(reference).max(axis=1)
    # a row of zeros is equal only to a row of zeros
    return float(np.where(difference == 0, 0, difference / np.where(scale, scale, 1e-30)).max())


def cosine_difference(features: np.ndarray, reference: np.ndarray) -> float:
    """The largest 1 - cos(a, b) of any row, of two (n, d)."""
    a, b = features.astype(np.float64), reference.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float((1 - (a * b).sum(axis=1) / np.where(lengths, lengths, 1e-30)).max())


def compare(
    name: str, run: Run, reference: Run, bound: float, *, what: str = "", reduced: bool = False
) -> Comparison:
    """Compare two runs, image by image.

    Parameters
    ----------
    reduced : either computed with fewer digits than fp32, so that `REDUCED_BOUND` holds.
    """
    measure, bound = ("cosine", REDUCED_BOUND) if reduced else ("relative", bound)
    if run.paths != reference.paths or run.features.shape != reference.features.shape:
        return Comparison(name, "other images or shapes", measure, np.inf, bound)
    difference = cosine_difference if reduced else relative_difference
    return Comparison(name, what, measure, difference(run.features, reference.features), bound)
