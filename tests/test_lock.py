"""Two runs on one cache: the second is told who holds it, and a dead one holds nothing."""

from __future__ import annotations

import errno
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import featx.cache.lock as lock_module
from featx.cache import cache_lock
from featx.errors import DiskError, LockedError

HOLDER = """
import sys
from pathlib import Path
from featx.cache import cache_lock
with cache_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
# Holds the lock, and writes who it is only when it is told to.
LATE_HOLDER = """
import sys
from pathlib import Path
from filelock import FileLock
from featx.cache.lock import _write_note
path = Path(sys.argv[1])
lock = FileLock(path.with_name(f".{path.name}.lock"))
lock.acquire(timeout=0)
print("held", flush=True)
sys.stdin.readline()
_write_note(path.with_name(f".{path.name}.lock.json"))
print("noted", flush=True)
sys.stdin.read()
"""


@contextmanager
def held(path: Path, code: str = HOLDER) -> Iterator[subprocess.Popen[str]]:
    """The lock of `path`, held by another process inside the block."""
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "held\n"
            yield other
        finally:
            other.kill()
            other.communicate()


def refused(path: Path) -> LockedError:
    with pytest.raises(LockedError) as caught, cache_lock(path):
        pass
    return caught.value


def leave_a_dead_note(path: Path) -> int:
    """The note of a process that was killed; returns its number."""
    with held(path) as dead:
        pass
    note = json.loads(path.with_name(f".{path.name}.lock.json").read_text("utf-8"))
    assert note == {"pid": dead.pid, "host": platform.node()}
    return dead.pid


def test_the_second_run_is_told_who_holds_the_cache(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with held(path) as other:
        error = refused(path)
        assert f"process {other.pid} on {platform.node()}" in str(error)
        assert error.exit_code == 5


def test_a_killed_holder_lets_the_next_in_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module.time, "sleep", lambda seconds: pytest.fail("it waited"))
    path = tmp_path / "a.h5"
    leave_a_dead_note(path)
    with cache_lock(path):
        assert str(os.getpid()) in str(refused(path))  # and holds it, against this process too
    with cache_lock(path):
        pass
    assert [each.name for each in tmp_path.iterdir()] in ([".a.h5.lock"], [])


@pytest.mark.skipif(os.name == "nt", reason="Windows gives no harmless way to ask for a process")
def test_the_note_of_a_dead_process_accuses_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module.time, "sleep", lambda seconds: None)
    path = tmp_path / "a.h5"
    leave_a_dead_note(path)
    with held(path, LATE_HOLDER):
        assert "another run (process unknown)" in str(refused(path))


@pytest.mark.skipif(os.name == "nt", reason="Windows gives no harmless way to ask for a process")
def test_a_holder_that_has_not_yet_said_who_it_is_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.h5"
    dead = leave_a_dead_note(path)
    with held(path, LATE_HOLDER) as other:
        assert other.stdin is not None
        assert other.stdout is not None

        def let_it_write(seconds: float) -> None:
            other.stdin.write("\n")
            other.stdin.flush()
            assert other.stdout.readline() == "noted\n"

        monkeypatch.setattr(lock_module.time, "sleep", let_it_write)
        told = str(refused(path))
    assert f"process {other.pid} on" in told
    assert f"process {dead} on" not in told


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"pid": "x", "host": "h"}', '{"pid": 0, "host": "h"}']
)
def test_a_note_that_says_nothing_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(lock_module.time, "sleep", lambda seconds: None)
    path = tmp_path / "a.h5"
    with cache_lock(path):
        (tmp_path / ".a.h5.lock.json").write_text(text, "utf-8")
        assert "process unknown" in str(refused(path))


def test_a_holder_on_another_machine_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with cache_lock(path):
        (tmp_path / ".a.h5.lock.json").write_text('{"pid": 999999999, "host": "far-away"}')
        assert "process 999999999 on far-away" in str(refused(path))


def test_a_full_disk_keeps_nobody_from_locking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    with cache_lock(tmp_path / "a.h5"):
        pass


def test_a_folder_that_takes_no_files_is_not_taken_for_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_such_file(self: Path) -> None:  # as below /proc
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    def held(self: lock_module.FileLock, timeout: float) -> None:
        raise lock_module.Timeout(self.lock_file)

    monkeypatch.setattr(lock_module.FileLock, "acquire", held)
    monkeypatch.setattr(Path, "touch", no_such_file)
    with (
        pytest.raises(DiskError, match=r"cannot lock .*: its folder takes no files") as caught,
        cache_lock(tmp_path / "a.h5"),
    ):
        pass
    assert caught.value.exit_code == 6


def test_a_folder_that_cannot_be_written_is_a_disk_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object, timeout: float) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(lock_module.FileLock, "acquire", fail)
    with pytest.raises(DiskError, match="read-only") as caught, cache_lock(tmp_path / "a.h5"):
        pass
    assert caught.value.exit_code == 6
