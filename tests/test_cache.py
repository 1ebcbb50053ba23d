"""The cache file: what it promises to every reader, and what it refuses."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from cache_life import JoiningDisk
from small_caches import SPEC, create, features_of, finished, rows_of, sha_of

import featx
import featx.cache.writer as writer_module
from featx.cache import (
    CacheFile,
    CacheWriter,
    Disk,
    Status,
    fingerprint,
    open_cache,
    partial_path,
    verify,
    waiting,
)
from featx.errors import CacheError, DiskError, InputError


def test_a_finished_cache_gives_back_what_was_put(tmp_path: Path) -> None:
    fs = featx.load(finished(tmp_path / "a.h5"))
    assert np.array_equal(fs.X, features_of())
    assert fs.paths[3] == "a/003.jpg"
    assert fs.y.tolist() == [0, 1] * 5
    assert fs.classes == ("001.Great_tit", "麻雀")
    assert fs.names == ("Great tit", "麻雀")
    assert fs.fingerprint == fingerprint(SPEC)
    assert np.array_equal(fs.sha256, sha_of())


def test_features_are_a_memory_map_that_never_writes_to_the_file(tmp_path: Path) -> None:
    path = finished(tmp_path / "a.h5")
    before = path.read_bytes()
    fs = featx.load(path)
    assert isinstance(fs.features, np.memmap)
    assert np.shares_memory(fs.X, fs.features)
    fs.X[0] = 0
    del fs
    assert path.read_bytes() == before


def test_h5py_alone_reads_it(tmp_path: Path) -> None:
    with h5py.File(finished(tmp_path / "a.h5")) as file:
        assert np.array_equal(file["features"][:], features_of())
        assert file["paths"].asstr()[2] == "a/002.jpg"
        assert file["classes"].asstr()[1] == "麻雀"
        assert file["features"].id.get_offset() % 4096 == 0
        for dataset in file.values():
            assert dataset.chunks is None
            assert dataset.compression is None
            assert h5py.check_vlen_dtype(dataset.dtype) is None


def test_an_unfinished_cache_is_never_read_as_a_finished_one(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    writer = create(path)
    writer.put(np.arange(3), features_of(3), sha_of(3))
    writer.commit()
    writer.close()
    assert not path.exists()
    with pytest.raises(CacheError, match=r"not complete yet.*run the same `featx extract` again"):
        featx.load(path)
    with pytest.raises(CacheError, match="unfinished"):
        featx.load(partial_path(path))


def test_a_cache_with_pending_rows_cannot_be_finished(tmp_path: Path) -> None:
    writer = create(tmp_path / "a.h5")
    writer.put(np.arange(9), features_of(9), sha_of(9))
    with pytest.raises(AssertionError, match="pending"):
        writer.finish(tmp_path / "a.h5", {})
    writer.close()
    assert not (tmp_path / "a.h5").exists()


def test_rows_are_done_only_after_a_commit(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    writer = create(path)
    writer.put(np.arange(4), features_of(4), sha_of(4))
    assert open_cache(partial_path(path), partial=True).counts()[Status.DONE] == 0
    writer.commit()
    assert open_cache(partial_path(path), partial=True).counts()[Status.DONE] == 4
    writer.close()


class RecordingDisk(JoiningDisk):
    """Notes the order of writes and syncs."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, int]] = []

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> None:
        self.calls.append(("write", offset))
        super().write(fd, data, offset)

    def datasync(self, fd: int) -> None:
        self.calls.append(("sync", 0))
        super().datasync(fd)

    def begin_write_back(self, fd: int, offset: int) -> None:
        self.calls.append(("begin write-back of ", offset))
        super().begin_write_back(fd, offset)

    def told(self, file: CacheFile) -> list[str]:
        """The calls, with the dataset that each concerns."""
        starts = sorted((offset, name) for name, offset in file.offsets.items())
        names = [
            (kind, [n for at, n in starts if at <= offset][-1:]) for kind, offset in self.calls
        ]
        return [kind.removeprefix("write") + "".join(name) for kind, name in names]


