"""The order of points by what is to be best, and which of them are tied in it.

Sizes are exact; of two points whose sizes differ by less than 1 % neither is smaller. Qualities and
speeds are compared as the front does (``report/front.py``): a point whose interval reaches that of
the best is tied with it. Of tied points the next criterion decides: the smaller, then the faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bitsweep.report import acceptance
from bitsweep.report.acceptance import Check
from bitsweep.report.estimate import Estimate, Row

Best = Literal["size", "quality", "speed", "memory"]
ORDER: dict[Best, tuple[Best, ...]] = {
    "size": ("size", "quality", "speed"),
    "quality": ("quality", "size", "speed"),
    "speed": ("speed", "size", "quality"),
    "memory": ("memory", "quality", "speed"),
}
"""What is to be best -> it, and what decides between points that are tied in it."""

MORE = ("quality", "speed")
"""Of which more is better, and which have noise."""

ALIKE = 0.01
"""Sizes that differ by less than this share are taken as equal."""


@dataclass(frozen=True)
class Candidate:
    """One point: its checks against the line, and the numbers that points are ranked by."""

    row: Row
    name: str
    checks: tuple[Check, ...]
    quality: Estimate
    size: Estimate
    speed: Estimate
    memory: Estimate
    seeds: tuple[float, ...] = ()

    @property
    def verdict(self) -> acceptance.Verdict:
        return acceptance.worst(self.checks)

    def sure_among(self, count: int) -> bool:
        """Whether it passes surely where that is to hold of ``count`` points at once."""
        return all(check.among(count) == "yes" for check in self.checks)

    def number(self, criterion: Best) -> Estimate:
        found: Estimate = getattr(self, criterion)
        return found


def rank(candidates: Sequence[Candidate], best: Best) -> tuple[list[Candidate], int]:
    """In order of what is to be best, and how many are tied with the first (itself included)."""
    order = ORDER[best]
    groups = _groups(candidates, order, (*order[1:], order[0]))
    return [c for group in groups for c in group], len(groups[0]) if groups else 0


def _groups(
    candidates: Sequence[Candidate], order: Sequence[Best], last: Sequence[Best]
) -> list[list[Candidate]]:
    """What is tied with the best by the first of ``order``, then what is tied with the best of the
    rest, and so on; each group in the order of the criteria that follow, and what is tied in them
    all by its numbers alone, in the order of ``last``.
    """
    keys = (*order[:1], *last)
    left = sorted(candidates, key=lambda c: (*_keys(c, keys), str(c.row["run_id"])))
    found = []
    while left:
        first = left[0]
        group = [c for c in left if c is first or _alike(c, first, order[0])]
        taken = {id(c) for c in group}
        left = [c for c in left if id(c) not in taken]
        if len(order) > 1:
            group = [c for part in _groups(group, order[1:], last) for c in part]
        found.append(group)
    return found


def _keys(candidate: Candidate, order: Sequence[Best]) -> tuple[float, ...]:
    """Smaller is better; what has no number comes last."""
    values = ((name, candidate.number(name).value) for name in order)
    return tuple(
        float("inf") if value is None else -value if name in MORE else value
        for name, value in values
    )


def _alike(own: Candidate, best: Candidate, criterion: Best) -> bool:
    """Whether ``own``, which is no better than ``best``, is tied with it."""
    a, b = own.number(criterion), best.number(criterion)
    if a.value is None or b.value is None:
        return a.value is b.value
    if criterion not in MORE:
        return a.value <= b.value * (1 + ALIKE)
    if a.bounds is None or b.bounds is None:
        return a.value == b.value
    return a.bounds[1] >= b.bounds[0]
