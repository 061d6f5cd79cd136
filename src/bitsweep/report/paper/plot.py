"""A figure of the paper: one or several pictures, each one column wide or as wide as the text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import FixedLocator, NullLocator

from bitsweep.compose import choices, nearest
from bitsweep.errors import UserError
from bitsweep.report import curves, figures, labels, scatter
from bitsweep.report.frame import whole
from bitsweep.report.labels import Row, missing
from bitsweep.report.paper.language import Drawn, Figure, Front, Heatmap, Lines, Value
from bitsweep.report.paper.select import Chosen, choose, known_column, number, ordered, words
from bitsweep.report.paper.words import called
from bitsweep.report.sheet import COLUMN_IN, TEXT_IN
from bitsweep.report.style import FAINT, MARKERS, PALE, PALETTE, short_number, slug
from bitsweep.report.tables import primaries

DASHES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Picture:
    """One file of a figure: what its name ends in, and whose numbers it shows."""

    end: str
    drawing: Drawing
    run_ids: frozenset[str]


def pictures(where: str, frame: pd.DataFrame, figure: Figure) -> Iterator[Picture]:
    """Every picture of ``figure``; those that `bitsweep report` draws are not made here.

    Raises:
        UserError: a column, a metric or a condition that nothing meets.
    """
    if isinstance(figure, Lines):
        yield from _lines(where, frame, figure)
    elif isinstance(figure, Front | Heatmap):
        chosen = choose(where, frame, "points", figure.where, reference=True)
        own = {row["run_id"] for row in (*chosen.rows, *chosen.references)}
        part = whole(frame[frame["run_id"].isin(own)])
        for model in dict.fromkeys(part["model"].astype(str)):
            yield from _by_model(where, part, figure, model)


def _by_model(
    where: str, part: pd.DataFrame, figure: Front | Heatmap, model: str
) -> Iterator[Picture]:
    own = primaries(part)
    several = len(part["model"].unique()) > 1
    if model not in own:
        return
    rows = part[part["model"] == model]
    end = f"_{slug(model)}" if several else ""
    title, ids = model if several else "", frozenset(map(str, rows["run_id"]))
    if isinstance(figure, Heatmap):
        drawing = figures.heat_figure(rows, own[model], title)
    else:
        for column in (figure.x, *figure.series):
            known_column(where, column, part.assign(**words({})))
        label = figure.label or figures.X_AXIS.get(figure.x) or called(figure.x)

        def name(row: Row) -> str:
            return _series(figure, {**row, **words(row)})

        looks = figures.appearance(part, name)
        drawing = scatter.front_figure(rows, figure.x, label, own[model], looks, name, title)
    yield Picture(end, drawing, ids)


def _lines(where: str, frame: pd.DataFrame, figure: Lines) -> Iterator[Picture]:
    chosen = choose(where, frame, figure.source, figure.where, reference=True)
    value = figure.value()
    chosen.columns(value.of)
    by = () if figure.panels is None else (figure.panels,)
    for name in (figure.x, *figure.series, *figure.over, *by):
        known_column(where, name, chosen.frame)
    panels = ordered((row.get(figure.panels or "") for row in chosen.rows), figure.panels or "",
                     figure.where)  # fmt: skip
    looks = _looks(chosen, figure)
    for panel in panels:
        rows = [row for row in chosen.rows if row.get(figure.panels or "") == panel]
        title = "" if figure.panels is None else str(panel)
        drawing, used = _panel(chosen, figure, rows, looks, title)
        if used:
            end = f"_{slug(title)}" if len(panels) > 1 else ""
            yield Picture(end, drawing, frozenset(used))


def _looks(chosen: Chosen, figure: Lines) -> dict[str, dict[str, Any]]:
    """Series -> its colour, marker and dashes, the same in every picture of the figure."""
    names = dict.fromkeys(_series(figure, row) for row in chosen.rows)
    return {
        name: {
            "color": PALETTE[i % len(PALETTE)],
            "marker": MARKERS[i % len(MARKERS)],
            "ls": DASHES[i // len(PALETTE) % len(DASHES)],
        }
        for i, name in enumerate(names)
    }


def _series(figure: Lines | Front, row: Row) -> str:
    words = []
    for column in figure.series:
        value = row.get(column)
        text = "" if missing(value) else f"{value:g}" if isinstance(value, float) else str(value)
        given = {str(k): v for k, v in figure.names.get(column, {}).items()}
        plain = labels.group(value) if column == "group_size" else text
        words.append(given.get(text, plain))
    return " ".join(word for word in words if word)


def _panel(
    chosen: Chosen, figure: Lines, rows: Sequence[Row], looks: dict[str, dict[str, Any]], title: str
) -> tuple[Drawing, set[str]]:
    wide = figure.width == "text" and figure.panels is None
    drawing = Drawing(figsize=(TEXT_IN if wide else COLUMN_IN, 2.3), layout="constrained")
    axes = drawing.add_subplot()
    value, used, places = figure.value(), set(), set()
    for name, look in looks.items():
        groups: dict[float, list[Row]] = {}
        for row in rows:
            if _series(figure, row) == name and row["status"] == "ok":
                at = row.get(figure.x)
                if not missing(at):
                    groups.setdefault(float(at), []).append(row)  # type: ignore[arg-type]
        points = []
        for at, found in sorted(groups.items()):
            if len(found) > 1 and not figure.over:
                raise UserError(
                    f"{chosen.where}: {len(found)} points of {name} at {figure.x}={at:g}; name in "
                    "series, panels, where or over what they differ in"
                )
            shown = number(chosen, value, found)
            if shown is not None:
                points.append((at, shown))
                used |= {str(row["run_id"]) for row in found}
        if not points:
            continue
        places |= {at for at, _ in points}
        axes.plot([at for at, _ in points], [n.value for _, n in points], ms=3.5, lw=0.9,
                  label=name, **look)  # fmt: skip
        for at, shown in points:
            low, high = shown.lo, shown.hi
            if shown.spread is not None:
                low, high = shown.value - shown.spread, shown.value + shown.spread
            if low is not None and high is not None:
                axes.plot([at, at], [low, high], color=look["color"], lw=0.7)
    _dress(axes, figure, sorted(places), title, len(looks))
    axes.set_ylabel(value.head or _quantity(chosen, value))
    return drawing, used


def _dress(axes: Axes, figure: Lines, places: list[float], title: str, series: int) -> None:
    value = figure.value()
    if "x" in figure.log:
        axes.set_xscale("log")
    if "y" in figure.log and value.show == "change":
        axes.set_yscale("symlog", linthresh=1)
        axes.yaxis.set_major_formatter(lambda y, _: short_number(f"{y:+.4g}") if y else "0")
    elif "y" in figure.log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda y, _: short_number(f"{y:.4g}"))
    if len(places) <= 8:
        axes.xaxis.set_major_locator(FixedLocator(places))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    if value.show == "change":
        axes.axhline(0, color=FAINT, lw=0.7, ls=":")
    axes.set_xlabel(figure.label or figures.X_AXIS.get(figure.x) or called(figure.x))
    axes.grid(axis="y", color=PALE, lw=0.5)
    axes.set_axisbelow(True)
    axes.spines["right"].set_visible(False)
    if title or series > 1:
        axes.legend(
            title=title or None, alignment="left", frameon=False, ncols=2 if series > 1 else 1,
            loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.1, borderpad=0.2,
            handletextpad=0.3, columnspacing=1.2, handlelength=1.6,
        )  # fmt: skip


def _quantity(chosen: Chosen, value: Value) -> str:
    """What stands on the y axis, with its unit: ``change of perplexity, %``, ``KL, nat``."""
    known = chosen.frame.attrs["metrics"].get(chosen.columns(value.of)[0], {})
    if value.show == "change":
        return f"change of {called(value.of)}{', %' if known.get('delta') == 'ratio' else ''}"
    return ", ".join(word for word in (called(value.of), known.get("unit")) if word)


def drawn(where: str, frame: pd.DataFrame, figure: Drawn, folder: Path) -> Iterator[Picture]:
    """The pictures that `bitsweep report` draws and ``figure`` names.

    Raises:
        UserError: there is none of that name.
    """
    made = dict(figures.every(frame, curves.read([folder], frame)))
    ids = frozenset(map(str, frame["run_id"]))
    for name in figure.figures:
        if name not in made:
            raise UserError(
                f"{where}.figures: {name}: the report has no such figure"
                f"{nearest(name, made) or choices(sorted(made))}"
            )
        yield Picture(f"_{slug(name)}" if len(figure.figures) > 1 else "", made[name](), ids)