def test_data_are_synced_before_the_status_that_vouches_for_them(tmp_path: Path) -> None:
    disk = RecordingDisk()
    writer = create(tmp_path / "a.h5", disk=disk)
    disk.calls.clear()
    writer.put(np.arange(4), features_of(4), sha_of(4))
    writer.fail(4, Status.UNDECODABLE, "no image")
    writer.commit()
    writer.close()
    writes = ["features", "begin write-back of features", "crc32", "sha256", "errors"]
    assert disk.told(writer.file) == [*writes, "sync", "status", "sync"]


def test_an_error_is_written_only_where_there_is_one_or_may_be_one(tmp_path: Path) -> None:
    disk = RecordingDisk()
    path = tmp_path / "a.h5"
    writers = (lambda: create(path, disk=disk)), (lambda: CacheWriter.resume(path, disk=disk))
    for make, errors in zip(writers, ([], ["errors"]), strict=True):
        writer = make()
        disk.calls.clear()
        writer.put(writer.pending[:4], features_of(4), sha_of(4))
        writer.commit()
        writer.close()
        writes = ["features", "begin write-back of features", "crc32", "sha256", *errors]
        assert disk.told(writer.file) == [*writes, "sync", "status", "sync"]


def test_an_error_that_a_killed_run_left_is_wiped_away(tmp_path: Path) -> None:
    whole = finished(tmp_path / "whole.h5")
    path = tmp_path / "a.h5"
    writer = create(path)
    writer.fail(3, Status.UNREADABLE, "a share was away for a moment")
    writer._write_beside()  # the commit is killed before its first sync
    writer.close()
    assert open_cache(partial_path(path), partial=True).read("errors")[3]
    writer = CacheWriter.resume(path)
    writer.put(np.arange(10), features_of(), sha_of())
    writer.finish(path, {"images": 10})
    assert path.read_bytes() == whole.read_bytes()


def test_an_error_of_a_commit_that_failed_is_wiped_away(tmp_path: Path) -> None:
    class OnceFailing(Disk):
        failing = True

        def datasync(self, fd: int) -> None:
            if self.failing:
                raise OSError(errno.EIO, "Input/output error")

    whole = finished(tmp_path / "whole.h5")
    path, disk = tmp_path / "a.h5", OnceFailing()
    writer = create(path, disk=disk)
    writer.fail(3, Status.UNREADABLE, "a share was away for a moment")
    with pytest.raises(DiskError, match="input/output error"):
        writer.commit()
    disk.failing = False
    writer.put(np.arange(10), features_of(), sha_of())
    writer.finish(path, {"images": 10})
    assert path.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    "order",
    [range(10), range(9, -1, -1), [4, 5, 6, 0, 1, 9, 8, 2, 3, 7]],
    ids=["up", "down", "any"],
)
@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("portable", [False, True])
def test_small_puts_are_written_together_each_row_at_its_place(
    tmp_path: Path, order: Sequence[int], size: int, portable: bool
) -> None:
    path = tmp_path / "a.h5"
    whole = finished(tmp_path / "whole.h5")
    writer = create(path, disk=Disk(portable=portable))
    for rows in np.split(np.array(order), range(size, 10, size)):
        writer.put(rows, features_of()[rows], sha_of()[rows])
    writer.finish(path, {"images": 10})
    assert path.read_bytes() == whole.read_bytes()


def test_rows_that_follow_each_other_are_one_write(tmp_path: Path) -> None:
    disk = RecordingDisk()
    writer = create(tmp_path / "a.h5", disk=disk)
    disk.calls.clear()
    for rows in ([0], [1, 2], [4, 5], [6], [3]):
        writer.put(np.array(rows), features_of()[rows], sha_of()[rows])
    assert disk.told(writer.file) == []
    writer._write_waiting()
    assert disk.told(writer.file)[:-1] == ["features"] * 3  # 0 to 2, 4 to 6, 3
    writer.close()


def test_puts_of_many_bytes_or_in_great_number_are_written_before_the_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, limit, puts in (("WRITE_BYTES", 3 * 5 * 4, 3), ("MOST_PARTS", 2, 2)):
        with monkeypatch.context() as little:
            little.setattr(waiting, name, limit)
            disk = RecordingDisk()
            writer = create(tmp_path / f"{name}.h5", disk=disk)
            disk.calls.clear()
            for row in range(puts):
                assert disk.told(writer.file) == []
                writer.put(np.array([row]), features_of()[[row]], sha_of()[[row]])
            assert "features" in disk.told(writer.file)
            writer.close()


