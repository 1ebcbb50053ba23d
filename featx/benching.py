"""The stage that measures the others: how fast each runs on this machine, and its limits."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from featx.cache import Status
from featx.cache.files import told_as_disk_error
from featx.datasets.packed import located
from featx.devices import torch_threads
from featx.drawing import SPECIES, draw_birds
from featx.engines.base import how
from featx.errors import InputError, TooManyFailedError
from featx.featureset import FailedImage
from featx.forward import default_workers
from featx.images import ImageTable, list_images
from featx.interrupts import at_the_end
from featx.limits import bare_decoder, flops_per_image, gemm_flops_per_s, gemm_precision
from featx.passes import Pipeline
from featx.pipeline import MAX_SAMPLES, build_pipeline
from featx.rates import Rates, StageRate
from featx.specs import ExtractOptions
from featx.stopwatch import (
    Decoded,
    decode_in_processes,
    decode_on_one_core,
    end_to_end,
    forward,
    write,
)

MAX_IMAGES: Final = 192  # of a folder; evenly spread over it
_DRAWN_PER_SPECIES: Final = 10
_DRAWN_WIDTH, _DRAWN_ASPECT = 476, 0.75  # 500 x 375 pixels on average


def bench(
    images: str | os.PathLike[str] | None = None,
    *,
    seconds: float = 3.0,
    cache_dir: str | os.PathLike[str] = "cache",
    data_root: str | os.PathLike[str] = "data",
    tell: Callable[[str], None] = lambda sentence: None,
    **options: Any,
) -> Rates:
    """How fast each stage of an extraction runs on this machine, and which is the bottleneck.

    Parameters
    ----------
    images : as for `featx.extract`, of which at most 192 are used; None: pictures that featx draws.
    seconds : how long each stage is measured.
    cache_dir : where caches lie: in it, or above it where it is not there yet, a folder is made
        that is removed at the end.
    data_root : as for `featx.extract`.
    tell : called with sentences on what is being done.
    **options : fields of `featx.specs.ExtractOptions`: backbone, weights, cut, pool, engine, …

    Raises
    ------
    InputError, WeightsError, DiskError
        As `featx.extract`.
    TooManyFailedError
        None of the images can be used.

    Examples
    --------
    >>> rates = bench("birds/", backbone="densenet121")  # doctest: +SKIP
    >>> rates.forward.images_per_s, rates.bottleneck  # doctest: +SKIP
    (25.2, 'forward')
    """
    if not (math.isfinite(seconds) and seconds > 0):
        raise InputError(f"seconds must be a number above 0, got {seconds}")
    asked = ExtractOptions(**options)
    images = None if images is None else located(images, data_root)
    with _temporary_folder(Path(cache_dir)) as folder:
        table, source = _images(images, asked, folder, tell)
        chosen = np.linspace(0, len(table) - 1, min(len(table), MAX_IMAGES)).astype(int).tolist()
        files = [table.file(row) for row in chosen]
        pipeline = build_pipeline(asked, samples=files[:MAX_SAMPLES])
        for note in (*pipeline.backbone.notes, *pipeline.front.notes):
            tell(note)
        workers = asked.workers or default_workers()
        tell("measuring how fast images are decoded")
        decoded = decode_in_processes(pipeline.loader, files, workers=workers, seconds=seconds)
        names = [os.fsdecode(table.paths[row]) for row in chosen]
        failed = tuple(
            FailedImage(names[i], Status(error.status), str(error)) for i, error in decoded.failed
        )
        if not decoded.files:
            raise TooManyFailedError(
                f"none of the {len(files):,} images that were tried can be used, "
                f"the first ({failed[0].path}) because: {failed[0].reason}"
            )
        work = _Work(pipeline, decoded, workers, seconds, folder, source, tell)
        return replace(_measured(work), failed=failed)


@contextmanager
def _temporary_folder(cache_dir: Path) -> Iterator[Path]:
    """A new folder beside caches; nothing of it stays, whatever happens."""
    place = next(path for path in (cache_dir, *cache_dir.absolute().parents) if path.is_dir())
    advice = "Mend permissions or name another place with --cache-dir"
    with told_as_disk_error(place, "make a folder in", advice):
        folder = Path(tempfile.mkdtemp(prefix=".featx-bench-", dir=place))
    with at_the_end(partial(shutil.rmtree, folder, ignore_errors=True)):
        yield folder


def _images(
    images: str | os.PathLike[str] | None,
    options: ExtractOptions,
    folder: Path,
    tell: Callable[[str], None],
) -> tuple[ImageTable, str]:
    """The images, and what they are called."""
    if images is not None:
        table = list_images(
            images,
            label_from=options.label_from,  # type: ignore[arg-type]  # checked by ExtractOptions
            split_folders=options.split_folders,
        )
        return table, "images"
    tell(f"no images named: drawing {_DRAWN_PER_SPECIES * len(SPECIES)} pictures")
    drawn = folder / "drawn"
    with told_as_disk_error(drawn, "write"):
        draw_birds(
            drawn,
            images_per_species=_DRAWN_PER_SPECIES,
            size_px=_DRAWN_WIDTH,
            aspect=_DRAWN_ASPECT,
        )
    return list_images(drawn), "drawn images"


@dataclass(frozen=True)
class _Work:
    """What is measured, and with what."""

    pipeline: Pipeline
    decoded: Decoded
    workers: int
    seconds: float
    folder: Path
    source: str
    tell: Callable[[str], None]

    @property
    def network(self) -> str:
        """What computes, as people read it."""
        pipeline = self.pipeline
        return f"{how(pipeline.engine)}, {pipeline.precision} on {pipeline.device.name}"


def _measured(work: _Work) -> Rates:
    """Every stage by itself, then all together."""
    pipeline, decoded, seconds = work.pipeline, work.decoded, work.seconds
    one_core, decode = _decoding(work)
    work.tell(f"measuring the network: {work.network}")
    network, roof = _network(work)
    work.tell("measuring how fast a cache is written, and the whole")
    shape, dtype = pipeline.engine.feature_shape, pipeline.dtype
    row_bytes = np.dtype(dtype).itemsize * math.prod(shape)
    size = pipeline.engine.batch_size
    rows, plain = write(work.folder, shape, dtype=dtype, batch_size=size, seconds=seconds)
    at_a_time = f", {size:,} at a time" if size > 1 else ""
    words = f"rows of {row_bytes:,} bytes{at_a_time}, synced"
    writing = StageRate("write", rows, words, "plain writing of the same bytes", plain)
    slowest = min(decode.images_per_s, network.images_per_s, rows)
    whole = end_to_end(
        pipeline, decoded, work.folder, workers=work.workers, seconds=seconds, slowest=slowest
    )
    together = StageRate(
        "end to end", whole, "files to a cache, all at the same time", "the slowest stage", slowest
    )
    return Rates(one_core, decode, network, writing, together, _setting(work) | roof)


def _decoding(work: _Work) -> tuple[StageRate, StageRate]:
    """The rates of decoding, on one core and in processes."""
    decoded, n = work.decoded, work.workers
    loader = work.pipeline.loader
    ours, bare = decode_on_one_core(loader, decoded.files, seconds=work.seconds)
    mean_kb = sum(len(loader.read(path)) for path in decoded.files) / len(decoded.files) / 1e3
    words = f"{len(decoded.files):,} {work.source} of {mean_kb:,.0f} kB, in this process"
    limit = f"{bare_decoder()} alone"
    side_by_side = min(n, default_workers())
    cores = f" on {side_by_side} cores" if side_by_side > 1 else ""
    return (
        StageRate("decode, one core", ours, words, limit, bare),
        StageRate(
            "decode",
            decoded.images_per_s,
            f"the same in {n} process{'es' * (n > 1)}",
            f"{limit}{cores}",
            bare * side_by_side,
        ),
    )


def _network(work: _Work) -> tuple[StageRate, dict[str, Any]]:
    """The rate of the network, and the numbers behind its limit."""
    pipeline, device = work.pipeline, work.pipeline.device
    precision = gemm_precision(device, pipeline.precision)
    transform = pipeline.backbone.transform
    shape = transform.channels, transform.crop, transform.crop
    flops = flops_per_image(pipeline.network, shape) if pipeline.network is not None else 0

    def products() -> float:
        with torch_threads(pipeline.threads):
            return gemm_flops_per_s(device, precision, seconds=work.seconds / 6)

    before = products()
    rate = forward(pipeline, work.decoded.pictures, seconds=work.seconds)
    roof = max(before, products())  # the machine may have been busy
    numbers = {"flops_per_image": flops, "gemm_flops_per_s": roof, "gemm_precision": precision}
    n = len(work.decoded.pictures)
    words = f"{n:,} decoded picture{'s' * (n > 1)}, {work.network}"
    if not flops:  # pixels, or cut before the first layer that multiplies
        return StageRate("forward", rate, words), numbers
    limit = (
        f"{precision} matrix products: {roof / 1e9:,.0f} GFLOP/s for "
        f"{flops / 1e9:.3g} GFLOP an image"
    )
    return StageRate("forward", rate, words, limit, roof / flops), numbers


def _setting(work: _Work) -> dict[str, Any]:
    """What was measured and how, as JSON."""
    pipeline = work.pipeline
    return {
        "backbone": pipeline.backbone.name,
        "weights": pipeline.backbone.weights,
        "cut": pipeline.front.cut,
        "pool": pipeline.front.pool,
        "decode": pipeline.loader.mode,
        "engine": pipeline.engine.name,
        "device": pipeline.device.name,
        "precision": pipeline.precision,
        "batch_size": pipeline.engine.batch_size,
        "batches_at_a_time": pipeline.engine.concurrency,
        "threads": pipeline.threads,
        "workers": work.workers,
        "images": len(work.decoded.files),
        "images_are": work.source,
        "feature_shape": list(pipeline.engine.feature_shape),
        "seconds": work.seconds,
    }
