"""Figures as files: JSON for programs, CSV for spreadsheets, a picture for people."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from featx.auditing import Audit
from featx.cache.files import WRITE_ELSEWHERE, told_as_disk_error
from featx.cross_validated import FIGURES, CrossValidation
from featx.evaluation import Evaluation
from featx.metrics import Reliability
from featx.report.plots import confusion_matrix_png, reliability_png
from featx.standings import Comparison, Leaderboard


def write_evaluation(
    folder: str | os.PathLike[str], evaluation: Evaluation
) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Write ``report.json``, ``classes.csv``, ``confusion.csv``, ``predictions.csv``,
    ``leaks.csv``, ``confusion.png`` and ``reliability.png`` into `folder`, replacing what is
    there.

    CSV files are UTF-8 with a byte order mark, so that spreadsheets show every script.

    Returns
    -------
    tuple
        The files written, and sentences for the user (such as characters without a font).

    Raises
    ------
    DiskError
        The folder cannot be written.
    """
    folder = Path(folder)
    with told_as_disk_error(folder, "write to", WRITE_ELSEWHERE):
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / name for name in ("report.json", "classes.csv", "confusion.csv")]
        pictures = ("confusion.png", "reliability.png")
        paths += [folder / name for name in ("predictions.csv", "leaks.csv", *pictures)]
        text = json.dumps(evaluation.to_dict(), ensure_ascii=False, indent=2)
        paths[0].write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
        report = evaluation.report
        _write_csv(
            paths[1],
            ("class", "precision", "recall", "f1", "average_precision", "roc_auc", "images"),
            (
                (c.name, c.precision, c.recall, c.f1, c.average_precision, c.roc_auc, c.support)
                for c in report.per_class
            ),
        )
        _write_csv(
            paths[2],
            ("true class", *report.classes),
            ([name, *row] for name, row in zip(report.classes, report.confusion, strict=True)),
        )
        _write_csv(paths[3], ("path", "true", "predicted", "probability"), _predicted(evaluation))
        _write_csv(
            paths[4],
            ("path", "trained on", "similarity", "kind"),
            (
                (leak.path, leak.trained_path, f"{leak.similarity:.6f}", _kind(leak.exact))
                for leak in (evaluation.leaks.pairs if evaluation.leaks else ())
            ),
        )
        notes = confusion_matrix_png(
            paths[5],
            report.confusion,
            report.classes,
            title=f"{report.n:,} images, accuracy {report.accuracy.value:.3f}",
        )
        notes += reliability_png(
            paths[6], _curves(evaluation), title=f"Reliability on {report.n:,} images"
        )
    return tuple(paths), tuple(dict.fromkeys(notes))


def _curves(evaluation: Evaluation) -> dict[str, Reliability]:
    if evaluation.uncalibrated is None or evaluation.calibration is None:
        return {"this head": evaluation.report.reliability}
    temperature = evaluation.calibration["temperature"]
    return {
        f"at temperature {temperature:.3g}": evaluation.report.reliability,
        "without calibration": evaluation.uncalibrated.reliability,
    }


def write_cross_validation(
    folder: str | os.PathLike[str], found: CrossValidation
) -> tuple[Path, ...]:
    """Write ``cross_validation.json``, ``folds.csv`` and ``cross_validated.csv`` into `folder`.

    The last has a line for each image, with what it was taken for in every repeat, by a head that
    was fitted without it. Files there are replaced; CSV files are as of `write_evaluation`.

    Raises
    ------
    DiskError
        The folder cannot be written.
    """
    folder = Path(folder)
    names = ("cross_validation.json", "folds.csv", "cross_validated.csv")
    paths = tuple(folder / name for name in names)
    data = found.to_dict()
    with told_as_disk_error(folder, "write to", WRITE_ELSEWHERE):
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(data, ensure_ascii=False, indent=2)
        paths[0].write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
        columns = ("repeat", "fold", "n_train", "n_test", *FIGURES, "baseline", "chosen")
        _write_csv(paths[1], columns, ([fold[name] for name in columns] for fold in data["folds"]))
        classes = (*found.classes, "")  # -1, never tested, takes the last
        _write_csv(
            paths[2],
            ("path", "true", *(f"repeat {i}" for i in range(found.repeats))),
            (
                (path, classes[true], *(classes[label] for label in predicted))
                for path, true, predicted in zip(
                    found.paths, found.y_true, found.y_pred.T, strict=True
                )
            ),
        )
    return paths


