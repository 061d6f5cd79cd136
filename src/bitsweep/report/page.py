"""One self-contained page: the same rows and marks as the tables, to filter, sort and hover.

Nothing is fetched: plotly's script is embedded once, and the page's policy forbids the network.
What a Record holds enters as JSON and is shown as text only.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from bitsweep.report import labels, latency, sensitivity
from bitsweep.report.curves import Curve
from bitsweep.report.figures import MARKERS, appearance, baseline
from bitsweep.report.frame import is_reference, references
from bitsweep.report.front import front
from bitsweep.report.tables import change, fronts, heat, metrics, primary, speed_metric

TEMPLATE = Path(__file__).with_name("page.html")
SYMBOLS = dict(
    zip(
        MARKERS,
        ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x", "hexagon"),
        strict=True,
    )
)
TITLES = {
    "file_mib": "file, MiB",
    "bits_per_weight": "bits per weight",
    "resident_mib": "resident, MiB",
    "decode_vs_bf16": "decode speed, × bf16",
    "decode_vs_fp32": "decode speed, × fp32",
    "prefill_vs_bf16": "prefill speed, × bf16",
    "prefill_vs_fp32": "prefill speed, × fp32",
    "decode_tok_s": "tokens per second",
    "decode_ms": "decode, ms per token",
    "decode_p99_ms": "99 % of decode steps below, ms",
    "decode_mib": "weights read by a step, MiB",
    "decode_of_bytes": "decode speed over the ratio of bytes",
    "decode_of_bandwidth": "share of the memory's bandwidth",
    "decode_cost_per_mtok": "cost of a million decoded tokens",
    "prefill_ms": "prefill, ms",
}
COSTS = ("file_mib", "bits_per_weight")
QUALITIES = ("ppl", "kl_mean", "top1", "bleu", "rougeL", "acc", "acc_norm")


def render(
    frame: pd.DataFrame,
    title: str,
    question: str,
    small: Sequence[str] = (),
    merged: Sequence[tuple[str, str]] = (),
    curves: Sequence[Curve] = (),
) -> str:
    """The page as text.

    ``small``: the fine print; ``merged``: label and reason of such points; ``curves``: errors of
    the hidden states by depth.
    """
    from plotly.offline import get_plotlyjs

    content = payload(frame)
    content |= {"bars": _bars(frame), "curves": [asdict(curve) for curve in curves]}
    content |= {"latency": _latency(frame)}
    content |= {"title": title, "question": question, "small": [*small], "merged": [*merged]}
    page = TEMPLATE.read_text(encoding="utf-8")
    for mark, text in (
        ("__TITLE__", html.escape(title)),
        ("__DATA__", embed(content)),
        ("__PLOTLY__", get_plotlyjs()),  # last: the others must not be looked for inside it
    ):
        before, _, after = page.partition(mark)
        page = before + text + after
    return page


def embed(value: Any) -> str:
    """JSON that can not end the script element it stands in, whatever its strings hold."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, sort_keys=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def payload(frame: pd.DataFrame) -> dict[str, Any]:
    """What the page's script needs; rows are named by their run_id."""
    quality = primary(frame)
    known: dict[str, dict[str, str | None]] = frame.attrs["metrics"]
    numbers = [name for name in known if name in frame and frame[name].notna().any()]
    y = [name for kind in QUALITIES for name in metrics(frame, kind)]
    y.sort(key=lambda name: name != quality)
    speed = speed_metric(frame)
    x = [name for name in (*COSTS, *([speed] if speed else [])) if name in numbers]
    if not y and speed in x:  # of random weights: no quality, and still sizes and times
        x, y = x[:-1], [x[-1]]
    return {
        "heat": quality or "",
        "metrics": {name: {**known[name], "title": TITLES.get(name, name)} for name in numbers},
        "x": x,
        "y": y,
        "columns": list(dict.fromkeys([*x, *y, *(n for n in TITLES if n in numbers)])),
        "looks": {n: (color, SYMBOLS[m]) for n, (color, m) in appearance(frame).items()},
        "base": _base(frame, y),
        "marks": {f"{a}|{b}": dict(zip(frame["run_id"], front(frame, a, b), strict=True))
                  for a in x for b in y},
        "rows": _rows(frame, numbers, quality),
    }  # fmt: skip


def _base(frame: pd.DataFrame, y: list[str]) -> dict[str, dict[str, float]]:
    """model -> metric -> full precision's value, drawn as a dotted line."""
    found: dict[str, dict[str, float]] = {}
    for model, part in frame.groupby("model"):
        reference = part[references(part) & (part["status"] == "ok")]
        values = {}
        for name in y:
            ratio = frame.attrs["metrics"][name]["delta"] == "ratio"
            own = [float(v) for v in reference.get(name, []) if v == v]
            value = baseline(part, name) if ratio else own[0] if own else None
            if value is not None:
                values[name] = value
        found[str(model)] = values
    return found


def _rows(frame: pd.DataFrame, numbers: list[str], quality: str | None) -> list[dict[str, Any]]:
    axes = labels.varying(frame)
    changes = {} if quality is None else _changes(frame)
    kinds = {name: frame.attrs["metrics"][name]["delta"] for name in numbers}
    rows = []
    for row in labels.rows(frame):
        rows.append(
            {
                "id": row["run_id"],
                "model": row["model"],
                "status": row["status"],
                "reason": (row.get("reason") or "").split("\n")[0] or None,
                "label": row.get("label") or row["run_id"],
                "reference": is_reference(row),
                "name": labels.grid(row, axes),
                "weights": labels.weights(row),
                "policy": "only" if row.get("only") else row.get("policy"),
                "part": row.get("only"),
                "bits": row.get("bits"),
                "group": labels.group(row.get("group_size")),
                "change": changes.get(row["run_id"]),
                "values": {n: row[n] for n in numbers if row.get(n) is not None},
                "changes": {n: text for n in numbers if (text := _change(row, n, kinds[n]))},
                "reasons": {n: row[f"{n}.reason"] for n in numbers if row.get(f"{n}.reason")},
            }
        )
    return rows


def _bars(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Parts quantized alone, a list of bars for each way in which they were."""
    found = []
    measured = sensitivity.parts(frame, primary(frame))
    for (model, group, kind), table in measured.groupby(["model", "group", "kind"], sort=False):
        rows = labels.rows(table)
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
    if not latency.blocks(frame):
        return {"blocks": [], "heads": [], "left": [], "notes": []}
    models = {block.name: block.model for block in latency.blocks(frame)}
    made = latency.sheet(frame, [], fronts(frame, speed_metric(frame) or ""), [], [])
    return {
        "heads": made.heads,
        "left": [side == "l" for side in made.align],
        "blocks": [
            {
                "model": models[name],
                "name": name,
                "lines": [line.cells for line in lines],
                "front": [line.bold for line in lines],
            }
            for name, lines in made.blocks()
        ],
        "notes": made.notes,
    }


def _change(row: labels.Row, metric: str, kind: str | None) -> str:
    text = change(row, metric, kind) if kind else ""
    return f"{text} %" if text and kind == "ratio" else text


def _changes(frame: pd.DataFrame) -> dict[str, float]:
    """run_id -> change in per cent, as in the heat map."""
    cells = heat(frame).dropna(subset=["change"])
    return dict(zip(cells["run_id"], cells["change"].astype(float), strict=True))
