"""Figures: the same bytes from the same numbers, and a look of its own for every method."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import records

from bitsweep.report import beside, figures, labels
from bitsweep.report import drawing as room
from bitsweep.report.drawing import drawing
from bitsweep.report.frame import frame


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """Two points with all that a figure may show."""
    rows = []
    for bits in (4, 8):
        point = ("rtn", bits, 64, "uniform")
        rows.append(records.record(*point, metrics=records.quality(*point)))
        rows.append(records.record(*point, kind="timing", metrics=records.latency(bits)))
    return frame(rows)


def test_the_same_numbers_draw_the_same_bytes(table, tmp_path: Path):
    folders = tmp_path / "a", tmp_path / "b"
    for folder in folders:
        folder.mkdir()
        with drawing(table, folder, alone=True) as begun:
            begun.finish()
    names = sorted(path.name for path in folders[0].iterdir())
    assert names == [
        f"{name}.{suffix}"
        for name in ("front_size", "front_speed", "heatmap")
        for suffix in ("pdf", "png")
    ]
    for name in names:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    for path in folders[0].glob("*.pdf"):
        assert b"/Type3" not in path.read_bytes(), "fonts are embedded as TrueType"
        assert b"CreationDate" not in path.read_bytes()


@pytest.fixture
def two_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """And one figure is enough for the second."""
    monkeypatch.setattr(beside, "processors", lambda: 2)
    monkeypatch.setattr(room, "FEW", 0)


def drawn(table: pd.DataFrame, folder: Path, alone: bool) -> dict[str, bytes]:
    """The figures in ``folder`` by name."""
    folder.mkdir()
    with drawing(table, folder, alone=alone) as begun:
        if begun.helper is not None:
            begun.helper.process.wait()  # it draws all, as this process has other work
        begun.finish()
    assert sorted(begun.paths) == sorted(folder.iterdir())
    return {path.name: path.read_bytes() for path in begun.paths}


@pytest.mark.usefixtures("two_processors")
def test_another_process_draws_the_same_bytes(table, tmp_path: Path, monkeypatch):
    here = drawn(table, tmp_path / "here", alone=True)
    monkeypatch.setattr(room, "save", None)  # from here on this process can draw nothing
    assert drawn(table, tmp_path / "beside", alone=False) == here


@pytest.mark.usefixtures("two_processors")
@pytest.mark.parametrize("program", ["/bin/false", "/nowhere"])
def test_without_another_process_figures_are_drawn_here(table, tmp_path, monkeypatch, program):
    monkeypatch.setattr(beside.sys, "executable", program)
    assert len(drawn(table, tmp_path / "here", alone=False)) == 6


def test_what_another_process_claimed_and_left_is_drawn_here(table, tmp_path: Path):
    gone = beside.Beside(tmp_path, beside.subprocess.Popen(["/bin/false"]))
    begun = room.Drawing([*figures.every(table)], tmp_path, gone)
    (tmp_path / "heatmap.claimed").touch()
    begun.finish()
    assert all(path.exists() for path in begun.paths)


def test_no_two_methods_look_alike():
    looks = figures.appearance(frame(records.grid()), labels.grid)
    assert sorted(looks) == ["gptq", "hqq", "rtn"]
    assert len({color for color, _ in looks.values()}) == 3
    assert len({marker for _, marker in looks.values()}) == 3


def test_of_too_many_methods_those_on_the_front_are_told_apart():
    present = [(f"m{i:02}", "front" if i < 3 else "dominated") for i in range(12)]
    looks = figures._told_apart(present)
    named = [name for name, look in looks.items() if look != figures.OTHERS]
    assert {"m00", "m01", "m02"} <= set(named)
    assert len({looks[name] for name in named}) == len(named) == 7
    assert len(looks) == 12


def test_full_precision_is_known_from_any_row_that_knows_its_ratio():
    row = records.record("rtn", 4, metrics=[records.ppl(3.0, 2.9, 3.1)])
    assert abs(figures.baseline(frame([row]), "ppl/in_domain") - 2.6131) < 1e-12


def test_each_model_has_a_figure_of_its_own():
    other = records.record("rtn", 4, metrics=records.quality("rtn", 4, 64, "uniform"))
    other.point["model"] = "org/model name"
    names = [name for name, _ in figures.figures(frame([*records.grid(timing=False), other]))]
    assert names == [
        "front_size_org-model-name",
        "heatmap_org-model-name",
        "front_size_reference",
        "heatmap_reference",
    ]


def test_without_a_point_there_is_no_figure():
    assert list(figures.figures(frame([records.record(status="failed", reason="x")]))) == []


def test_a_legend_drops_long_options_unless_two_would_be_called_alike():
    long, other = "gptq_fp (prefix=full_precision)", "gptq_fp (prefix=quantized x=1)"
    assert labels.short(["rtn (clip=mse)", long]) == {
        "rtn (clip=mse)": "rtn (clip=mse)",
        long: "gptq_fp",
    }
    assert labels.short([long, other]) == {long: long, other: other}
