"""Figures: the same bytes from the same numbers, and a look of its own for every method."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import records

from bitsweep.report import figures, labels
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
        figures.draw(table, folder)
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
