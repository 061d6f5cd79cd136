"""The heat map: change of perplexity by method and bits, a panel for each policy and group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from bitsweep.report import labels
from bitsweep.report.style import COLUMN_IN, INK, PALE
from bitsweep.report.tables import signed

Square = list[tuple[float, float]]

MOST_ROWS = 10
"""Methods that a heat map one column wide has room for."""


MOST_LINES = 50
"""Methods of all panels that a page has room for; the table has the others."""


def draw(cells: pd.DataFrame, title: str) -> Figure:
    """Method x bits, a panel for each policy and group; hatched where there is no such point."""
    cells, every = _fitting(cells)
    title += f"; {MOST_LINES} of {every} rows" if every > MOST_LINES else ""
    measured = cells[cells["change"].notna()]
    panels = sorted(
        {(row["policy"], row["group"]) for row in labels.rows(measured)},
        key=lambda panel: (panel[0], len(panel[1]), panel[1]),  # g32 before g128
    )
    parts = [cells[(cells["policy"] == p) & (cells["group"] == g)] for p, g in panels]
    methods = sorted(cells["method"].unique())
    if len(methods) > MOST_ROWS:
        rows = [sorted(part["method"].unique()) for part in parts]
        figure, grid = _page_wide(rows)
    else:
        rows = [methods] * len(panels)
        figure, grid = _column_wide(len(panels), len(methods))
    bits = sorted(cells["bits"].unique())
    limit = max(1.0, float(cells["change"].abs().max()))
    norm = SymLogNorm(linthresh=0.1, vmin=-limit, vmax=limit)
    for axes, panel, part, own in zip(grid.flat, panels, parts, rows, strict=False):
        _panel(axes, part, own, bits, norm)
        axes.set_title(" ".join(word for word in panel if word))
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes in grid[-1]:
        axes.set_xlabel("bits")
    figure.suptitle(title, fontsize=7.5)
    return figure


def _fitting(cells: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """The cells of the first rows that there is room for, and how many rows there are."""
    keys = [
        (policy, len(group), group, method)
        for policy, group, method in zip(
            cells["policy"], cells["group"], cells["method"], strict=True
        )
    ]
    measured = {key for key, known in zip(keys, cells["change"].notna(), strict=True) if known}
    kept = {*sorted(measured)[:MOST_LINES]}
    if len(measured) == len(kept):
        return cells, len(measured)
    return cells[[key in kept for key in keys]], len(measured)


def _column_wide(panels: int, methods: int) -> tuple[Figure, Any]:
    """Two panels side by side, all with the same methods."""
    across = min(2, panels)
    down = math.ceil(panels / across)
    height = down * (0.24 * methods + 0.42) + 0.3
    figure = Figure(figsize=(COLUMN_IN, height), layout="constrained")
    return figure, figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)


def _page_wide(rows: Sequence[Sequence[str]]) -> tuple[Figure, Any]:
    """A panel below the other, each with the methods that it has: long names need the width."""
    height = round(sum(0.17 * len(own) + 0.32 for own in rows) + 0.4, 4)  # Pythons sum unalike
    figure = Figure(figsize=(2 * COLUMN_IN + 0.25, height), layout="constrained")
    ratios = [len(own) + 0.5 for own in rows]
    return figure, figure.subplots(len(rows), 1, squeeze=False, sharex=True, height_ratios=ratios)


def _panel(
    axes: Axes, part: pd.DataFrame, methods: Sequence[str], bits: Sequence[float], norm: SymLogNorm
) -> None:
    colors = matplotlib.colormaps["RdBu_r"]
    known: list[tuple[Square, tuple[float, ...]]] = []
    empty: list[Square] = []
    for row in labels.rows(part):
        column, line = bits.index(row["bits"]), methods.index(row["method"])
        change = row["change"]
        if change is None:
            empty.append(_square(column, line))
            continue
        shade = 0.5 + 0.86 * (float(norm(change)) - 0.5)  # keep off the darkest ends: text on it
        color = colors(shade)
        known.append((_square(column, line), color))
        light = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
        text = axes.text(
            column, line, _short(change), ha="center", va="center", fontsize=5.8,
            color=INK if light > 0.5 else "white",
        )  # fmt: skip
        text.set_in_layout(False)  # it is inside its cell
    if known:
        squares, shades = zip(*known, strict=True)
        axes.add_collection(PolyCollection(squares, facecolors=shades, edgecolors="white", lw=1))
    if empty:  # one path: each hatched patch is a pattern of its own
        path = Path.make_compound_path(*(Path(square, closed=True) for square in empty))
        axes.add_patch(PathPatch(path, fc=PALE, ec="#B0B0B0", hatch="/////", lw=0))
    axes.set_xlim(-0.5, len(bits) - 0.5)
    axes.set_ylim(len(methods) - 0.5, -0.5)
    called = (
        labels.short(methods) if len(methods) <= MOST_ROWS else {name: name for name in methods}
    )
    axes.set_xticks(range(len(bits)), [f"{b:g}" for b in bits])
    axes.set_yticks(range(len(methods)), [called[name] for name in methods])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _square(column: float, line: float) -> Square:
    """The corners of a cell, the first one twice: the path is closed."""
    left, top, right, bottom = column - 0.5, line - 0.5, column + 0.5, line + 0.5
    return [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]


def _short(change: float) -> str:
    """Per cent in at most five signs: +0.02, +2.6, +114, +26e4."""
    size = abs(change)
    if size >= 1e4:
        return f"{change / 1e3:+.0f}e3" if size < 1e5 else f"{change / 1e4:+.0f}e4"
    return signed(change, 2 if size < 1 else 1 if size < 100 else 0)
