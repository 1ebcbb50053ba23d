"""Stages made to run and counted: what counts, what is left out, and that nothing hangs."""

from __future__ import annotations

import itertools
import math
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_forward import PLAIN, SIZE, ColourEngine, picture_of

from featx import stopwatch
from featx.identity import FrontIdentity
from featx.loading import Loader
from featx.stopwatch import Decoded, decode_in_processes, decode_on_one_core, per_second


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Six files, of which the first and the fourth are none."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.jpg" for i in range(6)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    for i in (0, 3):
        paths[i].write_bytes(b"no picture at all")
    return paths


class Clock:
    """Time that passes only when somebody works."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: self.now)


def test_calls_count_once_all_is_ready_and_only_whole_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = Clock(monkeypatch), itertools.count(1)

    def work() -> int:
        next(calls)
        clock.now += 0.4
        return 8

    rate = per_second(work, threads=1, seconds=1.0, is_ready=lambda: clock.now > 0.9)
    assert math.isclose(rate, 8 / 0.4)  # 3 calls in 1.2 s, not in 1
    assert next(calls) == 3 + 3 + 1  # three to get ready


def test_every_thread_adds_its_rate() -> None:
    together = threading.Barrier(3)

    def work() -> int:
        together.wait(timeout=10)  # hangs unless three are at work
        return 1

    assert per_second(work, threads=3, seconds=0.0) > 0


def test_nobody_counts_before_all_are_ready() -> None:
    """The first thread is late; what the other does alone is not counted."""
    late, counted = threading.Event(), []

    def work() -> int:
        if threading.current_thread().name.endswith("_0") and not late.is_set():
            time.sleep(0.1)
            late.set()
        else:
            counted.append(late.is_set())
        return 1

    assert per_second(work, threads=2, seconds=0.0) > 0
    assert counted.count(False) <= 1  # the call that gets it ready


@pytest.mark.parametrize("while_waiting", [True, False])
def test_an_error_ends_the_threads_that_wait_too(while_waiting: bool) -> None:
    calls = itertools.count()

    def work() -> int:
        if next(calls) == (0 if while_waiting else 4):
            time.sleep(0.05)
            raise ZeroDivisionError
        return 1

    with pytest.raises(ZeroDivisionError):
        per_second(work, threads=2, seconds=0.2)


def test_files_that_cannot_be_used_are_found_and_left_out(files: list[Path]) -> None:
    loader = Loader(PLAIN)
    decoded = decode_in_processes(loader, files, workers=2, seconds=0.05)
    assert decoded.files == [files[i] for i in (1, 2, 4, 5)]
    assert [i for i, _ in decoded.failed] == [0, 3]
    assert {error.status for _, error in decoded.failed} == {3}
    for picture, path in zip(decoded.pictures, decoded.files, strict=True):
        assert np.array_equal(picture.pixels, loader(path).pixels)
    assert 0 < decoded.images_per_s < math.inf
    assert 0 < decoded.started_s < stopwatch._STARTED_S + 60
    for rate in decode_on_one_core(loader, decoded.files, seconds=0.02):
        assert 0 < rate < math.inf


def test_only_so_many_pictures_are_kept(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopwatch, "_PIXELS_BYTES", 2 * SIZE * SIZE * 3)
    decoded = decode_in_processes(Loader(PLAIN), files, workers=1, seconds=0.01)
    assert len(decoded.files) == 4
    assert len(decoded.pictures) == 1  # of the first two files one is no picture
    monkeypatch.setattr(stopwatch, "_PIXELS_BYTES", 1)
    decoded = decode_in_processes(Loader(PLAIN), files, workers=1, seconds=0.01)
    assert len(decoded.pictures) == 1  # there must be one for the network


def test_of_bad_files_alone_nothing_is_measured(files: list[Path]) -> None:
    decoded = decode_in_processes(Loader(PLAIN), [files[0]], workers=1, seconds=9.0)
    assert (len(decoded.files), len(decoded.pictures), decoded.images_per_s) == (0, 0, 0.0)


class TinyPipeline:
    """A pipeline whose network takes no time."""

    def __init__(self, batch_size: int) -> None:
        self.engine = ColourEngine(batch_size)
        self.threads = 1


def test_batches_are_full_however_few_the_pictures() -> None:
    for n, batch_size in ((3, 4), (9, 4), (1, 1)):
        pipeline = TinyPipeline(batch_size)
        pictures = [picture_of(i) for i in range(n)]
        assert stopwatch.forward(pipeline, pictures, seconds=0.01) > 0  # type: ignore[arg-type]
        assert set(pipeline.engine.calls) == {(batch_size, SIZE, SIZE, 3)}


def test_what_was_written_is_removed(tmp_path: Path) -> None:
    rates = stopwatch.write(tmp_path, (5, 2), batch_size=3, seconds=0.05)
    assert all(0 < rate < math.inf for rate in rates)
    assert list(tmp_path.iterdir()) == []


def test_marks_count_from_batch_to_batch_and_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    marks = stopwatch._Marks(at_least_s=5.0)
    for now, count in ((1.0, 4), (2.0, 40), (4.0, 40)):
        clock.now = now
        marks.add(count)
        assert not marks.are_enough()
    clock.now = 6.0
    marks.add(40)
    assert marks.are_enough()
    clock.now = 6.1
    marks.add(1_000)  # what was under way
    assert marks.rate(1.5) == 80 / 4
    assert marks.rate(0.0) == 120 / 5
    assert marks.rate(5.5) == 120 / 5  # a single mark is no rate
    assert stopwatch._Marks(at_least_s=1.0).rate(0.0) is None


def test_the_whole_ends_although_rows_are_left(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featx.passes import Pipeline

    loader, engine = Loader(PLAIN), ColourEngine(2)
    front = FrontIdentity("flatten", "none", "vector")
    pipeline = Pipeline(None, front, engine, loader, None, "fp32", 1, {})  # type: ignore[arg-type]
    decoded = Decoded(files[1:3], (), (), 1.0, 0.0)
    rate = stopwatch.end_to_end(
        pipeline, decoded, tmp_path / "made", workers=1, seconds=0.1, slowest=1e5
    )
    assert 0 < rate < math.inf
    monkeypatch.setattr(stopwatch, "_CACHE_BYTES", 1)  # there is room for two batches only
    assert stopwatch.end_to_end(
        pipeline, decoded, tmp_path / "small", workers=1, seconds=9.0, slowest=1e5
    )
