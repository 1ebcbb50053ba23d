"""What a head file holds, in parts and put together: every part is checked against the others.

Nothing here trusts its arguments: they may come from a file that was damaged or made to harm.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np
import numpy.typing as npt

from featx.errors import HeadError, InputError, MissingExtraError
from featx.heads.base import Head
from featx.heads.centroid import CentroidHead
from featx.heads.knn import KNNHead
from featx.heads.linear import LinearHead
from featx.heads.logistic import LogisticHead
from featx.heads.mlp import MLPHead
from featx.heads.ridge import RidgeHead
from featx.heads.tail import TailHead

FORMAT: Final = 1
# Those that take any features; a tail takes what enters its network at the cut.
HEADS: Final[Mapping[str, type[Head]]] = {
    "logistic": LogisticHead,
    "linear": LinearHead,
    "mlp": MLPHead,
    "ridge": RidgeHead,
    "knn": KNNHead,
    "centroid": CentroidHead,
}
KINDS: Final[Mapping[str, type[Head]]] = {**HEADS, "tail": TailHead}
SPLIT_PARTS: Final = ("train", "val", "held_out")

DTYPES: Final = {"F64": np.float64, "F32": np.float32, "I64": np.int64, "U8": np.uint8}
_HEADER_BYTES: Final = 100_000_000  # safetensors' own limit
_LARGEST: Final = 1e90  # (0 - mean) / scale * coef stays within a float64
_STEEPEST: Final = 1e30  # and so does that over a temperature
_KEYS: Final = {
    "format": int,
    "kind": str,
    "params": dict,
    "labels": list,
    "classes": list,
    "n_features": int,
    "facts": dict,
    "metadata": dict,
    "digest": str,
}


@dataclass(frozen=True, eq=False)
class HeadFile:
    """A head and what it was made from.

    Attributes
    ----------
    path : Path
    head : Head
        Fitted; predicts from feature rows (n, d).
    kind : str
        A key of `KINDS`.
    classes : tuple of k str
        Names in the order of `head.classes_` and of the columns of `predict_proba`.
    metadata : dict
        JSON, as given to `save_head`.
    split : dict of "train", "val", "held_out" to (n, 32) uint8
        SHA-256 of the images in each part.
    """

    path: Path
    head: Head
    kind: str
    classes: tuple[str, ...]
    metadata: dict[str, Any]
    split: dict[str, npt.NDArray[np.uint8]]


def checked_header(text: str | None) -> dict[str, Any]:
    """The JSON of a head file, its format and the kinds of its values."""
    if text is None:
        raise HeadError("it is a safetensors file, but not of a featx head")
    if len(text) > _HEADER_BYTES:
        raise HeadError(f"its metadata take {len(text)} bytes, more than {_HEADER_BYTES}")
    try:
        header = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as why:
        raise HeadError(f"its metadata are not JSON ({one_line(why)})") from why
    version = header.get("format") if isinstance(header, dict) else None
    if type(version) is int and version > FORMAT:
        raise HeadError(
            f"it has format {version}, and this featx knows formats up to {FORMAT}: "
            "upgrade featx (pip install --upgrade featx)"
        )
    if version != FORMAT or type(version) is not int:
        raise HeadError(f"its format is {version!r}, not {FORMAT}")
    wrong = [key for key, kind in _KEYS.items() if type(header.get(key)) is not kind]
    if wrong or set(header) != set(_KEYS):
        raise HeadError(f"its metadata lack or garble {', '.join(wrong) or 'a field'}")
    return header


def build(path: Path, header: dict[str, Any], tensors: dict[str, npt.NDArray[Any]]) -> HeadFile:
    """Check every part against the others, and put the head together."""
    kind, classes, labels = header["kind"], header["classes"], header["labels"]
    if kind not in KINDS:
        raise HeadError(f"its kind is {kind!r}; this featx knows {', '.join(KINDS)}")
    if not all(type(name) is str for name in classes) or len(set(classes)) != len(classes):
        raise HeadError("its class names are not different strings")
    if len(classes) != len(labels) or len(labels) < 2:
        raise HeadError(f"it names {len(classes)} classes for {len(labels)} labels")
    head = _estimator(kind, header["params"])
    _set_facts(head, header["facts"])
    specs = _all_specs(head, header["n_features"], len(labels))
    _check_tensors(tensors, specs)
    try:
        digest = digest_of(header, tensors)
    except (ValueError, RecursionError) as why:  # a number too large for a float, nested too deep
        raise HeadError(f"its metadata are not JSON ({one_line(why)})") from why
    if digest != header["digest"]:
        raise HeadError("its digest does not match its contents: the file was damaged or edited")
    head.classes_ = _label_array(labels)
    head.n_features_in_ = header["n_features"]
    head.mean_, head.scale_ = tensors["mean"], tensors["scale"]
    head._set_tensors(tensors)
    split = {part: tensors[f"split.{part}"] for part in SPLIT_PARTS}
    return HeadFile(path, head, kind, tuple(classes), header["metadata"], split)


def _estimator(kind: str, params: dict[str, Any]) -> Head:
    cls = KINDS[kind]
    unknown = set(params) - set(cls().get_params(deep=False))
    if unknown:
        raise HeadError(
            f"its parameters do not fit head {kind!r}: {', '.join(sorted(unknown))} too many"
        )
    # A file may be older than a parameter, whose default is what was done before there was one.
    head = cls(**{name: _from_json(value) for name, value in params.items()})
    try:
        head._check_params()
    except InputError as why:
        raise HeadError(f"a parameter cannot be used: {one_line(why)}") from why
    return head


def _all_specs(head: Head, d: int, k: int) -> dict[str, tuple[tuple[int | None, ...], str]]:
    if d < 1:
        raise HeadError(f"it says it has {d} features")
    try:
        size = head._mean_size(d)
        specs = {"mean": ((size,), "F64"), "scale": ((size,), "F64"), **head._tensor_specs(d, k)}
    except (InputError, MissingExtraError) as why:  # of a tail: no such network, or no such cut
        raise HeadError(f"its network cannot be built: {one_line(why)}") from why
    specs.update({f"split.{part}": ((None, 32), "U8") for part in SPLIT_PARTS})
    return specs


def _check_tensors(
    tensors: Mapping[str, npt.NDArray[Any]],
    specs: Mapping[str, tuple[tuple[int | None, ...], str]],
) -> None:
    if set(tensors) != set(specs):
        names = ", ".join(sorted(set(tensors) ^ set(specs))[:5])
        raise HeadError(f"its tensors are not those of such a head: {names} too many or missing")
    for name, (shape, dtype) in specs.items():
        tensor = tensors[name]
        fits = len(shape) == tensor.ndim and all(
            want in (None, got) for want, got in zip(shape, tensor.shape, strict=True)
        )
        if not fits or tensor.dtype != DTYPES[dtype]:
            raise HeadError(
                f"tensor {name!r} is {tensor.shape} {tensor.dtype}, "
                f"expected {shape} {np.dtype(DTYPES[dtype])}"
            )
        if dtype in ("F64", "F32") and not np.isfinite(tensor).all():
            raise HeadError(f"tensor {name!r} holds values that are not finite")
        if dtype == "F64" and (np.abs(tensor) > _LARGEST).any():
            raise HeadError(f"tensor {name!r} holds values that no fit gives, above {_LARGEST:g}")
    if not (tensors["scale"] > 0).all():
        raise HeadError("tensor 'scale' holds values that are not above 0")
    if (tensors["scale"] < 1 / _LARGEST).any():
        raise HeadError(f"tensor 'scale' holds values that no fit gives, below {1 / _LARGEST:g}")


def labels_of(head: Head) -> list[int] | list[str]:
    if head.classes_.dtype.kind not in "iuUO" or (
        head.classes_.dtype.kind == "O" and not all(type(c) is str for c in head.classes_)
    ):
        raise InputError(
            "a head file holds labels that are whole numbers or strings; this head's are "
            f"{head.classes_.dtype} ({head.classes_[0]!r}, ...): fit it on class numbers or names"
        )
    return head.classes_.tolist()


def _label_array(labels: list[Any]) -> npt.NDArray[Any]:
    """`classes_` as it was: sorted, different, int64 or str."""
    if all(type(label) is int and -(2**63) <= label < 2**63 for label in labels):
        array = np.array(labels, np.int64)
    elif all(type(label) is str for label in labels):
        array = np.array(labels, object if any("\0" in label for label in labels) else str)
    else:
        raise HeadError("its labels are neither all whole numbers nor all strings")
    if array.tolist() != sorted(set(labels)):
        raise HeadError("its labels are not sorted, or not different")
    return array


def _set_facts(head: Head, facts: dict[str, Any]) -> None:
    required = {name for name, kind in head.FACTS.items() if not kind.endswith(" or null")}
    if not required <= set(facts) <= set(head.FACTS):
        raise HeadError("what it says of its fit is incomplete, or too much")
    for name, kind in head.FACTS.items():
        value = facts.get(name)  # a file may be older than a fact that may be null
        if not _is_fact(value, kind):
            raise HeadError(f"what it says of its fit is garbled: {name} is no {kind}")
        setattr(head, name, value)


def _is_fact(value: Any, kind: str) -> bool:
    if kind.endswith(" or null"):
        return value is None or _is_fact(value, kind.removesuffix(" or null"))
    if kind == "columns":
        return type(value) is dict and all(
            type(column) is list and all(type(v) in (int, float, bool) for v in column)
            for column in value.values()
        )
    if kind == "counts":
        return type(value) is list and all(type(v) is int and v >= 0 for v in value)
    if kind == "rows":
        return type(value) is list and all(
            type(row) is dict and all(v is None or type(v) in (int, float) for v in row.values())
            for row in value
        )
    if kind.startswith("positive "):
        return (
            _is_fact(value, kind.removeprefix("positive ")) and 1 / _STEEPEST <= value <= _STEEPEST
        )
    kinds = {"number": (int, float), "count": (int,), "bool": (bool,), "text": (str,)}
    return type(value) in kinds[kind]


def to_json(value: Any) -> Any:
    """Parameters and facts in JSON's types; a dict of class weights becomes a list of pairs."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return to_json(value.tolist())
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {key: to_json(item) for key, item in value.items()}
        return {"pairs": [[to_json(key), to_json(item)] for key, item in value.items()]}
    return value


def _from_json(value: Any) -> Any:
    """The inverse for parameters: sequences are tuples, as in the heads' signatures."""
    if isinstance(value, list):
        return tuple(_from_json(item) for item in value)
    if isinstance(value, dict) and set(value) == {"pairs"}:
        pairs = value["pairs"]
        if type(pairs) is not list or not all(
            type(pair) is list and len(pair) == 2 and type(pair[0]) in (int, float, str, bool)
            for pair in pairs
        ):
            raise HeadError("a parameter cannot be used: its pairs are garbled")
        return dict(pairs)
    return value


def digest_of(header: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[Any]]) -> str:
    """SHA-256 of the JSON but for the digest, and of every tensor's name, type, shape, bytes."""
    text = canonical({key: value for key, value in header.items() if key != "digest"})
    digest = hashlib.sha256(text.encode("ascii"))
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype.str} {tensor.shape}\n".encode())
        digest.update(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def canonical(value: Any) -> str:
    """One text per value, in ASCII: also names with half surrogates, as file names may have."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def one_line(why: BaseException) -> str:
    return " ".join(str(why).split())[:200] or type(why).__name__
