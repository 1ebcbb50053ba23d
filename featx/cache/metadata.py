"""HDF5's metadata of a cache, read without HDF5.

The HDF5 library trusts what it parses: damaged or prepared metadata make it read outside its
memory and end the process, which nothing in Python can catch. A cache may come from a stranger,
so its metadata are read here: only the few structures that `featx.cache.skeleton` writes, each
within bounds and under its checksum. Everything else HDF5 can hold is refused.

Names and layouts are those of the HDF5 File Format Specification, version 3.0, by section.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np

from featx.cache.checksum import lookup3
from featx.errors import CacheError

_SIGNATURE: Final = b"\x89HDF\r\n\x1a\n"
_UNDEFINED: Final = 2**64 - 1  # the address of what is not there
_MAX_HEADER_BYTES: Final = 2**20  # five attributes of at most 64 KiB, and room to spare
_MAX_CONTINUATIONS: Final = 8
_MAX_TEXT_BYTES: Final = 2**20
_MAX_AXES: Final = 4
# IV.A.2: the messages that a group and a dataset of a cache have.
_NIL, _DATASPACE, _LINK_INFO, _DATATYPE, _FILL_VALUE = 0x00, 0x01, 0x02, 0x03, 0x05
_LAYOUT, _GROUP_INFO, _ATTRIBUTE, _CONTINUATION, _ATTRIBUTE_INFO = 0x08, 0x0A, 0x0C, 0x10, 0x15
_OF_GROUP: Final = {_NIL, _LINK_INFO, _GROUP_INFO, _ATTRIBUTE, _ATTRIBUTE_INFO}
_OF_DATASET: Final = {_NIL, _DATASPACE, _DATATYPE, _FILL_VALUE, _LAYOUT, _ATTRIBUTE_INFO}
_SHARED: Final = 0x02  # a message whose content lies elsewhere
# IV.A.2.d without the version: class, bit field, size, properties.
_DTYPES: Final = {
    "00 000000 01000000 0000 0800": "u1",
    "00 000000 02000000 0000 1000": "<u2",
    "00 000000 04000000 0000 2000": "<u4",
    "00 080000 08000000 0000 4000": "<i8",
    "01 200f00 02000000 0000 1000 0a 05 00 0a 0f000000": "<f2",
    "01 201f00 04000000 0000 2000 17 08 00 17 7f000000": "<f4",
}
_NUMBERS: Final = {bytes.fromhex(code): name for code, name in _DTYPES.items()}
_TEXT: Final = 3  # the class of fixed-length text
_DTYPE_VERSIONS: Final = range(1, 6)


class _Unfit(ValueError):
    """What keeps a file from being a cache."""


@dataclass(frozen=True)
class Stored:
    """A plain dataset: `dtype` and `shape` of its data, which lie from `offset` on, unfiltered."""

    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class Metadata:
    """What a file holds: its datasets by name, and its attributes; None for what is no text."""

    datasets: Mapping[str, Stored]
    attributes: Mapping[str, bytes | None]


def read_metadata(
    path: Path, accept: Callable[[Mapping[str, bytes | None]], None] = lambda attributes: None
) -> Metadata:
    """Read what the HDF5 file at `path` holds, if it is built like a cache.

    Parameters
    ----------
    accept : called with the attributes before anything else is read; raises to refuse the file.

    Raises
    ------
    CacheError
        It cannot be read, is no HDF5 file, is damaged, or holds anything but plain contiguous
        datasets of a cache's types below the root: links, filters, external or virtual storage.
    """
    try:
        with path.open("rb") as stream:
            return _File(stream, os.fstat(stream.fileno()).st_size).metadata(accept)
    except _Unfit as error:
        raise CacheError(f"{path} is not a featx cache, or is damaged: {error}") from error
    except OSError as error:
        raise CacheError(f"{path} cannot be read: {error.strerror or error}") from error


class _Fields:
    """Bytes taken off one after another, never more than there are."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, n: int) -> bytes:
        if not 0 <= n <= self.left:
            raise _Unfit("a field reaches past the end of its block")
        self._at += n
        return self._data[self._at - n : self._at]

    def uint(self, n: int) -> int:
        return int.from_bytes(self.take(n), "little")

    def expect(self, what: str, n: int, *values: int) -> int:
        """Take a number that must be one of `values`."""
        value = self.uint(n)
        if value not in values:
            raise _Unfit(f"its {what} is {value}, not {' or '.join(map(str, values))}")
        return value


