"""Acceptance lines: which limits a row stays within, and how sure its paired intervals make that.

The line of the source articles is :data:`ARTICLES`, the one place that holds it: BLEU and ROUGE at
most 1 to 2 points below full precision's, latency and memory halved. ``of`` says for each row of a
frame which parts of a line it passes; ``report/recommend/`` ranks those that pass all.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Literal

import pandas as pd

from bitsweep.report import estimate, labels
from bitsweep.report.estimate import Estimate, Meaning, Row
from bitsweep.report.frame import CHANGED, REFERENCE, is_reference
from bitsweep.report.tables import number, primaries

Verdict = Literal["yes", "likely", "unlikely", "no", "?"]
VERDICTS: tuple[Verdict, ...] = ("no", "unlikely", "?", "likely", "yes")
"""Worst first. ``yes``: the whole 95 % interval is within the limit; ``likely``: the number is, its
interval is not (or it has none); ``unlikely``: the number is not, but a part of its interval is;
``no``: nothing of it is; ``?``: there is no number."""

PASSING = ("yes", "likely")
ROW = ("model", "status", "method", "dtype", "weights", "only", *CHANGED)
MOST_DIGITS = 6
TAIL = 0.025
"""Of a 95 % interval, on either side."""

TELLING = 10.0
"""A drop in points says something where full precision's score is at least this many times it."""


@dataclass(frozen=True)
class Amount:
    """A limit: ``relative`` to full precision (``0.5x``, ``5%``), or in its own unit."""

    value: float
    relative: bool = False


@dataclass(frozen=True)
class Acceptance:
    """Limits that a point must stay within, all of them. None and empty mappings ask nothing.

    - ``drop``: metric, or kind of metric (``bleu``: each of its tasks) -> at most so much worse
      than full precision: points of a hundred of a score, per cent if relative, else its own unit;
    - ``keep``: metric or kind -> at least this share of full precision's; ``""`` is the
      model's own perplexity, ppl_fp / ppl;
    - ``speedup``: decoding against bf16, of a packed engine that was timed;
    - ``memory``: MiB, or the share of the same model's in 16 bits (:func:`estimate.memory`);
    - ``file``: MiB of stored tensors, or the share of full precision's.
    """

    name: str = ""
    drop: Mapping[str, Amount] = field(default_factory=dict)
    keep: Mapping[str, float] = field(default_factory=dict)
    speedup: float | None = None
    memory: Amount | None = None
    file: Amount | None = None


ARTICLES = Acceptance(
    "articles",
    drop={"bleu": Amount(2.0), "rougeL": Amount(2.0)},
    speedup=2.0,
    memory=Amount(0.5, relative=True),
)
STRICT = Acceptance(
    "articles-strict",
    drop={"bleu": Amount(1.0), "rougeL": Amount(1.0)},
    speedup=2.0,
    memory=Amount(0.5, relative=True),
)
PRESETS = {line.name: line for line in (ARTICLES, STRICT)}


