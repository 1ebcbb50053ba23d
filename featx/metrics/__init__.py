"""Labels and predicted probabilities in, a frozen report out.

Nothing here reads a file, prints or draws. Accuracy is never without the accuracy of always
answering the commonest class, nor without an interval.
"""

from featx.metrics.report import (
    Baseline,
    ClassScore,
    ConfusedPair,
    Estimate,
    Reliability,
    Report,
)
from featx.metrics.scoring import score

__all__ = [
    "Baseline",
    "ClassScore",
    "ConfusedPair",
    "Estimate",
    "Reliability",
    "Report",
    "score",
]
