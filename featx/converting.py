"""Weights of another program's names: keys dropped and renamed, into a file that fits a network."""

from __future__ import annotations

import fnmatch
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from featx.backbones import load_backbone
from featx.counting import first_few
from featx.errors import InputError, WeightsError
from featx.weights import read_state_dict
from featx.whole_files import write_whole


@dataclass(frozen=True)
class ConvertedWeights:
    """What a conversion of weights did.

    Attributes
    ----------
    path : the new file.
    n_keys : that it has.
    dropped, renamed : keys of the old file that it has not, or under another name.
    notes : what does not fit the network all the same, such as its classifier.
    written : False where the same file was there already.
    """

    path: Path
    n_keys: int
    dropped: tuple[str, ...]
    renamed: tuple[str, ...]
    notes: tuple[str, ...]
    written: bool


def convert_weights(
    weights: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    backbone: str,
    drop_keys: Sequence[str] = (),
    rename_keys: Sequence[tuple[str, str]] = (),
    force: bool = False,
) -> ConvertedWeights:
    """Write a weights file under the names that a network has for them.

    The new file is known by its own SHA-256, so that every cache and head made with it says which
    weights they were, and `predict` finds them.

    Parameters
    ----------
    weights : a ``.pth`` or ``.safetensors`` file; wrappers and prefixes that all keys share
        (``state_dict``, ``module.``) are taken off as everywhere.
    out : the new file, ``.pth``.
    backbone : the network that it is for.
    drop_keys : patterns with ``*``, ``?`` and ``[...]`` of keys to leave out.
    rename_keys : pairs of what a key begins with and what is to stand there instead, in order,
        after `drop_keys`.
    force : replace a file of other content.

    Raises
    ------
    InputError
        A pattern or beginning that no key has, two keys of one name, or another file at `out`.
    WeightsError
        The file cannot be read, or does not fit the network: the message counts the keys that are
        missing, unexpected or of another shape and names the first.

    Examples
    --------
    >>> convert_weights("ssl.pth", "net.pth", backbone="resnet50",  # doctest: +SKIP
    ...                 drop_keys=["projector.*"], rename_keys=[("encoder.", "")]).dropped
    ('projector.0.weight', 'projector.0.bias')
    """
    path = Path(out)
    if path.suffix != ".pth":
        raise InputError(f"--out names a file of weights, which ends in .pth, got {str(path)!r}")
    state = read_state_dict(weights)
    dropped = _matching(state, drop_keys)
    new, renamed = _renamed({k: t for k, t in state.items() if k not in dropped}, rename_keys)
    source = os.fspath(weights) + (", so changed," if dropped or renamed else "")
    notes = _tried(new, backbone, source)
    written = write_whole(path, lambda stream: torch.save(new, stream), force=force)
    return ConvertedWeights(path, len(new), dropped, renamed, notes, written)


def _tried(state: Mapping[str, Tensor], backbone: str, source: str) -> tuple[str, ...]:
    """What is told where the network takes the weights; raises where it does not."""
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder, "weights.pth")
        torch.save(state, trial)
        try:
            notes = load_backbone(backbone, weights=trial).notes
        except WeightsError as error:
            raise WeightsError(str(error).replace(str(trial), source)) from error
        return tuple(
            n.replace(str(trial), source)
            for n in notes
            if not n.startswith(("transform", "timm asks"))
        )


def _matching(state: Mapping[str, Tensor], patterns: Sequence[str]) -> tuple[str, ...]:
    """Keys that one of the patterns fits; every pattern has to fit one."""
    for pattern in patterns:
        if not fnmatch.filter(state, pattern):
            raise InputError(f"no key fits --drop-keys {pattern}; {_first(state)}")
    return tuple(key for key in state if any(fnmatch.fnmatchcase(key, p) for p in patterns))


def _renamed(
    state: Mapping[str, Tensor], pairs: Sequence[tuple[str, str]]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The state dict under its new names, and the old ones that are gone."""
    names = {key: key for key in state}  # old to new
    for old, new in pairs:
        found = [key for key, name in names.items() if name.startswith(old)]
        if not found:
            raise InputError(f"no key begins with {old!r} (--rename-keys); {_first(state)}")
        names |= {key: new + names[key][len(old) :] for key in found}
    renamed: dict[str, Tensor] = {}
    for key, name in names.items():
        if name in renamed:
            raise InputError(f"two keys would be called {name!r}, one of them {key!r}")
        renamed[name] = state[key]
    return renamed, tuple(key for key, name in names.items() if key != name)


def _first(state: Mapping[str, Tensor]) -> str:
    return f"the file has {first_few(list(state), 4)}, without what all share, such as module."
