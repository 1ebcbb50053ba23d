"""A training as a person follows it at the terminal: a line for an epoch, and Ctrl-C."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from featx.cli.output import err, tell
from featx.errors import StoppedError

_INTERVAL_S: Final = 5.0  # between two lines where there is no terminal


@contextmanager
def telling_epochs() -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """What to call after each epoch with what it came to.

    Raises
    ------
    StoppedError
        Ctrl-C, after the first epoch was over: that and those after it are kept.
    """
    last: Mapping[str, Any] = {}
    told_at = time.monotonic()
    everything = err().is_terminal

    def told(row: Mapping[str, Any]) -> None:
        nonlocal last, told_at
        if not last and row["epoch"] > 1:
            tell(f"going on after epoch {row['epoch'] - 1}, up to which this training was kept")
        last = row
        if everything or time.monotonic() - told_at >= _INTERVAL_S:
            told_at = time.monotonic()
            tell(line_of(row))

    try:
        yield told
    except KeyboardInterrupt as error:
        if not last:
            raise
        raise StoppedError(
            f"interrupted; the training is kept up to epoch {last['epoch']}, run the same command "
            "to go on"
        ) from error


def line_of(row: Mapping[str, Any]) -> str:
    """One row of a history in words.

    Examples
    --------
    >>> line_of({"epoch": 3, "train_loss": 0.5, "train_accuracy": 0.75, "val_loss": None})
    'epoch 3: loss 0.500, accuracy 0.750'
    """
    parts = [
        f"loss {row[f'{rows}_loss']:.3f}, accuracy {row[f'{rows}_accuracy']:.3f}"
        for rows in ("train", "val")
        if row[f"{rows}_loss"] is not None
    ]
    return f"epoch {row['epoch']}: {'; validation '.join(parts)}"
