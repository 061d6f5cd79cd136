"""The heat map: change of perplexity by method and bits, a panel for each policy and group."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
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
from bitsweep.report.sheet import COLUMN_IN, TEXT_IN
from bitsweep.report.style import INK, PALE, SMALL_PT
from bitsweep.report.tables import signed

Square = list[tuple[float, float]]

MOST_LINES, FIRST_LINES = 54, 12
"""Methods of all panels that a page has room for; where they are more than twice as many only the
first few, to see what they look like: the table and the page have all of them."""

CROWD = 36
"""Methods of all panels from which lines stand closer, so that a page is high enough."""

CELL_PT = 21
"""As wide as a cell must be for its number."""

LETTER_PT = 3.9
"""About how wide a letter of a method's name or a panel's title is."""

TITLE_PT = 4.4
"""About how wide a letter of the figure's title is."""

Panel = tuple[str, str]
"""Policy and group."""


def draw(cells: pd.DataFrame, title: str) -> Figure:
    """Method x bits, a panel for each policy and group; hatched where there is no such point.

    Two panels stand side by side where they have the same methods and a column of paper has room
    for both; else one below the other, each with its own methods, as wide as the text where names
    and numbers need that.
    """
    cells, left = _fitting(cells)
    title += left
    measured = cells[cells["change"].notna()]
    panels = sorted(
        {(row["policy"], row["group"]) for row in labels.rows(measured)},
        key=lambda panel: (panel[0], len(panel[1]), panel[1]),  # g32 before g128
    )
    parts = {p: cells[(cells["policy"] == p[0]) & (cells["group"] == p[1])] for p in panels}
    rows = {
        panel: sorted(part.loc[part["change"].notna(), "method"].unique())
        for panel, part in parts.items()
    }
    bits = sorted(measured["bits"].unique())
    names = labels.short(sorted({name for own in rows.values() for name in own}))
    letters = max(map(len, names.values()))
    figure, grid = _layout(panels, rows, len(bits), letters)
    room = (figure.get_figwidth() * 72 - letters * LETTER_PT) / grid.shape[1]
    limit = max(1.0, float(cells["change"].abs().max()))
    norm = SymLogNorm(linthresh=0.1, vmin=-limit, vmax=limit)
    for axes, panel in zip(grid.flat, panels, strict=False):
        known = parts[panel]["method"].isin(rows[panel]) & parts[panel]["bits"].isin(bits)
        _panel(axes, parts[panel][known], rows[panel], bits, norm)
        axes.set_yticks(range(len(rows[panel])), [names[name] for name in rows[panel]])
        wide = len(_called(panel)) * LETTER_PT > room
        axes.set_title(_called(panel), loc="right" if wide else "center")
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes in grid[-1]:
        axes.set_xlabel("bits")
    lines = textwrap.wrap(title, int(figure.get_figwidth() * 72 / TITLE_PT))
    figure.set_figheight(figure.get_figheight() + 0.13 * (len(lines) - 1))
    figure.suptitle("\n".join(lines), fontsize=7.5)
    return figure


def _called(panel: Panel) -> str:
    return " ".join(word for word in panel if word)


def _layout(
    panels: Sequence[Panel], rows: Mapping[Panel, Sequence[str]], bits: int, letters: int
) -> tuple[Figure, Any]:
    """A figure with axes for all panels, whose longest name of a method has ``letters``."""
    named, numbers = letters * LETTER_PT + 8, bits * CELL_PT
    alike = len({tuple(own) for own in rows.values()}) == 1
    each = max(numbers, *(len(_called(panel)) * LETTER_PT for panel in panels))
    if len(panels) > 1 and alike and named + 2 * each + 8 <= COLUMN_IN * 72:
        down = math.ceil(len(panels) / 2)
        height = down * (0.24 * len(rows[panels[0]]) + 0.42) + 0.3
        figure = Figure(figsize=(COLUMN_IN, round(height, 4)), layout="constrained")
        return figure, figure.subplots(down, 2, squeeze=False, sharex=True, sharey=True)
    width = COLUMN_IN if named + numbers <= COLUMN_IN * 72 else TEXT_IN
    lines = sum(map(len, rows.values()))
    height = (0.19 if lines < CROWD else 0.14) * lines + 0.32 * len(panels) + 0.45
    # rounded: sums differ between versions of Python
    figure = Figure(figsize=(width, round(height, 4)), layout="constrained")
    ratios = [len(rows[panel]) + 0.5 for panel in panels]
    down = len(panels)
    return figure, figure.subplots(down, 1, squeeze=False, sharex=True, height_ratios=ratios)


def _fitting(cells: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The cells of the first rows that there is room for, and what the title says of the others."""
    keys = [
        (policy, len(group), group, method)
        for policy, group, method in zip(
            cells["policy"], cells["group"], cells["method"], strict=True
        )
    ]
    measured = {key for key, known in zip(keys, cells["change"].notna(), strict=True) if known}
    if len(measured) <= MOST_LINES:
        return cells, ""
    kept = {*sorted(measured)[: MOST_LINES if len(measured) <= 2 * MOST_LINES else FIRST_LINES]}
    left = f"; {len(kept)} of {len(measured)} rows"
    return cells[[key in kept for key in keys]], left


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
            column, line, _short(change), ha="center", va="center", fontsize=SMALL_PT,
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
    axes.set_xticks(range(len(bits)), [f"{b:g}" for b in bits])
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
