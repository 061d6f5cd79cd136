"""What stands on the terminal after a sweep: the front, what failed, the paths, what is next."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from bitsweep.point import FULL_PRECISION
from bitsweep.report import labels, latency
from bitsweep.report.estimate import timing_marks
from bitsweep.report.labels import Row
from bitsweep.report.tables import change, fronts, number, primaries, primary, speed_metric

if TYPE_CHECKING:
    from rich.console import Console

    from bitsweep.report import Report

SPEED_HEADS = {"decode_vs_bf16": "× bf16", "decode_tok_s": "tok/s", "decode_ms": "ms/token"}
MOST_TIMES, MOST_NAMES = 40, 20
"""Rows of times, and points that failed for one reason, before a screen is full of them."""

AXES = ("model", "method", "bits", "group_size", "policy", "label")


def front_rows(frame: pd.DataFrame) -> tuple[tuple[str, ...], tuple[tuple[Any, ...], ...]]:
    """Column names and full numbers of full precision, the front and what is tied with it."""
    quality, speed = primary(frame), speed_metric(frame)
    marked = frame.assign(front=fronts(frame, "file_mib"))
    wanted = [*AXES, "front", "bits_per_weight", "file_mib", quality, f"{quality}.delta", speed]
    columns = tuple(name for name in wanted if name is not None and name in marked)
    kept = [row for row in labels.rows(marked) if row["front"] in ("reference", "front", "tied")]
    return columns, tuple(tuple(row[name] for name in columns) for row in kept)


def show(report: Report, console: Console | None = None, next_command: str = "") -> None:
    """Print the front of each model by file size, then what failed or was refused, then paths.

    ``next_command``: what to type next; empty after a report, which is the last step.
    """
    from rich.text import Text

    from bitsweep.console import Console

    console = console or Console()
    frame = report.frame
    rows = labels.rows(frame.assign(front=fronts(frame, "file_mib")))
    main, axes, timed = primaries(frame), labels.varying(frame), latency.blocks(frame)
    for model in dict.fromkeys(row["model"] for row in rows if row["status"] == "ok"):
        own = [row for row in rows if row["model"] == model]
        alone = sum(row.get("only") is not None and row["status"] == "ok" for row in own)
        if alone:
            console.print(Text(f"{model}: {alone} parts were quantized alone"))
        measured = sum(row["status"] == "ok" for row in own) - alone
        if model not in main:
            if measured:
                points = f"{measured} point{'s' * (measured != 1)}"
                console.print(Text(f"{model}: {points} without a quality, in the tables"))
        elif any(row["front"] for row in own):
            console.print(_table(frame, own, model, main[model], axes))
        blocks = [block for block in timed if block.model == model]
        if len(blocks) > 1 or (blocks and model not in main):
            console.print(_times(blocks, axes))
    failed = [row for row in rows if row["status"] == "failed"]
    for reason, names in labels.by_reason(failed):
        told = [
            *names[:MOST_NAMES],
            *([f"{len(names) - MOST_NAMES} more"] * (len(names) > MOST_NAMES)),
        ]
        line = f"failed ({len(names)}): {', '.join(told)}: {reason}"
        console.print(Text(line, style="red"), soft_wrap=True)
    refused = [row for row in rows if row["status"] == "refused"]
    if refused:
        reasons = len(labels.by_reason(refused))
        why = f"{reasons} reasons that stand" if reasons > 1 else "a reason that stands"
        console.print(f"refused: {len(refused)}, for {why} below the table")
    lines = [f"table  {report.tables[0]}"]
    if report.figures:
        lines.append(f"front  {report.figures[0].with_suffix('.png')}")
    lines.append(f"page   {report.page}")
    if any(_to_be_taken(row) for row in rows):
        lines.append(f"best   {recommending(report)}")
    if next_command:
        lines.append(f"next   {next_command}")
    console.print(Text("\n".join(lines)), soft_wrap=True)  # paths and commands are copied


def _to_be_taken(row: Row) -> bool:
    """Whether it is a whole quantized model, which alone is worth a recommendation."""
    whole = row.get("only") is None and row["method"] != FULL_PRECISION
    return whole and row["status"] == "ok"


def recommending(report: Report) -> str:
    """The command that says which of these points to take."""
    names = [*dict.fromkeys(map(str, report.frame["experiment"]))]
    below = report.folder.parent
    place = [] if below == Path("results") else ["--results-dir", str(below)]
    return shlex.join(["bitsweep", "recommend", *names, *place])


TIMES = (
    latency.Cell("decode ms", "decode_ms"),
    latency.Cell("× bf16", "decode_vs_bf16", 2),
    latency.Cell("prefill × bf16", "prefill_vs_bf16", 2),
)


def _times(blocks: Sequence[latency.Block], axes: Sequence[str]) -> Any:
    """The first shape, where the table of the front is not enough: several shapes, or no front."""
    from rich.table import Table
    from rich.text import Text

    behind = len(blocks[0].rows) - MOST_TIMES
    more = [f"{behind} more rows"] if behind > 0 else []
    more += [f"{len(blocks) - 1} more"] if len(blocks) > 1 else []
    table = Table(
        title=Text(blocks[0].name),
        caption=f"{', '.join(more)} in the table" if more else None,
        title_justify="left",
        caption_justify="left",
        box=None,
        padding=(0, 2, 0, 0),
    )
    table.add_column("method")
    for head in ("weights", "engine"):
        table.add_column(head, no_wrap=True)
    for cell in TIMES:
        table.add_column(cell.head, justify="right", no_wrap=True)
    table.add_column("marks")
    for row, timed in blocks[0].rows[:MOST_TIMES]:
        told = [labels.method(row, axes), labels.weights(row), timed.engine]
        told += [cell.show(timed.values) for cell in TIMES]
        table.add_row(*(Text(text) for text in (*told, ", ".join(latency.marks(timed.values)))))
    return table


def _table(
    frame: pd.DataFrame, rows: Sequence[Row], model: str, quality: str, axes: Sequence[str]
) -> Any:
    """The front of one model, full precision first."""
    from rich.table import Table
    from rich.text import Text

    speed = speed_metric(frame)
    counts = pd.Series([row["status"] for row in rows]).value_counts()
    tied = sum(row["front"] == "tied" for row in rows)
    kind = frame.attrs["metrics"][quality]["delta"]
    points = int(counts.get("ok", 0))
    among = f"the front of {points} point{'s' * (points != 1)}"
    table = Table(
        title=Text(f"{model}: {quality} against size, {among}"),
        caption=f"{tied} more are within noise of it" if tied else None,
        title_justify="left",
        caption_justify="left",
        box=None,
        padding=(0, 2, 0, 0),
    )
    for head in ("method", "weights", "policy"):
        table.add_column(head)
    unit = "Δ %" if kind == "ratio" else "Δ"
    for head in ("bits/w", "MiB", "ppl", unit, *([SPEED_HEADS[speed]] if speed else [])):
        table.add_column(head, justify="right", no_wrap=True)
    names = labels.short(list(dict.fromkeys(labels.method(row, axes) for row in rows)))
    shown = [row for row in rows if row["front"] in ("reference", "front")]
    for row in sorted(shown, key=lambda r: (r["front"] == "front", r.get("file_mib") or 0.0)):
        noisy = [mark for mark in timing_marks(row) if mark == latency.NOISY]
        cells = [
            names[labels.method(row, axes)],
            labels.weights(row),
            labels.policy(row),
            number(row.get("bits_per_weight")),
            number(row.get("file_mib")),
            number(row.get(quality), 4),
            change(row, quality, kind).partition(" ")[0],
            *([" ".join([number(row.get(speed)), *noisy])] if speed else []),
        ]
        table.add_row(*(Text(cell) for cell in cells))
    return table
