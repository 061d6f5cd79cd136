"""What stands in each table: which columns, how a number is printed, what is said below."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import pandas as pd

from bitsweep.report import labels, latency, seeds, sensitivity
from bitsweep.report.frame import REFERENCE, is_reference, whole
from bitsweep.report.front import front
from bitsweep.report.labels import Row
from bitsweep.report.sheet import DIRTY, DIRTY_NOTE, Line, Sheet
from bitsweep.report.timed import METRICS

IDENTITY = (
    "experiment", "model", "method", "method_options", "bits", "group_size", "format", "symmetric",
    "policy", "seed", "label", "status", "reason", "misfits", "point_id", "run_id", "commit",
    "dirty",
)  # fmt: skip
MINUS = "−"
MOST_LINES = 1000
"""Of a table that is read; beyond them it has the front and what is tied, the CSV has all."""


@dataclass(frozen=True)
class Column:
    """``show`` prints a row's cell; ``raw`` are the columns of the frame behind it, for CSV."""

    head: str
    show: Callable[[Row], str]
    raw: tuple[str, ...] = ()
    align: Literal["l", "r"] = "r"


def primary(frame: pd.DataFrame) -> str | None:
    """The perplexity that fronts and heat maps are about: the one that most rows have."""
    counts = {name: int(frame[name].notna().sum()) for name in metrics(frame, "ppl")}
    return min(counts, key=lambda name: (-counts[name], name)) if counts else None


def primaries(frame: pd.DataFrame) -> dict[str, str]:
    """Each model's own :func:`primary`: models may have been measured on different texts."""
    own = {str(name): primary(part) for name, part in frame.groupby("model", sort=False)}
    return {name: metric for name, metric in own.items() if metric is not None}


def fronts(frame: pd.DataFrame, x: str) -> pd.Series:
    """:func:`front.front` by ``x`` and each model's own perplexity."""
    main = primaries(frame)
    parts = [
        front(part, x, main.get(str(name), "")) for name, part in frame.groupby("model", sort=False)
    ]
    return pd.concat(parts).reindex(frame.index)


def metrics(frame: pd.DataFrame, kind: str) -> list[str]:
    """Metrics ``kind/...`` that at least one row has a number for."""
    known = frame.attrs.get("metrics", {})
    return [n for n in known if n.split("/")[0] == kind and n in frame and frame[n].notna().any()]


def sheets(
    frame: pd.DataFrame, provenance: str, merged: Sequence[tuple[str, str]] = ()
) -> dict[str, Sheet]:
    """Name of the file -> table, of those in ``report.TABLES`` that apply.

    ``merged``: label and reason of points that were one with another; noted below the main table.
    """
    quality = primary(frame)
    speed = speed_metric(frame)
    axes = labels.varying(frame)
    rows = labels.rows(frame.assign(front=fronts(frame, "file_mib")))
    made: dict[str, Sheet] = {}
    for name, title, columns in (
        ("main", "Quality and size", _main(frame, quality)),
        ("tasks", "Tasks", _tasks(frame)),
        ("agreement", "Agreement with full precision", _agreement(frame)),
        ("error", "Relative error of rounding", _errors(frame)),
    ):
        if columns or name == "main":
            made[name] = _sheet(title, frame, rows, columns, provenance, axes)
    made["main"] = replace(made["main"], notes=(*made["main"].notes, *_merged(merged)))
    if speed is not None:
        made["latency"] = _latency(frame, fronts(frame, speed), provenance)
    if quality is not None and len(cells := heat(frame)):
        made["heatmap"] = _heatmap(frame, cells, provenance)
    made |= sensitivity.sheets(frame, primaries(frame), provenance)
    over = seeds.sheet(frame, [*metrics(frame, "ppl"), *metrics(frame, "kl_mean")], provenance)
    if over.lines:
        made["seeds"] = over
    return {name: _dirty(_fitting(sheet)) for name, sheet in made.items()}


def _fitting(sheet: Sheet) -> Sheet:
    """As many lines as one reads; the CSV has all."""
    notes = (*_cut(len(sheet.lines)), *sheet.notes)
    return replace(sheet, lines=sheet.lines[:MOST_LINES], notes=notes)


def _cut(lines: int) -> Iterable[str]:
    if lines > MOST_LINES:
        yield f"{lines - MOST_LINES:,} more rows stand in this table's CSV."


