"""Columns and metrics that a part may name, as far as they are known before there are Records."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence

from bitsweep.compose import choices, experiments, nearest
from bitsweep.errors import UserError
from bitsweep.report import FIGURES, TABLES
from bitsweep.report.paper.language import (
    Drawn,
    Front,
    Heatmap,
    Lines,
    Section,
    Table,
    read,
)
from bitsweep.report.timed import METRICS as TIMES

WORDS = ("approach", "weights", "policy_name")
"""Columns that are made of others: method, options and format; bits, format and group; the policy
without its numbers (``budget``)."""

COLUMNS = (
    "experiment", "status", "reason", "model",
    "method", "method_options", "bits", "group_size", "format", "symmetric", "scale_dtype",
    "policy", "misfit", "data", "calibration", "seed", "dtype", "transforms", "recover", "input",
    "kv", "label",
    "calibration.windows", "calibration.window", "calibration.choice", "calibration.seed",
    "point_id", "run_id", "plan", "misfits", "calibration_sha256", "commit", "dirty", "exported",
    "only", "budget_bits", "budget_spent", "budget_slack_bytes", "engine", "device", "threads",
    *WORDS,
)  # fmt: skip
"""Of the frame, beside those of metrics."""

OF_TIMINGS = ("batch", "prompt", "marks")
"""Columns that ``source: timings`` has as well."""

METRICS = (
    "ppl", "bits_per_byte", "input_bits", "kl_mean", "kl_median", "kl_p99", "top1",
    "bleu", "rouge1", "rouge2", "rougeL", "bleu_fp", "rougeL_fp", "acc", "acc_norm",
    "weight_error", "output_error", "hidden_error",
    "hessian_error", "gradient_error", "fisher_error",
    "bits_per_weight", "file_mib", "resident_mib", *TIMES, "cache_mib",
    "load_peak_mib", "prefill_peak_mib", "decode_peak_mib", "predicted",
)  # fmt: skip
"""Of every probe, without their text or task."""

ENDS = re.compile(r"(\.delta)?(\.lo|\.hi)?$|\.reason$")
"""What the columns of a metric end in: its interval, its change, why there is none."""

MISSPELT = 0.8
"""Likeness from which a metric of a task, of which there are more than we know, is a slip."""


def check(experiment: str, overrides: Sequence[str] = ()) -> None:
    """Read the part of one experiment's file, so that a mistake shows before anything is measured.

    With ``plugins`` among the file's keys or the ``overrides`` any name may be a probe's of theirs.

    Raises:
        UserError: as :func:`language.read`; or a column, metric, table or figure that there is
            not; names the nearest.
    """
    path = experiments().get(experiment)
    section = None if path is None else read(experiment, path)
    keys = [word.lstrip("+").partition("=")[0] for word in overrides]
    if section is not None and "plugins" not in (*keys, *section.keys):
        _check(section)


def _check(section: Section) -> None:
    for name, table in section.tables.items():
        where = f"{section.experiment}: paper.tables.{name}"
        if isinstance(table, Table):
            _columns(where, table)
        elif table.report not in TABLES:
            _refuse(f"{where}.report", table.report, TABLES, "the report has no such table")
    for name, figure in section.figures.items():
        where = f"{section.experiment}: paper.figures.{name}"
        if not isinstance(figure, Drawn):
            _columns(where, figure)
            continue
        for drawn in figure.figures:
            if not drawn.startswith(FIGURES):
                _refuse(f"{where}.figures", drawn, FIGURES, "the report has no such figure")


def _columns(where: str, part: Table | Front | Lines | Heatmap) -> None:
    timed = getattr(part, "source", "points") == "timings"
    known = (*COLUMNS, *(OF_TIMINGS if timed else ()))
    for key, name in _named(part):
        column = name.removeprefix("-") if key == "sort" else name
        if column not in known and not _is_metric(column):
            _refuse(f"{where}.{key}", column, (*known, *METRICS), "no such column")
    for key, name in _measured(part):
        if not _is_metric(name) and name not in known:
            _refuse(f"{where}.{key}", name, (*METRICS, *known), "no such metric")


def _named(part: Table | Front | Lines | Heatmap) -> Iterator[tuple[str, str]]:
    """(key, column) of everything that a part chooses or orders by."""
    yield from (("where", str(name)) for name in getattr(part, "where", ()))
    for key in ("rows", "columns", "blocks", "over", "sort", "names", "heads", "series", "panels"):
        given = getattr(part, key, None) or ()
        yield from ((key, str(name)) for name in ([given] if isinstance(given, str) else given))
    if isinstance(part, Front | Lines):
        yield "x", part.x


def _measured(part: Table | Front | Lines | Heatmap) -> Iterator[tuple[str, str]]:
    """(key, metric or column) of every number that a part shows."""
    if isinstance(part, Table):
        yield from (("values", value.of) for value in part.shown())
        yield from [("front", part.front)] if part.front else []
    elif isinstance(part, Lines):
        yield "y", part.value().of


def _is_metric(column: str) -> bool:
    """Whether a probe may have it: of a task, whatever is not nearly one that we know."""
    kind, _, task = ENDS.sub("", column.partition(" @ ")[0]).partition("/")
    return kind in METRICS or bool(
        task and not difflib.get_close_matches(kind, METRICS, n=1, cutoff=MISSPELT)
    )


def _refuse(where: str, name: str, known: Sequence[str], what: str) -> None:
    head, slash, tail = name.partition("/")
    if slash and (near := difflib.get_close_matches(head, known, n=1, cutoff=MISSPELT)):
        raise UserError(f"{where}: {name}: {what}; did you mean {near[0]}/{tail}?")
    raise UserError(f"{where}: {name}: {what}{nearest(name, known) or choices(sorted(known))}")
