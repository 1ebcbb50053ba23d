"""Features of others: an NPY file that is not trusted, mapped and read a block at a time."""

from __future__ import annotations

import hashlib
import math
import os
import tokenize
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np

from featx.cache.crc32 import crc32_of
from featx.errors import InputError
from featx.interchange.exported import BLOCK_BYTES

_STORED: Final = {"float16": "float16", "float32": "float32", "float64": "float32"}
_MAX_AXES: Final = 4  # rows of maps
# What the header of a foreign file can make numpy raise; all of it means that there is no such
# array. Memory runs out in Python's parser of nested text: mapping takes none.
_UNREADABLE: Final = (
    ValueError,
    TypeError,
    OSError,
    EOFError,
    OverflowError,
    SyntaxError,
    MemoryError,
    RecursionError,
    tokenize.TokenError,
)


@dataclass(frozen=True, eq=False)
class ForeignFeatures:
    """An array of features that lies on the disk, and is mapped only while it is read.

    Attributes
    ----------
    path : the NPY file.
    shape : (n, d...).
    source_dtype : float16, float32 or float64, in any byte order.
    offset : where the numbers begin in the file.
    order : in which they lie there, ``C`` or ``F``.
    """

    path: Path
    shape: tuple[int, ...]
    source_dtype: np.dtype
    offset: int
    order: Literal["C", "F"]

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def dtype(self) -> str:
        """What a cache stores them as: float64 becomes float32."""
        return _STORED[self.source_dtype.name]

    @property
    def step(self) -> int:
        """How many rows are read at a time; one at least."""
        return max(1, BLOCK_BYTES // (math.prod(self.shape[1:]) * self.source_dtype.itemsize))

    def take(self, rows: np.ndarray) -> np.ndarray:
        """(m, d...) of the rows number `rows` (m,), as they are stored.

        Raises
        ------
        InputError
            A number is too large for float32, or the file has become shorter.
        """
        try:
            found = np.asarray(self._mapped()[rows])
        except (ValueError, OSError) as error:
            raise InputError(
                f"{self.path} has changed while it was read; import it again"
            ) from error
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(found, np.dtype(self.dtype).newbyteorder("<"))
        overflown = np.isinf(stored) & np.isfinite(found)
        if overflown.any():
            at = np.argwhere(overflown)[0]
            raise InputError(
                f"{self.path}: row {int(rows[at[0]]):,} (counted from 0) holds "
                f"{float(found[tuple(at)]):g}, which is beyond float32; scale the features first"
            )
        return stored

    def _mapped(self) -> np.ndarray:
        """The array, mapped anew: pages that were read would count as this process's memory."""
        return np.memmap(
            self.path, self.source_dtype, "r", self.offset, self.shape, order=self.order
        )

    def survey(self) -> Survey:
        """Read all rows once."""
        digest = hashlib.sha256(f"{self.dtype} {self.shape}\n".encode())
        finite, crc32 = np.empty(len(self), bool), np.empty(len(self), "<u4")
        for start in range(0, len(self), self.step):
            block = slice(start, min(start + self.step, len(self)))
            features = self.take(np.arange(block.start, block.stop))
            digest.update(features.reshape(-1).view(np.uint8).data)
            finite[block] = np.isfinite(features.reshape(len(features), -1)).all(axis=1)
            crc32[block] = crc32_of(features)
        return Survey(digest.hexdigest(), finite, crc32)


@dataclass(frozen=True, eq=False)
class Survey:
    """What reading all features once has shown.

    Attributes
    ----------
    sha256 : of dtype, shape and all values as they are stored, 64 hex digits; the same whatever
        the order in memory, the byte order, and whether float64 or the float32 of it came.
    finite : (n,) bool, which rows are.
    crc32 : (n,) uint32 of each row, so that a file that changes while it is read is noticed.
    """

    sha256: str
    finite: np.ndarray
    crc32: np.ndarray


def open_npy(path: str | os.PathLike[str]) -> ForeignFeatures:
    """Look over the features in an NPY file; no pickle in it is ever loaded.

    Raises
    ------
    InputError
        No such file, no NPY, cut short, longer than its array, or no array (n, d...) of float16,
        float32 or float64.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no file {path}; expected features as an NPY file")
    try:
        with path.open("rb") as stream:
            is_archive = stream.read(4) == b"PK\x03\x04"
        if not is_archive:
            array = np.lib.format.open_memmap(path, mode="r")
    except _UNREADABLE as error:
        told = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"{path} cannot be read as one array of numbers ({told}); write it with "
            "numpy.save(path, features), features being an array (n, d) of float32"
        ) from error
    if is_archive:
        raise InputError(
            f"{path} is an NPZ archive; take the features out of it: "
            "numpy.save('features.npy', numpy.load(path)['X'])"
        )
    if array.dtype.name not in _STORED:
        raise InputError(
            f"{path} holds {array.dtype}; features are float16, float32 or float64: "
            "features.astype('float32')"
        )
    if not 2 <= array.ndim <= _MAX_AXES or not array.size:
        raise InputError(
            f"{path} holds an array of shape {array.shape}; features are (n, d), or (n, c, h, w) "
            "for maps, one row an image"
        )
    beyond = path.stat().st_size - (array.offset + array.nbytes)
    if beyond:
        raise InputError(
            f"{path} is {beyond:,} bytes longer than the array it begins with: it is damaged, or "
            "holds more than one array"
        )
    order: Literal["C", "F"] = "C" if array.flags.c_contiguous else "F"
    return ForeignFeatures(path, array.shape, array.dtype, array.offset, order)
