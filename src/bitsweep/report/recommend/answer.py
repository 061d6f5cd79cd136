"""Which points to take: those within all limits of a line, in order of what is to be best.

The order, and what is tied in it, is ``ranking``'s.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from bitsweep.report import acceptance, estimate, labels
from bitsweep.report.acceptance import PASSING, Acceptance, Amount, Case, Check
from bitsweep.report.estimate import Estimate, Row
from bitsweep.report.frame import is_reference
from bitsweep.report.recommend.ranking import Best, Candidate, rank
from bitsweep.report.seeds import SEEDS

DEFAULT_KEEP = 0.99
TIMED = ("engine", "device", "threads", "decode", "prefill", "cache_mib")


@dataclass(frozen=True)
class Question:
    """What is asked.

    - ``metrics``: what quality is ranked by, metrics or kinds of them (``""``: the model's own
      perplexity); of several the one of which least is kept;
    - ``best``: None leaves it to :func:`objective`;
    - ``where``: column -> the values that it may have;
    - ``sure``: only points whose whole intervals are within every limit.
    """

    line: Acceptance = field(default_factory=Acceptance)
    metrics: tuple[str, ...] = ("",)
    best: Best | None = None
    where: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    top: int = 3
    sure: bool = False


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

    @property
    def fast(self) -> bool:
        """Whether speed was asked for."""
        return self.line.speedup is not None or self.best == "speed"


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


def objective(line: Acceptance, candidates: Sequence[Candidate], asked: Best | None = None) -> Best:
    """What ranks the points: what was asked, if any has such a number. Else the smallest file under
    a limit on quality, the best quality, the fastest, and the smallest where only that is known.
    """
    limited = bool(line.keep or line.drop)
    wanted: tuple[Best | None, ...] = (asked, "size" if limited else None, "quality", "speed")
    for best in wanted:
        if best is not None and any(c.number(best).value is not None for c in candidates):
            return best
    return "size"


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
        line = Acceptance(keep=dict.fromkeys(question.metrics, DEFAULT_KEEP))
    aside = Counter(_aside(row) for row in rows)
    candidates = [
        _candidate(row, line, case, question.metrics, names) for row in rows if not _aside(row)
    ]
    candidates = _with_seeds(candidates, axes)
    best = objective(line, candidates, question.best)
    good = ("yes",) if question.sure else PASSING
    passing = [c for c in candidates if c.verdict in good]
    ranked, tied = rank(passing, best)
    near, relaxed = ([], []) if passing else _nearest(rank(candidates, best)[0], good)
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


def _nearest(
    candidates: Sequence[Candidate], good: Sequence[str]
) -> tuple[list[Candidate], list[Relaxed]]:
    """Points by how many limits they break and how far, those with all numbers alone where there
    are such, else as ``candidates``, which are ranked; and each limit that alone keeps points out,
    with the point that asks least of it.
    """

    def broken(candidate: Candidate) -> list[Check]:
        return [c for c in candidate.checks if c.verdict not in (*good, "?")]

    def lacking(candidate: Candidate) -> int:
        return sum(check.verdict == "?" for check in candidate.checks)

    whole = [candidate for candidate in candidates if not lacking(candidate)]
    near = sorted(
        whole or candidates,
        key=lambda c: (
            len({check.name for check in broken(c)}),
            lacking(c),
            sum(check.beyond for check in broken(c)),
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
    row: Row, line: Acceptance, case: Case, metrics: Sequence[str], names: Sequence[str]
) -> Candidate:
    meant = dict.fromkeys(name for asked in metrics for name in case.named(asked))
    kept = [estimate.kept(row, name, case.meaning, case.full) for name in meant]
    known = [found for found in kept if found.value is not None]
    nothing = Estimate(None, of="quality", reason="not measured")
    quality = min(known, key=lambda found: found.value or 0.0, default=nothing)
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
        found.append(replace(candidate, seeds=tuple(values) if len(own) > 1 else ()))
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
        drop=line.drop, keep={**line.keep, **dict.fromkeys(question.metrics, 0.0)}, speedup=0.0,
        memory=Amount(0.0), file=Amount(0.0),
    )  # fmt: skip
    more = ("experiment", "reason", "point_id", "run_id", "plan", "misfits", "dirty", "device")
    wanted = acceptance.needed(frame, looked, (*_axes(frame), *more, *TIMED))
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in sorted(labels.rows(wanted), key=lambda r: r["status"] != "ok"):
        if not all(typed(row.get(k)) in values for k, values in question.where.items()):
            continue
        key = (str(row["model"]), str(row["point_id"]))
        found[key] = _merged(found[key], row) if key in found else dict(row)
    return list(found.values())


def typed(value: object) -> str:
    """A cell as a user types it: ``4``, ``1.6``, ``true``; empty where it is."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return f"{value:g}"
    return "" if value is None else str(value)


def _merged(first: dict[str, Any], other: Row) -> dict[str, Any]:
    """Two rows of one point: what the first has not measured, and the faster of two timings."""
    speeds = [estimate.speedup(row).value or 0.0 for row in (first, other)]
    timed = {name: value for name, value in other.items() if name.startswith(TIMED)}
    rest = {name: value for name, value in other.items() if name not in timed}
    made = {**rest, **{name: value for name, value in first.items() if value is not None}}
    return {**made, **timed} if speeds[1] > speeds[0] else {**timed, **made}
