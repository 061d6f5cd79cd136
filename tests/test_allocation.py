"""The allocation is the best there is, and never over the budget."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest

from bitsweep.policies.allocation import allocate


def instance(seed: int, units: int, options: int) -> tuple[list[list[int]], list[list[float]]]:
    """Random layers: wider options cost more and hurt less, but for noise that breaks the order."""
    draw = random.Random(seed)
    costs, scores = [], []
    for _ in range(units):
        weights = draw.choice([4096, 8192, 11008])
        costs.append([weights * bits + 16 * draw.randint(1, 64) for bits in range(2, 2 + options)])
        base = draw.lognormvariate(-6, 3)  # some layers hurt a million times more than others
        scores.append([base * 4**-k + draw.gauss(0, base / 50) for k in range(options)])
    return costs, scores


def total(rows: Sequence[Sequence[float]], chosen: Sequence[int]) -> float:
    return sum(row[k] for row, k in zip(rows, chosen, strict=True))


def brute_force(costs: list[list[int]], scores: list[list[float]], budget: int) -> float:
    every = itertools.product(*(range(len(options)) for options in costs))
    sums = ((total(scores, pick), total(costs, pick)) for pick in every)
    return min(loss for loss, cost in sums if cost <= budget)


@pytest.mark.parametrize("seed", range(12))
def test_it_equals_brute_force(seed: int) -> None:
    costs, scores = instance(seed, units=6, options=4)
    least, most = sum(map(min, costs)), sum(map(max, costs))
    for share in (0.0, 0.1, 0.35, 0.5, 0.9, 1.0):
        budget = int(least + share * (most - least))
        chosen = allocate(costs, scores, budget)
        assert chosen is not None
        spent = total(costs, chosen)
        loss = total(scores, chosen)
        best = brute_force(costs, scores, budget)
        assert spent <= budget
        assert loss == pytest.approx(best, rel=1e-9, abs=1e-12)


def test_a_budget_is_never_exceeded_by_a_bit() -> None:
    costs, scores = instance(99, units=40, options=4)
    least, most = sum(map(min, costs)), sum(map(max, costs))
    for budget in range(least, most, (most - least) // 40):
        chosen = allocate(costs, scores, budget)
        assert chosen is not None
        assert total(costs, chosen) <= budget


def test_more_room_never_hurts() -> None:
    costs, scores = instance(5, units=20, options=4)
    least, most = sum(map(min, costs)), sum(map(max, costs))
    losses = []
    for budget in range(least, most, (most - least) // 15):
        chosen = allocate(costs, scores, budget)
        assert chosen is not None
        losses.append(total(scores, chosen))
    assert losses == sorted(losses, reverse=True)


def test_less_than_the_least_has_no_answer() -> None:
    assert allocate([[8, 16], [8, 16]], [[1.0, 0.0], [1.0, 0.0]], 15) is None
    assert allocate([[8, 16], [8, 16]], [[1.0, 0.0], [1.0, 0.0]], 16) == [0, 0]


def test_scores_of_nothing_are_no_mistake() -> None:
    assert allocate([[8, 16]], [[0.0, 0.0]], 8) == [0]
