"""Row i is file i: folders that change in every way between runs, some of them interrupted.

Every image has the colour that spells its number, and features are the mean colour, so that each
row says which picture it was made of. The loader, the cache and the decisions are the real ones.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    rule,
    run_state_machine_as_test,
)
from PIL import Image

import featx.filling
from featx.cache import CacheFile, CacheWriter, Status, open_cache, partial_path, verify
from featx.devices import Device
from featx.extraction import Extraction, run_extraction
from featx.forward import StageTimes, run
from featx.identity import FrontIdentity
from featx.loading import Loader
from featx.specs import ExtractOptions
from featx.transforms import Transform

SIZE = 8
PLAIN = Transform(resize=SIZE, crop=SIZE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
KINDS = ("PNG", "BMP", "JPEG")
FOLDERS = ("amsel", "buchfink", "star")
LEVELS = 32  # of each channel: eight apart, so that JPEG's rounding cannot turn one into another


def colour_of(number: int) -> tuple[int, int, int]:
    """The number's three digits to base 32, as levels that are never 0, which is padding."""
    assert number < LEVELS**3
    digits = number % LEVELS, number // LEVELS % LEVELS, number // LEVELS**2
    red, green, blue = (8 * digit + 4 for digit in digits)
    return red, green, blue


def number_of(colour: np.ndarray) -> int:
    red, green, blue = (int(value) // 8 for value in colour)
    return red + LEVELS * green + LEVELS**2 * blue


def image_of(number: int, kind: str) -> bytes:
    stream = io.BytesIO()
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    Image.new("RGB", (SIZE, SIZE), colour_of(number)).save(stream, kind, **options)
    return stream.getvalue()


class ColourEngine:
    """Features are the mean colour; notes the number of every picture, and stops when told."""

    name = "colour"
    concurrency = 1
    feature_shape = (3,)

    def __init__(self, batch_size: int, stop_after: int | None) -> None:
        self.batch_size, self.left = batch_size, stop_after
        self.computed: list[int] = []

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left = None if self.left is None else self.left - 1
        features = pixels.reshape(len(pixels), -1, 3).mean(axis=1, dtype=np.float64)
        self.computed += [number_of(row) for row in features if row.any()]
        return features.astype(np.float32)


@dataclass
class ColourPipeline:
    """Stands in for `featx.passes.Pipeline`, with the real loader, in this process."""

    engine: ColourEngine
    backbone: Any
    front: Any
    loader: Loader
    device: Device
    precision: str = "fp32"
    threads: int = 1
    versions: Mapping[str, str] = field(default_factory=dict)

    def run(self, files: Any, sink: Any, **keywords: Any) -> StageTimes:
        return run(files, self.loader, engine=self.engine, sink=sink, **keywords)


def colour_pipeline(engine: ColourEngine) -> Callable[..., ColourPipeline]:
    backbone = SimpleNamespace(
        name="colour", weights="none", weights_sha256="0" * 64, weights_path=None, notes=(),
        transform=PLAIN,
    )  # fmt: skip
    front = FrontIdentity("input", "avg", "vector")
    loader, device = Loader(PLAIN), Device("cpu", "as asked")
    return lambda options, **rest: ColourPipeline(engine, backbone, front, loader, device)


@dataclass(frozen=True)
class Outcome:
    """An extraction, None where it was interrupted, and the pictures that it computed."""

    done: Extraction | None
    computed: list[int]


class Birds:
    """A folder of such images and its cache; `there` says what every file must hold."""

    def __init__(self, root: Path) -> None:
        self.root, self.out = root / "birds", root / "cache" / "birds.h5"
        self.there: dict[str, int | None] = {}  # path -> number; None: no image
        self._ticks = itertools.count(10**18, 10**6)

    def write(self, path: str, data: bytes, number: int | None) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        self.there[path] = number
        self.touch(path)

    def touch(self, path: str) -> None:
        """Another time of modification than any before: a test is quicker than some clocks."""
        tick = next(self._ticks)
        os.utime(self.root / path, ns=(tick, tick))

    def move(self, path: str, target: str) -> None:
        (self.root / target).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).rename(self.root / target)
        self.there[target] = self.there.pop(path)
        self._drop_empty(path)

    def remove(self, path: str) -> None:
        (self.root / path).unlink()
        del self.there[path]
        self._drop_empty(path)

    def swap(self, path: str, other: str) -> None:
        held = self.root / "held"
        (self.root / path).rename(held)
        (self.root / other).rename(self.root / path)
        held.rename(self.root / other)
        self.there[path], self.there[other] = self.there[other], self.there[path]

    def extract(
        self, *, batch_size: int = 4, stop_after: int | None = None, **changes: Any
    ) -> Outcome:
        engine = ColourEngine(batch_size, stop_after)
        rules = {"prune": True, "mix_plans": True, "max_failed": 1.0, **changes}
        options = ExtractOptions(device="cpu", workers=rules.pop("workers", 1))
        with mock.patch.object(featx.filling, "build_pipeline", colour_pipeline(engine)):
            try:
                done = run_extraction(self.root, options, out=self.out, **rules)
            except KeyboardInterrupt:
                done = None
        return Outcome(done, engine.computed)

    def sha256(self, path: str) -> bytes:
        return hashlib.sha256((self.root / path).read_bytes()).digest()

    def source(self) -> CacheFile | None:
        """What the next run can take rows from."""
        for path in (partial_path(self.out), self.out):
            if path.exists():
                return open_cache(path, partial=True)
        return None

    def unknown(self) -> list[int]:
        """Numbers of the pictures that the next run must compute, and no other.

        They are those whose content no settled row was made of, and those that an interrupted
        run had not come to: a resume does not read these twice to look for their content.
        """
        source = self.source()
        known, pending = set(), set()
        if source is not None:
            left = source.read("status") == Status.PENDING
            known = {sha256.tobytes() for sha256 in source.read("sha256")[~left]}
            pending = {os.fsdecode(source.paths[row]) for row in np.flatnonzero(left)}
        return sorted(
            number
            for path, number in self.there.items()
            if number is not None and (path in pending or self.sha256(path) not in known)
        )

    def check_settled_rows(self, file: CacheFile) -> None:
        """Every settled row has the features of the content whose digest it bears."""
        features, sha256 = file.read("features"), file.read("sha256")
        by_content = {self.sha256(path): number for path, number in self.there.items()}
        for row in np.flatnonzero(file.read("status") != Status.PENDING).tolist():
            if sha256[row].tobytes() in by_content:
                expect_number(features[row], by_content[sha256[row].tobytes()])

    def check_finished(self) -> None:
        file = open_cache(self.out)
        assert [os.fsdecode(path) for path in file.paths] == sorted(self.there)
        status, features = file.read("status"), file.read("features")
        for row, path in enumerate(sorted(self.there)):
            number = self.there[path]
            assert status[row] == (Status.UNDECODABLE if number is None else Status.DONE), path
            expect_number(features[row], number)
            assert file.map("sha256")[row].tobytes() == self.sha256(path), path
            assert file.classes[file.map("labels")[row]] == path.split("/")[0]
            assert file.map("mtime_ns")[row] == (self.root / path).stat().st_mtime_ns
        assert verify(self.out).ok
        assert not partial_path(self.out).exists()

    def _drop_empty(self, path: str) -> None:
        folder = (self.root / path).parent
        if not any(folder.iterdir()):
            folder.rmdir()


