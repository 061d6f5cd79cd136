"""An acceptance line says yes only where the whole paired interval does, and ? where nothing is."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import records

from bitsweep.record import Delta, Metric, Record
from bitsweep.report import acceptance, estimate
from bitsweep.report.acceptance import ARTICLES, PRESETS, Acceptance, Amount, Check
from bitsweep.report.estimate import Estimate
from bitsweep.report.frame import frame


def score(name: str, full: float, lost: float, half: float = 0.1) -> Metric:
    """A score that lost ``lost`` ± ``half`` of full precision's ``full``, in its own unit."""
    delta = Delta("difference", -lost, -lost - half, -lost + half)
    return Metric(name, full - lost, "", "higher", f"{name}|v1", delta=delta)


def sizes(file: float, resident: float) -> list[Metric]:
    """Of a model that has 10 MiB in its file and 20 MiB in float32: 10 MiB in 16 bits."""
    ratios = (
        Delta("ratio", file / 10, file / 10, file / 10),
        Delta("ratio", resident / 20, resident / 20, resident / 20),
    )
    return [
        Metric("file_mib", file, "MiB", "lower", "file|v1", delta=ratios[0]),
        Metric("resident_mib", resident, "MiB", "lower", "resident|v1", delta=ratios[1]),
    ]


def speed(value: float, half: float = 0.1) -> Metric:
    return Metric(
        "decode_vs_bf16", value, "", "higher", "latency|engine:torch_int4|v1",
        value - half, value + half,
    )  # fmt: skip


def full_precision(*metrics: Metric) -> Record:
    return records.record("full_precision", None, None, None, metrics=list(metrics))


def table(metrics: list[Metric], timing: list[Metric] | None = None) -> pd.DataFrame:
    rows = [
        full_precision(records.ppl(2.6131, 2.6131, 2.6131), *sizes(10, 20)),
        records.record("rtn", 4, metrics=metrics),
    ]
    if timing is not None:
        rows.append(records.record("rtn", 4, kind="timing", metrics=timing))
    return frame(rows)


def said(metrics: list[Metric], timing: list[Metric] | None = None) -> dict[str, object]:
    made = acceptance.of(table(metrics, timing))
    return dict(made.iloc[1])


@pytest.mark.parametrize(
    ("value", "lo", "hi", "verdict"),
    [
        (1.0, 0.5, 1.5, "yes"),  # all of it below 2
        (1.9, 1.7, 2.1, "likely"),  # the number below, its interval not
        (1.9, None, None, "likely"),  # no interval: never sure
        (2.1, 1.9, 2.3, "unlikely"),
        (2.1, None, None, "unlikely"),
        (3.0, 2.5, 3.5, "no"),
        (2.0, 2.0, 2.0, "yes"),  # the limit itself is allowed
        (None, None, None, "?"),
    ],
)
def test_the_interval_decides_how_sure_a_verdict_is(value, lo, hi, verdict) -> None:
    assert Check("bleu", 2.0, False, Estimate(value, lo, hi)).verdict == verdict


def test_surely_is_wrong_of_one_in_forty_at_the_limit_and_widened_of_few_in_all() -> None:
    """Of 20 points that lie exactly on the limit, judged by the mean of 200 normal numbers: each is
    called sure in 2.5 % of the draws, one of them in 1 - 0.975^20 = 40 %, widened in 2.5 %.
    """
    generator = np.random.Generator(np.random.PCG64(5))
    each, some, widened, draws, points = 0, 0, 0, 400, 20
    for _ in range(draws):
        values = generator.normal(0.0, 1.0, (points, 200))
        mean, half = values.mean(1), 1.96 * values.std(1) / 200**0.5
        found = [
            Check("ppl", 0.0, False, Estimate(float(m), float(m - h), float(m + h)))
            for m, h in zip(mean, half, strict=True)
        ]
        each += sum(check.verdict == "yes" for check in found)
        some += any(check.verdict == "yes" for check in found)
        widened += any(check.among(points) == "yes" for check in found)
    assert each / draws / points == pytest.approx(0.025, abs=0.006)
    assert some / draws == pytest.approx(0.40, abs=0.08)
    assert widened / draws < 0.06


