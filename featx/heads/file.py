"""The head file: one .safetensors file, from which nothing is ever executed or imported.

Format 1: tensors `mean` and `scale`, the head's own, and `split.train`, `split.val` and
`split.held_out`, each (n, 32) uint8, the SHA-256 of the images (as tensors because safetensors'
JSON is limited to 100 MB); and in safetensors' metadata one entry, `featx`, JSON of `format`,
`kind`, `params`, `labels`, `classes`, `n_features`, `facts`, `metadata` and `digest`, the SHA-256
of all the rest. The same head gives the same bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from featx.errors import HeadError, InputError
from featx.heads.base import Head
from featx.heads.contents import (
    DTYPES,
    FORMAT,
    HEADS,
    KINDS,
    SPLIT_PARTS,
    HeadFile,
    build,
    canonical,
    checked_header,
    digest_of,
    labels_of,
    one_line,
    to_json,
)
from featx.home import at_home
from featx.whole_files import replace_whole

__all__ = ["FORMAT", "HEADS", "SPLIT_PARTS", "HeadFile", "load_head", "save_head"]


def save_head(
    path: str | os.PathLike[str],
    head: Head,
    *,
    classes: Sequence[str],
    metadata: Mapping[str, Any] | None = None,
    split: Mapping[str, npt.NDArray[np.uint8]] | None = None,
) -> Path:
    """Write a fitted head; a reader sees the old file or the new one, never a part.

    Parameters
    ----------
    path : path
        Replaced if it exists.
    head : Head
        Fitted, of a class in `KINDS`, on labels that are whole numbers or strings.
    classes : k str
        Names in the order of `head.classes_`.
    metadata : dict, optional
        Anything JSON holds; no NaN.
    split : dict, optional
        Of "train", "val" and "held_out", each (n, 32) uint8; a part left out is empty.

    Returns
    -------
    Path

    Raises
    ------
    InputError
        Arguments that do not fit each other or that the format cannot hold.
    DiskError
        The file cannot be written; what was there is untouched.
    """
    path = Path(path)
    kind = next((name for name, cls in KINDS.items() if type(head) is cls), None)
    if kind is None or not hasattr(head, "classes_"):
        raise InputError(f"a head file holds a fitted {', '.join(KINDS)} head, got {head!r}")
    head._check_savable()
    tensors = {"mean": head.mean_, "scale": head.scale_, **head._tensors()}
    for part in set(split or {}) - set(SPLIT_PARTS):
        raise InputError(f"split has a part {part!r}; its parts are {', '.join(SPLIT_PARTS)}")
    for part in SPLIT_PARTS:
        hashes = np.asarray((split or {}).get(part, np.empty((0, 32), np.uint8)))
        if hashes.dtype != np.uint8 or hashes.shape[1:] != (32,):
            raise InputError(
                f"split[{part!r}] must be (n, 32) uint8 SHA-256 digests, "
                f"got shape {hashes.shape} and type {hashes.dtype}"
            )
        tensors[f"split.{part}"] = hashes
    # A stride-0 or reversed array must be laid out before its bytes are taken.
    tensors = {name: np.asarray(tensor, order="C") for name, tensor in sorted(tensors.items())}
    header = {
        "format": FORMAT,
        "kind": kind,
        "params": {name: to_json(value) for name, value in head.get_params(deep=False).items()},
        "labels": labels_of(head),
        "classes": list(classes),
        "n_features": int(head.n_features_in_),
        "facts": {name: to_json(getattr(head, name)) for name in head.FACTS},
        "metadata": dict(metadata or {}),
    }
    try:
        header = json.loads(canonical(header))  # what a reader will have
        header["digest"] = digest_of(header, tensors)
        text = canonical(header)
    except (TypeError, ValueError, RecursionError) as why:
        raise InputError(f"the head's metadata or parameters are not JSON: {why}") from why
    try:
        checked_header(text)
        build(path, header, tensors)
    except HeadError as why:
        raise InputError(f"this head cannot be saved: {why}") from why
    replace_whole(path, to_bytes(tensors, {"featx": text}))
    return path


def load_head(path: str | os.PathLike[str]) -> HeadFile:
    """Read a head file. Whatever is in it, nothing of it is executed or imported.

    Raises
    ------
    HeadError
        There is no such file, or it is no head file, is damaged, was made by a newer featx, or
        its parts do not fit each other.
    """
    path = at_home(path)
    if not path.is_file():
        raise HeadError(f"there is no head file {path}; make one with `featx fit-head`")
    try:
        header, tensors = _read(path)
        return build(path, header, tensors)
    except HeadError as why:
        raise HeadError(f"{path} cannot be used as a head: {why}") from why
    except (SafetensorError, OSError) as why:
        raise HeadError(
            f"{path} is not a head file, or is damaged ({one_line(why)}); fit the head again"
        ) from why


def _read(path: Path) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    with safe_open(path, framework="np") as file:
        header = checked_header((file.metadata() or {}).get("featx"))
        tensors = {}
        for name in sorted(file.keys()):  # not a dict
            dtype = file.get_slice(name).get_dtype()
            if dtype not in DTYPES:
                raise HeadError(f"tensor {name!r} has the unknown type {dtype}")
            tensors[name] = file.get_tensor(name)
    return header, tensors
