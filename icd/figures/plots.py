"""Plots that several chapters share: a run's curves, methods over seeds, intervals, similar regions.

Functions take arrays and rows of numbers and return a matplotlib figure in the book's style.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from icd.figures.style import INK, PALETTE, colour, line_style

#: Term -> the method whose colour it takes, and its label.
_TERMS = {name.lower().replace("-", "_"): (name, name) for name in PALETTE}
_TERMS |= {"clustering": ("iCD-KD", "clustering"), "cross_entropy": ("student", "cross-entropy")}


def term_curves(history: Sequence[Mapping[str, Any]], terms: Sequence[str]) -> Figure:
    """Plot the weighted value of each term over epochs, on a logarithmic axis.

    `history` is the log that `icd.fit` returns. A term takes the colour of its method: `sd_kd` that of SD-KD,
    `clustering` that of iCD, `cross_entropy` the student's; any other takes the next of `NEUTRAL`. Raises
    ValueError for a term that an epoch's log lacks.
    """
    figure, axis = plt.subplots()
    epochs = [row["epoch"] for row in history]
    for term in terms:
        if missing := [row["epoch"] for row in history if term not in row]:
            raise ValueError(f'the log of epoch {missing[0]} has no term "{term}"')
    for term in terms:
        axis.plot(epochs, [row[term] for row in history], **_term_style(term))
    axis.set(xlabel="epoch", ylabel="weighted loss", yscale="log")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend()
    return figure


def _term_style(term: str) -> dict[str, Any]:
    """Return keyword arguments for `Axes.plot`: the line and label of a term."""
    if term not in _TERMS:
        return {"label": term.replace("_", " ")}
    method, label = _TERMS[term]
    return line_style(method) | {"label": label}


def seeds_and_means(scores: Mapping[str, Sequence[float]], xlabel: str) -> Figure:
    """Plot a dot for each run and a bar at each method's mean; methods from top to bottom."""
    figure, axis = plt.subplots(figsize=(6.8, 0.6 + 0.5 * len(scores)))
    for row, (name, values) in enumerate(scores.items()):
        axis.plot(values, np.full(len(values), row), "o", color=colour(name), alpha=0.55, markersize=7)
        axis.plot([np.mean(values)] * 2, [row - 0.28, row + 0.28], color=colour(name), linewidth=3)
    _name_rows(axis, list(scores), xlabel)
    return figure


def forest(intervals: Mapping[str, Sequence[float]], xlabel: str) -> Figure:
    """Plot mean differences with their intervals, and a line at zero.

    Each interval begins with mean, low and high, as `icd.experiments.statistics.Interval` does.
    """
    figure, axis = plt.subplots(figsize=(6.8, 0.6 + 0.5 * len(intervals)))
    axis.axvline(0, color=INK, linewidth=1)
    for row, (name, (mean, low, high, *_)) in enumerate(intervals.items()):
        shade = PALETTE.get(name.split()[0], INK)
        axis.plot([low, high], [row, row], color=shade)
        axis.plot(mean, row, "o", color=shade, markersize=8)
    _name_rows(axis, list(intervals), xlabel)
    return figure


def similarity(
    axis: Axes, image: np.ndarray, cosines: np.ndarray, region: int, title: str, low: float = -1.0
) -> None:
    """Draw an image (S, S, 3), bright where its regions are similar to `region`, which is outlined.

    `cosines` (m, m) are the regions' similarities to `region`: at 1 a region is bright, at `low` dark.
    """
    m, side = len(cosines), len(image)
    light = np.clip((cosines - low) / (1 - low), 0, 1)
    cells = np.minimum(np.arange(side) * m // side, m - 1)
    lit = image / 255 * (0.08 + 0.92 * light[cells][:, cells, None])
    axis.imshow(lit, interpolation="nearest")
    cell = side / m
    row, column = divmod(region, m)
    corner = (column * cell - 0.5, row * cell - 0.5)
    axis.add_patch(Rectangle(corner, cell, cell, fill=False, edgecolor="white", linewidth=2))
    axis.set_axis_off()
    axis.set_title(title, loc="center", fontsize=10)


def _name_rows(axis: Axes, names: list[str], xlabel: str) -> None:
    axis.set(xlabel=xlabel, yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.4, -0.6))
    axis.grid(axis="x")
    axis.grid(visible=False, axis="y")
    axis.spines["left"].set_visible(False)
    axis.tick_params(axis="y", length=0)
