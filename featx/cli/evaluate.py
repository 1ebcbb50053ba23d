"""`featx evaluate`: figures on images that a head was not trained on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featx.cli.cross_validation import cross_validation
from featx.cli.options import (
    CacheDir,
    Device,
    DuplicateThreshold,
    Json,
    OwnBackbones,
    Seed,
    given,
)
from featx.cli.output import command, images, print_and_write, print_json, tell
from featx.cli.reporting import print_evaluation
from featx.errors import InputError

if TYPE_CHECKING:
    from featx.evaluation import Evaluation


@command
def evaluate(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[CACHE] [HEAD]",
            help="A cache (.h5) and a head (.safetensors), either or both; the newest head and "
            "its own cache if none is named.",
        ),
    ] = None,
    on: Annotated[
        str | None, typer.Option(help="held-out (the default), or all labelled images.")
    ] = None,
    include_trained: Annotated[
        bool, typer.Option(help="Test also on images that were trained on (no honest figure).")
    ] = False,
    out_dir: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Write report.json, classes.csv, confusion.csv, predictions.csv, leaks.csv, "
            "confusion.png and reliability.png into this folder.",
        ),
    ] = None,
    duplicate_threshold: DuplicateThreshold = None,
    bootstrap: Annotated[
        int | None, typer.Option(min=0, help="Draws for the 95 % intervals: 1000.")
    ] = None,
    cv: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Instead, measure the way of fitting (HEAD's, or --head with its defaults) by "
            "so many folds over all labelled images, every choice made inside the folds.",
        ),
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(min=1, help="--cv: times the folds are drawn: 10.")
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            help="--cv: images that stay in one fold: parent (folder), a column of a CSV in the "
            "image folder, TABLE.csv:COLUMN, or a regular expression with one (pair)."
        ),
    ] = None,
    group_duplicates: Annotated[
        bool, typer.Option("--group-duplicates", help="--cv: keep duplicates in one fold.")
    ] = False,
    head_kind: Annotated[
        str | None, typer.Option("--head", help="--cv: kind of head where no HEAD is named.")
    ] = None,
    _backbone: OwnBackbones = None,
    device: Device = "auto",
    seed: Seed = 0,
    cache_dir: CacheDir = Path("cache"),
    json_output: Json = False,
) -> None:
    """Measure a head on images it was not trained on, beside the majority-class baseline."""
    from featx.evaluation import evaluate as run

    cache, head = _cache_and_head(files or [])
    if cv is not None:
        if on is not None or include_trained or bootstrap is not None:
            raise InputError(
                "--cv tests every labelled image, by heads that were fitted without it: leave "
                "--on, --include-trained and --bootstrap away"
            )
        cross_validation(
            cache,
            head,
            kind=head_kind,
            out_dir=out_dir,
            cv=cv,
            **given(repeats=repeats),
            group=group,
            group_duplicates=group_duplicates,
            duplicate_threshold=duplicate_threshold,
            device=device,
            seed=seed,
            cache_dir=cache_dir,
            json_output=json_output,
        )
        return
    if group is not None or head_kind is not None or group_duplicates or repeats is not None:
        raise InputError(
            "--group, --group-duplicates, --head and --repeats of evaluate go with --cv; fit-head "
            "has them too"
        )
    if on not in (None, "held-out", "all"):
        raise InputError(f"--on must be held-out or all, got {on!r}")
    evaluation = run(
        cache,
        head,
        include_trained=include_trained,
        duplicate_threshold=duplicate_threshold,
        seed=seed,
        device=device,
        cache_dir=cache_dir,
        **given(on=on, bootstrap=bootstrap),
    )

    def show() -> None:
        if json_output:
            print_json(evaluation.to_dict())
        else:
            print_evaluation(evaluation)
            _tell_left_out(evaluation)

    def write() -> Iterator[str]:
        if out_dir is not None:
            from featx.report.tables import write_evaluation

            paths, notes = write_evaluation(out_dir, evaluation)
            yield from notes
            yield f"wrote {', '.join(map(str, paths))}"

    print_and_write(show, write)


def _cache_and_head(files: list[Path]) -> tuple[Path | None, Path | None]:
    heads = [path for path in files if path.suffix == ".safetensors"]
    caches = [path for path in files if path.suffix != ".safetensors"]
    if len(heads) > 1 or len(caches) > 1:
        raise InputError(f"evaluate takes one cache and one head, got {', '.join(map(str, files))}")
    return (caches[0] if caches else None), (heads[0] if heads else None)


def _tell_left_out(evaluation: Evaluation) -> None:
    if evaluation.trained_left_out:
        tell(
            f"left out: {images(evaluation.trained_left_out)} that the head was trained or "
            "chosen on"
        )
    if evaluation.unknown:
        told: Any = ", ".join(f"{name} ({count})" for name, count in evaluation.unknown.items())
        tell(f"left out: images of classes the head does not know: {told}")
    if evaluation.unlabelled:
        tell(f"left out: {images(evaluation.unlabelled)} without a label")
    if evaluation.failed:
        tell(f"left out: {images(evaluation.failed)} that could not be used")
