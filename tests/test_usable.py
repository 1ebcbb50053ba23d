"""Usable rows of a cache in which images have failed."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import write_cache

import featx
from featx import usable
from featx.cache import open_cache


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with failed images whose features are taken for many; blocks of three rows."""
    monkeypatch.setattr(usable, "_MOST_COPIED_BYTES", 50 * 16 * 4)
    monkeypatch.setattr(usable, "_BLOCK_BYTES", 3 * 16 * 4)
    return write_cache(tmp_path / "a.h5", n=60, failed=(0, 7, 8, 30, 59))


def test_many_features_are_copied_to_a_file_without_a_name_and_mapped(path: Path) -> None:
    found = featx.load(path)
    expected = open_cache(path).read("features")[found.rows]
    assert isinstance(found.features, np.memmap)
    assert np.array_equal(found.features, expected)
    assert len(found) == 55
    assert [each.name for each in path.parent.iterdir()] == ["a.h5"]
    before = path.read_bytes()
    found.X[0] = 0
    assert path.read_bytes() == before


def test_few_features_are_copied_into_memory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usable, "_MOST_COPIED_BYTES", 60 * 16 * 4)
    monkeypatch.setattr(tempfile, "TemporaryFile", None)
    found = featx.load(path)
    assert np.array_equal(found.features, open_cache(path).read("features")[found.rows])


def test_without_a_failed_image_nothing_is_copied(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", None)
    whole = featx.load(write_cache(path.with_name("b.h5"), n=60))
    assert whole.features.filename == path.with_name("b.h5")


def test_a_folder_that_takes_no_file_is_no_obstacle(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    found = featx.load(path)
    assert np.array_equal(found.features, open_cache(path).read("features")[found.rows])


def test_a_disk_that_fills_up_is_no_obstacle(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    temporary = tempfile.TemporaryFile

    def filling(**where: Any) -> Any:
        file = temporary(**where)
        write, n_left = file.write, iter([True, False])

        def some(data: bytes) -> int:
            if not next(n_left):
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(data)

        monkeypatch.setattr(file, "write", some)
        made.append(file)
        return file

    monkeypatch.setattr(tempfile, "TemporaryFile", filling)
    found = featx.load(path)
    assert np.array_equal(found.features, open_cache(path).read("features")[found.rows])
    assert made[0].closed
