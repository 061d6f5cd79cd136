"""Records become one row per point, and two protocols never share a column."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pandas as pd
import pytest
import records

from bitsweep.errors import UserError
from bitsweep.report import labels
from bitsweep.report.frame import frame, references


def one(table: pd.DataFrame, label: str) -> pd.Series:
    return table[table["label"] == label].iloc[0]


def test_a_metric_becomes_its_value_its_interval_and_its_paired_change():
    metric = records.ppl(5.2262, 5.0, 5.4)
    row = frame([records.record(metrics=[metric])]).iloc[0]
    assert row["ppl/in_domain"] == 5.2262
    assert row["ppl/in_domain.delta"] == pytest.approx(2.0)
    assert row["ppl/in_domain.delta.lo"] == pytest.approx(5.0 / 2.6131)
    assert row["ppl/in_domain.hi"] == pytest.approx(5.2262 * 1.04)


def test_quality_and_timing_of_a_point_are_one_row():
    quality = records.record("rtn", 4, metrics=[records.ppl(2.7)])
    timing = records.record("rtn", 4, kind="timing", metrics=records.latency(4))
    timing.point |= {"engine": "torch_int4", "threads": 2, "device": "laptop"}
    table = frame([timing, quality])
    assert len(table) == 1
    assert table.loc[0, "ppl/in_domain"] == 2.7
    assert table.loc[0, "decode_vs_bf16"] == 2.1
    assert (table.loc[0, "engine"], table.loc[0, "threads"]) == ("torch_int4", 2)


def test_what_was_asked_of_a_point_later_adds_to_its_row():
    """``probes=latency`` after ``probes=quality`` measures the size again, in its own Record."""
    size = records.number("file_mib", 2.5, "MiB")
    judged = records.record("rtn", 4, metrics=[records.ppl(2.7), records.number("kl/t", 0.1)])
    later = records.record("rtn", 4, metrics=[size])
    for run_id in ("0" * 64, "f" * 64):  # whichever comes first
        later.run_id = run_id
        (row,) = labels.rows(frame([judged, later]))
        assert (row["ppl/in_domain"], row["run_id"]) == (2.7, judged.run_id)
        assert row["file_mib"] == 2.5


def test_an_axis_that_only_some_records_know_is_an_axis():
    """Axes stand before ``point_id``: by that names, filters and figures find them."""
    old, new = records.record("rtn", 4), records.record("rtn", 8)
    new.point["input"] = "8"
    columns = list(frame([old, new]).columns)
    assert columns.index("input") < columns.index("point_id")


def test_a_second_machine_has_columns_of_its_own():
    timed = []
    for device, bits in (("laptop", 4), ("laptop", 8), ("server", 4)):
        record = records.record("rtn", bits, kind="timing", metrics=records.latency(bits))
        record.point |= {"engine": "torch", "threads": 2, "device": device}
        record.run_id = records.identifier(device, bits)
        timed.append(record)
    table = frame(timed)
    assert table["decode_ms"].notna().sum() == 2
    assert table["decode_ms @ server, 2 threads"].notna().sum() == 1


def test_refused_and_failed_points_are_rows_with_their_reason():
    table = frame(records.grid())
    assert list(table["status"].value_counts()[["refused", "failed"]]) == [1, 1]
    assert one(table, "rtn w4g48 uniform")["reason"].startswith("group_size=48 does not divide")


def test_a_refusal_gives_way_to_the_same_point_measured_since():
    measured = records.record("rtn", 4, metrics=[records.ppl(2.7)])
    refused = records.record("rtn", 4, status="refused", reason="then", point_id="f" * 64)
    table = frame([refused, measured])
    assert list(table["status"]) == ["ok"]


def test_a_number_that_is_missing_keeps_its_reason():
    row = one(frame(records.grid()), "rtn w3g64 uniform")
    assert pd.isna(row["decode_ms"])
    assert "no packed kernel runs 3 bits" in row["decode_ms.reason"]


def test_a_number_of_a_later_record_has_no_reason_of_an_earlier_one():
    none = records.Metric("acc/task", None, "", "higher", "acc|v1", reason="no such file then")
    both = [
        records.record("rtn", 4, metrics=found)
        for found in (
            [records.ppl(2.7), none],
            [records.Metric("acc/task", 0.5, "", "higher", "acc|v1")],
        )
    ]
    for number, record in enumerate(both):
        record.run_id = records.identifier("later", number)
    (row,) = frame(both).to_dict("records")
    assert row["acc/task"] == 0.5
    assert pd.isna(row.get("acc/task.reason"))


def test_full_precision_is_first_and_then_bits_fall():
    table = frame(records.grid())
    assert table.loc[0, "method"] == "full_precision"
    gptq = table[(table["method"] == "gptq") & (table["policy"] == "uniform")]
    assert list(gptq["bits"]) == [8, 4, 3, 2]


def test_bits_stay_whole_where_full_precision_has_none():
    assert str(frame(records.grid())["bits"].dtype) == "Int64"


def test_the_order_of_files_changes_nothing():
    grid = records.grid()
    pd.testing.assert_frame_equal(frame(grid), frame(reversed(grid)))


def test_two_protocols_of_one_metric_are_refused():
    old = records.record("rtn", 4, metrics=[records.ppl(2.7)])
    new = records.record("rtn", 3, metrics=[records.ppl(2.9)])
    metric = new.metrics["ppl/in_domain"]
    new.metrics["ppl/in_domain"] = type(metric)(**{**vars(metric), "signature": "ppl|window:512"})
    with pytest.raises(UserError, match=r"ppl/in_domain: two protocols.*window:(256|512).*window:"):
        frame([old, new])


def test_two_protocols_of_one_experiment_are_named_by_a_run_each_with_what_to_type():
    old = records.record("rtn", 4, metrics=[records.ppl(2.7)], run_id="a" * 64)
    new = records.record("rtn", 3, metrics=[records.ppl(2.9)], run_id="b" * 64)
    signed = old.metrics["ppl/in_domain"].signature.replace("tokens:204800", "tokens:2048")
    new.metrics["ppl/in_domain"] = replace(new.metrics["ppl/in_domain"], signature=signed)
    with pytest.raises(UserError) as told:
        frame([old, new])
    said = str(told.value)
    assert "'tokens:204800' (run aaaaaaaaaaaa) and 'tokens:2048' (run bbbbbbbbbbbb)" in said
    assert "experiment=demo" in said
    assert "`bitsweep show bbbbbbbbbbbb` prints with experiment=NAME" in said
    new.experiment = "other"
    with pytest.raises(UserError, match="take them one at a time: demo, then other"):
        frame([old, new])


def test_of_two_protocols_the_rarer_is_the_one_to_move():
    grid = [
        records.record("rtn", bits, metrics=[records.ppl(2.7)], run_id=start * 64)
        for bits, start in ((4, "a"), (3, "b"), (2, "c"))
    ]
    metric = grid[0].metrics["ppl/in_domain"]
    signed = metric.signature.replace("tokens:204800", "tokens:2048")
    grid[0].metrics["ppl/in_domain"] = replace(metric, signature=signed)
    with pytest.raises(UserError, match=r"move records/aaaaaaaaaaaa\*\.json elsewhere"):
        frame(grid)


def timed(signature: str, bits: int = 4) -> records.Record:
    metric = records.Metric("decode_ms", 1.0, "ms", "lower", signature)
    return records.record("rtn", bits, kind="timing", metrics=[metric])


def test_engines_share_a_column_and_are_named_in_one():
    table = frame(
        [
            timed("latency|engine:torch_int4|prompt:128", 4),
            timed("latency|engine:torch_int8|prompt:128", 8),
        ]
    )
    assert list(table["engine"]) == ["torch_int8", "torch_int4"]


def test_the_dtype_of_what_is_not_quantized_is_the_points_not_the_protocols():
    rows = []
    for bits, dtype in ((4, "float32"), (8, "bfloat16")):
        size = records.number("resident_mib", 1.0)
        size = type(size)(**{**vars(size), "signature": f"resident_mib|untouched:{dtype}|v1"})
        rows.append(records.record("rtn", bits, metrics=[size]))
    assert list(frame(rows)["resident_mib"]) == [1.0, 1.0]


def test_two_prompts_do_not_share_a_column():
    with pytest.raises(UserError, match="decode_ms: two protocols"):
        frame([timed("latency|engine:a|prompt:128", 4), timed("latency|engine:a|prompt:512", 8)])


def test_two_models_may_have_protocols_of_their_own():
    one_model = records.record("rtn", 4, metrics=[records.ppl(2.7)])
    other = records.record("rtn", 4, model="other", metrics=[records.ppl(2.9)])
    one_model.point["model"], other.point["model"] = "a", "b"
    metric = other.metrics["ppl/in_domain"]
    other.metrics["ppl/in_domain"] = type(metric)(**{**vars(metric), "signature": "ppl|other"})
    table = frame([one_model, other])
    assert table.attrs["signatures"]["b"]["ppl/in_domain"] == "ppl|other"


def test_one_name_for_two_checkpoints_is_told_apart():
    first, second = records.record("rtn", 4), records.record("rtn", 3)
    second.model = {**second.model, "sha256": "f" * 64}
    assert set(frame([first, second])["model"]) == {
        f"reference@{first.model['sha256'][:8]}",
        "reference@ffffffff",
    }


def test_a_report_needs_no_torch():
    code = (
        "import sys, bitsweep.report.page, bitsweep.report.terminal; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_full_precision_with_a_quantized_cache_is_not_the_reference():
    plain, cache = (records.record("full_precision", None, None, None) for _ in range(2))
    cache.run_id = cache.point_id = "cache"
    cache.point = {**cache.point, "kv": "w4"}
    table = frame([cache, plain])
    assert references(table).tolist() == [True, False]
    assert table["kv"].tolist() == [None, "w4"]


def test_a_checkpoint_that_was_quantized_before_is_no_reference_and_says_what_it_is():
    plain, export = (records.record("full_precision", None, None, None) for _ in range(2))
    export.run_id = export.point_id = "export"
    export.plan = {**export.plan, "summary": "w4g64 x24, w8 x1"}
    table = frame([export, plain])
    assert references(table).tolist() == [True, False]
    row = labels.rows(table)[1]
    assert (labels.method(row), labels.weights(row)) == ("exported", "w4g64, w8")
    assert row["label"] == "exported w4g64, w8"


def engines(name: str, *values: float) -> list[records.Record]:
    """One point timed by an engine for each of ``values``, on one machine."""
    made = []
    for place, value in enumerate(values):
        signature = f"{name}|engine:torch_{place}|prompt:128|batch:1|threads:2"
        metric = records.Metric(name, value, "ms", "lower", signature)
        made.append(records.record("rtn", 4, kind="timing", metrics=[metric]))
        made[-1].run_id = f"{place}" * 64
    return made


def test_of_two_engines_on_one_machine_the_faster_decode_is_the_rows():
    for values, engine in (((1.0, 2.0), "torch_0"), ((2.0, 1.0), "torch_1")):
        (row,) = labels.rows(frame(engines("decode_ms", *values)))
        assert (row["decode_ms"], row["engine"]) == (1.0, engine)


def test_of_two_engines_on_one_machine_the_lower_peak_is_the_rows():
    for values in ((50.0, 80.0), (80.0, 50.0)):
        (row,) = labels.rows(frame(engines("decode_peak_mib", *values)))
        assert row["decode_peak_mib"] == 50.0


def test_a_number_is_that_of_the_fullest_record_of_its_point():
    """A Record of few windows, asked beside a fuller one, does not replace what that measured."""
    judged = records.record("rtn", 4, metrics=[records.ppl(2.7), records.number("kl/t", 0.1)])
    later = records.record("rtn", 4, metrics=[records.ppl(2.9)])
    for run_id in ("0" * 64, "f" * 64):  # whichever comes first
        later.run_id = run_id
        (row,) = labels.rows(frame([judged, later]))
        assert row["ppl/in_domain"] == 2.7


def test_a_point_of_two_experiments_is_a_row_of_each():
    both = [records.record("rtn", 4, metrics=[records.ppl(2.7)]) for _ in range(2)]
    both[1].experiment, both[1].run_id = "other", "f" * 64
    table = frame(both)
    assert sorted(table["experiment"]) == ["demo", "other"]


def test_the_threads_of_a_row_are_those_that_its_time_was_taken_with():
    found = timed("latency|engine:torch_int4|prompt:128|batch:1|threads:1")
    found.point["threads"] = 2
    assert frame([found]).loc[0, "threads"] == 1


def test_a_budget_is_what_was_asked_and_beside_it_what_was_spent():
    notes = {"average_bits": 4.5, "spent_bits": 4.25, "slack_bytes": 12, "predicted": {"ppl": 2.0}}
    found = records.record("rtn", 4)
    found.plan["notes"] = notes
    (row,) = labels.rows(frame([found]))
    budget = (row["budget_bits"], row["budget_spent"], row["budget_slack_bytes"])
    assert budget == (4.5, 4.25, 12)
    assert row["predicted/ppl"] == 2.0
