"""Records -> the rows that a table or figure of the paper is about, and the numbers in them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bitsweep.compose import choices, nearest
from bitsweep.errors import UserError
from bitsweep.report import labels
from bitsweep.report.frame import is_reference
from bitsweep.report.labels import Row, missing
from bitsweep.report.latency import marks
from bitsweep.report.paper.language import Source, Value
from bitsweep.report.paper.vocabulary import WORDS
from bitsweep.report.tables import primaries
from bitsweep.report.timed import Timed

OF_THE_MODEL = ("model", "experiment", "data", "device", "threads", "batch", "prompt")
"""Conditions that full precision must meet as well; it has neither bits nor policy."""


@dataclass(frozen=True)
class Chosen:
    """The rows of one table, full precision apart, and each model's own perplexity."""

    where: str
    frame: pd.DataFrame
    rows: tuple[dict[str, Any], ...]
    references: tuple[dict[str, Any], ...]
    primary: Mapping[str, str]

    def column(self, of: str, row: Row) -> str:
        """The column behind ``of``: itself, or of its kind that of the model's own text."""
        if of in self.frame:
            return of
        return f"{of}/{self.primary.get(str(row['model']), '').partition('/')[2]}"

    def columns(self, of: str) -> list[str]:
        """:meth:`column` for every model.

        Raises:
            UserError: no row has such a column.
        """
        found = dict.fromkeys(self.column(of, row) for row in (*self.rows, *self.references))
        known = [name for name in found if name in self.frame]
        if not known:
            kinds = {name.partition("/")[0] for name in self.frame.attrs["metrics"]}
            names = [*self.frame.attrs["metrics"], *sorted(kinds)]
            raise UserError(
                f"{self.where}: {of}: no Record has it{nearest(of, names) or choices(names)}"
            )
        return known

    def baseline(self, row: Row) -> Row | None:
        """Full precision of the row's model, in the dtype that others are compared with."""
        own = [ref for ref in self.references if ref["model"] == row["model"]]
        plain = [ref for ref in own if not ref.get("method_options")]
        return next(iter(plain or own), None)


@dataclass(frozen=True)
class Number:
    """What a cell shows, in its unit, and the bounds of noise around it, where they are known.

    ``low`` and ``high`` are of the paired difference to full precision, so that two of a column
    can be told apart; ``spread`` is the standard deviation of ``count`` seeds.
    """

    value: float
    lo: float | None = None
    hi: float | None = None
    low: float | None = None
    high: float | None = None
    spread: float | None = None
    count: int = 1


def choose(
    where: str, frame: pd.DataFrame, source: Source, wanted: Mapping[str, Any], reference: bool
) -> Chosen:
    """The rows of ``frame`` that meet every condition, each point once.

    Raises:
        UserError: a condition on a column that is not there, or one that no Record meets.
    """
    full = _timings(frame) if source == "timings" else frame
    full = full.assign(**dict.fromkeys(WORDS))
    for column in wanted:
        known_column(f"{where}.where", str(column), full)
    rows: list[dict[str, Any]] = []
    references: list[dict[str, Any]] = []
    seen: set[str] = set()
    for given in labels.rows(full):
        row = {**given, **words(given)}
        name = f"{row['run_id']} {[row.get(k) for k in ('engine', *OF_THE_MODEL[3:])]}"
        if name in seen:
            continue
        asked = {k: v for k, v in wanted.items() if k in OF_THE_MODEL or not is_reference(row)}
        if all(meets(row.get(str(column)), wish) for column, wish in asked.items()):
            seen.add(name)
            if not is_reference(row):
                rows.append(row)
            elif reference and row["status"] == "ok":
                references.append(row)
    if not rows:
        wish = ", ".join(f"{k}: {v}" for k, v in wanted.items()) or "anything"
        raise UserError(f"{where}.where: no Record is {wish}")
    return Chosen(where, full, tuple(rows), tuple(references), primaries(full))


def known_column(where: str, column: str, frame: pd.DataFrame) -> None:
    """Raises UserError unless the frame has the column."""
    if column not in frame:
        plain = [str(name) for name in frame.columns if not str(name).endswith((".lo", ".hi"))]
        raise UserError(f"{where}: {column}: no such column{nearest(column, plain)}")


def meets(value: Any, wish: Any) -> bool:
    """Whether a cell is what ``where`` asks for: a value, null for none, or one of a list."""
    if isinstance(wish, (list, tuple)):
        return any(meets(value, each) for each in wish)
    if wish is None or wish == "":
        return missing(value) or value == ""
    if isinstance(wish, (int, float)) and isinstance(value, (int, float)):
        return bool(value == wish)
    return not missing(value) and str(value) == str(wish)