def _dirty(sheet: Sheet) -> Sheet:
    """With the meaning of the dagger below it, where a row has one."""
    marked = any(DIRTY in cell for line in sheet.lines for cell in line.cells)
    return replace(sheet, notes=(*sheet.notes, DIRTY_NOTE)) if marked else sheet


def speed_metric(frame: pd.DataFrame) -> str | None:
    """Decode speed as the fronts show it: the ratio to bf16 of the same process if there is one."""
    for name in ("decode_vs_bf16", "decode_tok_s", "decode_ms"):
        if name in frame and frame[name].notna().any():
            return name
    return None


def number(value: Any, digits: int = 2) -> str:
    return "" if labels.missing(value) else f"{value:.{digits}f}".replace("-", MINUS)


def signed(value: float, digits: int) -> str:
    value = 0.0 if round(value, digits) == 0 else value  # no minus before a zero
    return f"{value:+.{digits}f}".replace("-", MINUS)


def places(value: float) -> int:
    """Decimals of a number of which three digits are worth reading."""
    return 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0


def change(row: Row, metric: str, kind: str | None, scale: float = 1.0) -> str:
    """``+1.2 [+1.0, +1.4]``: per cent for a ratio, else the difference times ``scale``."""
    values = [row.get(f"{metric}.delta{end}") for end in ("", ".lo", ".hi")]
    itself = values[1] == values[2] and is_reference(row)
    if itself or any(labels.missing(v) for v in values):
        return ""
    value, lo, hi = ((v - 1) * 100 if kind == "ratio" else v * scale for v in values)  # type: ignore[operator]
    digits = 3 if kind == "ratio" and abs(value) < 0.1 else places(value)
    return f"{signed(value, digits)} [{signed(lo, digits)}, {signed(hi, digits)}]"


def _plain(head: str, metric: str, digits: int, scale: float = 1.0) -> Column:
    def show(row: Row) -> str:
        value = row.get(metric)
        return "" if labels.missing(value) else number(value * scale, digits)  # type: ignore[operator]

    return Column(head, show, (metric, f"{metric}.lo", f"{metric}.hi"))


def _with_change(
    frame: pd.DataFrame, head: str, metric: str, digits: int, scale: float = 1.0
) -> list[Column]:
    """The value, and where it has one the paired change to full precision."""
    kind = frame.attrs["metrics"][metric]["delta"]
    columns = [_plain(head, metric, digits, scale)]
    if kind is not None:
        raw = tuple(f"{metric}.delta{end}" for end in ("", ".lo", ".hi"))
        unit = "Δ %" if kind == "ratio" else "Δ"
        columns.append(Column(f"{unit} [95 %]", lambda row: change(row, metric, kind, scale), raw))
    return columns


def _present(frame: pd.DataFrame, *columns: tuple[str, str, int]) -> list[Column]:
    return [
        _plain(head, metric, digits)
        for head, metric, digits in columns
        if metric in frame and frame[metric].notna().any()
    ]


def _main(frame: pd.DataFrame, quality: str | None) -> list[Column]:
    columns = _present(frame, ("bits/weight", "bits_per_weight", 2), ("file MiB", "file_mib", 2))
    texts = sorted(metrics(frame, "ppl"), key=lambda name: (name != quality, name))
    for name in texts:
        columns += _with_change(frame, f"ppl {_text(name)}", name, 4)
    main = list(dict.fromkeys(primaries(frame).values()))
    for text in map(_text, main):
        of = f" {text}" if len(main) > 1 else ""
        if f"kl_mean/{text}" in metrics(frame, "kl_mean"):
            columns.append(_plain(f"KL{of}", f"kl_mean/{text}", 4))
        if f"top1/{text}" in metrics(frame, "top1"):
            percent = _percent(frame, f"top1/{text}")
            columns.append(_plain(f"top-1 %{of}", f"top1/{text}", 1, percent))
    return columns


