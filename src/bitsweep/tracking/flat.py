"""What every tracker is given of a Record: the same columns and the same numbers in each."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

from bitsweep import timing
from bitsweep.record import Record

Scalar = str | int | float | bool | None
TEXT_CAP = 6000
"""Characters of one column: the most that MLflow takes for a parameter."""
NAME_CAP = 200
WINDOWS = 128
"""Of calibration text, where nobody chose: ``conf/calibration/default.yaml``."""
SAID = (
    "calibration.windows", "calibration.window", "calibration.choice", "seed", "calibration.seed",
)  # fmt: skip
"""Axes that a point's label leaves out and a run's name does not, in this order."""
WINDOW = re.compile(r"\|window:(\d+)\|stride:")
"""Of the data, in the signature of what is measured on its text."""
_END = r"\s,;|'\"(){}\[\]"
PLACE = re.compile(rf"(?<![^=:{_END}])(?:[A-Za-z][\w+.-]*://|~?[/\\]|[A-Za-z]:[/\\])[^{_END}]+")
"""A URL or an absolute path within a text."""


def config(record: Record) -> dict[str, Scalar]:
    """Flat columns by which one filters and groups: the point's, and what identifies the Record.

    The command, the environment and free text such as an error's message stay here.
    """
    made = record.provenance
    columns = {
        **record.point,
        **_timed(record),
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
    return {safe(name): plain(value) for name, value in columns.items()}


def _timed(record: Record) -> dict[str, Scalar]:
    """Engine and threads of a timing Record as its signature says them: a point may be timed by
    several, and without these two columns its runs could not be told apart."""
    if record.kind != "timing":
        return {}
    signed = next((m.signature for m in record.metrics.values() if m.value is not None), "")
    engine, shape = timing.ENGINE.search(signed), timing.Shape.read(signed)
    found: dict[str, Scalar] = {} if engine is None else {"engine": engine[1]}
    return found if shape is None else {**found, "threads": shape.threads}


def numbers(record: Record) -> dict[str, float | None]:
    """Metrics and their changes to full precision; None where there is no number.

    ``ppl/in_domain``, ``ppl/in_domain_delta``, ``ppl/in_domain_delta_lo``.
    """
    values: dict[str, float | None] = {}
    for name, metric in record.metrics.items():
        key = safe(name)
        values[key] = metric.value
        if metric.delta is not None:
            values[f"{key}_delta"] = metric.delta.value
            values[f"{key}_delta_lo"] = metric.delta.lo
            values[f"{key}_delta_hi"] = metric.delta.hi
    for stage, cost in record.timings.items():
        if isinstance(cost, dict) and "wall_s" in cost:
            values[f"wall_s/{safe(stage)}"] = cost["wall_s"]
    return values


def label(record: Record) -> str:
    """What a person calls the run: one line, at most 200 characters.

    The point's label and, as tables spell it, what of its calibration and seed is not the default:
    ``gptq w3g64 uniform calibration=other_domain windows=16 seed=1``.
    """
    text = _line(record.point.get("label") or "") or record.run_id[:12]
    behind = "".join(f" {_line(word)}" for word in _chosen(record))[:NAME_CAP]
    return f"{text[: NAME_CAP - len(behind)]}{behind}"


def _line(text: str) -> str:
    return " ".join(str(plain(text)).split())


def _chosen(record: Record) -> list[str]:
    """What of its calibration and seed is not what conf has; nothing that another Record decides.

    The default text is called as the data, its window is the data's: a Record without a metric of
    text (a timing) does not say that, and what it had is taken for the default.
    """
    from bitsweep.report import labels  # with pandas, which a sweep needs at its end
    from bitsweep.report.frame import calibrated

    how = calibrated(record)
    row = {**record.point, **how}
    default = {
        "calibration.windows": WINDOWS,
        "calibration.window": how["calibration.window"],
    }
    for metric in record.metrics.values():
        if found := WINDOW.search(metric.signature):
            default["calibration.window"] = int(found[1])
            break
    words = [labels.said(row, axis) for axis in SAID if row.get(axis) != default.get(axis)]
    if any(words) or row.get("calibration") != row.get("data"):
        words.insert(0, labels.said(row, "calibration"))  # so many windows of which text
    return [word for word in words if word]


def period(record: Record) -> tuple[float, float]:
    """When the Record was begun, and when it was done: seconds since 1970, UTC.

    The same each time that it is published; 0 where the Record does not say.
    """
    try:
        begun = datetime.fromisoformat(str(record.provenance.get("utc"))).timestamp()
    except ValueError:
        begun = 0.0
    total = record.timings.get("total")
    return begun, begun + float(total["wall_s"] if isinstance(total, dict) else 0.0)


def plain(value: Any) -> Scalar:
    """A scalar that tells nothing of the machine: of an absolute path, a URL, its last part."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    text = str(value)
    whole = PLACE.match(text) is not None and "=" not in text  # a path may have a space in it
    return (_last(text) if whole else PLACE.sub(lambda found: _last(found[0]), text))[:TEXT_CAP]


def safe(name: str) -> str:
    """A name that every tracker takes: words, ``-`` and ``/``; a point in it would nest it."""
    words = re.sub(r"[^\w/-]", "_", name)
    return "/".join(part for part in words.split("/") if part)[:NAME_CAP]


def _last(place: str) -> str:
    return re.split(r"[/\\]", place.split("?")[0].rstrip("/\\"))[-1]
