"""The document that inputs every table and figure, and the index of them: text, no computing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bitsweep.report.paper.language import Section, Width
from bitsweep.report.sheet import COLUMN_IN, TEXT_IN, fine, tex

PREAMBLE = r"""% Made by `bitsweep paper` from the Records; edit experiments/*.yaml instead.
% Your own paper inputs single files of tables/ and figures/; it needs booktabs and graphicx.
% Widths here are those of two columns: 3.25 in, 0.25 in between, 6.75 in together.
\documentclass[10pt]{article}
\usepackage[T1]{fontenc}
\usepackage{mathptmx}
\usepackage[a4paper,textwidth=6.75in,textheight=9.8in]{geometry}
\usepackage{booktabs}
\usepackage{graphicx}
\raggedbottom
\setlength{\parindent}{0pt}
\setlength{\parskip}{3pt}
\setlength{\tabcolsep}{3.2pt}
\setlength{\abovecaptionskip}{3pt}
\setlength{\belowcaptionskip}{3pt}
\makeatletter
\newenvironment{panel}[2]% its width, table or figure
  {\begin{minipage}[t]{#1}\vspace{0pt}\def\@captype{#2}\centering}{\end{minipage}}
\makeatother
\begin{document}
"""
WIDTHS_IN = {"column": COLUMN_IN, "text": TEXT_IN}


@dataclass(frozen=True)
class Float:
    """One table or figure of the paper: ``files`` are names below tables/ or figures/, without
    what their type adds. ``origin`` says which Records its numbers are from.
    """

    kind: str
    name: str
    caption: str
    width: Width
    files: tuple[str, ...]
    origin: str


@dataclass(frozen=True)
class Written:
    """A section and what was made for it."""

    section: Section
    floats: tuple[Float, ...]


def document(written: Sequence[Written]) -> str:
    """``tables.tex``: a section for each experiment; what is one column wide stands in pairs."""
    parts = [PREAMBLE]
    for made in written:
        section = made.section
        parts.append(f"\\setcounter{{section}}{{{section.number - 1}}}")
        parts.append(f"\\section{{{tex(section.title)}}}")
        parts.append(f"{{\\interlinepenalty10000 {fine(section.question)}\\par}}")
        for command, cost in section.commands:
            said = f" {fine(cost)}." if cost else ""
            parts.append(f"\\nopagebreak{{\\small\\texttt{{{tex(command)}}}{said}\\par}}")
        for index, row in enumerate(_rows(made.floats)):
            start = "\\medskip\n" if index else "\\nopagebreak\\medskip\n"
            parts.append(start + "\\hfill\n".join(map(_panel, row)) + "\\par")
    return "\n\n".join([*parts, "\\end{document}"]) + "\n"


def _rows(floats: Sequence[Float]) -> list[list[Float]]:
    """Two abreast where both are one column wide."""
    rows: list[list[Float]] = []
    for made in floats:
        beside = rows and len(rows[-1]) == 1 and rows[-1][0].width == made.width == "column"
        if beside:
            rows[-1].append(made)
        else:
            rows.append([made])
    return rows


def _panel(made: Float) -> str:
    kind = "table" if made.kind == "tables" else "figure"
    label = f"{'tab' if kind == 'table' else 'fig'}:{made.name}"
    caption = f"\\caption{{{tex(made.caption)}}}\\label{{{label}}}"
    lines = [f"\\begin{{panel}}{{{WIDTHS_IN[made.width]}in}}{{{kind}}}"]
    if kind == "table":
        lines += [f"{caption}\\footnotesize", *(f"\\input{{tables/{name}}}" for name in made.files)]
    else:
        graphics = [f"\\includegraphics{{figures/{name}.pdf}}" for name in made.files]
        lines.append(("\\hfill\n" if made.width == "text" else "\\par\n").join(graphics))
        lines += [caption, f"{{\\scriptsize\\raggedright {fine(made.origin)}\\par}}"]
    return "\n".join([*lines, "\\end{panel}"])


def index(written: Sequence[Written], checkout: bool = False) -> str:
    """``README.md``: a line for each experiment, then every figure as a picture.

    ``checkout``: whether it lies in one of ours, whose Makefile and guide it may name.
    """
    make, rerun, guide = (
        ("make paper", "make paper-rerun", ": see [docs/paper.md](../docs/paper.md)")
        if checkout
        else ("bitsweep paper", "bitsweep paper --rerun", "")
    )
    parts = [
        "# The paper's tables and figures",
        f"`{make}` makes all of them again from the committed Records, without a model, and "
        f"compiles `tables.pdf` from `tables.tex` where there is a LaTeX; `{rerun}` "
        f"measures first. What each table says stands under `paper:` in its experiment's file"
        f"{guide}.",
        _table(written),
    ]
    for made in written:
        pictures = [each for each in made.floats if each.kind == "figures"]
        if pictures:
            parts.append(f"## {made.section.number}. {made.section.title}")
        for each in pictures:
            parts.append(f"{each.caption}")
            parts.append("\n".join(f"![{_plain(name)}](figures/{name}.png)" for name in each.files))
    return "\n\n".join(parts) + "\n"


def _table(written: Sequence[Written]) -> str:
    rows = ["| § | question | tables | figures | command | cost |", "|---|---|---|---|---|---|"]
    for made in written:
        section = made.section
        tables = _links(
            (name, f"tables/{name}.md")
            for f in made.floats
            if f.kind == "tables"
            for name in f.files
        )
        figures = _links(
            (name, f"figures/{name}.pdf")
            for f in made.floats
            if f.kind == "figures"
            for name in f.files
        )
        commands = "<br>".join(f"`{command}`" for command, _ in section.commands)
        costs = "<br>".join(_plain(cost) for _, cost in section.commands)
        about = f"[{section.title}](../results/{section.experiment}/README.md): "
        cells = (str(section.number), about + _plain(section.question), tables, figures)
        rows.append(f"| {' | '.join((*cells, commands, costs))} |")
    return "\n".join(rows)


def _links(pairs: Iterable[tuple[str, str]]) -> str:
    return "<br>".join(f"[{name}]({path})" for name, path in pairs)


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