def test_of_a_row_that_is_settled_twice_in_one_commit_the_last_holds(tmp_path: Path) -> None:
    whole = finished(tmp_path / "whole.h5")
    path = tmp_path / "a.h5"
    writer = create(path)
    writer.put(np.arange(4, 10), features_of()[:6], sha_of()[:6])
    writer.fail(3, Status.UNREADABLE, "a share was away for a moment")
    writer.put(np.arange(10), features_of(), sha_of())
    writer.finish(path, {"images": 10})
    assert path.read_bytes() == whole.read_bytes()


def test_a_write_that_is_interrupted_is_done_again_by_the_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(features: np.ndarray) -> np.ndarray:
        raise KeyboardInterrupt

    path = tmp_path / "a.h5"
    writer = create(path)
    writer.put(np.arange(4), features_of(4), sha_of(4))
    with monkeypatch.context() as once:
        once.setattr(writer_module, "crc32_of", interrupted)
        with pytest.raises(KeyboardInterrupt):
            writer._write_waiting()
    writer.commit()  # as a run does that ends by another error
    writer.close()
    assert CacheWriter.resume(path).pending.tolist() == [4, 5, 6, 7, 8, 9]


def test_little_that_is_put_is_committed_when_its_time_has_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = create(tmp_path / "a.h5")
    monkeypatch.setattr(writer_module, "COMMIT_INTERVAL_S", float("inf"))
    writer.put(np.arange(2), features_of(2), sha_of(2))
    assert len(writer.pending) == 10
    monkeypatch.setattr(writer_module, "COMMIT_INTERVAL_S", 0)
    writer.put(np.arange(2, 4), features_of()[2:4], sha_of()[2:4])
    assert writer.pending.tolist() == [4, 5, 6, 7, 8, 9]
    writer.close()


def test_failures_of_several_writes_of_one_commit_stay_with_their_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.h5"
    writer = create(path)
    monkeypatch.setattr(waiting, "WRITE_BYTES", 1)
    for row in range(10):
        if row in (3, 7):
            writer.fail(row, Status.UNDECODABLE, f"no image {row}")
        else:
            writer.put(np.array([row]), features_of()[[row]], sha_of()[[row]])
    file = writer.finish(path, {})
    assert np.flatnonzero(file.read("status") != Status.DONE).tolist() == [3, 7]
    assert file.read("errors")[[3, 7]].tolist() == [b"no image 3", b"no image 7"]


def test_the_disk_is_set_to_work_before_the_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "WRITE_BYTES", 4 * 5 * 4)  # four rows
    disk = RecordingDisk()
    writer = create(tmp_path / "a.h5", disk=disk)
    disk.calls.clear()
    for start in range(0, 10, 2):
        rows = np.arange(start, start + 2)
        writer.put(rows, features_of()[rows], sha_of()[rows])
    writer.close()
    written, begun = "features", "begin write-back of features"
    assert disk.told(writer.file) == [written, begun, written, begun]


def test_a_run_report_is_rewritten_only_where_it_differs(tmp_path: Path) -> None:
    disk = RecordingDisk()
    writer = create(tmp_path / "a.h5", disk=disk)
    run = writer.file.offsets["run"]
    for report, calls in (({"a": 1}, [("write", run)]), ({"a": 1}, [])):
        disk.calls.clear()
        writer.write_run(report)
        assert disk.calls == calls
    writer.close()


def test_resuming_gives_the_same_file_as_never_stopping(tmp_path: Path) -> None:
    whole = finished(tmp_path / "whole.h5")
    stopped = tmp_path / "stopped.h5"
    writer = create(stopped)
    writer.put(np.arange(4), features_of()[:4], sha_of()[:4])
    writer.commit()
    writer.put(np.arange(4, 6), features_of()[4:6] * 0, sha_of()[4:6])  # written, not committed
    writer.close()
    writer = CacheWriter.resume(stopped)
    assert writer.pending.tolist() == [4, 5, 6, 7, 8, 9]
    writer.put(np.arange(4, 10), features_of()[4:], sha_of()[4:])
    writer.finish(stopped, {"images": 10})
    assert stopped.read_bytes() == whole.read_bytes()


