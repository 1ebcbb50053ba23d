"""The stage that runs the network: a folder of images becomes a cache."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from featx.backbones import Backbone
from featx.cache import CacheWriter, Decision, cache_lock, split_counts
from featx.devices import Device
from featx.engines.base import Engine
from featx.engines.choice import Running
from featx.errors import DiskError
from featx.failures import StopAtFailure, check_failures, check_settled
from featx.featureset import FeatureSet, feature_set
from featx.forward import StageTimes, default_workers
from featx.images import ImageTable, list_images
from featx.pipeline import MAX_SAMPLES, Pipeline, build_pipeline
from featx.plans import check_plan, make_plan, plans_by_row, recorded_plans
from featx.specs import ExtractOptions, ExtractRules, make_spec
from featx.target import Job, Look, check_source, recorded_plan, rows_of, target_of


@dataclass(frozen=True)
class Extraction:
    """What an extraction did.

    Attributes
    ----------
    features : the usable rows of the finished cache.
    decision : what was kept, new, changed and gone.
    report : the run report: images, failures, seconds by stage, versions; as in the cache.
    forward_passes : batches that went through the network; 0 where all was there already.
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


def extract(
    images: str | os.PathLike[str],
    *,
    cache_dir: str | os.PathLike[str] = "cache",
    out: str | os.PathLike[str] | None = None,
    **options: Any,
) -> FeatureSet:
    """Features of a folder of images: from the cache if they are there, else computed into it.

    Parameters
    ----------
    images : a folder of class folders (also below ``train/``, ``val/``, ``test/``), a flat
        folder, a CSV, a text list, a glob, or the CUB-200-2011 archive.
    cache_dir : where caches of default names lie.
    out : the cache file, instead of the default name.
    **options : fields of `ExtractOptions` (backbone, weights, cut, pool, decode, device, …) and of
        `ExtractRules` (fresh, prune, retry_failed, rehash, mix_plans, max_failed, on_error).

    Raises
    ------
    InputError, CacheError, LockedError, DiskError, WeightsError, TooManyFailedError
        See `featx.errors`. Rows that were committed before an error are kept for the next run.
    ImageError
        An image that cannot be used, with ``on_error="stop"``.

    Examples
    --------
    >>> features = extract("birds/", backbone="densenet121")  # doctest: +SKIP
    >>> features.X.shape, features.y.shape  # doctest: +SKIP
    ((590, 1024), (590,))
    """
    rules = {field.name for field in fields(ExtractRules)}
    asked = ExtractOptions(**{key: value for key, value in options.items() if key not in rules})
    kept = {key: value for key, value in options.items() if key in rules}
    return run_extraction(images, asked, cache_dir=cache_dir, out=out, **kept).features


def run_extraction(
    images: str | os.PathLike[str],
    options: ExtractOptions,
    *,
    cache_dir: str | os.PathLike[str] = "cache",
    out: str | os.PathLike[str] | None = None,
    listener: Listener | None = None,
    **rules: Any,
) -> Extraction:
    """`extract`, with an account of what was done. Parameters and errors as there.

    Raises
    ------
    StoppedError
        `listener.stop` said so; the images done so far are kept.
    """
    listener, checked = listener or Listener(), ExtractRules(**rules)
    table = list_images(
        images,
        label_from=options.label_from,  # type: ignore[arg-type]  # checked by ExtractOptions
        split_folders=options.split_folders,
        prune=checked.prune,
    )

    def target(backbone: Backbone) -> Path:
        return target_of(images, options, backbone, cache_dir, out)

    purpose = "fresh" if checked.fresh else ""
    job = Job(os.fspath(images), table, target, purpose=purpose)
    return fill_cache(job, options, checked, listener)