def _tasks(frame: pd.DataFrame) -> list[Column]:
    columns = []
    tasks = sorted({_text(n) for kind in ("bleu", "rougeL") for n in metrics(frame, kind)})
    for task in tasks:
        if f"bleu/{task}" in metrics(frame, "bleu"):
            columns += _with_change(frame, f"BLEU {task}", f"bleu/{task}", 1)
        if f"rougeL/{task}" in metrics(frame, "rougeL"):
            name = f"rougeL/{task}"
            columns.append(_plain(f"ROUGE-L {task}", name, 1, _percent(frame, name)))
    for kind in ("acc", "acc_norm"):
        for name in metrics(frame, kind):
            scale = _percent(frame, name)
            columns += _with_change(frame, f"{kind} % {_text(name)}", name, 1, scale)
    return columns


def _agreement(frame: pd.DataFrame) -> list[Column]:
    columns = []
    for kind, head, digits in (
        ("kl_mean", "KL mean", 4),
        ("kl_median", "KL median", 4),
        ("kl_p99", "KL 99 %", 3),
        ("top1", "top-1 %", 1),
        ("bleu_fp", "BLEU", 1),
        ("rougeL_fp", "ROUGE-L", 1),
    ):
        for name in metrics(frame, kind):
            scale = _percent(frame, name) if kind in ("top1", "rougeL_fp") else 1.0
            columns.append(_plain(f"{head} {_text(name)}", name, digits, scale))
    return columns


def _errors(frame: pd.DataFrame) -> list[Column]:
    """Means over the quantized layers, and of the last hidden state."""
    return _present(
        frame,
        ("weights", "weight_error", 4),
        ("layer outputs", "output_error", 4),
        ("last hidden state", "hidden_error", 4),
    )


def _latency(frame: pd.DataFrame, marks: pd.Series, provenance: str) -> Sheet:
    """Each metric's protocol once: of other shapes, the table's blocks say what differs."""
    axes = [axis for axis in labels.varying(frame) if axis.startswith("cal")]
    return latency.sheet(
        frame,
        [*(name for name in IDENTITY if name in frame), *axes],
        marks,
        [*_notes(labels.rows(frame), []), *latency.empty(frame)],
        [
            *_protocols(frame, [name for name in METRICS if name in frame]),
            f"Generated by bitsweep report from {provenance}",
        ],
    )


def _text(metric: str) -> str:
    return metric.partition("/")[2]


def _percent(frame: pd.DataFrame, metric: str) -> float:
    """100 for a share kept as 0..1, 1 for one that is a percentage already."""
    unit = frame.attrs["metrics"][metric]["unit"]
    return 1.0 if unit == "%" or frame[metric].max() > 1.5 else 100.0


def _sheet(
    title: str,
    frame: pd.DataFrame,
    rows: labels.Rows,
    columns: Sequence[Column],
    provenance: str,
    axes: Sequence[str],
) -> Sheet:
    """The points with ``columns``: ``rows`` are those of ``frame``, with their marks ``front``."""
    identity = [
        Column("method", lambda row: labels.marked(labels.method(row, axes), row), align="l"),
        Column("weights", labels.weights, align="l"),
        Column("policy", labels.policy, align="l"),
    ]
    columns = [*identity, *columns, Column("front", _mark, ("front",), "l")]
    ok = [row for row in rows if row["status"] == "ok"]
    behind = [row for row in ok if row["front"] == "dominated"] if len(ok) > MOST_LINES else []
    if behind:
        ok = [row for row in ok if row["front"] != "dominated"]
    lines = tuple(
        Line(tuple(c.show(row) for c in columns), str(row["model"]), row["front"] == "front")
        for row in ok[:MOST_LINES]
    )
    names = [*(n for n in IDENTITY if n in frame), *(a for a in axes if a.startswith("cal"))]
    used = [name for column in columns for name in column.raw]
    names += dict.fromkeys(name for name in used if name in rows.columns.names)
    return Sheet(
        title=title,
        heads=tuple(c.head for c in columns),
        align=tuple(c.align for c in columns),
        lines=lines,
        columns=tuple(names),
        values=rows.values(names),
        notes=(*_cut(len(ok)), *_left_out(behind), *_notes(rows, used)),
        small=(*_protocols(frame, used), f"Generated by bitsweep report from {provenance}"),
    )


def _left_out(behind: Sequence[Row]) -> Iterable[str]:
    if behind:
        yield f"{len(behind):,} more rows, none on the front or tied, stand in this table's CSV."


def _mark(row: Row) -> str:
    return row["front"] if row["front"] in ("front", "tied") else ""


