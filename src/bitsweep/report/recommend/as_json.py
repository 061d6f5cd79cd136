"""An Answer for scripts: what ``bitsweep recommend --json`` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bitsweep.report import acceptance
from bitsweep.report.estimate import Estimate
from bitsweep.report.recommend import words
from bitsweep.report.recommend.answer import Answer, Question
from bitsweep.report.recommend.handoff import Handoff
from bitsweep.report.recommend.ranking import Candidate

AXES = ("label", "method", "bits", "group_size", "policy", "run_id", "point_id", "experiment")


def told(found: Sequence[Answer], question: Question, handoff: Handoff) -> dict[str, Any]:
    """Everything that is printed: one entry a model, its points ranked."""
    return {"models": [_model(answer, question, handoff) for answer in found]}


def _model(answer: Answer, question: Question, handoff: Handoff) -> dict[str, Any]:
    return {
        "model": answer.model,
        "asked": words.asked(answer.line, answer),
        "best": answer.best,
        "considered": answer.considered,
        "passing": len(answer.passing),
        "tied_with_first": max(answer.tied - 1, 0),
        "aside": dict(answer.aside),
        "left_out": dict(answer.left_out),
        "unmeasured": {
            name: {"points": count, "reason": why}
            for name, (count, why) in answer.unmeasured.items()
        },
        "points": [
            {**_point(candidate, answer.considered), **_commands(candidate, answer, handoff)}
            for candidate in answer.passing[: question.top]
        ],
        "nearest": [_point(candidate, answer.considered) for candidate in answer.near],
        "relax": [
            {
                "flag": words.flag(relaxed.check, answer.line, question.sure),
                "run_id": relaxed.by.row["run_id"],
            }
            for relaxed in answer.relaxed
        ],
        "measure": handoff.timings(answer),
    }


def _commands(candidate: Candidate, answer: Answer, handoff: Handoff) -> dict[str, Any]:
    command, note = handoff.export(candidate, answer.fast)
    again = handoff.again(candidate)
    return {"export": command or None, "export_note": note, "again": again}


def _point(candidate: Candidate, considered: int) -> dict[str, Any]:
    row = candidate.row
    return {
        **{name: row.get(name) for name in AXES},
        "passes": candidate.verdict in acceptance.PASSING,
        "sure": candidate.verdict == "yes",
        "sure_among_all": candidate.sure_among(considered),
        "quality_kept": _numbers(candidate.quality),
        "file_mib": _numbers(candidate.size),
        "decode_vs_bf16": _numbers(candidate.speed),
        "memory_mib": _numbers(candidate.memory),
        "checks": [
            {
                "name": check.name,
                "verdict": check.verdict,
                "limit": check.limit,
                "at_least": check.at_least,
                **_numbers(check.found),
            }
            for check in candidate.checks
        ],
    }


def _numbers(found: Estimate) -> dict[str, Any]:
    known = {"value": found.value, "lo": found.lo, "hi": found.hi, "of": found.of}
    return known | ({"reason": found.reason} if found.value is None else {})
