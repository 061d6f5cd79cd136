"""The front: nothing better in both; tied: dominated, but only within noise."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pandas as pd
import pytest
import records

from bitsweep.record import Delta, Metric
from bitsweep.report.frame import frame
from bitsweep.report.front import front

HALF = Delta("ratio", 0.5, 0.5, 0.5)


def marks(*points: tuple[float, Metric | None], x: str = "file_mib") -> list[str]:
    """The marks of points given as (cost, perplexity)."""
    rows = []
    for seed, (cost, ppl) in enumerate(points):
        better = "higher" if x.endswith("vs_bf16") else "lower"
        metrics = [records.number(x, cost, better=better), *([ppl] if ppl else [])]
        rows.append(records.record("rtn", 4, seed=seed, metrics=metrics))
    table = frame(rows)
    found = front(table, x, "ppl/in_domain")
    return [found[table["seed"] == seed].iloc[0] for seed in range(len(points))]


def test_a_point_that_is_worse_in_both_is_dominated():
    assert marks((1.0, records.ppl(3)), (2.0, records.ppl(2.7)), (2.5, records.ppl(2.9))) == [
        "front",
        "front",
        "dominated",
    ]


def test_a_single_point_is_the_front():
    assert marks((1.0, records.ppl(3))) == ["front"]


def test_equal_points_are_both_on_the_front():
    assert marks((1.0, records.ppl(3)), (1.0, records.ppl(3))) == ["front", "front"]


def test_a_dominated_point_whose_interval_reaches_the_front_is_tied():
    best, near, far = records.ppl(2.70, 2.68, 2.72), records.ppl(2.73, 2.71, 2.75), 2.80
    points = ((1.0, best), (1.0, near), (1.0, records.ppl(far, 2.78, 2.82)))
    assert marks(*points) == ["front", "tied", "dominated"]


def test_within_noise_of_one_dominator_but_clearly_behind_another_is_not_tied():
    points = (
        (1.0, records.ppl(2.72, 2.70, 2.74)),
        (1.5, records.ppl(2.60, 2.59, 2.61)),
        (2.0, records.ppl(2.73, 2.71, 2.75)),
    )
    assert marks(*points) == ["front", "front", "dominated"]


def test_without_an_interval_nothing_is_tied():
    assert marks((1.0, records.ppl(2.70)), (1.0, records.ppl(2.7000001))) == ["front", "dominated"]


def test_a_point_without_a_number_takes_no_part():
    assert marks((1.0, None), (2.0, records.ppl(3))) == ["", "front"]


def test_speed_is_better_when_higher():
    points = ((2.0, records.ppl(3)), (1.0, records.ppl(3)), (1.0, records.ppl(2.7)))
    assert marks(*points, x="decode_vs_bf16") == ["front", "dominated", "front"]


def speeds(*points: tuple[float, float, float, Metric]) -> list[str]:
    """The marks of points given as (speed, lo, hi, perplexity)."""
    rows = [
        records.record(
            "rtn",
            4,
            seed=seed,
            metrics=[replace(records.number("decode_vs_bf16", speed), lo=lo, hi=hi), ppl],
        )
        for seed, (speed, lo, hi, ppl) in enumerate(points)
    ]
    table = frame(rows)
    found = front(table, "decode_vs_bf16", "ppl/in_domain")
    return [found[table["seed"] == seed].iloc[0] for seed in range(len(points))]


def test_a_speed_that_may_be_a_third_leaves_the_others_tied():
    best, worse = records.ppl(2.60, 2.59, 2.61), records.ppl(2.80, 2.79, 2.81)
    assert speeds((3.19, 0.46, 3.36, best), (2.0, 1.95, 2.05, worse)) == ["front", "tied"]
    assert speeds((3.19, 3.10, 3.36, best), (2.0, 1.95, 2.05, worse)) == ["front", "dominated"]


def test_equal_sizes_are_no_tie_where_the_quality_is_surely_worse():
    rows = []
    for seed, ppl in enumerate((records.ppl(2.6, 2.59, 2.61), records.ppl(2.8, 2.79, 2.81))):
        size = replace(records.number("file_mib", 3.0, better="lower"), delta=HALF)
        rows.append(records.record("rtn", 4, seed=seed, metrics=[size, ppl]))
    assert sorted(front(frame(rows), "file_mib", "ppl/in_domain")) == ["dominated", "front"]


def test_full_precision_is_what_the_others_are_compared_with():
    table = frame(records.grid())
    found = front(table, "file_mib", "ppl/in_domain")
    assert found[table["method"] == "full_precision"].tolist() == ["reference"]
    assert set(found[table["status"] != "ok"]) == {""}


def test_each_model_has_a_front_of_its_own():
    small = records.record("rtn", 4, metrics=[records.number("file_mib", 1.0), records.ppl(9)])
    large = records.record("rtn", 3, metrics=[records.number("file_mib", 9.0), records.ppl(10)])
    large.point["model"] = "large"
    assert set(front(frame([small, large]), "file_mib", "ppl/in_domain")) == {"front"}


def test_a_metric_that_nobody_has_marks_nothing():
    table = frame([records.record(metrics=[records.ppl(3)])])
    assert front(table, "file_mib", "ppl/in_domain").equals(pd.Series([""], dtype=object))


def by_definition(points: list[tuple[float | None, ...]]) -> list[str]:
    """Marks of (cost, perplexity, lo, hi of the perplexity, lo, hi of the cost), both to be
    minimised, by comparing all with all.
    """

    def dominates(one: int, other: int) -> bool:
        (x, y, *_), (u, v, *_) = points[one], points[other]
        return x <= u and y <= v and (x < u or y < v)  # type: ignore[operator]

    able = [i for i, (x, y, *_) in enumerate(points) if x is not None and y is not None]
    best = [i for i in able if not any(dominates(j, i) for j in able)]
    found = []
    for i in range(len(points)):
        above = [j for j in best if i in able and dominates(j, i)]
        tied = all(
            points[i][2] <= points[j][3] or points[i][4] <= points[j][5]  # type: ignore[operator]
            for j in above
        )
        found.append("front" if i in best else "" if i not in able else
                     "tied" if tied else "dominated")  # fmt: skip
    return found


@pytest.mark.parametrize("seed", range(12))
def test_the_front_is_what_comparing_all_with_all_gives(seed: int) -> None:
    draw = random.Random(seed)
    steps = (3, 10, 10**6)[seed % 3]  # few values: many points are equal in one or both
    points = []
    for _ in range(draw.choice((1, 2, 40, 150))):
        x, y = (draw.randrange(steps) / steps for _ in range(2))
        half, wide = (draw.choice((0.0, 0.05, 0.3, math.nan)) for _ in range(2))
        values = (v if draw.random() < 0.9 else None for v in (x, y))
        points.append((*values, y - half, y + half, x - wide, x + wide))
    names = ["decode_ms", "ppl", "ppl.delta.lo", "ppl.delta.hi", "decode_ms.lo", "decode_ms.hi"]
    table = pd.DataFrame(points, columns=names, dtype=float)
    table = table.assign(model="m", status="ok", method="rtn")
    meaning = {"decode_ms": {"better": "lower"}, "ppl": {"better": "lower"}}
    table.attrs["metrics"] = meaning
    assert list(front(table, "decode_ms", "ppl")) == by_definition(points)
    lo, hi = -table["decode_ms.hi"], -table["decode_ms.lo"]
    turned = table.assign(decode_ms=-table["decode_ms"])
    turned["decode_ms.lo"], turned["decode_ms.hi"] = lo, hi
    turned.attrs["metrics"] = meaning | {"decode_ms": {"better": "higher"}}
    assert list(front(turned, "decode_ms", "ppl")) == by_definition(points)


def test_a_point_that_another_model_would_beat_is_on_the_front_of_its_own():
    found = []
    for model, bits, size, value in (("small", 4, 1.0, 9), ("large", 8, 9.0, 10)):
        file = records.number("file_mib", size, "MiB", "lower")
        found.append(records.record("rtn", bits, model=model, metrics=[file, records.ppl(value)]))
    assert set(front(frame(found), "file_mib", "ppl/in_domain")) == {"front"}
    found[1].point["model"], found[1].model["sha256"] = "small", found[0].model["sha256"]
    assert set(front(frame(found), "file_mib", "ppl/in_domain")) == {"front", "dominated"}
