"""Whatever a Record's strings hold, a table shows them letter for letter."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest

from bitsweep.report.paper import typeset
from bitsweep.report.sheet import Line, Sheet, as_csv, fine, latex, markdown, tex

NASTY = r"a_b & 50% $x$ #1 {y} ~^ \z <script> | *c* `d` [e]"


def sheet(cell: str, bold: bool = False) -> Sheet:
    return Sheet(
        title="Title",
        heads=("method", "ppl"),
        align=("l", "r"),
        lines=(Line((cell, "2.6131"), "reference", bold),),
        columns=("label", "ppl"),
        values=((cell, 2.6131),),
        notes=(f"Refused (1): {cell}",),
        small=(f"protocol {cell}\nsecond line",),
    )


def test_latex_escapes_every_special_character():
    assert tex("a_b & 50% $#{}~^\\") == (
        r"a\_b \& 50\% \$\#\{\}\textasciitilde{}\textasciicircum{}\textbackslash{}"
    )


def test_latex_cells_never_end_a_cell_or_a_line():
    body = latex(sheet(NASTY))
    row = next(line for line in body.splitlines() if "2.6131" in line)
    assert row.replace(r"\&", "").count("&") == 1
    assert row.endswith(r"\\")


def test_latex_prints_protocols_and_provenance_small_and_on_one_line_each():
    lines = latex(sheet("x")).splitlines()
    small = [line for line in lines if "second line" in line]
    assert small == [r"\par\smallskip{\scriptsize\raggedright protocol x second line\par}"]


def test_fine_print_may_break_between_the_parts_of_a_signature():
    assert fine("a|b:c") == r"a\textbar{}\allowbreak{}b:\allowbreak{}c"


def test_the_best_cell_is_bold_and_one_within_noise_of_it_italic():
    line = Line(("gptq", "1.0"), "m", best=frozenset({1}))
    tied = Line(("rtn", "1.1"), "m", tied=frozenset({1}))
    both = replace(sheet("x"), lines=(line, tied))
    assert r"gptq & \textbf{1.0}" in latex(both)
    assert r"rtn & \emph{1.1}" in latex(both)
    assert "**1.0**" in markdown(both)
    assert " *1.1* |" in markdown(both)


def test_heads_over_heads_span_their_columns():
    wide = replace(sheet("x"), over=(("", 1), ("4 bits", 1)))
    assert r"\cmidrule(lr){2-2}" in latex(wide)
    assert "| 4 bits, ppl |" in markdown(wide)


def test_latex_keeps_two_letters_that_it_would_make_one():
    assert tex("sweep mine --config-dir conf") == "sweep mine -{}-config-dir conf"
    assert tex("a---b ''c'' ?` d-e") == "a-{}-{}-b '{}'c'{}' ?{}` d-e"


def test_a_bare_bracket_never_follows_a_line_break_in_latex():
    assert r"\\" + "\n[" not in latex(sheet("[1.0, 2.0]"))


def test_front_rows_are_bold():
    assert r"\textbf{gptq} & \textbf{2.6131}" in latex(sheet("gptq", bold=True))
    assert "**gptq**" in markdown(sheet("gptq", bold=True))
    assert "**" not in markdown(sheet("gptq"))


def test_markdown_has_no_tag_and_as_many_cells_as_heads():
    text = markdown(sheet(NASTY))
    row = next(line for line in text.splitlines() if "2.6131" in line)
    assert "<" not in text
    assert row.replace(r"\|", "").count("|") == 3


def test_markdown_keeps_an_underscore_within_a_word():
    assert "by_role" in markdown(sheet("by_role"))
    assert r"\_\_init\_\_" in markdown(sheet("__init__"))


def test_csv_reads_back_as_it_was():
    rows = list(csv.reader(io.StringIO(as_csv(sheet(NASTY + ', "quoted"\nline')))))
    assert rows == [["label", "ppl"], [NASTY + ', "quoted"\nline', "2.6131"]]


def test_a_text_that_a_spreadsheet_would_compute_is_a_text_in_csv():
    for formula in ("=cmd|'/C calc'!A0", "@SUM(1)", "+1+1", "-A1", "\t=1", '=1,"2"'):
        found = list(csv.reader(io.StringIO(as_csv(sheet(formula)))))
        assert found[1] == [f"'{formula}", "2.6131"]
    minus = replace(sheet("x"), values=(("x", -2.5),))
    assert as_csv(minus).splitlines()[1] == "x,-2.5"


def test_markdown_holds_no_command_to_a_terminal():
    text = markdown(sheet("a\x1b[31m\x07\x9b\u202eb"))
    assert text.replace("\n", " ").isprintable()
    assert "\ufffd[31m" in text


def test_latex_names_the_letters_that_it_has_not():
    assert tex("Müller – 中 Ħ \x1b") == (
        r"Müller – \texttt{U+4E2D} \texttt{U+0126} \texttt{U+001B}"
    )


@pytest.mark.skipif(typeset.engine() is None, reason=f"no pdflatex: {typeset.INSTALL}")
def test_every_letter_typesets(tmp_path):
    codes = [*range(0x20, 0x250), *range(0x2000, 0x2200), 0x3B1, 0x416, 0x4E2D, 0x1F600, 0x202E]
    words = "\n\n".join(f"x{tex(chr(code))}x" for code in codes)
    document = tmp_path / "a.tex"
    head = r"\documentclass{article}\usepackage[T1]{fontenc}\begin{document}"
    document.write_text(f"{head}\n{words}\n\\end{{document}}\n", encoding="utf-8")
    typeset.compile_pdf(document)
