"""Repair: good rows are copied, the others computed, and the damaged file stays until then."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from synthetic import TINY

import featx
from featx.cache import Status, open_cache, verify
from featx.engines.eager import EagerEngine
from featx.errors import CacheError, InputError, StoppedError
from featx.extraction import Listener

pytestmark = pytest.mark.usefixtures("kept_decoders")

Folder = Callable[..., Path]


@pytest.fixture
def cache(colour_folder: Folder, tmp_path: Path) -> Path:
    """A finished cache of 18 images, the fourth of which cannot be decoded."""
    root = colour_folder()
    (root / "blue" / "blue3.png").write_bytes(b"cut short")
    featx.extract(root, out=tmp_path / "birds.h5", **TINY)
    return tmp_path / "birds.h5"


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every forward pass of a whole batch."""
    passes: list[int] = []
    forward = EagerEngine.__call__

    def counted(self: EagerEngine, pixels: np.ndarray) -> np.ndarray:
        passes.append(len(pixels))
        return forward(self, pixels)

    monkeypatch.setattr(EagerEngine, "__call__", counted)
    return passes


def flip(path: Path, column: str, row: int) -> None:
    """Change one bit of the last byte of one row of a dataset."""
    file = open_cache(path)
    size = file.columns[column].nbytes // file.columns[column].shape[0]
    with path.open("r+b") as stream:
        stream.seek(file.offsets[column] + (row + 1) * size - 1)
        byte = stream.read(1)[0]
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte ^ 1]))


def rows_of(path: Path) -> dict[str, np.ndarray]:
    file = open_cache(path)
    names = [name for name in file.columns if name not in ("run", "digest")]
    return {name: file.read(name) for name in names}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return all(a[name].tobytes() == b[name].tobytes() for name in a)


def test_damaged_rows_are_computed_again_and_the_others_copied(
    cache: Path, computed: list[int]
) -> None:
    whole = rows_of(cache)
    for row in (2, 9):
        flip(cache, "features", row)
    assert verify(cache).bad_rows == (2, 9)
    damaged = cache.read_bytes()
    made = featx.repair(cache)
    assert (made.decision.kept, made.decision.again, len(computed)) == (16, 2, 1)
    assert verify(cache).ok
    assert same(rows_of(cache), whole)
    assert cache.read_bytes() != damaged


def test_a_link_to_a_damaged_cache_stays_a_link(cache: Path) -> None:
    link = cache.with_name("link.h5")
    link.symlink_to(cache)
    flip(cache, "features", 2)
    featx.repair(link)
    assert link.is_symlink()
    assert verify(cache).ok


@pytest.mark.parametrize(
    ("column", "row"),
    [("crc32", 5), ("status", 5), ("sha256", 5), ("labels", 5), ("paths", 5), ("split", 5),
     ("size_bytes", 5), ("mtime_ns", 5), ("classes", 1), ("errors", 3), ("groups", 0),
     ("digest", 0), ("run", 0)],
)  # fmt: skip
def test_every_damaged_column_is_mended(
    cache: Path, computed: list[int], column: str, row: int
) -> None:
    whole = rows_of(cache)
    flip(cache, column, row)
    assert not verify(cache).ok
    featx.repair(cache)
    assert verify(cache).ok
    assert same(rows_of(cache), whole)
    assert len(computed) <= 1  # one row at most was in doubt


def test_a_damaged_status_is_not_believed(cache: Path) -> None:
    whole = rows_of(cache)
    file = open_cache(cache)
    with cache.open("r+b") as stream:  # an image that failed now says that it is done
        stream.seek(file.offsets["status"] + 3)
        stream.write(bytes([Status.DONE]))
    featx.repair(cache)
    assert same(rows_of(cache), whole)


def test_good_rows_are_kept_where_their_images_are_gone(cache: Path) -> None:
    root = Path(open_cache(cache).root)
    whole = rows_of(cache)
    flip(cache, "features", 0)
    for file in sorted(root.rglob("*.png"))[5:]:
        file.unlink()
    made = featx.repair(cache)
    assert len(made.features) == 17
    assert same(rows_of(cache), whole)


