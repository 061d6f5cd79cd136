"""The paper: what an experiment's file asks for, computed from Records and typeset for real."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import records
import yaml

from bitsweep.cli import dispatch
from bitsweep.commands import paper as verb
from bitsweep.compose import compose, experiments
from bitsweep.errors import UserError
from bitsweep.report.frame import frame
from bitsweep.report.paper import build, language, typeset
from bitsweep.report.paper.pivot import make
from bitsweep.report.paper.plot import pictures
from bitsweep.report.sheet import latex
from bitsweep.store import Store
from bitsweep.typed import build as strict

ROOT = Path(__file__).parents[1]
PINS = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if "==" in line
)
PIVOT: dict[str, Any] = {
    "caption": "Change of perplexity.",
    "where": {"policy": "uniform", "status": "ok"},
    "rows": ["method"],
    "columns": "bits",
    "values": [{"of": "ppl", "show": "change", "digits": 2}],
}
PART = {
    "section": 1,
    "title": "Methods",
    "tables": {"pivot": PIVOT},
    "figures": {
        "front": {"kind": "front", "caption": "The front."},
        "bits": {
            "kind": "lines", "caption": "By bits.", "x": "bits", "series": ["method", "policy"],
            "y": {"of": "ppl", "show": "change", "interval": True}, "where": {"status": "ok"},
        },
    },
}  # fmt: skip


def table(**changes: Any) -> language.Table:
    return strict(language.Table, "table", {**PIVOT, **changes})


def cells(sheet: Any) -> dict[tuple[str, str], str]:
    """(first cell of a row, head) -> what is printed."""
    return {
        (line.cells[0], head): cell
        for line in sheet.lines
        for head, cell in zip(sheet.heads, line.cells, strict=True)
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, build.Built]:
    """A folder with an experiment, its Records and what is made of them; another has no Records."""
    folder = tmp_path_factory.mktemp("paper")
    store = Store(folder / "results" / "demo")
    store.prepare()
    for record in records.grid(timing=False):
        store.put(record, [])
    (folder / "experiments").mkdir()
    question = "# Which?\n#\n#   bitsweep sweep demo      24 points in a minute\n"
    later = {**PART, "section": 2, "tables": {"other": PIVOT}, "figures": {}}
    for name, part in (("demo", PART), ("later", later)):
        text = question + yaml.safe_dump({"grids": [{"method": "rtn"}], "paper": part})
        (folder / "experiments" / f"{name}.yaml").write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(build, "WORKERS", 1)
        patch.setattr(build, "sections", only_here)
        build.reports([Path("results/demo")])
        return folder, build.build(Path("paper"), Path("results"))


@pytest.fixture
def desk(made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to work in."""
    shutil.copytree(made[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(build, "sections", only_here)
    monkeypatch.setattr(build, "WORKERS", 1)
    return tmp_path


def only_here() -> list[language.Section]:
    """Of this folder alone; the package's own experiments have no Records in it."""
    return [s for s in language.sections() if s.experiment in ("demo", "later")]


def test_in_a_folder_of_ones_own_the_index_names_what_works_there(desk: Path):
    file = desk / "experiments" / "demo.yaml"
    file.write_text(file.read_text().replace("#   bitsweep sweep demo", "# and how"))
    build.build(Path("paper"), Path("results"))
    text = Path("paper/README.md").read_text()
    assert "`bitsweep paper` makes all of them" in text
    assert "make paper" not in text
    assert "docs/paper.md" not in text
    assert "| `bitsweep sweep demo` |" in text


def test_without_a_part_the_mistake_names_the_part(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("experiments").mkdir()
    Path("experiments/mine.yaml").write_text("grids: [{method: rtn}]\n")
    with pytest.raises(UserError, match="no experiment in experiments/ has a part `paper:`"):
        build.build(Path("paper"), Path("results"))


def test_a_cell_is_the_change_of_perplexity_in_per_cent():
    full, four, three = 2.6131, 2.7, 3.0
    rows = [
        records.record("full_precision", None, None, None, metrics=[records.ppl(full)]),
        records.record("rtn", 4, metrics=[records.ppl(four, 2.65, 2.75)]),
        records.record("rtn", 3, metrics=[records.ppl(three, 2.9, 3.1)]),
    ]
    made = make("t", frame(rows), table()).sheet
    assert cells(made) == {
        ("rtn", "method"): "rtn",
        ("rtn", "4 bits"): f"+{100 * (four / full - 1):.2f}",
        ("rtn", "3 bits"): f"+{100 * (three / full - 1):.2f}",
    }
    assert made.lines[0].block == "reference; full precision: perplexity 2.613"


def test_a_pivot_has_every_measured_point_of_the_frame():
    points = frame(records.grid())
    made = make("t", points, table()).sheet
    wanted = points[(points["policy"] == "uniform") & (points["status"] == "ok")]
    shown = cells(made)
    for row in wanted.to_dict("records"):
        change = 100 * (row["ppl/in_domain.delta"] - 1)
        assert shown[row["method"], f"{row['bits']} bits"] == f"{change:+.2f}".replace("-", "−")
    assert sum(1 for text in shown.values() if "%" not in text) == len(wanted) + 3  # their names


def test_the_best_of_a_column_is_bold_and_what_noise_can_not_tell_from_it_italic():
    rows = [
        records.record("rtn", 4, metrics=[records.ppl(2.70, 2.68, 2.72)]),
        records.record("hqq", 4, metrics=[records.ppl(2.65, 2.63, 2.69)]),
        records.record("gptq", 4, metrics=[records.ppl(2.64, 2.62, 2.66)]),
    ]
    lines = make("t", frame(rows), table()).sheet.lines
    assert {line.cells[0] for line in lines if line.best} == {"gptq"}
    assert {line.cells[0] for line in lines if line.tied} == {"hqq"}


def test_best_is_most_where_more_is_better():
    rows = [
        records.record("rtn", 4, metrics=[records.number("top1/in_domain", 0.9)]),
        records.record("hqq", 4, metrics=[records.number("top1/in_domain", 0.8)]),
    ]
    made = make("t", frame(rows), table(values=["top1/in_domain"])).sheet
    assert [line.cells[0] for line in made.lines if line.best] == ["rtn"]


def test_over_seeds_a_cell_is_mean_and_standard_deviation():
    rows = [
        records.record("gptq", 4, seed=seed, metrics=[records.ppl(value)])
        for seed, value in ((0, 2.0), (1, 3.0), (2, 4.0))
    ]
    made = make("t", frame(rows), table(over=["seed"], values=[{"of": "ppl", "digits": 1}])).sheet
    assert cells(made)["gptq", "4 bits"] == "3.0 ± 1.0"
    assert "over 3 points (seed)" in made.notes[0]


def test_rows_stand_by_bytes_and_those_on_the_front_are_bold():
    points = frame(records.grid())
    wanted = table(
        rows=["policy", "weights"], columns=None, values=["file_mib"], sort=["file_mib"],
        front="file_mib", where={"method": "gptq"}, reference=False,
    )  # fmt: skip
    made = make("t", points, wanted).sheet
    sizes = [float(line.cells[2]) for line in made.lines]
    assert sizes == sorted(sizes)
    assert made.lines[0].bold, "the smallest is on the front"


def test_a_row_of_uncommitted_code_is_marked_and_so_is_its_cell():
    dirty = records.record("rtn", 4, metrics=[records.ppl(2.7, 2.6, 2.8)])
    dirty.provenance["dirty"] = True
    clean = records.record("rtn", 3, metrics=[records.ppl(2.8, 2.7, 2.9)])
    made = make("t", frame([dirty, clean]), table()).sheet
    shown = cells(made)
    assert shown["rtn", "4 bits"].endswith("†")
    assert not shown["rtn", "3 bits"].endswith("†")
    assert any("not committed" in note for note in made.notes)
    plain = make("t", frame([dirty, clean]), table(rows=["method", "bits"], columns=None)).sheet
    assert [line.cells[0] for line in plain.lines] == ["rtn†", "rtn"]


def test_a_refused_point_is_a_dash_with_its_reason_below():
    rows = [
        records.record("rtn", 4, metrics=[records.ppl(2.7)]),
        records.record("hqq", 4, status="refused", reason="no such grid"),
    ]
    made = make("t", frame(rows), table(where={}, values=["ppl"])).sheet
    assert cells(made)["hqq", "4 bits"] == "–"
    assert any("no such grid" in note for note in made.notes)


def test_times_are_rows_by_engine_and_shape():
    timed = records.record("rtn", 4, kind="timing", metrics=records.latency(4))
    sign = "latency|prompt:32|batch:1|threads:2|engine:torch_int4|v1"
    timed.metrics = {k: replace(m, signature=sign) for k, m in timed.metrics.items()}
    quality = records.record("rtn", 4, metrics=[records.ppl(2.7)])
    wanted = table(
        source="timings", rows=["weights", "engine"], columns=None, values=["decode_vs_bf16"],
        where={"prompt": 32, "threads": 2},
    )  # fmt: skip
    made = make("t", frame([quality, timed]), wanted).sheet
    assert [line.cells for line in made.lines] == [("w4g64", "torch_int4", "2.10")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colums": "bits"}, "table.colums=bits: no such key; did you mean columns?"),
        ({"values": [{"of": "ppl", "shw": "change"}]}, "table.values"),
        ({"rows": ["metod"]}, "t: metod: no such column; did you mean method"),
        ({"values": ["pppl"]}, "t: pppl: no Record has it; did you mean ppl"),
        ({"where": {"polcy": "uniform"}}, "t.where: polcy: no such column; did you mean policy"),
        ({"where": {"method": "awq"}}, "t.where: no Record is method: awq"),
        ({"where": {}}, "points in one cell, which differ in .*policy"),
    ],
)
def test_a_mistake_is_one_line_that_names_what_would_work(changes, message):
    with pytest.raises(UserError, match=message) as raised:
        make("t", frame(records.grid()), table(**changes))
    assert "\n" not in str(raised.value)


def test_a_figure_of_an_unknown_kind_names_those_that_there_are(tmp_path: Path):
    path = tmp_path / "x.yaml"
    part = {"section": 1, "title": "x", "figures": {"a": {"kind": "pie", "caption": "x"}}}
    path.write_text(yaml.safe_dump({"paper": part}), encoding="utf-8")
    with pytest.raises(UserError, match=r"x: paper\.figures\.a\.kind=pie: takes one of front"):
        language.read("x", path)


def test_lines_join_the_points_of_a_series_and_refuse_two_at_one_place():
    points = frame(records.grid())
    part = PART["figures"]["bits"]  # type: ignore[index]
    figure = strict(language.Lines, "f", part)
    (picture,) = pictures("f", points, figure)
    lines = {line.get_label(): line for line in picture.drawing.axes[0].lines}
    row = points[(points["method"] == "gptq") & (points["policy"] == "uniform")]
    row = row.sort_values("bits")
    drawn = lines["gptq uniform"]
    assert list(drawn.get_xdata()) == [2, 3, 4, 8]
    assert list(drawn.get_ydata()) == [100 * (v - 1) for v in row["ppl/in_domain.delta"]]
    with pytest.raises(UserError, match="2 points of gptq at bits=2"):
        list(pictures("f", points, replace(figure, series=("method",))))


def test_the_paper_is_no_part_of_a_point_and_does_not_disturb_a_sweep(desk: Path):
    config = compose(["+experiments=demo", "model.path=x"])
    assert config.paper.section == 1
    assert dispatch(["plan", "demo", "model=shape/pythia_70m", "probes=size"]) == 0


def test_the_paper_is_made_without_a_model(desk: Path):
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from bitsweep.report.paper import build\n"
        "build.WORKERS = 1\n"
        "build.build(Path('again'), Path('results'))\n"
        "assert 'torch' not in sys.modules and 'hydra' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=desk, check=True)
    assert (desk / "again" / "tables" / "pivot.tex").exists()


def test_check_finds_a_changed_byte_and_nothing_else(desk: Path, capsys):
    changed = desk / "paper" / "tables" / "pivot.csv"
    changed.write_bytes(changed.read_bytes().replace(b"2", b"3", 1))
    (desk / "results" / "demo" / "tables" / "main.md").unlink()
    (desk / "paper" / "figures" / "old.pdf").write_bytes(b"")
    (desk / "paper" / "figures" / "mine.pdf").write_bytes(b"the author's own")
    index = desk / "paper" / "README.md"
    index.write_text(index.read_text("utf-8") + "[old](figures/old.pdf)\n", encoding="utf-8")
    assert dispatch(["paper", "--check"]) == 2
    told = capsys.readouterr()
    assert told.out.splitlines() == [
        "paper/README.md: differs",
        "paper/figures/old.pdf: is made by nothing any more",
        "paper/tables/pivot.csv: differs",
        "results/demo/tables/main.md: missing",
    ]
    assert "run `bitsweep paper`" in told.err


def test_what_is_made_no_more_is_removed_and_nothing_of_the_authors(desk: Path):
    """Without figures this time: drawing is what takes long."""
    part = {**PART, "figures": {}}
    (desk / "experiments" / "demo.yaml").write_text(yaml.safe_dump({"paper": part}), "utf-8")
    own = [desk / "paper" / folder / "mine.pdf" for folder in ("figures", "tables")]
    for path in own:
        path.write_bytes(b"the author's own")
    build.build(desk / "paper", desk / "results")
    assert list((desk / "paper" / "figures").iterdir()) == own[:1]
    assert own[1].exists()
    part["tables"] = {}
    (desk / "experiments" / "demo.yaml").write_text(yaml.safe_dump({"paper": part}), "utf-8")
    build.build(desk / "paper", desk / "results")
    assert list((desk / "paper" / "tables").iterdir()) == own[1:]


def test_an_experiment_without_records_is_left_out_with_a_line(made):
    (line,) = made[1].skipped
    assert line.startswith("later: no Records in results/later")


def test_where_the_folder_has_experiments_the_paper_is_theirs_alone(desk: Path, monkeypatch):
    assert [section.experiment for section in language.sections()] == ["demo", "later"]
    shutil.rmtree(desk / "experiments")
    assert len(language.sections()) > 2


def test_records_of_no_experiment_are_no_part_of_the_paper(desk: Path, monkeypatch, capsys):
    monkeypatch.setattr(verb.typeset, "engine", lambda: None)
    store = Store(desk / "results" / "adhoc")
    store.prepare()
    for bits, tokens in ((4, "204800"), (3, "2048")):
        record = records.record("rtn", bits, metrics=[records.ppl(2.7)], experiment="adhoc")
        metric = record.metrics["ppl/in_domain"]
        signed = metric.signature.replace("204800", tokens)
        record.metrics["ppl/in_domain"] = replace(metric, signature=signed)
        store.put(record, [])
    assert dispatch(["paper"]) == 0
    assert "skipped  adhoc: of no experiment in experiments/" in capsys.readouterr().out
    assert dispatch(["paper", "--check"]) == 0


@pytest.mark.parametrize("words", [["plan", "demo"], ["sweep", "demo"]])
def test_a_mistake_in_the_paper_shows_before_anything_is_measured(desk: Path, capsys, words):
    (desk / "experiments" / "demo.yaml").write_text("paper: {title: A}\n", encoding="utf-8")
    assert dispatch(words) == 2
    assert "demo: paper.section: must be given" in capsys.readouterr().err


def test_a_sweep_that_is_stopped_ends_in_its_own_time(tmp_path: Path):
    """It has a second to keep what is finished; subprocess.run would kill it after a quarter."""
    child = (
        "import pathlib, time\n"
        "try:\n"
        "    pathlib.Path('begun').touch()\n"
        "    time.sleep(60)\n"
        "except KeyboardInterrupt:\n"
        "    time.sleep(1)\n"
        "    pathlib.Path('kept').touch()\n"
    )
    code = (
        "import sys\n"
        "from bitsweep.commands.paper import _wait\n"
        f"sys.exit(_wait([sys.executable, '-c', {child!r}]))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        start_new_session=True,
        # a job in the background of a script inherits a SIGINT that is ignored
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    ) as p:
        while not (tmp_path / "begun").exists() and p.poll() is None:
            time.sleep(0.05)
        os.killpg(p.pid, signal.SIGINT)
        assert p.wait() == 130
    assert (tmp_path / "kept").exists()


def test_what_was_stopped_says_how_to_go_on(desk: Path, monkeypatch, capsys):
    monkeypatch.setattr(verb, "_wait", lambda command: 130)
    assert dispatch(["paper", "--rerun", "--no-pdf"]) == 130
    assert "stopped; go on with: bitsweep paper --rerun --no-pdf" in capsys.readouterr().err


def test_without_latex_there_is_a_line_and_no_failure(desk: Path, monkeypatch, capsys):
    monkeypatch.setattr(typeset, "engine", lambda: None)
    verb._typeset(desk / "paper" / "tables.tex", left_out=False)
    assert "there is no pdflatex; apt-get install texlive" in capsys.readouterr().out


def test_pdfs_embed_truetype_fonts_and_have_no_date(desk: Path):
    for path in (desk / "paper" / "figures").glob("*.pdf"):
        body = path.read_bytes()
        assert b"/Type3" not in body
        assert b"/FontFile2" in body
        assert b"Date" not in body
        width = float(re.search(rb"/MediaBox \[ 0 0 ([\d.]+)", body)[1])  # type: ignore[index]
        assert round(width / 72, 2) == 3.25


@pytest.mark.skipif(shutil.which("pdffonts") is None, reason="no pdffonts (poppler-utils)")
def test_pdffonts_finds_every_font_embedded(desk: Path):
    for path in (desk / "paper" / "figures").glob("*.pdf"):
        listed = subprocess.run(["pdffonts", path], capture_output=True, text=True, check=True)
        fonts = listed.stdout.splitlines()[2:]
        assert fonts
        assert all("TrueType" in font and font.split()[-5] == "yes" for font in fonts)


NASTY = r"a_b & 50% $x$ #1 {y} ~^ \z <b> | [e] ± × − Δ → † ≤"


@pytest.mark.skipif(typeset.engine() is None, reason=f"no pdflatex: {typeset.INSTALL}")
def test_latex_takes_every_table_and_nothing_is_too_wide(desk: Path):
    assert typeset.compile_pdf(desk / "paper" / "tables.tex") == []
    assert (desk / "paper" / "tables.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.skipif(typeset.engine() is None, reason=f"no pdflatex: {typeset.INSTALL}")
@pytest.mark.parametrize("lines", [1, 100], ids=["tabular", "longtable"])
def test_latex_takes_whatever_a_record_says(tmp_path: Path, lines: int):
    rows = [
        records.record("rtn", 4, label=NASTY, seed=n, metrics=[records.ppl(2.7, 2.6, 2.8)])
        for n in range(lines)
    ]
    rows += [records.record("hqq", 4, status="refused", reason=NASTY)]
    points = frame(rows)
    points["method"] = NASTY
    from bitsweep.report.tables import sheets

    body = latex(sheets(points, NASTY)["main"])
    head = "\\documentclass{article}\\usepackage{booktabs,longtable}\\begin{document}"
    document = tmp_path / "t.tex"
    document.write_text(f"{head}\\tiny\n{body}\\end{{document}}\n", encoding="utf-8")
    typeset.compile_pdf(document)
    assert (tmp_path / "t.pdf").exists()


@pytest.mark.skipif(typeset.engine() is None, reason=f"no pdflatex: {typeset.INSTALL}")
def test_a_document_that_latex_refuses_is_one_line(tmp_path: Path):
    document = tmp_path / "t.tex"
    document.write_text("\\documentclass{article}\\begin{document}\\nope\\end{document}\n")
    with pytest.raises(UserError, match=r"t\.tex: LaTeX stopped: .*Undefined control sequence"):
        typeset.compile_pdf(document)
    assert not (tmp_path / "t.pdf").exists()


def test_the_index_names_question_command_and_cost(desk: Path):
    text = (desk / "paper" / "README.md").read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if line.startswith("| 1 |"))
    assert "Which?" in row
    assert "`bitsweep sweep demo`" in row
    assert "24 points in a minute" in row
    assert "[pivot](tables/pivot.md)" in row


# ---- what is committed


def test_scores_are_swept_before_the_budgets_that_spend_them():
    order = [section.experiment for section in language.sections()]
    assert order.index("sensitivity") < order.index("budget")


def test_every_shipped_part_reads_and_its_sections_are_numbered_once():
    numbers = [section.number for section in language.sections()]
    assert numbers == sorted(set(numbers))
    assert {section.experiment for section in language.sections()} <= set(experiments())


@pytest.mark.skipif(not (ROOT / "paper" / "README.md").exists(), reason="no paper is committed")
def test_the_committed_paper_comes_again_byte_for_byte(tmp_path: Path, monkeypatch) -> None:
    for name in ("matplotlib", "numpy", "pandas", "pillow"):
        if metadata.version(name) != PINS[name]:
            pytest.skip(f"{name} is not the pinned {PINS[name]}: fonts and floats may differ")
    monkeypatch.chdir(ROOT)
    build.build(tmp_path, Path("results"))
    names = ("tables", "figures", "tables.tex", "README.md")
    assert list(build.differ(Path("paper"), tmp_path, names, ours=bool)) == []
