"""An Answer in words: the sentences, the table and the commands of ``bitsweep recommend``."""

from __future__ import annotations

import math
from collections.abc import Mapping

from bitsweep.report import acceptance, estimate
from bitsweep.report.acceptance import Acceptance, Amount, Check
from bitsweep.report.estimate import Estimate
from bitsweep.report.recommend.answer import Answer, Question
from bitsweep.report.recommend.ranking import Candidate
from bitsweep.report.recommend.table import cell
from bitsweep.timing import Shape

BEST = {
    "size": "the smallest file",
    "quality": "the best quality",
    "speed": "the fastest decoding",
    "memory": "the least memory",
}
KIB = 1024
"""MiB in a GiB, KiB in a MiB."""
MODEL, FULL = "the 16-bit model's", "full precision's"
SCORES = ("bleu", "rouge", "acc", "top1")
"""Of which a difference is in points of a hundred."""


def mib(amount: float) -> str:
    """``3.50 GiB``, ``2.62 MiB``, ``488.28 KiB``."""
    if amount >= KIB:
        return f"{amount / KIB:.2f} GiB"
    return f"{amount:.2f} MiB" if amount >= 1 else f"{amount * KIB:.2f} KiB"


def size(amount: Amount, of: str) -> str:
    return f"{amount.value:g} × {of}" if amount.relative else mib(amount.value)


def asked(line: Acceptance, answer: Answer) -> list[str]:
    """Each limit in words, what is compared with what included."""
    words = []
    for name, share in line.keep.items():
        metrics = answer.case.named(name)
        words.append(f"keep at least {share:g} by {', '.join(metrics) or name or 'ppl'}")
    for name, most in line.drop.items():
        one = "" if most.value == 1 else "s"
        unit = " %" if most.relative else f" point{one}" if name.startswith(SCORES) else ""
        verb = "higher" if estimate.rises(name) else "lower"
        words.append(f"{name} at most {most.value:g}{unit} {verb}")
    if line.speedup is not None:
        words.append(f"decode at least {line.speedup:g} × bf16")
    if line.memory is not None:
        words.append(f"memory at most {size(line.memory, MODEL)}")
    if line.file is not None:
        words.append(f"file at most {size(line.file, FULL)}")
    return words or ["no limits"]


def definitions(answer: Answer) -> list[str]:
    """What the words of the limits mean, those that are used."""
    line, found = answer.line, []
    if line.keep or answer.passing or answer.near:
        asked_of = [m for name in (line.keep or {"": 0.0}) for m in answer.case.named(name)]
        shown = (candidate.quality.of for candidate in (*answer.passing, *answer.near))
        named = [*dict.fromkeys([*asked_of, *(m for m in shown if m in answer.case.meaning)])]
        lower = [m for m in named if answer.case.meaning[m]["better"] == "lower"]
        own = [m for m in named if estimate.kind(m) in estimate.AGREEMENT]
        higher = [m for m in named if m not in lower and m not in own]
        for metrics, text in (
            (lower, "{m} of full precision / of the point"),
            (higher, "{m} of the point / of full precision"),
            (own, "{m} itself, agreement with full precision"),
        ):
            if metrics:
                found.append("kept = " + text.format(m=", ".join(metrics)))
    if named_memory(answer):
        found.append("memory = " + "; ".join(named_memory(answer)))
    paired = ", of a quality paired with full precision" if answer.case.primary else ""
    found.append("× full = file over full precision's")
    found.append(f"[ ] = 95 % interval{paired}")
    return found


def named_memory(answer: Answer) -> list[str]:
    if answer.line.memory is None:
        return []
    checks = [c for x in (*answer.passing, *answer.near) for c in x.checks if c.name == "memory"]
    return sorted({check.found.of for check in checks})


def head(answer: Answer, question: Question) -> str:
    limits = "; ".join(asked(answer.line, answer))
    line = f" ({answer.line.name})" if answer.line.name else ""
    points = f"{answer.considered} point{'s' * (answer.considered != 1)}"
    sure = ", with the whole interval" if question.sure else ""
    return f"{answer.model}: {points}; {limits}{line}{sure}; of those {BEST[answer.best]}"


