"""A table of the paper: chosen rows -> cells, with the best of each column and what ties it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from bitsweep.errors import UserError
from bitsweep.report import labels
from bitsweep.report.labels import Row, missing
from bitsweep.report.paper.language import Table, Value
from bitsweep.report.paper.select import (
    Chosen,
    Number,
    better,
    choose,
    known_column,
    number,
    ordered,
)
from bitsweep.report.paper.words import Names, above, align, called, heads, printed
from bitsweep.report.sheet import DIRTY, DIRTY_NOTE, PAGE_LINES, Line, Sheet
from bitsweep.report.tables import fronts

NONE = "–"
"""In a cell whose point was refused or failed; its reason stands below."""

Key = tuple[Any, ...]
Group = dict[tuple[Key, Key, Any], list[Row]]


@dataclass(frozen=True)
class Made:
    """A table, and the run_ids of the rows that its numbers are from."""

    sheet: Sheet
    run_ids: frozenset[str]


def make(where: str, frame: pd.DataFrame, table: Table) -> Made:
    """Compute ``table`` from ``frame``; ``where`` is its key, for messages.

    Raises:
        UserError: a column, a metric or a condition that nothing meets, two points in one cell, or
            more lines than a page has.
    """
    chosen = choose(where, frame, table.source, table.where, table.reference)
    shown = table.shown()
    keys = [*table.blocks, *table.rows, *([table.columns] if table.columns else [])]
    for name in (*keys, *table.over):
        known_column(where, name, chosen.frame)
    used = list(dict.fromkeys(name for value in shown for name in chosen.columns(value.of)))
    cells = _grouped(chosen, table)
    names = Names(chosen, table)
    across = ordered([key[2] for key in cells], table.columns or "", table.where)
    lines: list[Line] = []
    for block in dict.fromkeys(key[0] for key in _sorted(cells, table)):
        lines += _block(chosen, table, shown, cells, block, across, names)
    if len(lines) > PAGE_LINES:
        raise UserError(
            f"{where}: {len(lines)} lines are more than a page has ({PAGE_LINES}); narrow where, "
            "or make two tables of it"
        )
    every = [*chosen.rows, *chosen.references]
    sheet = Sheet(
        title=table.caption,
        heads=heads(table, shown, across, names),
        align=align(len(table.rows), len(across) * len(shown)),
        lines=tuple(lines),
        columns=tuple(_raw(table, used)),
        values=tuple(tuple(row.get(name) for name in _raw(table, used)) for row in every),
        notes=(*_notes(chosen, table, lines, every), *table.notes),
        small=tuple(_protocols(frame, used, dict.fromkeys(str(row["model"]) for row in every))),
        over=above(table, shown, across, names),
    )
    return Made(sheet, frozenset(str(row["run_id"]) for row in every))


def _grouped(chosen: Chosen, table: Table) -> Group:
    """(block, row, column) -> the rows of that cell.

    Raises:
        UserError: two measured points meet in a cell; names the axes in which they differ.
    """
    found: Group = {}
    for row in chosen.rows:
        block = tuple(row.get(name) for name in table.blocks)
        key = tuple(row.get(name) for name in table.rows)
        found.setdefault((block, key, row.get(table.columns or "")), []).append(row)
    for place, rows in found.items():
        measured = [row for row in rows if row["status"] == "ok"]
        found[place] = measured or rows[:1]
        if len(measured) > 1 and not table.over:
            axes = _axes(chosen.frame)
            differ = [a for a in axes if len({str(row.get(a)) for row in measured}) > 1]
            raise UserError(
                f"{chosen.where}: {len(measured)} points in one cell, which differ in "
                f"{', '.join(differ) or 'nothing'}; name that in rows, columns, blocks, where or "
                "over"
            )
    return found


def _axes(frame: pd.DataFrame) -> list[str]:
    names = [str(name) for name in frame.columns]
    axes = names[names.index("model") : names.index("point_id")]
    timed = ("engine", "threads", "batch", "prompt")
    return [*(axis for axis in axes if axis != "label"), "experiment", *timed]


def _sorted(cells: Group, table: Table) -> list[tuple[Key, Key, Any]]:
    """The places of cells, blocks and rows in the order in which they are printed."""
    places = list(cells)
    for index in reversed(range(len(table.rows))):
        known = ordered([place[1][index] for place in places], table.rows[index], table.where)
        places.sort(key=lambda place, i=index, k=known: k.index(place[1][i]))  # type: ignore[misc]
    for given in reversed(table.sort):
        column, down = given.removeprefix("-"), given.startswith("-")
        places.sort(key=lambda place: _rank(cells[place][0].get(column)), reverse=down)
    for index in reversed(range(len(table.blocks))):
        known = ordered([place[0][index] for place in places], table.blocks[index], table.where)
        places.sort(key=lambda place, i=index, k=known: k.index(place[0][i]))  # type: ignore[misc]
    return places


def _rank(value: Any) -> tuple[bool, float, str]:
    """Numbers before words, what is missing last."""
    if missing(value):
        return True, math.inf, ""
    return False, *((float(value), "") if isinstance(value, (int, float)) else (0.0, str(value)))


def _block(
    chosen: Chosen, table: Table, shown: Sequence[Value], cells: Group, block: Key,
    across: Sequence[Any], names: Names,
) -> list[Line]:  # fmt: skip
    """The lines of one block, full precision first where it has a line of its own."""
    own = [place for place in _sorted(cells, table) if place[0] == block]
    keys = list(dict.fromkeys(place[1] for place in own))
    columns = [(at, value) for at in across for value in shown]
    first = cells[own[0]][0]
    marks = _front(chosen, table)
    reference = chosen.baseline(first)
    title = _title(chosen, table, shown, block, reference, names)
    numbers = {
        (key, i): _cell_number(chosen, value, cells.get((block, key, at), []))
        for key in keys
        for i, (at, value) in enumerate(columns)
    }
    text: dict[tuple[Key, int], str] = {}
    best: dict[Key, set[int]] = {key: set() for key in keys}
    tied: dict[Key, set[int]] = {key: set() for key in keys}
    for i, (at, value) in enumerate(columns):
        column = [numbers[key, i] for key in keys]
        winners, others = _standing(column, better(chosen, value))
        for index, key in enumerate(keys):
            rows = cells.get((block, key, at), [])
            text[key, i] = _cell(column[index], value, rows)
            best[key] |= {i} if index in winners else set()
            tied[key] |= {i} if index in others else set()
    lines = []
    if reference is not None and _own_line(table):
        lines.append(_reference_line(chosen, table, shown, reference, names, title))
    for key in keys:
        head = [names(column, part) for column, part in zip(table.rows, key, strict=True)]
        found = [row for at in across for row in cells.get((block, key, at), [])]
        if table.columns is None and any(row.get("dirty") for row in found):
            head[0] += DIRTY
        offset = len(head)
        lines.append(
            Line(
                (*head, *(text[key, i] for i in range(len(columns)))),
                title,
                table.front is not None and any(marks.get(r["run_id"]) == "front" for r in found),
                frozenset(i + offset for i in best[key]),
                frozenset(i + offset for i in tied[key]),
            )
        )
    return lines


def _own_line(table: Table) -> bool:
    """Whether full precision is a row; in a pivot, and where all are changes to it, it stands in
    the title of its block."""
    values = any(value.show == "value" for value in table.shown())
    return table.columns is None and table.blocks == ("model",) and values


def _title(
    chosen: Chosen, table: Table, shown: Sequence[Value], block: Key, reference: Row | None,
    names: Names,
) -> str:  # fmt: skip
    words = [names(c, v, True) for c, v in zip(table.blocks, block, strict=True)]
    title = ", ".join(word for word in words if word)
    if reference is None or _own_line(table):
        return title
    plain = replace(shown[0], show="value", interval=False, head=None)
    number_ = number(chosen, plain, [reference])
    if number_ is None:
        return title
    column = chosen.column(plain.of, reference)
    plain = replace(plain, digits=plain.digits if shown[0].show == "value" else 3)
    kind = column.partition("/")[0]  # which text stands below the table
    said = f"{called(kind)} {printed(number_, plain)}"
    return f"{title}; full precision: {said}" if title else f"full precision: {said}"


def _reference_line(
    chosen: Chosen, table: Table, shown: Sequence[Value], reference: Row, names: Names, title: str
) -> Line:
    head = ["" for _ in table.rows]
    head[0] = "full precision"
    for i, column in enumerate(table.rows):
        if column == "weights" and i:
            head[i] = labels.weights(reference)
    cells = []
    for value in shown:
        found = None if value.show == "change" else number(chosen, value, [reference])
        cells.append("" if found is None else printed(found, replace(value, interval=False)))
    head[0] += DIRTY if reference.get("dirty") else ""
    return Line((*head, *cells), title)


def _cell_number(chosen: Chosen, value: Value, rows: Sequence[Row]) -> Number | None:
    measured = [row for row in rows if row["status"] == "ok"]
    return number(chosen, value, measured) if measured else None


def _standing(column: Sequence[Number | None], direction: str) -> tuple[set[int], set[int]]:
    """Which numbers are the best, and which can not be told from it by their paired intervals."""
    known = [(index, found) for index, found in enumerate(column) if found is not None]
    if direction == "none" or len(known) < 2:
        return set(), set()
    sign = -1.0 if direction == "higher" else 1.0
    top = min(sign * found.value for _, found in known)
    winners = {index for index, found in known if sign * found.value == top}
    best = column[min(winners)]
    assert best is not None
    others = {i for i, found in known if i not in winners and _overlap(found, best, sign)}
    return (winners, others) if len(winners) < len(known) else (set(), set())


def _overlap(one: Number, best: Number, sign: float) -> bool:
    if one.low is None or one.high is None or best.low is None or best.high is None:
        return False
    return one.low <= best.high if sign > 0 else one.high >= best.low


def _cell(found: Number | None, value: Value, rows: Sequence[Row]) -> str:
    if found is None:
        return NONE if rows and rows[0]["status"] != "ok" else ""
    dirty = DIRTY if any(row.get("dirty") for row in rows) else ""
    return f"{printed(found, value)}{dirty}"


def _protocols(frame: pd.DataFrame, used: Sequence[str], models: Iterable[str]) -> Iterable[str]:
    """Each signature once, with the metrics and models that it is of."""
    signatures = frame.attrs["signatures"]
    of: dict[str, dict[str, None]] = {}
    whose: dict[str, dict[str, None]] = {}
    for model in models:
        for name in used:
            if signature := signatures.get(model, {}).get(name):
                of.setdefault(signature, {})[name] = None
                whose.setdefault(signature, {})[model] = None
    everyone = {model for found in whose.values() for model in found}
    for signature, names in of.items():
        some = f" of {', '.join(whose[signature])}" if set(whose[signature]) != everyone else ""
        yield f"{', '.join(names)}{some}: {signature}"


def _front(chosen: Chosen, table: Table) -> Mapping[str, str]:
    """run_id -> its mark on the front against ``front`` among the table's own rows."""
    if table.front is None:
        return {}
    known_column(f"{chosen.where}.front", table.front, chosen.frame)
    own = {row["run_id"] for row in chosen.rows}
    part = chosen.frame[chosen.frame["run_id"].isin(own)]
    return dict(zip(part["run_id"], fronts(part, table.front), strict=True))