def write_comparison(
    folder: str | os.PathLike[str], found: Comparison | Leaderboard
) -> tuple[Path, ...]:
    """Write ``comparison.json``, ``heads.csv`` and ``pairs.csv`` into `folder`.

    A line for each head and for each two that were compared; the number in the first column is
    that of their set of test images. Files there are replaced; CSV as of `write_evaluation`.

    Raises
    ------
    DiskError
        The folder cannot be written.
    """
    folder = Path(folder)
    paths = tuple(folder / name for name in ("comparison.json", "heads.csv", "pairs.csv"))
    each = found.comparisons if isinstance(found, Leaderboard) else (found,)
    figures = ("accuracy", "balanced_accuracy", "macro_f1", "log_loss")
    bounds = [f"{name}{end}" for name in figures for end in ("", " low", " high")]
    facts = ("name", "kind", "backbone", "cut", "own_test_images", "head", "cache")
    with told_as_disk_error(folder, "write to", WRITE_ELSEWHERE):
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(found.to_dict(), ensure_ascii=False, indent=2)
        paths[0].write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
        _write_csv(
            paths[1],
            ("test", "images", *facts, "exact leaks", "near leaks", *bounds),
            (
                (number, one.n, *(told[name] for name in facts), told["leaks"]["exact"],
                 told["leaks"]["near"], *(v for name in figures for v in told[name].values()))
                for number, one in enumerate(each, 1)
                for told in (entry.to_dict() for entry in one.entries)
            ),
        )  # fmt: skip
        _write_csv(
            paths[2],
            ("test", "first", "second", "accuracy difference", "low", "high", "only first right",
             "only second right", "p", "p (Holm)"),
            (
                (number, pair.first, pair.second, *pair.accuracy.to_dict().values(),
                 pair.only_first, pair.only_second, pair.p, pair.p_adjusted)
                for number, one in enumerate(each, 1)
                for pair in one.pairs
            ),
        )  # fmt: skip
    return paths


def _predicted(evaluation: Evaluation) -> Iterable[Sequence[object]]:
    names = evaluation.report.classes
    predicted = evaluation.probabilities.argmax(axis=1)
    best = np.take_along_axis(evaluation.probabilities, predicted[:, None], axis=1)[:, 0]
    for path, true, label, probability in zip(
        evaluation.paths, evaluation.y_true, predicted, best, strict=True
    ):
        yield path, names[true], names[label], f"{probability:.6f}"


def write_audit(folder: str | os.PathLike[str], audit: Audit) -> tuple[Path, ...]:
    """Write ``audit.json``, ``labels.csv``, ``duplicates.csv`` and ``outliers.csv`` into `folder`.

    Replaces what is there. Duplicates with different labels come first in their file.

    Raises
    ------
    DiskError
        The folder cannot be written.
    """
    folder = Path(folder)
    names = ("audit.json", "labels.csv", "duplicates.csv", "outliers.csv")
    paths = tuple(folder / name for name in names)
    told = {(pair.path, pair.other_path) for pair in audit.conflicts}
    pairs = [pair for pair in audit.duplicates if (pair.path, pair.other_path) not in told]
    with told_as_disk_error(folder, "write to", WRITE_ELSEWHERE):
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(audit.to_dict(), ensure_ascii=False, indent=2)
        paths[0].write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
        _write_csv(
            paths[1],
            ("path", "label", "probability", "suggested", "suggested probability"),
            (
                (w.path, w.label, f"{w.p_label:.6f}", w.suggested, f"{w.p_suggested:.6f}")
                for w in audit.wrong_labels or ()
            ),
        )
        _write_csv(
            paths[2],
            ("path", "label", "other path", "other label", "similarity", "kind"),
            (
                (p.path, p.label, p.other_path, p.other_label, f"{p.similarity:.6f}",
                 _kind(p.exact))
                for p in (*audit.conflicts, *pairs)
            ),
        )  # fmt: skip
        _write_csv(
            paths[3],
            ("path", "label", "similarity"),
            ((o.path, o.label, f"{o.similarity:.6f}") for o in audit.outliers),
        )
    return paths


def _kind(exact: bool) -> str:
    return "exact" if exact else "near"


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    # a path that is not UTF-8 is written with its odd bytes as \udcXX escapes, not lost
    with path.open("w", encoding="utf-8-sig", errors="backslashreplace", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        writer.writerows(rows)
