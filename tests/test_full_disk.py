"""The real command meets the real system: a limit on files, a full disk, a read-only one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_caches import create, features_of, sha_of
from test_lock import held

import featx
from featx.cache import Disk, verify
from featx.errors import DiskError

IMAGES = 6
LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
runpy.run_module("featx", run_name="__main__", alter_sys=True)
"""
pytestmark = pytest.mark.skipif(os.name == "nt", reason="limits and mounts are those of POSIX")


def extract(out: Path, *more: str, limited: bool = False, code: int = 0) -> str:
    """The real command on a few small images; returns the last line it says."""
    images = out.parent.parent / "images"
    if not images.exists():
        for i in range(IMAGES):
            folder = images / f"class {i % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (70, 70), (40 * i, 200 - 30 * i, 90)).save(folder / f"{i}.png")
    command = [sys.executable, *(("-c", LIMITED) if limited else ("-m", "featx")), "extract"]
    options = "--backbone squeezenet1_1 --weights random --device cpu --resize 64 --crop 64"
    made = subprocess.run(
        [*command, str(images), *options.split(), *more, "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert made.returncode == code, made.stderr
    assert "Traceback" not in made.stderr
    told = [line for line in made.stderr.splitlines() if line.startswith("featx: ")]
    assert len(told) == (1 if code else 0), made.stderr
    return made.stderr.splitlines()[-1]


def finishes(out: Path) -> None:
    extract(out)
    assert verify(out).ok
    assert len(np.unique(featx.load(out).X, axis=0)) == IMAGES
    assert {each.name for each in out.parent.iterdir()} <= {out.name, f".{out.name}.lock"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, with less room than a cache takes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", "size=160k", "tmpfs", str(folder)]
    if mount is None or subprocess.run([mount, *options], capture_output=True).returncode:
        pytest.skip("this user may not mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


@pytest.mark.slow
def test_a_limit_on_the_size_of_files_ends_in_code_6_and_once_lifted_it_goes_on(
    tmp_path: Path,
) -> None:
    out = tmp_path / "cache" / "a.h5"
    told = extract(out, limited=True, code=6)
    assert f"cannot create {out}: the file would be larger than the limit allows" in told
    assert not list(out.parent.glob("a.h5*"))
    finishes(out)


@pytest.mark.slow
def test_a_read_only_and_a_full_disk_end_in_code_6_and_with_room_it_goes_on(
    small_disk: Path,
) -> None:
    out = small_disk / "a.h5"
    remount(small_disk, "ro")
    assert f"cannot lock {out}: the file system is read-only" in extract(out, code=6)
    remount(small_disk, "rw")
    assert f"the cache takes 213.5 kB, and {out.parent} has" in extract(out, code=6)
    assert f"cannot create {out}: the disk is full" in extract(out, "--max-size", "none", code=6)
    assert not list(small_disk.glob("a.h5*"))
    remount(small_disk, "size=10m")
    finishes(out)


def test_a_disk_that_fills_up_during_a_run_takes_nothing_from_it(small_disk: Path) -> None:
    path = small_disk / "a.h5"
    with pytest.raises(DiskError, match="the disk is full"):
        create(path)
    remount(small_disk, "size=1m")
    writer = create(path)
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "filler").write_bytes(bytes(2**20))
    assert shutil.disk_usage(small_disk).free == 0
    writer.put(np.arange(10), features_of(), sha_of())
    writer.finish(path, {"images": 10})
    assert verify(path).ok


def test_without_fallocate_a_full_disk_is_found_before_any_row_too(small_disk: Path) -> None:
    with pytest.raises(DiskError, match="the disk is full"):
        create(small_disk / "a.h5", disk=Disk(portable=True))
    assert not list(small_disk.iterdir())


@pytest.mark.slow
def test_a_second_command_is_told_who_holds_the_cache_and_a_dead_holder_holds_nothing(
    tmp_path: Path,
) -> None:
    out = tmp_path / "cache" / "a.h5"
    out.parent.mkdir()
    with held(out) as other:
        told = extract(out, code=5)
        assert f"{out} is being written by another run (process {other.pid} on " in told
    finishes(out)
