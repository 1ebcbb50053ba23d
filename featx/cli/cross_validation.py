"""`featx evaluate --cv`: how well a way of fitting does, where images are few."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featx.cli.output import images, out, print_and_write, print_json, progress_of_fits, table, tell
from featx.errors import InputError

if TYPE_CHECKING:
    from featx.cross_validated import CrossValidation

_SHOWN_CHOICES = 4
_NAMES = {
    "accuracy": "accuracy",
    "baseline": "majority baseline",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "log_loss": "log-loss",
}


def cross_validation(
    cache: Path | None,
    head: Path | None,
    *,
    kind: str | None,
    out_dir: Path | None,
    cv: int,
    json_output: bool,
    **keywords: Any,
) -> None:
    """Run it with a bar, print it, and write it into `out_dir` if there is one."""
    from featx.cross_validation import cross_validate, cross_validate_like

    if head is not None and kind is not None:
        raise InputError("--head names a kind of head and HEAD has one already: give one")
    with progress_of_fits("cross-validation") as advance:
        keywords |= {"cv": cv, "advance": advance}
        if head is None:
            found = cross_validate(cache, head=kind or "logistic", **keywords)
        else:
            found = cross_validate_like(head, cache, **keywords)

    def show() -> None:
        if json_output:
            print_json(found.to_dict())
        else:
            _print(found)

    def write() -> Iterator[str]:
        if out_dir is not None:
            from featx.report.tables import write_cross_validation

            yield f"wrote {', '.join(map(str, write_cross_validation(out_dir, found)))}"

    print_and_write(show, write)


def _print(found: CrossValidation) -> None:
    console = out()
    up_to = "" if len(found.folds) == found.cv * found.repeats else "up to "
    times = "once" if found.repeats == 1 else f"{found.repeats} times"
    console.print(
        f"{found.head} on {found.n:,} images of {found.cache}: {up_to}{found.cv} folds, drawn "
        f"{times}",
        style="bold",
    )
    figures = table(
        None, "measure", "mean of the fits", "95 % interval", right=("mean of the fits",)
    )
    for name, words in _NAMES.items():
        estimate = found.figures[name]
        interval = "" if estimate.low is None else f"{estimate.low:.3f} to {estimate.high:.3f}"
        figures.add_row(words, f"{estimate.value:.3f}", interval)
    console.print(figures)
    for note in found.notes:
        tell(note)
    if found.chosen:
        shown = list(found.chosen.items())[:_SHOWN_CHOICES]
        rest = len(found.chosen) - len(shown)
        told = ", ".join(f"{choice} ({count})" for choice, count in shown)
        tell(f"chosen inside the fits: {told}{f' and {rest} more' if rest else ''}")
    tell(f"kept together: {found.groups}. Images of any split the folder has are used alike")
    tell(_leaks(found))
    if found.never_tested:
        tell(f"never tested: {images(found.never_tested)}, the only ones of their class or group")
    if found.unlabelled:
        tell(f"left out: {images(found.unlabelled)} without a label")
    if found.failed:
        tell(f"left out: {images(found.failed)} that could not be used")


def _leaks(found: CrossValidation) -> str:
    """How many images have a duplicate that may be trained on while they are tested."""
    if found.parted_duplicates is None:
        return (
            "leaks: duplicates were not looked for: there are too many images to compare unasked "
            "(--duplicate-threshold asks)"
        )
    told = (
        f"leaks: {found.parted_duplicates:,} of {found.n:,} images have a duplicate that the folds "
        f"may part from them (similarity {found.duplicate_threshold:g})"
    )
    keep = "; --group-duplicates keeps duplicates in one fold"
    return told + (keep if found.parted_duplicates else "")
