"""The points of an Answer in columns: what the limits and the order look at."""

from __future__ import annotations

from collections.abc import Sequence

from bitsweep.report import acceptance, estimate
from bitsweep.report.acceptance import Check
from bitsweep.report.estimate import Estimate
from bitsweep.report.recommend.answer import Answer
from bitsweep.report.recommend.ranking import Candidate
from bitsweep.report.tables import number

SURE = {"yes": "surely", "likely": "within noise", "unlikely": "no, within noise", "no": "no"}
LEFT = ("point", "passes")
"""Columns of words; numbers stand to the right."""


def lines(answer: Answer, shown: Sequence[Candidate]) -> list[str]:
    """Head and a line for each of ``shown``, never broken: names are what points are told by."""
    marks = [str(place) if answer.passing else "-" for place, _ in enumerate(shown, 1)]
    parts = [("", marks), ("point", [c.name for c in shown]), *columns(answer, shown)]
    padded = []
    for head, cells in parts:
        width = max(map(len, (head, *cells)))
        pad = str.ljust if head in LEFT else str.rjust
        padded.append([pad(text, width) for text in (head, *cells)])
    return ["  ".join(cells).rstrip() for cells in zip(*padded, strict=True)]


def columns(answer: Answer, shown: Sequence[Candidate]) -> list[tuple[str, list[str]]]:
    """Head and cells of the numbers, one column each; what nobody has is left out."""
    made = [
        ("MiB", [number(c.size.value) for c in shown]),
        ("× full", [number(c.row.get("file_mib.delta"), 3) for c in shown]),
        ("kept [95 %]", [cell(c.quality) for c in shown]),
    ]
    if any(c.speed.value is not None for c in shown):
        made.append(("decode × bf16", [_time(c) for c in shown]))
    names = acceptance.by_name(shown[0].checks)
    for name in names:
        if name not in ("file", "latency") and not name.startswith("keep"):
            found = [deciding(c, name).found for c in shown]
            verb = "higher" if estimate.rises(name) else "lower"
            title = name if name == "memory" else f"{name} {verb} by"
            made.append((title, [_alone(estimate) for estimate in found]))
    if answer.best == "memory" and "memory" not in names:
        made.append(("memory MiB", [_alone(c.memory) for c in shown]))
    if names:
        made.append(("passes", [_passes(c) for c in shown]))
    return [(head, cells) for head, cells in made if any(cells)]


def cell(found: Estimate, digits: int = 3) -> str:
    return "" if found.value is None else acceptance.interval(found, digits)


def deciding(candidate: Candidate, name: str) -> Check:
    """Of the checks called ``name`` the one that decides against most."""
    own = [check for check in candidate.checks if check.name == name]
    return min(own, key=lambda c: (acceptance.VERDICTS.index(c.verdict), -c.beyond, c.room))


def _alone(found: Estimate) -> str:
    """The number without its interval, in the digits that it would have with it."""
    return cell(found).partition(" [")[0] or "?"


def _time(candidate: Candidate) -> str:
    """With a word where it is not of the machine that timed most points."""
    elsewhere = " elsewhere" if estimate.ELSEWHERE in candidate.speed.of else ""
    return f"{cell(candidate.speed, 2) or 'no time'}{elsewhere}"


def _passes(candidate: Candidate) -> str:
    if candidate.verdict in acceptance.PASSING:
        return SURE[candidate.verdict]
    return acceptance.text([c for c in candidate.checks if c.verdict not in acceptance.PASSING])