def fill_cache(
    job: Job, options: ExtractOptions, rules: ExtractRules, listener: Listener
) -> Extraction:
    """Bring the cache of `job` up to date. Errors as in `extract` and `run_extraction`."""
    table = job.table
    for note in table_notes(table):
        listener.tell(note)
    pipeline, plan = _planned(job, options, rules)
    target = job.target(pipeline.backbone)
    for note in (*pipeline.backbone.notes, *pipeline.front.notes):
        listener.tell(note)
    spec = make_spec(
        options,
        table,
        pipeline.backbone,
        pipeline.front,
        pipeline.engine.feature_shape,
        pipeline.precision,
    )
    listener.tell(
        f"{pipeline.backbone.name} ({pipeline.backbone.weights}), cut {pipeline.front.cut}, "
        f"{pipeline.precision} on {pipeline.device}, {_how(pipeline.engine)}"
    )
    look = Look(job, rules, spec, plan, target, listener.tell)
    decision = look()
    if decision.action == "reuse":  # needs no lock, writes nothing
        return _reused(decision, listener)
    with cache_lock(target):
        decision = look()  # again, now that no other run can change what is there
        if decision.action == "reuse":
            return _reused(decision, listener)
        listener.tell(f"{decision}")
        if decision.kept < len(table) and not rules.mix_plans:
            check_plan(decision, plan)
        check_source(decision, job)
        recorded = recorded_plans(decision.source)  # read before it may be replaced
        report: dict[str, Any] = {
            "source": os.path.abspath(job.source),  # noqa: PTH100 (a glob is no path)
            "purpose": job.purpose,
            "plans": plans_by_row(recorded, decision.source_rows, plan, _missing(decision)),
        }
        writer = _writer(target, table, spec, plan, pipeline.engine.feature_shape, decision, report)
        try:
            pending = writer.pending
            if writer.damaged:
                listener.tell(f"{writer.damaged:,} of the kept rows are damaged: computed again")
                if not rules.mix_plans:
                    check_plan(decision, plan)
                report["plans"] = plans_by_row(recorded, decision.source_rows, plan, pending)
            writer.write_run(report)
            listener.start(len(pending))
            times = pipeline.run(
                ((int(row), table.file(int(row))) for row in pending),
                writer if rules.on_error == "record" else StopAtFailure(writer, table),
                dtype=options.dtype,
                workers=plan["workers"],
                progress=listener.advance,
                stop=listener.stop,
            )
            writer.commit()
            check_settled(writer)
            check_failures(writer.file, rules.max_failed)
            report |= make_report(times, decision)
            del report["purpose"]
            finished = writer.finish(target, report)
        except DiskError:
            raise  # nothing more can be written; what was committed before is kept
        except BaseException:  # Ctrl-C, or memory that ran out: keep every row that is written
            writer.commit()
            raise
        finally:
            writer.close()
    return Extraction(feature_set(finished), decision, finished.run, times.batches)


def _reused(decision: Decision, listener: Listener) -> Extraction:
    assert decision.source is not None
    listener.tell(f"{decision}")
    listener.tell("nothing to do: the cache is up to date, no forward pass was made")
    return Extraction(feature_set(decision.source), decision, decision.source.run, 0)


def make_report(times: StageTimes, decision: Decision) -> dict[str, Any]:
    """What a run did and how fast, as JSON for the run report."""
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
        "workers": times.workers,
    }


def table_notes(table: ImageTable) -> list[str]:
    """What a user should know of an image list before it is used: one sentence each."""
    classes = f", {len(table.classes)} classes" if table.classes else ", unlabelled"
    parts = "".join(f", {count:,} {name}" for name, count in split_counts(table.split).items())
    skipped = "; ".join(f"{count:,} {reason}" for reason, count in table.skipped.items())
    notes = [f"{len(table):,} images in {table.root}{classes}{parts}", *table.notes]
    return [*notes, f"passed over: {skipped}"] if skipped else notes


def _planned(
    job: Job, options: ExtractOptions, rules: ExtractRules
) -> tuple[Pipeline, dict[str, Any]]:
    """The pipeline and its plan; a cache that is there has its own replayed."""

    def replay(backbone: Backbone, device: Device) -> Running:
        recorded = recorded_plan(job, job.target(backbone), device)
        return replace(recorded, threads=None) if rules.mix_plans else recorded

    table = job.table
    rows = np.linspace(0, len(table) - 1, min(len(table), MAX_SAMPLES)).astype(int)
    pipeline = build_pipeline(
        options,
        transform=job.transform,
        replay=replay,
        samples=[table.file(row) for row in rows.tolist()],
    )
    plan = make_plan(
        pipeline.engine,
        pipeline.backbone,
        pipeline.device,
        workers=options.workers or default_workers(),
        threads=pipeline.threads,
        seed=options.seed,
    )
    return pipeline, plan


def _how(engine: Engine) -> str:
    """An engine and its batches, as people read it."""
    side_by_side = f", {engine.concurrency} at a time" if engine.concurrency > 1 else ""
    if engine.batch_size == 1:
        return f"{engine.name}, single images{side_by_side}"
    return f"{engine.name}, batches of {engine.batch_size}{side_by_side}"


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
