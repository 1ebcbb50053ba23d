"""The files of CIFAR-10 and CIFAR-100: pickles, of which nothing is run.

A pickle is a program. This one is read by an unpickler for which the five names that these files
may hold stand for small classes of our own, and no other name means anything: neither pickle nor
numpy calls what a file asks for.

Source: https://www.cs.toronto.edu/~kriz/cifar.html, section "Dataset layout": ``data`` is
(n, 3072) uint8, the red plane of an image before the green and the blue one, each in rows.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, Final

import numpy as np

from featx.datasets.blocks import Block
from featx.errors import InputError

_SHAPE: Final = (3, 32, 32)
_ROW: Final = 3 * 32 * 32
_START: Final = 64  # bytes by which the pixels are found in the file
_CHUNK: Final = 2**20
# What was seen to come of damaged pickles; the module's documentation names some of them.
_PICKLE_ERRORS: Final = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    TypeError,
    ValueError,
)


def read_batch(files: Sequence[Path], n_classes: int) -> Block:
    """The images of one file of CIFAR-10 or CIFAR-100 (its fine labels).

    Parameters
    ----------
    files : the one file.
    n_classes : above every label.

    Raises
    ------
    InputError
        Naming the file, where it is damaged or holds something else.
    OSError
        The file cannot be read.
    """
    (path,) = files
    entry = _loaded(path)
    data, labels = entry.get("data"), entry.get("labels", entry.get("fine_labels"))
    if not isinstance(data, _Array) or not isinstance(labels, list) or not labels:
        raise _damaged(path, "it holds no array of bytes with a list of labels")
    n = len(labels)
    if data.shape != (n, _ROW) or len(data.values) != n * _ROW:
        raise _damaged(path, f"{n:,} labels, but {len(data.values):,} bytes of pixels")
    if not all(type(label) is int and 0 <= label < n_classes for label in labels):
        raise _damaged(path, f"a label is no number from 0 to {n_classes - 1}")
    planes = _mapped(path, data.values).reshape(n, *_SHAPE)
    return Block(planes.transpose(0, 2, 3, 1), np.array(labels, np.uint8))


def class_names(path: Path, key: str) -> tuple[str, ...]:
    """The class names in a file ``batches.meta`` or ``meta``.

    Raises
    ------
    InputError, OSError
        As `read_batch`.
    """
    listed = _loaded(path).get(key)
    try:
        names = tuple(map(_text, listed if isinstance(listed, list) else ()))
    except (TypeError, ValueError) as error:
        raise _damaged(path, f"a name of {key} is no text") from error
    if not names or len(set(names)) != len(names):
        raise _damaged(path, f"it holds no list {key!r} of names that differ")
    return names


def _mapped(path: Path, values: bytes) -> np.ndarray:
    """The pixels as a memory map where they lie in one piece in the file, else as they are."""
    with path.open("rb") as stream, mmap(stream.fileno(), 0, access=ACCESS_READ) as raw:
        at = raw.find(values[:_START])
        same = at >= 0 and all(
            raw[at + i : at + min(i + _CHUNK, len(values))] == values[i : i + _CHUNK]
            for i in range(0, len(values), _CHUNK)
        )
    if not same:
        return np.frombuffer(values, np.uint8)
    return np.memmap(path, np.uint8, "r", at, (len(values),))


def _damaged(path: Path, why: str) -> InputError:
    return InputError(f"{path} is no file of CIFAR, or damaged: {why}; get it anew")


# --- pickles --------------------------------------------------------------------------------------


def _loaded(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as stream, mmap(stream.fileno(), 0, access=ACCESS_READ) as raw:
            found = _Unpickler(raw, encoding="bytes").load()
        if isinstance(found, dict):
            return {_text(key): value for key, value in found.items()}
    except _PICKLE_ERRORS as error:
        raise _damaged(path, " ".join(str(error).split())[:200] or type(error).__name__) from error
    raise _damaged(path, f"it holds a {type(found).__name__}, not a dictionary")


def _text(value: object) -> str:
    """A string of Python 2 or 3; `TypeError` for anything else."""
    if isinstance(value, bytes):
        return value.decode("ascii")
    if not isinstance(value, str):
        raise TypeError(f"a {type(value).__name__} where a name should be")
    return value


class _Named:
    """What a name in a pickle stands for: it can be called, and not changed."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., object]) -> None:
        self._call = call

    def __call__(self, *arguments: object) -> object:
        return self._call(*arguments)

    def __setstate__(self, _state: object) -> None:  # else a pickle might set attributes
        raise pickle.UnpicklingError("it changes what it names")


class _DType:
    """A numpy type in a pickle; only that of bytes is one here."""

    __slots__ = ()

    def __init__(self, code: object, *_: object) -> None:
        if code not in (b"u1", "u1"):
            raise pickle.UnpicklingError(f"an array of {code!r:.20} where bytes should be")

    def __setstate__(self, _state: object) -> None:
        return  # byte order and the like, which bytes do not have


class _Array:
    """A numpy array in a pickle: the shape and the values, in rows, that it is to be made of."""

    __slots__ = ("shape", "values")

    def __init__(self) -> None:
        self.shape: object = None
        self.values = b""

    def __setstate__(self, state: Any) -> None:
        _version, self.shape, dtype, by_columns, values = state
        if (
            not isinstance(dtype, _DType)
            or by_columns
            or not isinstance(values, (bytes, bytearray))
        ):
            raise pickle.UnpicklingError("an array that is not one of bytes in rows")
        self.values = bytes(values)


def _reconstruct(*_: object) -> _Array:
    """``numpy.core.multiarray._reconstruct``: an array to be filled by its state."""
    return _Array()


def _from_buffer(data: object, dtype: object, shape: object, order: object) -> _Array:
    """``numpy.core.numeric._frombuffer``: an array as pickle's protocol 5 has it."""
    array = _Array()
    array.__setstate__((1, shape, dtype, order != "C", data))
    return array


def _encode(text: object, encoding: object) -> bytes:
    """``_codecs.encode``: bytes as Python 3 writes them in pickle's protocol 2."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("a text that is no bytes")
    return text.encode("latin1")


_NAMES: Final = {
    "numpy ndarray": _Named(_reconstruct),
    "numpy dtype": _Named(_DType),
    "_codecs encode": _Named(_encode),
    **{
        f"numpy.{core}.{name}": _Named(call)
        for core in ("core", "_core")
        for name, call in (
            ("multiarray _reconstruct", _reconstruct),
            ("numeric _frombuffer", _from_buffer),
        )
    },
}


class _Unpickler(pickle.Unpickler):
    """Gives nothing but numbers, texts, lists, dictionaries and `_Array`."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _NAMES[f"{module} {name}"]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not run") from None
