"""The stage that runs the network: a folder of images becomes a cache."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featx.backbones import Backbone
from featx.cache import (
    CacheFile,
    CacheWriter,
    Decision,
    Rows,
    Status,
    cache_lock,
    decide,
    open_cache,
    partial_path,
    split_counts,
)
from featx.devices import Device, default_batch_size
from featx.engines.base import Engine
from featx.errors import CacheError, DiskError, InputError, TooManyFailedError
from featx.featureset import FeatureSet, feature_set
from featx.forward import StageTimes, default_workers
from featx.images import ImageTable, list_images
from featx.pipeline import build_pipeline
from featx.plans import check_plan, make_plan, plans_by_row
from featx.specs import ExtractOptions, default_name, make_spec


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
    """Where an extraction says what it does; the defaults say nothing.

    Attributes
    ----------
    tell : called with a sentence.
    start : called with the number of images to compute, once.
    advance : called with the number of images settled since.
    """

    tell: Callable[[str], None] = lambda sentence: None
    start: Callable[[int], None] = lambda total: None
    advance: Callable[[int], None] = lambda count: None


def extract(
    images: str | os.PathLike[str],
    *,
    cache_dir: str | os.PathLike[str] = "cache",
    out: str | os.PathLike[str] | None = None,
    fresh: bool = False,
    prune: bool = False,
    retry_failed: bool = False,
    mix_plans: bool = False,
    **options: Any,
) -> FeatureSet:
    """Features of a folder of images: from the cache if they are there, else computed into it.

    Parameters
    ----------
    images : a folder of class folders (also below ``train/``, ``val/``, ``test/``), a flat
        folder, a CSV, a text list, a glob, or the CUB-200-2011 archive.
    cache_dir : where caches of default names lie.
    out : the cache file, instead of the default name.
    fresh : start over, replacing what is there.
    prune : accept that the folder has moved or that more than a tenth of its images are gone.
    retry_failed : try images again that failed before.
    mix_plans : add rows even where machine, device or versions differ from those of the cache.
    **options : fields of `ExtractOptions`: backbone, weights, cut, pool, decode, device, ….

    Raises
    ------
    InputError, CacheError, LockedError, DiskError, WeightsError, TooManyFailedError
        See `featx.errors`. Rows that were committed before an error are kept for the next run.

    Examples
    --------
    >>> features = extract("birds/", backbone="densenet121")  # doctest: +SKIP
    >>> features.X.shape, features.y.shape  # doctest: +SKIP
    ((590, 1024), (590,))
    """
    return run_extraction(
        images,
        ExtractOptions(**options),
        cache_dir=cache_dir,
        out=out,
        fresh=fresh,
        prune=prune,
        retry_failed=retry_failed,
        mix_plans=mix_plans,
    ).features


def run_extraction(
    images: str | os.PathLike[str],
    options: ExtractOptions,
    *,
    cache_dir: str | os.PathLike[str] = "cache",
    out: str | os.PathLike[str] | None = None,
    fresh: bool = False,
    prune: bool = False,
    retry_failed: bool = False,
    mix_plans: bool = False,
    listener: Listener | None = None,
) -> Extraction:
    """`extract`, with an account of what was done. Parameters and errors as there."""
    listener = listener or Listener()
    table = list_images(images, label_from=options.label_from, split_folders=options.split_folders)  # type: ignore[arg-type]  # checked by ExtractOptions
    for note in table_notes(table):
        listener.tell(note)
    pipeline = build_pipeline(
        options,
        batch_size=lambda backbone, device: _planned_batch_size(
            _target(images, options, backbone, cache_dir, out), device, fresh=fresh
        ),
    )
    backbone, front, engine = pipeline.backbone, pipeline.front, pipeline.engine
    for note in (*backbone.notes, *front.notes):
        listener.tell(note)
    target = _target(images, options, backbone, cache_dir, out)
    spec = make_spec(options, table, backbone, front, engine.feature_shape, pipeline.precision)
    workers = options.workers or default_workers()
    plan = make_plan(engine, backbone, pipeline.device, workers=workers, seed=options.seed)
    listener.tell(
        f"{backbone.name} ({backbone.weights}), cut {front.cut}, {pipeline.precision} on "
        f"{pipeline.device}, batches of {engine.batch_size}"
    )

    def look() -> Decision:
        return decide(
            _rows(table),
            spec,
            root=os.fspath(table.root),
            complete=_existing(target) if not fresh else None,
            partial=_existing(partial_path(target)) if not fresh else None,
            same_content=lambda i, sha256: _has_content(table.file(i), sha256),
            fresh=fresh,
            prune=prune,
            retry_failed=retry_failed,
        )

    decision = look()
    if decision.action == "reuse" and decision.source is not None:  # needs no lock, writes nothing
        listener.tell(f"{decision}")
        listener.tell("nothing to do: the cache is up to date, no forward pass was made")
        return Extraction(feature_set(decision.source), decision, decision.source.run, 0)
    with cache_lock(target):
        decision = look()  # again, now that no other run can change what is there
        listener.tell(f"{decision}")
        check_plan(decision, plan, mix_plans=mix_plans)
        writer = _writer(target, table, spec, plan, engine, decision)
        try:
            pending = writer.pending
            plans = plans_by_row(decision, plan, pending)
            writer.write_run({"plans": plans})
            listener.start(len(pending))
            times = pipeline.run(
                ((int(row), table.file(int(row))) for row in pending),
                writer,
                dtype=options.dtype,
                workers=workers,
                progress=listener.advance,
            )
            writer.commit()
            _check_usable(writer.file)
            report = make_report(times, decision, plans)
            finished = writer.finish(target, report)
        except DiskError:
            raise  # nothing more can be written; what was committed before is kept
        except BaseException:  # Ctrl-C, or memory that ran out: keep every row that is written
            writer.commit()
            raise
        finally:
            writer.close()
    return Extraction(feature_set(finished), decision, report, times.batches)


def make_report(
    times: StageTimes, decision: Decision, plans: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The run report, as JSON: what happened, how fast, and which rows under which plan."""
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
        "plans": list(plans),
    }


