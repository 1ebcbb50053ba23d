"""Caches on their way to being whole: several at once, each image read and decoded once."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from featx.cache import CacheWriter, Decision, cache_lock, size_of, split_counts
from featx.counting import counted
from featx.datasets.packed import find
from featx.devices import Device
from featx.engines.base import how
from featx.engines.choice import Running
from featx.errors import DiskError, FeatxError, InputError, StoppedError, TooManyFailedError
from featx.failures import StopAtFailure, check_failures, check_settled
from featx.featureset import FeatureSet, feature_set
from featx.forward import Lane, StageTimes, default_workers
from featx.identity import BackboneIdentity
from featx.images import ImageTable
from featx.memory import peak_memory_bytes
from featx.passes import Pipeline, run_together
from featx.pipeline import MAX_SAMPLES, build_pipeline
from featx.plans import check_plan, make_plan, plans_by_row, recorded_plans
from featx.room import check_room, size_in_bytes
from featx.specs import ExtractOptions, ExtractRules, make_spec
from featx.target import Job, Look, check_source, recorded_plan, rows_of


@dataclass(frozen=True)
class Extraction:
    """What an extraction did.

    Attributes
    ----------
    features : the usable rows of the finished cache.
    decision : what was kept, new, changed and gone.
    report : the run report: images, failures, seconds by stage, versions; as in the cache.
    forward_passes : batches that went through the network; 0 where all was there already, and
        for pixels.
    """

    features: FeatureSet
    decision: Decision
    report: Mapping[str, Any]
    forward_passes: int


@dataclass(frozen=True)
class Listener:
    """Where an extraction says what it does, and is told to stop; the defaults do neither.

    Attributes
    ----------
    tell : called with a sentence.
    start : called with the number of images to compute, once.
    advance : called with the number of images settled since.
    stop : asked after every batch; once it says true, no other is begun.
    """

    tell: Callable[[str], None] = lambda sentence: None
    start: Callable[[int], None] = lambda total: None
    advance: Callable[[int], None] = lambda count: None
    stop: Callable[[], bool] = lambda: False


class Filling:
    """One cache that is to be brought up to date.

    Parameters
    ----------
    job, options, rules : what is asked.
    listener : is told how it will be done.
    told : notes that it has been told, in this pass; more are added.

    Attributes
    ----------
    target : the cache file.
    pipeline : what makes its rows.
    extraction : what was done, once it is.
    """

    def __init__(
        self,
        job: Job,
        options: ExtractOptions,
        rules: ExtractRules,
        listener: Listener,
        told: set[str],
    ) -> None:
        self._job, self._rules, self._listener = job, rules, listener
        self.pipeline, self.plan = _planned(job, options, rules)
        self.target = job.target(self.pipeline.backbone)
        self.extraction: Extraction | None = None
        backbone, front, engine = self.pipeline.backbone, self.pipeline.front, self.pipeline.engine
        for note in (*backbone.notes, *front.notes):
            if note not in told:  # as of another cut of the same network
                told.add(note)
                listener.tell(note)
        self._spec = make_spec(
            options, job.table, backbone, front, engine.feature_shape, self.pipeline.precision
        )
        run = f"{self.pipeline.precision} on {self.pipeline.device}, {how(engine)}"
        if front.is_pixels:
            run = "pixels as they would enter the network, which is not executed"
        listener.tell(f"{backbone.name} ({backbone.weights}), cut {front.cut}, {run}")
        self._look = Look(job, rules, self._spec, self.plan, self.target, listener.tell)

    def is_whole(self) -> bool:
        """Look at what lies there; whether nothing is left to do, which needs no lock."""
        self._decision = self._look()
        if self._decision.action != "reuse":
            return False
        assert self._decision.source is not None
        self._listener.tell(f"{self._decision}")
        self._listener.tell("nothing to do: the cache is up to date, no forward pass was made")
        source = self._decision.source
        self.extraction = Extraction(feature_set(source), self._decision, source.run, 0)
        return True

    @property
    def new_bytes(self) -> int:
        """What the file that is to be made will take; 0 where an unfinished one goes on."""
        if self._decision.action == "resume":
            return 0
        shape = self.pipeline.engine.feature_shape
        has_extent = "store_size" in self._spec
        rows = rows_of(self._job.table)
        return size_of(rows, shape, self._spec["dtype"], has_extent=has_extent)

    def begin(self) -> None:
        """Make or open the file that the rows go into. The cache is locked, and not whole."""
        job, decision, plan = self._job, self._decision, self.plan
        self._listener.tell(f"{decision}")
        if decision.kept < len(job.table) and not self._rules.mix_plans:
            check_plan(decision, plan)
        check_source(decision, job)
        recorded = recorded_plans(decision.source)  # read before it may be replaced
        self._report: dict[str, Any] = {
            "source": os.path.abspath(job.source),  # noqa: PTH100 (a glob is no path)
            "purpose": job.purpose,
            "plans": plans_by_row(recorded, decision.source_rows, plan, _missing(decision)),
        }
        shape = self.pipeline.engine.feature_shape
        self._writer = _writer(
            self.target, job.table, self._spec, plan, shape, decision, self._report
        )
        try:
            self.pending = self._writer.pending
            if self._writer.damaged:
                damaged = f"{self._writer.damaged:,} of the kept rows are damaged: computed again"
                self._listener.tell(damaged)
                if not self._rules.mix_plans:
                    check_plan(decision, plan)
                plans = plans_by_row(recorded, decision.source_rows, plan, self.pending)
                self._report["plans"] = plans
            self._writer.write_run(self._report)
        except BaseException:
            self._writer.close()
            raise

    def lane(self, *, alone: bool) -> Lane:
        """Where pictures become rows of this cache; `alone`: there is no other."""
        writer = self._writer
        sink = (
            writer if self._rules.on_error == "record" else StopAtFailure(writer, self._job.table)
        )
        wants = None if alone else frozenset(self.pending.tolist())
        return Lane(self.pipeline.engine, sink, self._spec["dtype"], wants)

    def commit(self) -> None:
        """Vouch for every row that is written."""
        self._writer.commit()

    def close(self) -> None:
        """Let go of the file."""
        self._writer.close()

    def finish(self, times: StageTimes) -> None:
        """Give the file its final name.

        Raises
        ------
        StoppedError, TooManyFailedError
            Rows are left to do, or too few of the images could be used.
        """
        self.commit()
        check_settled(self._writer)
        check_failures(self._writer.file, self._rules.max_failed)
        self._report |= make_report(times, self._decision)
        del self._report["purpose"]
        finished = self._writer.finish(self.target, self._report)
        passes = 0 if self.pipeline.front.is_pixels else times.batches
        self.extraction = Extraction(feature_set(finished), self._decision, finished.run, passes)


def fill_caches(
    asked: Sequence[tuple[Job, ExtractOptions]], rules: ExtractRules, listener: Listener
) -> tuple[Extraction, ...]:
    """Bring caches of one list of images up to date, in one pass over the images.

    Parameters
    ----------
    asked : jobs of the same images, each with what its cache is to hold.
    rules, listener : for all of them.

    Raises
    ------
    InputError
        Two of them are for one cache.
    CacheError, LockedError, DiskError, StoppedError, TooManyFailedError, ImageError, WeightsError
        See `featx.extraction.extract`. Caches that were whole before an error are finished.
    """
    for note in table_notes(asked[0][0].table):
        listener.tell(note)
    told: set[str] = set()
    fillings = [Filling(job, options, rules, listener, told) for job, options in asked]
    targets = [filling.target.absolute() for filling in fillings]
    for i, target in enumerate(targets):
        if target in targets[:i]:
            raise InputError(f"two of what is asked for would go into {target}; ask for one")
    with ExitStack() as stack:
        waiting = []
        for filling in fillings:
            if filling.is_whole():
                continue
            stack.enter_context(cache_lock(filling.target))
            if not filling.is_whole():  # again, now that no other run can change what is there
                waiting.append(filling)
        if new := [(filling.target, size) for filling in waiting if (size := filling.new_bytes)]:
            listener.tell(check_room(new, size_in_bytes(rules.max_size)))
        for filling in waiting:
            filling.begin()
            stack.callback(filling.close)
        if waiting:
            _compute(waiting, asked[0][0].table, listener)
    found = [filling.extraction for filling in fillings]
    assert all(found), "what is not whole has raised"
    return tuple(extraction for extraction in found if extraction)


def _compute(begun: Sequence[Filling], table: ImageTable, listener: Listener) -> None:
    """Send every image that a cache lacks through its network, and finish the caches."""
    listener.start(sum(len(filling.pending) for filling in begun))
    first: FeatxError | None = None
    try:
        # the number of threads is the process's: caches that resume under another wait their turn
        stopped = False
        for threads in sorted({filling.pipeline.threads for filling in begun}):
            together = [filling for filling in begun if filling.pipeline.threads == threads]
            pending = np.unique(np.concatenate([filling.pending for filling in together]))
            times = (StageTimes(),) * len(together)
            if not stopped:
                times = run_together(
                    [filling.pipeline for filling in together],
                    [filling.lane(alone=len(together) == 1) for filling in together],
                    ((row, table.file(row)) for row in pending.tolist()),
                    workers=max(filling.plan["workers"] for filling in together),
                    progress=listener.advance,
                    stop=listener.stop,
                )
            stopped = stopped or times[0].stopped
            for filling, its_times in zip(together, times, strict=True):
                try:
                    filling.finish(its_times)
                except (StoppedError, TooManyFailedError) as error:
                    first = first or error
        if first:
            raise first
    except BaseException as error:  # Ctrl-C, memory that ran out: keep every row that is written
        for filling in begun:
            if filling.extraction is None:
                with suppress(DiskError):  # nothing more can be written there
                    filling.commit()
        raise error


def make_report(times: StageTimes, decision: Decision) -> dict[str, Any]:
    """What a run did and how fast, as JSON for the run report."""
    busy = times.busy
    slowest = max(busy, key=lambda stage: busy[stage])
    return {
        "images": times.done + times.failed,
        "done": times.done,
        "failed": times.failed,
        "kept": decision.kept,
        "images_per_s": round(times.images_per_s, 2),
        "seconds": {
            name: round(getattr(times, f"{name}_s"), 3)
            for name in ("wall", "decode", "wait", "forward", "write")
        },
        "busy": {stage: round(share, 3) for stage, share in busy.items()},
        "slowest": slowest,
        "workers": times.workers,
        "peak_memory_bytes": peak_memory_bytes(),
    }


def table_notes(table: ImageTable) -> list[str]:
    """What a user should know of an image list before it is used: one sentence each."""
    classes = (
        f", {counted(len(table.classes), 'class', 'classes')}" if table.classes else ", unlabelled"
    )
    parts = "".join(f", {count:,} {name}" for name, count in split_counts(table.split).items())
    skipped = "; ".join(f"{count:,} {reason}" for reason, count in table.skipped.items())
    place = find(table.root)
    where = table.root if place is None or place.data_set.folder is not None else place.name
    notes = [f"{counted(len(table), 'image')} in {where}{classes}{parts}", *table.notes]
    return [*notes, f"passed over: {skipped}"] if skipped else notes


def _planned(
    job: Job, options: ExtractOptions, rules: ExtractRules
) -> tuple[Pipeline, dict[str, Any]]:
    """The pipeline and its plan; a cache that is there has its own replayed."""

    def replay(backbone: BackboneIdentity, device: Device) -> Running:
        recorded = recorded_plan(job, job.target(backbone), device)
        return replace(recorded, threads=None) if rules.mix_plans else recorded

    table = job.table
    rows = np.linspace(0, len(table) - 1, min(len(table), MAX_SAMPLES)).astype(int)
    pipeline = build_pipeline(
        options,
        transform=job.transform,
        replay=replay,
        samples=[table.file(row) for row in rows.tolist()],
        quick=True,
    )
    plan = make_plan(
        pipeline.engine,
        pipeline.backbone,
        pipeline.device,
        versions=pipeline.versions,
        workers=options.workers or default_workers(),
        threads=1 if pipeline.front.is_pixels else pipeline.threads,  # that compute
        seed=options.seed,
    )
    return pipeline, plan


def _writer(
    target: Path,
    table: ImageTable,
    spec: Mapping[str, Any],
    plan: Mapping[str, Any],
    feature_shape: tuple[int, ...],
    decision: Decision,
    report: Mapping[str, Any],
) -> CacheWriter:
    if decision.action == "resume":
        return CacheWriter.resume(target)
    return CacheWriter.create(
        target,
        rows_of(table),
        root=os.fspath(table.root),
        spec=spec,
        plan=decision.source.plan if decision.source else plan,  # of the rows that are kept
        feature_shape=feature_shape,
        dtype=spec["dtype"],
        run=report,
        source=decision.source,
        source_rows=decision.source_rows,
    )


def _missing(decision: Decision) -> np.ndarray:
    """(m,) int64 numbers of the rows that no cache has."""
    return np.flatnonzero(decision.source_rows < 0)