def test_among_one_is_alone_and_exact_numbers_stay_sure() -> None:
    close = Check("ppl", 1.0, False, Estimate(0.9, 0.85, 0.95))
    assert close.among(1) == close.verdict == "yes"
    assert close.among(1000) == "likely"  # 4.06 / 1.96 of 0.05 above 0.9
    assert Check("file", 2.0, False, Estimate(2.0, 2.0, 2.0)).among(1000) == "yes"
    assert Check("file", 2.0, False, Estimate(None)).among(1000) == "?"


def test_the_articles_line_is_bleu_and_rouge_two_points_latency_and_memory_halved() -> None:
    row = said(
        [score("bleu/story", 80, 1.0), score("rougeL/story", 0.8, 0.015, 0.001), *sizes(4, 9)],
        [speed(2.5)],
    )
    assert row["text"] == "bleu yes, rougeL yes, latency yes, memory yes"
    assert row["passes"] is True
    assert row["sure"] is True


def test_rouge_is_kept_from_0_to_1_and_limited_in_points_of_a_hundred() -> None:
    row = said([score("rougeL/story", 0.8, 0.03, 0.001)])  # 3 points
    assert row["rougeL"] == "no"
    assert "3.000 [2.900, 3.100] lower, at most 2" in str(row["rougeL.reason"])


def test_of_several_tasks_the_worst_decides() -> None:
    row = said([score("bleu/a", 80, 0.1), score("bleu/b", 80, 5.0)])
    assert row["bleu"] == "no"
    assert str(row["bleu.reason"]).startswith("bleu/b:")


def test_what_was_not_measured_is_unknown_and_never_passes() -> None:
    row = said([records.ppl(2.7, 2.6, 2.8)])
    assert row["text"] == "bleu ?, rougeL ?, latency ?, memory ?"
    assert row["passes"] is None
    assert row["sure"] is False
    assert "no bleu was measured" in str(row["bleu.reason"])
    assert "not timed; probes=latency does" in str(row["latency.reason"])


def test_one_no_decides_though_others_are_unknown() -> None:
    row = said([score("bleu/a", 80, 9.0)])
    assert row["passes"] is False


def test_a_drop_of_a_score_that_full_precision_hardly_has_says_nothing() -> None:
    small = said([score("bleu/story", 4.0, 0.5)])
    assert small["bleu"] == "?"
    assert "full precision's own bleu/story is 4.0: 2 points are 50 % of it" in str(
        small["bleu.reason"]
    )
    assert said([score("bleu/story", 20.0, 0.5)])["bleu"] == "yes"  # 2 points are 10 % of it
    assert said([score("bleu/story", 4.0, 3.5)])["bleu"] == "no"  # a large loss is one anywhere


def test_memory_is_the_measured_peak_where_there_is_one() -> None:
    peak = Metric(
        "decode_peak_mib", 300.0, "MiB", "lower", "memory|engine:torch_int4|v1",
        delta=Delta("ratio", 0.6, 0.6, 0.6),
    )  # fmt: skip
    assert said(sizes(4, 9))["memory"] == "yes"
    measured = said(sizes(4, 9), [peak])
    assert measured["memory"] == "no"
    assert measured["memory.reason"] == "peak of decoding, × bf16: 0.600, at most 0.5"


def test_computed_memory_is_compared_with_the_model_in_16_bits() -> None:
    """Quality in float32: full precision holds 20 MiB, in 16 bits 10, and half of that is 5."""
    assert said(sizes(5.0, 9))["memory"] == "yes"
    assert said(sizes(5.1, 9))["memory"] == "no"


