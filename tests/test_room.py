"""How large a cache will be, and whether it is wanted and finds room."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from featx.errors import DiskError, InputError
from featx.room import check_room, size_in_bytes


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every disk has 10 GB free."""
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=10**10))


@pytest.mark.parametrize("text", ["50", "GB", "-1GB", "50 apples", "", "1e3MB", "nan GB"])
def test_a_size_without_number_and_unit_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="a number with a unit, such as 50GB, or none"):
        size_in_bytes(text)


@pytest.mark.usefixtures("free")
def test_the_size_and_the_free_space_are_told(tmp_path: Path) -> None:
    files = [(tmp_path / "not" / "there" / "a.h5", 2_400_000)]
    assert check_room(files, 10**9) == "the cache takes 2.4 MB; 10.0 GB are free"
    told = check_room([*files, (tmp_path / "b.h5", 9 * 10**9)], 10**11)
    assert told == "the 2 caches take 9.0 GB; 10.0 GB are free"


@pytest.mark.usefixtures("free")
def test_more_than_is_wanted_or_free_is_refused_by_the_sum_unless_told(tmp_path: Path) -> None:
    files = [(tmp_path / "a.h5", 6 * 10**9), (tmp_path / "b.h5", 6 * 10**9)]
    wanted = r"the 2 caches take 12\.0 GB, and --max-size allows 11\.0 GB; a later cut, pooling"
    with pytest.raises(InputError, match=wanted):
        check_room(files, 11 * 10**9)
    with pytest.raises(DiskError, match=rf"take 12\.0 GB, and {tmp_path} has 10\.0 GB free; free"):
        check_room(files, 10**11)
    assert check_room(files, None) == "the 2 caches take 12.0 GB; 10.0 GB are free"
