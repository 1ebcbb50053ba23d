"""`featx audit`: what is doubtful in a cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from featx.cli.options import CacheDir, Device, DuplicateThreshold, Json, Seed, given
from featx.cli.output import command, out, print_and_write, print_json, table, tell
from featx.cli.pictures import check_picture, save_grid
from featx.counting import counted
from featx.errors import InputError

if TYPE_CHECKING:
    from featx.auditing import Audit, DuplicatePair

_COLUMNS: Final = 8  # even, so that a pair stands side by side


@command
def audit(
    cache: Annotated[
        Path | None, typer.Argument(help="A cache; the newest in --cache-dir if none is named.")
    ] = None,
    labels: Annotated[
        bool, typer.Option("--labels/--no-labels", help="Look for wrong labels (needs cleanlab).")
    ] = True,
    duplicate_threshold: DuplicateThreshold = None,
    n: Annotated[
        int, typer.Option("-n", min=1, help="Of each kind, how many are printed and drawn.")
    ] = 12,
    show: Annotated[
        Path | None, typer.Option(help="Draw what was found (PNG); the images must be there.")
    ] = None,
    out_dir: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Write all of it: audit.json, labels.csv, duplicates.csv and outliers.csv into "
            "this folder.",
        ),
    ] = None,
    device: Device = "auto",
    seed: Seed = 0,
    cache_dir: CacheDir = Path("cache"),
    json_output: Json = False,
) -> None:
    """Rank the likeliest wrong labels, pictures that are there twice, and outliers of a cache."""
    from featx.auditing import audit as run

    if show is not None:
        check_picture(show)
    found = run(
        cache,
        labels=labels,
        device=device,
        seed=seed,
        cache_dir=cache_dir,
        **given(duplicate_threshold=duplicate_threshold),
    )

    def print_found() -> None:
        if json_output:
            print_json(found.to_dict())
        else:
            _print(found, n)
            for note in found.notes:
                tell(note)

    def write() -> Iterator[str]:
        if out_dir is not None:
            from featx.report.tables import write_audit

            yield f"wrote {', '.join(map(str, write_audit(out_dir, found)))}"
        if show is not None:
            yield _draw(found, show, n)

    print_and_write(print_found, write)


def _print(found: Audit, n: int) -> None:
    from featx.image_sources import shown

    console = out()
    console.print(f"{found.cache}: {counted(found.n, 'image')}", style="bold")
    if found.wrong_labels is not None:
        console.print(
            f"\n{len(found.wrong_labels):,} doubtful labels of {found.judged:,} judged out of fold "
            f"(C {found.C:g}, accuracy {found.accuracy:.3f}){_listed(found.wrong_labels, n)}"
        )
        if found.wrong_labels:
            rows = table(None, "image", "label", "probability", "rather", "probability",
                         right=("probability",))  # fmt: skip
            for wrong in found.wrong_labels[:n]:
                rows.add_row(shown(wrong.path), wrong.label, f"{wrong.p_label:.3f}",
                             wrong.suggested, f"{wrong.p_suggested:.3f}")  # fmt: skip
            console.print(rows)
    conflicts = f"{len(found.conflicts):,} pairs of duplicates with different labels"
    console.print(f"\n{conflicts}{_listed(found.conflicts, n)}")
    _print_pairs(found.conflicts[:n])
    console.print(
        f"\n{counted(len(found.duplicates), 'pair')} of duplicates in "
        f"{counted(found.groups, 'group')} (similarity {found.threshold:g})"
        f"{_listed(found.duplicates, n)}"
    )
    _print_pairs(found.duplicates[:n])
    console.print(
        f"\n{len(found.outliers):,} outliers (similarity to the tenth nearest image below "
        f"{found.outlier_fence:.3f}){_listed(found.outliers, n)}"
    )
    if found.outliers:
        rows = table(None, "image", "label", "similarity", right=("similarity",))
        for outlier in found.outliers[:n]:
            rows.add_row(shown(outlier.path), outlier.label, f"{outlier.similarity:.3f}")
        console.print(rows)


def _listed(found: Sequence[object], n: int) -> str:
    """How many of them the table below has, where it does not have all."""
    return f"; the first {n:,}, all by --out or -n" if len(found) > n else ""


def _print_pairs(pairs: tuple[DuplicatePair, ...]) -> None:
    from featx.image_sources import shown

    if not pairs:
        return
    rows = table(None, "image", "label", "other image", "label", "similarity",
                 right=("similarity",))  # fmt: skip
    for pair in pairs:
        alike = "exact" if pair.exact else f"{pair.similarity:.3f}"
        rows.add_row(shown(pair.path), pair.label, shown(pair.other_path), pair.other_label, alike)
    out().print(rows)


def _draw(found: Audit, path: Path, n: int) -> str:
    """One picture: duplicates side by side, doubtful labels, outliers; what became of it."""
    drawn = {(pair.path, pair.other_path) for pair in found.conflicts[:n]}
    pairs = [pair for pair in found.duplicates[:n] if (pair.path, pair.other_path) not in drawn]
    tiles: list[tuple[Path, str]] = []
    for pair in (*found.conflicts[:n], *pairs):
        alike = "exact duplicate" if pair.exact else f"duplicate {pair.similarity:.3f}"
        names = (pair.label, pair.other_label)
        tiles += [(file, f"{name}\n{alike}") for file, name in zip(pair.files, names, strict=True)]
    tiles += [
        (wrong.file, f"{wrong.label}?\n{wrong.suggested} {wrong.p_suggested:.2f}")
        for wrong in (found.wrong_labels or ())[:n]
    ]
    tiles += [
        (outlier.file, f"{outlier.label}\noutlier {outlier.similarity:.2f}")
        for outlier in found.outliers[:n]
    ]
    if not tiles:
        return f"nothing doubtful was found: {path} was not written"
    files, captions = zip(*tiles, strict=True)
    if not any(file.is_file() for file in files):
        raise InputError(
            f"the images are not where {found.cache} says (the first: {files[0]}), so that none "
            "can be drawn; move them back, or extract again"
        )
    save_grid(path, files, captions, columns=_COLUMNS)
    return f"wrote {path}"
