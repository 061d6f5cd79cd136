import json

import pytest

from bitsweep.record import Delta, Measurement, Metric, Record

POINT = {"model": "tiny", "method": "rtn"}


def metric(name="ppl/x", value=2.0, **more):
    return Metric(name=name, value=value, unit="", better="lower", signature="ppl|v1", **more)


def record(**more):
    return Record(
        run_id="r", point_id="p", kind="quality", experiment="e", status="ok", point=POINT, **more
    )


def test_a_record_survives_json():
    before = record(metrics={"ppl/x": metric(delta=Delta("ratio", 1.1, 1.0, 1.2))})
    assert Record.from_json(json.loads(json.dumps(before.to_json()))) == before


def test_metrics_that_differ_in_numbers_alone_share_a_line_and_come_back():
    full = {"ms": metric("ms", 2.0, lo=1.0, hi=3.0), "ms/b4": metric("ms/b4", 8.0, lo=7.0, hi=9.0)}
    full |= {"ms/b9": metric("ms/b9", 5.0), "ms/b16": metric("ms/b16", None, reason="no room")}
    before = record(metrics=full)
    written = before.to_json()["metrics"]
    assert written["ms"]["at"] == {"b4": [8.0, 7.0, 9.0], "b9": [5.0]}
    assert list(written) == ["ms", "ms/b16"]
    assert Record.from_json(json.loads(json.dumps(before.to_json()))) == before


def test_a_number_beside_an_empty_cell_has_a_line_of_its_own():
    full = {"ms": metric("ms", None, reason="no room"), "ms/b4": metric("ms/b4", 8.0)}
    before = record(metrics=full | {"ms/b9": metric("ms/b9", None, reason="no room")})
    assert Record.from_json(json.loads(json.dumps(before.to_json()))) == before


def test_a_metric_has_a_value_or_a_reason():
    with pytest.raises(ValueError, match="value or a reason"):
        metric(value=None)
    with pytest.raises(ValueError, match="value or a reason"):
        metric(value=1.0, reason="none")
    assert metric(value=None, reason="no engine").value is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_metric_is_never_non_finite(value):
    with pytest.raises(ValueError, match="finite"):
        metric(value=value)


def test_two_probes_can_not_write_one_metric():
    row = record()
    row.add(Measurement([metric()]))
    with pytest.raises(ValueError, match="ppl/x"):
        row.add(Measurement([metric()]))


def test_another_schema_and_an_unknown_field_are_not_read():
    value = record().to_json()
    with pytest.raises(ValueError, match="schema"):
        Record.from_json({**value, "schema": 0})
    with pytest.raises(ValueError, match="extra"):
        Record.from_json({**value, "extra": 1})
