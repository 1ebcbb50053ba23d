"""scikit-learn's handwritten digits, from the file that is installed with it."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from featx.datasets.blocks import Block
from featx.errors import InputError

_DARKEST = 16  # pixels are counts from 0 to 16 (Alpaydin & Kaynak 1998)


def digits_folder() -> Path:
    """Where scikit-learn keeps its data files. It is not imported, which takes a second."""
    found = importlib.util.find_spec("sklearn")
    if found is None or found.origin is None:
        raise InputError("sklearn:digits needs scikit-learn, which is not installed here")
    return Path(found.origin).parent / "datasets" / "data"


def read_digits(files: Sequence[Path], n_classes: int) -> Block:
    """The images of ``digits.csv.gz``, their 17 greys spread over 0 to 255.

    Parameters
    ----------
    files : the one file.
    n_classes : above every label.

    Raises
    ------
    InputError
        The file is damaged.
    OSError
        The file cannot be read.
    """
    (path,) = files
    try:
        rows = np.loadtxt(path, np.float64, delimiter=",", ndmin=2)  # (n, 65)
        counts, labels = rows[:, :-1].reshape(-1, 8, 8), rows[:, -1]
        known = (
            np.isin(counts, range(_DARKEST + 1)).all() and np.isin(labels, range(n_classes)).all()
        )
    except (ValueError, EOFError) as error:
        raise _damaged(path) from error
    if not known or not len(labels):
        raise _damaged(path)
    return Block(np.rint(counts * 255 / _DARKEST).astype(np.uint8), labels.astype(np.uint8))


def _damaged(path: Path) -> InputError:
    return InputError(f"{path} is damaged; install scikit-learn anew")
