"""Plots of an evaluation and of a training run, as PNG files.

Drawn through matplotlib's object interface on the Agg canvas: no window, no pyplot, and no setting
of the calling program or notebook is read or changed where it would alter the picture's fonts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from featx.cache.files import WRITE_ELSEWHERE, told_as_disk_error
from featx.errors import InputError
from featx.metrics import Reliability
from featx.report.fonts import TextFonts, fonts_for

DPI = 150
_MAX_CLASSES_WITH_NUMBERS = 20  # more cells than this and the numbers would not be readable
_MAX_TICKS = 60  # class names on one axis; above it every second, third, ... name is shown
_MAX_NAME_LENGTH = 28
_COLOUR_MAP = "cividis"  # Nunez et al. 2018: the same order for every colour vision
TRAIN_COLOUR, VAL_COLOUR = "#0072B2", "#D55E00"  # Okabe and Ito: blue, vermilion
MUTED = "#5f6368"


def save_png(figure: Figure, path: Path) -> None:
    """Write the PNG beside its place and rename it, so that nobody sees half a picture.

    Raises
    ------
    DiskError
        It cannot be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with told_as_disk_error(path, "write", WRITE_ELSEWHERE):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            FigureCanvasAgg(figure).print_png(str(beside))
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)


def text_style(fonts: TextFonts, size_pt: float) -> dict[str, Any]:
    """How text of so many points is written."""
    # A class called "5$ and 6$" is a name, not a formula.
    return {"fontproperties": fonts.properties(size_pt), "parse_math": False, "usetex": False}


def _short(text: str) -> str:
    return text if len(text) <= _MAX_NAME_LENGTH else text[: _MAX_NAME_LENGTH - 1] + "…"


def _check_counts(counts: np.ndarray, names: Sequence[str]) -> np.ndarray:
    counts = np.asarray(counts)
    k = len(names)
    if k == 0 or counts.shape != (k, k):
        raise InputError(
            f"a confusion matrix of {k} class names must have shape ({k}, {k}), at least (1, 1); "
            f"got {counts.shape}"
        )
    if not np.issubdtype(counts.dtype, np.integer) or (counts < 0).any():
        raise InputError(
            f"a confusion matrix holds counts: integers from 0; got {counts.dtype} "
            f"with minimum {counts.min()}"
        )
    return counts


def _row_shares(counts: np.ndarray) -> np.ndarray:
    """Each row divided by its sum; NaN, drawn as paper, for a class that was never tested."""
    totals = counts.sum(axis=1, keepdims=True)
    return np.divide(counts, totals, out=np.full(counts.shape, np.nan), where=totals > 0)


def confusion_matrix_png(
    path: str | os.PathLike[str],
    counts: np.ndarray,
    names: Sequence[str],
    *,
    title: str,
    normalise: bool = True,
) -> tuple[str, ...]:
    """Draw a confusion matrix: rows are the true classes, columns the predicted ones.

    Parameters
    ----------
    path
        The PNG to write; its folder is made, an existing file replaced.
    counts
        (k, k) integers from 0: images of the row's class that were predicted as the column's.
    names
        k class names, in any script; long ones are shortened.
    title
        A line above the matrix.
    normalise
        Colour by the share of the row (0 to 1), so that rare and frequent classes compare; False
        colours by the count. The numbers in the cells are counts either way; they are written for
        20 classes or fewer. With more than 60 classes only every second, third, ... has its name.

    Returns
    -------
    tuple of str
        Sentences for the user, such as characters without a font; usually empty.

    Raises
    ------
    InputError
        For counts of another shape than the names say, or that are no counts.
    """
    counts = _check_counts(counts, names)
    k = len(names)
    fonts = fonts_for([*names, title, "…"])
    labels = [_short(fonts.shown(name)) for name in names]
    colours = _row_shares(counts) if normalise else counts.astype(float)
    side = float(np.clip(0.55 * k, 2.6, 11.0))  # inches of the square
    label_pt = float(np.clip(72 * side / min(k, _MAX_TICKS) * 0.62, 4.5, 10.0))
    margin = 0.012 * label_pt * max(len(label) for label in labels) + 0.7
    figure = Figure(figsize=(side + margin + 1.0, side + margin + 0.4), dpi=DPI)
    figure.set_layout_engine("constrained")
    axes = figure.add_subplot()
    top = 1.0 if normalise else max(1.0, float(counts.max()))
    image = axes.imshow(colours, cmap=_COLOUR_MAP, vmin=0.0, vmax=top, interpolation="nearest")
    step = -(-k // _MAX_TICKS)
    ticks = np.arange(0, k, step)
    style = text_style(fonts, label_pt)
    turn: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    if k > _MAX_CLASSES_WITH_NUMBERS:
        turn = {"rotation": 90}
    axes.set_xticks(ticks, [labels[i] for i in ticks], **turn, **style)
    axes.set_yticks(ticks, [labels[i] for i in ticks], **style)
    axes.tick_params(length=0 if step == 1 else 2, color=MUTED)
    axes.spines[:].set_visible(False)
    text = text_style(fonts, 10.0)
    axes.set_xlabel("predicted class", color=MUTED, **text)
    axes.set_ylabel("true class", color=MUTED, **text)
    axes.set_title(fonts.shown(title), pad=12, **text_style(fonts, 12.0))
    if k <= _MAX_CLASSES_WITH_NUMBERS:
        _write_counts(axes, counts, colours / top, fonts, 72 * side / k)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=24, pad=0.03)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=8, colors=MUTED)
    bar.set_label("share of the true class" if normalise else "images", color=MUTED, **text)
    save_png(figure, Path(path))
    notes = [fonts.warning] if fonts.warning else []
    if step > 1:
        notes.append(f"{Path(path).name} has names on one class in {step}; there are {k}")
    return tuple(notes)


