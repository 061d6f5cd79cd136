"""A report's table in LaTeX, made to fit the width of a page.

What an author would do by hand: models whose columns differ have a table each, a column that is
the same everywhere stands below, heads have several lines, and what is still too wide is set in
tables below each other, each with the columns that name its rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache

from bitsweep.report import labels
from bitsweep.report.sheet import PAGE_LINES, TEXT_IN, Line, Sheet, below, tabular

SIZES_PT = {"footnotesize": 8.0, "scriptsize": 7.0}
"""Sizes of letters in a document of 10 pt, the one that is taken if it will do first."""

SEP_PT = 3.2
"""Half of what is between two columns."""

MARK = "front"
"""The head of the column that says in words what bold rows say."""

MARKED = "Rows in bold are on the front; rows in italics are tied with it."
HEAD_LINES, HEAD_ROOM = 4, 4
"""Lines that a head may have; lines of a table beside its rows."""

BOLD = 1.08
"""How much wider bold letters are."""

EMS = {
    **dict.fromkeys("fijlt|.,:;'![]() ", 0.31), **dict.fromkeys("acersz", 0.45),
    **dict.fromkeys("bdghknopquvxy0123456789_/*#-", 0.51), **dict.fromkeys("+=−±×<>~", 0.58),
    **dict.fromkeys("w", 0.73), **dict.fromkeys("mMW%@", 0.95),
}  # fmt: skip
"""Widths of letters in em, of Times; others are as wide as capitals."""

CAPITAL = 0.7


def latex(sheet: Sheet, width_in: float = TEXT_IN) -> str:
    """A table without caption, for ``\\input``; needs the package booktabs.

    As many lines as a page has stand in a ``table*`` of the author's. Of more lines it is a
    ``longtable``, which needs that package: in a document of two columns it goes over to one and
    back, so that it can stand in an appendix and in no float.
    """
    size, parts = _sized(sheet, width_in)
    tall = _is_tall(parts)
    kind = "longtable" if tall else "tabular"
    out = [f"% {' '.join(sheet.title.split())}", *(ONE_COLUMN if tall else ())]
    out += [f"{{\\{size}\\setlength{{\\tabcolsep}}{{{SEP_PT}pt}}"]
    for index, part in enumerate(parts):
        out += ["\\par\\medskip"] if index and not tall else []
        out += tabular(part, kind)
    notes = dict.fromkeys(note for part in parts for note in part.notes)
    out += ["}", *below(replace(sheet, notes=(*notes, *sheet.notes)))]
    return "\n".join([*out, *(AND_BACK if tall else ())]) + "\n"


ONE_COLUMN = (
    "\\makeatletter\\let\\aftertable\\relax",
    "\\if@twocolumn\\let\\aftertable\\twocolumn\\onecolumn\\fi\\makeatother",
)
AND_BACK = ("\\aftertable",)


def is_tall(sheet: Sheet, width_in: float) -> bool:
    """Whether it has more lines than a page, in a float or not."""
    return _is_tall(_sized(sheet, width_in)[1])


def _is_tall(parts: Sequence[Sheet]) -> bool:
    heads = HEAD_ROOM * (len(parts) - 1)
    return sum(len(part.lines) for part in parts) + heads > PAGE_LINES


def _sized(sheet: Sheet, width_in: float) -> tuple[str, list[Sheet]]:
    """The size of letters at which there are fewest tables no wider than ``width_in``."""
    whole, width = _shortened(_marked(sheet)), width_in * 72.27
    blocks = len(whole.blocks())
    parts = [_narrow(_without_constants(part, blocks)) for part in _by_columns(whole)]
    made = {
        size: [(part, kept) for part, ems in parts for kept in _fitting(part, ems, width, points)]
        for size, points in SIZES_PT.items()
    }
    best = min(made, key=lambda size: len(made[size]))
    return best, [_only(part, kept) for part, kept in made[best]]


def _narrow(part: Sheet) -> tuple[Sheet, list[float]]:
    """``part`` with heads as narrow as they become, and how wide its columns are then, in em."""
    cells = [_cells(part, i) for i in range(len(part.heads))]
    heads = tuple(_broken(head, room) for head, room in zip(part.heads, cells, strict=True))
    widths = [max(room, _widest(head)) for room, head in zip(cells, heads, strict=True)]
    return replace(part, heads=heads), widths


def _shortened(sheet: Sheet) -> Sheet:
    """Methods without their options, where one stands with no others; a note has them."""
    names = dict.fromkeys(line.cells[0] for line in sheet.lines)
    called = labels.short(list(names), cap=0)
    cut = {name: text for name, text in called.items() if text != name}
    if not cut:
        return sheet
    lines = tuple(
        replace(line, cells=(called[line.cells[0]], *line.cells[1:])) for line in sheet.lines
    )
    return replace(sheet, lines=lines, notes=(*sheet.notes, f"In full: {'; '.join(cut)}."))


def _marked(sheet: Sheet) -> Sheet:
    """Without the column of marks: rows of the front are bold, tied ones in italics."""
    if sheet.heads[-1] != MARK:
        return replace(sheet, notes=())
    every = frozenset(range(len(sheet.heads)))
    lines = tuple(
        replace(line, tied=every) if line.cells[-1] == "tied" else line for line in sheet.lines
    )
    found = _only(replace(sheet, lines=lines, notes=()), range(len(sheet.heads) - 1))
    marks = any(line.cells[-1] for line in sheet.lines)
    return replace(found, notes=(MARKED,) if marks else ())


def _by_columns(sheet: Sheet) -> Iterator[Sheet]:
    """Blocks that have the same columns, without those in which they have nothing."""
    found: dict[tuple[int, ...], list[Line]] = {}
    for _, lines in sheet.blocks():
        used = [i for i in range(len(sheet.heads)) if i == 0 or any(x.cells[i] for x in lines)]
        found.setdefault(tuple(used), []).extend(lines)
    for columns, lines in found.items():
        yield _only(replace(sheet, lines=tuple(lines)), columns)


def _without_constants(part: Sheet, every: int) -> Sheet:
    """Without the columns of words that say the same in every row; a note says it once.

    ``every``: how many blocks there are, in this part and in others.
    """
    constant = {
        i: cells.pop()
        for i, side in enumerate(part.align)
        if i and side == "l" and len(cells := {line.cells[i] for line in part.lines}) == 1
    }
    if len(part.lines) < 2 or not constant:
        return part
    said = ", ".join(f"{part.heads[i]} {cell}" for i, cell in constant.items())
    blocks = [block for block, _ in part.blocks()]
    of = f" of {', '.join(blocks)}" if len(blocks) < every else ""
    note = f"Every row{of}: {said}."
    kept = [i for i in range(len(part.heads)) if i not in constant]
    return replace(_only(part, kept), notes=(*part.notes, note))


def _fitting(part: Sheet, ems: Sequence[float], width: float, points: float) -> Iterator[list[int]]:
    """Columns that fit beside those that name the rows; a change stays beside what it changes.

    ``ems``: of each column its width in em; ``width`` and the letters' size are in points.
    """
    names = next((i for i, side in enumerate(part.align) if side == "r"), len(part.heads))
    taken: list[int] = []
    for group in _groups(part, names):
        both = [*range(names), *taken, *group]
        if taken and sum(ems[i] for i in both) * points + 2 * SEP_PT * (len(both) - 1) > width:
            yield [*range(names), *taken]
            taken = []
        taken += group
    yield [*range(names), *taken]


def _groups(part: Sheet, names: int) -> list[list[int]]:
    groups: list[list[int]] = []
    for i in range(names, len(part.heads)):
        if groups and part.heads[i].startswith("Δ"):
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _cells(part: Sheet, column: int) -> float:
    """In em, as wide as the widest cell."""
    return max(
        (_ems(line.cells[column]) * (BOLD if line.bold else 1) for line in part.lines), default=0
    )


def _broken(head: str, cells: float) -> str:
    """The head in as many lines as make it no wider than its cells, where words allow that."""
    words = head.replace("_", " ").replace("/", "/ ").split() or [""]
    room = max(cells, *map(_ems, words))
    lines = [words[0]]
    for word in words[1:]:
        longer = f"{lines[-1]}{'' if lines[-1].endswith('/') else ' '}{word}"
        if _ems(longer) <= room or len(lines) == HEAD_LINES:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)


def _widest(head: str) -> float:
    return max(map(_ems, head.split("\n")))


@cache
def _ems(text: str) -> float:
    return sum(EMS.get(letter, CAPITAL) for letter in text)


def _only(sheet: Sheet, columns: Sequence[int]) -> Sheet:
    """The columns of these numbers."""
    columns = list(columns)
    if columns == list(range(len(sheet.heads))):
        return sheet

    def cut(line: Line) -> Line:
        best, tied = (
            frozenset(place for place, i in enumerate(columns) if i in cells) if cells else cells
            for cells in (line.best, line.tied)
        )
        return Line(tuple(line.cells[i] for i in columns), line.block, line.bold, best, tied)

    return replace(
        sheet,
        heads=tuple(sheet.heads[i] for i in columns),
        align=tuple(sheet.align[i] for i in columns),
        lines=tuple(map(cut, sheet.lines)),
    )