@dataclass(frozen=True)
class Check:
    """One number of a row against one limit; ``at_least`` or at most."""

    name: str
    limit: float
    at_least: bool
    found: Estimate

    @functools.cached_property
    def verdict(self) -> Verdict:
        return self._judged(self.found.bounds)

    def among(self, count: int) -> Verdict:
        """The verdict where it is to hold of ``count`` points at once: with a wider interval."""
        value, bounds = self.found.value, self.found.bounds
        if value is None or bounds is None:
            return self.verdict
        factor = widening(count)
        return self._judged(tuple(value + factor * (bound - value) for bound in bounds))

    def _judged(self, bounds: Sequence[float] | None) -> Verdict:
        value = self.found.value
        if value is None:
            return "?"
        if bounds is None:
            return "likely" if self._within(value) else "unlikely"
        inside = [self._within(bound) for bound in bounds]
        if self._within(value):
            return "yes" if all(inside) else "likely"
        return "unlikely" if any(inside) else "no"

    @property
    def beyond(self) -> float:
        """How far the number is on the wrong side, as a share of the limit (of 1 where it is 0)."""
        if self.found.value is None:
            return float("inf")
        off = self.limit - self.found.value if self.at_least else self.found.value - self.limit
        return max(off, 0.0) / (abs(self.limit) or 1.0)

    @property
    def room(self) -> float:
        """How far the number is on the right side of the limit, in its own unit."""
        if self.found.value is None:
            return float("-inf")
        off = self.found.value - self.limit
        return off if self.at_least else -off

    def _within(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit


def widening(count: int) -> float:
    """By how much wider an interval of ``count`` must be than one alone, so that with 95 % none of
    them misses (Bonferroni, the interval taken as a normal distribution's): 1.57 for 24.
    """
    alone, each = 1 - TAIL, 1 - TAIL / count
    return NormalDist().inv_cdf(each) / NormalDist().inv_cdf(alone)


@dataclass(frozen=True)
class Case:
    """What the rows of one model have in common: its metrics, own perplexity, full precision."""

    meaning: Meaning
    metrics: tuple[str, ...]
    primary: str | None
    full: Row

    def named(self, metric: str) -> tuple[str, ...]:
        """What a name means: itself, all metrics of its kind, or ``""`` the own perplexity."""
        return self._meant.get(metric, ())

    @functools.cached_property
    def _meant(self) -> dict[str, tuple[str, ...]]:
        found: dict[str, tuple[str, ...]] = {"": (self.primary,)} if self.primary else {}
        for name in self.metrics:
            for asked in {name, estimate.kind(name)}:
                found[asked] = (*found.get(asked, ()), name)
        return found


def cases(frame: pd.DataFrame) -> dict[str, Case]:
    """The Case of each model of ``frame``."""
    meaning = frame.attrs.get("metrics", {})
    names = [name for name in meaning if name in frame]
    plain = bare(frame, {"model", "status", "method", *CHANGED, *names})
    own = primaries(_with_attrs(plain, {k: v for k, v in meaning.items() if k.startswith("ppl/")}))
    found = {}
    for model, part in plain.groupby("model", sort=False):
        there = part[names].notna().any()
        full = part[(part["status"] == "ok") & (part["method"] == REFERENCE)]
        found[str(model)] = Case(
            meaning,
            tuple(name for name in names if there[name]),
            own.get(str(model)),
            next((row for row in labels.rows(full) if is_reference(row)), {}),
        )
    return found


def bare(frame: pd.DataFrame, columns: Iterable[str]) -> pd.DataFrame:
    """Those of ``columns`` that are there, without ``attrs``, which pandas copies at each step."""
    bare = frame.copy(deep=False)
    bare.attrs = {}
    wanted = set(columns)
    return bare[[name for name in frame.columns if name in wanted]]


def _with_attrs(frame: pd.DataFrame, meaning: Meaning) -> pd.DataFrame:
    made = frame.copy(deep=False)
    made.attrs = {"metrics": dict(meaning)}
    return made


def needed(frame: pd.DataFrame, line: Acceptance, also: Iterable[str] = ()) -> pd.DataFrame:
    """``frame`` without ``attrs`` and the columns that no limit of ``line`` looks at, but those
    that begin as one of ``also`` does.
    """
    asked = {*line.drop, *line.keep}
    kinds = {estimate.kind(name) for name in asked} | ({"ppl"} if "" in asked else set())
    looked = (estimate.SPEED, estimate.PEAK, estimate.RESIDENT, estimate.FILE, "engine", *also)
    wanted = [
        name
        for name in map(str, frame.columns)
        if name in ROW or name.startswith(looked) or estimate.kind(name.partition(".")[0]) in kinds
    ]
    return bare(frame, wanted)


def checks(row: Row, line: Acceptance, case: Case) -> list[Check]:
    """Every limit of ``line`` as it is for ``row``, in the line's order."""
    found: list[Check] = []
    for asked, share in line.keep.items():
        name = f"keep {asked}".strip()
        for metric in case.named(asked):
            kept = estimate.kept(row, metric, case.meaning, case.full)
            found.append(Check(name, share, True, kept))
        if not case.named(asked):
            found.append(Check(name, share, True, _unmeasured(asked or "ppl", row)))
    for asked, most in line.drop.items():
        for metric in case.named(asked):
            lost = estimate.drop(row, metric, case.meaning, case.full, most.relative)
            found.append(Check(asked, most.value, False, lost))
            found[-1] = _telling(found[-1], row, metric, most, case)
        if not case.named(asked):
            found.append(Check(asked, most.value, False, _unmeasured(asked, row)))
    if line.speedup is not None:
        found.append(Check("latency", line.speedup, True, estimate.speedup(row)))
    for name, most_of, measure in (
        ("memory", line.memory, estimate.memory),
        ("file", line.file, estimate.file),
    ):
        if most_of is not None:
            own = measure(row, most_of.relative)
            found.append(Check(name, most_of.value, False, own))
    return found


def worst(found: Iterable[Check]) -> Verdict:
    """The verdict on several checks together: that of the one which decides against most."""
    return min((check.verdict for check in found), key=VERDICTS.index, default="yes")


def by_name(found: Sequence[Check]) -> dict[str, list[Check]]:
    """Criterion -> its checks (one for each task of ``bleu``)."""
    grouped: dict[str, list[Check]] = {}
    for check in found:
        grouped.setdefault(check.name, []).append(check)
    return grouped


def text(found: Sequence[Check]) -> str:
    """``bleu yes, rougeL likely, latency ?, memory no``."""
    return ", ".join(f"{name} {worst(own)}" for name, own in by_name(found).items())


def of(frame: pd.DataFrame, acceptance: Acceptance = ARTICLES) -> pd.DataFrame:
    """What each row of ``frame`` passes: the same index, and the columns

    - ``text``: ``bleu yes, rougeL likely, latency ?, memory no`` (words: :data:`VERDICTS`);
    - ``passes``: True where all say yes or likely, False where one says no or unlikely, None where
      only numbers are missing; ``sure``: True where all say yes;
    - of each criterion its verdict, and ``NAME.reason``: the number with its limit, or why there is
      none.

    Full precision, points without Records' numbers (refused, failed) and points of which one part
    alone is quantized have an empty text and None.
    """
    known = cases(frame)
    rows: list[dict[str, object]] = []
    for row in labels.rows(needed(frame, acceptance)):
        if row["status"] != "ok" or row.get("only") is not None or is_reference(row):
            rows.append({"text": "", "passes": None, "sure": False})
            continue
        found = checks(row, acceptance, known[str(row["model"])])
        rows.append({"text": text(found), "passes": passes(found), "sure": worst(found) == "yes"})
        for name, own in by_name(found).items():
            deciding = min(own, key=lambda check: VERDICTS.index(check.verdict))
            rows[-1] |= {name: deciding.verdict, f"{name}.reason": explain(deciding)}
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    return pd.DataFrame(columns, index=frame.index, dtype=object)


def passes(found: Sequence[Check]) -> bool | None:
    """Whether all limits are kept; None where that is not known, and nothing speaks against it."""
    verdict = worst(found)
    return None if verdict == "?" else verdict in PASSING


def explain(check: Check) -> str:
    """``bleu/summary: 0.30 lower [0.00, 0.90], at most 2``, or the reason."""
    found = check.found
    if found.value is None:
        return f"{found.of}: {found.reason}"
    unit = " MiB" if check.name in ("memory", "file") and "×" not in found.of else ""
    worse = " higher" if estimate.rises(found.of) else " lower"
    lower = "" if check.at_least or check.name in ("memory", "file") else worse
    sign = "at least" if check.at_least else "at most"
    return f"{found.of}: {interval(found)}{unit}{lower}, {sign} {check.limit:g}{unit}"


def interval(found: Estimate, digits: int | None = None) -> str:
    """``0.974 [0.969, 0.979]``; one number where it is exact or has no interval.

    With ``digits`` behind the point, or as many as show that a narrow interval has a width.
    """
    assert found.value is not None
    digits = (3 if abs(found.value) < 10 else 1) if digits is None else digits
    width = 0.0 if found.lo is None or found.hi is None else found.hi - found.lo
    if width:
        digits = max(digits, min(-math.floor(math.log10(width)), MOST_DIGITS))
    shown = [
        number(0.0 if round(value, digits) == 0 else value, digits)  # no minus before a zero
        for value in (found.value, *(found.bounds or ()))
    ]
    alone = found.bounds is None or found.exact
    return shown[0] if alone else f"{shown[0]} [{shown[1]}, {shown[2]}]"


def _unmeasured(metric: str, row: Row) -> Estimate:
    if row.get("weights") == "random":
        return Estimate(None, of=metric, reason="random weights have no quality")
    how = "probes=quality measures it"
    if metric in ("bleu", "rouge1", "rouge2", "rougeL"):
        how = "probes.generation on data with tasks does"
    return Estimate(None, of=metric, reason=f"no {metric} was measured; {how}")


def _telling(check: Check, row: Row, metric: str, most: Amount, case: Case) -> Check:
    """A small loss of a score that full precision itself hardly has is no evidence of anything."""
    base = estimate.full_value(row, metric, case.meaning, case.full)
    scores = estimate.kind(metric).startswith(("bleu", "rouge"))
    if base is None or most.relative or not scores or check.verdict not in PASSING:
        return check
    own = base * estimate.points(metric, case.meaning)
    if own >= TELLING * most.value:
        return check
    within = f"{most.value:g} point is" if most.value == 1 else f"{most.value:g} points are"
    why = (
        f"full precision's own {metric} is {own:.1f}: {within} "
        f"{100 * most.value / own:.0f} % of it, so a loss within that says nothing"
    )
    return Check(check.name, check.limit, False, Estimate(None, of=metric, reason=why))
