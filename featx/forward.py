"""The pipeline: images in, feature rows out, the engine kept busy. It knows no cache."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

import numpy as np

from featx.engines.base import Engine
from featx.errors import ImageError
from featx.loading import Picture

Item = TypeVar("Item")

NON_FINITE: Final = 6  # the cache's status for features that are NaN or infinite


class Sink(Protocol):
    """Where rows go: a cache being written, or memory."""

    def put(self, rows: np.ndarray, features: np.ndarray, sha256: np.ndarray) -> None:
        """Take the features (m, d...) of `rows` (m,) and their images' SHA-256 (m, 32)."""
        ...

    def fail(self, row: int, status: int, reason: str, sha256: bytes) -> None:
        """Take note that the image of `row` has no features, and why."""
        ...


@dataclass
class StageTimes:
    """Seconds spent, by stage. At most `workers` files are decoded at a time, beside the rest."""

    wall_s: float = 0.0
    decode_s: float = 0.0
    wait_s: float = 0.0
    forward_s: float = 0.0
    write_s: float = 0.0
    done: int = 0
    failed: int = 0
    batches: int = 0
    workers: int = 0
    engines: int = 1  # batches that may be in the network at the same time
    stopped: bool = False  # `stop` said so, so that items may be left

    @property
    def images_per_s(self) -> float:
        """Images settled per second of wall time."""
        return (self.done + self.failed) / self.wall_s if self.wall_s else 0.0