def words(row: Row) -> dict[str, Any]:
    """The cells of :data:`WORDS`: ``rotate + gptq nf + low_rank``, ``nf4g64``, ``budget``."""
    if not row:
        return dict.fromkeys(WORDS)
    return {
        "approach": labels.grid(row, ("transforms", "recover")),
        "weights": labels.weights(row),
        "policy_name": str(row.get("policy") or "").partition(" ")[0] or None,
    }


def _timings(frame: pd.DataFrame) -> pd.DataFrame:
    """A row for each point, engine and shape that was timed, with the point's own columns.

    Of two times of one such thing on one machine the faster decode stands, as in the frame.
    """
    points = {(row["experiment"], row["point_id"]): row for row in labels.rows(frame)}
    fastest: dict[tuple[Any, ...], Timed] = {}
    for timed in frame.attrs.get("timings", ()):
        key = (timed.experiment, timed.point_id, timed.engine, timed.device, timed.shape)
        known = fastest.setdefault(key, timed)
        if (_decode(timed), timed.run_id) < (_decode(known), known.run_id):
            fastest[key] = timed
    found = []
    for timed in fastest.values():
        point = points.get((timed.experiment, timed.point_id))
        if point is None or timed.shape is None:
            continue
        shape = {"batch": timed.shape.batch, "prompt": timed.shape.prompt}
        found.append(
            {
                **{k: v for k, v in point.items() if k.partition(".")[0] not in timed.values},
                **timed.values,
                **shape,
                "engine": timed.engine,
                "threads": timed.shape.threads,
                "device": timed.device,
                "run_id": timed.run_id,
                "marks": ", ".join(marks(timed.values)),
            }
        )
    made = pd.DataFrame(found, columns=list(dict.fromkeys(k for row in found for k in row)))
    made.attrs = frame.attrs
    return made


def _decode(timed: Timed) -> float:
    return timed.values.get("decode_ms", float("inf"))


def number(chosen: Chosen, value: Value, rows: Sequence[Row]) -> Number | None:
    """What a cell of these rows shows: one row's number, or the mean of several."""
    found = [each for row in rows if (each := _of_row(chosen, value, row)) is not None]
    if not found:
        return None
    if len(rows) == 1:
        return found[0]
    every = [each.value for each in found]
    spread = statistics.stdev(every) if len(every) > 1 else None
    return Number(statistics.fmean(every), spread=spread, count=len(every))


def _of_row(chosen: Chosen, value: Value, row: Row) -> Number | None:
    column = chosen.column(value.of, row)
    change = _bounds(row, f"{column}.delta")
    found = _bounds(row, column) if value.show == "value" else change
    if found[0] is None:
        return None
    scale, offset = value.scale, 0.0
    if value.show == "change" and chosen.frame.attrs["metrics"][column]["delta"] == "ratio":
        scale, offset = 100.0, 1.0
    middle, lo, hi = (None if v is None else (v - offset) * scale for v in found)
    assert middle is not None
    return Number(middle, lo, hi, *change[1:])


def _bounds(row: Row, column: str) -> tuple[float | None, float | None, float | None]:
    """A number and its interval, each None where it is not there."""
    cells = [row.get(f"{column}{end}") for end in ("", ".lo", ".hi")]
    value, lo, hi = (None if missing(v) or isinstance(v, str) else float(v) for v in cells)  # type: ignore[arg-type]
    return value, lo, hi


def better(chosen: Chosen, value: Value) -> str:
    """``lower``, ``higher`` or ``none``: which numbers of a column are the good ones."""
    if value.best is False:
        return "none"
    column = chosen.columns(value.of)[0]
    return str(chosen.frame.attrs["metrics"].get(column, {}).get("better") or "none")


def ordered(values: Iterable[Any], column: str, wanted: Mapping[str, Any]) -> list[Any]:
    """The values of a column as they stand: as ``where`` lists them; bits from many to few, other
    numbers from small to large and none last, words as they come."""
    found = list(dict.fromkeys(values))
    wish = wanted.get(column)
    if isinstance(wish, (list, tuple)):
        return sorted(found, key=lambda v: next(i for i, w in enumerate(wish) if meets(v, w)))
    numbers = [v for v in found if isinstance(v, (int, float))]
    if len(numbers) + sum(map(missing, found)) < len(found):
        return found
    return [*sorted(numbers, reverse=column == "bits"), *(v for v in found if missing(v))]
