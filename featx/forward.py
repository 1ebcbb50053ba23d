"""The pipeline: images in, feature rows out, the engines kept busy. It knows no cache."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Container, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Final, Protocol, TypeVar

import numpy as np

from featx.engines.base import Engine
from featx.errors import ImageError
from featx.loading import Picture, batch_of

Item = TypeVar("Item")

NON_FINITE: Final = 6  # the cache's status for features that are NaN or infinite


class Sink(Protocol):
    """Where rows go: a cache being written, or memory."""

    def put(
        self,
        rows: np.ndarray,
        features: np.ndarray,
        sha256: np.ndarray,
        extent: np.ndarray | None = None,
    ) -> None:
        """Take the features (m, d...) of `rows` (m,) and their images' SHA-256 (m, 32).

        The arrays are its own from then on: nobody changes them. Of pictures that are stored whole
        `extent` (m, 2) uint16 is the height and width.
        """
        ...

    def fail(self, row: int, status: int, reason: str, sha256: bytes) -> None:
        """Take note that the image of `row` has no features, and why."""
        ...


@dataclass(frozen=True)
class Lane:
    """One network that pictures go through, and where its rows go.

    Attributes
    ----------
    engine : the network.
    sink : takes its rows.
    dtype : what the features are stored as; what overflows it has failed.
    wants : the rows it is for; None for all.
    """

    engine: Engine
    sink: Sink
    dtype: str = "float32"
    wants: Container[int] | None = None


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

    @property
    def busy(self) -> dict[str, float]:
        """Share of the wall time, 0 to 1, that each stage was at work with all it has."""
        wall_s = self.wall_s or 1.0
        return {
            "decode": self.decode_s / (wall_s * max(1, self.workers)),
            "forward": self.forward_s / (wall_s * max(1, self.engines)),
            "write": self.write_s / wall_s,
        }


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
    """`run_lanes` with a single lane of `engine`, `sink` and `dtype`.

    Parameters
    ----------
    items : pairs of row number and what `load` takes.
    load : makes one picture; runs in `workers` threads; may raise `ImageError`.
    workers, progress, stop : as of `run_lanes`.
    """
    (times,) = run_lanes(
        items,
        lambda item: (load(item),),
        (Lane(engine, sink, dtype),),
        workers=workers,
        progress=progress,
        stop=stop,
    )
    return times


def run_lanes(
    items: Iterable[tuple[int, Item]],
    load: Callable[[Item], Sequence[Picture | ImageError]],
    lanes: Sequence[Lane],
    *,
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> tuple[StageTimes, ...]:
    """Send every item through decoding and the networks into their sinks, batch by batch.

    Decoding, networks and writing go on at the same time: `load` in threads of its own, each engine
    in as many as it takes calls at once, and the sinks in the thread that calls this function.

    Every item is settled exactly once in every lane that wants it: `put` with the row it came with,
    in the order of the items, or `fail`, once the batches that were full before it are settled. A
    bad image takes no slot of a batch; the last batch is padded to the engine's fixed shape.

    Parameters
    ----------
    items : pairs of row number and what `load` takes.
    load : makes the pictures of one item, one for each lane, or says why there is none; runs in
        `workers` threads; may raise an `ImageError` that is meant for every lane.
    lanes : at least one.
    progress : called with the number of rows settled since its last call.
    stop : asked after every settled batch and every failed item; once it is true no further batch
        is begun, those under way are settled, and what is done so far is returned, with `stopped`
        set. The items of a batch that was not begun are not settled.

    Returns
    -------
    The times of each lane; those of decoding and of the wall are shared by all.

    Raises
    ------
    DiskError
        A sink could not write.
    """
    shared = StageTimes(workers=workers or default_workers())
    started = time.perf_counter()

    def settled(n: int) -> None:
        if progress:
            progress(n)
        shared.stopped = shared.stopped or bool(stop and stop())

    flows = [_Flow(lane, settled) for lane in lanes]
    ahead = max(flow.room * flow.engine.batch_size for flow in flows)
    try:
        with closing(_loaded(items, load, len(lanes), shared, ahead=ahead)) as loaded:
            for row, results in loaded:
                for flow, result in zip(flows, results, strict=True):
                    flow.take(row, result)
                if shared.stopped:
                    break
        for flow in flows:
            flow.end(begin_last=not shared.stopped)
    finally:
        for flow in flows:
            flow.close()
    shared.wall_s = time.perf_counter() - started
    return tuple(flow.times_with(shared) for flow in flows)


def _loaded(
    items: Iterable[tuple[int, Item]],
    load: Callable[[Item], Sequence[Picture | ImageError]],
    n_lanes: int,
    times: StageTimes,
    *,
    ahead: int,
) -> Generator[tuple[int, Sequence[Picture | ImageError]]]:
    """Load in threads, `ahead` items before they are needed, and yield in order."""

    def timed(item: Item) -> tuple[Sequence[Picture | ImageError], float]:
        begun = time.perf_counter()
        try:
            return load(item), time.perf_counter() - begun
        except ImageError as error:
            return (error,) * n_lanes, time.perf_counter() - begun

    queue: deque[tuple[int, Future[tuple[Sequence[Picture | ImageError], float]]]] = deque()

    def next_done() -> tuple[int, Sequence[Picture | ImageError]]:
        row, future = queue.popleft()
        begun = time.perf_counter()
        results, seconds = future.result()
        times.wait_s += time.perf_counter() - begun
        times.decode_s += seconds
        return row, results

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


class _Flow:
    """A lane at work: pictures waiting for a batch, and batches under way.

    Parameters
    ----------
    lane : what it is for.
    settled : called with the number of rows that were just settled.
    """

    def __init__(self, lane: Lane, settled: Callable[[int], None]) -> None:
        self.engine = lane.engine
        # one batch waits for each that runs, so that no engine waits while rows are written
        self.room = 2 * lane.engine.concurrency
        self._lane, self._settled = lane, settled
        self._times = StageTimes(engines=lane.engine.concurrency)
        self._batch: list[tuple[int, Picture]] = []
        self._under_way: deque[_Batch | _Failure] = deque()
        self._n_batches = 0
        self._pool = ThreadPoolExecutor(lane.engine.concurrency, thread_name_prefix="featx-engine")

    def take(self, row: int, result: Picture | ImageError) -> None:
        """Take what became of the image of `row`, and settle what has to make room for it."""
        if self._lane.wants is not None and row not in self._lane.wants:
            return
        if isinstance(result, ImageError):
            self._under_way.append(_Failure(row, result))
        else:
            self._batch.append((row, result))
            if len(self._batch) == self.engine.batch_size:
                self._begin()
        self._settle(self.room - 1)

    def end(self, *, begin_last: bool) -> None:
        """Settle all batches, with `begin_last` also the one that is not full."""
        if self._batch and begin_last:
            self._begin()
        self._settle(0)

    def close(self) -> None:
        """Let go of the threads. After an error nobody waits for what is under way."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def times_with(self, shared: StageTimes) -> StageTimes:
        """The times of this lane, with what all lanes share."""
        return replace(
            self._times,
            wall_s=shared.wall_s,
            decode_s=shared.decode_s,
            wait_s=shared.wait_s,
            workers=shared.workers,
            stopped=shared.stopped,
        )

    def _begin(self) -> None:
        batch, self._batch = self._batch, []
        self._under_way.append(_Batch(batch, self._pool.submit(_forward, self.engine, batch)))
        self._n_batches += 1

    def _settle(self, limit: int) -> None:
        """Hand over what comes first, until no more than `limit` batches are under way."""
        under_way = self._under_way
        while under_way and (self._n_batches > limit or isinstance(under_way[0], _Failure)):
            first = under_way.popleft()
            self._n_batches -= isinstance(first, _Batch)
            first.settle(self._lane, self._times)
            self._settled(len(first))