def assumed(answer: Answer, question: Question) -> list[str]:
    """What was taken for granted that nobody asked for."""
    lines = []
    if question.line == Acceptance() and answer.line != question.line:
        share = next(iter(answer.line.keep.values()))
        lines.append(f"no limit was given, so --keep {share:g} is taken")
    if answer.case.primary is None:
        lines.append("no perplexity was measured here: points are compared by speed and size alone")
    if question.best is not None and answer.best != question.best:
        lines.append(f"--best {question.best}: no point has such a number here")
    return lines


def take(answer: Answer) -> list[str]:
    """The sentences about the first: what it is, how sure, what is tied with it, its seeds."""
    best = answer.passing[0]
    told = [f"{mib(best.size.value)}"] if best.size.value is not None else []
    if best.quality.value is not None:
        told.append(f"keeps {cell(best.quality, 4)} of the quality, by {best.quality.of}")
    told.append(f"{best.speed.of} {cell(best.speed, 2)}" if best.speed.value else "not timed")
    lines = [f"{best.name}: {', '.join(told)}; {_how_sure(best)}"]
    if choice := _as_a_choice(best, answer.considered):
        lines.append(choice)
    if best.verdict == "likely":
        sure = next((c for c in answer.passing if c.verdict == "yes"), None)
        lines.append(
            f"surely passes, and comes first of those that do: {sure.name}, "
            f"{', '.join(_told(sure))}  (bitsweep show {sure.row['run_id'][:12]})"
            if sure is not None
            else "no point passes with its whole interval"
        )
    if tied := _tied(answer):
        lines.append(tied)
    if best.seeds:
        lines.append(
            f"it is one of {len(best.seeds)} points that differ in nothing but the seed; they keep "
            f"{best.seeds[0]:.4f} to {best.seeds[-1]:.4f}"
        )
    if best.row.get("dirty"):
        lines.append("measured by code with uncommitted changes")
    return lines


def _told(candidate: Candidate) -> list[str]:
    told = [mib(candidate.size.value)] if candidate.size.value is not None else []
    told += [f"kept {cell(candidate.quality, 4)}"] if candidate.quality.value is not None else []
    return told


def _how_sure(best: Candidate) -> str:
    if not best.checks:
        return "nothing was asked of it"
    loose = [check for check in best.checks if check.verdict == "likely"]
    if loose:
        return f"passes, but within noise: {'; '.join(map(acceptance.explain, loose))}"
    return "passes surely"


def _as_a_choice(best: Candidate, count: int) -> str:
    """Whether it would pass surely had all ``count`` points to be judged rightly at once; empty
    where it does not alone, or where nothing but exact numbers was asked.
    """
    if best.verdict != "yes" or count == 1 or all(check.found.exact for check in best.checks):
        return ""
    wider = f"with intervals {acceptance.widening(count):.2f} times as wide, as a choice among"
    if best.sure_among(count):
        return f"surely also {wider} {count} points"
    beyond = ", ".join(check.found.of for check in best.checks if check.among(count) != "yes")
    return f"surely taken alone; not {wider} {count} points ({beyond})"


def _tied(answer: Answer) -> str:
    """What is as good as the first in what was to be best, or how the next one stands to it."""
    others = answer.tied - 1
    if not others:
        return _next(answer)
    points = f"{others} more point{'s' * (others != 1)}"
    if answer.best in ("quality", "speed"):
        return (
            f"tie: {points} within noise of the best {answer.best}; "
            "of them this is the smallest, then the fastest"
        )
    best, second = answer.passing[:2]
    text = f"tie: {points} of the same size (within 1 %)"
    if second.quality.value is None:
        return text
    return f"{text}; this one's quality is {_against(best, second)}"


def _next(answer: Answer) -> str:
    """The runner-up of a ranking that has one winner."""
    if len(answer.passing) < 2:
        return "no other point passes"
    best, second = answer.passing[:2]
    told = []
    if best.size.value and second.size.value:
        more = 100 * (second.size.value / best.size.value - 1)
        side = "larger" if more > 0 else "smaller"
        told.append(f"{abs(more):.0f} % {side}" if abs(more) >= 0.5 else "of the same size")
    if answer.fast and second.speed.value is not None:
        told.append(f"decode {cell(second.speed, 2)} × bf16")
    if second.quality.value is not None and best.quality.value is not None:
        told.append(f"its quality is {_against(second, best)}")
    return f"next: {second.name}, {', '.join(told)}"