def _write_counts(
    axes: Any, counts: np.ndarray, shades: np.ndarray, fonts: TextFonts, cell_pt: float
) -> None:
    """Write the count into each cell: light on dark cells, zeros left faint."""
    axes.set_xticks(np.arange(1, len(counts)) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, len(counts)) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="minor", length=0)
    digits = len(str(int(counts.max())))
    style = text_style(fonts, float(np.clip(cell_pt / max(digits, 2) * 0.85, 4.0, 11.0)))
    for (row, column), count in np.ndenumerate(counts):
        shade = shades[row, column]
        ink = "#1d1d1f" if np.isnan(shade) or shade > 0.55 else "white"
        faint = 0.45 if count == 0 else 1.0
        axes.text(
            column, row, f"{count}", ha="center", va="center", color=ink, alpha=faint, **style
        )


_CURVES = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")


def _check_history(history: Mapping[str, Any]) -> tuple[dict[str, list[float]], int | None]:
    missing = [key for key in _CURVES if key not in history]
    if missing:
        raise InputError(
            f"a training history needs {', '.join(_CURVES)}; missing are {', '.join(missing)}"
        )
    curves = {key: [float(value) for value in history[key]] for key in _CURVES}
    epochs = len(curves["train_loss"])
    lengths = {key: len(values) for key, values in curves.items()}
    # Without validation images there are no validation curves: empty lists.
    if epochs == 0 or any(length not in (0, epochs) for length in lengths.values()):
        raise InputError(
            f"a training history needs one value per epoch in each list; got {lengths}"
        )
    best = history.get("best_epoch")
    if best is not None and not 0 <= int(best) < epochs:
        raise InputError(f"best_epoch must be 0 to {epochs - 1} (epochs count from 0); got {best}")
    return curves, None if best is None else int(best)


