"""The table of times: a row for each engine and shape, what is marked, what has no time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import records
from rich.console import Console

from bitsweep import report
from bitsweep.record import Metric, Record
from bitsweep.report import speedup
from bitsweep.report.frame import frame
from bitsweep.report.page import payload, sections
from bitsweep.report.sheet import Sheet, latex
from bitsweep.report.tables import sheets
from bitsweep.store import Store

PLAIN = "latency|engine:{}|prompt:32|batch:1|threads:2|tokens:16|v2"


def metrics(engine: str, speed: float, **others: float) -> list[Metric]:
    """A shape in full, the same on one thread at half the speed, and what ``others`` adds."""
    found = {
        "decode_ms": 8 / speed, "decode_vs_bf16": speed, "decode_of_bytes": speed / 4,
        "decode_mib": 100.0, "prefill_ms": 50.0, "prefill_vs_bf16": 0.8, "cache_mib": 32.0,
    } | others  # fmt: skip
    found |= {"decode_ms/t1": 16 / speed, "decode_vs_bf16/t1": speed}
    signature = PLAIN.format(engine)
    return [
        Metric(name, value, "", "higher", signature, *ends)
        for name, value in found.items()
        for ends in [(value * 0.9, value * 1.1) if "_vs_" in name else ()]
    ]


def timed(bits: int, engine: str, speed: float = 2.0, **others: float) -> Record:
    record = records.record("rtn", bits, kind="timing", metrics=metrics(engine, speed, **others))
    record.run_id = records.identifier(engine, bits)
    return record


def table(*rows: Record) -> Sheet:
    return sheets(frame(rows), "records")["latency"]


def column(sheet: Sheet, head: str, block: str = "reference, batch 1, prompt 32, 2 threads") -> Any:
    at = sheet.heads.index(head)
    return [line.cells[at] for line in sheet.lines if line.block == block]


def test_each_engine_of_a_point_has_a_row() -> None:
    made = table(timed(4, "torch_int4"), timed(4, "onnxruntime", 3.0), timed(8, "torch_int8"))
    assert column(made, "engine") == ["torch_int8", "onnxruntime", "torch_int4"]
    assert column(made, "decode ms [95 %]") == ["4.000", "2.667", "4.000"]


def test_each_shape_has_a_block_and_its_interval() -> None:
    made = table(timed(4, "torch_int4"))
    assert [name for name, _ in made.blocks()] == [
        "reference, batch 1, prompt 32, 2 threads",
        "reference, batch 1, prompt 32, 1 thread",
    ]
    one = "reference, batch 1, prompt 32, 1 thread"
    assert column(made, "× bf16 [95 %]", one) == ["2.00 [1.80, 2.20]"]
    threads = made.columns.index("threads")
    assert [row[threads] for row in made.values] == [2, 1]


@pytest.mark.parametrize(
    ("numbers", "mark", "note"),
    [
        ({"decode_noise": 0.11}, "noisy", "strayed by more than 10 %"),
        ({"prefill_noise": 0.2}, "noisy", "strayed by more than 10 %"),
        ({"decode_of_bandwidth": 1.2}, "impossible", "more than 1.1 times|at more than 1.1 times"),
        ({"decode_of_bandwidth": 1.2, "cache_mib": 200.0}, "in cache", r"cache \(200 MiB"),
    ],
)
def test_a_time_not_to_be_believed_is_marked(
    numbers: dict[str, float], mark: str, note: str
) -> None:
    made = table(timed(4, "torch_int4", **numbers))
    assert column(made, "marks") == [mark]
    assert pd.Series(made.notes).str.contains(note).any()


def wide(bits: int, ends: tuple[float, float], metric: str = "decode_vs_bf16") -> Record:
    """A point whose interval of ``metric`` has these ends."""
    record = timed(bits, "torch_int4")
    record.metrics[metric] = replace(record.metrics[metric], lo=ends[0], hi=ends[1])
    return record


@pytest.mark.parametrize("metric", ["decode_vs_bf16", "prefill_vs_bf16", "decode_ms"])
def test_an_interval_of_more_than_a_factor_of_two_is_marked(metric: str) -> None:
    made = table(wide(4, (0.46, 3.36), metric), wide(8, (1.5, 3.0), metric))
    assert column(made, "marks") == ["", "noisy"]  # 8 bits first
    assert pd.Series(made.notes).str.contains("more than a factor of 2 apart").any()


def test_a_noisy_speed_is_marked_on_terminal_and_page(tmp_path: Path) -> None:
    noisy, calm = wide(4, (0.46, 3.36)), wide(8, (1.9, 2.1))
    quality = [
        records.record(
            "rtn",
            bits,
            metrics=[records.ppl(3 - bits / 10), records.number("file_mib", bits, "MiB", "lower")],
        )
        for bits in (4, 8)
    ]
    shown = frame([noisy, calm, *quality])
    marked = dict(zip(shown["bits"], payload.of(shown)["columns"]["noisy"], strict=True))
    assert marked == {4: 1, 8: 0}
    store = Store(tmp_path / "demo")
    store.prepare()
    for record in (noisy, calm, *quality):
        store.put(record, [])
    console = Console(record=True, width=160)
    report.summary(report.write(tmp_path / "demo"), console)
    front = [line for line in console.export_text().splitlines() if "uniform" in line]
    assert [line.split()[1] for line in front] == ["w4g64", "w8g64"]
    assert [line.endswith("2.00 noisy") for line in map(str.rstrip, front)] == [True, False]


def test_without_anything_to_mark_there_is_no_column_for_it() -> None:
    numbers = {"decode_noise": 0.1, "decode_of_bandwidth": 1.1}
    assert "marks" not in table(timed(4, "torch_int4", **numbers)).heads


def test_a_cost_has_a_column_where_there_is_a_price() -> None:
    assert "cost/M tokens" not in table(timed(4, "torch_int4")).heads
    made = table(timed(4, "torch_int4", decode_cost_per_mtok=1.25))
    assert column(made, "cost/M tokens") == ["1.250"]


def test_an_engine_that_refuses_a_point_says_so_below_also_where_another_ran_it() -> None:
    refused = timed(4, "openvino")
    refused.metrics = {
        "decode_ms": Metric("decode_ms", None, "ms", "lower", PLAIN, reason="openvino: no groups")
    }
    made = table(timed(4, "torch_int4"), refused)
    assert column(made, "engine") == ["torch_int4"]
    assert "Empty (1): rtn w4g64 uniform: openvino: no groups" in made.notes


def test_old_timings_have_a_block_of_their_shape() -> None:
    signature = "latency|engine:dense|prompt:128|batch:1|tokens:16|threads:2|device:x|v1"
    longer = signature.replace("prompt:128", "prompt:512")
    old = records.record("rtn", 4, kind="timing")
    for name, how in (("decode_ms", signature), ("decode_ms/b1p512", longer)):
        old.metrics[name] = Metric(name, 2.0, "ms", "lower", how)
    assert [name for name, _ in table(old).blocks()] == [
        "reference, batch 1, prompt 128, 2 threads",
        "reference, batch 1, prompt 512, 2 threads",
    ]


def test_random_weights_are_called_so_in_every_row() -> None:
    rows = [timed(4, "torch_int4"), timed(8, "torch_int8")]
    for row in rows:
        row.point["weights"] = "random"
    made = table(*rows)
    assert all(cell.endswith(" random") for cell in column(made, "weights"))


def test_latex_takes_the_table() -> None:
    text = latex(table(timed(4, "torch_int4", decode_noise=0.5)))
    assert r"\emph{reference, batch 1, prompt 32, 2 threads}" in text
    assert "& noisy &" in text
    assert r"\% of bytes' gain" in text


def test_bars_show_what_the_bytes_would_give() -> None:
    """2 times bf16 at half of what the bytes give: the ratio of bytes is 4."""
    (drawn,) = speedup.figures(frame([timed(4, "torch_int4"), timed(8, "torch_int8", 1.5)]))
    name, make = drawn
    assert name == "latency"
    decode = make().axes[0]
    assert [text.get_text() for text in decode.get_yticklabels()] == [
        "w8g64 torch_int8",
        "w4g64 torch_int4",
    ]
    assert list(decode.lines[-1].get_xdata()) == [4.0, 4.0]


def test_old_timings_without_bytes_have_no_bars() -> None:
    old = records.record("rtn", 4, kind="timing", metrics=records.latency(4))
    assert not [*speedup.figures(frame([old]))]


def test_the_page_has_the_table() -> None:
    table = frame([timed(4, "torch_int4")])
    content = payload.of(table)
    assert content["metrics"]["decode_mib"]["title"] == "weights read by a step, MiB"
    names = [block["name"] for block in sections.of(table, [])["latency"]["blocks"]]
    assert "reference, batch 1, prompt 32, 1 thread" in names


def test_the_terminal_shows_the_first_shape_and_how_many_more(tmp_path: Path) -> None:
    store = Store(tmp_path / "demo")
    for row in (timed(4, "torch_int4"), timed(8, "torch_int8")):
        store.put(replace(row, experiment="demo"), [])
    console = Console(width=100, record=True)
    report.summary(report.write(tmp_path / "demo"), console)
    text = console.export_text()
    assert "reference, batch 1, prompt 32, 2 threads" in text
    assert "1 more in the table" in text
    assert "torch_int8" in text
