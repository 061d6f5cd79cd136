"""Latency as bars: how much faster than bf16, beside what fewer bytes could give."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bitsweep.report import labels
from bitsweep.report.latency import Block, blocks
from bitsweep.report.sheet import COLUMN_IN
from bitsweep.report.style import INK, PALE, PALETTE, SMALL_PT, slug

MOST_BARS = 30
"""Beyond them a column of paper has no room; the table has all."""


def figures(frame: pd.DataFrame) -> Iterator[tuple[str, Callable[[], Figure]]]:
    """(file name, what makes it) for each model whose bytes are known: of its first shape."""
    found = [block for block in blocks(frame) if block.first and _bars(block)]
    for block in found:
        several = [other for other in found if other.model == block.model]
        end = f"_{slug(block.model)}" if len(frame["model"].unique()) > 1 else ""
        end += f"_{several.index(block) + 1}" if len(several) > 1 else ""
        yield f"latency{end}", partial(_draw, block)


def _bars(block: Block) -> dict[str, Mapping[str, float]]:
    """What a bar is called -> its numbers. Methods that run the same codes take the same time: one
    bar for each kind of weights, policy and engine, of the first such point.
    """
    found: dict[tuple[str, str, str, str], Mapping[str, float]] = {}
    for row, timed in block.rows:
        if "decode_vs_bf16" in timed.values and "decode_of_bytes" in timed.values:
            inputs = f"a{row['input']}" if row.get("input") else ""
            words = (labels.number_format(row), inputs, labels.policy(row), timed.engine)
            found.setdefault(words, timed.values)
    shown = dict([*found.items()][:MOST_BARS])
    names = {words: " ".join(filter(None, words)) for words in shown}
    one = len({policy for _, _, policy, _ in shown} - {""}) == 1
    for words in shown:
        weights, inputs, policy, engine = words
        inputs = inputs.replace("narrow", "")  # how its codes are packed, which its engine says
        short = " ".join(filter(None, (weights, inputs, "" if one else policy, engine)))
        names[words] = names[words] if short in names.values() else short
    return {names[words]: values for words, values in shown.items()}


def _draw(block: Block) -> Figure:
    bars = _bars(block)
    figure = Figure(figsize=(COLUMN_IN, 0.85 + 0.17 * len(bars)), layout="constrained")
    decode, prefill = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    _panel(decode, [*bars.values()], "decode_vs_bf16", PALETTE[0])
    _panel(prefill, [*bars.values()], "prefill_vs_bf16", PALETTE[1])
    ideal = [own["decode_vs_bf16"] / own["decode_of_bytes"] for own in bars.values()]
    decode.plot(ideal, range(len(bars)), "|", color=INK, ms=8, mew=1.2, zorder=4)
    decode.set_yticks(range(len(bars)), [*bars], fontsize=SMALL_PT)
    decode.set_ylim(len(bars) - 0.4, -0.6)
    for axes, name in ((decode, "decode"), (prefill, "prefill")):
        axes.set_xlim(left=0)
        axes.set_xlabel(name)
        axes.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    said = "speed, × bf16;  |  what reading fewer bytes could give"
    figure.suptitle(f"{block.name}\n{said}", fontsize=SMALL_PT)
    return figure


def _panel(axes: Axes, values: list[Mapping[str, float]], metric: str, color: str) -> None:
    places = range(len(values))
    middle = [own.get(metric, 0.0) for own in values]
    axes.barh(places, middle, height=0.7, color=color, lw=0)
    reach = [
        [max(m - own.get(f"{metric}.lo", m), 0.0) for m, own in zip(middle, values, strict=True)],
        [max(own.get(f"{metric}.hi", m) - m, 0.0) for m, own in zip(middle, values, strict=True)],
    ]
    axes.errorbar(middle, places, xerr=reach, fmt="none", ecolor=INK, elinewidth=0.6)
    axes.axvline(1, color=INK, lw=0.6, ls=":")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=PALE, lw=0.5)
    axes.set_axisbelow(True)
    axes.spines["right"].set_visible(False)
