"""A disk that is full or failing, at every operation: a clear error, nothing wrong, resumable."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from cache_life import NAME, PARTIAL, RUNS, FastDisk, Judge, Promised, restore, run
from power_cut import Folder, files_in
from small_caches import create, features_of, finished, sha_of

import featx.cache.writer as writer_module
from featx.cache import CacheFile, CacheWriter, open_cache
from featx.errors import DiskError

WORDS = {
    errno.ENOSPC: "the disk is full",
    errno.EIO: "the disk reported an input/output error",
    errno.EDQUOT: "the disk quota is used up",
}


class FailingDisk(FastDisk):
    """Fails at operation number `n`, counted from 0, and where asked at all from then on.

    What fails has happened in part: half of a write is written, a descriptor is closed.
    """

    def __init__(self, n: int, code: int, *, lasting: bool) -> None:
        super().__init__()
        self.count = 0
        self.open_fds: set[int] = set()
        self._n, self._code, self._lasting = n, code, lasting

    @contextmanager
    def _counted(self) -> Iterator[bool]:
        n, self.count = self.count, self.count + 1
        fails = n == self._n or (self._lasting and n > self._n)
        yield fails
        if fails:
            raise OSError(self._code, os.strerror(self._code))

    def create(self, path: Path) -> int:
        with self._counted() as fails:
            return -1 if fails else self._opened(super().create(path))

    def open(self, path: Path) -> int:
        with self._counted() as fails:
            return -1 if fails else self._opened(super().open(path))

    def _opened(self, fd: int) -> int:
        self.open_fds.add(fd)
        return fd

    def close(self, fd: int) -> None:
        with self._counted():
            self.open_fds.remove(fd)
            super().close(fd)

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> None:
        with self._counted() as fails:
            super().write(fd, bytes(data)[: len(data) // 2] if fails else data, offset)

    def allocate(self, fd: int, size_bytes: int) -> None:
        with self._counted() as fails:
            super().allocate(fd, size_bytes // 2 if fails else size_bytes)

    def datasync(self, fd: int) -> None:
        with self._counted():
            pass

    def sync(self, fd: int) -> None:
        with self._counted():
            pass

    def rename(self, source: Path, target: Path) -> None:
        with self._counted() as fails:
            if not fails:
                super().rename(source, target)

    def sync_folder(self, folder: Path) -> None:
        with self._counted():
            pass

    def remove(self, path: Path) -> None:
        with self._counted() as fails:
            if not fails:
                super().remove(path)


class Fault:
    """Runs of a life, each with one operation failing, judged as after a power cut.

    Parameters
    ----------
    folder : an empty one to work in.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "judged").mkdir()
        (folder / "life").mkdir()
        self._judge = Judge(folder / "judged")
        # Before each run: what lies there, what was promised, and how many operations come.
        self._starts: list[tuple[Folder, tuple[Promised, ...], int]] = []
        promises: list[Promised] = []
        for version, batches in RUNS:
            start, promised = files_in(folder / "life"), tuple(promises)
            disk = FailingDisk(-1, 0, lasting=False)
            self._run(version, batches, disk, promises)
            self._starts.append((start, promised, disk.count))
            assert not disk.open_fds

    def _run(
        self, version: int, batches: int | None, disk: FailingDisk, promises: list[Promised]
    ) -> None:
        run(
            self._folder / "life" / NAME,
            version,
            disk=disk,
            batches=batches,
            promise=lambda *promised: promises.append(promised),
        )

    def strike(self, number: int, n: int, code: int, *, lasting: bool, going_on: bool) -> None:
        """Run number `number` of the life with operation `n` failing."""
        (version, batches), (start, promised, _) = RUNS[number], self._starts[number]
        restore(self._folder / "life", start)
        disk, promises = FailingDisk(n, code, lasting=lasting), list(promised)
        with pytest.raises(DiskError, match=WORDS[code]) as caught:
            self._run(version, batches, disk, promises)
        assert caught.value.exit_code == 6
        assert "\n" not in str(caught.value)
        assert not disk.open_fds, "a descriptor is left open"
        left = files_in(self._folder / "life")
        assert lasting or set(left) <= {NAME, PARTIAL}, "a temporary file is left behind"
        self._judge(left, promises)
        if going_on:
            self._judge.goes_on(left, version)

    def strikes(self) -> Iterator[tuple[int, int]]:
        """Every run and operation."""
        for number, (*_, count) in enumerate(self._starts):
            yield from ((number, n) for n in range(count))


@pytest.fixture
def fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fault:
    monkeypatch.setattr(writer_module, "COMMIT_INTERVAL_S", float("inf"))
    return Fault(tmp_path)


def test_a_full_or_failing_disk_is_told_and_loses_nothing(fault: Fault) -> None:
    strikes = list(fault.strikes())[::2]  # all of them in the slow test
    assert len(strikes) > 100
    for i, (number, n) in enumerate(strikes):
        code = (errno.ENOSPC, errno.EIO)[i % 2]
        fault.strike(number, n, code, lasting=i % 3 == 0, going_on=i % 8 == 0)


@pytest.mark.slow
@pytest.mark.parametrize("code", sorted(WORDS), ids=lambda code: errno.errorcode[code])
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
def test_after_every_fault_the_next_run_ends_with_the_same_bytes(
    fault: Fault, code: int, lasting: bool
) -> None:
    for number, n in fault.strikes():
        fault.strike(number, n, code, lasting=lasting, going_on=True)


def test_rows_whose_sync_failed_are_never_vouched_for_later(tmp_path: Path) -> None:
    class OnceFailing(FastDisk):
        failing = True

        def datasync(self, fd: int) -> None:
            if self.failing:
                raise OSError(errno.EIO, "Input/output error")

    disk = OnceFailing()
    writer = create(tmp_path / "a.h5", disk=disk)
    writer.put(np.arange(4), features_of(4), sha_of(4))
    with pytest.raises(DiskError, match="input/output error"):
        writer.commit()
    disk.failing = False
    writer.commit()  # as a run does that ends by another error
    writer.put(np.arange(4, 6), features_of(2), sha_of(2))
    writer.commit()
    writer.close()
    assert CacheWriter.resume(tmp_path / "a.h5").pending.tolist() == [0, 1, 2, 3, 6, 7, 8, 9]


def test_rows_whose_commit_failed_before_its_sync_are_vouched_for_later(tmp_path: Path) -> None:
    class OnceFailing(FastDisk):
        failing_at = -1

        def write(self, fd: int, data: bytes | memoryview, offset: int) -> None:
            if offset == self.failing_at:
                self.failing_at = -1
                raise OSError(errno.ENOSPC, "No space left on device")
            super().write(fd, data, offset)

    disk = OnceFailing()
    path = tmp_path / "a.h5"
    writer = create(path, disk=disk)
    disk.failing_at = writer.file.offsets["sha256"]
    writer.put(np.arange(4), features_of(4), sha_of(4))
    with pytest.raises(DiskError, match="the disk is full"):
        writer.commit()
    writer.commit()  # as a run does that ends by another error
    writer.close()
    assert CacheWriter.resume(path).pending.tolist() == [4, 5, 6, 7, 8, 9]


def test_a_source_that_cannot_be_read_is_told_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_cache(finished(tmp_path / "source.h5"))

    def fail(self: CacheFile, name: str, rows: np.ndarray) -> np.ndarray:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(CacheFile, "take", fail)
    (tmp_path / "new").mkdir()
    with pytest.raises(DiskError, match="input/output error"):
        create(tmp_path / "new" / "a.h5", source=source, source_rows=np.arange(10))
    assert not list((tmp_path / "new").iterdir())