class _File:
    """The blocks of one open file."""

    def __init__(self, stream: BinaryIO, size_bytes: int) -> None:
        self._stream = stream
        self._size_bytes = size_bytes
        self._continuations = 0

    def metadata(self, accept: Callable[[Mapping[str, bytes | None]], None]) -> Metadata:
        messages = list(self._messages(self._root_address(), _OF_GROUP))
        attributes = dict(_attribute(fields) for kind, fields in messages if kind == _ATTRIBUTE)
        accept(attributes)
        infos = [fields for kind, fields in messages if kind == _LINK_INFO]
        if len(infos) != 1:
            raise _Unfit(f"its root has {len(infos)} tables of links")
        links = self._links(infos[0])
        return Metadata({name: self._dataset(name, at) for name, at in links.items()}, attributes)

    def _bytes(self, address: int, n: int) -> bytes:
        if address + n > self._size_bytes:
            raise _Unfit("it is cut short: a block lies past its end")
        self._stream.seek(address)
        data = self._stream.read(n)
        if len(data) != n:
            raise _Unfit("it is cut short")
        return data

    def _checked(self, address: int, n: int, signature: bytes) -> _Fields:
        """The block of `n` bytes at `address`, but for its signature and the checksum behind it."""
        data = self._bytes(address, n + 4)
        if not data.startswith(signature):
            raise _Unfit(f"there is no {_told(signature)} block where one is said to be")
        if lookup3(data[:n]) != int.from_bytes(data[n:], "little"):
            raise _Unfit(f"the checksum of its {_told(signature)} block is wrong")
        return _Fields(data[len(signature) : n])

    def _root_address(self) -> int:  # II.A, versions 2 and 3
        if self._size_bytes < 48 or self._bytes(0, 8) != _SIGNATURE:
            raise _Unfit("it is no HDF5 file")
        version = self._bytes(8, 1)[0]
        if version not in (2, 3):
            raise _Unfit(f"its superblock has version {version}, and featx writes version 3")
        block = self._checked(0, 44, _SIGNATURE)
        block.uint(1)
        block.expect("size of offsets", 1, 8)
        block.expect("size of lengths", 1, 8)
        block.uint(1)  # flags of being open
        block.expect("base address", 8, 0)
        block.expect("superblock extension", 8, _UNDEFINED)
        if block.uint(8) > self._size_bytes:
            raise _Unfit("it is cut short")
        return block.uint(8)

    def _messages(self, address: int, allowed: set[int]) -> Iterator[tuple[int, _Fields]]:
        """Type and content of every message of the object at `address`."""  # IV.A.1.b
        start = _Fields(self._bytes(address, 6))
        if start.take(4) != b"OHDR":
            raise _Unfit("there is no OHDR block where one is said to be")
        start.expect("object header version", 1, 2)
        flags = start.uint(1)
        before = 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
        width = 1 << (flags & 3)
        n = int.from_bytes(self._bytes(address + before, width), "little")
        if n > _MAX_HEADER_BYTES:
            raise _Unfit(f"an object header takes {n} bytes, more than {_MAX_HEADER_BYTES}")
        block = self._checked(address, before + width + n, b"OHDR")
        block.take(before + width - 4)
        pending = [block]
        while pending:
            block = pending.pop(0)
            while block.left >= 4:  # less is a gap
                kind, size, message_flags = block.uint(1), block.uint(2), block.uint(1)
                if flags & 0x04:
                    block.uint(2)  # creation order
                content = _Fields(block.take(size))
                if message_flags & _SHARED:
                    raise _Unfit("a message is shared, which no featx cache needs")
                if kind == _CONTINUATION:
                    pending.append(self._continuation(content))
                elif kind not in allowed:
                    raise _Unfit(f"an object has a message of type {kind:#x}, which no cache has")
                elif kind != _NIL:
                    yield kind, content

    def _continuation(self, content: _Fields) -> _Fields:  # IV.A.1.b, OCHK
        self._continuations += 1
        address, n = content.uint(8), content.uint(8)
        if self._continuations > _MAX_CONTINUATIONS or not 8 <= n <= _MAX_HEADER_BYTES:
            raise _Unfit("its object headers are continued too often or too far")
        return self._checked(address, n - 4, b"OCHK")

    def _links(self, info: _Fields) -> dict[str, int]:
        """Name and address of everything below the root, which a heap and its index hold."""
        info.expect("link info version", 1, 0)  # IV.A.2.c
        if info.expect("link info flags", 1, 0, 1):
            info.uint(8)  # the highest creation order
        heap = self._heap(info.uint(8))
        found: dict[str, int] = {}
        for offset, n in self._index(info.uint(8)):
            name, address = _link(_Fields(heap[offset : offset + n]))
            if name in found:
                raise _Unfit(f"the name {name!r} is there twice")
            found[name] = address
        return found

    def _heap(self, address: int) -> bytes:
        """The one block of a fractal heap."""  # III.G
        if address == _UNDEFINED:
            raise _Unfit("it has not the datasets of a cache")
        block = self._checked(address, 142, b"FRHP")
        block.expect("heap version", 1, 0)
        block.expect("length of heap IDs", 2, 7)
        block.expect("heap filters", 2, 0)
        block.expect("heap flags", 1, 2)  # direct blocks have checksums
        block.take(4 + 12 * 8)  # sizes and counts, which the index says as well
        block.expect("width of the heap's table", 2, 4)
        n = block.expect("size of the heap's block", 8, *(2**k for k in range(9, 17)))
        block.uint(8)
        block.expect("bits of heap offsets", 2, 32)
        block.uint(2)
        root = block.uint(8)
        block.expect("depth of the heap", 2, 0)
        data = self._bytes(root, n)
        start = _Fields(data[:21])
        if start.take(4) != b"FHDB":
            raise _Unfit("there is no FHDB block where one is said to be")
        start.expect("heap block version", 1, 0)
        if start.uint(8) != address or start.uint(4) != 0:
            raise _Unfit("a block of its heap belongs elsewhere")
        if lookup3(data[:17] + bytes(4) + data[21:]) != start.uint(4):
            raise _Unfit("the checksum of its FHDB block is wrong")
        return data

    def _index(self, address: int) -> list[tuple[int, int]]:
        """Offset and length in the heap of every link, from a B-tree of one leaf."""  # III.A.2
        block = self._checked(address, 34, b"BTHD")
        block.expect("B-tree version", 1, 0)
        block.expect("B-tree type", 1, 5)  # links by name
        block.uint(4)
        block.expect("B-tree record size", 2, 11)
        block.expect("B-tree depth", 2, 0)
        block.uint(2)
        leaf, n = block.uint(8), block.uint(2)
        records = self._checked(leaf, 6 + 11 * n, b"BTLF")
        records.expect("B-tree version", 1, 0)
        records.expect("B-tree type", 1, 5)
        found = []
        for _ in range(n):
            records.uint(4)  # hash of the name
            records.expect("kind of heap ID", 1, 0)
            found.append((records.uint(4), records.uint(2)))
        return found

    def _dataset(self, name: str, address: int) -> Stored:
        parts: dict[int, _Fields] = {}
        try:
            for kind, content in self._messages(address, _OF_DATASET):
                if kind in parts:
                    raise _Unfit(f"it has two messages of type {kind:#x}")
                parts[kind] = content
            if not {_DATASPACE, _DATATYPE, _LAYOUT} <= parts.keys():
                raise _Unfit("it lacks a shape, a type or a place")
            shape, dtype = _shape(parts[_DATASPACE]), _dtype(parts[_DATATYPE])
            layout = parts[_LAYOUT]
            layout.expect("layout version", 1, 3, 4, 5)  # IV.A.2.i
            layout.expect("layout (contiguous is 1)", 1, 1)
            return Stored(dtype, shape, layout.uint(8))
        except _Unfit as error:
            raise _Unfit(f"dataset {name!r} is not stored plainly: {error}") from error