def training_curves_png(
    path: str | os.PathLike[str],
    history: Mapping[str, Any],
    *,
    others: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
    title: str = "Training of the head",
) -> tuple[str, ...]:
    """Draw loss and accuracy per epoch, on the training and the validation images.

    Parameters
    ----------
    path
        The PNG to write; its folder is made, an existing file replaced.
    history
        "train_loss", "train_accuracy", "val_loss" and "val_accuracy": a float per epoch each,
        accuracies 0 to 1; the validation lists may be empty. "best_epoch": the index of the epoch
        whose weights were kept, from 0, or absent. The plot counts epochs from 1.
    others
        "val_loss" and "val_accuracy" of networks that were not kept, by their names: thin lines
        from dark to light in the order given.
    title
        A line above the plot.

    Returns
    -------
    tuple of str
        Sentences for the user, as `confusion_matrix_png` returns them.

    Raises
    ------
    InputError
        For missing lists, lists of different lengths, or a best epoch outside them.
    """
    curves, best = _check_history(history)
    fonts = fonts_for([title])
    figure = Figure(figsize=(9.0, 3.6), dpi=DPI)
    figure.set_layout_engine("constrained")
    figure.suptitle(fonts.shown(title), **text_style(fonts, 12.0))
    epochs = np.arange(1, len(curves["train_loss"]) + 1)
    marker = "o" if len(epochs) <= 30 else None
    thin = list((others or {}).items())
    for axes, what in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for i, (_, curve) in enumerate(thin):
            values, shade = curve[f"val_{what}"], colormaps[_COLOUR_MAP](i / len(thin))
            axes.plot(np.arange(1, len(values) + 1), values, color=shade, lw=0.8)
        for part, colour in (("train", TRAIN_COLOUR), ("val", VAL_COLOUR)):
            values = curves[f"{part}_{what}"]
            name = "training" if part == "train" else "validation"
            if values:
                axes.plot(epochs, values, color=colour, lw=1.8, marker=marker, ms=3.5, label=name)
        if best is not None:
            axes.axvline(best + 1, color=MUTED, lw=1, ls=":", zorder=0)
            axes.annotate(
                f"kept: epoch {best + 1}",
                (best + 1, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(0, 3),  # above the frame, where no curve runs
                textcoords="offset points",
                ha="center",
                va="bottom",
                color=MUTED,
                **text_style(fonts, 8.0),
            )
        axes.set_xlabel("epoch", color=MUTED, **text_style(fonts, 10.0))
        axes.set_ylabel(what, color=MUTED, **text_style(fonts, 10.0))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(color="#e4e6ea", lw=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=MUTED, labelsize=8)
        if what == "accuracy":
            axes.set_ylim(top=1.02)
        elif thin:
            axes.set_yscale("log")  # networks that were not kept may be far off
    if thin:
        lines = figure.axes[0].lines[: len(thin)]
        names = [f"validation, {name}" for name, _ in thin]
        style = {"frameon": False, "prop": fonts.properties(7.0)}
        figure.legend(lines, names, loc="outside right upper", **style)
    # below the frames, where it covers no curve
    both: dict[str, Any] = {"frameon": False, "prop": fonts.properties(9.0), "ncols": 2}
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", **both)
    save_png(figure, Path(path))
    return (fonts.warning,) if fonts.warning else ()


def reliability_png(
    path: str | os.PathLike[str], curves: Mapping[str, Reliability], *, title: str
) -> tuple[str, ...]:
    """Draw how often a head is right by how sure it is, beside the diagonal of a calibrated one.

    Parameters
    ----------
    path
        The PNG to write; its folder is made, an existing file replaced.
    curves
        What a curve is of (such as "at temperature 1.3") and the curve: one or two. A point is a
        bin that has images, its bar the Wilson 95 % interval of the accuracy; below it stands the
        bin's share of the images.
    title
        A line above the plot.

    Returns
    -------
    tuple of str
        Sentences for the user, as `confusion_matrix_png` returns them.
    """
    fonts = fonts_for([title, *curves])
    figure = Figure(figsize=(5.4, 6.8), dpi=DPI)
    figure.set_layout_engine("constrained")
    top, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    top.plot([0, 1], [0, 1], color=MUTED, lw=1, ls=":", label="a calibrated head")
    for place, (name, curve) in enumerate(curves.items()):
        colour = (TRAIN_COLOUR, VAL_COLOUR)[place]
        filled = curve.count > 0
        confidence, accuracy = curve.confidence[filled], curve.accuracy[filled]
        bars = np.abs(_wilson(accuracy, curve.count[filled]) - accuracy)  # (2, bins)
        label = f"{fonts.shown(name)}: ECE {curve.ece:.3f}"
        style: dict[str, Any] = {"color": colour, "marker": "o", "ms": 4, "lw": 1.0}
        top.errorbar(confidence, accuracy, bars, elinewidth=0.8, capsize=2, label=label, **style)
        shares, width = curve.count / curve.count.sum(), np.diff(curve.edges) / len(curves)
        left = curve.edges[:-1] + place * width
        below.bar(left, shares, width * 0.9, align="edge", color=colour)
    top.set_title(fonts.shown(title), pad=10, **text_style(fonts, 12.0))
    top.set_ylabel("share that is right", color=MUTED, **text_style(fonts, 10.0))
    below.set_ylabel("share of images", color=MUTED, **text_style(fonts, 10.0))
    below.set_xlabel(
        "confidence: probability of the predicted class", color=MUTED, **text_style(fonts, 10.0)
    )
    top.set_ylim(-0.02, 1.02)
    top.set_xlim(0, 1)
    figure.legend(frameon=False, prop=fonts.properties(9.0), loc="outside lower center")
    for axes in (top, below):
        axes.grid(color="#e4e6ea", lw=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=MUTED, labelsize=8)
    save_png(figure, Path(path))
    return (fonts.warning,) if fonts.warning else ()


def _wilson(share: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Wilson's 95 % interval (1927) of shares (b,) of n (b,): (2, b), lower and upper bounds."""
    z2 = 1.959964**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n**2))) / (1 + z2 / n)
    return np.clip([centre - half, centre + half], 0, 1)
