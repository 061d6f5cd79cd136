"""What the W&B view of an experiment shows: a block for each model, the metrics of its front.

Every name is the one under which :mod:`bitsweep.tracking.flat` publishes it. A panel of W&B joins
nothing: both axes of a scatter must stand in one run, and a point has two runs, one of its quality
and one of its times.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from bitsweep.record import Kind, Record
from bitsweep.report import labels
from bitsweep.report.frame import frame, references
from bitsweep.report.style import PALETTE
from bitsweep.report.tables import primaries, speed_metric
from bitsweep.tracking import flat

COSTS = ("file_mib", "bits_per_weight", "decode_mib")
"""What a front may be against, the first that its runs have: lower is better in each."""

GRID = ("method", "bits", "group_size", "policy")
SPREAD = 5.0
"""Numbers that differ by a larger factor than this are shown on a logarithmic axis."""

Values = tuple[flat.Scalar, ...]


@dataclass(frozen=True)
class Axis:
    """A number of a run: its name over there, its unit, whether more of it is better.

    ``delta``: the name of its change to full precision, where a run has that.
    """

    name: str
    delta: str | None
    unit: str
    higher: bool
    log: bool

    @property
    def title(self) -> str:
        return f"{self.name}, {self.unit}" if self.unit else self.name


@dataclass(frozen=True)
class Front:
    """``y`` against the cost ``x``, in runs of one kind.

    ``line``: whether the best so far is a front, which among parts quantized alone it is not.
    ``methods``: those with at least two points of it.
    """

    x: Axis
    y: Axis
    kind: Kind
    line: bool
    methods: tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """One model of an experiment.

    ``where``: config column -> values, which select its runs and no other's; ``without``: values
    to leave out of a front, those of policies that quantized one part alone. ``grid``: the config
    columns that tell its points apart, ``numbers`` what is looked at in them, the cost first.
    ``hardware``: machine and threads of its times.
    """

    title: str
    experiments: tuple[str, ...]
    kinds: tuple[Kind, ...]
    where: dict[str, Values]
    without: dict[str, Values]
    grid: tuple[str, ...]
    front: Front | None
    numbers: tuple[Axis, ...]
    speed: Axis | None
    hardware: tuple[dict[str, Values], ...]
    records: tuple[Record, ...]


def blocks(records: Iterable[Record]) -> list[Block]:
    """A block for each model that has points, by name as in the report.

    Raises:
        UserError: as :func:`bitsweep.report.load`.
    """
    ok = sorted((r for r in records if r.status == "ok"), key=lambda r: (r.kind, r.run_id))
    if not ok:
        return []
    table = frame(ok)
    names = dict(zip(table["point_id"], table["model"], strict=True))
    own: dict[str, list[Record]] = {name: [] for name in sorted(table["model"].unique())}
    for record in ok:
        own[names[record.point_id]].append(record)
    titles = _titles(own)
    return [_block(titles[n], own[n], table[table["model"] == n]) for n in own]


def colors(records: Iterable[Record]) -> dict[str, str]:
    """run_id -> the colour of its method; full precision keeps W&B's own."""
    ok = [r for r in records if r.status == "ok" and r.point.get("bits") is not None]
    methods = sorted({str(r.point["method"]) for r in ok})
    by_method = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(methods)}
    return {r.run_id: by_method[str(r.point["method"])] for r in ok}


def _titles(own: dict[str, list[Record]]) -> dict[str, str]:
    """Published names, told apart by the checkpoint's hash where two have the same."""
    columns = {name: flat.config(rows[0]) for name, rows in own.items()}
    every = [row["model"] for row in columns.values()]
    return {
        name: f"{row['model']}@{str(row['checkpoint_sha256'])[:8]}"
        if every.count(row["model"]) > 1
        else str(row["model"])
        for name, row in columns.items()
    }


def _block(title: str, records: Sequence[Record], table: pd.DataFrame) -> Block:
    where = {"model": _values(records, "model")}
    if (title,) != where["model"]:
        where["checkpoint_sha256"] = _values(records, "checkpoint_sha256")
    alone = table[table["only"].notna()] if "only" in table else table.iloc[:0]
    parts = set(alone["point_id"])
    whole = [r for r in records if r.point_id not in parts]
    quantized = len(table) - len(alone) - int(references(table).sum())
    published = flat.config(records[0])
    axes = [a for a in labels.varying(table) if a in published and a not in GRID]
    speed = speed_metric(table)
    timed = [r for r in records if speed is not None and _has(r, speed)]
    front = _front(whole if quantized else records, table, line=quantized > 0)
    return Block(
        title=title,
        experiments=tuple(sorted({r.experiment for r in records})),
        kinds=tuple(sorted({r.kind for r in records})),
        where=where,
        without={"policy": _values([r for r in records if r.point_id in parts], "policy")}
        if parts and quantized
        else {},
        grid=(*GRID, *axes),
        front=front,
        numbers=(front.x, front.y) if front else _costs(records),
        speed=_axis(timed, speed) if speed is not None and timed else None,
        hardware=_hardware(timed),
        records=tuple(records),
    )


def _front(records: Sequence[Record], table: pd.DataFrame, line: bool) -> Front | None:
    quality, speed = primaries(table), speed_metric(table)
    for y in [*quality.values(), *([speed] if speed else [])]:
        for x in COSTS:
            both = [r for r in records if _has(r, x) and _has(r, y)]
            if len(both) < 2:
                continue
            counts = pd.Series([str(r.point["method"]) for r in both]).value_counts()
            methods = sorted(str(name) for name in counts[counts > 1].index)
            return Front(_axis(both, x), _axis(both, y), both[0].kind, line, tuple(methods))
    return None


def _costs(records: Sequence[Record]) -> tuple[Axis, ...]:
    """The first of COSTS that there is, for a model without a front."""
    for name in COSTS:
        found = [r for r in records if _has(r, name)]
        if found:
            return (_axis(found, name),)
    return ()


def _has(record: Record, metric: str) -> bool:
    return metric in record.metrics and record.metrics[metric].value is not None


def _axis(records: Sequence[Record], metric: str) -> Axis:
    first = records[0].metrics[metric]
    values = [r.metrics[metric].value or 0.0 for r in records]
    name = flat.safe(metric)
    delta = f"{name}_delta"
    return Axis(
        name=name,
        delta=delta if any(delta in flat.numbers(r) for r in records) else None,
        unit=first.unit,
        higher=first.better == "higher",
        log=min(values) > 0 and max(values) > SPREAD * min(values),
    )


def _values(records: Iterable[Record], column: str) -> Values:
    found = {flat.config(record)[column] for record in records}
    return tuple(sorted(found, key=str))


def _hardware(timed: Sequence[Record]) -> tuple[dict[str, Values], ...]:
    """Times are compared on one machine with one number of threads only."""
    names = ("machine", "threads")
    found = {tuple(flat.config(r).get(name) for name in names) for r in timed}
    rows = sorted(found, key=lambda row: tuple(map(str, row)))
    return tuple(
        {n: (v,) for n, v in zip(names, row, strict=True) if v is not None} for row in rows
    )
