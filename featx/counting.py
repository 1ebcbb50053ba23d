"""Counts as people write them, and the first of many names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

Name = TypeVar("Name")


def counted(n: int, noun: str, plural: str = "") -> str:
    """A count with its noun, in the plural where it is not one.

    Examples
    --------
    >>> counted(1, "val image"), counted(1200, "image"), counted(0, "class", "classes")
    ('1 val image', '1,200 images', '0 classes')
    """
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


def first_few(names: Sequence[Name], most: int, spelt: Callable[[Name], str] = str) -> str:
    """At most so many of the names, each as `spelt` writes it, and how many more there are.

    Examples
    --------
    >>> first_few(["a", "b", "c"], 3), first_few(["a", "b", "c"], 1)
    ('a, b, c', 'a and 2 more')
    """
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(spelt, names[:most])) + more
