"""What `_resample.c` gives; `featx.resampling` calls it."""

import numpy as np

def resample(
    pixels: np.ndarray,
    out: np.ndarray,
    low_across: np.ndarray,
    weights_across: np.ndarray,
    low_down: np.ndarray,
    weights_down: np.ndarray,
    /,
) -> None: ...
