"""The picture of a learning curve: accuracy by the number of training images a class."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from featx.few_shot import LearningCurve
from featx.report.fonts import fonts_for
from featx.report.plots import DPI, MUTED, TRAIN_COLOUR, save_png, text_style


def learning_curve_png(path: str | os.PathLike[str], curve: LearningCurve) -> tuple[str, ...]:
    """Draw a learning curve with its 95 % band, every repeat as a dot, and the baseline.

    Parameters
    ----------
    path
        The PNG to write; its folder is made, an existing file replaced.
    curve
        As `featx.learning_curve` returns it. The point of all training images stands last.

    Returns
    -------
    tuple of str
        Sentences for the user, such as characters without a font; usually empty.
    """
    title = f"{curve.head} on {curve.cache.name}"
    fonts = fonts_for([title])
    figure = Figure(figsize=(6.4, 4.2), dpi=DPI)
    figure.set_layout_engine("constrained")
    axes = figure.add_subplot()
    text, small = text_style(fonts, 10.0), text_style(fonts, 8.0)
    x = np.arange(len(curve.points))  # shots double from point to point: a logarithmic axis
    value = [point.accuracy.value for point in curve.points]
    low = [_or_value(point.accuracy.low, point.accuracy.value) for point in curve.points]
    high = [_or_value(point.accuracy.high, point.accuracy.value) for point in curve.points]
    axes.fill_between(x, low, high, color=TRAIN_COLOUR, alpha=0.15, lw=0, label="95 % interval")
    for i, point in enumerate(curve.points):
        axes.plot(
            np.full(len(point.accuracies), i),
            point.accuracies,
            ls="",
            marker="o",
            ms=3,
            color=TRAIN_COLOUR,
            alpha=0.35,
            label="one draw" if not i else None,
        )
    axes.plot(x, value, color=TRAIN_COLOUR, lw=1.8, marker="o", ms=4.5, label="mean accuracy")
    axes.axhline(curve.baseline, color=MUTED, lw=1, ls="--", label="commonest class")
    names = ["all" if point.shots is None else f"{point.shots:,}" for point in curve.points]
    axes.set_xticks(x, names, **small)
    axes.set_xlabel("training images a class", color=MUTED, **text)
    axes.set_ylabel(f"accuracy on {curve.n_test:,} held-out images", color=MUTED, **text)
    axes.set_title(fonts.shown(title), pad=10, **text_style(fonts, 12.0))
    axes.set_ylim(top=1.02)
    axes.grid(color="#e4e6ea", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=MUTED, labelsize=8)
    figure.legend(frameon=False, prop=fonts.properties(9.0), loc="outside lower center", ncols=4)
    save_png(figure, Path(path))
    return (fonts.warning,) if fonts.warning else ()


def _or_value(bound: float | None, value: float) -> float:
    return value if bound is None else bound
