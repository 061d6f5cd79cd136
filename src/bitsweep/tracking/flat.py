"""What every tracker is given of a Record: the same columns and the same numbers in each."""

from __future__ import annotations

import re
from typing import Any

from bitsweep.record import Record

Scalar = str | int | float | bool | None


def config(record: Record) -> dict[str, Scalar]:
    """Flat columns by which one filters and groups: the point's, and what identifies the Record.

    The command, the environment and free text such as an error's message stay here.
    """
    made = record.provenance
    return {
        **{name: plain(value) for name, value in record.point.items()},
        "schema": record.schema,
        "run_id": record.run_id,
        "point_id": record.point_id,
        "experiment": record.experiment,
        "kind": record.kind,
        "status": record.status,
        "checkpoint_sha256": record.model.get("sha256"),
        "parameters": record.model.get("parameters"),
        "plan": record.plan.get("summary"),
        "calibration_sha256": (record.calibration or {}).get("sha256"),
        "commit": made.get("commit"),
        "dirty": made.get("dirty"),
        "machine": made.get("device"),
        "bitsweep": made.get("versions", {}).get("bitsweep"),
        "torch": made.get("versions", {}).get("torch"),
    }


def plain(value: Any) -> Scalar:
    """A scalar that tells nothing of the machine: of an absolute path, a URL, its last part."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    text = str(value)
    if "://" in text or text.startswith(("/", "~", "\\")) or re.match(r"[A-Za-z]:\\", text):
        return re.split(r"[/\\]", text.split("?")[0].rstrip("/\\"))[-1]
    return text


def numbers(record: Record) -> dict[str, float | None]:
    """Metrics and their changes to full precision; None where there is no number.

    ``ppl/in_domain``, ``ppl/in_domain_delta``, ``ppl/in_domain_delta_lo``: a point in a name
    would nest it.
    """
    values: dict[str, float | None] = {}
    for name, metric in record.metrics.items():
        key = name.replace(".", "_")
        values[key] = metric.value
        if metric.delta is not None:
            values[f"{key}_delta"] = metric.delta.value
            values[f"{key}_delta_lo"] = metric.delta.lo
            values[f"{key}_delta_hi"] = metric.delta.hi
    for stage, cost in record.timings.items():
        if isinstance(cost, dict) and "wall_s" in cost:
            values[f"wall_s/{stage}"] = cost["wall_s"]
    return values