def default_workers() -> int:
    """Files decoded at a time by default: one per core this process may use, at most 16."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(16, cores or 1)


def run(
    items: Iterable[tuple[int, Item]],
    load: Callable[[Item], Picture],
    *,
    engine: Engine,
    sink: Sink,
    dtype: str = "float32",
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> StageTimes:
    """Send every item through decoding and the network into `sink`, in order, batch by batch.

    Decoding, network and writing go on at the same time: `load` in threads of its own, the engine
    in as many as it takes calls at once, and the sink in the thread that calls this function.
    Every item is settled exactly once: `put` with the row it came with, or `fail`. A bad image
    takes no slot of a batch; the last batch is padded to the engine's fixed shape.

    Parameters
    ----------
    items : pairs of row number and what `load` takes.
    load : makes one picture; runs in `workers` threads; may raise `ImageError`.
    dtype : what the features are stored as; what overflows it has failed.
    progress : called with the number of images settled since its last call.
    stop : asked after every settled batch and every failed item; once it is true no further batch
        is begun, those under way are settled, and what is done so far is returned, with `stopped`
        set. The items of a batch that was not begun are not settled.

    Raises
    ------
    DiskError
        The sink could not write.
    """
    times = StageTimes(workers=workers or default_workers(), engines=engine.concurrency)
    started = time.perf_counter()
    batch: list[tuple[int, Picture]] = []
    pool = ThreadPoolExecutor(engine.concurrency, thread_name_prefix="featx-engine")
    under_way: deque[_Batch | _Failure] = deque()
    n_batches = 0

    def begin() -> None:
        nonlocal batch, n_batches
        under_way.append(_Batch(batch, pool.submit(_forward, engine, batch)))
        batch = []
        n_batches += 1

    def settle(limit: int) -> None:
        """Hand over what comes first, until no more than `limit` batches are under way."""
        nonlocal n_batches
        while under_way and (n_batches > limit or isinstance(under_way[0], _Failure)):
            first = under_way.popleft()
            n_batches -= isinstance(first, _Batch)
            first.settle(sink, dtype, times)
            if progress:
                progress(len(first))
            times.stopped = times.stopped or bool(stop and stop())

    # one batch waits for each that runs, so that no engine waits while rows are written
    room = 2 * engine.concurrency
    try:
        with closing(_loaded(items, load, times, ahead=room * engine.batch_size)) as loaded:
            for row, result in loaded:
                if isinstance(result, ImageError):
                    under_way.append(_Failure(row, result))
                else:
                    batch.append((row, result))
                    if len(batch) == engine.batch_size:
                        begin()
                settle(room - 1)
                if times.stopped:
                    break
        if batch and not times.stopped:
            begin()
        settle(0)
    finally:
        # After an error nobody waits for what is under way; otherwise nothing is.
        pool.shutdown(wait=False, cancel_futures=True)
    times.wall_s = time.perf_counter() - started
    return times


def _loaded(
    items: Iterable[tuple[int, Item]],
    load: Callable[[Item], Picture],
    times: StageTimes,
    *,
    ahead: int,
) -> Generator[tuple[int, Picture | ImageError]]:
    """Load in threads, `ahead` items before they are needed, and yield in order."""

    def timed(item: Item) -> tuple[Picture | ImageError, float]:
        begun = time.perf_counter()
        try:
            return load(item), time.perf_counter() - begun
        except ImageError as error:
            return error, time.perf_counter() - begun

    queue: deque[tuple[int, Future[tuple[Picture | ImageError, float]]]] = deque()

    def next_done() -> tuple[int, Picture | ImageError]:
        row, future = queue.popleft()
        begun = time.perf_counter()
        result, seconds = future.result()
        times.wait_s += time.perf_counter() - begun
        times.decode_s += seconds
        return row, result

    pool = ThreadPoolExecutor(times.workers, thread_name_prefix="featx-decode")
    try:
        for row, item in items:
            queue.append((row, pool.submit(timed, item)))
            if len(queue) > ahead:
                yield next_done()
        while queue:
            yield next_done()
    finally:
        # Not waited for: after an error or a stop, a file may be hanging. Otherwise all are done.
        pool.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True)
class _Failure:
    """An image that cannot be used; told of after the batches that were full before it came."""

    row: int
    error: ImageError

    def __len__(self) -> int:
        return 1

    def settle(self, sink: Sink, dtype: str, times: StageTimes) -> None:
        """Tell the sink."""
        sink.fail(self.row, self.error.status, str(self.error), self.error.sha256)
        times.failed += 1


@dataclass(frozen=True)
class _Batch:
    """Pictures on their way through the engine."""

    pictures: list[tuple[int, Picture]]
    future: Future[tuple[np.ndarray, float]]

    def __len__(self) -> int:
        return len(self.pictures)

    def settle(self, sink: Sink, dtype: str, times: StageTimes) -> None:
        """Wait for the features and hand them to the sink, those with NaN or infinity as failed."""
        features, seconds = self.future.result()
        begun = time.perf_counter()
        with np.errstate(over="ignore"):  # an overflow becomes infinite, and is told of below
            features = features.astype(dtype, copy=False)
        n = len(self)
        rows = np.array([row for row, _ in self.pictures], np.int64)
        sha256 = np.frombuffer(b"".join(picture.sha256 for _, picture in self.pictures), np.uint8)
        finite = np.isfinite(features.reshape(n, -1)).all(axis=1)
        if finite.any():
            sink.put(rows[finite], features[finite], sha256.reshape(-1, 32)[finite])
        for slot in np.flatnonzero(~finite).tolist():
            row, picture = self.pictures[slot]
            sink.fail(
                row,
                NON_FINITE,
                f"the network gave features that are NaN or infinite in {dtype}",
                picture.sha256,
            )
        times.forward_s += seconds
        times.write_s += time.perf_counter() - begun
        times.done += int(finite.sum())
        times.failed += int((~finite).sum())
        times.batches += 1


def _forward(engine: Engine, batch: list[tuple[int, Picture]]) -> tuple[np.ndarray, float]:
    """Features of a batch, padded to the engine's fixed shape, and the seconds it took."""
    begun = time.perf_counter()
    pixels = np.zeros((engine.batch_size, *batch[0][1].pixels.shape), np.uint8)
    for slot, (_, picture) in enumerate(batch):
        pixels[slot] = picture.pixels
    features = engine(pixels)[: len(batch)]
    return features, time.perf_counter() - begun
