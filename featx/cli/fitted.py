"""A fitted head as a person reads it at the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featx.cli.output import images, out, table, tell
from featx.counting import counted

if TYPE_CHECKING:
    from featx.fitting import Fit
    from featx.leaks import Leaks


def print_final(made: Fit) -> None:
    report = made.file.metadata["final"]["report"]
    value, low, high = (report["accuracy"][name] for name in ("value", "low", "high"))
    interval = "" if low is None else f" ({low:.3f} to {high:.3f})"
    tell(
        f"the same settings on all {len(made.split.train):,} labelled images: {made.path}. What to "
        f"say of it is what the head before had on {report['n']:,} {report['tested_on']}: accuracy "
        f"{value:.3f}{interval}. Next: featx predict"
    )


def print_fit(fitted: Fit, *, is_last: bool = True) -> None:
    """The head, how it was chosen, and what was left out."""
    metadata, split = fitted.file.metadata, fitted.split
    for note in split.notes:
        tell(note)
    if split.unlabelled:
        tell(f"left out: {images(split.unlabelled)} without a label")
    if split.left_out:
        tell(f"left out: {images(split.left_out)} outside the given split")
    facts = metadata["fit"]
    shown = table(None, "head", "classes", "trained on", "chosen on", "held out", "chosen",
                  "majority in training")  # fmt: skip
    counts = metadata["split"]["train_counts"]
    shown.add_row(
        str(fitted.path),
        f"{len(fitted.file.classes):,}",
        images(len(split.train)),
        metadata["split"]["chosen_on"],
        f"{len(split.held_out):,} ({split.held_out_name})",
        _chosen(facts),
        f"{max(counts) / sum(counts):.3f}",
    )
    out().print(shown)
    if "converged" in facts:
        reached = "converged" if facts["converged"] else "NOT converged"
        tell(
            f"{reached} to gradient norm {facts['gradient_norm']:.1e} "
            f"after {facts['n_iter']} iterations"
        )
    if "calibration" in metadata:
        tell(_calibrated(metadata["calibration"]))
    if fitted.leaks is not None:
        tell(_leaks_of_split(fitted, fitted.leaks))
    tell(f"split: {split.source}.{' Next: featx evaluate' if is_last else ''}")


def _calibrated(calibration: Mapping[str, Any]) -> str:
    """The temperature, and what it does on the images it was fitted on."""
    if not calibration["n_wrong"]:
        return f"temperature 1, fitted on {calibration['fitted_on']}"
    loss, ece = calibration["log_loss"], calibration["ece"]
    low, high = calibration["interval"]
    told = (
        f"calibrated: temperature {calibration['temperature']:.3g} (95 % interval {low:.3g} to "
        f"{high:.3g}) fitted on {calibration['fitted_on']}, {calibration['n_wrong']:,} of them "
        f"wrong; on these its log-loss goes from {loss['before']:.3f} to {loss['after']:.3f}, its "
        f"ECE from {ece['before']:.3f} to {ece['after']:.3f}"
    )
    return told + ("; 1 is in the interval: it may be no gain" if low <= 1 <= high else "")


def _leaks_of_split(fitted: Fit, leaks: Leaks) -> str:
    """Whether held-out images are duplicates of others, and what to do about it."""
    held_out = counted(len(fitted.split.held_out), "held-out image")
    trained = f"the {len(fitted.split.train) + len(fitted.split.val):,} trained or chosen on"
    near = f"{leaks.near:,} near, similarity {leaks.threshold:g}"
    if leaks.why_exact_only:
        near = f"near ones were not looked for: {leaks.why_exact_only}"
    if not leaks.pairs:
        return f"leaks: none of {held_out} has a duplicate among {trained} (0 exact, {near})"
    return (
        f"leaks: {len(leaks.pairs):,} of {held_out} {'has' if len(leaks.pairs) == 1 else 'have'} a "
        f"duplicate among {trained} "
        f"({leaks.exact:,} exact, {near}); evaluate leaves the exact ones out and gives the "
        "accuracy without the near ones; --group-duplicates keeps duplicates on one side of a "
        "split by seed"
    )


def _chosen(facts: dict[str, Any]) -> str:
    """What was chosen and how well it did where it was chosen."""
    choice = facts["choice"]
    told = ""
    if choice["accuracy"] is not None:
        told = f" (accuracy {choice['accuracy']:.3f}{_spread(facts)})"
    return f"{choice['what']}{told}"


def _spread(facts: dict[str, Any]) -> str:
    """How far several seeds lie apart."""
    results = facts.get("seed_results") or []
    accuracies = [row["val_accuracy"] for row in results if row["val_accuracy"] is not None]
    if len(results) < 2:
        return ""
    return f"; {len(accuracies)} seeds {min(accuracies):.3f} to {max(accuracies):.3f}"


def draw_curves(fitted: Fit, path: Path) -> None:
    from featx.report.plots import training_curves_png

    facts = fitted.file.metadata["fit"]
    epochs, names = facts["history"], ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
    history = {name: [epoch[name] for epoch in epochs if epoch[name] is not None] for name in names}
    others: dict[str, dict[str, list[float]]] = {}  # learning rates not kept
    for epoch in getattr(fitted.file.head, "lr_history_", []):
        if epoch["lr"] != facts["lr"]:
            curves = others.setdefault(f"lr {epoch['lr']:g}", {"val_loss": [], "val_accuracy": []})
            for name, values in curves.items():
                values.append(epoch[name])
    best = {"best_epoch": facts["best_epoch"] - 1}
    title = f"Training of the head, lr {facts['lr']:g}" if others else "Training of the head"
    for note in training_curves_png(path, {**history, **best}, others=others, title=title):
        tell(note)
    tell(f"wrote {path}")
