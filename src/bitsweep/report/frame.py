"""Records -> one DataFrame, one row a point: what every table, figure and page starts from.

Quality and timing Records of one point are joined on ``point_id``. A metric ``m`` becomes the
columns ``m``, ``m.lo`` and ``m.hi`` (its own interval), ``m.delta``, ``m.delta.lo`` and
``m.delta.hi`` (to full precision, paired), and ``m.reason`` where there is no number. ``attrs``
holds what belongs to a column rather than to a cell: unit, direction, kind of delta, signatures.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import pandas as pd

from bitsweep import timing
from bitsweep.errors import UserError
from bitsweep.point import FULL_PRECISION, exported
from bitsweep.record import Metric, Record
from bitsweep.report.timed import Attributes, timings
from bitsweep.spec import UNTOUCHED

REFERENCE = FULL_PRECISION
HARDWARE = ("engine", "threads", "device")
Machines = dict[tuple[str, int | None], str]
CHANGED = ("transforms", "recover", "kv", "exported")
OF_THE_POINT = re.compile(r"\|(engine|untouched):[^|]*")
"""Parts of a signature that say what the point is, not how it was measured."""

ORDER = ("method", "method_options", "transforms", "recover", "format", "policy", "input", "kv")


def frame(records: Iterable[Record]) -> pd.DataFrame:
    """One row per experiment and point, grouped by model, full precision first.

    A model name that stands for two checkpoints is told apart by the start of their hash. A point
    that was timed on several machines has the plain columns from the machine that timed most
    points, and columns named ``decode_ms @ DEVICE, N threads`` from the others.

    Raises:
        UserError: one metric of one model was measured by two protocols.
    """
    records = _current(sorted(records, key=lambda r: (r.experiment, r.run_id)))
    names = _model_names(records)
    machines = _machines(records)
    signatures = _signatures(records, names, machines)
    grouped: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        grouped[record.experiment, record.point_id].append(record)
    rows = [_row(group, names, machines) for group in grouped.values()]
    rows.sort(key=_order)
    table = pd.DataFrame({name: _typed(column) for name, column in _columns(rows).items()})
    table.attrs = {
        "metrics": Attributes(_meaning(records, machines)),
        "signatures": Attributes(signatures),
        "timings": timings(records, names, {r.run_id: _engine(r) for r in records}),
    }
    return table


def check_protocols(records: Iterable[Record]) -> None:
    """Raise what :func:`frame` would of two protocols in one column, without a frame."""
    found = _current(sorted(records, key=lambda r: (r.experiment, r.run_id)))
    _signatures(found, _model_names(found), _machines(found))


def _current(records: Sequence[Record]) -> list[Record]:
    """Without the refusals of points that were measured since (a refusal is named by its columns,
    a measured point by its checkpoint and plan, so neither overwrites the other)."""

    def columns(record: Record) -> tuple[str, str]:
        plain = {name: value for name, value in record.point.items() if name != "label"}
        return record.experiment, repr(sorted(plain.items()))

    measured = {columns(r) for r in records if r.kind == "quality" and r.status == "ok"}
    return [r for r in records if r.status != "refused" or columns(r) not in measured]


def _model_names(records: Sequence[Record]) -> dict[str, str]:
    """run_id -> the name of its block: the model's, with a hash where one name means two."""
    checkpoints: dict[str, set[str]] = defaultdict(set)
    for record in records:
        if record.model.get("sha256"):
            checkpoints[record.point["model"]].add(record.model["sha256"])
    names = {}
    for record in records:
        name, sha = record.point["model"], record.model.get("sha256")
        several = len(checkpoints[name]) > 1 and sha
        names[record.run_id] = f"{name}@{sha[:8]}" if several and sha else name
    return names


def _signatures(
    records: Sequence[Record], names: dict[str, str], machines: Machines
) -> dict[str, dict[str, str]]:
    """model -> column -> its one signature, without what it says of the point itself."""
    seen: dict[str, dict[str, str]] = defaultdict(dict)
    origin: dict[tuple[str, str], Record] = {}
    of_all = cache(partial(OF_THE_POINT.sub, ""))
    for record in records:
        suffix = machines.get(hardware(record), "") if record.kind == "timing" else ""
        for metric in record.metrics.values():
            if metric.value is None:
                continue
            model, column = names[record.run_id], metric.name + suffix
            signature = of_all(metric.signature)
            first = seen[model].setdefault(column, signature)
            other = origin.setdefault((model, column), record)
            if first != signature:
                where = f"{column}: two protocols meet for model={model}"
                count = Counter(
                    of_all(found.signature)
                    for each in records
                    if names[each.run_id] == model and (found := each.metrics.get(metric.name))
                )
                sides = sorted(
                    ((other, first), (record, signature)),
                    key=lambda side: (side[0].experiment, -count[side[1]]),
                )
                raise UserError(f"{where}: {_apart(*sides[0], *sides[1])}")
    return {model: dict(sorted(found.items())) for model, found in sorted(seen.items())}


