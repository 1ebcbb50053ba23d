"""The command line: it translates, prints, and turns exceptions into exit codes.

Nothing heavy is imported here: every command imports what it needs when it runs, so that help
appears at once.
"""

from __future__ import annotations

import io
import sys
import warnings
from pathlib import Path
from typing import Annotated, Final, TextIO

import typer

from featx import __version__
from featx.cli import (
    audit,
    bench,
    compare,
    demo,
    evaluate,
    extract,
    fit_head,
    inspect,
    interchange,
    predict,
)
from featx.cli.output import tell

app = typer.Typer(
    name="featx",
    help="Run a frozen pretrained network once over a folder of images; fit, evaluate and predict "
    "from the cached features in seconds.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("demo", short_help="The whole pipeline on sample images it draws.")(demo.demo)
app.command("extract", short_help="Features of a folder of images, into a cache.")(extract.extract)
app.command("fit-head", short_help="A classifier on cached features.")(fit_head.fit_head)
app.command("evaluate", short_help="Figures on held-out images or another cache.")(
    evaluate.evaluate
)
app.command("compare", short_help="Heads and backbones side by side.")(compare.compare)
app.command("audit", short_help="Doubtful labels, duplicates and outliers.")(audit.audit)
app.command("predict", short_help="Classes and probabilities of images.")(predict.predict)
app.command("show", short_help="A picture of images with their labels.")(predict.show)
app.command("export", short_help="Features for other programs: Parquet, NPZ, CSV.")(
    interchange.export
)
app.command("import", short_help="A cache of features that were computed elsewhere.")(
    interchange.import_features
)
app.command("convert-weights", short_help="Weights of other key names, for a network here.")(
    interchange.convert_weights
)
app.command("info", short_help="What is in a cache or a head.")(inspect.info)
app.command("verify", short_help="Whether every byte of a cache is intact.")(inspect.verify)
app.command("backbones", short_help="The networks there are.")(inspect.backbones)
app.command("cuts", short_help="Where a network can be cut.")(inspect.cuts)
app.command("bench", short_help="How fast each stage runs here.")(bench.bench)
app.command("doctor", short_help="What this machine can do.")(inspect.doctor)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"featx {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


_HERE: Final = Path(__file__).parents[1]
_show_as_python_does = warnings.showwarning


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning of featx as a sentence; another library's with its place, for a report."""
    if file is None and _HERE in Path(filename).parents:
        tell(f"warning: {message}")
        return
    _show_as_python_does(message, category, filename, lineno, file, line)


def main() -> None:
    """Run the command that the arguments name, and exit."""
    for stream in (sys.stdout, sys.stderr):
        # a name that the terminal or the file's encoding cannot show is escaped, not fatal
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # Pillow warns of odd metadata in files it then reads; those it cannot read are named
    warnings.filterwarnings("ignore", module=r"PIL\.")
    warnings.showwarning = _show_warning
    app()
