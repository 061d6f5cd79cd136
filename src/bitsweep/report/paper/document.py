"""The document that inputs every table and figure, and the index of them: text, no computing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bitsweep.report.paper.language import Section, Width
from bitsweep.report.sheet import fine, tex

PREAMBLE = r"""% Made by `bitsweep paper` from the Records; edit experiments/*.yaml instead.
% A paper's own document needs booktabs and graphicx, and inputs single files of tables/.
\documentclass[twocolumn,10pt]{article}
\usepackage[T1]{fontenc}
\usepackage{mathptmx}
\usepackage[a4paper,textwidth=6.75in,textheight=9.6in,columnsep=0.25in]{geometry}
\usepackage{booktabs}
\usepackage{graphicx}
\setlength{\parindent}{0pt}
\setlength{\parskip}{3pt}
\setlength{\tabcolsep}{3.2pt}
\setlength{\abovecaptionskip}{3pt}
\setlength{\belowcaptionskip}{3pt}
\setcounter{totalnumber}{8}
\setcounter{dbltopnumber}{6}
\setcounter{topnumber}{6}
\renewcommand{\topfraction}{0.95}
\renewcommand{\dbltopfraction}{0.95}
\renewcommand{\textfraction}{0.05}
\renewcommand{\floatpagefraction}{0.6}
\renewcommand{\dblfloatpagefraction}{0.6}
\makeatletter
\setlength{\@fptop}{0pt}
\setlength{\@dblfptop}{0pt}
\makeatother
\begin{document}
"""


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


def latex(written: Sequence[Written]) -> str:
    """``tables.tex``: a section for each experiment, in it its floats."""
    parts = [PREAMBLE]
    for made in written:
        section = made.section
        parts.append(f"\\section{{{tex(section.title)}}}")
        parts.append(fine(section.question) + "\\par")
        for command, cost in section.commands:
            said = f" {fine(cost)}." if cost else ""
            parts.append(f"{{\\small\\texttt{{{tex(command)}}}{said}\\par}}")
        parts += [_float(each) for each in made.floats]
        parts.append("\\clearpage\n")
    return "\n".join([*parts, "\\end{document}"]) + "\n"


def _float(made: Float) -> str:
    star = "*" if made.width == "text" else ""
    kind = "table" if made.kind == "tables" else "figure"
    label = f"{'tab' if kind == 'table' else 'fig'}:{made.name}"
    caption = f"\\caption{{{tex(made.caption)}}}\\label{{{label}}}"
    lines = [f"\\begin{{{kind}{star}}}[!htbp]\\centering"]
    if kind == "table":
        lines += [f"{caption}\\footnotesize", *(f"\\input{{tables/{name}}}" for name in made.files)]
    else:
        graphics = [f"\\includegraphics{{figures/{name}.pdf}}" for name in made.files]
        lines += ["\\hfill\n".join(graphics) if star else "\\\\\n".join(graphics)]
        lines += [caption, f"{{\\scriptsize\\raggedright {fine(made.origin)}\\par}}"]
    return "\n".join([*lines, f"\\end{{{kind}{star}}}"])


def index(written: Sequence[Written]) -> str:
    """``README.md``: a line for each experiment, then every figure as a picture."""
    parts = [
        "# The paper's tables and figures",
        "`make paper` makes all of them again from the committed Records, without a model, and "
        "compiles `tables.pdf` from `tables.tex` where there is a LaTeX; `make paper-rerun` "
        "measures first. What each table says stands under `paper:` in its experiment's file: see "
        "[docs/paper.md](../docs/paper.md).",
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
