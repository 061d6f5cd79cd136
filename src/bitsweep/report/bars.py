"""Sensitivity as bars, and how the error of the hidden states grows with depth."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bitsweep.report import labels
from bitsweep.report.curves import Curve
from bitsweep.report.sensitivity import TRUTHS, parts, score
from bitsweep.report.sheet import COLUMN_IN
from bitsweep.report.style import INK, MARKERS, PALE, PALETTE, SMALL_PT, slug
from bitsweep.report.tables import primaries

MOST_WAYS, FIRST_WAYS = 12, 4
"""Ways to quantize parts alone that have a figure each; of more ways only the first few, to see
what they look like: the table of sensitivities and the page have all of them."""

RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
DASHES = ("-", "--", ":", "-.")


def figures(
    frame: pd.DataFrame, curves: Sequence[Curve]
) -> Iterator[tuple[str, Callable[[], Figure]]]:
    """(file name, what makes it): bars for each way to quantize parts, curves by model."""
    models = list(dict.fromkeys(frame["model"]))
    for model in models:
        own = [curve for curve in curves if curve.model == model]
        end = f"_{slug(model)}" if len(models) > 1 else ""
        if own:
            yield f"error_depth{end}", partial(_depth, own, model if len(models) > 1 else "")
    measured = parts(frame, primaries(frame))
    ways = measured.groupby(["model", "group", "kind"], sort=False)
    shown = MOST_WAYS if ways.ngroups <= MOST_WAYS else FIRST_WAYS
    for (model, group, kind), bars in islice(ways, shown):
        end = f"{slug(str(model))}_" if len(models) > 1 else ""
        made = partial(_bars, bars, f"{model}, {group}")
        yield f"sensitivity_{end}{slug(f'{group} {kind}')}", made


def _bars(table: pd.DataFrame, title: str) -> Figure:
    """One bar a part, in the model's order, with its interval."""
    by = score(table)
    rows = [row for row in labels.rows(table) if row[by] is not None]
    height = max(1.0, 0.5 + 0.115 * len(rows))
    figure = Figure(figsize=(COLUMN_IN, height), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(rows))
    power, unit = _unit(max(abs(row[by]) for row in rows))
    values = [row[by] / power for row in rows]
    axes.barh(places, values, height=0.7, color=PALETTE[0], lw=0)
    if all(row[f"{by}.lo"] is not None for row in rows):
        reach = [
            [max(v - row[f"{by}.lo"] / power, 0) for v, row in zip(values, rows, strict=True)],
            [max(row[f"{by}.hi"] / power - v, 0) for v, row in zip(values, rows, strict=True)],
        ]
        axes.errorbar(values, places, xerr=reach, fmt="none", ecolor=INK, elinewidth=0.6)
    axes.axvline(0, color=INK, lw=0.6)
    axes.set_yticks(places, [row["part"] for row in rows], fontsize=SMALL_PT)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(f"{TRUTHS[by]} of this part alone, {unit}")
    axes.grid(axis="x", color=PALE, lw=0.5)
    axes.set_axisbelow(True)
    axes.spines["right"].set_visible(False)
    axes.set_title(title)
    return figure


def _unit(largest: float) -> tuple[float, str]:
    """What values are divided by, so that their ticks have few digits, and their unit then."""
    power = math.floor(math.log10(largest)) if 0 < largest < 0.01 else 0
    return 10.0**power, f"{f'10{str(power).translate(RAISED)} ' if power else ''}nat/token"


def _depth(curves: Sequence[Curve], title: str) -> Figure:
    """Relative error of the hidden states, one line a point; 0 is left out of the log axis."""
    figure = Figure(figsize=(COLUMN_IN, 2.2 + 0.12 * len(curves)), layout="constrained")
    axes = figure.add_subplot()
    for index, curve in enumerate(curves):
        known = [(depth, error) for depth, error in enumerate(curve.errors) if error > 0]
        if not known:
            continue
        axes.plot(
            *zip(*known, strict=True),
            DASHES[index // len(PALETTE) % len(DASHES)],
            marker=MARKERS[index % len(MARKERS)],
            color=PALETTE[index % len(PALETTE)],
            ms=3,
            lw=0.9,
            label=curve.label,
        )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(axis="y", which="minor", labelsize=SMALL_PT)
    axes.set_xlabel("blocks behind it")
    axes.set_ylabel("relative error of the hidden state")
    axes.grid(axis="y", color=PALE, lw=0.5)
    axes.spines["right"].set_visible(False)
    axes.legend(
        title=title or None, frameon=False, ncols=1, fontsize=SMALL_PT, loc="lower left",
        bbox_to_anchor=(0, 1), borderaxespad=0.1,
    )  # fmt: skip
    return figure
