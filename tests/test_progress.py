"""The lines of a sweep: what stands in them, and that they survive a trip to another process."""

from __future__ import annotations

import pickle

import pytest
from records import record

from bitsweep.artifacts import Artifacts
from bitsweep.progress import Progress, duration, result
from bitsweep.record import Delta, Metric
from bitsweep.sweep import Outcome, Session


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.34, "0.3 s"), (14.2, "14 s"), (99, "99 s"), (100, "2 min"), (4800, "1 h 20 min")],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_line_has_perplexity_with_its_interval_size_and_speed() -> None:
    row = record()
    row.metrics = {
        metric.name: metric
        for metric in (
            Metric("ppl/text", 5.61, "", "lower", "s", delta=Delta("ratio", 1.026, 1.022, 1.030)),
            Metric("file_mib", 3.891, "MiB", "lower", "s"),
            Metric("decode_vs_bf16", 1.93, "", "higher", "latency|engine:torch_int4|v2"),
        )
    }
    assert result(Outcome("rtn w4", [row], 1.0)) == [
        "ppl 5.610 (+2.6 % [2.2, 3.0])",
        "3.89 MiB",
        "decode 1.9x bf16 (torch_int4)",
    ]


@pytest.mark.parametrize(
    ("ratios", "text"),
    [
        ((1.0, 1.0, 1.0), "ppl 5.610"),
        ((0.9999, 0.9996, 1.0002), "ppl 5.610 (+0.0 % [0.0, 0.0])"),
    ],
)
def test_no_change_of_perplexity_has_no_minus(ratios: tuple[float, ...], text: str) -> None:
    row = record()
    delta = Delta("ratio", *ratios)
    row.metrics = {"ppl/text": Metric("ppl/text", 5.61, "", "lower", "s", delta=delta)}
    assert result(Outcome("full_precision", [row], 1.0)) == [text]


def test_a_speed_of_a_disturbed_machine_is_said_to_be_noisy() -> None:
    row, signature = record(), "latency|engine:torch_int4|v2"
    for metric, said in (
        (Metric("decode_vs_bf16", 3.19, "", "higher", signature, 0.46, 3.36), ", noisy"),
        (Metric("decode_vs_bf16", 3.19, "", "higher", signature, 3.10, 3.36), ""),
    ):
        row.metrics = {metric.name: metric}
        assert result(Outcome("hqq w8", [row], 1.0)) == [f"decode 3.2x bf16 (torch_int4){said}"]


def test_a_failed_point_says_why() -> None:
    assert result(Outcome("rtn w4", [], 1.0, "model.path: NaN")) == ["failed: model.path: NaN"]


def test_a_session_travels_to_another_process(tmp_path) -> None:
    session = Session(Artifacts(tmp_path))
    session.progress.total = 7
    there = pickle.loads(pickle.dumps(session))
    assert isinstance(there.progress, Progress)
    assert there.progress.total == 7
    assert there.artifacts.root == tmp_path
