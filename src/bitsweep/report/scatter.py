"""Perplexity against a cost, with its front: one column wide."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from bitsweep.report import labels, seeds
from bitsweep.report.frame import is_reference
from bitsweep.report.front import front
from bitsweep.report.labels import LEGEND_CAP
from bitsweep.report.sheet import COLUMN_IN
from bitsweep.report.style import FAINT, INK, MARKERS, PALE, PALETTE, SMALL_PT, settle, short_number

MOST_LINES = 4
"""Of a legend, before the figure grows with it."""

MOST_POINTS = 300
"""Of a front, before those behind it are drawn as a cloud: there intervals hide each other."""

LINEAR_BELOW = 0.05
"""Per cent of change below which the perplexity axis is linear, so that 0 and less have a place."""

FAR = 2.5
"""How many times the smallest cost the largest may be, before the axis is logarithmic."""

PLOT_PT = 150, 115
"""About how wide and high the axes are, for what must fit into them before they are laid out."""

LETTER_PT = 0.58 * SMALL_PT
"""About how wide a letter of a point's name is."""

OTHERS = (FAINT, ".")
"""The look of methods that are too many to be told apart."""

Name = Callable[[labels.Row], str]
"""What a point is called: points of one name look alike."""

Point = tuple[labels.Row, str]
"""A row and its mark on the front."""


def baseline(part: pd.DataFrame, metric: str) -> float | None:
    """Full precision's own value, from any row that knows its ratio to it."""
    ratio = f"{metric}.delta"
    if ratio not in part:
        return None
    known = part[part[ratio].notna() & part[metric].notna()]
    return None if known.empty else float((known[metric] / known[ratio]).iloc[0])


def front_figure(
    part: pd.DataFrame,
    x: str,
    x_label: str,
    y: str,
    looks: dict[str, tuple[str, str]],
    name: Name,
    title: str,
) -> Figure:
    """Quality against cost: filled on the front, hollow when tied, faint when dominated.

    Points that differ in nothing but seeds are one, at their mean, with their standard deviation.
    """
    figure = Figure(figsize=(COLUMN_IN, 2.5), layout="constrained")
    axes = figure.add_subplot()
    part = seeds.averaged(part, [x, y])
    marks = front(part, x, y)
    base = baseline(part, y)
    points = [
        (row, marks[index])
        for index, row in zip(part.index, labels.rows(part), strict=True)
        if row["status"] == "ok" and not is_reference(row)
        and row.get(x) is not None and row.get(y) is not None
    ]  # fmt: skip
    best = [row for row, mark in points if mark == "front"]
    higher = part.attrs["metrics"][x]["better"] == "higher"
    _axis(axes, y, base, [row[y] for row, _ in points])
    where: Literal["pre", "post"] = "pre" if higher else "post"
    corners = sorted((row[x], row[y]) for row in best)
    axes.step(*zip(*corners, strict=True), where=where, color=FAINT, lw=0.9, zorder=1)
    present = [(name(row), mark) for row, mark in points]
    looks = looks if len(looks) <= len(PALETTE) else _told_apart(present)
    crowd = len(points) > MOST_POINTS
    for (row, mark), (own, _) in zip(points, present, strict=True):
        if not crowd or mark == "front":
            _point(axes, row, mark, x, y, looks[own])
    if crowd:
        _cloud(axes, points, x, y, [looks[own] for own, _ in present])
    if x == "decode_vs_bf16":
        axes.axvline(1, color=FAINT, lw=0.7, ls=":")
    axes.set_xlabel(x_label)
    _spread(axes, [row[x] for row, _ in points])
    _make_room(axes, best, x, higher)
    _legend(figure, axes, points, {own for own, _ in present}, looks, title)
    _name_front(axes, best, x, y, higher)
    return figure