def _apart(one: Record, first: str, other: Record, second: str) -> str:
    """What two signatures differ in, a run of each, and what to type; ``other`` is the rarer."""
    parts, others = first.split("|"), second.split("|")
    found = [
        (record, "|".join(p for p in mine if p not in theirs) or "no more than that")
        for record, mine, theirs in ((one, parts, others), (other, others, parts))
    ]
    if one.experiment != other.experiment:
        shown = (f"'{said}' (experiment={record.experiment})" for record, said in found)
        both = f"{one.experiment}, then {other.experiment}"
        return f"{' and '.join(shown)}; take them one at a time: {both}"
    shown = (f"'{said}' (run {record.run_id[:12]})" for record, said in found)
    mine = other.run_id[:12]
    return (
        f"{' and '.join(shown)}, both of experiment={one.experiment}; move records/{mine}*.json "
        f"elsewhere, and measure it under a name of its own: the command that `bitsweep show "
        f"{mine}` prints with experiment=NAME"
    )


def hardware(record: Record) -> tuple[str, int | None]:
    """Device and threads of a timing Record: two of them are comparable where these are equal.

    Threads are those that its plain metrics were timed with, which a probe may choose.
    """
    place = {**record.provenance, **record.point}
    signed = (timing.Shape.read(metric.signature) for metric in record.metrics.values())
    shape = next((found for found in signed if found is not None), None)
    threads = place.get("threads") if shape is None else shape.threads
    return str(place.get("device") or "unknown device"), threads


def _machines(records: Sequence[Record]) -> Machines:
    """machine -> the suffix of its columns: none for the one that timed most points."""
    timed = [hardware(r) for r in records if r.kind == "timing" and r.status == "ok"]
    ranked = sorted(Counter(timed).items(), key=lambda item: (-item[1], str(item[0])))
    return {
        machine: "" if rank == 0 else f" @ {machine[0]}, {machine[1]} threads"
        for rank, (machine, _) in enumerate(ranked)
    }


def _engine(record: Record) -> str | None:
    """The engine that ran, as the signature of what it took says; None where nothing ran."""
    signed = (m.signature for m in record.metrics.values() if m.value is not None)
    found = timing.ENGINE.search(next(signed, ""))
    return found[1] if found else record.point.get("engine")


def _row(group: Sequence[Record], names: dict[str, str], machines: Machines) -> dict[str, Any]:
    """The columns of one point. Of two engines on one machine the faster decode, the lower peak.

    Of several Records of its quality (other probes, asked later) the one with most numbers is what
    the row names; the others add what it has not measured.
    """
    judged = sorted((r for r in group if r.kind == "quality"), key=_fullest_first)
    main = judged[0] if judged else group[0]
    config = {k: v for k, v in main.point.items() if k not in (*HARDWARE, "model")}
    row: dict[str, Any] = {
        "experiment": main.experiment,
        "status": main.status,
        "reason": main.reason,
        "model": names[main.run_id],  # the first of the axes, whatever their order in the file
        **config,
        **calibrated(main),
        "point_id": main.point_id,
        "run_id": main.run_id,
        "plan": main.plan.get("summary"),
        "misfits": "; ".join(f"{k}: {v}" for k, v in sorted(main.plan.get("misfits", {}).items())),
        "calibration_sha256": (main.calibration or {}).get("sha256"),
        "commit": main.provenance.get("commit"),
        "dirty": _any_dirty(main, group),
        **exported(main.point, main.plan.get("summary") or UNTOUCHED),
        **_notes(main),
    }
    for record in judged:
        for metric in record.metrics.values():
            if row.get(metric.name) is None:
                _fill(row, metric, metric.name)
    for record in sorted((r for r in group if r.kind == "timing"), key=_slowest_first):
        device, threads = hardware(record)
        suffix = machines.get((device, threads), "")
        if record.status != "ok":
            continue
        if any(metric.value is not None for metric in record.metrics.values()):
            row[f"engine{suffix}"] = _engine(record)
            row[f"device{suffix}"], row[f"threads{suffix}"] = device, threads
        for metric in record.metrics.values():
            _fill(row, metric, metric.name + suffix)
    return row


def _any_dirty(main: Record, group: Sequence[Record]) -> bool | None:
    """Whether any of a point's Records was measured by code with uncommitted changes."""
    return any(r.provenance.get("dirty") for r in group) or main.provenance.get("dirty")


def calibrated(record: Record) -> dict[str, Any]:
    """How its text was used, by the keys of the command line; None for a point without one."""
    known = record.calibration or {}
    keys = ("windows", "window", "choice", "seed")
    default = {"choice": "random"} if known else {}
    return {f"calibration.{key}": known.get(key, default.get(key)) for key in keys}