def test_an_image_that_is_gone_costs_its_damaged_row_only(cache: Path) -> None:
    root = Path(open_cache(cache).root)
    flip(cache, "features", 0)
    (root / "blue" / "blue0.png").unlink()
    made = featx.repair(cache)
    assert [(f.path, f.status) for f in made.features.failed] == [
        ("blue/blue0.png", Status.UNREADABLE),
        ("blue/blue3.png", Status.UNDECODABLE),
    ]
    assert len(made.features) == 16
    assert verify(cache).ok


def test_damaged_rows_are_not_given_up_while_the_whole_folder_is_away(cache: Path) -> None:
    root = Path(open_cache(cache).root)
    whole = rows_of(cache)
    flip(cache, "features", 0)
    away = root.rename(root.with_name("away"))
    before = cache.read_bytes()
    with pytest.raises(
        InputError, match=r"is not there, and 1 rows .* again: say where .* --image"
    ):
        featx.repair(cache)
    assert cache.read_bytes() == before
    away.rename(root)
    featx.repair(cache)
    assert same(rows_of(cache), whole)


def test_an_image_from_a_distant_future_is_mended_too(cache: Path) -> None:
    file = Path(open_cache(cache).root) / "blue" / "blue0.png"
    flip(cache, "features", 0)
    os.utime(file, (13_569_465_600, 13_569_465_600))  # the year 2400
    assert len(featx.repair(cache).features) == 17


def test_an_intact_cache_is_left_alone(cache: Path, computed: list[int]) -> None:
    before = (cache.read_bytes(), cache.stat().st_mtime_ns)
    made = featx.repair(cache)
    assert (made.decision.action, made.decision.kept, made.forward_passes) == ("reuse", 18, 0)
    assert (cache.read_bytes(), cache.stat().st_mtime_ns) == before
    assert not computed


def test_the_damaged_file_stays_until_the_new_one_is_whole(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(cache, "features", 4)
    before = cache.read_bytes()

    def interrupted(self: EagerEngine, pixels: np.ndarray) -> np.ndarray:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(EagerEngine, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            featx.repair(cache)
    assert cache.read_bytes() == before
    featx.repair(cache)
    assert verify(cache).ok


def test_a_repair_that_was_stopped_goes_on_with_the_same_command(
    cache: Path, computed: list[int]
) -> None:
    whole = rows_of(cache)
    for row in (0, 1, 2, 4, 5, 6, 9, 10, 12, 13):
        flip(cache, "features", row)
    settled: list[int] = []
    with pytest.raises(StoppedError, match="16 of 18"):  # one batch was under way
        featx.repair(cache, listener=Listener(advance=settled.append, stop=lambda: True))
    made = featx.repair(cache)
    assert (made.decision.action, made.forward_passes, len(computed)) == ("resume", 1, 3)
    assert same(rows_of(cache), whole)
    assert verify(cache).ok


def test_images_that_moved_are_named(cache: Path) -> None:
    whole = rows_of(cache)
    root = Path(open_cache(cache).root)
    moved = root.rename(root.with_name("moved"))
    flip(cache, "labels", 2)
    with pytest.raises(InputError, match="no such file or folder"):
        featx.repair(cache)
    with pytest.raises(CacheError, match="another folder"):
        featx.repair(cache, images=moved)
    featx.repair(cache, images=moved, prune=True)
    assert same(rows_of(cache), whole)
    assert open_cache(cache).root == str(moved)


def test_a_listener_hears_of_a_repair(cache: Path) -> None:
    flip(cache, "features", 2)
    told: list[str] = []
    totals: list[int] = []
    featx.repair(cache, listener=Listener(tell=told.append, start=totals.append))
    assert totals == [1]
    assert "18 images: 17 kept, 0 new, 1 tried again" in told


@pytest.mark.parametrize(
    "plans",
    ['"plans":[{"plan":{},"rows":[[0,"x"]]}]', '"plans":[3]', '"plans":{"a":1}', '"plans":7',
     '"plans":[{"plan":{},"rows":[[5,1]]}]', '"plans":[{"rows":[[0,1]]}]'],
)  # fmt: skip
def test_a_run_report_of_another_shape_is_made_anew(cache: Path, plans: str) -> None:
    file = open_cache(cache)
    with cache.open("r+b") as stream:
        stream.seek(file.offsets["run"])
        stream.write(f"{{{plans}}}".encode().ljust(file.columns["run"].nbytes, b"\0"))
    made = featx.repair(cache)
    assert made.report["plans"] == [{"plan": file.plan, "rows": [[0, 17]]}]
