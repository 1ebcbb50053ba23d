"""`featx export`: features for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featx.cli.options import CacheDir, Json, Seed
from featx.cli.output import (
    command,
    exit_if_failed,
    out,
    print_json,
    tell,
    tell_failures,
)


@command
def export(
    cache: Annotated[
        Path | None, typer.Argument(help="A cache; the newest in --cache-dir if none is named.")
    ] = None,
    to: Annotated[
        str | None, typer.Option(help="parquet, npz or csv; or what the ending of --out says.")
    ] = None,
    out_file: Annotated[
        Path | None, typer.Option("--out", help="The file, instead of the cache's name beside it.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Only these rows: train, val or held-out.")
    ] = None,
    force: Annotated[
        bool, typer.Option(help="Replace a file of other content that has this name.")
    ] = False,
    test_fraction: Annotated[
        float, typer.Option(help="Held out, where the images have no split of their own.")
    ] = 0.2,
    seed: Seed = 0,
    cache_dir: CacheDir = Path("cache"),
    json_output: Json = False,
) -> None:
    """Write features, labels, split and hashes of a cache to one file for other programs.

    Images without features have no row there; they are named, and the exit code is 3.
    """
    from featx.exporting import export as run

    done = run(
        cache,
        out_file,
        to=to,
        split=split,
        seed=seed,
        test_fraction=test_fraction,
        force=force,
        cache_dir=cache_dir,
    )
    if json_output:
        print_json(
            {
                "file": str(done.path),
                "cache": str(done.cache),
                "rows": done.n,
                "failed": len(done.failed),
                "written": done.written,
                "size_bytes": done.path.stat().st_size,
            }
        )
    else:
        size = f"{done.path.stat().st_size / 1e6:,.1f} MB"
        out().print(f"{done.path}: {done.n:,} rows of {done.cache}, {size}")
    if not done.written:
        tell("nothing to do: the file is there already, with this very content")
    tell_failures(done.failed)
    exit_if_failed(done.failed)
