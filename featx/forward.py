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

    Every item is settled exactly once: `put` with the row it came with, or `fail`. A bad image
    takes no slot of a batch; the last batch is padded to the engine's fixed shape.

    Parameters
    ----------
    items : pairs of row number and what `load` takes.
    load : makes one picture; runs in `workers` threads; may raise `ImageError`.
    dtype : what the features are stored as; what overflows it has failed.
    progress : called with the number of images settled since its last call.
    stop : asked after every settled batch and every failed item; once it is true no further batch
        is begun, and what is done so far is returned, with `stopped` set. The items of a batch
        that was not begun are not settled.

    Raises
    ------
    DiskError
        The sink could not write.
    """
    times = StageTimes(workers=workers or default_workers())
    started = time.perf_counter()
    batch: list[tuple[int, Picture]] = []
    with closing(_loaded(items, load, times, ahead=2 * engine.batch_size)) as loaded:
        for row, result in loaded:
            if isinstance(result, ImageError):
                sink.fail(row, result.status, str(result), result.sha256)
                times.failed += 1
                if progress:
                    progress(1)
            else:
                batch.append((row, result))
                if len(batch) < engine.batch_size:
                    continue
                _settle(batch, engine, sink, dtype, times, progress)
                batch = []
            if stop and stop():
                times.stopped = True
                break
    if batch and not times.stopped:
        _settle(batch, engine, sink, dtype, times, progress)
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


def _settle(
    batch: list[tuple[int, Picture]],
    engine: Engine,
    sink: Sink,
    dtype: str,
    times: StageTimes,
    progress: Callable[[int], None] | None,
) -> None:
    """Run one batch and hand its rows to the sink, those with NaN or infinity as failed."""
    begun = time.perf_counter()
    pixels = np.zeros((engine.batch_size, *batch[0][1].pixels.shape), np.uint8)
    for slot, (_, picture) in enumerate(batch):
        pixels[slot] = picture.pixels
    features = engine(pixels)[: len(batch)]
    with np.errstate(over="ignore"):  # an overflow becomes infinite, and is told of below
        features = features.astype(dtype, copy=False)
    ran = time.perf_counter()
    rows = np.array([row for row, _ in batch], np.int64)
    sha256 = np.frombuffer(b"".join(picture.sha256 for _, picture in batch), np.uint8)
    finite = np.isfinite(features.reshape(len(batch), -1)).all(axis=1)
    if finite.any():
        sink.put(rows[finite], features[finite], sha256.reshape(-1, 32)[finite])
    for slot in np.flatnonzero(~finite).tolist():
        row, picture = batch[slot]
        sink.fail(
            row,
            NON_FINITE,
            f"the network gave features that are NaN or infinite in {dtype}",
            picture.sha256,
        )
    times.forward_s += ran - begun
    times.write_s += time.perf_counter() - ran
    times.done += int(finite.sum())
    times.failed += int((~finite).sum())
    times.batches += 1
    if progress:
        progress(len(batch))
