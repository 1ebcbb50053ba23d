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
    judged, went_on = replay(life, judge, samples=40, going_on=0.1)
    print(f"{len(life.ops)} operations, {judged} states judged, {went_on} gone on from")
    assert went_on > 1000


class WithoutSync(RecordingDisk):
    """Leaves one kind of sync out, by the name it has in `MECHANISMS`."""

    def __init__(self, left_out: str) -> None:
        super().__init__()
        self.in_commit: int | None = None  # syncs since the commit began that is going on
        self._left_out = left_out
        self._whole_syncs = 0

    def datasync(self, fd: int) -> None:
        if self.in_commit is not None:
            self.in_commit += 1
        if self._left_out != f"datasync {self.in_commit} of every commit":
            super().datasync(fd)

    def sync(self, fd: int) -> None:
        self._whole_syncs += 1
        if self._left_out != f"sync {self._whole_syncs}":
            super().sync(fd)

    def sync_folder(self, folder: Path) -> None:
        if self._left_out != "every sync_folder":
            super().sync_folder(folder)


class TellingWriter(CacheWriter):
    """Tells a `WithoutSync` when it commits."""

    def commit(self) -> None:
        assert isinstance(self._disk, WithoutSync)
        self._disk.in_commit = 0
        super().commit()
        self._disk.in_commit = None


MECHANISMS = {
    "data before their status": "datasync 1 of every commit",
    "status before the promise": "datasync 2 of every commit",
    "a new file before its name": "sync 1",
    "a finished file before its final name": "sync 2",
    "the folder after a new name": "every sync_folder",
}


@pytest.mark.parametrize("missing", MECHANISMS)
def test_the_replay_finds_that_nothing_syncs(tmp_path: Path, judge: Judge, missing: str) -> None:
    life = record(tmp_path / "life", WithoutSync(MECHANISMS[missing]), TellingWriter)
    with pytest.raises(AssertionError):
        replay(life, judge, samples=2, going_on=0)


def test_leaving_nothing_out_is_no_finding(tmp_path: Path, judge: Judge) -> None:
    life = record(tmp_path / "life", WithoutSync("nothing"), TellingWriter)
    assert life == record(tmp_path / "again")


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
