"""Fronts and heat maps on paper: one column wide, the same bytes from the same numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from bitsweep.report import bars, heatmap, labels, speedup
from bitsweep.report.curves import Curve
from bitsweep.report.frame import is_reference, references, whole
from bitsweep.report.front import front
from bitsweep.report.labels import LEGEND_CAP
from bitsweep.report.style import (
    COLUMN_IN,
    FAINT,
    INK,
    MARKERS,
    PALE,
    PALETTE,
    settle,
    slug,
)
from bitsweep.report.tables import heat, primaries, speed_metric

LONGEST = 46
"""Letters of a name in a legend one column wide."""

MOST_LINES = 4
"""Of a legend, before the figure grows with it."""

MOST_POINTS = 300
"""Of a front, before those behind it are drawn as a cloud: there intervals hide each other."""

LINEAR_BELOW = 0.05
"""Per cent of change below which the perplexity axis is linear, so that 0 and less have a place."""

Made = Callable[[], Figure]
"""Makes a figure: those that are not asked for cost nothing."""

Name = Callable[[labels.Row], str]
"""What a point is called: points of one name look alike."""

SPEED_AXIS = {
    "decode_vs_bf16": "decode speed, × bf16",
    "decode_tok_s": "decode, tokens per second",
    "decode_ms": "decode, ms per token",
}


def every(frame: pd.DataFrame, curves: Sequence[Curve] = ()) -> Iterator[tuple[str, Made]]:
    """(file name, what makes the figure) of all that there are numbers for."""
    yield from figures(frame)
    yield from bars.figures(frame, curves)
    yield from speedup.figures(frame)


def figures(frame: pd.DataFrame) -> Iterator[tuple[str, Made]]:
    """Those of :func:`every` by model; with several models, one each, named after its model."""
    own = primaries(frame)
    speed = speed_metric(frame)
    models = list(dict.fromkeys(frame["model"]))
    axes = _named_axes(frame)

    def name(row: labels.Row) -> str:
        return labels.grid(row, axes)

    looks = appearance(frame, name)
    everything = whole(frame)
    for model in models:
        if model not in own:
            continue
        part, quality = everything[everything["model"] == model], own[model]
        end = f"_{slug(model)}" if len(models) > 1 else ""
        title = model if len(models) > 1 else ""
        of_front = partial(front_figure, part, y=quality, looks=looks, name=name, title=title)
        if _count(part, "file_mib", quality):
            yield f"front_size{end}", partial(of_front, "file_mib", "file, MiB")
        if speed is not None and _count(part, speed, quality):
            yield f"front_speed{end}", partial(of_front, speed, SPEED_AXIS[speed])
        cells = heat(part)
        if cells["change"].notna().any():
            what = f"change of perplexity ({quality.partition('/')[2]}), %"
            yield (
                f"heatmap{end}",
                partial(heatmap.draw, cells, f"{title}: {what}" if title else what),
            )


def _named_axes(frame: pd.DataFrame) -> list[str]:
    """Axes that tell the points of a front apart; not those of calibration where names would be
    longer than the legend is wide."""
    axes = labels.varying(frame)
    if max((len(labels.grid(row, axes)) for row in labels.rows(frame)), default=0) <= LONGEST:
        return axes
    return [axis for axis in axes if axis != "seed" and not axis.startswith("calibration")]


def _count(part: pd.DataFrame, x: str, y: str) -> int:
    if x not in part or y not in part:
        return 0
    usable = (part["status"] == "ok") & ~references(part)
    return int((usable & part[x].notna() & part[y].notna()).sum())


OTHERS = (FAINT, ".")
"""The look of methods that are too many to be told apart."""


def appearance(frame: pd.DataFrame, name: Name) -> dict[str, tuple[str, str]]:
    """What ``name`` calls the points -> colour and marker, the same in every figure."""
    rows = [row for row in labels.rows(frame) if not is_reference(row)]
    names = sorted({name(row) for row in rows if row["status"] == "ok"})
    return {
        name: (PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(names)
    }


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
    """Quality against cost: filled on the front, hollow when tied, faint when dominated."""
    figure = Figure(figsize=(COLUMN_IN, 2.5), layout="constrained")
    axes = figure.add_subplot()
    marks = front(part, x, y)
    base = baseline(part, y)
    points = [
        (row, marks[index])
        for index, row in zip(part.index, labels.rows(part), strict=True)
        if row["status"] == "ok" and not is_reference(row)
        and row.get(x) is not None and row.get(y) is not None
    ]  # fmt: skip
    higher = part.attrs["metrics"][x]["better"] == "higher"
    _axis(axes, y, base, [row[y] for row, _ in points])
    best = sorted((row[x], row[y]) for row, mark in points if mark == "front")
    where: Literal["pre", "post"] = "pre" if higher else "post"
    axes.step(*zip(*best, strict=True), where=where, color=FAINT, lw=0.9, zorder=1)
    present = [(name(row), mark) for row, mark in points]
    looks = looks if len(looks) <= len(PALETTE) else _told_apart(present)
    crowd = len(points) > MOST_POINTS
    for (row, mark), (own, _) in zip(points, present, strict=True):
        if not crowd or mark == "front":
            _point(axes, row, mark, x, y, looks[own])
    if crowd:
        _cloud(axes, points, x, y, [looks[own] for own, _ in present])
    shown = {own for own, _ in present}
    called = labels.short([n for n in looks if n in shown and looks[n] != OTHERS])
    others = len(shown) - len(called)
    if others:
        axes.plot([], [], OTHERS[1], color=OTHERS[0], ms=4, ls="", label=f"{others} others")
    for own, text in called.items():
        color, marker = looks[own]
        axes.plot([], [], marker, color=color, ms=4, ls="", label=text)
    if any(mark == "tied" for _, mark in points):
        axes.plot([], [], "o", mfc="none", mec=INK, ms=4, ls="", mew=0.8, label="tied")
    if x == "decode_vs_bf16":
        axes.axvline(1, color=FAINT, lw=0.7, ls=":")
    axes.set_xlabel(x_label)
    low, high = axes.get_xlim()
    room = 0.18 * (high - low)  # for the names beside the front's outermost point
    axes.set_xlim(low - (0 if higher else room), high + (room if higher else 0))
    longest = max(map(len, called.values()))
    columns = 5 if longest <= 9 else 2 if longest <= LEGEND_CAP else 1
    handles, _ = axes.get_legend_handles_labels()
    lines = math.ceil(len(handles) / columns) + bool(title)
    figure.set_figheight(2.5 + 0.13 * max(0, lines - MOST_LINES))
    axes.legend(
        title=title or None, alignment="left", frameon=False, ncols=columns,
        loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.1, borderpad=0.2,
        handletextpad=0.1, columnspacing=1.2,
    )  # fmt: skip
    _name_front(axes, [row for row, mark in points if mark == "front"], x, y, higher)
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
    axes: Axes,
    points: Sequence[tuple[labels.Row, str]],
    x: str,
    y: str,
    looks: Sequence[tuple[str, str]],
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


def _name_front(axes: Axes, rows: Sequence[labels.Row], x: str, y: str, higher: bool) -> None:
    """Names on the empty side of the front; one that would lie on another is left out."""
    settle(axes.figure)  # type: ignore[arg-type]  # places of points are known from here on
    points_per_pixel = 72 / axes.figure.dpi
    taken: list[tuple[float, float]] = []
    for row in sorted(rows, key=lambda row: (row[x], row["run_id"])):
        at = axes.transData.transform((row[x], row[y])) * points_per_pixel
        if any(abs(at[0] - p[0]) < 26 and abs(at[1] - p[1]) < 7 for p in taken):
            continue
        taken.append((float(at[0]), float(at[1])))
        axes.annotate(
            labels.weights(row),
            (row[x], row[y]),
            xytext=(4.5 if higher else -4.5, -2.5),
            textcoords="offset points",
            ha="left" if higher else "right",
            va="top",
            fontsize=5.5,
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
    axes.set_ylim(*limits)
    axes.yaxis.set_major_locator(FixedLocator(heights))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.4g}")
    right = axes.twinx()
    right.set_yscale("function", functions=(spread, unspread))
    right.set_ylim(*limits)
    right.set_ylabel("change to full precision, %")
    right.yaxis.set_major_locator(FixedLocator(heights))
    right.yaxis.set_minor_locator(NullLocator())
    right.set_yticks(heights, [f"{tick:+g}" if tick else "0" for tick in ticks])
    for height in heights[1:]:
        axes.axhline(height, color=PALE, lw=0.5, zorder=0)
    axes.axhline(base, color=INK, lw=0.8, ls=":", zorder=1)
