"""`featx compare`: heads and backbones side by side on the same images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featx.cli.options import CacheDir, Json, OwnBackbones, Seed
from featx.cli.output import command, out, print_and_write, print_json, table, tell
from featx.cli.reporting import leaks_of_test
from featx.counting import counted

if TYPE_CHECKING:
    from featx.comparison import Difference
    from featx.fitting import Fit
    from featx.metrics import Estimate
    from featx.standings import Comparison, Leaderboard


@command
def compare(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[HEAD|CACHE...]",
            help="Two heads (.safetensors) or more; a cache (.h5) stands for its newest head, and "
            "gets a logistic one if it has none. A folder, by default --cache-dir: all its heads.",
        ),
    ] = None,
    out_dir: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Write comparison.json, heads.csv and pairs.csv into this folder."
        ),
    ] = None,
    bootstrap: Annotated[int, typer.Option(min=0, help="Draws for the 95 % intervals.")] = 1000,
    _backbone: OwnBackbones = None,
    seed: Seed = 0,
    cache_dir: CacheDir = Path("cache"),
    json_output: Json = False,
) -> None:
    """Rank heads by accuracy on the held-out images they share, and say which really differ.

    Each is tested on the same images, none of which any of them was trained or chosen on. Beside
    the difference to the best stand its interval (paired bootstrap), of that pair alone, and the
    p-value of McNemar's exact test, corrected for all pairs (Holm). Groups that a head's split kept
    whole are drawn and exchanged whole.
    """
    from featx.comparing import compare as run
    from featx.comparing import leaderboard
    from featx.standings import Leaderboard

    named = files or [cache_dir]
    found: Comparison | Leaderboard
    if len(named) == 1 and named[0].suffix not in (".h5", ".safetensors"):
        found = leaderboard(named[0], bootstrap=bootstrap, seed=seed)
    else:
        found = run(named, bootstrap=bootstrap, seed=seed)

    def show() -> None:
        if json_output:
            print_json(found.to_dict())
        elif isinstance(found, Leaderboard):
            _print_leaderboard(found)
        else:
            _print_comparison(found)
            _tell_use(found)

    def write() -> Iterator[str]:
        if out_dir is not None:
            from featx.report.tables import write_comparison

            yield f"wrote {', '.join(map(str, write_comparison(out_dir, found)))}"

    print_and_write(show, write)


def fit_all(cache: Path | None, *, json_output: bool, **keywords: Any) -> None:
    """`featx fit-head --head all`: every head on one split, ranked."""
    from featx.comparing import fit_heads

    def advance(fit: Fit) -> None:
        choice = fit.file.metadata["fit"]["choice"]
        tell(f"{fit.path.name}: {choice['what']}, chosen on {choice['on']}")

    fits, found = fit_heads(cache, advance=advance, **keywords)
    if json_output:
        print_json(found.to_dict())
        return
    for note in fits[0].split.notes:
        tell(note)
    tell(f"split: {fits[0].split.source}")
    _print_comparison(found)
    _tell_use(found)


def _print_leaderboard(board: Leaderboard) -> None:
    for i, comparison in enumerate(board.comparisons):
        if i:
            out().print()
        _print_comparison(comparison)
    for path, why in board.skipped.items():
        tell(f"left out: {why if str(path) in why else f'{path}: {why}'}")
    for comparison in board.comparisons[:1]:
        _tell_use(comparison)


def _print_comparison(found: Comparison) -> None:
    from featx.grouping import drawn_by

    console = out()
    console.print(
        f"{counted(found.n, 'image')} that none of them was trained on; always "
        f"{found.baseline_name}: {found.baseline:.3f}",
        style="bold",
    )
    shown = table(
        None, "head", "backbone", "cut", "accuracy", "95 % interval", "balanced", "log-loss",
        "to the best", "95 % (each alone)", "p (Holm)",
        right=("accuracy", "balanced", "log-loss", "to the best", "p (Holm)"),
    )  # fmt: skip
    to_best = {pair.second: pair for pair in found.pairs if pair.first == found.entries[0].name}
    for entry in found.entries:
        report = entry.report
        shown.add_row(
            entry.name,
            entry.backbone,
            entry.cut,
            f"{report.accuracy.value:.3f}",
            _interval(report.accuracy),
            f"{report.balanced_accuracy.value:.3f}",
            f"{report.log_loss.value:.3f}",
            *_difference(to_best.get(entry.name)),
        )
    console.print(shown)
    console.print(f"leaks: {_leaks(found)}")
    if (found.groups >= 0).any():
        console.print(
            f"intervals draw, and p exchanges, {drawn_by(found.groups)}, as the split of "
            f"{', '.join(found.grouped_by)} kept them"
        )


def _leaks(found: Comparison) -> str:
    """The leaks of each head, those of heads with the same ones together."""
    told: dict[str, list[str]] = {}
    for entry in found.entries:
        told.setdefault(leaks_of_test(entry.leaks), []).append(entry.name)
    if len(told) == 1:
        return f"{next(iter(told))}, of each head"
    return "; ".join(f"{', '.join(names)}: {counts}" for counts, names in told.items())


def _difference(pair: Difference | None) -> tuple[str, str, str]:
    """Of a head to the best one: its accuracy less, the interval, and p."""
    if pair is None:
        return "", "", ""
    estimate = pair.accuracy
    less = f"{0 - estimate.value:+.3f}"
    if estimate.low is None or estimate.high is None:
        return less, "", _p(pair.p_adjusted)
    return less, f"{0 - estimate.high:+.3f} to {0 - estimate.low:+.3f}", _p(pair.p_adjusted)


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _interval(estimate: Estimate) -> str:
    return "" if estimate.low is None else f"{estimate.low:.3f} to {estimate.high:.3f}"


def _tell_use(found: Comparison) -> None:
    if len(found.pairs) > 1 and found.pairs[0].accuracy.low is not None:
        tell(
            "each interval of a difference is of that pair alone, only p is corrected for all "
            f"{len(found.pairs):,} pairs: go by p"
        )
    if len(found.entries) > 1:
        tell(
            "who picks the first of a table has chosen by its test images: its figure is then too "
            "good; measure it on images that are new, or by `featx evaluate --cv`"
        )