def _against(own: Candidate, other: Candidate) -> str:
    """How the quality of ``own`` stands to that of ``other``, by their paired intervals."""
    a, b = own.quality, other.quality
    if a.bounds is None or b.bounds is None:
        return f"{cell(a, 4)} against {cell(b, 4)}, without intervals"
    if a.bounds[0] <= b.bounds[1] and b.bounds[0] <= a.bounds[1]:
        return f"within noise of that of {other.name}"
    side = "better" if _value(a) > _value(b) else "worse"
    return f"{side} than that of {other.name}, beyond noise"


def _value(found: Estimate) -> float:
    assert found.value is not None
    return found.value


def timing(answer: Answer, signatures: Mapping[str, str]) -> str:
    """Where and how the first was timed, and when not to believe it; empty where it was not."""
    best = answer.passing[0]
    if best.speed.value is None:
        return ""
    elsewhere = estimate.ELSEWHERE in best.speed.of
    place = best.speed.of.partition(estimate.ELSEWHERE)[2]
    threads = best.row.get("threads")
    here = f"{best.row.get('device')}, {threads} thread{'s' * (threads != 1)}"
    where = f"another machine ({place})" if elsewhere else here
    shape = Shape.read(signatures.get("decode_vs_bf16", ""))
    marks = estimate.timing_marks(best.row)
    parts = [f"timed on {where}"]
    parts += [f"{shape}".rpartition(", ")[0]] if shape and not elsewhere else []
    parts += [f"marked {', '.join(marks)}: see docs/protocols.md"] if marks else []
    return ", ".join(parts)


def left_out(answer: Answer) -> list[str]:
    """How many points did not pass and why; what was not looked at."""
    lines = []
    missed = answer.considered - len(answer.passing)
    if missed and answer.left_out:
        several = "; a point may break several" if len(answer.left_out) > 1 else ""
        counts = ", ".join(f"{name} {count}" for name, count in answer.left_out.items())
        lines.append(f"{missed} of {answer.considered} do not pass: {counts}{several}")
    for name, (count, why) in answer.unmeasured.items():
        reason = why if len(why) < LONG else f"{why[:LONG]}…"
        lines.append(f"{count} can not pass, as {name} has no number there: {reason}")
    if any(name != "full precision" for name in answer.aside):
        words = {"one part alone": "with one part alone quantized"}
        counts = ", ".join(
            f"{count} {words.get(name, name)}"
            for name, count in answer.aside.items()
            if name != "full precision"
        )
        lines.append(f"beside these: {counts}")
    return lines


LONG = 160


def relax(answer: Answer, sure: bool = False) -> list[str]:
    """For each limit that alone is in the way: the flag that would let a point pass, and which."""
    if not answer.relaxed:
        lacking = max((count for count, _ in answer.unmeasured.values()), default=0)
        if lacking == answer.considered:
            return ["no point has all its numbers, so no limit that is moved lets one pass"]
        missing = " of those that have all their numbers" if lacking else ""
        return [f"no limit that is moved alone lets a point pass{missing}"]
    return [
        f"{flag(r.check, answer.line, sure)} would let {r.by.name} pass "
        f"({acceptance.explain(r.check)})"
        for r in answer.relaxed
    ]


def flag(check: Check, line: Acceptance, sure: bool = False) -> str:
    """The option that sets this limit to what the point has, rounded to its side of it."""
    found = check.found
    value = _value(found)
    if sure and found.bounds is not None:
        value = min(found.bounds) if check.at_least else max(found.bounds)
    places = 2 if check.name in ("memory", "file") and value >= 1 else 3
    power = 10.0**places
    rounded = (math.floor if check.at_least else math.ceil)(value * power) / power
    shown = f"{rounded:.{places}f}".rstrip("0").rstrip(".")
    if check.name.startswith("keep"):
        metric = check.name.removeprefix("keep").strip() if line.name else ""  # of a file's keep:
        return f"--metric {metric} --keep {shown}" if metric else f"--keep {shown}"
    if check.name == "latency":
        return f"--min-speedup {shown}"
    if check.name in ("memory", "file"):
        limit = line.memory if check.name == "memory" else line.file
        unit = "x" if limit is not None and limit.relative else "MiB"
        return f"--max-{'memory' if check.name == 'memory' else 'bytes'} {shown}{unit}"
    unit = "%" if line.drop[check.name].relative else ""
    return f"--max-drop {check.name}={shown}{unit}"
