"""Scores from Records; tables, ranks and bars of them; budgets, seeds and curves of a report."""

from __future__ import annotations

import math
import re
import statistics
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import records
from rich.console import Console

from bitsweep import report
from bitsweep.policies.sensitivity import readings, scores
from bitsweep.record import Delta, Metric, Record
from bitsweep.report import page, seeds, sensitivity
from bitsweep.report.frame import frame, whole
from bitsweep.report.front import front
from bitsweep.report.tables import primaries, sheets
from bitsweep.store import Store

LOSSES = {"embed": 0.9, "0.up": 0.5, "0.down": 0.3, "1.up": 0.2, "1.down": 0.1}


def part(name: str, loss: float, bits: int = 2, proxy: float | None = None, **changes) -> Record:
    """``name`` alone at ``bits``: its loss in nats, half of it as divergence."""
    base = records.FULL_PRECISION_PPL["in_domain"]
    ratio = math.exp(loss)
    metrics = [
        records.ppl(base * ratio, base * ratio * 0.99, base * ratio * 1.01),
        records.number("kl_mean/in_domain", loss / 2, "nat", "lower"),
    ]
    if proxy is not None:
        metrics.append(records.number("hessian_error", proxy, better="lower"))
    made = records.record("rtn", bits, policy=f"only {name}", metrics=metrics, **changes)
    made.plan |= {"notes": {"only": name, "layers": [f"model.layers.{name}"]}}
    return made


def parts(**proxies: float) -> list[Record]:
    return [part(n, loss, proxy=proxies.get(n.replace(".", "_"))) for n, loss in LOSSES.items()]


def columns(record: Record, **changes) -> dict:
    return {**record.point, "policy": "budget", "bits": None, **changes}


def test_a_score_is_the_logarithm_of_the_ratio_and_the_divergence() -> None:
    one = part("0.up", 0.5)
    known = scores([one], columns(one), one.model["sha256"])
    assert known.names == ("kl_mean/in_domain", "loss/in_domain", "ppl/in_domain")[:2]
    values = known.values[frozenset(["model.layers.0.up"]), 2]
    assert values["loss/in_domain"] == pytest.approx(0.5)
    assert values["kl_mean/in_domain"] == 0.25
    assert known.name("loss") == "loss/in_domain"
    assert known.name("blue") is None


def test_scores_are_means_over_seeds_and_of_points_alike_only() -> None:
    one, two = part("0.up", 0.4, seed=1), part("0.up", 0.6, seed=2)
    strangers = [
        part("0.up", 9.0, symmetric=True),
        part("0.up", 9.0, misfit="ragged"),
        part("0.up", 9.0, status="failed"),
        part("0.up", 9.0, model={"sha256": "another"}),
        records.record("rtn", 2, metrics=[records.ppl(9.0, 8.0, 9.5)]),
    ]
    known = scores([one, two, *strangers], columns(one), one.model["sha256"])
    (values,) = known.values.values()
    assert values["loss/in_domain"] == pytest.approx(0.5)


def test_scores_of_two_protocols_are_told() -> None:
    one, two = part("0.up", 0.4), part("0.down", 0.4)
    kl = two.metrics["kl_mean/in_domain"]
    two.metrics[kl.name] = Metric(kl.name, kl.value, kl.unit, kl.better, "another")
    known = scores([one, two], columns(one), one.model["sha256"])
    assert len(known.protocols["kl_mean/in_domain"]) == 2
    assert len(known.protocols["loss/in_domain"]) == 1


def test_the_rank_correlation_is_that_of_the_ranks() -> None:
    # ranks 1 2 3 4 5 against 2 1 4 3 5: 1 - 6 * 4 / (5 * 24) = 0.8
    one, other = pd.Series([1.0, 10, 100, 1e3, 1e4]), pd.Series([0.2, 0.1, 0.4, 0.3, 99])
    assert sensitivity.correlation(one, other) == pytest.approx(0.8)
    assert sensitivity.correlation(one, -one) == pytest.approx(-1)
    assert sensitivity.correlation(one[:3], other[:3]) is None
    assert sensitivity.correlation(one, one * 0) is None


