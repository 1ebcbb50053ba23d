"""`featx bench`: how fast each stage runs on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featx.cli.options import (
    BatchSize,
    CacheDir,
    DataRoot,
    Device,
    Engine,
    Json,
    Precision,
    Workers,
)
from featx.cli.output import command, exit_if_failed, out, print_json, table, tell, tell_failures
from featx.cli.stopping import stop_on_signals

if TYPE_CHECKING:
    from featx.rates import Rates


@command
def bench(
    images: Annotated[
        str | None,
        typer.Argument(
            help="As for extract; at most 192 of them are used. Pictures that featx draws if none "
            "are named."
        ),
    ] = None,
    backbone: Annotated[
        str, typer.Option(help="Name of the network; `featx backbones` lists them.")
    ] = "densenet121",
    weights: Annotated[
        str, typer.Option(help="As for extract; random ones run as fast as any.")
    ] = "default",
    cut: Annotated[
        str, typer.Option(help="Where the network is cut; `featx cuts BACKBONE` lists where.")
    ] = "penultimate",
    pool: Annotated[
        str, typer.Option(help="auto, avg, max, gem or none; cls or cls+avg for transformers.")
    ] = "auto",
    engine: Engine = "auto",
    device: Device = "auto",
    precision: Precision = None,
    batch_size: BatchSize = None,
    workers: Workers = None,
    decode: Annotated[str, typer.Option(help="fast or exact.")] = "fast",
    cache_dir: CacheDir = Path("cache"),
    data_root: DataRoot = Path("data"),
    seconds: Annotated[float, typer.Option(help="How long each stage is measured.")] = 3.0,
    json_output: Json = False,
) -> None:
    """Measure how fast each stage of extract runs on this machine, and name the bottleneck.

    Decoding, the network and writing run one by one, then all together, as extract runs them, and
    each beside what the machine could do at best. Nothing but a network prepared for its
    engine is left on the disk.
    """
    from featx.benching import bench as measure

    with stop_on_signals():  # nothing is worth keeping: the first request ends it
        rates = measure(
            images,
            seconds=seconds,
            cache_dir=cache_dir,
            data_root=data_root,
            tell=tell,
            backbone=backbone,
            weights=weights,
            cut=cut,
            pool=pool,
            engine=engine,
            device=device,
            precision=precision,
            batch_size=batch_size,
            workers=workers,
            decode=decode,
        )
    tell_failures(rates.failed)
    if json_output:
        print_json(rates.to_dict())
    else:
        _print(rates)
    exit_if_failed(rates.failed)


def _print(rates: Rates) -> None:
    from featx.rates import per_s

    shown = table(
        None, "stage", "images/s", "measured on", "share of its limit", right=("images/s",)
    )
    for rate in rates.stages:
        limit = ""
        if rate.share is not None and rate.limit_images_per_s is not None:
            limit = f"{rate.share:.2f} of {per_s(rate.limit_images_per_s)} ({rate.limit})"
        shown.add_row(rate.stage, per_s(rate.images_per_s), rate.measured_on, limit)
    out().print(shown)
    out().print(rates.verdict, soft_wrap=True)
