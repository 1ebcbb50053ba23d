"""`featx predict` and `featx show`: names for images, and pictures of them."""

from __future__ import annotations

import csv
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from featx.cli.options import (
    BatchSize,
    DataRoot,
    Device,
    Engine,
    OwnBackbone,
    OwnBackbones,
    Seed,
    Workers,
)
from featx.cli.output import (
    command,
    exit_if_failed,
    out,
    progress,
    table,
    tell,
    tell_failures,
    to_json,
)
from featx.cli.pictures import check_picture, check_place, save_grid
from featx.errors import InputError

if TYPE_CHECKING:
    from featx.prediction import Predictions


@command
def predict(
    head: Annotated[Path, typer.Argument(help="A head file, as fit-head writes it.")],
    images: Annotated[
        list[str],
        typer.Argument(
            help="Files, folders, quoted globs and data sets by name (torchvision:CIFAR10/test); "
            "one cache (.h5), which needs no forward pass; or - for a list on standard input, one "
            "path a line."
        ),
    ],
    top_k: Annotated[int, typer.Option(min=1, help="Classes to give for every image.")] = 3,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", help="Write the table as CSV; - for standard output.")
    ] = None,
    json_output: Annotated[
        bool, typer.Option("--json", help="One JSON object a line on standard output.")
    ] = False,
    show: Annotated[
        Path | None, typer.Option(help="Draw the images with their predictions (PNG).")
    ] = None,
    backbone: OwnBackbone = None,
    weights: Annotated[
        str | None,
        typer.Option(help="The backbone's weights, where they are not found by themselves."),
    ] = None,
    engine: Engine = "auto",
    device: Device = "auto",
    precision: Annotated[
        str | None, typer.Option(help="fp32, tf32, bf16 or fp16; as for the head's features.")
    ] = None,
    batch_size: BatchSize = None,
    workers: Workers = None,
    data_root: DataRoot = Path("data"),
    uncalibrated: Annotated[
        bool,
        typer.Option("--uncalibrated", help="The head's own probabilities, without temperature."),
    ] = False,
) -> None:
    """Name every image: its most probable classes and their probabilities."""
    from featx.prediction import predict as run

    to_stdout = str(csv_file) == "-"
    if json_output and to_stdout:
        raise InputError("--json and --csv - both write to standard output: name a CSV file")
    if csv_file is not None and not to_stdout:
        check_place(csv_file)
    if show is not None:
        check_picture(show)
    with progress("predict") as bar:
        predictions = run(
            head,
            _expand_stdin(images),
            backbone=backbone,
            weights=weights,
            engine=engine,
            device=device,
            precision=precision,
            batch_size=batch_size,
            workers=workers,
            calibrated=not uncalibrated,
            data_root=data_root,
            start=bar.start,
            progress=bar.advance,
        )
    if json_output:
        for record in predictions.to_records(top_k=top_k):
            sys.stdout.write(to_json(record) + "\n")
    elif csv_file is None and len(predictions):
        _print_predictions(predictions, top_k)
    if predictions.temperature is not None:
        tell(
            f"probabilities at temperature {predictions.temperature:.3g}, which was fitted with "
            "the head, or with the one before a final fit; --uncalibrated gives the head's own"
        )
    tell_failures(predictions.failed)
    if csv_file is not None:  # after what can be printed, which a full disk must not take along
        _write_csv(predictions, csv_file, top_k)
    if show is not None and len(predictions):
        _show(predictions, show)
    exit_if_failed(predictions.failed)


def _expand_stdin(images: list[str]) -> list[str]:
    if "-" not in images:
        return images
    # paths may hold bytes that are no text
    listed = [os.fsdecode(line.rstrip(b"\r\n")) for line in sys.stdin.buffer]
    return [path for item in images for path in (filter(None, listed) if item == "-" else [item])]


def _print_predictions(predictions: Predictions, top_k: int) -> None:
    from featx.image_sources import shown

    order, values = predictions.top(top_k)
    columns = ["image", "class", "probability"]
    columns += [f"{i}. class" for i in range(2, order.shape[1] + 1)]
    rows = table(None, *columns, right=("probability",))
    for i, path in enumerate(predictions.paths):
        others = [
            f"{predictions.names[c]} {p:.3f}"
            for c, p in zip(order[i, 1:], values[i, 1:], strict=True)
        ]
        name = predictions.names[order[i, 0]]
        rows.add_row(shown(path), name, f"{values[i, 0]:.3f}", *others)
    out().print(rows)


def _write_csv(predictions: Predictions, path: Path, top_k: int) -> None:
    if str(path) == "-":
        _write_rows(sys.stdout, predictions, top_k)
        return
    from featx.cache.files import WRITE_ELSEWHERE, told_as_disk_error

    with told_as_disk_error(path, "write", WRITE_ELSEWHERE):
        path.parent.mkdir(parents=True, exist_ok=True)
        # the mark at the start tells spreadsheets that this is UTF-8
        with path.open("w", encoding="utf-8-sig", errors="backslashreplace", newline="") as stream:
            _write_rows(stream, predictions, top_k)
    tell(f"wrote {path}")


def _write_rows(stream: TextIO, predictions: Predictions, top_k: int) -> None:
    order, values = predictions.top(top_k)
    writer = csv.writer(stream, lineterminator="\n" if stream is sys.stdout else "\r\n")
    ranks = range(1, order.shape[1] + 1)
    writer.writerow(["path", *(f"{kind}{i}" for i in ranks for kind in ("class", "probability"))])
    for i, image in enumerate(predictions.paths):
        pairs = zip(order[i], values[i], strict=True)
        cells = (cell for c, p in pairs for cell in (predictions.classes[c], f"{p:.6f}"))
        writer.writerow([image, *cells])


def _show(predictions: Predictions, path: Path) -> None:
    labels, best = predictions.labels, predictions.probabilities.max(axis=1)
    captions = [
        f"{predictions.names[label]} {probability:.2f}"
        for label, probability in zip(labels, best, strict=True)
    ]
    save_grid(path, predictions.files, captions)
    tell(f"wrote {path}")


@command
def show(
    source: Annotated[Path, typer.Argument(help="A cache (.h5), or images as for extract.")],
    out_file: Annotated[Path, typer.Option("--out", "-o", help="The picture (PNG).")] = Path(
        "grid.png"
    ),
    n: Annotated[int, typer.Option("-n", min=1, help="How many images.")] = 25,
    class_name: Annotated[
        str | None, typer.Option("--class", help="Only images of this class.")
    ] = None,
    head: Annotated[
        Path | None, typer.Option(help="Add what this head predicts (cache only).")
    ] = None,
    errors: Annotated[
        bool, typer.Option("--errors", help="Only wrong predictions, the surest first.")
    ] = False,
    failed: Annotated[bool, typer.Option("--failed", help="Only images that failed.")] = False,
    _backbone: OwnBackbones = None,
    seed: Seed = 0,
    data_root: DataRoot = Path("data"),
) -> None:
    """Draw a grid of images with their labels and, with a head, its predictions."""
    from featx.report.showing import choose

    check_picture(out_file)
    chosen = choose(
        source,
        n=n,
        class_name=class_name,
        head=head,
        errors=errors,
        failed=failed,
        seed=seed,
        data_root=data_root,
    )
    drawn = save_grid(out_file, chosen.files, chosen.captions, chosen.marks)
    out().print(f"wrote {out_file}: {drawn:,} of {chosen.total:,} images")
