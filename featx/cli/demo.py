"""`featx demo`: the whole pipeline on sample images it draws, by the public commands."""

from __future__ import annotations

import csv
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from featx.cli.options import Device
from featx.cli.output import command, tell
from featx.errors import EXIT_DONE, EXIT_WEIGHTS

_BACKBONE: Final = "mobilenet_v2"


@command
def demo(
    folder: Annotated[
        Path, typer.Argument(help="Where the sample images and all results are put.")
    ] = Path("featx-demo"),
    backbone: Annotated[str, typer.Option(help="Name of the network.")] = _BACKBONE,
    weights: Annotated[
        str, typer.Option(help="As for extract; random where the default cannot be had.")
    ] = "default",
    device: Device = "auto",
) -> None:
    """Draw a small folder of birds, then extract, fit-head, evaluate and predict on it."""
    from featx.drawing import draw_birds

    if backbone != _BACKBONE and not backbone.startswith("timm:"):
        from featx.architectures import check_name

        check_name(backbone)  # before anything is drawn
    images, cache = folder / "birds", folder / "cache"
    drawn = draw_birds(images)
    tell(
        f"drew {len(drawn):,} birds of {len({file.parent for file in drawn})} species in {images}\n"
    )
    extract = ["extract", str(images), "--backbone", backbone, "--device", device]
    extract += ["--cache-dir", str(cache)]
    code = _run([*extract, "--weights", weights], allowed=(EXIT_DONE, EXIT_WEIGHTS))
    if code == EXIT_WEIGHTS:
        tell(
            "\nThe pretrained weights cannot be had on this machine, so the demo goes on with a "
            "network of random weights. That is enough for drawn birds, which differ in colour "
            "and shape; it is not for photographs, and `featx extract` never does it unasked.\n"
        )
        _run([*extract, "--weights", "random"])
    _run(["fit-head", "--cache-dir", str(cache)])
    _run(["evaluate", "--cache-dir", str(cache), "--out", str(folder / "report")])
    from featx.workspace import newest_head

    sample = _held_out_sample(folder / "report" / "predictions.csv", images)
    head = newest_head(cache)
    _run(["predict", str(head), *sample, "--show", str(folder / "predictions.png")])
    tell(f"\nimages       {images}\ncache, head  {cache}")
    tell(f"report       {folder / 'report'}\npicture      {folder / 'predictions.png'}")


def _held_out_sample(predictions: Path, root: Path) -> list[str]:
    """One image of every species that the head has never seen."""
    with predictions.open(encoding="utf-8-sig", newline="") as stream:
        first = {row["true"]: row["path"] for row in reversed(list(csv.DictReader(stream)))}
    return [str(root / path) for _, path in sorted(first.items())]


def _run(arguments: list[str], *, allowed: tuple[int, ...] = (EXIT_DONE,)) -> int:
    """Run one public command as a user would, shown first; end with its code if it fails."""
    tell(f"$ {shlex.join(['featx', *arguments])}")
    code = subprocess.run([sys.executable, "-m", "featx", *arguments], check=False).returncode
    if code not in allowed:
        raise typer.Exit(code)
    tell("")
    return code
