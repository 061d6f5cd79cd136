"""What a row was made with and how to make it again: from its Records, what they share once."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import pandas as pd

from bitsweep.record import Record
from bitsweep.report.page.payload import DIGITS_OF_ID, interned
from bitsweep.tracking.flat import plain

SHARED = ("commit", "dirty", "device", "threads", "platform", "seed", "versions")
"""Of the provenance: few values among many Records."""

PATH = re.compile(r"(?<![\w.:/~-])(?:/|~/|[A-Za-z]:\\)[^\s'\",\]}]+")


def of(frame: pd.DataFrame, records: Sequence[Record]) -> dict[str, Any]:
    """A list for each field, an entry for each Record of a row; ``row`` is its place in the frame.

    ``made``, ``model``, ``calibration`` and ``plan`` are indices into ``shared``.
    """
    rows = {
        point: index
        for index, point in enumerate(zip(frame["experiment"], frame["point_id"], strict=True))
    }
    shown = {*frame["run_id"]}
    own = [
        record
        for record in records
        if (record.experiment, record.point_id) in rows
        and (record.run_id in shown or record.kind == "timing")
    ]
    shared: dict[str, int] = {}
    seen: dict[bytes, int] = {}
    encode = json.JSONEncoder(sort_keys=True, ensure_ascii=False, default=str).encode

    def share(value: Mapping[str, Any] | None) -> int:
        if not value:
            return -1
        known = orjson.dumps(value, default=str)  # in whatever order its keys are
        if known not in seen:
            seen[known] = shared.setdefault(encode(_plain(value)), len(shared))
        return seen[known]

    found = {
        "row": [rows[record.experiment, record.point_id] for record in own],
        "kind": interned(record.kind for record in own),
        "status": interned(record.status for record in own),
        "reason": interned(record.reason or None for record in own),
        "id": [record.run_id[:DIGITS_OF_ID] for record in own],
        "utc": interned(record.provenance.get("utc") for record in own),
        "command": interned(without_paths(record.provenance.get("command")) for record in own),
        "seconds": [_total(record) for record in own],
        "peak": [_peak(record) for record in own],
        "made": [share({k: record.provenance.get(k) for k in SHARED}) for record in own],
        "model": [share(_model(record)) for record in own],
        "calibration": [share(record.calibration) for record in own],
        "plan": [share(_plan(record)) for record in own],
    }
    return {**found, "shared": [json.loads(text) for text in shared]}


def without_paths(command: Any) -> str | None:
    """``command`` with the last part alone of each absolute path: ``model.path=…/llama``."""
    if not command:
        return None
    return PATH.sub(lambda found: f"…/{plain(found[0])}", str(command))


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: plain(item) if isinstance(item, str) else item for key, item in value.items()}


def _model(record: Record) -> dict[str, Any]:
    return {"name": record.point.get("model"), **record.model} if record.model else {}


def _plan(record: Record) -> dict[str, Any]:
    """Without its digest, which is each plan's own, and what tables have columns for."""
    return {k: v for k, v in record.plan.items() if k in ("summary", "misfits", "untied") and v}


def _total(record: Record) -> float | None:
    total = record.timings.get("total")
    return total.get("wall_s") if isinstance(total, dict) else None


def _peak(record: Record) -> float | None:
    """MiB of memory at the highest of all stages."""
    stages = [stage for stage in record.timings.values() if isinstance(stage, dict)]
    return max((s["peak_rss_mib"] for s in stages if "peak_rss_mib" in s), default=None)
