import json

import pytest

from bitsweep.record import Delta, Measurement, Metric, Record


def metric(name="ppl/x", value=2.0, **more):
    return Metric(name=name, value=value, unit="", better="lower", signature="ppl|v1", **more)


def record(**more):
    return Record(
        run_id="r", point_id="p", kind="quality", experiment="e", status="ok", point={}, **more
    )


def test_a_record_survives_json():
    before = record(metrics={"ppl/x": metric(delta=Delta("ratio", 1.1, 1.0, 1.2))})
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
