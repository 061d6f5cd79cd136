"""Figures: the same bytes from the same numbers, and a look of its own for every method."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import records
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from bitsweep import report
from bitsweep.report import bars, beside, figures, heatmap, labels, scatter, seeds, style, tables
from bitsweep.report import drawing as room
from bitsweep.report.drawing import drawing
from bitsweep.report.frame import frame
from bitsweep.store import Store

ROOT = Path(__file__).parents[1]


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


def test_a_report_removes_the_figures_that_it_made_before_and_no_other(tmp_path: Path):
    folder = tmp_path / "demo"
    store = Store(folder)
    store.prepare()
    store.put(records.record("rtn", 4, metrics=records.quality("rtn", 4, 64, "uniform")), [])
    report.redraw(folder)
    made = folder / "figures" / "front_size.pdf"
    with style.in_style():  # as of a model that is there no more
        style.save(figures.Figure(figsize=(1, 1)), folder / "figures", "old")
    own = ["drawn.pdf", "heatmap_mine.pdf", "heatmap_mine.png", "notes.txt"]
    for name in own:
        (folder / "figures" / name).write_bytes(b"the reader's own")
    (folder / "figures" / "copy.pdf").write_bytes(made.read_bytes())
    report.redraw(folder)
    left = {path.name for path in (folder / "figures").iterdir()}
    drawn = {f"{name}.{end}" for name in ("front_size", "heatmap") for end in ("pdf", "png")}
    assert left == {*own, "copy.pdf", *drawn}


def test_the_names_of_figures_begin_with_those_that_a_paper_may_name(table):
    names = [name for name, _ in figures.every(table)]
    assert len(names) == 3
    assert all(name.startswith(report.FIGURES) for name in names)


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
    looks = scatter._told_apart(present)
    named = [name for name, look in looks.items() if look != scatter.OTHERS]
    assert {"m00", "m01", "m02"} <= set(named)
    assert len({looks[name] for name in named}) == len(named) == 7
    assert len(looks) == 12


def test_full_precision_is_known_from_any_row_that_knows_its_ratio():
    row = records.record("rtn", 4, metrics=[records.ppl(3.0, 2.9, 3.1)])
    assert abs(scatter.baseline(frame([row]), "ppl/in_domain") - 2.6131) < 1e-12


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


SIZE = records.number("file_mib", 2.0)


def seeded(policy: str = "uniform") -> list[Any]:
    """One setting with three seeds, whose perplexities are 2, 3 and 4, and another with one."""
    many = [
        records.record(
            "gptq", 4, 64, policy, seed=seed, metrics=[records.ppl(value, value, value), SIZE]
        )
        for seed, value in ((0, 2.0), (1, 3.0), (2, 4.0))
    ]
    return [*many, records.record("rtn", 4, 64, policy, metrics=[records.ppl(5.0, 4.9, 5.1), SIZE])]


def test_points_that_differ_in_seeds_alone_are_one_at_their_mean_with_its_deviation():
    points = frame(seeded())
    found = seeds.averaged(points, ["ppl/in_domain"])
    assert len(found) == 2
    row = found[found["method"] == "gptq"].iloc[0]
    base = scatter.baseline(points, "ppl/in_domain")
    assert row["ppl/in_domain"] == 3.0
    bounds = [base * row[f"ppl/in_domain.delta.{end}"] for end in ("lo", "hi")]
    assert [round(value, 12) for value in bounds] == [2.0, 4.0]  # 3 -+ 1
    assert row[seeds.COUNT] == 3


def test_a_front_over_seeds_has_one_series_for_a_setting():
    made = dict(figures.figures(frame(seeded())))
    (legend,) = [axes.get_legend() for axes in made["front_size"]().axes if axes.get_legend()]
    assert [text.get_text() for text in legend.get_texts()][:2] == ["gptq", "rtn"]
    assert "± 1 sd of 3 seeds" in [text.get_text() for text in legend.get_texts()]
    cells = [text.get_text() for text in made["heatmap"]().axes[0].texts]
    assert cells == [f"{100 * (value / 2.6131 - 1):+.1f}" for value in (3.0, 5.0)]


def test_a_sweep_of_one_method_is_told_apart_by_its_policies():
    rows = [records.record("rtn", bits, metrics=[records.ppl(3.0)]) for bits in (3, 4)]
    rows += [records.record("rtn", 3, 64, "by_role", metrics=[records.ppl(2.9)])]
    points = frame(rows)
    name = figures.namer(points)
    assert {name(row) for row in labels.rows(points)} == {"uniform", "by_role"}


def test_names_that_are_too_many_lose_what_is_of_the_calibration_first():
    rows = []
    for windows in range(1, 10):
        row = records.record("gptq", 4, seed=windows, metrics=[records.ppl(3.0)])
        row.calibration = {"windows": windows, "seed": 0}
        rows.append(row)
    assert {figures.namer(frame(rows))(row) for row in labels.rows(frame(rows))} == {"gptq"}
    few = frame(rows[:2])
    assert {figures.namer(few)(row) for row in labels.rows(few)} == {
        "gptq windows=1", "gptq windows=2",
    }  # fmt: skip


def test_ticks_of_the_front_never_touch():
    heights = [0.0, 0.7, 3.0, 5.3, 7.6, 9.9]
    ticks = [0.0, 0.1, 1.0, 10.0, 100.0, 1000.0]
    wide = scatter._apart(ticks, heights, heights, whole=12)
    assert wide == ([0.0, 1.0, 10.0, 100.0, 1000.0], [0.0, *heights[2:]])
    crowded, _ = scatter._apart(ticks, heights, heights, whole=50)
    assert crowded == [0.0, 10.0, 1000.0]


@pytest.mark.parametrize(
    ("number", "shown"), [("3.842e+04", "3.8e4"), ("+1e+06", "+1e6"), ("+100", "+100")]
)
def test_a_long_number_is_short_on_an_axis(number, shown):
    assert style.short_number(number) == shown


def test_a_panel_of_the_heat_map_has_the_methods_that_it_has_numbers_of():
    rows = [
        records.record(m, 4, 64, "uniform", metrics=[records.ppl(3.0, 2.9, 3.1)])
        for m in ("rtn", "hqq")
    ]
    rows += [records.record("gptq", 4, 64, "by_role", metrics=[records.ppl(2.9, 2.8, 3.0)])]
    drawn = heatmap.draw(tables.heat(frame(rows)), "t")
    names = {
        axes.get_title(): [t.get_text() for t in axes.get_yticklabels()] for axes in drawn.axes
    }
    assert names == {"by_role g64": ["gptq"], "uniform g64": ["hqq", "rtn"]}


def test_a_heat_map_of_as_many_methods_as_there_may_be_is_no_higher_than_a_page():
    policies = [f"p{i}" for i in range(6)]
    rows = [
        records.record(f"m{i}", 4, 64, policies[i % 6], metrics=[records.ppl(3.0, 2.9, 3.1)])
        for i in range(heatmap.MOST_LINES)
    ]
    assert heatmap.draw(tables.heat(frame(rows)), "t").get_figheight() <= 10


@pytest.mark.parametrize(
    ("methods", "shown"),
    [(54, 54), (55, 54), (108, 54), (109, 12)],  # more than twice the room: a taste is enough
)
def test_a_heat_map_says_how_many_of_its_methods_there_was_room_for(methods, shown):
    rows = [
        records.record(f"m{i}", 4, 64, "uniform", metrics=[records.ppl(3.0, 2.9, 3.1)])
        for i in range(methods)
    ]
    drawn = heatmap.draw(tables.heat(frame(rows)), "t")
    assert len(drawn.axes[0].get_yticklabels()) == shown
    said = f"t; {shown} of {methods} rows" if shown < methods else "t"
    assert drawn.get_suptitle() == said


def test_every_pair_of_colours_is_told_apart_by_colour_blind_eyes():
    """Simulated as by Machado et al., 2009, compared in CIELAB, where 2 is just seen."""
    for seen in ([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                  [-0.003882, -0.048116, 1.051998]],
                 [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                  [-0.011820, 0.042940, 0.968881]]):  # fmt: skip
        colors = [_lab(np.clip(np.array(seen) @ _linear(code), 0, 1)) for code in style.PALETTE]
        assert min(np.linalg.norm(a - b) for a, b in combinations(colors, 2)) > 15


def _linear(code: str) -> Any:
    red_green_blue = np.array([int(code[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(
        red_green_blue <= 0.04045, red_green_blue / 12.92, ((red_green_blue + 0.055) / 1.055) ** 2.4
    )


def _lab(linear: Any) -> Any:
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt(np.array(to_xyz) @ linear / np.array([0.9505, 1, 1.089]))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def _title(axes: Any) -> str:
    return axes.get_title() or axes.get_title(loc="right")


def test_small_scores_have_their_power_of_ten_in_the_unit():
    assert bars._unit(3.2e-5) == (1e-5, "10⁻⁵ nat/token")
    assert bars._unit(0.4) == (1.0, "nat/token")


@pytest.mark.parametrize("name", ["calibration", "generation", "latency", "policies", "ultra_low"])
def test_no_letter_of_a_committed_figure_lies_outside_it_or_is_too_small(name, monkeypatch):
    shown: list[Text] = []
    draw = Text.draw
    monkeypatch.setattr(Text, "draw", lambda text, *given: (shown.append(text), draw(text, *given)))
    with style.in_style():
        for called, make in figures.every(report.load(ROOT / "results" / name)):
            made = make()
            style.settle(made)
            shown.clear()
            FigureCanvasAgg(made).draw()
            width, height = made.bbox.size
            texts = [text for text in shown if text.get_text().strip()]
            assert len(texts) > 5
            for text in texts:
                left, bottom, right, top = text.get_window_extent().extents
                said = (called, text.get_text())
                assert min(left, bottom, width - right, height - top) > -2, said  # pixels of 0.2 pt
                assert text.get_fontsize() >= style.SMALL_PT, said


def test_dollars_in_a_name_are_no_mathematics(tmp_path: Path):
    with style.in_style():
        figure = Figure(figsize=(2, 1))
        figure.add_subplot().set_title("$wrong^^$ and $5")  # as mathematics it can not be parsed
        written = style.save(figure, tmp_path, "dollars")
    assert all(path.stat().st_size for path in written)


@pytest.mark.parametrize(("value", "shown"), [(0.01, "10⁻²"), (1e3, "10³"), (1.0, "10⁰")])
def test_a_logarithmic_axis_has_powers_of_ten(tmp_path: Path, value, shown):
    with style.in_style():
        figure = Figure(figsize=(2, 1))
        axes = figure.add_subplot()
        axes.plot([1, 2], [1e-3, 1e4])
        axes.set_yscale("log")
        style.save(figure, tmp_path, "log")
    assert axes.yaxis.get_major_formatter()(value) == shown
