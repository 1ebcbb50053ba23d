"""`featx extract`: the one expensive command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featx.cli.options import (
    BatchSize,
    CacheDir,
    Device,
    Engine,
    Json,
    MixPlans,
    Precision,
    Seed,
    Workers,
    given,
    numbers,
)
from featx.cli.output import (
    command,
    exit_if_failed,
    out,
    print_json,
    table,
    tell,
    tell_failures,
)
from featx.cli.stopping import listening


@command
def extract(
    images: Annotated[
        str,
        typer.Argument(
            help="A folder of class folders (train/ val/ test/ above them become the split), a "
            "flat folder, a CSV (path,label[,split][,group]), a text list, or a quoted glob."
        ),
    ],
    backbone: Annotated[
        str, typer.Option(help="Name of the network; `featx backbones` lists them.")
    ] = "densenet121",
    weights: Annotated[
        str,
        typer.Option(
            help="default (IMAGENET1K_V1), DEFAULT (torchvision's newest), the name of a "
            "published entry, a .pth or .safetensors file, or random."
        ),
    ] = "default",
    cut: Annotated[
        str, typer.Option(help="Where the network is cut; `featx cuts BACKBONE` lists where.")
    ] = "penultimate",
    pool: Annotated[
        str,
        typer.Option(help="auto, avg, max, gem or none; cls or cls+avg for transformers."),
    ] = "auto",
    out_file: Annotated[
        Path | None, typer.Option("--out", help="The cache file, instead of the default name.")
    ] = None,
    cache_dir: CacheDir = Path("cache"),
    engine: Engine = "auto",
    device: Device = "auto",
    precision: Precision = None,
    batch_size: BatchSize = None,
    workers: Workers = None,
    decode: Annotated[
        str,
        typer.Option(
            help="fast (within 1 of 255 of the published preprocessing) or exact (bit for bit)."
        ),
    ] = "fast",
    store: Annotated[str, typer.Option(help="float32 or float16.")] = "float32",
    exif: Annotated[
        bool, typer.Option("--exif/--no-exif", help="Turn images as their EXIF data say.")
    ] = True,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Refuse larger images, from their header.")
    ] = 100_000_000,
    resize: Annotated[int | None, typer.Option(min=1, help="Short side after resizing.")] = None,
    crop: Annotated[int | None, typer.Option(min=1, help="Side of the centre crop.")] = None,
    mean: Annotated[str | None, typer.Option(help="Three numbers: 0.485,0.456,0.406.")] = None,
    std: Annotated[str | None, typer.Option(help="Three numbers: 0.229,0.224,0.225.")] = None,
    interpolation: Annotated[str | None, typer.Option(help="bilinear, bicubic or nearest.")] = None,
    label_from: Annotated[
        str, typer.Option(help="first (folder under the root or split) or leaf (the last).")
    ] = "first",
    split_folders: Annotated[
        bool | None,
        typer.Option(
            "--split-folders/--no-split-folders",
            help="Whether train/ val/ test/ are a split or classes; guessed from the folder.",
            show_default=False,
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option(help="Start over, replacing what is there.")] = False,
    prune: Annotated[
        bool,
        typer.Option(
            help="Accept that the folder has moved, or lost over a tenth of its images or all of "
            "a class."
        ),
    ] = False,
    retry_failed: Annotated[
        bool,
        typer.Option(
            help="Try images again that could not be decoded; those that could not be read are "
            "tried on every run."
        ),
    ] = False,
    rehash: Annotated[
        bool,
        typer.Option(
            help="Read every file again, and the cache too; equal size and time prove nothing."
        ),
    ] = False,
    max_failed: Annotated[
        float,
        typer.Option(help="Share of bad images, 0 to 1, above which nothing is finished."),
    ] = 0.1,
    on_error: Annotated[
        str, typer.Option(help="record a bad image and go on, or stop at the first.")
    ] = "record",
    mix_plans: MixPlans = False,
    seed: Seed = 0,
    json_output: Json = False,
) -> None:
    """Run a frozen backbone once over IMAGES and write their features to a cache.

    A second run computes only what is new or changed. Images that cannot be used are recorded,
    named and counted, and the run goes on (exit code 3). Ctrl-C finishes the batch in hand; the
    same command goes on from there.
    """
    from featx.extraction import run_extraction
    from featx.specs import ExtractOptions

    options = ExtractOptions(
        backbone=backbone,
        weights=weights,
        seed=seed,
        cut=cut,
        pool=pool,
        decode=decode,
        exif=exif,
        max_pixels=max_pixels,
        engine=engine,
        device=device,
        precision=precision,
        batch_size=batch_size,
        workers=workers,
        dtype=store,
        transform=given(
            resize=resize,
            crop=crop,
            mean=numbers(mean, "mean", 3),
            std=numbers(std, "std", 3),
            interpolation=interpolation,
        ),
        label_from=label_from,
        split_folders=split_folders,
    )
    with listening("extract") as listener:
        extraction = run_extraction(
            images,
            options,
            cache_dir=cache_dir,
            out=out_file,
            listener=listener,
            fresh=fresh,
            prune=prune,
            retry_failed=retry_failed,
            rehash=rehash,
            mix_plans=mix_plans,
            max_failed=max_failed,
            on_error=on_error,
        )
    features, report = extraction.features, extraction.report
    tell_failures(features.failed)
    shape = "x".join(map(str, features.features.shape[1:]))
    summary = {
        "cache": str(features.path),
        "images": len(features) + len(features.failed),
        "done": len(features),
        "failed": len(features.failed),
        "kept": extraction.decision.kept,
        "forward_passes": extraction.forward_passes,
        "features": f"{shape} {features.features.dtype}",
        "classes": len(features.classes),
        "size_bytes": features.path.stat().st_size,
        "fingerprint": features.fingerprint,
    }
    if json_output:
        print_json({**summary, "run": dict(report)})
    else:
        shown = table(None, "cache", "images", "failed", "features", "classes", "size")
        shown.add_row(
            str(features.path),
            f"{len(features):,}",
            f"{len(features.failed):,}",
            f"{shape} {features.features.dtype}",
            f"{len(features.classes):,}",
            f"{features.path.stat().st_size / 1e6:,.1f} MB",
        )
        out().print(shown)
        if extraction.forward_passes:
            seconds = report["seconds"]
            tell(
                f"{report['images']:,} images in {seconds['wall']:,.1f} s, "
                f"{report['images_per_s']:,.1f} images/s (forward {seconds['forward']:,.1f} s, "
                f"decode {seconds['decode']:,.1f} s in {report['workers']} processes beside it, "
                f"write {seconds['write']:,.1f} s)"
            )
    exit_if_failed(features.failed)
