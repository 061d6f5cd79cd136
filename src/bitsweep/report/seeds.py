"""Points that differ in nothing but seeds, as one row: mean, spread and range."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import pandas as pd

from bitsweep.report import labels
from bitsweep.report.frame import is_reference
from bitsweep.report.labels import Row
from bitsweep.report.sheet import Line, Sheet

SEEDS = ("seed", "calibration.seed")
COUNT = "seeds"
"""The column of :func:`averaged` that says how many points a row was."""


def repeated(frame: pd.DataFrame) -> list[list[Row]]:
    """Rows by point without its seeds; those that were measured with several."""
    names = list(frame.columns)
    if "point_id" not in names:
        return []
    axes = [n for n in names[names.index("model") : names.index("point_id")]
            if n not in (*SEEDS, "label")]  # fmt: skip
    found: dict[tuple[str, ...], list[Row]] = {}
    rows = labels.rows(frame)
    points = zip(*(map(str, rows.columns[name]) for name in ("experiment", *axes)), strict=True)
    for row, point in zip(rows, points, strict=True):
        if row["status"] == "ok" and not is_reference(row):
            found.setdefault(point, []).append(row)
    return [rows for rows in found.values() if len({_seeds(row) for row in rows}) > 1]


def averaged(frame: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """``frame`` with one row, without seeds, for points that differ in nothing else.

    Its numbers in ``metrics`` and their changes are means, the bounds of the changes one standard
    deviation from them.
    """
    own = [name for name in SEEDS if name in frame]
    if not any(frame[name].nunique() > 1 for name in own):
        return frame
    groups = repeated(frame)
    place = {run_id: index for index, run_id in enumerate(frame["run_id"])}
    extra = {place[row["run_id"]] for rows in groups for row in rows[1:]}
    cells: dict[str, list[Any]] = {name: frame[name].tolist() for name in own}
    cells[COUNT] = [None] * len(frame)
    numbers: dict[str, list[Any]] = {}
    for rows in groups:
        first = place[rows[0]["run_id"]]
        cells[COUNT][first] = len(rows)
        for name in own:
            cells[name][first] = None
        for name in metrics:
            for column, value in _average(rows, name):
                if column not in numbers:
                    known = column in frame
                    numbers[column] = frame[column].tolist() if known else [None] * len(frame)
                numbers[column][first] = value
    made = {name: pd.Series(cells[name], frame.index, dtype=object) for name in cells}
    made |= {name: pd.Series(numbers[name], frame.index, dtype=float) for name in numbers}
    return frame.assign(**made)[[index not in extra for index in range(len(frame))]]


def _average(rows: Sequence[Row], name: str) -> Iterator[tuple[str, float]]:
    """Columns and numbers of one row for all of ``rows``."""
    for column in (name, f"{name}.delta"):
        known = [row[column] for row in rows if row.get(column) is not None]
        if known:
            yield column, statistics.fmean(known)
        if len(known) > 1 and column != name:
            middle, deviation = statistics.fmean(known), statistics.stdev(known)
            yield f"{column}.lo", middle - deviation
            yield f"{column}.hi", middle + deviation


def sheet(frame: pd.DataFrame, metrics: Sequence[str], provenance: str) -> Sheet:
    """Mean and standard deviation (of a sample) of ``metrics`` over seeds."""
    groups = repeated(frame)
    axes = [axis for axis in labels.varying(frame) if axis not in SEEDS]
    lines, values = [], []
    for rows in groups:
        first = rows[0]
        dirty = {"dirty": any(row.get("dirty") for row in rows)}
        called = labels.marked(labels.method(first, axes), dirty)
        cells = [called, labels.weights(first), labels.policy(first)]
        numbers: list[float | None] = []
        for name in metrics:
            known = [row[name] for row in rows if row.get(name) is not None]
            if len(known) < 2:
                cells.append("")
                numbers += [None] * 4
                continue
            mean, deviation = statistics.fmean(known), statistics.stdev(known)
            cells.append(f"{mean:.4f} ± {deviation:.4f} ({min(known):.4f} to {max(known):.4f})")
            numbers += [mean, deviation, min(known), max(known)]
        lines.append(Line((*cells, str(len(rows))), str(first["model"])))
        values.append((*(first.get(n) for n in ("model", "label")), len(rows), *numbers))
    ends = ("mean", "sd", "min", "max")
    right: list[Literal["l", "r"]] = ["r"] * len(metrics)
    return Sheet(
        title="Over seeds: mean ± standard deviation (smallest to largest)",
        heads=("method", "weights", "policy", *metrics, "seeds"),
        align=("l", "l", "l", *right, "r"),
        lines=tuple(lines),
        columns=("model", "label", "seeds", *(f"{m}.{end}" for m in metrics for end in ends)),
        values=tuple(values),
        small=(f"Generated by bitsweep report from {provenance}",),
    )


def _seeds(row: Row) -> tuple[str, ...]:
    return tuple(str(row.get(name)) for name in SEEDS)
