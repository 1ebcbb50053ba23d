"""The stages of an extraction, each made to run for some seconds and counted."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from featx.cache import CacheWriter, Rows
from featx.cache.files import told_as_disk_error
from featx.devices import torch_threads
from featx.errors import ImageError
from featx.isolation import IsolatedLoader
from featx.limits import decode_bare, plain_write_s
from featx.loading import Loader, Picture, batch_of
from featx.passes import Pipeline

_STARTED_S: Final = 5.0  # after which no more decoding processes are waited for
_PIXELS_BYTES: Final = 64 * 2**20  # of decoded pictures that are kept
_ROWS_BYTES: Final = 32 * 2**20  # of features written at a time
_CACHE_BYTES: Final = 256 * 2**20  # of the cache at the end of the whole pipeline
_PILOT_ROWS: Final = 256


@dataclass(frozen=True)
class Decoded:
    """What decoding in processes gave.

    Attributes
    ----------
    files : those that can be used.
    pictures : of the first of them.
    failed : number in the list and error of each of the others.
    images_per_s : with all processes at work.
    started_s : how long it took until all processes were there.
    """

    files: Sequence[Path]
    pictures: Sequence[Picture]
    failed: Sequence[tuple[int, ImageError]]
    images_per_s: float
    started_s: float


def per_second(
    work: Callable[[], int],
    *,
    threads: int,
    seconds: float,
    is_ready: Callable[[], bool] = lambda: True,
) -> float:
    """How much `work` does a second, called again and again in `threads` threads.

    Calls do not count until every thread has made one after which `is_ready` says so. Each then
    goes on until `seconds` are over, and at least one call more: every rate is of whole calls.
    """
    together, stopped = threading.Barrier(threads), threading.Event()

    def rate() -> float:
        try:
            work()
            while not (is_ready() or stopped.is_set()):
                work()
            together.wait()
        except threading.BrokenBarrierError:
            return 0.0  # another thread has failed, which is told
        except BaseException:
            together.abort()
            raise
        begun, done = time.perf_counter(), 0
        while True:
            done += work()
            spent_s = time.perf_counter() - begun
            if spent_s >= seconds or stopped.is_set():
                return done / spent_s

    with ThreadPoolExecutor(threads, thread_name_prefix="featx-bench") as pool:
        try:
            return sum([future.result() for future in [pool.submit(rate) for _ in range(threads)]])
        finally:
            stopped.set()  # after an error, or Ctrl-C
            together.abort()


def decode_in_processes(
    loader: Loader, files: Sequence[Path], *, workers: int, seconds: float
) -> Decoded:
    """Decode in processes of their own, as an extraction does: each file once, then on and on.

    Files that cannot be used are found here, where they do no harm, and left out from then on.
    """
    begun = time.perf_counter()
    started: list[float] = []
    with IsolatedLoader(loader) as load:
        found = _each_once(load, loader, files, workers)
        failed = [(i, error) for i, error in enumerate(found) if isinstance(error, ImageError)]
        bad = {i for i, _ in failed}
        good = [path for i, path in enumerate(files) if i not in bad]
        if not good:
            return Decoded((), (), failed, 0.0, 0.0)
        pictures = [one for one in found if isinstance(one, Picture)] or [load(good[0])]

        def all_started() -> bool:
            spent_s = time.perf_counter() - begun
            if load.processes >= workers or spent_s > _STARTED_S:
                started.append(spent_s)
            return bool(started)

        turns = itertools.cycle(good)

        def work() -> int:
            load(next(turns))
            return 1

        rate = per_second(work, threads=workers, seconds=seconds, is_ready=all_started)
    return Decoded(good, pictures, failed, rate, started[0])


def _each_once(
    load: IsolatedLoader, loader: Loader, files: Sequence[Path], workers: int
) -> list[Picture | ImageError | None]:
    """The pictures of the first files, None for later ones, or why a file cannot be used."""
    most = max(1, _PIXELS_BYTES // loader.body_bytes[1])

    def once(i: int) -> Picture | ImageError | None:
        try:
            picture = load(files[i])
        except ImageError as error:
            return error
        return picture if i < most else None

    with ThreadPoolExecutor(workers, thread_name_prefix="featx-bench") as pool:
        try:
            return list(pool.map(once, range(len(files))))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # after Ctrl-C


def decode_on_one_core(
    loader: Loader, files: Sequence[Path], *, seconds: float
) -> tuple[float, float]:
    """Images/s of decoding in this process, and of the bare decoder, file by file in turns."""
    ours_s = bare_s = 0.0
    n, until = 0, time.perf_counter() + seconds
    with threadpool_limits(1):  # as in the decoding processes
        for path in itertools.cycle(files):
            data = loader.read(path)
            begun = time.perf_counter()
            decode_bare(data)
            middle = time.perf_counter()
            loader(path)
            ours_s += time.perf_counter() - middle
            bare_s += middle - begun
            n += 1
            if time.perf_counter() >= until:
                break
    return n / ours_s, n / bare_s


def forward(pipeline: Pipeline, pictures: Sequence[Picture], *, seconds: float) -> float:
    """Images/s of the engine, with as many batches at the same time as it takes.

    Parameters
    ----------
    pictures : at least one; batches are made of them again and again.
    """
    engine = pipeline.engine
    size = engine.batch_size
    n = max(1, len(pictures) // size)
    again = itertools.cycle(pictures)
    batches = [batch_of(list(itertools.islice(again, size)), size) for _ in range(n)]
    turns = itertools.cycle(batches)

    def work() -> int:
        engine(next(turns))
        return size

    with torch_threads(pipeline.threads):
        return per_second(work, threads=engine.concurrency, seconds=seconds)


def write(
    folder: Path,
    feature_shape: tuple[int, ...],
    *,
    dtype: str = "float32",
    batch_size: int,
    seconds: float,
) -> tuple[float, float]:
    """Rows/s into a cache, from its making to its final name, and of the plain write of its bytes.

    Both write new files in `folder` and force them to disk, in turns.

    Raises
    ------
    DiskError
        They cannot be written.
    """
    row_bytes = np.dtype(dtype).itemsize * int(np.prod(feature_shape))
    most = max(1, _ROWS_BYTES // row_bytes)
    rng = np.random.default_rng(0)
    n = min(most, _PILOT_ROWS)
    pilot_s, _ = _write_once(folder, _noise(rng, (n, *feature_shape), dtype), batch_size)
    n = min(most, max(n, int(n * seconds / (3 * pilot_s))))  # about three rounds
    features = _noise(rng, (n, *feature_shape), dtype)
    rounds: list[tuple[float, float]] = []
    until = time.perf_counter() + seconds
    while not rounds or time.perf_counter() < until:
        rounds.append(_write_once(folder, features, batch_size))
    ours_s, plain_s = np.sum(rounds, axis=0).tolist()
    return n * len(rounds) / ours_s, n * len(rounds) / plain_s


def _noise(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    if np.dtype(dtype).kind == "u":
        return rng.integers(0, 256, shape, dtype)
    return rng.random(shape, np.float32)


def _write_once(folder: Path, features: np.ndarray, batch_size: int) -> tuple[float, float]:
    """Seconds to write a cache, and its bytes plainly; both are removed."""
    cache, plain = folder / "rows.h5", folder / "rows.bin"
    n = len(features)
    sha256 = np.zeros((n, 32), np.uint8)
    begun = time.perf_counter()
    with closing(_new_cache(cache, n, features.shape[1:], features.dtype.name)) as writer:
        for start in range(0, n, batch_size):
            rows = np.arange(start, min(n, start + batch_size))
            writer.put(rows, features[start : start + batch_size], sha256[rows])
        writer.finish(cache, {})
    ours_s = time.perf_counter() - begun
    data = cache.read_bytes()
    cache.unlink()
    with told_as_disk_error(plain, "write"):
        plain_s = plain_write_s(plain, data)
    plain.unlink()
    return ours_s, plain_s


def _new_cache(path: Path, n: int, feature_shape: tuple[int, ...], dtype: str) -> CacheWriter:
    """A cache for `n` images that are but numbers."""
    rows = Rows(
        paths=[b"%08d" % i for i in range(n)],
        labels=np.full(n, -1),
        split=np.zeros(n, np.uint8),
        groups=np.full(n, -1),
        size_bytes=np.zeros(n, np.int64),
        mtime_ns=np.zeros(n, np.int64),
        classes=(),
    )
    return CacheWriter.create(
        path, rows, root="", spec={}, plan={}, feature_shape=feature_shape, dtype=dtype
    )


def end_to_end(
    pipeline: Pipeline,
    decoded: Decoded,
    folder: Path,
    *,
    workers: int,
    seconds: float,
    slowest: float,
) -> float:
    """Images/s from files to rows of a cache, all stages at the same time, as an extraction runs.

    Counted from batch to batch, once the decoding processes have had the time to start. `slowest`
    is the rate of the slowest stage alone, for an idea of how many images there will be.
    """
    engine = pipeline.engine
    row_bytes = np.dtype(pipeline.dtype).itemsize * int(np.prod(engine.feature_shape))
    wanted = int(2 * slowest * (decoded.started_s + seconds))
    least = (2 * engine.concurrency + 4) * engine.batch_size  # fills it, and some more
    n = min(max(wanted, least), max(_CACHE_BYTES // row_bytes, 2 * engine.batch_size))
    marks = _Marks(at_least_s=decoded.started_s + seconds)
    files = zip(range(n), itertools.cycle(decoded.files), strict=False)
    cache = folder / "whole.h5"
    with closing(_new_cache(cache, n, engine.feature_shape, pipeline.dtype)) as writer:
        times = pipeline.run(
            files, writer, workers=workers, progress=marks.add, stop=marks.are_enough
        )
        writer.commit()
    return marks.rate(decoded.started_s) or times.images_per_s


class _Marks:
    """When how many images were done, until there are enough.

    What is settled after that was begun before: the rate of an end would flatter.
    """

    def __init__(self, *, at_least_s: float) -> None:
        self._at_least_s = at_least_s
        self._begun = time.perf_counter()
        self._marks: list[tuple[float, int]] = []
        self._done = 0

    def add(self, count: int) -> None:
        """So many more images are done."""
        self._done += count
        if not self.are_enough():
            self._marks.append((time.perf_counter() - self._begun, self._done))

    def are_enough(self) -> bool:
        """Whether the time is over and there are two of them."""
        return len(self._marks) > 1 and self._marks[-1][0] >= self._at_least_s

    def rate(self, after_s: float) -> float | None:
        """Images/s from the first to the last mark after a time, else from the first of all."""
        late = [mark for mark in self._marks if mark[0] >= after_s]
        marks = late if len(late) > 1 else self._marks
        if len(marks) < 2 or marks[-1][0] <= marks[0][0]:
            return None
        (first_s, first), (last_s, last) = marks[0], marks[-1]
        return (last - first) / (last_s - first_s)
