"""A model of what a power cut leaves on a disk, after every operation that was recorded.

Writes since the last sync of their file are kept, lost, torn at sectors, and in any order; names
since the last sync of their folder are old or new. What was synced is as it was synced.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from cache_life import JoiningDisk

SECTOR: Final = 512  # bytes that reach the medium together or not at all
EXHAUSTIVE: Final = 5  # operations in flight up to which every choice is tried

Folder = dict[str, bytes]


class Op(NamedTuple):
    """One operation on file number `inode`, or on a folder's names."""

    kind: str
    inode: int = -1
    offset: int = 0
    data: bytes = b""
    name: str = ""
    source: str = ""


class RecordingDisk(JoiningDisk):
    """Does every operation, and notes it.

    Not `begin_write_back`: what was not synced may be on the medium at any time, asked or not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[Op] = []
        self._inodes: dict[str, int] = {}
        self._open: dict[int, int] = {}

    def create(self, path: Path) -> int:
        assert path.name not in self._inodes, "the model knows no truncation"
        inode = self._inodes[path.name] = sum(op.kind == "create" for op in self.ops)
        self.ops.append(Op("create", inode, name=path.name))
        fd = super().create(path)
        self._open[fd] = inode
        return fd

    def open(self, path: Path) -> int:
        fd = super().open(path)
        self._open[fd] = self._inodes[path.name]
        return fd

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> None:
        self.ops.append(Op("write", self._open[fd], offset, bytes(data)))
        super().write(fd, data, offset)

    def allocate(self, fd: int, size_bytes: int) -> None:
        self.ops.append(Op("allocate", self._open[fd], size_bytes))
        super().allocate(fd, size_bytes)

    def datasync(self, fd: int) -> None:
        self.ops.append(Op("sync", self._open[fd]))

    def sync(self, fd: int) -> None:
        self.ops.append(Op("sync", self._open[fd]))

    def rename(self, source: Path, target: Path) -> None:
        inode = self._inodes[target.name] = self._inodes.pop(source.name)
        self.ops.append(Op("rename", inode, name=target.name, source=source.name))
        super().rename(source, target)

    def sync_folder(self, folder: Path) -> None:
        self.ops.append(Op("sync_folder"))

    def remove(self, path: Path) -> None:
        if path.exists():
            self.ops.append(Op("remove", name=path.name))
            del self._inodes[path.name]
            super().remove(path)


@dataclass
class _File:
    medium: bytearray = field(default_factory=bytearray)
    in_flight: list[Op] = field(default_factory=list)


class Machine:
    """One folder of a machine: what is on the medium, and what is only in memory.

    Operations are applied one by one; in between, `killed` and `power_cuts` say what the folder
    may look like if it ends here.
    """

    def __init__(self) -> None:
        self._files: dict[int, _File] = {}
        self._names: dict[str, int] = {}
        self._names_in_flight: list[Op] = []

    def apply(self, op: Op) -> None:
        """Take one operation as done, as far as the operating system tells."""
        if op.kind == "sync":
            file = self._files[op.inode]
            for done in file.in_flight:
                _do(file.medium, done)
            file.in_flight.clear()
        elif op.kind == "sync_folder":
            for done in self._names_in_flight:
                _name(self._names, done)
            self._names_in_flight.clear()
        elif op.kind in ("create", "rename", "remove"):
            self._names_in_flight.append(op)
            if op.kind == "create":
                self._files[op.inode] = _File()
        else:
            self._files[op.inode].in_flight.append(op)

    def killed(self, during: Op | None = None) -> Folder:
        """The folder if the process ends here and the machine goes on: all that was done, and
        half of the write that it was killed in.
        """
        done = [op for file in self._files.values() for op in file.in_flight]
        if during is not None and during.kind == "write":
            done.append(during._replace(data=during.data[: len(during.data) // 2]))
        return self._after([*done, *self._names_in_flight])

    def power_cuts(self, rng: np.random.Generator, samples: int) -> Iterator[Folder]:
        """Folders that a power cut here may leave: all of them where few operations are in
        flight, else none kept, each one kept or lost alone, and `samples` drawn at random.
        """
        named = {*self._names.values(), *(op.inode for op in self._names_in_flight)}
        flying = [op for inode in sorted(named - {-1}) for op in self._files[inode].in_flight]
        flying += self._names_in_flight
        if len(flying) <= EXHAUSTIVE:
            for choice in itertools.product((False, True), repeat=len(flying)):
                yield self._after(list(itertools.compress(flying, choice)))
        else:
            yield self._after([])
            for i, op in enumerate(flying):
                yield self._after([op])
                yield self._after(flying[:i] + flying[i + 1 :])
        if not flying:
            return
        for _ in range(samples):
            kept = [op for op in flying if rng.random() < rng.random()]
            torn = [piece for op in kept for piece in _torn(op, rng)]
            rng.shuffle(torn)  # type: ignore[arg-type]
            yield self._after(torn)

    def _after(self, kept: list[Op]) -> Folder:
        names = dict(self._names)
        for op in self._names_in_flight:  # a folder's operations keep their order
            if op in kept:
                _name(names, op)
        return {
            name: self._content(inode, [op for op in kept if op.inode == inode])
            for name, inode in names.items()
        }

    def _content(self, inode: int, ops: list[Op]) -> bytes:
        content = bytearray(self._files[inode].medium)
        for op in ops:
            _do(content, op)
        return bytes(content)


def _do(content: bytearray, op: Op) -> None:
    if op.kind not in ("write", "allocate"):
        return
    end = op.offset + len(op.data)
    content.extend(bytes(max(0, end - len(content))))
    content[op.offset : end] = op.data


def _name(names: dict[str, int], op: Op) -> None:
    names.pop(op.source or op.name, None)
    if op.kind != "remove":
        names[op.name] = op.inode


def _torn(op: Op, rng: np.random.Generator) -> list[Op]:
    """The operation, or a third of the time only some of its sectors."""
    if op.kind != "write" or rng.random() < 2 / 3:
        return [op]
    start, end = op.offset, op.offset + len(op.data)
    edges = [start, *range((start // SECTOR + 1) * SECTOR, end, SECTOR), end]
    return [
        op._replace(offset=first, data=op.data[first - start : last - start])
        for first, last in itertools.pairwise(edges)
        if rng.random() < 0.5
    ]


def files_in(folder: Path) -> Folder:
    """What a real folder holds, as a `Machine` tells it."""
    return {name: (folder / name).read_bytes() for name in os.listdir(folder)}  # noqa: PTH208
