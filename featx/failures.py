"""When a run with images that cannot be used, or one told to stop, must not be called finished."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from featx.cache import CacheFile, CacheWriter, Status
from featx.errors import ImageError, StoppedError, TooManyFailedError
from featx.image_sources import shown
from featx.images import ImageTable

_EXAMPLES: Final = 3


class StopAtFailure:
    """A sink that ends the run at the first image that cannot be used, and leaves it to do.

    Parameters
    ----------
    writer : takes the rows of all others.
    table : names the images.
    """

    def __init__(self, writer: CacheWriter, table: ImageTable) -> None:
        self.put = writer.put
        self._table = table

    def fail(self, row: int, status: int, reason: str, sha256: bytes) -> None:
        """Raise `ImageError` for the image of `row`."""
        raise ImageError(
            f"{shown(self._table.paths[row])} cannot be used ({Status(status).words}: {reason}), "
            "and the run was to stop at the first such image. What is done is kept: mend or "
            "remove it and run the same command again, or leave --on-error stop away",
            status=status,
            sha256=sha256,
        )


def check_settled(writer: CacheWriter) -> None:
    """End a run that was told to stop, unless it had come to its end all the same.

    Raises
    ------
    StoppedError
        Rows are still to do; the message counts them and names the file they lie in.
    """
    left, n = len(writer.pending), len(writer.file)
    if left:
        raise StoppedError(
            f"stopped as asked: {n - left:,} of {n:,} images are done and kept in "
            f"{writer.file.path}; run the same command to go on"
        )


def check_failures(file: CacheFile, max_failed: float) -> None:
    """Stop before the rename where no image, or too few of them, could be used.

    Parameters
    ----------
    file : all rows settled.
    max_failed : share of the images, 0 to 1, that may have failed.

    Raises
    ------
    TooManyFailedError
        With counts by reason and the first images.
    """
    counts = file.counts()
    done, n = counts[Status.DONE], len(file)
    failed = n - done
    if done and failed / n <= max_failed:  # 29 of 100 are 0.29, but 0.29 * 100 is less than 29
        return
    told = ", ".join(f"{counts[s]:,} {s.words}" for s in Status if counts[s] and s != Status.DONE)
    what = (
        f"{failed:,} of the {n:,} images could not" if done else f"none of the {n:,} images could"
    )
    accept = f", or accept them with --max-failed {_rounded_up(failed / n)}" if done else ""
    # those that could not be read are tried on every run
    unchanged = " (--retry-failed tries unchanged ones too)" * (failed > counts[Status.UNREADABLE])
    raise TooManyFailedError(
        f"{what} be used ({told}; {_examples(file)}). Nothing was finished and nothing lost: all "
        f"that is known lies in {file.path}. Mend or remove them and run the same command "
        f"again{unchanged}{accept}"
    )


def _examples(file: CacheFile) -> str:
    rows = np.flatnonzero(file.map("status") > Status.DONE)[:_EXAMPLES]
    reasons = [bytes(reason).decode("utf-8", "replace") for reason in file.map("errors")[rows]]
    paths = [shown(bytes(path)) for path in file.map("paths")[rows]]
    return "; ".join(f"{path}: {reason}" for path, reason in zip(paths, reasons, strict=True))


def _rounded_up(share: float) -> float:
    return min(1.0, math.ceil(share * 100) / 100)
