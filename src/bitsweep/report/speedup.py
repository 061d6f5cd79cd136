"""Latency as bars: how much faster than bf16, beside what fewer bytes could give."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bitsweep.report import labels
from bitsweep.report.latency import Block, blocks
from bitsweep.report.style import COLUMN_IN, INK, PALE, PALETTE, slug

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
    found: dict[str, Mapping[str, float]] = {}
    for row, timed in block.rows:
        if "decode_vs_bf16" in timed.values and "decode_of_bytes" in timed.values:
            words = [labels.weights(row), labels.policy(row), timed.engine]
            words.insert(1, f"a{row['input']}" if row.get("input") else "")
            found.setdefault(" ".join(word for word in words if word), timed.values)
    return dict([*found.items()][:MOST_BARS])


def _draw(block: Block) -> Figure:
    bars = _bars(block)
    figure = Figure(figsize=(COLUMN_IN, 0.85 + 0.17 * len(bars)), layout="constrained")
    decode, prefill = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    _panel(decode, [*bars.values()], "decode_vs_bf16", PALETTE[0])
    _panel(prefill, [*bars.values()], "prefill_vs_bf16", PALETTE[1])
    ideal = [own["decode_vs_bf16"] / own["decode_of_bytes"] for own in bars.values()]
    decode.plot(ideal, range(len(bars)), "|", color=INK, ms=8, mew=1.2, zorder=4)
    decode.set_title("|  ratio of the bytes read", fontsize=5.5, loc="left")
    decode.set_yticks(range(len(bars)), [*bars], fontsize=5.5)
    decode.set_ylim(len(bars) - 0.4, -0.6)
    for axes, name in ((decode, "decode"), (prefill, "prefill")):
        axes.set_xlim(left=0)
        axes.set_xlabel(name)
    figure.suptitle(f"speed, × bf16: {block.name}", fontsize=7)
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
