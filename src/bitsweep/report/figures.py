"""Fronts and heat maps on paper: one column wide, the same bytes from the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import pandas as pd
from matplotlib.figure import Figure

from bitsweep.report import bars, heatmap, labels, seeds, speedup
from bitsweep.report.curves import Curve
from bitsweep.report.frame import REFERENCE, is_reference, references, whole
from bitsweep.report.scatter import Name, front_figure
from bitsweep.report.style import MARKERS, PALETTE, slug
from bitsweep.report.tables import heat, primaries, speed_metric

LONGEST = 46
"""Letters of a name in a legend one column wide."""

CALIBRATION = (
    "calibration.choice", "calibration.window", "calibration.windows", "calibration",
)  # fmt: skip
"""Axes that a front does without where its names would be too many or too long, in this order."""

Made = Callable[[], Figure]
"""Makes a figure: those that are not asked for cost nothing."""

X_AXIS = {
    "file_mib": "file, MiB",
    "bits_per_weight": "stored bits per weight",
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
    name = namer(frame)
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
            yield f"front_size{end}", partial(of_front, "file_mib", X_AXIS["file_mib"])
        if speed is not None and _count(part, speed, quality):
            yield f"front_speed{end}", partial(of_front, speed, X_AXIS[speed])
        if _has_heat(part, quality):
            yield f"heatmap{end}", partial(heat_figure, part, quality, title)


def _has_heat(part: pd.DataFrame, quality: str) -> bool:
    change = f"{quality}.delta"
    quantized = part["bits"].notna() & part["method"].ne(REFERENCE)
    return change in part and bool((quantized & part[change].notna()).any())


def heat_figure(part: pd.DataFrame, quality: str, title: str) -> Figure:
    """The heat map of one model's points, those that differ in nothing but seeds as their mean."""
    mean = seeds.averaged(part, [quality])
    said = f"change of perplexity ({quality.partition('/')[2]}), %"
    said += "" if mean is part else ", mean over seeds"
    return heatmap.draw(heat(mean), f"{title}: {said}" if title else said)


def namer(frame: pd.DataFrame) -> Name:
    """What tells the points of a front apart: never a seed, and of the calibration only as much as
    leaves as many names as there are colours, and none wider than the legend.

    A sweep of one method is told apart by its policies.
    """
    rows = [row for row in labels.rows(frame) if row["status"] == "ok" and not is_reference(row)]
    axes = [axis for axis in labels.varying(frame) if axis not in seeds.SEEDS]
    names = {labels.grid(row, axes) for row in rows}
    for axis in CALIBRATION:
        if axis in axes and (len(names) > len(PALETTE) or max(map(len, names)) > LONGEST):
            axes.remove(axis)
            names = {labels.grid(row, axes) for row in rows}
    alone = len(names) == 1 and 1 < len({_policy(row) for row in rows}) <= len(PALETTE)

    return _policy if alone else partial(labels.grid, axes=axes)


def _policy(row: labels.Row) -> str:
    """``budget``, without the numbers that tell one budget from another."""
    return labels.policy(row).partition(" ")[0]


def _count(part: pd.DataFrame, x: str, y: str) -> int:
    if x not in part or y not in part:
        return 0
    usable = (part["status"] == "ok") & ~references(part)
    return int((usable & part[x].notna() & part[y].notna()).sum())


def appearance(frame: pd.DataFrame, name: Name) -> dict[str, tuple[str, str]]:
    """What ``name`` calls the points -> colour and marker, the same in every figure."""
    rows = [row for row in labels.rows(frame) if not is_reference(row)]
    names = sorted({name(row) for row in rows if row["status"] == "ok"})
    return {
        name: (PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(names)
    }
