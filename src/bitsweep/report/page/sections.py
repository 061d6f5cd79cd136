"""What the page shows beside front and table: sensitivity, errors by depth, times of engines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from bitsweep.report import labels, latency, sensitivity
from bitsweep.report.curves import Curve
from bitsweep.report.tables import fronts, primaries, speed_metric

MOST_LINES = 300
"""Of a block of times; all of them stand in ``tables/latency.csv``."""

MOST_CURVES = 400


def of(frame: pd.DataFrame, curves: Sequence[Curve]) -> dict[str, Any]:
    return {
        "bars": _bars(frame),
        "curves": [
            {"model": c.model, "label": c.label, "errors": [float(f"{e:.5g}") for e in c.errors]}
            for c in curves[:MOST_CURVES]
        ],
        "curves_left": max(0, len(curves) - MOST_CURVES),
        "latency": _latency(frame),
    }


def _bars(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Parts quantized alone, a list of bars for each way in which they were."""
    found = []
    measured = sensitivity.parts(frame, primaries(frame))
    every = labels.rows(measured)
    for (model, group, kind), table in measured.groupby(["model", "group", "kind"], sort=False):
        rows = [every[place] for place in table.index]
        numbers = [n for n in (*sensitivity.TRUTHS, *sensitivity.PROXIES) if table[n].notna().any()]
        by = sensitivity.score(table)
        found.append(
            {
                "model": model,
                "group": f"{group}, by {kind}",
                "parts": [row["part"] for row in rows],
                "by": by,
                "values": {name: [row[name] for row in rows] for name in numbers},
                "lo": {t: [row[f"{t}.lo"] for row in rows] for t in sensitivity.TRUTHS},
                "hi": {t: [row[f"{t}.hi"] for row in rows] for t in sensitivity.TRUTHS},
                "ranks": {
                    name: sensitivity.correlation(table[by], table[name])
                    for name in numbers
                    if name != by
                },
                "titles": {**sensitivity.TRUTHS, **sensitivity.PROXIES},
            }
        )
    return found


def _latency(frame: pd.DataFrame) -> dict[str, Any]:
    """The table of times, a block for each model and shape; empty where nothing was timed."""
    if not any(timed.values for timed in frame.attrs.get("timings", ())):
        return {"blocks": [], "heads": [], "left": [], "notes": []}
    models = sorted({str(name) for name in frame["model"]}, key=len, reverse=True)
    made = latency.sheet(frame, [], fronts(frame, speed_metric(frame) or ""), [], [])
    return {
        "heads": made.heads,
        "left": [side == "l" for side in made.align],
        "blocks": [
            {
                "model": next(m for m in models if f"{name}, ".startswith(f"{m}, ")),
                "name": name,
                "lines": [line.cells for line in lines[:MOST_LINES]],
                "front": [line.bold for line in lines[:MOST_LINES]],
                "more": max(0, len(lines) - MOST_LINES),
            }
            for name, lines in made.blocks()
        ],
        "notes": made.notes,
    }