def test_a_time_of_another_machine_is_named() -> None:
    here = [records.record("rtn", 8, kind="timing", metrics=[speed(1.2)]) for _ in range(2)]
    for number, record in enumerate(here):
        record.point |= {"engine": "torch_int8", "threads": 2, "device": "laptop"}
        record.run_id = records.identifier(number)
    there = records.record("rtn", 4, kind="timing", metrics=[speed(2.5)])
    there.point |= {"engine": "torch_int4", "threads": 64, "device": "server"}
    made = frame([*here, there, records.record("rtn", 4, metrics=sizes(4, 9))])
    row = next(dict(r) for r in made.to_dict("records") if r["bits"] == 4)
    found = estimate.speedup({k: None if v != v else v for k, v in row.items()})
    assert found.value == 2.5
    assert found.of.endswith("× bf16 @ server, 64 threads")


@pytest.mark.parametrize("strict", [False, True])
def test_the_presets_differ_in_the_points_alone(strict: bool) -> None:
    line = PRESETS["articles-strict" if strict else "articles"]
    assert {most.value for most in line.drop.values()} == ({1.0} if strict else {2.0})
    assert (line.speedup, line.memory) == (2.0, Amount(0.5, relative=True))
    assert ARTICLES is PRESETS["articles"]


def test_full_precision_and_points_without_numbers_have_no_verdict() -> None:
    refused = records.record("rtn", 4, 48, status="refused", reason="does not divide")
    made = acceptance.of(frame([full_precision(*sizes(10, 20)), refused]))
    assert list(made["text"]) == ["", ""]
    assert list(made["passes"]) == [None, None]


def test_the_index_is_the_frames_and_nothing_of_the_frame_changes() -> None:
    made = frame(records.grid())
    before = made.copy()
    found = acceptance.of(made)
    assert list(found.index) == list(made.index)
    pd.testing.assert_frame_equal(made, before)


# ------------------------------------------------------------------------- what is kept, what lost

MEANING = {
    "ppl/t": {"unit": "", "better": "lower", "delta": "ratio"},
    "bleu/t": {"unit": "", "better": "higher", "delta": "difference"},
    "acc/t": {"unit": "", "better": "higher", "delta": "difference"},
    "top1/t": {"unit": "", "better": "higher", "delta": None},
    "kl_mean/t": {"unit": "nat", "better": "lower", "delta": None},
}


def test_a_perplexity_keeps_full_precisions_over_its_own() -> None:
    row = {"ppl/t": 6.0, "ppl/t.delta": 1.2, "ppl/t.delta.lo": 1.1, "ppl/t.delta.hi": 1.3}
    kept = estimate.kept(row, "ppl/t", MEANING, {})
    assert kept.value == pytest.approx(1 / 1.2)
    assert kept.bounds == pytest.approx((1 / 1.3, 1 / 1.1))


def test_a_score_keeps_its_own_over_full_precisions() -> None:
    row = {"bleu/t": 36.0, "bleu/t.delta": -4.0, "bleu/t.delta.lo": -6.0, "bleu/t.delta.hi": -2.0}
    kept = estimate.kept(row, "bleu/t", MEANING, {})  # of 40
    assert (kept.value, kept.bounds) == (0.9, (34 / 40, 38 / 40))


def test_agreement_is_its_own_share() -> None:
    row = {"top1/t": 0.93, "top1/t.lo": 0.92, "top1/t.hi": 0.94}
    kept = estimate.kept(row, "top1/t", MEANING, {})
    assert (kept.value, kept.bounds) == (0.93, (0.92, 0.94))
    assert estimate.drop(row, "top1/t", MEANING, {}).value == pytest.approx(7.0)


def test_losses_are_points_of_a_hundred_nats_or_per_cent() -> None:
    accuracy = {"acc/t": 0.70, "acc/t.delta": -0.1, "acc/t.delta.lo": -0.2, "acc/t.delta.hi": 0.05}
    lost = estimate.drop(accuracy, "acc/t", MEANING, {})
    assert lost.value == pytest.approx(10.0)
    assert lost.bounds == pytest.approx((-5.0, 20.0))
    ratio = {"ppl/t": 6.0, "ppl/t.delta": 1.2, "ppl/t.delta.lo": 1.1, "ppl/t.delta.hi": 1.3}
    assert estimate.drop(ratio, "ppl/t", MEANING, {}, True).value == pytest.approx(20.0)
    assert estimate.drop(ratio, "ppl/t", MEANING, {}).value == pytest.approx(1.0)  # 6 - 5
    distance = {"kl_mean/t": 0.03, "kl_mean/t.lo": 0.02, "kl_mean/t.hi": 0.04}
    assert estimate.drop(distance, "kl_mean/t", MEANING, {}).bounds == (0.02, 0.04)


