"""Every byte of a small cache, flipped one at a time: verification finds it and says where."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from cache_life import JoiningDisk
from small_caches import PLAN, SPEC, features_of, rows_of, sha_of

from featx.cache import CacheFile, CacheWriter, Status, open_cache, verify
from featx.cache.verify import Verification, check
from featx.errors import CacheError

N, D = 3, 4
OTHER = "other bytes"


class NotingDisk(JoiningDisk):
    """Notes where something is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[tuple[int, int]] = []

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> None:
        self.written.append((offset, len(data)))
        super().write(fd, data, offset)


class Flipped:
    """A finished cache of three rows, and what lies at each of its bytes.

    HDF5's own structures are what is written outside the datasets. Whatever else is flipped
    cannot change how the file is opened, so that it needs not be opened again for each.
    """

    def __init__(self, path: Path) -> None:
        disk = NotingDisk()
        writer = CacheWriter.create(
            path, rows_of(N), root="/birds", spec=SPEC, plan=PLAN, feature_shape=(D,), disk=disk
        )
        writer.put(np.array([0, 2]), features_of(2, D), sha_of(2))
        writer.fail(1, Status.UNDECODABLE, "no image", bytes(range(32)))
        self.file = writer.finish(path, {"images": N})
        self.path = path
        self.data = path.read_bytes()
        self.place = np.full(len(self.data), OTHER, dtype=object)
        for name, column in self.file.columns.items():
            start = self.file.offsets[name]
            self.place[start : start + column.nbytes] = name
        self.is_metadata = np.zeros(len(self.data), bool)
        for start, length in disk.written:
            self.is_metadata[start : start + length] = self.place[start] == OTHER
        self._masks = np.random.default_rng(0).integers(1, 256, len(self.data), dtype=np.uint8)

    def find(self, positions: Iterable[int]) -> int:
        """Flip each byte in turn; assert that it is found in its place. Returns how many."""
        count = 0
        with self.path.open("r+b", buffering=0) as stream:
            for position in positions:
                with self._flip(stream, position):
                    self._expect(position)
                count += 1
        assert check(self.file).ok
        return count

    @contextmanager
    def _flip(self, stream: BinaryIO, position: int) -> Iterator[None]:
        byte = self.data[position]
        for value in (byte ^ int(self._masks[position]), byte):
            stream.seek(position)
            stream.write(bytes([value]))
            if value != byte:
                yield

    def _expect(self, position: int) -> None:
        place = self.place[position]
        try:
            found = self._check(position)
        except CacheError:
            assert place == OTHER, f"byte {position} of {place} keeps the cache from opening"
            return
        assert not found.ok, f"byte {position}, in {place}, is not found"
        row = (position - self.file.offsets.get(place, 0)) // D // 4
        assert found.bad_columns == (() if place == "features" else (place,)), position
        if place == "features":
            assert found.bad_rows == (row,), position

    def _check(self, position: int) -> Verification:
        return verify(self.path) if self.is_metadata[position] else check(self.file)


@pytest.fixture
def flipped(tmp_path: Path) -> Flipped:
    return Flipped(tmp_path / "a.h5")


def test_a_flip_in_any_column_is_found_and_its_column_named(flipped: Flipped) -> None:
    in_columns = np.flatnonzero((flipped.place != OTHER) & (flipped.place != "run"))
    assert flipped.find(in_columns.tolist()) == sum(
        column.nbytes for name, column in flipped.file.columns.items() if name != "run"
    )


def test_a_flip_anywhere_else_is_found(flipped: Flipped) -> None:
    elsewhere = np.flatnonzero((flipped.place == OTHER) | (flipped.place == "run"))
    assert flipped.find(elsewhere[7::160].tolist()) > 1000


@pytest.mark.slow
def test_a_flip_of_any_byte_of_hdf5s_own_structures_is_found(flipped: Flipped) -> None:
    assert flipped.find(np.flatnonzero(flipped.is_metadata).tolist()) > 4000


@pytest.mark.slow
@pytest.mark.parametrize("part", range(12))
def test_a_flip_of_any_byte_at_all_is_found(flipped: Flipped, part: int) -> None:
    positions = np.array_split(np.arange(len(flipped.data)), 12)[part]
    positions = positions[~flipped.is_metadata[positions]]
    assert flipped.find(positions.tolist()) > 11_000


def test_what_is_not_metadata_does_not_change_how_a_cache_is_opened(flipped: Flipped) -> None:
    def described(file: CacheFile) -> tuple[object, ...]:
        return file.columns, file.offsets, file.spec, file.plan, file.root, file.size_bytes

    data = np.frombuffer(flipped.data, np.uint8)
    flipped.path.write_bytes(np.where(flipped.is_metadata, data, ~data).tobytes())
    assert described(open_cache(flipped.path)) == described(flipped.file)


def test_a_cut_or_lengthened_cache_is_found(flipped: Flipped) -> None:
    size = len(flipped.data)
    for length in (*range(0, size, 4001), size - 1):
        flipped.path.write_bytes(flipped.data[:length])
        with pytest.raises(CacheError):
            verify(flipped.path)
    for more in (1, 4096):
        flipped.path.write_bytes(flipped.data + bytes(more))
        assert verify(flipped.path).bad_columns == (OTHER,)
