"""A table of text cells, and its three ways onto paper: Markdown, CSV and LaTeX (booktabs)."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

COLUMN_IN, TEXT_IN = 3.25, 6.75
"""How wide a column of a page is, and two columns with what is between them."""

PAGE_LINES = 48
"""More lines than these do not fit on one page of paper."""
DIRTY = "†"
DIRTY_NOTE = f"{DIRTY} measured by code with changes that were not committed."


@dataclass(frozen=True)
class Line:
    """One row as printed. ``bold`` marks a point of the front; ``block`` names its model.

    ``best`` and ``tied``: cells that are the best of their column, and those within noise of it.
    """

    cells: tuple[str, ...]
    block: str
    bold: bool = False
    best: frozenset[int] = frozenset()
    tied: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Sheet:
    """One table. ``lines`` are printed, ``values`` are the same rows as full numbers for CSV.

    ``notes`` stand below the table, ``small`` (protocols, provenance) below them in small type.
    ``over``: what stands over the heads, each with the number of columns that it spans.
    """

    title: str
    heads: tuple[str, ...]
    align: tuple[Literal["l", "r"], ...]
    lines: tuple[Line, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[Any, ...], ...]
    notes: tuple[str, ...] = ()
    small: tuple[str, ...] = ()
    over: tuple[tuple[str, int], ...] = ()

    def blocks(self) -> list[tuple[str, list[Line]]]:
        found: dict[str, list[Line]] = {}
        for line in self.lines:
            found.setdefault(line.block, []).append(line)
        return list(found.items())


def markdown(sheet: Sheet) -> str:
    """Padded so that it reads in a terminal as it does on a page; front rows in bold."""
    parts = [f"# {_md(sheet.title)}"]
    heads = [_cell(head) for head in _full_heads(sheet)]
    for block, lines in sheet.blocks():
        body = [[_emphasis(line, i) for i in range(len(line.cells))] for line in lines]
        widths = [max(3, *(len(row[i]) for row in [heads, *body])) for i in range(len(heads))]
        ends = [":" if side == "r" else "-" for side in sheet.align]
        rule = ["-" * (width - 1) + end for width, end in zip(widths, ends, strict=True)]
        rows = [_padded(row, widths, sheet.align) for row in [heads, *body]]
        rows.insert(1, rule)
        table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
        parts.append(f"## {_md(block)}\n\n{table}" if block else table)
    parts += [_md(note) for note in sheet.notes]
    parts += ["\n".join(f"- {_md(line)}" for line in sheet.small)] if sheet.small else []
    return "\n\n".join(parts) + "\n"


def _padded(row: Sequence[str], widths: Sequence[int], align: Sequence[str]) -> list[str]:
    return [
        cell.rjust(width) if side == "r" else cell.ljust(width)
        for cell, width, side in zip(row, widths, align, strict=True)
    ]


def _md(text: str) -> str:
    """Nothing may open a tag, a link, code or emphasis, or command the terminal that shows it;
    `_` within a word is harmless."""
    text = " ".join(text.split()).replace("\\", "\\\\")
    if not text.isprintable():
        text = "".join(char if char.isprintable() else "\ufffd" for char in text)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([`*])", r"\\\1", text).replace("](", "]\\(")
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)


@cache
def _cell(text: str) -> str:
    """Nothing may end the cell."""
    return _md(text).replace("|", "\\|")


def _emphasis(line: Line, index: int) -> str:
    """Bold: method and weights of a front row, and the best cells; italic: those tied with them."""
    cell = _cell(line.cells[index])
    if not cell:
        return ""
    if (line.bold and index < 2) or index in line.best:
        return f"**{cell}**"
    return f"*{cell}*" if index in line.tied else cell


def _full_heads(sheet: Sheet) -> list[str]:
    """Each head with what stands over it: Markdown has one line of heads."""
    over = [text for text, span in sheet.over for _ in range(span)]
    above = over or [""] * len(sheet.heads)
    return [", ".join(w for w in pair if w) for pair in zip(above, sheet.heads, strict=True)]


FORMULA = re.compile(r"[=+@\t\r]|-(?![\d.])")
"""What a spreadsheet takes for the start of something to compute, and no number starts with."""
SUSPECT = re.compile(rf'[,\n"](?:{FORMULA.pattern})')


def as_csv(sheet: Sheet) -> str:
    """Full numbers, empty where there is none; refused and failed points are rows as well.

    A text that a spreadsheet would compute stands behind an apostrophe.
    """
    body = _csv(sheet.columns, sheet.values)
    if SUSPECT.search(body) is None:  # looking at each of a million cells takes a second
        return body
    return _csv(sheet.columns, (map(_inert, row) for row in sheet.values))


def _csv(columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)  # of None it makes an empty cell
    return buffer.getvalue()


def _inert(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and FORMULA.match(value) else value


def latex(sheet: Sheet) -> str:
    """A ``tabular`` without caption, for ``\\input``; needs the package booktabs."""
    title = f"% {' '.join(sheet.title.split())}"
    return "\n".join([title, *tabular(sheet), *below(sheet)]) + "\n"


def tabular(sheet: Sheet, kind: str = "tabular") -> list[str]:
    """The lines of the table itself; as a ``longtable`` it breaks across pages."""
    long = kind == "longtable"
    out = [f"\\begin{{{kind}}}{{@{{}}{''.join(sheet.align)}@{{}}}}", "\\toprule", *_over(sheet)]
    heads = (_head_tex(*pair) for pair in zip(sheet.heads, sheet.align, strict=True))
    out += [" & ".join(heads) + " \\\\"]
    out += ["\\endhead", "\\bottomrule", "\\endfoot"] if long else []
    for block, lines in sheet.blocks():
        out += ["\\midrule"]
        # of no width of its own, so that a long name does not pull the columns apart
        name = f"\\makebox[0pt][l]{{\\emph{{{tex(block)}}}}}"
        out += [f"\\multicolumn{{{len(sheet.heads)}}}{{@{{}}l}}{{{name}}} \\\\"] if block else []
        for line in lines:
            cells = (_emphasis_tex(line, i) for i in range(len(line.cells)))
            out.append(" & ".join(cells) + " \\\\")
    return [*out, f"\\end{{{kind}}}"] if long else [*out, "\\bottomrule", "\\end{tabular}"]


def below(sheet: Sheet) -> list[str]:
    """The lines below the table: notes, then what stands in small type."""
    return [
        f"\\par\\smallskip{{\\{size}\\raggedright {fine(text)}\\par}}"
        for size, texts in (("footnotesize", sheet.notes), ("scriptsize", sheet.small))
        for text in texts
    ]


def _head_tex(head: str, side: str) -> str:
    """A head of one line, or of several on top of each other."""
    lines = [tex(line) for line in head.split("\n")]
    if len(lines) == 1:
        return lines[0]
    stack = " \\\\ ".join(lines)
    return f"\\begin{{tabular}}[b]{{@{{}}{side}@{{}}}}{stack}\\end{{tabular}}"


def _over(sheet: Sheet) -> list[str]:
    """The line over the heads, with a rule below each group of columns."""
    if not sheet.over:
        return []
    cells, rules, at = [], [], 1
    for text, span in sheet.over:
        cells.append(f"\\multicolumn{{{span}}}{{c}}{{{tex(text)}}}" if text else "&" * (span - 1))
        rules += [f"\\cmidrule(lr){{{at}-{at + span - 1}}}"] if text else []
        at += span
    return [" & ".join(cells) + " \\\\", " ".join(rules)]


def _emphasis_tex(line: Line, index: int) -> str:
    cell = tex(line.cells[index])
    if not cell:
        return ""
    if line.bold or index in line.best:
        return f"\\textbf{{{cell}}}"
    return f"\\emph{{{cell}}}" if index in line.tied else cell


TEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # after a line break in a tabular, a bare bracket is read as a length
    "Δ": r"$\Delta$",
    "×": r"$\times$",
    "−": "$-$",
    "→": r"$\to$",
    "±": r"$\pm$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "≈": r"$\approx$",
    "†": r"\textsuperscript{\textdagger}",
}
LIGATURE = re.compile("-(?=-)|'(?=')|`(?=`)|[?!](?=`)|,(?=,)")
"""The first of two letters that LaTeX would make one: ``--`` of a flag is no dash."""
TYPESET = re.compile("[ -~\u00a1-ĥĨ-ķĹ-ľŁ-ňŊ-ťŨ-ž‐-‖‘’‚“”„‡•…‰‹›€™№←-↓]")
"""What pdflatex has letters for, in the fonts of any document."""


class _Letters(dict[int, str]):
    """For ``str.translate``: what each letter is in LaTeX, found once."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        known = char if TYPESET.match(char) else f"\\texttt{{U+{code:04X}}}"
        self[code] = TEX.get(char, known)
        return self[code]


LETTERS = _Letters()


def tex(text: str) -> str:
    """``text`` as LaTeX shows it, letter for letter; ``U+4E2D`` of a letter that it has not."""
    return LIGATURE.sub(r"\g<0>{}", " ".join(text.split()).translate(LETTERS))


def fine(text: str) -> str:
    """:func:`tex` for running text: a line may break behind the signs that join a signature."""
    return re.sub(r"(\\textbar\{\}|/|\\_|:(?=\S))", r"\1\\allowbreak{}", tex(text))
