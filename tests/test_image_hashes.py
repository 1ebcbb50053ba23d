"""Hashes of image files: right, in order, and each file read once."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from featx import image_hashes
from featx.image_hashes import ImageHashes


def test_hashes_come_in_the_order_asked_and_unreadable_files_have_none(tmp_path: Path) -> None:
    for i in range(20):
        (tmp_path / f"{i}").write_bytes(bytes([i]) * (i + 1))
    (tmp_path / "20").mkdir()
    hashes = ImageHashes(lambda i: tmp_path / str(i))
    expected = [hashlib.sha256(bytes([i]) * (i + 1)).digest() for i in (7, 3, 19)]
    assert hashes([7, 20, 3, 21, 19]) == [expected[0], None, expected[1], None, expected[2]]


def test_a_file_is_read_once(tmp_path: Path) -> None:
    opened: list[int] = []

    def file(i: int) -> Path:
        opened.append(i)
        return tmp_path / "a"

    (tmp_path / "a").write_bytes(b"a")
    hashes = ImageHashes(file)
    assert hashes([1, 2]) == hashes([2, 1])
    assert sorted(opened) == [1, 2]


def test_only_a_slice_of_many_files_waits_at_a_time_and_the_user_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting: list[int] = []

    class Pool(ThreadPoolExecutor):
        def map(self, work: Any, items: list[int]) -> Any:  # type: ignore[override]
            waiting.append(len(items))
            return super().map(work, items)

    monkeypatch.setattr(image_hashes, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(image_hashes, "_SLICE", 600)
    told: list[str] = []
    (tmp_path / "a").write_bytes(b"a")
    hashes = ImageHashes(lambda i: tmp_path / "a", told.append)
    assert hashes(range(1000)) == [hashlib.sha256(b"a").digest()] * 1000
    assert (waiting, told) == ([600, 400], [])
    hashes(range(2500))
    hashes(range(2500))
    assert (waiting[2:], told) == (
        [600, 600, 300],
        ["reading 1,500 files to compare their content"],
    )
