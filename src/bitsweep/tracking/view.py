"""What the W&B view of an experiment shows: a block for each model, the metrics of its front.

Every name is the one under which :mod:`bitsweep.tracking.flat` publishes it. A panel of W&B joins
nothing: both axes of a scatter must stand in one run, and a point has two runs, one of its quality
and one of its times.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from bitsweep.record import Kind, Record
from bitsweep.report import labels
from bitsweep.report.frame import REFERENCE, frame, references
from bitsweep.report.style import INK, PALETTE
from bitsweep.report.tables import primaries, speed_metric
from bitsweep.tracking import flat

COSTS = ("file_mib", "bits_per_weight", "decode_mib")
"""What a front may be against, the first that its runs have: lower is better in each."""

GRID = ("method", "bits", "group_size", "policy")
PLACE = ("machine", "threads")
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
    ``hardware``: machine and threads of its times, the one with most of them first;
    ``engines``: whether its runs say by which engine they were timed.
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
    engines: bool
    records: tuple[Record, ...]

    @property
    def shown(self) -> tuple[tuple[Kind, ...], dict[str, Values]]:
        """Job types and hardware of the workspace: a front of times is of one hardware."""
        if self.front is not None and self.front.kind == "timing":
            return ("timing",), self.hardware[0]
        return self.kinds, {}


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
    """run_id -> the colour of its method; full precision is dark."""
    ok = [r for r in records if r.status == "ok"]
    methods = sorted({str(r.point["method"]) for r in ok} - {REFERENCE})
    by_method = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(methods)}
    return {r.run_id: by_method.get(str(r.point["method"]), INK) for r in ok}


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
    speed = speed_metric(table)
    timed = [r for r in records if speed is not None and _has(r, speed)]
    hardware = _hardware(timed)
    main = [r for r in timed if _placed(r) == hardware[0]]
    front = _front(whole if quantized else records, main, table, line=quantized > 0)
    quality = [r for r in whole if r.kind == "quality"]
    return Block(
        title=title,
        experiments=tuple(sorted({r.experiment for r in records})),
        kinds=tuple(sorted({r.kind for r in records})),
        where=where,
        without={"policy": _values([r for r in records if r.point_id in parts], "policy")}
        if parts and quantized
        else {},
        grid=(*GRID, *_axes(main if front and front.kind == "timing" else quality, table)),
        front=front,
        numbers=(front.x, front.y) if front else _costs(records),
        speed=_axis(timed, speed) if speed is not None and timed else None,
        hardware=hardware,
        engines=any(flat.config(r).get("engine") for r in timed),
        records=tuple(records),
    )


def _axes(records: Sequence[Record], table: pd.DataFrame) -> Iterable[str]:
    """Columns beside GRID of which these runs, one front's, have several values."""
    columns = [flat.config(record) for record in records]
    for name in (*labels.varying(table), "engine"):
        if name not in GRID and len({row[name] for row in columns if name in row}) > 1:
            yield name


def _front(
    whole: Sequence[Record], timed: Sequence[Record], table: pd.DataFrame, line: bool
) -> Front | None:
    """Perplexity, or speed where there is none, against the first cost in the same runs."""
    choices = [(name, whole) for name in primaries(table).values()]
    speed = speed_metric(table)
    choices += [(speed, timed)] if speed is not None else []
    for y, records in choices:
        for x in COSTS:
            both = [r for r in records if _has(r, x) and _has(r, y)]
            if len(both) < 2:
                continue
            counts = Counter(str(r.point["method"]) for r in both)
            methods = sorted(name for name, count in counts.items() if count > 1)
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
    places = [_placed(record) for record in timed]
    found = {repr(place): place for place in places}
    return tuple(sorted(found.values(), key=lambda place: (-places.count(place), repr(place))))


def _placed(record: Record) -> dict[str, Values]:
    columns = flat.config(record)
    return {name: (columns[name],) for name in PLACE if columns.get(name) is not None}
