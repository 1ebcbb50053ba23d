"""`featx fit-head --shots`: how many images a class are enough."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from featx.cli.options import whole_numbers
from featx.cli.output import out, print_json, progress_of_fits, table, tell
from featx.cli.reporting import leaks_of_test
from featx.counting import counted

if TYPE_CHECKING:
    from featx.few_shot import LearningCurve


def few_shot(
    cache: Path | None, *, shots: str, curves: Path | None, json_output: bool, **keywords: Any
) -> None:
    """Measure the learning curve with a bar, print it, and draw it if asked."""
    from featx.few_shot import learning_curve

    wanted = whole_numbers(shots, "shots") or ()
    with progress_of_fits("few-shot heads") as advance:
        curve = learning_curve(
            cache,
            shots=wanted,
            advance=advance,
            **keywords,
        )
    if json_output:
        print_json(curve.to_dict())
    else:
        _print(curve)
    if curves is not None:  # after the figures, which a full disk must not take along
        from featx.report.learning_curves import learning_curve_png

        for note in learning_curve_png(curves, curve):
            tell(note)
        tell(f"wrote {curves}")


def _print(curve: LearningCurve) -> None:
    console = out()
    console.print(
        f"{curve.head} on {counted(curve.n_test, 'image')} ({curve.tested_on}) of "
        f"{curve.cache}; always the commonest class: {curve.baseline:.3f}",
        style="bold",
    )
    shown = table(
        None, "images a class", "trained on", "fits", "accuracy", "95 % interval",
        right=("images a class", "trained on", "fits", "accuracy"),
    )  # fmt: skip
    for point in curve.points:
        estimate = point.accuracy
        shown.add_row(
            "all" if point.shots is None else f"{point.shots:,}",
            f"{point.n_train:,}",
            f"{len(point.accuracies):,}",
            f"{estimate.value:.3f}",
            "" if estimate.low is None else f"{estimate.low:.3f} to {estimate.high:.3f}",
        )
    console.print(shown)
    console.print(f"leaks: {leaks_of_test(curve.leaks)}")
    for point in curve.points:
        if point.n_short:
            tell(f"classes of fewer than {point.shots:,} training images: {point.n_short:,}")
    for note in curve.notes:
        tell(note)