def _raw(table: Table, used: Sequence[str]) -> list[str]:
    """Columns of the CSV: the keys, and every bound of each number."""
    keys = ["experiment", *table.blocks, *table.rows, *([table.columns] if table.columns else [])]
    ends = ("", ".lo", ".hi", ".delta", ".delta.lo", ".delta.hi")
    keys += [*table.over, "status", *(f"{name}{end}" for name in used for end in ends)]
    return list(dict.fromkeys([*keys, "commit", "dirty", "run_id"]))


def _notes(chosen: Chosen, table: Table, lines: Sequence[Line], every: Sequence[Row]) -> list[str]:
    notes = []
    cells = [cell for line in lines for cell in line.cells]
    words = [
        "bold: the best of its column in each block" if any(line.best for line in lines) else "",
        "italic: within noise of it (the paired 95 % intervals overlap)"
        if any(line.tied for line in lines)
        else "",
        f"rows in bold: on the front of perplexity and {called(table.front)}"
        if table.front and any(line.bold for line in lines)
        else "",
    ]
    if table.over:
        counts = sorted({len(rows) for rows in _grouped(chosen, table).values()})
        said = " to ".join(str(n) for n in dict.fromkeys((counts[0], counts[-1])))
        words.append(f"±: standard deviation over {said} points ({', '.join(table.over)})")
    words = [word for word in words if word]
    if words:
        said = "; ".join(words)
        notes.append(f"{said[0].upper()}{said[1:]}.")
    if NONE in cells:
        bad = [row for row in chosen.rows if row["status"] != "ok"]
        reasons = "; ".join(
            f"{', '.join(dict.fromkeys(names))}: {reason}"
            for reason, names in labels.by_reason(bad)
        )
        notes.append(f"{NONE} can not exist: {reasons}.")
    if any(row.get("dirty") for row in every):
        notes.append(DIRTY_NOTE)
    return notes
