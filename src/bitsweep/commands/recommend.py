"""``recommend``: which points to take under limits, how sure that is, and what to type next."""

from __future__ import annotations

import argparse
import glob
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bitsweep import cli
from bitsweep.commands.launch import Parser
from bitsweep.commands.look import folder_of
from bitsweep.compose import nearest
from bitsweep.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from bitsweep.report.recommend.answer import Answer, Question
    from bitsweep.report.recommend.handoff import Handoff

NOTHING_PASSES = 1


def recommend(argv: list[str]) -> int:
    """``bitsweep recommend NAME …`` under limits; exit code 1 where no point passes."""
    given = _flags().parse_intermixed_args(argv)
    if not given.names:
        raise UserError("recommend: takes the NAME of an experiment with Records; see --help")
    question = _question(given)
    folders = [folder_of(name, given.results_dir, "recommend") for name in given.names]
    from bitsweep.report import collect
    from bitsweep.report.frame import frame
    from bitsweep.report.recommend import as_json
    from bitsweep.report.recommend.answer import answers
    from bitsweep.report.recommend.handoff import Handoff

    records = collect(*(glob.escape(str(folder)) for folder in folders))
    table = frame(records)
    _check_names(given, question, table)
    found = answers(table, question)
    if not found:
        raise UserError("recommend: no point has these values of --where; nothing is left")
    handoff = Handoff(records, folders, given.results_dir)
    if given.json:
        print(json.dumps(as_json.told(found, question, handoff), indent=1, ensure_ascii=False))
    else:
        _print(found, question, handoff, table)
    return cli.OK if any(answer.passing for answer in found) else NOTHING_PASSES


def _flags() -> Parser:
    flags = Parser(prog="bitsweep recommend", add_help=False, allow_abbrev=False)
    flags.add_argument("names", nargs="*")
    flags.add_argument("--max-bytes")
    flags.add_argument("--max-memory")
    flags.add_argument("--keep")
    flags.add_argument("--max-drop")
    flags.add_argument("--min-speedup")
    flags.add_argument("--preset")
    flags.add_argument("--metric", default="")
    flags.add_argument("--best")
    flags.add_argument("--model")
    flags.add_argument("--method")
    flags.add_argument("--where", action="append", default=[])
    flags.add_argument("--top", default="3")
    flags.add_argument("--sure", action="store_true")
    flags.add_argument("--json", action="store_true")
    flags.add_argument("--results-dir", type=Path, default=Path("results"))
    return flags


def _question(given: argparse.Namespace) -> Question:
    """What the options ask, each checked by itself; a preset's limits give way to options."""
    from bitsweep.report.acceptance import Acceptance
    from bitsweep.report.recommend import limits
    from bitsweep.report.recommend.answer import Question
    from bitsweep.report.recommend.ranking import ORDER

    line = Acceptance() if given.preset is None else limits.preset(given.preset)
    metrics = tuple(name for name in given.metric.split(",") if name) or ("",)
    if given.keep is not None:
        line = replace(line, keep={**line.keep, **dict.fromkeys(metrics, limits.share(given.keep))})
    if given.max_drop is not None:
        line = replace(line, drop={**line.drop, **limits.drops(given.max_drop)})
    if given.min_speedup is not None:
        line = replace(
            line, speedup=limits.positive("--min-speedup", given.min_speedup.rstrip("x×"))
        )
    if given.max_memory is not None:
        line = replace(line, memory=limits.amount("--max-memory", given.max_memory))
    if given.max_bytes is not None:
        line = replace(line, file=limits.amount("--max-bytes", given.max_bytes))
    if given.best is not None and given.best not in ORDER:
        raise UserError(f"--best {given.best}: takes one of {', '.join(ORDER)}")
    if not given.top.isdigit() or int(given.top) < 1:
        raise UserError(f"--top {given.top}: takes a whole number from 1")
    where: dict[str, tuple[str, ...]] = {}
    for item in given.where:
        key, equals, values = item.partition("=")
        if not (key and equals and values):
            raise UserError(f"--where {item}: takes COLUMN=VALUE[,VALUE], as bits=3,4")
        where[key] = tuple(values.split(","))
    for key in ("model", "method"):
        if getattr(given, key) is not None:
            where[key] = tuple(getattr(given, key).split(","))
    return Question(line, metrics, given.best, where, int(given.top), given.sure)


