"""One number that makes scores probabilities: softmax(scores / temperature)."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

# What a head file takes as a temperature (featx.heads.contents), and the search, in spreads of
# the scores: from probabilities that are equal to ones that are 0 and 1.
_RANGE: Final = (1e-30, 1e30)
_STEEPNESS: Final = (1e-2, 1e4)


def smoothed_temperature(scores: Tensor, y: Tensor) -> float:
    """The temperature of the smallest log-loss, for scores of rows that were not fitted on.

    Guo et al. 2017 ("On Calibration of Modern Neural Networks", section 4.2). So that rows which
    are all classified rightly do not ask for certainty, one row more is imagined at each class
    and place, with 1/n of a row's weight in all, as Platt (1999) smooths his targets.

    Parameters
    ----------
    scores : (n, k) float64
    y : (n,) int64

    Returns
    -------
    float, above 0; 1 where the scores tell nothing apart.

    Examples
    --------
    >>> scores = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0], [0.0, 2.0]]).double()
    >>> y = torch.tensor([0, 1, 1, 0])  # a score of 2 is right in half of the cases
    >>> smoothed_temperature(scores, y) > 90
    True
    """
    scores = scores - scores.mean(dim=1, keepdim=True)
    spread = float(scores.square().mean().sqrt())
    if not spread > 0:
        return 1.0
    scores /= spread
    n = len(scores)
    right = float(scores.gather(1, y[:, None]).mean())  # the imagined row's mean score is 0

    def loss(log_steepness: float) -> float:
        steepness = float(np.exp(log_steepness))
        total = float(torch.logsumexp(steepness * scores, dim=1).mean())
        return (1 + 1 / n) * total - steepness * right

    found = minimize_scalar(
        loss, bounds=np.log(_STEEPNESS), method="bounded", options={"xatol": 1e-3}
    )
    return float(np.clip(spread / np.exp(found.x), *_RANGE))
