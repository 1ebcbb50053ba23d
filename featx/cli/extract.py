"""`featx extract`: the one expensive command."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featx.cli.options import (
    BatchSize,
    CacheDir,
    DataRoot,
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
from featx.counting import counted

if TYPE_CHECKING:
    from featx.extraction import Extraction


@command
def extract(
    images: Annotated[
        str,
        typer.Argument(
            help="A folder of class folders (train/ val/ test/ above them become the split), a "
            "flat folder, a CSV (path,label[,split][,group]), a text list, a quoted glob, or a "
            "data set by name: torchvision:CIFAR10, CIFAR100, MNIST, FashionMNIST; sklearn:digits."
        ),
    ],
    backbone: Annotated[
        list[str] | None,
        typer.Option(
            help="Name of the network, densenet121 by default; `featx backbones` lists them, or "
            "package.module:factory of your own code. "
            "Several of them fill a cache each, in one pass over the images.",
        ),
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            help="default (IMAGENET1K_V1), DEFAULT (torchvision's newest), the name of a "
            "published entry, a .pth or .safetensors file, or random. Once for all networks, or "
            "once for each in their order."
        ),
    ] = None,
    cut: Annotated[
        list[str] | None,
        typer.Option(
            help="Where the network is cut, penultimate by default; `featx cuts BACKBONE` lists "
            "where; input keeps the pixels that enter it, as uint8. Several fill a cache each, too."
        ),
    ] = None,
    pool: Annotated[
        str,
        typer.Option(help="auto, avg, max, gem or none; cls or cls+avg for transformers."),
    ] = "auto",
    out_file: Annotated[
        Path | None, typer.Option("--out", help="The cache file, instead of the default name.")
    ] = None,
    cache_dir: CacheDir = Path("cache"),
    data_root: DataRoot = Path("data"),
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
    dtype: Annotated[
        str, typer.Option("--store", help="float32 or float16; pixels (--cut input) are uint8.")
    ] = "float32",
    store_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="With --cut input: store whole pictures, the long side at most so many pixels, "
            "for random crops to see all of them.",
        ),
    ] = None,
    exif: Annotated[
        bool, typer.Option("--exif/--no-exif", help="Turn images as their EXIF data say.")
    ] = True,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Refuse larger images, from their header.")
    ] = 100_000_000,
    resize: Annotated[int | None, typer.Option(min=1, help="Short side after resizing.")] = None,
    crop: Annotated[int | None, typer.Option(min=1, help="Side of the centre crop.")] = None,
    mean: Annotated[
        str | None, typer.Option(help="One number a channel: 0.485,0.456,0.406.")
    ] = None,
    std: Annotated[
        str | None, typer.Option(help="One number a channel: 0.229,0.224,0.225.")
    ] = None,
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
    max_size: Annotated[
        str,
        typer.Option(
            help="What new caches may take, such as 50GB; none to try whatever the disk has free."
        ),
    ] = "100GB",
    mix_plans: MixPlans = False,
    seed: Seed = 0,
    json_output: Json = False,
) -> None:
    """Run a frozen backbone once over IMAGES and write their features to a cache.

    A second run computes only what is new or changed. Images that cannot be used are recorded,
    named and counted, and the run goes on (exit code 3). Ctrl-C finishes the batch in hand; the
    same command goes on from there.
    """
    from featx.datasets.packed import located
    from featx.extraction import combinations, run_extractions
    from featx.specs import ExtractOptions

    options = ExtractOptions(
        seed=seed,
        pool=pool,
        decode=decode,
        exif=exif,
        max_pixels=max_pixels,
        engine=engine,
        device=device,
        precision=precision,
        batch_size=batch_size,
        workers=workers,
        dtype=dtype,
        store_size=store_size,
        cut=(cut or [ExtractOptions.cut])[0],
        transform=given(
            resize=resize,
            crop=crop,
            mean=numbers(mean, "mean", 1, 3),
            std=numbers(std, "std", 1, 3),
            interpolation=interpolation,
        ),
        label_from=label_from,
        split_folders=split_folders,
    )
    asked = combinations(
        options,
        backbone or [options.backbone],
        cut or [options.cut],
        weights or [options.weights],
    )
    with listening("extract") as listener:
        done = run_extractions(
            located(images, data_root),
            asked,
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
            max_size=max_size,
        )
    failed = max((extraction.features.failed for extraction in done), key=len)
    tell_failures(failed)
    if json_output:
        told = [_summary(extraction) for extraction in done]
        print_json(told[0] if len(told) == 1 else told)
    else:
        shown = table(None, "cache", "images", "failed", "features", "classes", "size")
        for extraction in done:
            row = _summary(extraction)
            shown.add_row(
                row["cache"],
                f"{row['done']:,}",
                f"{row['failed']:,}",
                row["features"],
                f"{row['classes']:,}",
                f"{row['size_bytes'] / 1e6:,.1f} MB",
            )
        out().print(shown)
        for extraction in done:
            if extraction.decision.action != "reuse" and extraction.report["images"]:
                several = f"{extraction.features.path.name}: " if len(done) > 1 else ""
                tell(several + _account(extraction.report))
    exit_if_failed(failed)


def _summary(extraction: Extraction) -> dict[str, Any]:
    """What a cache holds and what was done for it, as JSON."""
    features = extraction.features
    shape = "x".join(map(str, features.features.shape[1:]))
    return {
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
        "run": dict(extraction.report),
    }


def _account(report: Mapping[str, Any]) -> str:
    """How fast a run was, and which stage held it up, in one sentence."""
    seconds, busy = report["seconds"], report["busy"]
    peak = report["peak_memory_bytes"]
    memory = f", at most {peak / 2**30:,.1f} GB of memory" if peak else ""
    return (
        f"{counted(report['images'], 'image')} in {seconds['wall']:,.1f} s, "
        f"{report['images_per_s']:,.1f} images/s; slowest was {report['slowest']}, busy "
        f"{busy[report['slowest']]:.0%} of the time (forward {seconds['forward']:,.1f} s, decode "
        f"{seconds['decode']:,.1f} s in {report['workers']} processes, write "
        f"{seconds['write']:,.1f} s){memory}"
    )