@dataclass(frozen=True)
class _Failure:
    """An image that cannot be used; told of after the batches that were full before it came."""

    row: int
    error: ImageError

    def __len__(self) -> int:
        return 1

    def settle(self, lane: Lane, times: StageTimes) -> None:
        """Tell the sink."""
        lane.sink.fail(self.row, self.error.status, str(self.error), self.error.sha256)
        times.failed += 1


@dataclass(frozen=True)
class _Batch:
    """Pictures on their way through the engine."""

    pictures: list[tuple[int, Picture]]
    future: Future[tuple[np.ndarray, float]]

    def __len__(self) -> int:
        return len(self.pictures)

    def settle(self, lane: Lane, times: StageTimes) -> None:
        """Wait for the features and hand them to the sink, those with NaN or infinity as failed."""
        features, seconds = self.future.result()
        begun = time.perf_counter()
        with np.errstate(over="ignore"):  # an overflow becomes infinite, and is told of below
            features = features.astype(lane.dtype, copy=False)
        n = len(self)
        rows = np.array([row for row, _ in self.pictures], np.int64)
        sha256 = np.frombuffer(b"".join(picture.sha256 for _, picture in self.pictures), np.uint8)
        finite = np.isfinite(features.reshape(n, -1)).all(axis=1)
        if finite.any():
            good = rows[finite], features[finite], sha256.reshape(-1, 32)[finite]
            if self.pictures[0][1].extent is None:
                lane.sink.put(*good)
            else:
                extent = np.array([picture.extent for _, picture in self.pictures], np.uint16)
                lane.sink.put(*good, extent[finite])
        for slot in np.flatnonzero(~finite).tolist():
            row, picture = self.pictures[slot]
            lane.sink.fail(
                row,
                NON_FINITE,
                f"the network gave features that are NaN or infinite in {lane.dtype}",
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
    pixels = batch_of([picture for _, picture in batch], engine.batch_size)
    features = engine(pixels)[: len(batch)]
    return features, time.perf_counter() - begun