def _notes(every: labels.Rows, used: Sequence[str]) -> Iterable[str]:
    """Points without numbers, and cells without a number, each with its reason."""
    used = [n for n in used if f"{n}.reason" in every.columns.names]
    for status in ("refused", "failed"):
        found = [row for row in every if row["status"] == status]
        for reason, names in labels.by_reason(found):
            yield f"{status.capitalize()} ({len(names)}): {', '.join(names)}: {reason}"
    empty: dict[str, list[str]] = {}
    said = every.values([f"{n}.reason" for n in used])
    for row, reasons in zip(every, said, strict=True) if used else ():
        for reason in dict.fromkeys(str(reason) for reason in reasons if reason):
            empty.setdefault(reason, []).append(str(row.get("label")))
    for reason, points in empty.items():
        yield f"Empty ({len(points)}): {', '.join(points)}: {reason}"


def _merged(merged: Sequence[tuple[str, str]]) -> Iterable[str]:
    rows = [{"label": label, "reason": reason, "run_id": ""} for label, reason in merged]
    for reason, names in labels.by_reason(rows):
        yield f"Merged ({len(names)}): {', '.join(names)}: {reason}"


def _protocols(frame: pd.DataFrame, used: Sequence[str]) -> Iterable[str]:
    signatures = frame.attrs.get("signatures", {})
    for model, found in signatures.items():
        of = f" of {model}" if len(signatures) > 1 else ""
        alike: dict[str, list[str]] = {}
        for metric in dict.fromkeys(used):
            if metric in found:
                alike.setdefault(found[metric], []).append(metric)
        for signature, names in alike.items():
            yield f"{', '.join(names)}{of}: {signature}"


def heat(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per quantized point, with its place in the heat map and its change in per cent.

    The change is that of the model's own :func:`primary`.
    Points of which one part alone is quantized have tables and bars of their own.
    """
    axes, main = labels.varying(frame), primaries(frame)
    cells = []
    for row in labels.rows(whole(frame)):
        if row["method"] == REFERENCE or row.get("bits") is None:
            continue
        ratio = row.get(f"{main.get(str(row['model']))}.delta")
        cells.append(
            {
                "run_id": row["run_id"],
                "model": str(row["model"]),
                "policy": labels.policy(row),
                "group": labels.group(row.get("group_size")),
                "method": labels.grid(row, axes),
                "bits": row["bits"],
                "change": None if ratio is None else (ratio - 1) * 100,
                "status": row["status"],
                "reason": row.get("reason"),
                "dirty": row.get("dirty"),
            }
        )
    names = "run_id model policy group method bits change status reason dirty"
    return pd.DataFrame(cells, columns=names.split())


def _heatmap(frame: pd.DataFrame, cells: pd.DataFrame, provenance: str) -> Sheet:
    """Method x bits: perplexity's change in per cent, one line per method, policy and group.

    ``cells``: :func:`heat` of ``frame``.
    """
    main = list(dict.fromkeys(primaries(frame).values()))
    bits = sorted(cells["bits"].unique())
    lines, values = [], []
    keys = ["model", "policy", "group", "method"]
    found: dict[tuple[Any, ...], dict[Any, Row]] = {}
    for row in labels.rows(cells):
        found.setdefault(tuple(row[name] for name in keys), {})[row["bits"]] = row
    for key, by_bits in found.items():
        printed = [_heat_cell(by_bits.get(b)) for b in bits]
        lines.append(Line((*map(str, key[1:]), *printed), str(key[0])))
        changes = [by_bits[b]["change"] if b in by_bits else None for b in bits]
        values.append((*key, *changes))
    lines.sort(key=lambda line: line.cells[:2])
    sides: list[Literal["l", "r"]] = ["r"] * len(bits)
    return Sheet(
        title=f"Change of {', '.join(main)} in per cent: method × bits",
        heads=("policy", "group", "method", *(f"{b:g} bits" for b in bits)),
        align=("l", "l", "l", *sides),
        lines=tuple(lines),
        columns=(*keys, *(f"bits_{b:g}" for b in bits)),
        values=tuple(values),
        small=(*_protocols(frame, main), f"Generated by bitsweep report from {provenance}"),
    )


def _heat_cell(cell: Row | None) -> str:
    if cell is None:
        return ""
    if cell["status"] != "ok":
        return str(cell["status"])
    value = cell["change"]
    return "" if value is None else labels.marked(signed(value, places(value)), cell)