def _notes(record: Record) -> dict[str, Any]:
    """What its policy says of the plan: the one part that was quantized, or the budget."""
    notes = record.plan.get("notes", {})
    if "only" in notes:
        return {"only": notes["only"]}
    if "average_bits" not in notes:
        return {}
    return {
        "budget_bits": notes["average_bits"],
        "budget_spent": notes["spent_bits"],
        "budget_slack_bytes": notes["slack_bytes"],
        **{f"predicted/{name}": value for name, value in notes["predicted"].items()},
    }


def whole(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of models quantized as a whole: without those of one part alone."""
    return frame[frame["only"].isna()] if "only" in frame else frame


def _fullest_first(record: Record) -> tuple[bool, int, str]:
    return record.status != "ok", -len(record.metrics), record.run_id


def _slowest_first(record: Record) -> tuple[float, float, str]:
    """By decode time; those that were not timed by the peak of their memory, the largest first."""
    found = [record.metrics.get(name) for name in ("decode_ms", "decode_peak_mib")]
    slow, large = (float("inf") if m is None or m.value is None else m.value for m in found)
    return -slow, -large, record.run_id


def _fill(row: dict[str, Any], metric: Metric, name: str) -> None:
    """What ``metric`` has to say, into the columns that begin with ``name``."""
    row[name] = metric.value
    if metric.lo is not None:
        row[f"{name}.lo"], row[f"{name}.hi"] = metric.lo, metric.hi
    delta = metric.delta
    if delta is not None:
        row[f"{name}.delta"] = delta.value
        row[f"{name}.delta.lo"], row[f"{name}.delta.hi"] = delta.lo, delta.hi
    row.pop(f"{name}.reason", None)  # of another Record, which had no number
    if metric.reason is not None:
        row[f"{name}.reason"] = metric.reason


def _meaning(records: Sequence[Record], machines: Machines) -> dict[str, dict[str, str | None]]:
    """metric -> unit, better, kind of delta (None where it has none)."""
    found: dict[str, dict[str, str | None]] = {}
    for record in records:
        suffix = machines.get(hardware(record), "") if record.kind == "timing" else ""
        for metric in record.metrics.values():
            entry = found.get(metric.name + suffix)
            if entry is None:
                entry = {"unit": metric.unit, "better": metric.better, "delta": None}
                found[metric.name + suffix] = entry
            if metric.value is not None:
                entry["unit"], entry["better"] = metric.unit, metric.better
            if metric.delta is not None:
                entry["delta"] = metric.delta.kind
    return dict(sorted(found.items()))


def is_reference(row: Mapping[Any, Any]) -> bool:
    """Whether a row is the full-precision model as it is.

    A point of the method full_precision may have a transform, a quantized cache or a recovery, or
    be a checkpoint that was quantized before.
    """
    if row["method"] != REFERENCE:
        return False
    given = [row[name] for name in CHANGED if name in row]
    return all(value is None or value != value or value == "" for value in given)


def references(frame: pd.DataFrame) -> pd.Series:
    """:func:`is_reference` of each row."""
    found = frame["method"].eq(REFERENCE)
    for name in CHANGED:
        if name in frame:
            found &= frame[name].isna() | frame[name].eq("")
    return found.astype(bool)


def _order(row: dict[str, Any]) -> tuple[Any, ...]:
    group = row.get("group_size")
    return (
        str(row["model"]),
        not is_reference(row),
        *(str(row.get(name) or "") for name in ORDER),
        -(row.get("bits") or 0),
        float("inf") if group is None or group <= 0 else group,
        -(group or 0),
        bool(row.get("symmetric")),
        str(row.get("seed")),
        row["experiment"],
        row["run_id"],
    )


def _columns(rows: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """The union of the rows' columns, each where it first appears; None where a row has none.

    An axis that only later rows have (Records of an experiment that knew it) is an axis still, and
    stands before ``point_id``.
    """
    found: dict[str, list[Any]] = {}
    for place, row in enumerate(rows):
        for name, value in row.items():
            column = found.get(name)
            if column is None:
                column = found[name] = [None] * len(rows)
            column[place] = value
    axes = {name for row in rows for name in itertools.takewhile(_is_axis, row)}
    first = {name: column for name, column in found.items() if name in axes}
    return first | found or {"experiment": [], "status": []}


def _is_axis(name: str) -> bool:
    return name != "point_id"


def _typed(values: list[Any]) -> pd.Series:
    """Whole numbers with gaps stay whole (pandas would make 4 into 4.0), numbers are numbers."""
    kinds = {*map(type, values)} - {type(None)}
    if not kinds or not kinds <= {int, float}:
        return pd.Series(values, dtype=object)
    return pd.Series(values, dtype="Int64" if kinds == {int} else float)
