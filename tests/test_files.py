"""The seam to the disk: what it does where the system lacks a call or half does it."""

from __future__ import annotations

import errno
import os
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import featx.cache.files as files
from featx.cache import Disk
from featx.errors import DiskError

PORTABLE = [False, True]


@pytest.fixture
def fd(tmp_path: Path) -> Any:
    made = Disk().create(tmp_path / "file")
    yield made
    os.close(made)


@pytest.mark.parametrize("portable", PORTABLE)
def test_allocating_gives_length_zeros_and_disk_blocks(
    tmp_path: Path, fd: int, portable: bool
) -> None:
    Disk(portable=portable).allocate(fd, 3 * 2**20 + 17)
    assert (tmp_path / "file").read_bytes() == bytes(3 * 2**20 + 17)
    if hasattr(os.stat_result, "st_blocks"):
        os.fsync(fd)
        assert os.fstat(fd).st_blocks * 512 >= 3 * 2**20


def test_a_system_that_cannot_allocate_gets_it_written(
    tmp_path: Path, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", fail, raising=False)
    Disk().allocate(fd, 5000)
    assert (tmp_path / "file").stat().st_size == 5000


@pytest.mark.parametrize("portable", PORTABLE)
def test_a_write_that_is_done_in_parts_arrives_whole(
    tmp_path: Path, fd: int, monkeypatch: pytest.MonkeyPatch, portable: bool
) -> None:
    name = "write" if portable or not hasattr(os, "pwrite") else "pwrite"
    whole = getattr(os, name)
    monkeypatch.setattr(os, name, lambda fd, data, *at: whole(fd, bytes(data)[:7], *at))
    Disk(portable=portable).write(fd, bytes(range(100)), 50)
    assert (tmp_path / "file").read_bytes() == bytes(50) + bytes(range(100))


@pytest.mark.parametrize("portable", PORTABLE)
@pytest.mark.parametrize("n", [1, 2, 3000])
def test_parts_are_written_one_behind_the_other(
    tmp_path: Path, fd: int, portable: bool, n: int
) -> None:
    parts = [b"%d," % i for i in range(n)]
    Disk(portable=portable).write_parts(fd, [memoryview(part) for part in parts], 50)
    assert (tmp_path / "file").read_bytes() == bytes(50) + b"".join(parts)


def test_parts_of_which_only_some_are_written_arrive_whole(
    tmp_path: Path, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(fd: int, parts: list[memoryview], offset: int) -> int:
        return os.pwrite(fd, b"".join(parts)[:7], offset)

    monkeypatch.setattr(os, "pwritev", short, raising=False)
    Disk().write_parts(fd, [memoryview(b"0123"), memoryview(b"456789")], 5)
    assert (tmp_path / "file").read_bytes() == bytes(5) + b"0123456789"


@pytest.mark.parametrize("portable", PORTABLE)
def test_a_write_that_does_nothing_is_an_error_and_no_endless_loop(
    fd: int, monkeypatch: pytest.MonkeyPatch, portable: bool
) -> None:
    name = "write" if portable or not hasattr(os, "pwrite") else "pwrite"
    monkeypatch.setattr(os, name, lambda *arguments: 0)
    with pytest.raises(OSError, match="wrote nothing"):
        Disk(portable=portable).write(fd, b"data", 0)


@pytest.mark.parametrize("portable", PORTABLE)
def test_beginning_to_write_back_changes_no_byte_and_tells_no_failure(
    tmp_path: Path, fd: int, portable: bool
) -> None:
    disk = Disk(portable=portable)
    disk.write(fd, b"data", 5)
    disk.begin_write_back(fd, 5)
    assert (tmp_path / "file").read_bytes() == bytes(5) + b"data"
    disk.begin_write_back(-1, 5)  # the sync of such a file fails


@pytest.mark.skipif(sys.platform != "linux", reason="the call is Linux's")
def test_linux_takes_the_call_that_begins_to_write_back(fd: int) -> None:
    assert files._sync_file_range()(fd, 2**40, 0, files._SYNC_FILE_RANGE_WRITE) == 0


@pytest.mark.skipif(os.name == "nt", reason="Windows lets few users make links")
def test_a_new_file_follows_no_link_and_replaces_nothing(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    for name in ("link", "precious"):
        with pytest.raises(FileExistsError):
            Disk().create(tmp_path / name)
    assert (tmp_path / "precious").read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((errno.EISDIR, "Is a directory", "b.h5.tmp"), "a folder is in the way (b.h5.tmp). "),
        ((errno.EISDIR, "Is a directory", b"b.h5.tmp"), "a folder is in the way (b.h5.tmp). "),
        ((errno.ENOSPC, "No space left", "b.h5"), "the disk is full. "),
        ((errno.ENOSPC, "No space left", 3), "the disk is full. "),  # written by its number
        ((errno.ENOSPC, "No space left"), "the disk is full. "),
    ],
)
def test_an_error_names_the_file_that_it_is_about(arguments: Any, told: str) -> None:
    with (
        pytest.raises(DiskError, match=re.escape(f"cannot create b.h5: {told}")),
        files.told_as_disk_error(Path("b.h5"), "create"),
    ):
        raise OSError(*arguments)


@pytest.mark.skipif(os.name == "nt", reason="Windows syncs no folders")
@pytest.mark.parametrize("code", [errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EIO])
def test_only_a_system_that_cannot_sync_folders_is_forgiven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(fd: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files, "_sync", fail)
    if code == errno.EIO:
        with pytest.raises(OSError, match=os.strerror(code)):
            Disk().sync_folder(tmp_path)
    else:
        Disk().sync_folder(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="Windows syncs no folders")
def test_a_new_folder_has_a_durable_name_all_the_way_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(Disk, "sync_folder", lambda self, folder: synced.append(folder))
    Disk().make_folder(tmp_path / "a" / "b")
    Disk().make_folder(tmp_path / "a" / "b")
    assert synced == [tmp_path, tmp_path / "a"]


@pytest.mark.parametrize("supported", [True, False])
def test_macos_is_asked_to_empty_the_memory_of_the_drive_too(
    fd: int, monkeypatch: pytest.MonkeyPatch, supported: bool
) -> None:
    asked: list[str] = []

    def fcntl(fd: int, what: int) -> None:
        asked.append(f"fcntl {what}")
        if not supported:  # as a network share says
            raise OSError(errno.ENOTSUP, "Operation not supported")

    fake = types.SimpleNamespace(F_FULLFSYNC=51, fcntl=fcntl)
    monkeypatch.setattr(files, "fcntl", fake)
    monkeypatch.setattr(os, "fsync", lambda fd: asked.append("fsync"))
    disk = Disk(portable=True)
    disk.sync(fd)
    disk.datasync(fd)
    assert asked == (["fcntl 51"] if supported else ["fcntl 51", "fsync"]) * 2
