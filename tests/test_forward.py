"""The pipeline: row i is file i, whatever happens on the way."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from featx.errors import ImageError
from featx.forward import run
from featx.loading import Loader, Picture
from featx.passes import MemorySink
from featx.transforms import Transform

SIZE = 8
PLAIN = Transform(resize=SIZE, crop=SIZE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


class ColourEngine:
    """Features are the mean colour, so that a row says which picture it came from."""

    name = "colour"
    concurrency = 1

    def __init__(self, batch_size: int = 4) -> None:
        self.batch_size = batch_size
        self.feature_shape = (3,)
        self.calls: list[tuple[int, ...]] = []

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        self.calls.append(pixels.shape)
        return pixels.reshape(len(pixels), -1, 3).mean(axis=1, dtype=np.float64).astype(np.float32)


def colour_of(number: int) -> tuple[int, int, int]:
    return number % 251, (number // 251) % 251, 77


def picture_of(number: int) -> Picture:
    pixels = np.broadcast_to(np.array(colour_of(number), np.uint8), (SIZE, SIZE, 3))
    return Picture(pixels, hashlib.sha256(str(number).encode()).digest())


@settings(max_examples=60, deadline=None)
@given(
    numbers=st.lists(st.integers(0, 5_000), unique=True, min_size=1, max_size=40),
    bad=st.sets(st.integers(0, 5_000), max_size=20),
    batch_size=st.integers(1, 9),
    workers=st.integers(1, 4),
)
def test_row_i_is_file_i_with_bad_files_between(
    numbers: list[int], bad: set[int], batch_size: int, workers: int
) -> None:
    def load(number: int) -> Picture:
        if number in bad or number % 7 == 0:
            raise ImageError(f"{number} is broken", status=3)
        return picture_of(number)

    engine = ColourEngine(batch_size)
    sink = MemorySink(len(numbers), (3,))
    settled: list[int] = []
    times = run(
        enumerate(numbers), load, engine=engine, sink=sink, workers=workers, progress=settled.append
    )
    broken = {row for row, number in enumerate(numbers) if number in bad or number % 7 == 0}
    assert set(sink.failed) == broken
    for row, number in enumerate(numbers):
        if row in broken:
            assert sink.failed[row] == (3, f"{number} is broken")
            assert np.isnan(sink.features[row]).all()
        else:
            assert sink.features[row].tolist() == list(colour_of(number))
            assert sink.sha256[row].tobytes() == picture_of(number).sha256
    assert sum(settled) == len(numbers) == times.done + times.failed
    good = len(numbers) - len(broken)
    assert len(engine.calls) == times.batches == -(-good // batch_size)
    assert {shape[0] for shape in engine.calls} <= {batch_size}  # the last one is padded


def test_slow_files_do_not_shift_the_order() -> None:
    def load(number: int) -> Picture:
        time.sleep(0.02 if number % 3 == 0 else 0)
        return picture_of(number)

    sink = MemorySink(20, (3,))
    run(enumerate(range(20)), load, engine=ColourEngine(), sink=sink, workers=4)
    assert sink.features[:, 0].tolist() == list(range(20))


def test_only_bad_files_make_no_forward_pass() -> None:
    def load(number: int) -> Picture:
        raise ImageError("broken", status=2)

    engine, sink = ColourEngine(), MemorySink(5, (3,))
    run(enumerate(range(5)), load, engine=engine, sink=sink)
    assert engine.calls == []
    assert len(sink.failed) == 5


def test_non_finite_features_are_marked_and_their_neighbours_kept() -> None:
    class Poisoned(ColourEngine):
        def __call__(self, pixels: np.ndarray) -> np.ndarray:
            features = super().__call__(pixels)
            features[features[:, 0] == 2] = np.inf
            return features

    sink = MemorySink(4, (3,))
    run(enumerate(range(4)), picture_of, engine=Poisoned(), sink=sink)
    assert {row: status for row, (status, _) in sink.failed.items()} == {2: 6}
    assert sink.features[[0, 1, 3], 0].tolist() == [0, 1, 3]


def test_what_overflows_the_stored_type_has_failed() -> None:
    class Large(ColourEngine):
        def __call__(self, pixels: np.ndarray) -> np.ndarray:
            return super().__call__(pixels) * np.float32(1e3)

    sink = MemorySink(3, (3,))
    run(
        enumerate([10, 20, 200]), picture_of, engine=Large(), sink=sink, dtype="float16"
    )  # 200,000 is more than float16 holds
    assert set(sink.failed) == {0, 1, 2}  # the third channel, 77,000, overflows everywhere
    assert "float16" in sink.failed[0][1]


def test_asked_to_stop_it_ends_after_the_batch_in_hand_and_settles_no_other_row() -> None:
    asked: list[int] = []

    def stop() -> bool:
        asked.append(len(engine.calls))
        return len(asked) == 2

    engine, sink = ColourEngine(4), MemorySink(100, (3,))
    times = run(enumerate(range(100)), picture_of, engine=engine, sink=sink, stop=stop)
    assert len(asked) == 2  # after every batch, while the next one is under way
    assert times.stopped
    assert (times.done, times.batches, len(engine.calls)) == (12, 3, 3)
    assert sink.features[:12, 0].tolist() == list(range(12))
    assert np.isnan(sink.features[12:]).all()


def test_asked_to_stop_among_bad_files_it_does_not_go_through_all_of_them() -> None:
    def load(number: int) -> Picture:
        if number != 1:
            raise ImageError("broken", status=3)
        return picture_of(number)

    engine, sink = ColourEngine(4), MemorySink(100, (3,))
    times = run(
        enumerate(range(100)), load, engine=engine, sink=sink, stop=lambda: len(sink.failed) == 3
    )
    assert times.stopped
    assert set(sink.failed) == {0, 2, 3}
    assert engine.calls == []  # the one good file waits for the next run: no batch is begun


def test_a_run_that_nobody_stops_is_not_marked_as_stopped() -> None:
    sink = MemorySink(9, (3,))
    times = run(
        enumerate(range(9)), picture_of, engine=ColourEngine(4), sink=sink, stop=lambda: False
    )
    assert (times.stopped, times.done) == (False, 9)


def test_an_unexpected_error_in_a_worker_is_not_swallowed() -> None:
    def load(number: int) -> Picture:
        raise ZeroDivisionError("a defect")

    with pytest.raises(ZeroDivisionError, match="a defect"):
        run([(0, 1)], load, engine=ColourEngine(), sink=MemorySink(1, (3,)))


def test_no_more_pictures_are_loaded_ahead_than_two_batches() -> None:
    loaded: list[int] = []

    class Counting(ColourEngine):
        ahead = 0

        def __call__(self, pixels: np.ndarray) -> np.ndarray:
            time.sleep(0.005)  # the loaders have all the time they want
            self.ahead = max(self.ahead, len(loaded) - 4 * len(self.calls))
            return super().__call__(pixels)

    def load(number: int) -> Picture:
        loaded.append(number)
        return picture_of(number)

    engine = Counting()
    run(enumerate(range(100)), load, engine=engine, sink=MemorySink(100, (3,)), workers=2)
    assert len(loaded) == 100
    # the batch in hand, the one that waits for it, two ahead, one picture being queued
    assert engine.ahead <= 4 + 4 + 2 * 4 + 1


def test_the_loader_reads_decodes_and_hashes(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (20, 10), (9, 8, 7)).save(path)
    picture = Loader(PLAIN)(path)
    assert picture.sha256 == hashlib.sha256(path.read_bytes()).digest()
    assert picture.pixels.shape == (SIZE, SIZE, 3)
    assert (picture.pixels == (9, 8, 7)).all()


def test_a_broken_file_keeps_its_digest_and_a_missing_one_has_none(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"no picture")
    with pytest.raises(ImageError) as caught:
        Loader(PLAIN)(path)
    assert (caught.value.status, caught.value.sha256) == (3, hashlib.sha256(b"no picture").digest())
    with pytest.raises(ImageError) as caught:
        Loader(PLAIN)(tmp_path / "none.jpg")
    assert (caught.value.status, caught.value.sha256) == (2, bytes(32))