def table_notes(table: ImageTable) -> list[str]:
    """What a user should know of an image list before it is used: one sentence each."""
    classes = f", {len(table.classes)} classes" if table.classes else ", unlabelled"
    parts = "".join(f", {count:,} {name}" for name, count in split_counts(table.split).items())
    skipped = "; ".join(f"{count:,} {reason}" for reason, count in table.skipped.items())
    notes = [f"{len(table):,} images in {table.root}{classes}{parts}", *table.notes]
    return [*notes, f"passed over: {skipped}"] if skipped else notes


def _rows(table: ImageTable) -> Rows:
    return Rows(
        paths=table.paths,
        labels=table.labels,
        split=table.split,
        groups=table.groups,
        size_bytes=table.size_bytes,
        mtime_ns=table.mtime_ns,
        classes=table.classes,
    )


def _existing(path: Path) -> CacheFile | None:
    if not path.exists():
        return None
    try:
        return open_cache(path, partial=True)
    except CacheError as error:
        raise CacheError(
            f"{error}. Say --fresh to replace it, or name another with --out"
        ) from error


def _target(
    images: str | os.PathLike[str],
    options: ExtractOptions,
    backbone: Backbone,
    cache_dir: str | os.PathLike[str],
    out: str | os.PathLike[str] | None,
) -> Path:
    if out is None:
        return Path(cache_dir) / default_name(images, options, backbone)
    if Path(out).suffix != ".h5" or Path(out).is_dir():
        raise InputError(f"--out names the cache file, which ends in .h5, got {os.fspath(out)!r}")
    return Path(out)


def _planned_batch_size(target: Path, device: Device, *, fresh: bool) -> int:
    """The batch size of the cache that is there, so that a resume replays it, or the default."""
    for path in () if fresh else (partial_path(target), target):
        if path.exists():
            try:
                plan = open_cache(path, partial=True).plan
            except CacheError:  # told of where it matters: when the cache is about to be used
                continue
            if plan.get("device") == device.kind and isinstance(plan.get("batch_size"), int):
                return max(1, plan["batch_size"])
    return default_batch_size(device)


def _has_content(path: Path, sha256: bytes) -> bool:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").digest() == sha256
    except OSError:
        return False  # it will be told of when it is read again


def _writer(
    target: Path,
    table: ImageTable,
    spec: Mapping[str, Any],
    plan: Mapping[str, Any],
    engine: Engine,
    decision: Decision,
) -> CacheWriter:
    if decision.action == "resume":
        return CacheWriter.resume(target)
    return CacheWriter.create(
        target,
        _rows(table),
        root=os.fspath(table.root),
        spec=spec,
        plan=decision.source.plan if decision.source else plan,  # of the rows that are kept
        feature_shape=engine.feature_shape,
        dtype=spec["dtype"],
        source=decision.source,
        source_rows=decision.source_rows,
    )


def _check_usable(file: CacheFile) -> None:
    """Stop before the rename where not a single image could be used."""
    counts = {status.words: count for status, count in file.counts().items() if count}
    if not file.counts()[Status.DONE]:
        told = ", ".join(f"{count:,} {words}" for words, count in counts.items())
        raise TooManyFailedError(
            f"none of the {len(file):,} images could be used ({told}); nothing was finished, "
            f"what is known lies in {file.path}. Mend the images, then say --retry-failed"
        )