def test_a_failed_image_is_nan_named_counted_and_never_loaded(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    writer = create(path)
    writer.put(np.arange(9), features_of(9), sha_of(9))
    writer.fail(9, Status.UNDECODABLE, "broken\n  data " + "é" * 200)
    writer.finish(path, {})
    fs = featx.load(path)
    assert len(fs) == 9
    assert fs.rows.tolist() == list(range(9))
    assert [(f.path, f.status) for f in fs.failed] == [("a/009.jpg", Status.UNDECODABLE)]
    assert fs.failed[0].reason.startswith("broken data é")
    assert np.isnan(open_cache(path).map("features")[9]).all()
    assert verify(path).ok


def test_paths_of_any_bytes_survive(tmp_path: Path) -> None:
    paths = sorted([b"a/\xff\xfe.jpg", "a/麻雀 🐦.jpg".encode(), b"a/new\nline,tab\t.jpg"])
    n = len(paths)
    rows = rows_of(n, paths=paths)
    fs = featx.load(finished(tmp_path / "a.h5", rows))
    assert [os.fsencode(path) for path in fs.paths] == paths


def test_maps_keep_their_shape_and_X_is_their_flat_view(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    writer = create(path, feature_shape=(2, 3, 3), dtype="float16")
    maps = np.arange(10 * 18).reshape(10, 2, 3, 3).astype(np.float16)
    writer.put(np.arange(10), maps, sha_of())
    writer.finish(path, {})
    fs = featx.load(path)
    assert fs.features.shape == (10, 2, 3, 3)
    assert fs.X.shape == (10, 18)
    assert fs.X.dtype == np.float16
    assert np.array_equal(fs.features, maps)


@pytest.mark.parametrize("portable", [False, True])
def test_the_portable_fallbacks_write_the_same_bytes(tmp_path: Path, portable: bool) -> None:
    path = finished(tmp_path / "a.h5", disk=Disk(portable=portable))
    assert verify(path).ok
    assert path.read_bytes() == finished(tmp_path / "b.h5").read_bytes()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_disk_that_fails_at_the_start_leaves_nothing_behind(tmp_path: Path, code: int) -> None:
    class Failing(Disk):
        def allocate(self, fd: int, size_bytes: int) -> None:
            raise OSError(code, os.strerror(code))

    with pytest.raises(DiskError, match=r"cannot create.*run the same command again") as caught:
        create(tmp_path / "a.h5", disk=Failing())
    assert caught.value.exit_code == 6
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_later_keeps_what_was_committed(tmp_path: Path) -> None:
    class Filling(Disk):
        full = False

        def write(self, fd: int, data: bytes | memoryview, offset: int) -> None:
            if self.full:
                raise OSError(errno.ENOSPC, "No space left on device")
            super().write(fd, data, offset)

    disk = Filling()
    path = tmp_path / "a.h5"
    writer = create(path, disk=disk)
    writer.put(np.arange(5), features_of(5), sha_of(5))
    writer.commit()
    disk.full = True
    writer.put(np.arange(5, 10), features_of(5), sha_of(5))
    with pytest.raises(DiskError, match="the disk is full"):
        writer.commit()
    disk.full = False
    writer.commit()  # as a run does that ends: what was not written is not vouched for
    writer.close()
    assert CacheWriter.resume(path).pending.tolist() == [5, 6, 7, 8, 9]


def test_extending_takes_kept_rows_over_bit_by_bit(tmp_path: Path) -> None:
    source = open_cache(finished(tmp_path / "a.h5"))
    rows = rows_of(11)
    writer = create(
        tmp_path / "b.h5", rows, source=source, source_rows=np.array([9, *range(9), -1])
    )
    assert writer.pending.tolist() == [10]
    writer.put(np.array([10]), features_of(1), sha_of(1))
    writer.finish(tmp_path / "b.h5", {})
    assert verify(tmp_path / "b.h5").ok
    assert np.array_equal(featx.load(tmp_path / "b.h5").X[:10], features_of()[[9, *range(9)]])


def test_a_row_that_is_damaged_in_the_source_is_not_taken_over(tmp_path: Path) -> None:
    source = open_cache(finished(tmp_path / "a.h5"))
    with source.path.open("r+b") as stream:
        stream.seek(source.offsets["features"] + 3 * 20 + 1)
        stream.write(b"\xee")
        stream.seek(source.offsets["errors"])
        stream.write(b"\xee")  # of a row that has none
    writer = create(tmp_path / "b.h5", source=source, source_rows=np.arange(10)[::-1])
    assert (writer.damaged, writer.pending.tolist()) == (1, [6])
    writer.put(np.array([6]), features_of()[3:4], sha_of()[3:4])
    writer.finish(tmp_path / "b.h5", {})
    assert verify(tmp_path / "b.h5").ok
    assert not open_cache(tmp_path / "b.h5").read("errors").any()
    assert np.array_equal(featx.load(tmp_path / "b.h5").X, features_of()[::-1])


@pytest.mark.skipif(os.name == "nt", reason="Windows lets few users make links")
def test_what_a_killed_run_left_of_a_new_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "a.h5.tmp").symlink_to(tmp_path / "precious")
    assert verify(finished(tmp_path / "a.h5")).ok
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert {each.name for each in tmp_path.iterdir()} == {"a.h5", "precious"}


def test_extending_over_its_own_unfinished_file_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    writer = create(path)
    writer.put(np.arange(6), features_of(6), sha_of(6))
    writer.commit()
    writer.close()
    source = open_cache(partial_path(path), partial=True)
    grown = create(path, rows_of(12), source=source, source_rows=np.array([*range(6), *[-1] * 6]))
    assert grown.pending.tolist() == [6, 7, 8, 9, 10, 11]
    assert np.array_equal(grown.file.map("features")[:6], features_of(6))
    grown.close()


def _relink(path: Path, name: str, make: Any) -> None:
    with h5py.File(path, "r+") as file:
        del file[name]
        make(file)


def _filtered(file: h5py.File) -> None:
    file.create_dataset("labels", data=np.zeros(10, "<i8"), chunks=(10,), compression="gzip")


def _external(file: h5py.File) -> None:
    file.create_dataset("labels", (10,), "<i8", external=[("/etc/passwd", 0, 80)])


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((10,), "<i8")
    layout[:] = h5py.VirtualSource("other.h5", "labels", (10,))
    file.create_virtual_dataset("labels", layout)


def _group(file: h5py.File) -> None:
    file.create_group("labels")


def _soft_link(file: h5py.File) -> None:
    file["labels"] = h5py.SoftLink("/groups")


def _external_link(file: h5py.File) -> None:
    file["labels"] = h5py.ExternalLink("other.h5", "/labels")


def _wrong_type(file: h5py.File) -> None:
    file.create_dataset("labels", data=np.zeros(10, "<f8"))


def _wrong_shape(file: h5py.File) -> None:
    file.create_dataset("labels", data=np.zeros(9, "<i8"))


def _variable_length(file: h5py.File) -> None:
    file.create_dataset("labels", data=["x"] * 10, dtype=h5py.string_dtype())


def _unallocated_bomb(file: h5py.File) -> None:
    file.create_dataset("labels", (1 << 50,), "<i8")


@pytest.mark.parametrize(
    "make",
    [
        _filtered, _external, _virtual, _group, _soft_link, _external_link, _wrong_type,
        _wrong_shape, _variable_length, _unallocated_bomb,
    ],
)  # fmt: skip
def test_anything_but_plain_data_is_refused_in_one_line(tmp_path: Path, make: Any) -> None:
    path = finished(tmp_path / "a.h5")
    _relink(path, "labels", make)
    with pytest.raises(CacheError) as caught:
        featx.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["format", "spec", "fingerprint", "plan", "root"])