def _told(signature: bytes) -> str:
    return "superblock's" if signature == _SIGNATURE else signature.decode("ascii")


def _link(fields: _Fields) -> tuple[str, int]:  # IV.A.2.g
    fields.expect("link version", 1, 1)
    flags = fields.uint(1)
    kind = fields.uint(1) if flags & 0x08 else 0
    if flags & 0x04:
        fields.uint(8)
    if flags & 0x10:
        fields.uint(1)
    name = fields.take(fields.uint(1 << (flags & 3))).decode("utf-8", "backslashreplace")
    if kind != 0:
        raise _Unfit(f"{name!r} is a link; a featx cache has none")
    return name, fields.uint(8)


def _attribute(fields: _Fields) -> tuple[str, bytes | None]:
    """Name and text of an attribute; None where it is anything but one fixed-length text."""
    version, flags = fields.uint(1), fields.uint(1)  # IV.A.2.m
    n_name, n_dtype, n_space = fields.uint(2), fields.uint(2), fields.uint(2)
    if version >= 3:
        fields.uint(1)
    name = fields.take(n_name).rstrip(b"\0").decode("utf-8", "backslashreplace")
    try:
        dtype, space = _Fields(fields.take(n_dtype)), _Fields(fields.take(n_space))
        found = _dtype(dtype)
        if version != 3 or flags or _shape(space) or found.kind != "S":
            return name, None
    except _Unfit:
        return name, None
    return name, fields.take(found.itemsize)


def _shape(fields: _Fields) -> tuple[int, ...]:  # IV.A.2.b
    fields.expect("dataspace version", 1, 2)
    n_axes, flags, kind = fields.uint(1), fields.uint(1), fields.uint(1)
    if n_axes > _MAX_AXES or kind != (1 if n_axes else 0):
        raise _Unfit(f"a shape has {n_axes} axes and is of kind {kind}")
    shape = tuple(fields.uint(8) for _ in range(n_axes))
    if flags and tuple(fields.uint(8) for _ in range(n_axes)) != shape:
        raise _Unfit("it can be resized")
    return shape


def _dtype(fields: _Fields) -> np.dtype:
    code = fields.take(fields.left)
    version, kind = (code[0] >> 4, code[0] & 15) if code else (0, 0)
    if version in _DTYPE_VERSIONS:
        if kind == _TEXT and len(code) == 8 and code[1] in (0x00, 0x01, 0x10, 0x11):
            n = int.from_bytes(code[4:8], "little")
            if code[2:4] == b"\0\0" and 1 <= n <= _MAX_TEXT_BYTES:
                return np.dtype(f"S{n}")
        number = _NUMBERS.get(bytes([kind]) + code[1:])
        if number is not None:
            return np.dtype(number)
    raise _Unfit("it has a type that no featx cache has")
