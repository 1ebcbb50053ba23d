"""Counts as people write them."""

from __future__ import annotations


def counted(n: int, noun: str, plural: str = "") -> str:
    """A count with its noun, in the plural where it is not one.

    Examples
    --------
    >>> counted(1, "val image"), counted(1200, "image"), counted(0, "class", "classes")
    ('1 val image', '1,200 images', '0 classes')
    """
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"
