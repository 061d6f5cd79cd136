"""Listings in LaTeX: as narrow as a page, and nothing lost on the way."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import records

from bitsweep.report.frame import frame
from bitsweep.report.listing import latex
from bitsweep.report.paper import typeset
from bitsweep.report.sheet import PAGE_LINES, Line, Sheet
from bitsweep.report.tables import sheets

ROOT = Path(__file__).parents[1]
TWO_COLUMNS = r"""\documentclass[10pt,twocolumn]{article}
\usepackage[T1]{fontenc}
\usepackage{mathptmx}
\usepackage[a4paper,textwidth=6.75in,textheight=9.8in,columnsep=0.25in]{geometry}
\usepackage{booktabs,longtable}
\begin{document}
Text.
"""


def sheet(*rows: tuple[str, ...], heads: tuple[str, ...] = ("method", "policy", "ppl")) -> Sheet:
    """Rows whose first word is the block; the first two columns are words."""
    return Sheet(
        title="T", heads=heads, align=("l", "l", *("r" * (len(heads) - 2))),  # type: ignore[arg-type]
        lines=tuple(Line(cells, block) for block, *rest in rows for cells in [tuple(rest)]),
        columns=(), values=(),
    )  # fmt: skip


def shown(text: str) -> str:
    """LaTeX without its commands, as letters and digits stand on paper."""
    return re.sub(r"\\(textbf|emph)\{([^{}]*)\}", r"\2", text).replace("$-$", "−")


def test_every_number_stands_in_one_of_the_tables_that_a_wide_one_becomes():
    wide = sheets(frame(records.grid()), "records")["main"]
    made = shown(latex(wide, width_in=3.25))
    assert made.count(r"\toprule") > 1
    for line in wide.lines:
        for cell, side in zip(line.cells, wide.align, strict=True):
            if side == "r":
                assert cell.replace("[", "{[}") in made


def test_models_with_other_columns_have_a_table_of_their_own():
    heads = ("method", "policy", "ppl a", "ppl b")
    both = sheet(
        ("one", "rtn", "x", "1.0", ""), ("one", "hqq", "y", "1.1", ""),
        ("two", "rtn", "x", "", "2.0"), ("two", "hqq", "y", "", "2.1"), heads=heads,
    )  # fmt: skip
    made = latex(both)
    first, second = made.split(r"\par\medskip")
    assert r"\emph{one}" in first
    assert r"\emph{two}" not in first
    assert "rtn & x & 1.0" in first
    assert "rtn & x & 2.0" in second


def test_what_every_row_says_stands_below_once():
    made = latex(sheet(("m", "rtn", "uniform", "1.0"), ("m", "hqq", "uniform", "2.0")))
    assert made.count("uniform") == 1
    assert "Every row: policy uniform." in made
    assert r"rtn & 1.0 \\" in made


def test_marks_of_the_front_are_bold_and_italic_rows():
    lines = (
        Line(("rtn", "a", "1.0", "front"), "", bold=True),
        Line(("hqq", "b", "1.1", "tied"), ""),
        Line(("awq", "c", "1.2", ""), ""),
    )
    marked = replace(sheet(heads=("method", "policy", "ppl", "front")), lines=lines)
    made = latex(marked)
    assert r"\textbf{rtn} & \textbf{a} & \textbf{1.0} \\" in made
    assert r"\emph{hqq} & \emph{b} & \emph{1.1} \\" in made
    assert r"awq & c & 1.2 \\" in made
    assert "Rows in bold are on the front; rows in italics are tied with it." in made


def test_options_of_a_method_stand_below_unless_they_tell_two_apart():
    one, other = "gptq (prefix=full_precision)", "gptq (prefix=quantized)"
    rows = [("m", name, policy, "1.0") for name in (one, other, "awq (n=2)") for policy in "xy"]
    made = latex(sheet(*rows))
    assert r"awq & x & 1.0" in made
    assert "In full: awq (n=2)." in made
    assert "gptq (prefix=quantized) & x & 1.0" in made


def test_a_change_stays_beside_the_number_that_it_is_of():
    heads = ("method", "policy", *(f"{kind} {n}" for n in range(6) for kind in ("ppl", "Δ %")))
    rows = [("m", name, name, *(["12345.678"] * 12)) for name in ("rtn", "hqq")]
    made = latex(sheet(*rows, heads=heads), width_in=3.25)
    starts = re.findall(r"\\toprule\n(.*)", made)
    assert len(starts) > 1
    for head in starts:
        assert head.count("ppl") == head.count("Delta") > 0


def test_more_lines_than_a_page_has_break_across_pages_in_one_column():
    rows = [("m", f"rtn{n}", "xy"[n % 2], f"{n}.0") for n in range(PAGE_LINES + 1)]
    made = latex(sheet(*rows))
    assert made.count(r"\begin{longtable}{@{}llr@{}}") == made.count(r"\endhead") == 1
    assert (
        made.index(r"\onecolumn") < made.index(r"\begin{longtable}") < made.index("\\aftertable\n")
    )
    assert "longtable" not in latex(sheet(*rows[1:]))


def overfull(folder: Path, body: str) -> list[str]:
    """Boxes of ``body`` that are too wide; run twice, as a longtable learns its widths."""
    (folder / "t.tex").write_text(f"{TWO_COLUMNS}{body}\\end{{document}}\n", encoding="utf-8")
    for _ in range(2):
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
        done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
        log = done.stdout.decode("utf-8", "replace").replace("\r", "")
        assert done.returncode == 0, log[-2000:]
    found = [(m[0], float(m[1])) for m in typeset.OVERFULL.finditer(log)]
    return [line for line, points in found if points > typeset.TOLERATED_PT]


@pytest.mark.skipif(typeset.engine() is None, reason=f"no pdflatex: {typeset.INSTALL}")
def test_every_committed_listing_fits_a_page_of_two_columns(tmp_path: Path):
    body = []
    for path in sorted(ROOT.glob("results/*/tables/*.tex")):
        name = f"{path.parts[-3]}-{path.name}"
        shutil.copyfile(path, tmp_path / name)
        one = f"\\input{{{name}}}"
        tall = r"\onecolumn" in path.read_text(encoding="utf-8")
        body.append(
            one if tall else f"\\begin{{table*}}[p]\\centering{one}\\end{{table*}}\\clearpage"
        )
    assert overfull(tmp_path, "\n".join(body)) == []


@pytest.mark.skipif(typeset.engine() is None, reason=f"no pdflatex: {typeset.INSTALL}")
def test_a_listing_of_a_column_fits_a_column(tmp_path: Path):
    main = sheets(frame(records.grid()[:9]), "records")["main"]
    narrow = f"\\begin{{table}}\\centering{latex(main, width_in=3.25)}\\end{{table}}"
    assert overfull(tmp_path, narrow) == []