def _check_names(given: argparse.Namespace, question: Question, table: pd.DataFrame) -> None:
    """Raises UserError for a metric, column or value that no Record has."""
    from bitsweep.report import estimate
    from bitsweep.report.recommend import limits
    from bitsweep.report.recommend.answer import typed

    measured = [
        name
        for name in table.attrs["metrics"]
        if name in table and table[name].notna().any() and estimate.is_quality(name)
    ]
    kinds = list(dict.fromkeys(map(estimate.kind, measured)))
    named = dict.fromkeys(name for name in given.metric.split(",") if name)
    dropped = limits.drops(given.max_drop) if given.max_drop is not None else {}
    for flag, names in (("--metric", named), ("--max-drop", dropped)):
        for name in names:
            if name not in (*kinds, *measured):
                near = nearest(name, [*kinds, *measured])
                there = f"there are {', '.join(kinds)}" if kinds else "there is no quality"
                raise UserError(f"{flag} {name}: not in these Records{near}; {there}")
            if flag == "--metric" and estimate.kind(name) in estimate.DIVERGENCE:
                raise UserError(
                    f"--metric {name}: is a distance, of which no share is kept; "
                    f"use --max-drop {name}=0.05"
                )
    for key, values in question.where.items():
        columns = list(map(str, table.columns[: list(table.columns).index("point_id")]))
        if key not in columns:
            raise UserError(f"--where {key}: no such column{nearest(key, columns)}")
        there = ", ".join(sorted({typed(value) for value in table[key].dropna()}))
        for value in values:
            if value not in there.split(", "):
                flag = (
                    f"--{key} {value}" if key in ("model", "method") else f"--where {key}={value}"
                )
                known = f"there are {there}" if there else f"none has a value of {key}"
                raise UserError(f"{flag}: not in these Records; {known}")


def _print(
    found: Sequence[Answer], question: Question, handoff: Handoff, table: pd.DataFrame
) -> None:
    from bitsweep.console import Console

    console = Console(highlight=False, markup=False, soft_wrap=True)
    for number, answer in enumerate(found):
        if number:
            console.print()
        signatures = table.attrs["signatures"].get(answer.model, {})
        _print_one(answer, question, handoff, signatures, console)


def _print_one(
    answer: Answer,
    question: Question,
    handoff: Handoff,
    signatures: dict[str, str],
    console: Console,
) -> None:
    from bitsweep.report.recommend import table, words

    console.print(words.head(answer, question), style="bold")
    shown = answer.passing[: question.top] or answer.near
    if shown:
        console.print("\n".join(table.lines(answer, shown)))
        if len(answer.passing) > len(shown):
            console.print(f"    and {len(answer.passing) - len(shown)} more (--top N)")
    lines: list[tuple[str, str]] = []
    lines += [("note", line) for line in words.assumed(answer, question)]
    if answer.passing:
        first, *more = words.take(answer)
        lines += [("take", first), *(("", line) for line in more)]
        if timed := words.timing(answer, signatures):
            lines.append(("", timed))
    else:
        what = "no point passes; above are the nearest"
        lines.append(("none", what if shown else "no whole model was quantized here"))
        if shown:
            lines += [("relax", line) for line in words.relax(answer, question.sure)]
            lines += [("measure", line) for line in handoff.timings(answer)]
    lines += [("others", line) for line in words.left_out(answer)]
    if shown:
        lines += [("where", line) for line in words.definitions(answer)]
    if answer.passing:
        lines += [("export", line) for line in handoff.exports(answer)]
        lines += [("again", line) for line in handoff.again(answer.passing[0])]
    last = ""
    for name, text in lines:
        console.print(f"{name if name != last else '':<7} {text}")
        last = name or last
