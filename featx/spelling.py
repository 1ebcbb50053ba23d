"""Names that were mistyped: the known ones that look like them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str], otherwise: str = ".") -> str:
    """What ends a sentence on an unknown name: a question where known ones are near it.

    Examples
    --------
    >>> did_you_mean("resnet5O", ["resnet50", "resnet101", "vgg16"])
    '; did you mean resnet50 or resnet101?'
    >>> did_you_mean("x", ["layer1"]), did_you_mean("x", ["layer1"], "; it has layer1")
    ('.', '; it has layer1')
    """
    near = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else otherwise
