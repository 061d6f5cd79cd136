"""A table of text cells, and its three ways onto paper: Markdown, CSV and LaTeX (booktabs)."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Line:
    """One row as printed. ``bold`` marks a point of the front; ``block`` names its model."""

    cells: tuple[str, ...]
    block: str
    bold: bool = False


@dataclass(frozen=True)
class Sheet:
    """One table. ``lines`` are printed, ``values`` are the same rows as full numbers for CSV.

    ``notes`` stand below the table; ``small`` (protocols, provenance) is fine print: text in
    Markdown, comments in LaTeX.
    """

    title: str
    heads: tuple[str, ...]
    align: tuple[Literal["l", "r"], ...]
    lines: tuple[Line, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[Any, ...], ...]
    notes: tuple[str, ...] = ()
    small: tuple[str, ...] = ()

    def blocks(self) -> list[tuple[str, list[Line]]]:
        found: dict[str, list[Line]] = {}
        for line in self.lines:
            found.setdefault(line.block, []).append(line)
        return list(found.items())


def markdown(sheet: Sheet) -> str:
    """Padded so that it reads in a terminal as it does on a page; front rows in bold."""
    parts = [f"# {_md(sheet.title)}"]
    heads = [_cell(head) for head in sheet.heads]
    for block, lines in sheet.blocks():
        body = [[_bold(_cell(c), line.bold, i) for i, c in enumerate(line.cells)] for line in lines]
        widths = [max(3, *(len(row[i]) for row in [heads, *body])) for i in range(len(heads))]
        ends = [":" if side == "r" else "-" for side in sheet.align]
        rule = ["-" * (width - 1) + end for width, end in zip(widths, ends, strict=True)]
        rows = [_padded(row, widths, sheet.align) for row in [heads, *body]]
        rows.insert(1, rule)
        table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
        parts.append(f"## {_md(block)}\n\n{table}")
    parts += [_md(note) for note in sheet.notes]
    parts += ["\n".join(f"- {_md(line)}" for line in sheet.small)] if sheet.small else []
    return "\n\n".join(parts) + "\n"


def _padded(row: Sequence[str], widths: Sequence[int], align: Sequence[str]) -> list[str]:
    return [
        cell.rjust(width) if side == "r" else cell.ljust(width)
        for cell, width, side in zip(row, widths, align, strict=True)
    ]


def _md(text: str) -> str:
    """Nothing may open a tag, a link, code or emphasis; `_` within a word is harmless."""
    text = " ".join(text.split()).replace("\\", "\\\\")
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([`*])", r"\\\1", text).replace("](", "]\\(")
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)


def _cell(text: str) -> str:
    """Nothing may end the cell."""
    return _md(text).replace("|", "\\|")


def _bold(cell: str, bold: bool, index: int) -> str:
    """Method and weights of a front row."""
    return f"**{cell}**" if bold and cell and index < 2 else cell


def as_csv(sheet: Sheet) -> str:
    """Full numbers, empty where there is none; refused and failed points are rows as well."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(sheet.columns)
    writer.writerows(["" if v is None else v for v in row] for row in sheet.values)
    return buffer.getvalue()


def latex(sheet: Sheet) -> str:
    """A ``tabular`` without caption, for ``\\input``; needs the package booktabs."""
    span = len(sheet.heads)
    out = [f"% {_comment(line)}" for line in (sheet.title, *sheet.small)]
    out += [f"\\begin{{tabular}}{{{''.join(sheet.align)}}}", "\\toprule"]
    out += [" & ".join(tex(head) for head in sheet.heads) + " \\\\"]
    for block, lines in sheet.blocks():
        out += ["\\midrule", f"\\multicolumn{{{span}}}{{l}}{{\\emph{{{tex(block)}}}}} \\\\"]
        for line in lines:
            out.append(" & ".join(_bold_tex(tex(c), line.bold) for c in line.cells) + " \\\\")
    out += ["\\bottomrule", "\\end{tabular}"]
    out += [f"\\par\\smallskip{{\\footnotesize {tex(note)}\\par}}" for note in sheet.notes]
    return "\n".join(out) + "\n"


def _comment(line: str) -> str:
    return " ".join(line.split())


def _bold_tex(cell: str, bold: bool) -> str:
    return f"\\textbf{{{cell}}}" if bold and cell else cell


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
}


def tex(text: str) -> str:
    """``text`` as LaTeX shows it, letter for letter."""
    return "".join(TEX.get(char, char) for char in " ".join(text.split()))
