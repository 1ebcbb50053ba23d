"""A kill or a power cut at any instant: the storage is broken on purpose, at every operation.

A whole life of a cache is recorded at the one seam that its writes go through, and replayed to
every prefix. What a kill or a power cut may leave there must tell the truth, keep what was
committed, and let the next run end with the same bytes. Each mechanism that this rests on is then
taken out, and the same replay must find it missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from cache_life import NAME, RUNS, Judge, Promised, run
from power_cut import Machine, Op, RecordingDisk, files_in

import featx.cache.writer as writer_module
from featx.cache import CacheWriter, Status


@pytest.fixture(autouse=True)
def _no_commits_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commit only where the life says so, however slow the machine is."""
    monkeypatch.setattr(writer_module, "COMMIT_INTERVAL_S", float("inf"))


@dataclass(frozen=True)
class Life:
    """Operations in order, and what was promised and asked from which of them on."""

    ops: list[Op]
    promises: list[tuple[int, Promised]]
    versions: list[tuple[int, int]]


def record(
    folder: Path,
    disk: RecordingDisk | None = None,
    writer_class: type[CacheWriter] = CacheWriter,
) -> Life:
    disk, promises, versions = disk or RecordingDisk(), [], []
    folder.mkdir()
    for version, batches in RUNS:
        versions.append((len(disk.ops), version))
        run(
            folder / NAME,
            version,
            disk=disk,
            writer_class=writer_class,
            batches=batches,
            promise=lambda *promised: promises.append((len(disk.ops), promised)),
        )
    return Life(disk.ops, promises, versions)


def replay(life: Life, judge: Judge, *, samples: int, going_on: float) -> tuple[int, int]:
    """Judge what every kill and power cut may leave; a share of them is also gone on from.

    Returns how many states were judged, and how many of them were gone on from.
    """
    rng = np.random.default_rng(0)
    machine, judged, went_on = Machine(), 0, 0
    for k in range(len(life.ops) + 1):
        if k:
            machine.apply(life.ops[k - 1])
        promises = [promised for at, promised in life.promises if at <= k]
        version = [version for at, version in life.versions if at <= k][-1]
        states = [machine.killed(), *machine.power_cuts(rng, samples)]
        states += [machine.killed(during=life.ops[k])] if k < len(life.ops) else []
        for files in states:
            judge(files, promises)
            judged += 1
            if rng.random() < going_on:
                judge.goes_on(files, version)
                went_on += 1
    return judged, went_on


@pytest.fixture
def judge(tmp_path: Path) -> Judge:
    (tmp_path / "judged").mkdir()
    return Judge(tmp_path / "judged")


def test_the_record_replayed_to_its_end_is_what_lies_on_the_disk(
    tmp_path: Path, judge: Judge
) -> None:
    life = record(tmp_path / "life")
    machine = Machine()
    for op in life.ops:
        machine.apply(op)
    assert machine.killed() == files_in(tmp_path / "life") == {NAME: judge.expected[3]}
    assert list(machine.power_cuts(np.random.default_rng(0), 9)) == [{NAME: judge.expected[3]}]


def test_no_kill_or_power_cut_loses_a_committed_row_or_shows_a_wrong_one(
    tmp_path: Path, judge: Judge
) -> None:
    life = record(tmp_path / "life")
    judged, _ = replay(life, judge, samples=2, going_on=0.005)
    print(f"{len(life.ops)} operations, {judged} states judged")
    assert judged > 4000


@pytest.mark.slow
def test_no_state_of_many_more_keeps_a_run_from_ending_with_the_same_bytes(
    tmp_path: Path, judge: Judge
) -> None:
    life = record(tmp_path / "life")
    judged, went_on = replay(life, judge, samples=40, going_on=0.08)
    print(f"{len(life.ops)} operations, {judged} states judged, {went_on} gone on from")
    assert went_on > 1000


class WithoutSync(RecordingDisk):
    """Leaves out every `period`-th sync of a kind, from number `first` on."""

    def __init__(self, kind: str, first: int, period: int) -> None:
        super().__init__()
        self._kind, self._first, self._period = kind, first, period
        self._count = 0

    def _left_out(self, kind: str) -> bool:
        if kind != self._kind:
            return False
        self._count += 1
        return self._count > self._first and (self._count - self._first - 1) % self._period == 0

    def datasync(self, fd: int) -> None:
        if not self._left_out("datasync"):
            super().datasync(fd)

    def sync(self, fd: int) -> None:
        if not self._left_out("sync"):
            super().sync(fd)

    def sync_folder(self, folder: Path) -> None:
        if not self._left_out("sync_folder"):
            super().sync_folder(folder)


@pytest.mark.parametrize(
    ("mechanism", "kind", "first", "period"),
    [
        ("the sync of the data before their status", "datasync", 0, 2),
        ("the sync of the status before the promise", "datasync", 1, 2),
        ("the sync of a new file before it gets a name that is read", "sync", 0, 100),
        ("the sync of a finished file before its final name", "sync", 1, 100),
        ("the sync of the folder after a new name", "sync_folder", 0, 1),
    ],
)
def test_the_replay_finds_missing(
    tmp_path: Path, judge: Judge, mechanism: str, kind: str, first: int, period: int
) -> None:
    life = record(tmp_path / "life", WithoutSync(kind, first, period))
    with pytest.raises(AssertionError):
        replay(life, judge, samples=2, going_on=0)


class HastyWriter(CacheWriter):
    """Writes the status of rows before their data."""

    def put(self, rows: np.ndarray, features: np.ndarray, sha256: np.ndarray) -> None:
        self._write_rows("status", rows, np.full(len(rows), Status.DONE, np.uint8))
        super().put(rows, features, sha256)


def test_the_replay_finds_a_status_that_is_written_before_its_data(
    tmp_path: Path, judge: Judge
) -> None:
    life = record(tmp_path / "life", writer_class=HastyWriter)
    with pytest.raises(AssertionError, match="is not its features"):
        replay(life, judge, samples=2, going_on=0)
