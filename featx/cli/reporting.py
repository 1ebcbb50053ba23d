"""An evaluation as a person reads it at the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featx.cli.output import out, table
from featx.counting import counted

if TYPE_CHECKING:
    from featx.evaluation import Evaluation
    from featx.leaks import Leaks
    from featx.metrics import Report


def print_evaluation(evaluation: Evaluation) -> None:
    """Figures with their intervals, every class, what is confused, and what was done on what."""
    report = evaluation.report
    console = out()
    figures = table(None, "measure", "value", "95 % interval", right=("value",))
    baseline = report.baseline
    leaks = evaluation.leaks
    near, without = (leaks.near, leaks.accuracy_without) if leaks else (0, None)
    for name, estimate in (
        ("accuracy", report.accuracy),
        (f"accuracy without {counted(near, 'near duplicate')}", without),
        (f"majority baseline ({baseline.class_name})", baseline.accuracy),
        ("top-5 accuracy", report.top5),
        ("balanced accuracy", report.balanced_accuracy),
        ("macro F1", report.macro_f1),
        ("weighted F1", report.weighted_f1),
        ("macro average precision", report.average_precision),
        ("macro ROC AUC", report.roc_auc),
        ("log-loss", report.log_loss),
        ("Brier score (0 to 2)", report.brier),
    ):
        if estimate is not None:
            interval = "" if estimate.low is None else f"{estimate.low:.3f} to {estimate.high:.3f}"
            figures.add_row(name, f"{estimate.value:.3f}", interval)
    figures.add_row("ECE (15 bins)", f"{report.ece.value:.3f}", _if_calibrated(report))
    where = f"{counted(report.n, 'image')} ({evaluation.tested_on}) of {evaluation.cache}"
    console.print(f"{evaluation.head} on {where}", style="bold")
    console.print(figures)
    _print_calibration(evaluation)
    per_class = table(
        None, "class", "precision", "recall", "F1", "AP", "AUC", "images",
        right=("precision", "recall", "F1", "AP", "AUC", "images"),
    )  # fmt: skip
    for row in report.per_class:
        shares = (row.precision, row.recall, row.f1, row.average_precision, row.roc_auc)
        per_class.add_row(row.name, *map(_fraction, shares), f"{row.support:,}")
    console.print()
    console.print(per_class)
    if report.most_confused:
        pairs = "; ".join(
            f"{p.true} as {p.predicted} ({p.count})" for p in report.most_confused[:5]
        )
        console.print(f"\nmost confused: {pairs}")
    if leaks is not None:
        console.print(f"\nleaks: {leaks_of_test(leaks)}")
    protocol = evaluation.protocol
    console.print(
        f"\nprotocol: trained on {protocol['trained_on']}; chosen on {protocol['chosen_on']}; "
        f"calibrated on {protocol['calibrated_on']}; tested on {protocol['tested_on']}, used for "
        f"{protocol['test_images_used_for']}"
    )
    if "group" in protocol["intervals_draw"] and report.accuracy.low is not None:
        console.print(f"\nintervals draw {protocol['intervals_draw']}")


def leaks_of_test(leaks: Leaks) -> str:
    """How many held-out images the head knows already, and which were looked at."""
    exact = f"{leaks.exact:,} exact (left out)"
    if leaks.why_exact_only:
        return f"{exact}; near duplicates were not looked for: {leaks.why_exact_only}"
    return (
        f"{exact}, {leaks.near:,} near (tested; similarity {leaks.threshold:g}) among "
        f"{counted(leaks.compared_with, 'image')} trained or chosen on"
    )


def _if_calibrated(report: Report) -> str:
    """What an ECE would be by chance alone, in the place of an interval."""
    if report.ece_if_calibrated is None:
        return ""
    low, high = report.ece_if_calibrated
    return f"a calibrated head: {low:.3f} to {high:.3f}"


def _print_calibration(evaluation: Evaluation) -> None:
    """The figures of the probabilities with the temperature and without."""
    calibration, plain = evaluation.calibration, evaluation.uncalibrated
    if calibration is None or plain is None:
        return
    shown = table(None, "probabilities", "log-loss", "Brier score", "ECE",
                  right=("log-loss", "Brier score", "ECE"))  # fmt: skip
    calibrated = f"at temperature {calibration['temperature']:.3g}, as above"
    for name, report in ((calibrated, evaluation.report), ("without calibration", plain)):
        losses = (report.log_loss, report.brier, report.ece)
        shown.add_row(name, *(f"{figure.value:.3f}" for figure in losses))
    out().print()
    out().print(shown)


def _fraction(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
