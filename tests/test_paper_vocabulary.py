"""Names under `paper:` that can be known to be wrong before there are Records."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import records
import yaml

from bitsweep.cli import dispatch
from bitsweep.compose import experiments
from bitsweep.errors import UserError
from bitsweep.report.frame import frame
from bitsweep.report.paper import vocabulary

ROOT = Path(__file__).parents[1]
TABLE: dict[str, Any] = {"caption": "C.", "rows": ["method"], "values": ["ppl"]}
LINES: dict[str, Any] = {"kind": "lines", "caption": "C.", "x": "bits", "y": "ppl"}


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes experiments/mine.yaml with one table, one figure and whatever else."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").mkdir()

    def mine(table: dict[str, Any] = TABLE, figure: dict[str, Any] = LINES, **keys: Any) -> None:
        part = {"section": 1, "title": "T", "tables": {"t": table}, "figures": {"f": figure}}
        text = yaml.safe_dump({"grids": [{"method": "rtn"}], "paper": part, **keys})
        (tmp_path / "experiments" / "mine.yaml").write_text(text, encoding="utf-8")

    return mine


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": ["metod"]}, "tables.t.rows: metod: no such column; did you mean method"),
        ({"columns": "bit"}, "tables.t.columns: bit: no such column; did you mean bits"),
        ({"sort": ["-file_mb"]}, "tables.t.sort: file_mb: no such column; did you mean file_mib"),
        ({"where": {"polcy": "uniform"}}, "tables.t.where: polcy: .*; did you mean policy"),
        ({"where": {"batch": 1}}, "tables.t.where: batch: no such column"),
        ({"values": ["pppl"]}, "tables.t.values: pppl: no such metric; did you mean ppl"),
        ({"values": [{"of": "rougL/news"}]}, "tables.t.values: rougL/news: .*you mean rougeL/news"),
        ({"front": "decod_ms"}, "tables.t.front: decod_ms: no such metric; did you mean decode_ms"),
    ],
)
def test_a_wrong_name_in_a_table_is_one_line_with_the_near_one(write, changes, message):
    write({**TABLE, **changes})
    with pytest.raises(UserError, match=rf"mine: paper\.{message}") as raised:
        vocabulary.check("mine")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("figure", "message"),
    [
        ({**LINES, "x": "bit"}, "f.x: bit: no such column; did you mean bits"),
        ({**LINES, "y": "kl"}, "f.y: kl: no such metric; did you mean"),
        ({**LINES, "series": ["aproach"]}, "f.series: aproach: .*; did you mean approach"),
        ({**LINES, "panels": "modl"}, "f.panels: modl: no such column; did you mean model"),
        ({"kind": "front", "caption": "C.", "x": "file_mb"}, "f.x: file_mb: .* mean file_mib"),
        (
            {"kind": "report", "caption": "C.", "figures": ["heat_map"]},
            "f.figures: heat_map: the report has no such figure; did you mean heatmap",
        ),
    ],
)
def test_a_wrong_name_in_a_figure_is_one_line_with_the_near_one(write, figure, message):
    write(figure=figure)
    with pytest.raises(UserError, match=rf"mine: paper\.figures\.{message}"):
        vocabulary.check("mine")


def test_a_table_that_no_report_has_is_refused(write):
    write({"caption": "C.", "report": "bugdet"})
    with pytest.raises(UserError, match=r"t\.report: bugdet: .*; did you mean budget"):
        vocabulary.check("mine")


@pytest.mark.parametrize("words", [["plan", "mine"], ["sweep", "mine"]])
def test_plan_and_sweep_say_it_before_anything_is_measured(write, tmp_path, capsys, words):
    write({**TABLE, "rows": ["metod"]})
    assert dispatch(words) == 2
    assert "t.rows: metod: no such column; did you mean method" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("own", ["file", "command"])
def test_with_plugins_a_name_may_be_that_of_their_probe(write, own):
    write({**TABLE, "values": ["surprise"]}, **({"plugins": ["my_pkg"]} if own == "file" else {}))
    vocabulary.check("mine", ["plugins=[my_pkg]"] if own == "command" else [])


def test_what_a_task_reports_is_not_known_beforehand(write):
    write({**TABLE, "values": ["exact_match/gsm8k"]})
    vocabulary.check("mine")


def test_every_experiment_that_is_shipped_passes():
    for name in experiments():
        vocabulary.check(name)


def test_every_column_of_a_frame_is_known():
    points = frame(records.grid())
    assert [c for c in points.columns if not _known(str(c))] == []


def _known(column: str) -> bool:
    return column.partition(" @ ")[0] in vocabulary.COLUMNS or vocabulary._is_metric(column)


def test_every_metric_that_a_probe_names_is_known():
    """Read from the probes' source: the literal start of what they call a Metric."""
    named = set()
    for path in (ROOT / "src/bitsweep/probes").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = getattr(getattr(node, "func", None), "id", "")
            if isinstance(node, ast.Call) and called in ("Metric", "_metric") and node.args:
                named.add(_start(node.args[0]))
    kinds = {name.partition("/")[0] for name in named if name}
    assert len(kinds) >= 12
    assert kinds <= set(vocabulary.METRICS)


def _start(name: ast.expr) -> str:
    """``ppl`` of ``f"ppl/{text}"``; nothing where it is a variable."""
    first = name.values[0] if isinstance(name, ast.JoinedStr) else name
    return str(first.value) if isinstance(first, ast.Constant) else ""
