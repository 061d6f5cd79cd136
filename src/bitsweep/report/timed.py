"""Timing Records -> one row for each Record and shape, with plain names of metrics.

A Record has its metrics once for each shape, ``decode_ms`` for the first one, for others
``decode_ms/b4p512t1``. A point has as many timing Records as engines and machines timed it: the
frame's own columns have one of them, these rows all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bitsweep.record import Record
from bitsweep.timing import SUFFIX, Shape

METRICS = (
    "decode_ms", "decode_vs_bf16", "decode_vs_fp32", "decode_tok_s", "decode_p90_ms",
    "decode_p99_ms", "decode_mib", "decode_gib_s", "decode_of_bandwidth", "decode_of_bytes",
    "decode_cost_per_mtok", "decode_noise",
    "prefill_ms", "prefill_vs_bf16", "prefill_vs_fp32", "prefill_tok_s",
    "prefill_cost_per_mtok", "prefill_noise",
)  # fmt: skip


@dataclass(frozen=True)
class Timed:
    """One shape of one Record. ``shape`` is None where a signature does not say it; ``first`` where
    the metrics have plain names. ``values`` by metric, and with ``.lo`` and ``.hi``; empty where
    there is no time, and ``reason`` says why.
    """

    experiment: str
    point_id: str
    run_id: str
    model: str
    engine: str
    device: str
    threads: int
    shape: Shape | None
    first: bool
    values: Mapping[str, float]
    reason: str | None = None


class Timings(tuple[Timed, ...]):
    """All of a frame's; copying the frame's ``attrs``, as pandas does at every step, is free."""

    def __deepcopy__(self, memo: object) -> Timings:
        return self


class Attributes(dict[str, Any]):
    """One of a frame's ``attrs``, never changed once it is there: as free to copy as the times."""

    def __deepcopy__(self, memo: object) -> Attributes:
        return self


def timings(
    records: Iterable[Record], names: Mapping[str, str], engines: Mapping[str, str | None]
) -> Timings:
    """``names`` and ``engines``: run_id -> the model's block, and the engine that ran."""
    return Timings(
        timed
        for record in records
        if record.kind == "timing"
        for timed in _of(record, names[record.run_id], engines[record.run_id] or "")
    )


def _of(record: Record, model: str, engine: str) -> Iterable[Timed]:
    place: Mapping[str, Any] = {**record.provenance, **record.point}
    threads, device = int(place.get("threads") or 0), str(place.get("device") or "unknown device")
    start = (record.experiment, record.point_id, record.run_id, model, engine, device)
    if record.status != "ok":
        yield Timed(*start, threads, None, True, {}, record.reason)
        return
    shapes: dict[str, dict[str, float]] = {}
    said: dict[str, tuple[str, str | None]] = {}
    for name, metric in record.metrics.items():
        base, _, suffix = name.partition("/")
        if base not in METRICS or SUFFIX.fullmatch(suffix) is None:
            continue
        own = shapes.setdefault(suffix, {})
        if base in ("decode_ms", "prefill_ms"):
            said[suffix] = (metric.signature, metric.reason)
        for end, value in (("", metric.value), (".lo", metric.lo), (".hi", metric.hi)):
            if value is not None:
                own[f"{base}{end}"] = value
    cache = record.metrics.get("cache_mib")
    for suffix, values in shapes.items():
        signature, reason = said.get(suffix, ("", None))
        shape = Shape.read(signature, suffix)
        if values and cache is not None and cache.value is not None:
            values["cache_mib"] = cache.value
        used = threads if shape is None else shape.threads
        yield Timed(*start, used, shape, not suffix, values, None if values else reason)
