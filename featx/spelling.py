"""Names that were mistyped: the known ones that look like them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Up to three of the known names that look like `name`, the likest first.

    Examples
    --------
    >>> nearest("resnet5O", ["resnet50", "resnet101", "vgg16"])
    ['resnet50', 'resnet101']
    """
    return difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.5)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """What ends a sentence on an unknown name: a question where a known one is near, else a stop.

    Examples
    --------
    >>> did_you_mean("layer9", ["layer1", "logits"]), did_you_mean("x", ["layer1"])
    ('; did you mean layer1?', '.')
    """
    near = nearest(name, known)
    return f"; did you mean {' or '.join(near)}?" if near else "."
