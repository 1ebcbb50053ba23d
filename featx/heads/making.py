"""A head by the name of its kind, from parameters that a person may have mistyped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from featx.errors import InputError
from featx.heads.base import Head
from featx.heads.contents import HEADS


def make_head(kind: str, params: Mapping[str, Any], *, device: str, seed: int) -> Head:
    """An estimator that is not fitted yet.

    Parameters
    ----------
    kind : a key of `HEADS`.
    params : of that head; what is left out has its default.
    device : where it is to be fitted.
    seed : its `random_state`.

    Raises
    ------
    InputError
        An unknown kind, or a parameter that the kind does not have.
    """
    if kind not in HEADS:
        raise InputError(f"head must be one of {', '.join(HEADS)}, got {kind!r}")
    known = HEADS[kind]().get_params()
    unknown = sorted(set(params) - set(known))
    if unknown:
        raise InputError(
            f"head {kind!r} has no parameter {', '.join(unknown)}; "
            f"it has {', '.join(sorted(known))}"
        )
    return HEADS[kind](**{"device": device, "random_state": seed, **params})