@pytest.mark.parametrize("value", [7, "x" * 10, np.zeros(3)])
def test_attributes_of_another_type_or_text_are_refused(
    tmp_path: Path, name: str, value: Any
) -> None:
    path = finished(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        file.attrs[name] = value
    with pytest.raises(CacheError):
        featx.load(path)


def test_a_newer_format_says_to_upgrade(tmp_path: Path) -> None:
    path = finished(tmp_path / "a.h5")
    with h5py.File(path, "r+", libver="latest") as file:
        file.attrs.create("format", np.bytes_(b"featx cache 3"))
    with pytest.raises(CacheError, match="format 3, this featx reads up to 2; upgrade"):
        featx.load(path)


def test_text_and_cut_short_files_are_refused(tmp_path: Path) -> None:
    path = finished(tmp_path / "a.h5")
    data = path.read_bytes()
    for wrong in (b"", b"hello", data[:100], data[: len(data) // 2], data[:-1]):
        path.write_bytes(wrong)
        with pytest.raises(CacheError, match=r"not a featx cache|cut short"):
            featx.load(path)
    with pytest.raises(CacheError, match="there is no cache at"):
        featx.load(tmp_path / "none.h5")


def test_statuses_and_labels_outside_their_range_are_refused(tmp_path: Path) -> None:
    for name, value, message in (("status", 0, "valid status"), ("status", 9, "valid status"),
                                 ("labels", 7, "no class"), ("split", 9, "split")):  # fmt: skip
        path = finished(tmp_path / f"{name}{value}.h5")
        with h5py.File(path, "r+") as file:
            file[name][0] = value
        with pytest.raises(CacheError, match=message):
            featx.load(path)


def test_load_gives_labelled_rows_as_X_and_y(tmp_path: Path) -> None:
    labels = np.array([0, 1, -1, 1, 0, 1, 0, -1, 0, 1])
    path = finished(tmp_path / "a.h5", rows_of(labels=labels))
    X, y = featx.load(path, return_X_y=True)
    assert y.tolist() == [0, 1, 1, 0, 1, 0, 0, 1]
    assert np.array_equal(X, features_of()[labels >= 0])
    unlabelled = rows_of(labels=np.full(10, -1), classes=())
    with pytest.raises(InputError, match="no labels"):
        featx.load(finished(tmp_path / "b.h5", unlabelled), return_X_y=True)


def test_the_folders_split_is_given_by_name(tmp_path: Path) -> None:
    split = np.array([1, 1, 1, 1, 2, 2, 2, 3, 3, 3], np.uint8)
    path = finished(tmp_path / "a.h5", rows_of(split=split))
    for name, rows in (("train", [0, 1, 2, 3]), ("val", [4, 5, 6]), ("test", [7, 8, 9])):
        assert featx.load(path, split=name).rows.tolist() == rows
    assert featx.load(path, split="held-out").rows.tolist() == [7, 8, 9]
    with pytest.raises(InputError, match="split must be one of"):
        featx.load(path, split="dev")


def test_a_frame_and_a_page_show_what_is_there(tmp_path: Path) -> None:
    labels = np.array([0, 1, -1, 1, 0, 1, 0, 1, 0, 1])
    paths = [b"a/<b>%03d.jpg" % i for i in range(10)]
    fs = featx.load(finished(tmp_path / "a.h5", rows_of(labels=labels, paths=paths)))
    frame = fs.to_frame()
    assert frame.shape == (10, 10)
    assert frame["label"].tolist()[:2] == ["Great tit", "麻雀"]
    assert frame["label"].isna().tolist()[2]
    assert np.array_equal(frame[[f"f{i}" for i in range(5)]].to_numpy(), features_of())
    assert fs.to_frame(features=False).columns.tolist() == ["path", "label", "y", "split", "group"]
    page = fs._repr_html_()
    assert "麻雀" in page
    assert "&lt;b&gt;" in page
    assert "<b>000" not in page
    assert "10 images x 5 float32" in repr(fs)


def test_paths_that_are_no_text_reach_a_frame(tmp_path: Path) -> None:
    paths = [b"a/caf\xe9%d.jpg" % i for i in range(10)]
    frame = featx.load(finished(tmp_path / "a.h5", rows_of(paths=paths))).to_frame()
    assert [os.fsencode(path) for path in frame["path"]] == paths


def test_a_resume_does_not_believe_rows_that_the_disk_lost(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    writer = create(path)
    writer.put(np.arange(6), features_of(6), sha_of(6))
    writer.commit()
    writer.close()
    file = open_cache(partial_path(path), partial=True)
    with file.path.open("r+b") as stream:
        stream.seek(file.offsets["features"] + 2 * file.columns["features"].row_bytes)
        stream.write(bytes(8))  # as a disk that forgets what it has said is safe
        stream.seek(file.offsets["status"] + 8)
        stream.write(b"\x01")
    writer = CacheWriter.resume(path)
    assert (writer.damaged, writer.pending.tolist()) == (2, [2, 6, 7, 8, 9])
    writer.close()
    assert open_cache(file.path, partial=True).counts()[Status.DONE] == 5


PER_ROW = ("status", "crc32", "sha256", "errors", "features")


def unfinished(path: Path) -> CacheFile:
    """Rows 0 to 5 are done, 6 has failed, the others are pending."""
    writer = create(path)
    writer.put(np.arange(6), features_of(6), sha_of(6))
    writer.fail(6, Status.UNDECODABLE, "no image", sha_of()[6].tobytes())
    writer.commit()
    writer.close()
    return open_cache(partial_path(path), partial=True)


def complete(writer: CacheWriter, path: Path) -> bytes:
    """Settle what is pending as a run would, and finish."""
    pending = writer.pending
    good = pending[pending != 6]
    writer.put(good, features_of()[good], sha_of()[good])
    if 6 in pending:
        writer.fail(6, Status.UNDECODABLE, "no image", sha_of()[6].tobytes())
    writer.finish(path, {})
    return path.read_bytes()


@pytest.mark.parametrize("name", PER_ROW)
@pytest.mark.parametrize("row", [3, 6])
def test_a_resume_believes_no_byte_that_has_changed_of_a_row(
    tmp_path: Path, name: str, row: int
) -> None:
    path = tmp_path / "a.h5"
    unfinished(path)
    whole = complete(CacheWriter.resume(path), path)
    file = unfinished(path)
    data, row_bytes = file.path.read_bytes(), file.columns[name].row_bytes
    for within in range(row_bytes):
        damaged = bytearray(data)
        damaged[file.offsets[name] + row * row_bytes + within] ^= 7 if name == "status" else 0x40
        file.path.write_bytes(damaged)
        writer = CacheWriter.resume(path)
        assert writer.pending.tolist() == [row, 7, 8, 9]
        assert complete(writer, path) == whole


def test_a_row_that_changes_after_a_resume_is_never_sealed_as_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    for name in ("sha256", "errors"):
        file = unfinished(path)
        writer = CacheWriter.resume(path)
        with file.path.open("r+b") as stream:
            stream.seek(file.offsets[name] + 3 * file.columns[name].row_bytes)
            stream.write(b"\xee")
        complete(writer, path)
        assert verify(path).bad_rows == (3,)


def test_rows_taken_over_from_an_unfinished_file_are_looked_at_too(tmp_path: Path) -> None:
    for name in PER_ROW:
        source = unfinished(tmp_path / "a.h5")
        with source.path.open("r+b") as stream:
            stream.seek(source.offsets[name] + 3 * source.columns[name].row_bytes)
            stream.write(b"\x04")
        rows = np.array([*range(7), *[-1] * 3])
        writer = create(tmp_path / "b.h5", source=source, source_rows=rows)
        assert (writer.damaged, writer.pending.tolist()) == (1, [3, 7, 8, 9]), name
        writer.close()


def test_checksums_without_a_mask_are_masked_at_the_next_resume(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    unfinished(path)
    whole = complete(CacheWriter.resume(path), path)
    file = unfinished(path)
    masked = file.path.read_bytes()
    writer = CacheWriter.resume(path)
    writer._unmask()  # as a run does that is killed while it finishes
    writer.close()
    bare = file.path.read_bytes()
    start = file.offsets["crc32"]
    for stop in range(start, start + 7 * 4 + 1):  # amid the four bytes of a row, too
        file.path.write_bytes(bare[:stop] + masked[stop:])
        CacheWriter.resume(path).close()
        assert open_cache(file.path, partial=True).counts()[Status.PENDING] == 3
        now = file.path.read_bytes()
        assert now[start : start + 7 * 4] == masked[start : start + 7 * 4]
    assert complete(CacheWriter.resume(path), path) == whole


def test_the_first_run_report_is_there_as_soon_as_the_file_is(tmp_path: Path) -> None:
    create(tmp_path / "a.h5", run={"plans": []}).close()
    assert open_cache(partial_path(tmp_path / "a.h5"), partial=True).run == {"plans": []}