def test_a_share_of_nothing_is_not_known() -> None:
    row = {"acc/t": 0.1, "acc/t.delta": 0.1, "acc/t.delta.lo": 0.0, "acc/t.delta.hi": 0.2}
    kept = estimate.kept(row, "acc/t", MEANING, {})
    assert kept.value is None
    assert "of full precision is 0" in kept.reason


def test_a_reason_in_the_record_is_the_reason_that_is_given() -> None:
    row = {"decode_vs_bf16": None, "decode_vs_bf16.reason": "no packed kernel"}
    assert estimate.speedup(row).reason == "no packed kernel"


def test_how_far_beyond_is_a_share_of_the_limit() -> None:
    assert Check("file", 2.0, False, Estimate(3.0)).beyond == 0.5
    assert Check("latency", 2.0, True, Estimate(1.5)).beyond == 0.25
    assert Check("latency", 2.0, True, Estimate(2.5)).beyond == 0.0
    assert math.isinf(Check("latency", 2.0, True, Estimate(None)).beyond)


def test_an_empty_line_is_passed_by_all() -> None:
    made = acceptance.of(frame(records.grid()), Acceptance())
    assert made["passes"].dropna().all()


@pytest.mark.parametrize(("dtype", "share"), [("float32", 5 / 8), ("bfloat16", 5 / 16)])
def test_a_share_of_memory_is_of_16_bits_whatever_the_compute_dtype(dtype, share) -> None:
    """Of a model that full precision holds in 16 MiB: in float32 that is 8 MiB in 16 bits."""
    row = {"file_mib": 5.0, "resident_mib": 8.0, "resident_mib.delta": 0.5, "dtype": dtype}
    assert estimate.memory(row).value == share
    assert estimate.memory(row, relative=False).value == 5.0


def test_what_is_kept_of_agreement_is_of_its_own_best() -> None:
    meaning = {
        name: {"unit": "", "better": "higher", "delta": None} for name in ("bleu_fp/t", "top1/t")
    }
    row = {"bleu_fp/t": 80.0, "top1/t": 0.9}
    assert estimate.kept(row, "bleu_fp/t", meaning, {}).value == 0.8
    assert estimate.kept(row, "top1/t", meaning, {}).value == 0.9


def test_of_several_other_machines_the_best_speed_is_named() -> None:
    row = {"decode_vs_bf16": None, "engine @ a, 1 threads": "e", "engine @ b, 2 threads": "e"}
    row |= {"decode_vs_bf16 @ a, 1 threads": 1.2, "decode_vs_bf16 @ b, 2 threads": 2.4}
    found = estimate.speedup(row)
    assert found.value == 2.4
    assert found.of.endswith(" @ b, 2 threads")


def test_an_interval_of_24_is_as_much_wider_as_its_docstring_says() -> None:
    assert acceptance.widening(1) == 1.0
    assert round(acceptance.widening(24), 2) == 1.57


@pytest.mark.parametrize(("full", "verdict"), [(19.0, "?"), (21.0, "yes")])
def test_a_loss_of_2_points_says_nothing_below_ten_times_that(full: float, verdict: str) -> None:
    """Of a BLEU of 20: within 2 points lies a tenth of it."""
    rows = [
        records.record("full_precision", None, None, None, metrics=[score("bleu/t", full, 0, 0)]),
        records.record("rtn", 4, metrics=[score("bleu/t", full, 0.5)]),
    ]
    found = acceptance.of(frame(rows), Acceptance(drop={"bleu": Amount(2.0)}))
    assert found["bleu"].tolist()[1] == verdict
