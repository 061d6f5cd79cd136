"""Which points to take: those within all limits of a line, in order of what is to be best.

Sizes are exact; of two points whose sizes differ by less than 1 % neither is smaller. Qualities and
speeds are compared as the front does (``report/front.py``): a point whose interval reaches that of
the best is tied with it, and of tied points the smaller is preferred, then the faster.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

from bitsweep.report import acceptance, estimate, labels
from bitsweep.report.acceptance import PASSING, Acceptance, Amount, Case, Check
from bitsweep.report.estimate import Estimate, Row
from bitsweep.report.frame import is_reference
from bitsweep.report.seeds import SEEDS

Best = Literal["size", "quality", "speed", "memory"]
BESTS: tuple[Best, ...] = ("size", "quality", "speed", "memory")
ALIKE = 0.01
"""Sizes that differ by less than this share are taken as equal."""

DEFAULT_KEEP = 0.99
TIMED = ("engine", "device", "threads", "decode", "prefill", "cache_mib")


@dataclass(frozen=True)
class Question:
    """What is asked. ``metric``: what quality is ranked by, a metric or kind of metric (``""``: the
    model's own perplexity); ``best``: None leaves it to :func:`objective`; ``sure``: only points
    whose whole intervals are within every limit; ``where``: column -> the values that it may have.
    """

    line: Acceptance = field(default_factory=Acceptance)
    metric: str = ""
    best: Best | None = None
    where: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    top: int = 3
    sure: bool = False


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


@dataclass(frozen=True)
class Relaxed:
    """One limit that, moved to ``value``, would let ``by`` pass, which keeps all the others."""

    check: Check
    by: Candidate


@dataclass(frozen=True)
class Answer:
    """What is to be said of one model. ``passing`` is ranked; its first ``tied`` are alike in what
    is to be best. ``left_out`` and ``unmeasured``: criterion -> points that fail it, or that have
    no number for it; ``near`` holds points that fail, the nearest first, where none passes.
    """

    model: str
    case: Case
    line: Acceptance
    best: Best
    considered: int
    aside: Mapping[str, int]
    passing: tuple[Candidate, ...]
    tied: int
    left_out: Mapping[str, int]
    unmeasured: Mapping[str, tuple[int, str]]
    near: tuple[Candidate, ...] = ()
    relaxed: tuple[Relaxed, ...] = ()


def answers(frame: pd.DataFrame, question: Question) -> list[Answer]:
    """One Answer for each model that has a point left after ``question.where``."""
    known = acceptance.cases(frame)
    rows = _rows(frame, question)
    axes = _axes(frame)
    names = labels.varying(acceptance.bare(frame, ("method", *axes, "point_id", *labels.HARDWARE)))
    found = []
    for model in dict.fromkeys(str(row["model"]) for row in rows):
        own = [row for row in rows if str(row["model"]) == model]
        found.append(_answer(model, own, known[model], question, axes, names))
    return found


def objective(line: Acceptance, case: Case) -> Best:
    """What is best where it is not said: the smallest file under a limit on quality, else the best
    quality, else (nothing was measured of it) the fastest.
    """
    if line.keep or line.drop:
        return "size"
    return "quality" if case.primary else "speed"


def _answer(
    model: str,
    rows: Sequence[Row],
    case: Case,
    question: Question,
    axes: Sequence[str],
    names: Sequence[str],
) -> Answer:
    line = question.line
    if line == Acceptance() and case.primary:
        line = Acceptance(keep={"": DEFAULT_KEEP})
    best = question.best or objective(line, case)
    aside = Counter(_aside(row) for row in rows)
    candidates = [
        _candidate(row, line, case, question.metric, names) for row in rows if not _aside(row)
    ]
    candidates = _with_seeds(candidates, axes)
    good = ("yes",) if question.sure else PASSING
    passing = [c for c in candidates if c.verdict in good]
    ranked, tied = rank(passing, best)
    near, relaxed = ([], []) if passing else _nearest(candidates, good)
    left_out: Counter[str] = Counter()
    unmeasured: dict[str, tuple[int, str]] = {}
    for candidate in candidates:
        for name, own in acceptance.by_name(candidate.checks).items():
            verdict = acceptance.worst(own)
            if verdict == "?":
                count, why = unmeasured.get(name, (0, ""))
                unmeasured[name] = (
                    count + 1,
                    why or next(c.found.reason for c in own if c.verdict == "?"),
                )
            elif verdict not in good:
                left_out[name] += 1
    return Answer(
        model,
        case,
        line,
        best,
        len(candidates),
        {name: count for name, count in aside.items() if name},
        tuple(ranked),
        tied,
        dict(left_out.most_common()),
        unmeasured,
        tuple(near[: question.top]),
        tuple(relaxed),
    )


def rank(candidates: Sequence[Candidate], best: Best) -> tuple[list[Candidate], int]:
    """In order of what is to be best, and how many are tied with the first (itself included)."""
    value, alike, then = _RULES[best]
    left = sorted(candidates, key=lambda c: (value(c), *then(c), str(c.row["run_id"])))
    ranked: list[Candidate] = []
    tied = 0
    while left:
        group = [c for c in left if c is left[0] or alike(c, left[0])]
        group.sort(key=lambda c: (*then(c), value(c), str(c.row["run_id"])))
        tied = tied or len(group)
        ranked += group
        left = [c for c in left if not any(c is taken for taken in group)]
    return ranked, tied


def _least(found: Estimate) -> float:
    return float("inf") if found.value is None else found.value


def _most(found: Estimate) -> float:
    return float("inf") if found.value is None else -found.value


def _reaches(own: Estimate, best: Estimate) -> bool:
    """Whether the interval of ``own`` reaches that of ``best``, more being better."""
    if own.bounds is None or best.bounds is None:
        return own.value is not None and own.value == best.value
    return own.bounds[1] >= best.bounds[0]


def _close(own: Estimate, best: Estimate) -> bool:
    if own.value is None or best.value is None:
        return own.value is best.value
    return own.value <= best.value * (1 + ALIKE)


_Keys = Callable[[Candidate], tuple[float, ...]]
_RULES: dict[
    Best, tuple[Callable[[Candidate], float], Callable[[Candidate, Candidate], bool], _Keys]
] = {
    "size": (
        lambda c: _least(c.size),
        lambda c, best: _close(c.size, best.size),
        lambda c: (_most(c.quality), _most(c.speed)),
    ),
    "quality": (
        lambda c: _most(c.quality),
        lambda c, best: _reaches(c.quality, best.quality),
        lambda c: (_least(c.size), _most(c.speed)),
    ),
    "speed": (
        lambda c: _most(c.speed),
        lambda c, best: _reaches(c.speed, best.speed),
        lambda c: (_least(c.size), _most(c.quality)),
    ),
    "memory": (
        lambda c: _least(c.memory),
        lambda c, best: _close(c.memory, best.memory),
        lambda c: (_most(c.quality), _most(c.speed)),
    ),
}


def _nearest(
    candidates: Sequence[Candidate], good: Sequence[str]
) -> tuple[list[Candidate], list[Relaxed]]:
    """Points that have all numbers, by how many limits they break and how far; and each limit that
    alone keeps points out, with the point that asks least of it.
    """

    def broken(candidate: Candidate) -> list[Check]:
        return [c for c in candidate.checks if c.verdict not in good]

    whole = [c for c in candidates if all(check.verdict != "?" for check in c.checks)]
    near = sorted(
        whole,
        key=lambda c: (
            len({check.name for check in broken(c)}),
            sum(check.beyond for check in broken(c)),
            str(c.row["run_id"]),
        ),
    )
    relaxed: dict[str, Relaxed] = {}
    for candidate in whole:
        off = broken(candidate)
        if len({check.name for check in off}) != 1:
            continue
        check = max(off, key=lambda c: c.beyond)
        known = relaxed.get(check.name)
        if known is None or check.beyond < known.check.beyond:
            relaxed[check.name] = Relaxed(check, candidate)
    return near, sorted(relaxed.values(), key=lambda r: r.check.beyond)


def _candidate(
    row: Row, line: Acceptance, case: Case, metric: str, names: Sequence[str]
) -> Candidate:
    kept = [estimate.kept(row, name, case.meaning, case.full) for name in case.named(metric)]
    known = [found for found in kept if found.value is not None]
    quality = min(known, key=_least, default=Estimate(None, of="quality", reason="not measured"))
    if len(known) < len(kept):  # the worst of its tasks is what counts, and one has no number
        quality = next(found for found in kept if found.value is None)
    words = (labels.method(row, names), labels.weights(row), labels.policy(row))
    return Candidate(
        row,
        " ".join(word for word in words if word),
        tuple(acceptance.checks(row, line, case)),
        quality,
        estimate.file(row),
        estimate.speedup(row),
        estimate.memory(row, relative=False),
    )


def _with_seeds(candidates: Sequence[Candidate], axes: Sequence[str]) -> list[Candidate]:
    """With the qualities of the points that differ in nothing but seeds, where there are such."""
    keys = [axis for axis in axes if axis not in (*SEEDS, "label")]
    alike: dict[tuple[str, ...], list[Candidate]] = {}
    for candidate in candidates:
        key = tuple(str(candidate.row.get(axis)) for axis in keys)
        alike.setdefault(key, []).append(candidate)
    found = []
    for candidate in candidates:
        own = alike[tuple(str(candidate.row.get(axis)) for axis in keys)]
        values = sorted(c.quality.value for c in own if c.quality.value is not None)
        made = dict(vars(candidate)) | {"seeds": tuple(values) if len(own) > 1 else ()}
        found.append(Candidate(**made))
    return found


def _aside(row: Row) -> str:
    """Why a row is no candidate; empty for one that is."""
    if row["status"] != "ok":
        return str(row["status"])
    if is_reference(row):
        return "full precision"
    return "one part alone" if row.get("only") is not None else ""


def _axes(frame: pd.DataFrame) -> list[str]:
    names = [str(name) for name in frame.columns]
    return names[names.index("model") : names.index("point_id")]


def _rows(frame: pd.DataFrame, question: Question) -> list[dict[str, Any]]:
    """The rows that ``where`` leaves, one a point though several experiments have it."""
    line = question.line
    looked = Acceptance(
        drop=line.drop, keep={**line.keep, question.metric: 0.0}, speedup=0.0,
        memory=Amount(0.0), file=Amount(0.0),
    )  # fmt: skip
    more = ("experiment", "reason", "point_id", "run_id", "plan", "misfits", "dirty", "device")
    wanted = acceptance.needed(frame, looked, (*_axes(frame), *more, *TIMED))
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in sorted(labels.rows(wanted), key=lambda r: r["status"] != "ok"):
        if not all(str(row.get(k)) in values for k, values in question.where.items()):
            continue
        key = (str(row["model"]), str(row["point_id"]))
        found[key] = _merged(found[key], row) if key in found else row
    return list(found.values())


def _merged(first: dict[str, Any], other: Row) -> dict[str, Any]:
    """Two rows of one point: what the first has not measured, and the faster of two timings."""
    speeds = [_least(estimate.speedup(row)) for row in (first, other)]
    known = [-1.0 if speed == float("inf") else speed for speed in speeds]
    timed = {name: value for name, value in other.items() if name.startswith(TIMED)}
    rest = {name: value for name, value in other.items() if name not in timed}
    made = {**rest, **{name: value for name, value in first.items() if value is not None}}
    return {**made, **timed} if known[1] > known[0] else {**timed, **made}