def test_the_table_has_the_most_sensitive_first_and_the_correlation_its_own() -> None:
    rows = parts(embed=2.0, **{"0_up": 1.0, "0_down": 4.0, "1_up": 3.0, "1_down": 0.5})
    made = sheets(frame(rows), "5 records")
    lines = made["sensitivity"].lines
    assert [line.cells[1] for line in lines] == list(LOSSES)
    assert lines[0].cells[2].startswith("0.9 [0.89, 0.91]")
    assert lines[0].cells[3:] == ("0.45", "2")
    # scores rank 5 4 3 2 1, proxies 3 2 5 4 1: 1 - 6 * (4 + 4 + 4 + 4) / 120 = 0.2
    assert made["correlation"].lines[0].cells == ("rtn w2g64", "5 layers", "0.20", "0.20")


def test_parts_stand_in_the_models_order_for_bars() -> None:
    names = ["1.up", "lm_head", "10.up", "embed_tokens", "0.up"]
    table = sensitivity.parts(frame([part(n, 0.1) for n in names]), {"reference": "ppl/in_domain"})
    assert list(table["part"]) == ["embed_tokens", "0.up", "1.up", "10.up", "lm_head"]


def test_parts_are_rows_of_the_main_table_but_of_no_front_and_no_heat_map() -> None:
    table = frame([*records.grid(), *parts()])
    made = sheets(table, "")
    assert sum("only" in line.cells[2] for line in made["main"].lines) == len(LOSSES)
    assert not any("only" in " ".join(line.cells) for line in made["heatmap"].lines)
    marks = front(table, "kl_mean/in_domain", "ppl/in_domain")
    assert set(marks[table["only"].notna()]) == {""}
    assert len(whole(table)) == len(table) - len(LOSSES)


@pytest.mark.parametrize(("more", "best"), [([], False), (records.grid(), True)])
def test_of_parts_alone_none_is_to_be_recommended(
    tmp_path: Path, more: list[Record], best: bool
) -> None:
    store = Store(tmp_path / "demo")
    for row in (records.record("full_precision", None), *parts(), *more):
        store.put(replace(row, experiment="demo"), [])
    console = Console(width=100, record=True)
    report.summary(report.write(tmp_path / "demo"), console)
    assert ("best   bitsweep recommend demo" in console.export_text()) is best


def test_a_budget_stands_with_its_slack_and_what_was_measured() -> None:
    base = records.FULL_PRECISION_PPL["in_domain"]
    ratio = math.exp(0.5)
    metrics = [
        records.ppl(base * ratio, base * ratio, base * ratio),
        records.number("kl_mean/in_domain", 0.44, "nat", "lower"),
    ]
    row = records.record("rtn", 4, policy="budget 3 of 2,4", metrics=metrics)
    row.point["bits"] = None
    predicted = {"loss/in_domain": 0.3, "kl_mean/in_domain": 0.25}
    row.plan["notes"] = {"average_bits": 3.0, "spent_bits": 2.98, "slack_bytes": 17,
                         "score": "kl_mean/in_domain", "predicted": predicted}  # fmt: skip
    (line,) = sheets(frame([row]), "")["budget"].lines
    assert line.cells[1:] == (
        "w*g64", "budget 3 of 2,4", "2.9800", "17", "0.3", "0.5", "0.25", "0.44",
    )  # fmt: skip


def calibrated(value: float = 2.7, seed: int = 0, **calibration) -> Record:
    """A point of GPTQ whose Record says what it calibrated on."""
    made = records.record("gptq", 4, seed=seed, metrics=[records.ppl(value)])
    made.calibration = {"windows": 16, "window": 64, "seed": seed} | calibration
    made.point_id = made.run_id = f"{seed} {sorted(calibration.items())}"
    return made