def _told_apart(present: Sequence[tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """Looks for as many names as eyes can tell apart: those most on the front, then those tied.

    ``present`` has the name and the mark of each point; the other names are grey.
    """
    order = ("front", "tied", "dominated")
    counts = Counter(present)

    def rank(name: str) -> tuple[int, ...]:
        return tuple(-counts[name, mark] for mark in order)

    ranked = sorted({name for name, _ in present}, key=lambda name: (rank(name), name))
    first = sorted(ranked[: len(PALETTE) - 1])
    looks = {name: (PALETTE[i], MARKERS[i]) for i, name in enumerate(first)}
    return looks | dict.fromkeys(sorted(set(ranked) - set(first)), OTHERS)


def _point(axes: Axes, row: labels.Row, mark: str, x: str, y: str, look: tuple[str, str]) -> None:
    color, marker = look
    kept = mark in ("front", "tied")
    alpha, edge = (1.0, 0.9) if kept else (0.4, 0.0)
    order = 4 if mark == "front" else 3
    bounds = [row.get(f"{y}.delta{end}") for end in ("", ".lo", ".hi")]
    if None not in bounds:
        middle, lo, hi = bounds
        scale = row[y] / middle
        reach = [[max(row[y] - lo * scale, 0.0)], [max(hi * scale - row[y], 0.0)]]
        axes.errorbar(row[x], row[y], reach, color=color, lw=0.7, alpha=alpha, zorder=2)
    face = "white" if mark == "tied" else color
    style: dict[str, Any] = {
        "mfc": face,
        "mec": color,
        "mew": edge,
        "alpha": alpha,
        "zorder": order,
    }
    axes.plot(row[x], row[y], marker, ms=4, ls="", **style)


def _cloud(
    axes: Axes, points: Sequence[Point], x: str, y: str, looks: Sequence[tuple[str, str]]
) -> None:
    """The points behind the front of a crowd, small and without intervals: where they lie."""
    found: dict[tuple[str, tuple[str, str]], list[tuple[float, float]]] = {}
    for (row, mark), look in zip(points, looks, strict=True):
        if mark != "front":
            found.setdefault((mark, look), []).append((row[x], row[y]))
    for (mark, (color, marker)), places in sorted(found.items()):
        tied = mark == "tied"
        axes.plot(
            *zip(*places, strict=True), marker, ms=2.2, ls="", mfc="white" if tied else color,
            mec=color, mew=0.4 if tied else 0.0, alpha=0.8 if tied else 0.25,
            zorder=3 if tied else 2,
        )  # fmt: skip


def _legend(
    figure: Figure,
    axes: Axes,
    points: Sequence[Point],
    shown: set[str],
    looks: dict[str, tuple[str, str]],
    title: str,
) -> None:
    """What is ``shown``, over the axes; the figure grows with a long one."""
    called = labels.short([n for n in looks if n in shown and looks[n] != OTHERS])
    for own, text in called.items():
        color, marker = looks[own]
        axes.plot([], [], marker, color=color, ms=4, ls="", label=text)
    others = len(shown) - len(called)
    if others:
        text = f"{others} other{'s' if others > 1 else ''}"
        axes.plot([], [], OTHERS[1], color=OTHERS[0], ms=4, ls="", label=text)
    if any(mark == "tied" for _, mark in points):
        axes.plot([], [], "o", mfc="none", mec=INK, ms=4, ls="", mew=0.8, label="tied")
    counts = sorted({row[seeds.COUNT] for row, _ in points if row.get(seeds.COUNT)})
    if counts:
        said = " or ".join(str(count) for count in counts)
        axes.plot([], [], "|", color=INK, ms=6, ls="", mew=0.7, label=f"± 1 sd of {said} seeds")
    longest = max(map(len, called.values()))
    columns = 5 if longest <= 9 and not counts else 2 if longest <= LEGEND_CAP else 1
    handles, _ = axes.get_legend_handles_labels()
    lines = math.ceil(len(handles) / columns) + bool(title)
    figure.set_figheight(2.5 + 0.13 * max(0, lines - MOST_LINES))
    axes.legend(
        title=title or None, alignment="left", frameon=False, ncols=columns,
        loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.1, borderpad=0.2,
        handletextpad=0.1, columnspacing=1.2,
    )  # fmt: skip


def _point_name(row: labels.Row) -> str:
    """``w3g64``; of bits by layer their average, where the policy was asked for one."""
    asked = row.get("budget_bits")
    name = labels.weights(row)
    return name if asked is None else name.replace("*", f"{asked:g}")


def _spread(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis where one far point would crowd the others."""
    if 0 < FAR * min(values) < max(values):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _make_room(axes: Axes, best: Sequence[labels.Row], x: str, higher: bool) -> None:
    """Widen the axis until the names beside the front's points lie within it."""
    low, high = np.log(axes.get_xlim()) if axes.get_xscale() == "log" else axes.get_xlim()
    for row in best:
        share = min(0.6, (len(_point_name(row)) * LETTER_PT + 12) / PLOT_PT[0])
        at = math.log(row[x]) if axes.get_xscale() == "log" else row[x]
        if higher:
            high = max(high, (at - share * low) / (1 - share))
        else:
            low = min(low, (at - share * high) / (1 - share))
    axes.set_xlim(*np.exp((low, high)) if axes.get_xscale() == "log" else (low, high))


def _name_front(axes: Axes, rows: Sequence[labels.Row], x: str, y: str, higher: bool) -> None:
    """Names on the empty side of the front; one that would lie on another is left out."""
    settle(axes.figure)  # type: ignore[arg-type]  # places of points are known from here on
    points_per_pixel = 72 / axes.figure.dpi
    taken: list[tuple[float, float, float]] = []
    for row in sorted(rows, key=lambda row: (row[x], row["run_id"])):
        name = _point_name(row)
        at = axes.transData.transform((row[x], row[y])) * points_per_pixel
        wide = len(name) * LETTER_PT
        left = float(at[0]) + (0 if higher else -wide)
        if any(abs(at[1] - p[1]) < 7.5 and left < p[2] and p[0] < left + wide for p in taken):
            continue
        taken.append((left, float(at[1]), left + wide))
        axes.annotate(
            name,
            (row[x], row[y]),
            xytext=(4.5 if higher else -4.5, -2.5),
            textcoords="offset points",
            ha="left" if higher else "right",
            va="top",
            fontsize=SMALL_PT,
            zorder=5,
            bbox={"fc": "white", "ec": "none", "alpha": 0.75, "pad": 0.3},
        )


def _axis(axes: Axes, y: str, base: float | None, values: Sequence[float]) -> None:
    """Perplexity, spread by the logarithm of its excess over full precision.

    On a plain log axis everything from 4 bits up lies within a line's width of the reference.
    Left the perplexity, right the same heights as change in per cent.
    """
    name = y.partition("/")[2]
    axes.set_ylabel(f"perplexity, {name}")
    if base is None:
        axes.set_yscale("log")
        return

    def spread(ppl: Any) -> Any:
        return np.arcsinh((np.asarray(ppl) / base - 1) * 100 / LINEAR_BELOW)

    def unspread(height: Any) -> Any:
        return (np.sinh(np.asarray(height)) * LINEAR_BELOW / 100 + 1) * base

    axes.set_yscale("function", functions=(spread, unspread))
    changes = [(value / base - 1) * 100 for value in values]
    top = max(1.0, *changes)
    ticks = [0.0, *(10.0**k for k in range(-1, math.ceil(math.log10(top)) + 1))]
    low = min(0.0, *changes)
    bottom, upper = spread(base * (1 + low / 100)), spread(base * (1 + top / 100))
    pad = 0.08 * (upper - bottom)
    limits = float(unspread(bottom - 2 * pad)), float(unspread(upper + pad))
    ticks = [tick for tick in ticks if tick <= (limits[1] / base - 1) * 100]
    heights = [base * (1 + tick / 100) for tick in ticks]
    ticks, heights = _apart(
        ticks, heights, [*map(float, spread(heights))], upper - bottom + 3 * pad
    )
    axes.set_ylim(*limits)
    axes.yaxis.set_major_locator(FixedLocator(heights))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: short_number(f"{value:.4g}"))
    right = axes.twinx()
    right.set_yscale("function", functions=(spread, unspread))
    right.set_ylim(*limits)
    right.set_ylabel("change to full precision, %")
    right.yaxis.set_major_locator(FixedLocator(heights))
    right.yaxis.set_minor_locator(NullLocator())
    right.set_yticks(heights, [short_number(f"{tick:+.4g}") if tick else "0" for tick in ticks])
    for height in heights[1:]:
        axes.axhline(height, color=PALE, lw=0.5, zorder=0)
    axes.axhline(base, color=INK, lw=0.8, ls=":", zorder=1)


def _apart(
    ticks: Sequence[float], heights: Sequence[float], places: Sequence[float], whole: float
) -> tuple[list[float], list[float]]:
    """Those ticks whose numbers do not touch, full precision and then every first, second ..."""
    room = 1.25 * SMALL_PT / PLOT_PT[1] * whole
    step = math.ceil(room / (places[-1] - places[-2]))  # the last two are a power of ten apart
    kept = [0, *(i for i in range(1, len(places), step) if places[i] - places[0] >= room)]
    return [ticks[i] for i in kept], [heights[i] for i in kept]
