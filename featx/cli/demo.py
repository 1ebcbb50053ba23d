"""`featx demo`: the whole pipeline on sample images it draws, by the public commands."""

from __future__ import annotations

import csv
import json
import os
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
    extract += ["--cache-dir", str(cache), "--weights"]
    # Weights that were named are never replaced: a name mistyped would pass for a trained network.
    fallback = (EXIT_WEIGHTS,) if weights.lower() == "default" else ()
    code = _run([*extract, weights], allowed=(EXIT_DONE, *fallback))
    if code == EXIT_WEIGHTS:
        tell(
            "\nThe pretrained weights cannot be had on this machine, so the demo goes on with a "
            "network of random weights. That is enough for drawn birds, which differ in colour "
            "and shape; it is not for photographs, and `featx extract` never does it unasked.\n"
        )
        weights = "random"
        _run([*extract, weights])
    filled, report = _cache_of([*extract, weights]), folder / "report"
    _run(["fit-head", filled])
    _run(["evaluate", filled, "--out", str(report)])
    sample = _held_out_sample(report / "predictions.csv", images)
    head = json.loads((report / "report.json").read_text("utf-8"))["head"]
    _run(["predict", head, *sample, "--show", str(folder / "predictions.png")])
    tell(f"\nimages       {images}\ncache, head  {cache}")
    tell(f"report       {report}\npicture      {folder / 'predictions.png'}")


def _cache_of(extract: list[str]) -> str:
    """The cache that an extraction has filled: asked again it computes nothing, and says which."""
    asked = subprocess.run(
        [sys.executable, "-m", "featx", *extract, "--json"],
        capture_output=True, check=False, encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    if asked.returncode != EXIT_DONE:
        tell(asked.stderr)
        raise typer.Exit(asked.returncode)
    return str(json.loads(asked.stdout)["cache"])


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