def test_points_that_differ_in_seeds_alone_are_one_row_of_mean_and_spread() -> None:
    values = (2.7, 2.8, 3.1)
    rows = [calibrated(value, seed) for seed, value in enumerate(values)]
    rows.append(calibrated(9.0, windows=8))
    (line,) = seeds.sheet(frame(rows), ["ppl/in_domain"], "").lines
    mean, deviation = statistics.mean(values), statistics.stdev(values)
    assert line.cells[0] == "gptq windows=16"
    assert line.cells[3:] == (f"{mean:.4f} ± {deviation:.4f} (2.7000 to 3.1000)", "3")


def test_points_of_other_bits_groups_or_experiments_are_no_repetition_of_a_seed() -> None:
    one = records.record("gptq", 4, 64, seed=0, metrics=[records.ppl(2.7)])
    others = [
        records.record("gptq", bits, group, seed=1, metrics=[records.ppl(2.8)])
        for bits, group in ((3, 64), (4, 32), (4, 64))
    ]
    others[2].experiment = "another"
    for other in others:
        assert seeds.repeated(frame([one, other])) == []
    others[2].experiment = one.experiment
    assert len(seeds.repeated(frame([one, others[2]]))) == 1


def test_what_varies_of_the_calibration_is_named_and_a_seed_once() -> None:
    longest = calibrated(choice="longest")
    del longest.calibration["seed"]
    rows = [calibrated(), calibrated(seed=1), calibrated(windows=8), longest]
    main = sheets(frame(rows), "")["main"]
    assert sorted(line.cells[0] for line in main.lines) == [
        "gptq seed=1 windows=16",
        "gptq windows=16",
        "gptq windows=16 choice=longest",
        "gptq windows=8",
    ]
    assert {"calibration.windows", "calibration.choice"} <= set(main.columns)


def test_bars_curves_and_page_come_again_byte_for_byte(tmp_path: Path) -> None:
    folder = tmp_path / "both"
    store = Store(folder)
    store.prepare()
    whole = [
        records.record("rtn", b, metrics=records.quality("rtn", b, 64, "uniform")) for b in (3, 4)
    ]
    for record in [*parts(embed=2.0), *whole]:
        record.experiment = "both"
        details = []
        if record in whole:
            error = Metric("hidden_error", 0.2, "", "lower", "hidden_error|v1")
            record.metrics["hidden_error"] = error
            details = [{"metric": "hidden_error", "by_depth": [0.0, 0.1, 0.2]}]
        store.put(record, details)
    first = report.write(folder)
    names = {path.name for path in first.figures}
    assert {"sensitivity_rtn-w2g64-layer.png", "error_depth.pdf", "front_size.png"} <= names
    before = {path: path.read_bytes() for path in (*first.figures, *first.tables, first.page)}
    report.write(folder)
    assert {path: path.read_bytes() for path in before} == before
    packed = re.search(r'<script[^>]*id="data"[^>]*>([^<]*)<', first.page.read_text("utf-8"))
    assert packed is not None
    assert '"errors":[0.0,0.1,0.2]' in page.unpacked(packed[1]).replace(" ", "")


def test_a_delta_of_nothing_is_a_loss_of_zero() -> None:
    metric = Metric("ppl/t", 3.0, "", "lower", "s", delta=Delta("ratio", 1.0, 1.0, 1.0))
    assert readings(metric) == {"loss/t": 0.0}


def test_scores_are_of_each_models_own_text() -> None:
    one, other = part("0.up", 0.1), part("0.up", 0.1)
    other.run_id, other.point_id, other.point["model"] = "1", "2", "other"
    other.metrics = {
        (name := metric.name.replace("in_domain", "stories")): replace(metric, name=name)
        for metric in other.metrics.values()
    }
    points = frame([one, other])
    table = sensitivity.parts(points, primaries(points))
    assert [round(loss, 6) for loss in table["loss"]] == [0.1, 0.1]
    assert list(table["kl"]) == [0.05, 0.05]
