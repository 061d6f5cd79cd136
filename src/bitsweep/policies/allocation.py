"""Exact allocation of bits: the least loss for so many stored bits, as an integer program.

Each unit (a layer) takes one of its options; option k of unit i stores ``costs[i][k]`` bits and
adds ``scores[i][k]`` to the loss. The sum of scores, which supposes that the units' losses add up,
is minimised under the budget: a multiple-choice knapsack, solved by branch and bound (HiGHS,
``scipy.optimize.milp``), as in HAWQ-V3 (Yao et al. 2021, arXiv 2011.10680, section 3.3).
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise

import numpy as np

RANGE = 1e6
"""Scores are scaled to this before they are solved: HiGHS stops at an absolute gap of 1e-6."""


def allocate(
    costs: Sequence[Sequence[int]], scores: Sequence[Sequence[float]], budget: int
) -> list[int] | None:
    """The option of each unit, exact; None where even the cheapest ones are over the budget.

    ``costs`` are whole bits, so the budget is kept exactly, not up to a solver's tolerance.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    if sum(map(min, costs)) > budget:
        return None
    unit = math.gcd(*(cost for options in costs for cost in options))
    widths = [len(options) for options in costs]
    starts = [0, *accumulate(widths)]
    flat = np.array([cost // unit for options in costs for cost in options], dtype=float)
    loss = np.array([score for options in scores for score in options], dtype=float)
    loss *= RANGE / (float(np.abs(loss).max()) or 1.0)
    owner = np.repeat(np.arange(len(costs)), widths)
    one_each = csr_array((np.ones(len(flat)), (owner, np.arange(len(flat)))))
    room = budget // unit
    while True:
        with _quiet():
            solved = milp(
                loss,
                integrality=np.ones_like(flat),
                bounds=Bounds(0, 1),
                constraints=[
                    LinearConstraint(one_each, 1, 1),
                    LinearConstraint(flat.reshape(1, -1), -np.inf, room),
                ],
                options={"mip_rel_gap": 0.0},
            )
        if solved.x is None:
            raise RuntimeError(f"the allocation of {len(costs)} units failed: {solved.message}")
        chosen = [int(np.argmax(solved.x[a:b])) for a, b in pairwise(starts)]
        spent = sum(options[k] for options, k in zip(costs, chosen, strict=True))
        if spent <= budget:
            return chosen
        room -= spent // unit - budget // unit  # within the solver's tolerance, and yet too much


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop what HiGHS 1.12 prints now and then below Python: the name of one of its functions."""
    sys.stdout.flush()
    kept, nothing = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nothing)
