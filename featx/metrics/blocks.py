"""Large arrays taken piece by piece, so that memory is bounded whatever their size."""

from __future__ import annotations

from collections.abc import Iterator

_BLOCK = 1 << 22  # numbers held at once: 32 MiB of float64


def blocks(n: int, width: int) -> Iterator[slice]:
    """0..n-1 in runs of as many rows of `width` numbers as may be held at once, at least one."""
    step = max(1, _BLOCK // width)
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))