def expect_number(features: np.ndarray, number: int | None) -> None:
    if number is None:
        assert np.isnan(features).all()
    else:
        assert number_of(features) == number


class FolderMachine(RuleBasedStateMachine):
    """Everything that can happen to a folder, with extractions in between."""

    def __init__(self) -> None:
        super().__init__()
        self.temporary = tempfile.TemporaryDirectory()
        self.birds = Birds(Path(self.temporary.name))
        self.numbers = itertools.count(1)
        self.names = itertools.count()
        for _ in range(3):  # one image at least must be usable, and these are never touched
            self._add("amsel", "PNG", "0anchor")
        self.anchors = set(self.birds.there)

    def teardown(self) -> None:
        self.temporary.cleanup()

    def _add(self, folder: str, kind: str, stem: str = "") -> None:
        number = next(self.numbers)
        path = f"{folder}/{stem}{next(self.names):03d}.{kind.lower()}"
        self.birds.write(path, image_of(number, kind), number)

    def _some(self, data: st.DataObject, *, good: bool | None = None) -> str | None:
        paths = [
            path
            for path, number in sorted(self.birds.there.items())
            if path not in self.anchors and good in (None, number is not None)
        ]
        return data.draw(st.sampled_from(paths)) if paths else None

    @rule(folder=st.sampled_from(FOLDERS), kind=st.sampled_from(KINDS), n=st.integers(1, 5))
    def add(self, folder: str, kind: str, n: int) -> None:
        for _ in range(n):
            self._add(folder, kind)

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        if path := self._some(data):
            self.birds.remove(path)

    @rule(data=st.data(), folder=st.sampled_from(FOLDERS), length=st.sampled_from([0, 1, 90]))
    def rename(self, data: st.DataObject, folder: str, length: int) -> None:
        """Also into another class folder, and to names that widen the column of paths."""
        if path := self._some(data):
            name = f"{'n' * length}{data.draw(st.integers(0, 99)):02d}x{next(self.names)}.png"
            self.birds.move(path, f"{folder}/{name}")

    @rule(data=st.data())
    def swap_names(self, data: st.DataObject) -> None:
        path, other = self._some(data), self._some(data)
        if path and other and path != other:
            self.birds.swap(path, other)

    @rule(data=st.data(), kind=st.sampled_from(KINDS))
    def change_content(self, data: st.DataObject, kind: str) -> None:
        if path := self._some(data):
            number = next(self.numbers)
            self.birds.write(path, image_of(number, kind), number)

    @rule(data=st.data())
    def touch(self, data: st.DataObject) -> None:
        if path := self._some(data):
            self.birds.touch(path)

    @rule(data=st.data())
    def make_bad(self, data: st.DataObject) -> None:
        if path := self._some(data, good=True):
            whole = (self.birds.root / path).read_bytes()
            broken = data.draw(st.sampled_from([b"no image", b"", whole[: len(whole) // 3]]))
            self.birds.write(path, broken, None)

    @rule(data=st.data())
    def mend(self, data: st.DataObject) -> None:
        if path := self._some(data, good=False):
            number = next(self.numbers)
            self.birds.write(path, image_of(number, "PNG"), number)

    @rule(data=st.data(), folder=st.sampled_from(FOLDERS))
    def duplicate(self, data: st.DataObject, folder: str) -> None:
        if path := self._some(data):
            content = (self.birds.root / path).read_bytes()
            name = f"{folder}/copy{next(self.names)}.png"
            self.birds.write(name, content, self.birds.there[path])

    @rule(
        batch_size=st.integers(1, 5),
        workers=st.integers(1, 3),
        stop_after=st.none() | st.integers(0, 3),
        rehash=st.booleans(),
    )
    def extract(self, batch_size: int, workers: int, stop_after: int | None, rehash: bool) -> None:
        unknown = self.birds.unknown()
        outcome = self.birds.extract(
            batch_size=batch_size, workers=workers, stop_after=stop_after, rehash=rehash
        )
        if outcome.done is None:
            file = self.birds.source()
            assert file is not None
            self.birds.check_settled_rows(file)
            assert set(outcome.computed) <= set(unknown)
            return
        self.birds.check_finished()
        if outcome.done.decision.action == "reuse":
            assert outcome.computed == []
        else:
            assert sorted(outcome.computed) == unknown


def machine_of(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        FolderMachine, settings=settings(max_examples=examples, stateful_step_count=steps)
    )


def test_row_i_is_file_i_whatever_happens_to_the_folder() -> None:
    machine_of(12, 12)


@pytest.mark.slow
def test_row_i_is_file_i_whatever_happens_to_the_folder_for_long() -> None:
    machine_of(60, 30)


@pytest.fixture
def birds(tmp_path: Path) -> Birds:
    made = Birds(tmp_path)
    for number in range(1, 13):
        made.write(f"star/{number:02d}.bmp", image_of(number, "BMP"), number)
    return made


def test_interrupted_at_any_batch_it_goes_on_from_there(birds: Birds) -> None:
    for batch in range(4):
        birds.out.unlink(missing_ok=True)
        first = birds.extract(batch_size=3, stop_after=batch)
        second = birds.extract(batch_size=3)
        assert first.computed + second.computed == list(range(1, 13))
        assert len(first.computed) == 3 * batch
        birds.check_finished()


def test_rows_of_an_unfinished_cache_that_is_replaced_keep_their_plan(birds: Birds) -> None:
    birds.extract(batch_size=4, stop_after=2)
    birds.move("star/12.bmp", f"star/{'1' * 200}.bmp")  # every column behind the paths moves
    done = birds.extract(batch_size=5).done
    assert done is not None
    birds.check_finished()
    plans = [(entry["plan"]["batch_size"], entry["rows"]) for entry in done.report["plans"]]
    assert plans == [(4, [[0, 7]]), (5, [[8, 11]])]


def test_a_run_killed_before_it_noted_its_plans_leaves_kept_rows_theirs(birds: Birds) -> None:
    birds.extract(batch_size=4)
    birds.write("star/13.bmp", image_of(13, "BMP"), 13)
    with mock.patch.object(CacheWriter, "write_run", side_effect=KeyboardInterrupt):
        birds.extract(batch_size=5)
    assert partial_path(birds.out).exists()
    done = birds.extract(batch_size=5).done
    assert done is not None
    plans = [(entry["plan"]["batch_size"], entry["rows"]) for entry in done.report["plans"]]
    assert plans == [(4, [[0, 11]]), (5, [[12, 12]])]


def test_other_content_of_the_same_size_is_computed_and_a_touched_file_is_not(
    birds: Birds,
) -> None:
    birds.extract()
    birds.write("star/05.bmp", image_of(500, "BMP"), 500)
    birds.touch("star/06.bmp")
    assert birds.extract().computed == [500]
    birds.check_finished()


def test_two_files_of_one_size_and_time_that_swap_names_need_a_rehash(birds: Birds) -> None:
    for path in birds.there:
        os.utime(birds.root / path, ns=(0, 0))  # as unpacked from an archive without times
    birds.extract()
    birds.swap("star/01.bmp", "star/02.bmp")
    done = birds.extract(rehash=True)
    assert done.computed == []  # both contents are known
    birds.check_finished()
