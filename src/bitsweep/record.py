"""One measured point: what a Record holds, and how it is written and strictly read.

A point has up to two Records, joined on ``point_id``: ``quality`` (the same numbers on every
machine, up to the last bits of float arithmetic) and ``timing`` (of one machine and engine).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

SCHEMA = 1

Kind = Literal["quality", "timing"]
Status = Literal["ok", "refused", "failed"]


@dataclass(frozen=True)
class Delta:
    """Difference of a metric to the Reference, paired, with its 95 % bootstrap interval."""

    kind: Literal["ratio", "difference"]
    value: float
    lo: float
    hi: float


@dataclass(frozen=True)
class Metric:
    """One number. ``signature`` says how it was made; ``reason`` why there is none.

    ``lo`` and ``hi`` bound the value itself (95 %), where that means something.
    """

    name: str
    value: float | None
    unit: str
    better: Literal["lower", "higher", "none"]
    signature: str
    lo: float | None = None
    hi: float | None = None
    delta: Delta | None = None
    reason: str | None = None

    def __post_init__(self) -> None:
        if (self.value is None) == (self.reason is None):
            raise ValueError(f"{self.name}: a metric has a value or a reason, one of the two")
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError(f"{self.name}={self.value}: a metric is a finite number or a reason")

    def to_json(self) -> dict[str, Any]:
        """Without the name, which is its key in the Record, and without what is None."""
        value = {k: v for k, v in vars(self).items() if k != "name" and v is not None}
        return value if self.delta is None else value | {"delta": dict(vars(self.delta))}

    @classmethod
    def from_json(cls, name: str, value: Mapping[str, Any]) -> Metric:
        if value.get("delta") is not None:
            value = {**value, "delta": Delta(**value["delta"])}
        return cls(name, **value) if "value" in value else cls(name, None, **value)


@dataclass
class Measurement:
    """What a probe returns: its metrics, and rows of detail (windows, texts) kept beside them."""

    metrics: list[Metric]
    details: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Record:
    """One row. ``point`` is flat: the columns by which tables, filters and W&B group."""

    run_id: str
    point_id: str
    kind: Kind
    experiment: str
    status: Status
    point: dict[str, Any]
    reason: str | None = None
    model: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] | None = None
    metrics: dict[str, Metric] = field(default_factory=dict)
    details_sha256: str | None = None
    timings: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA
    file_sha256: str | None = field(default=None, init=False, repr=False, compare=False)
    """Of the bytes of the file that it was read from; no field of that file."""

    def add(self, measurement: Measurement) -> None:
        """Take in a probe's metrics; a name that is there already is a mistake of ours."""
        for metric in measurement.metrics:
            if metric.name in self.metrics:
                raise ValueError(f"two probes both measure {metric.name}")
            self.metrics[metric.name] = metric

    def to_json(self) -> dict[str, Any]:
        value = {name: getattr(self, name) for name in FIELDS}
        value["metrics"] = _folded(self.metrics)
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Record:
        """Read strictly. Raises ValueError for another schema, and for a field that is missing,
        unknown or of another kind."""
        if not isinstance(value, Mapping):
            raise ValueError("it holds no fields")
        if value.get("schema") != SCHEMA:
            raise ValueError(f"schema {value.get('schema')} is not {SCHEMA}")
        if value.keys() != FIELDS.keys():
            odd = sorted(value.keys() ^ FIELDS.keys())
            raise ValueError(f"fields missing or unknown: {', '.join(odd)}")
        odd = [name for name, kinds in KINDS.items() if not isinstance(value[name], kinds)]
        odd += [
            k for k, kind in (("kind", Kind), ("status", Status)) if value[k] not in get_args(kind)
        ]
        odd = odd or [f"point.{k}" for k in NAMED if not isinstance(value["point"].get(k), str)]
        if odd:
            raise ValueError(f"fields of another kind: {', '.join(odd)}")
        return cls(**{**value, "metrics": _unfolded(value["metrics"])})


FIELDS = {f.name: f for f in fields(Record) if f.init}
"""Those of a Record that its file has."""
KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("run_id", "point_id", "experiment"), (str,)),
    **dict.fromkeys(("point", "model", "plan", "metrics", "timings", "provenance"), (dict,)),
    "calibration": (dict, type(None)),
}
"""What the readers of a Record take for granted of them."""
NAMED = ("model", "method")
"""The words of a point by which everything groups, failed and refused ones too."""


def _folded(metrics: Mapping[str, Metric]) -> dict[str, Any]:
    """A value for each name; ``m/x`` that differs from ``m`` in its numbers alone stands in its
    ``at``: ``{"x": [value, lo, hi]}``.

    A latency has fifteen numbers for each of a dozen shapes: with unit and signature beside each
    number such a Record would have 50 kB.
    """
    found: dict[str, Any] = {}
    folded: dict[str, dict[str, list[float]]] = {}
    for name, metric in metrics.items():
        base, _, shape = name.partition("/")
        like = metrics.get(base)
        if like is not None and shape and _words(metric) == _words(like):
            numbers = (metric.value, metric.lo, metric.hi)
            folded.setdefault(base, {})[shape] = [v for v in numbers if v is not None]
        else:
            found[name] = metric.to_json()
    return {name: v | ({"at": folded[name]} if name in folded else {}) for name, v in found.items()}


def _words(metric: Metric) -> tuple[Any, ...]:
    return metric.unit, metric.better, metric.signature, metric.delta, metric.reason


def _unfolded(value: Mapping[str, Mapping[str, Any]]) -> dict[str, Metric]:
    found = {}
    for name, item in value.items():
        if "at" not in item:
            found[name] = Metric.from_json(name, item)
            continue
        rest = {key: part for key, part in item.items() if key != "at"}
        like = found[name] = Metric.from_json(name, rest)
        for shape, numbers in item["at"].items():
            also, (middle, lo, hi) = f"{name}/{shape}", (*numbers, None, None, None)[:3]
            unit, better, signature, delta, reason = _words(like)
            found[also] = Metric(also, middle, unit, better, signature, lo, hi, delta, reason)
    return found
