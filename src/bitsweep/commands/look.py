"""``report``, ``show`` and ``list``: the verbs that only read."""

from __future__ import annotations

import ast
import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bitsweep import cli
from bitsweep.axes import engine_files, files, variants
from bitsweep.commands.launch import Parser, opening, question, sweeping
from bitsweep.compose import choices_in, experiments, group_files, nearest
from bitsweep.errors import UserError
from bitsweep.record import Metric, Record
from bitsweep.store import Store

SHOWN_TEXTS = 3
SHORTEST_PREFIX = 4


def report(argv: list[str]) -> int:
    """``bitsweep report NAME …``: a NAME is an experiment, or a folder with records in it."""
    flags = Parser(prog="bitsweep report", add_help=False)
    flags.add_argument("names", nargs="+")
    flags.add_argument("--results-dir", type=Path, default=Path("results"))
    given = flags.parse_args(argv)
    folders = [folder_of(name, given.results_dir) for name in given.names]
    from bitsweep import report as reports

    name = folders[0].name
    written = reports.write(*folders, question=question(name), command=sweeping(name))
    reports.summary(written)
    return cli.OK


def folder_of(name: str, results: Path, verb: str = "report") -> Path:
    """The folder of an experiment's Records, by its name or its path.

    Raises:
        UserError: there are none; says which experiments have some.
    """
    for folder in (results / name, Path(name)):
        if (folder / "records").is_dir():
            return folder
    known = sorted(path.parent.name for path in results.glob("*/records"))
    there = f"there are {', '.join(known)}" if known else "there is nothing yet"
    raise UserError(f"{verb} {name}: no Records in {results / name}{nearest(name, known)}; {there}")


def show(argv: list[str]) -> int:
    """``bitsweep show RUN_ID``: what one Record says, from its two files."""
    flags = Parser(prog="bitsweep show", add_help=False)
    flags.add_argument("run_id")
    flags.add_argument("--texts", type=int, default=SHOWN_TEXTS)
    flags.add_argument("--results-dir", type=Path, default=Path("results"))
    given = flags.parse_args(argv)
    for store, record in lookup("show", given.run_id, given.results_dir):
        _show(store, record, given.texts)
    return cli.OK


def stores(results: Path) -> list[Store]:
    """Of every experiment below ``results`` (``--results-dir``)."""
    return [Store(path.parent) for path in sorted(results.glob("*/records"))]


def lookup(verb: str, run_id: str, results: Path) -> list[tuple[Store, Record]]:
    """The Records whose run_id or point_id begins so, each with where it lies.

    Raises:
        UserError: it is too short to mean one, or there is none.
    """
    if (results / run_id / "records").is_dir():
        place = [] if results == Path("results") else ["--results-dir", str(results)]
        listing = shlex.join(["bitsweep", "recommend", run_id, *place])
        raise UserError(
            f"{verb} {run_id}: takes a RUN_ID, and this is an experiment; {listing} gives those "
            f"of its best points, {results / run_id}/records has all"
        )
    if len(run_id) < SHORTEST_PREFIX:
        raise UserError(f"{verb} {run_id}: give at least {SHORTEST_PREFIX} digits of the id")
    found = [(store, record) for store in stores(results) for record in store.find(run_id)]
    if not found:
        raise UserError(f"{verb} {run_id}: no such Record below {results}; --results-dir FOLDER")
    return found


def _show(store: Store, record: Record, texts: int) -> None:
    from bitsweep.console import Console

    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(f"{record.point.get('label')}  {record.kind}  {record.status}")
    console.print(f"run_id      {record.run_id}\npoint_id    {record.point_id}")
    if record.reason:
        console.print(f"reason      {record.reason}")
    for name in ("point", "model", "plan", "calibration", "timings", "provenance"):
        value = getattr(record, name)
        if value:
            console.print(f"{name:<11} {json.dumps(value, ensure_ascii=False, default=str)}")
    rows = list(store.details(record.run_id))
    layers = {layer: became for row in rows for layer, became in row.get("plan", {}).items()}
    for line in (*_metrics(record), *_columns(list(layers.items())), *_texts(rows, texts)):
        console.print(line)


def _metrics(record: Record) -> list[str]:
    heads = ("metric", "value", "unit", "interval", "to full precision")
    rows = [_row(metric) for metric in record.metrics.values()]
    return _columns([heads, *rows] if rows else [])


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as wide as they need: a line that is too long for the terminal runs on."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = (map(str.ljust, row, widths) for row in rows)
    return ["", *(f"  {'  '.join(cells)}".rstrip() for cells in padded)] if rows else []


def _row(metric: Metric) -> tuple[str, ...]:
    if metric.value is None:
        return metric.name, "", metric.unit, "", str(metric.reason)
    bounds = "" if metric.lo is None or metric.hi is None else f"{metric.lo:.4g} to {metric.hi:.4g}"
    delta = ""
    if metric.delta is not None:
        times, sign = ("× ", "") if metric.delta.kind == "ratio" else ("", "+")
        ends = (metric.delta.value, metric.delta.lo, metric.delta.hi)
        value, lo, hi = (f"{end:{sign}.4g}" for end in ends)
        delta = f"{times}{value} [{lo}, {hi}]"
    return metric.name, f"{metric.value:.6g}", metric.unit, bounds, delta


def _texts(rows: Sequence[dict[str, Any]], most: int) -> Iterator[str]:
    """What it generated, below it what full precision did: the first ``most`` of each task."""
    tasks: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if "metric" in row and "prompt" in row:
            tasks.setdefault(row["metric"], []).append(row)
    for task, said in tasks.items():
        same = sum(row["text"] == row["full_precision"] for row in said)
        yield f"\n{task}: {same} of {len(said)} texts are the original's"
        for row in said[: max(0, most)]:
            yield f"  prompt     {row['prompt'][-300:]}"
            yield f"  this point {row['text']}"
            yield f"  original   {row['full_precision']}\n"


def _yaml(group: str) -> Callable[[Path | None], dict[str, str]]:
    """The choices of a group, those in a folder of the user's own (``--config-dir``) included."""

    def lines(own: Path | None) -> dict[str, str]:
        found = group_files(group)
        if own is not None:
            found |= choices_in(own / group)
        return {name: opening(path) for name, path in found.items()}

    return lines


def _modules(paths: Callable[[], dict[str, Path]]) -> Callable[[Path | None], dict[str, str]]:
    return lambda _: {name: _docstring(path) for name, path in paths().items()}


def _docstring(path: Path) -> str:
    """The first line of a module's docstring, without importing it (that would import torch)."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


def _formats(_: Path | None) -> dict[str, str]:
    """Each family, and after it the other names that it goes by."""
    lines: dict[str, str] = {}
    for name, path in files("formats").items():
        lines |= {name: _docstring(path), **variants(path)}
    return lines


def _probes(own: Path | None) -> dict[str, str]:
    presets = {f"probes={name}": line for name, line in _yaml("probes")(own).items()}
    return presets | _modules(lambda: files("probes"))(own)


LISTS: dict[str, Callable[[Path | None], dict[str, str]]] = {
    "methods": _yaml("method"),
    "transforms": _yaml("transforms"),
    "recoveries": _yaml("recover"),
    "inputs": _yaml("input"),
    "formats": _formats,
    "policies": _yaml("policy"),
    "models": _yaml("model"),
    "data": _yaml("data"),
    "calibrations": _yaml("calibration"),
    "probes": _probes,
    "engines": _modules(engine_files),
    "trackers": _yaml("tracker"),
    "experiments": lambda _: {name: opening(path) for name, path in sorted(experiments().items())},
}


def list_(argv: list[str]) -> int:
    """``bitsweep list methods``: a name and one line for each."""
    reader = Parser(prog="bitsweep list", add_help=False)
    reader.add_argument("kind", nargs="?", default="")
    reader.add_argument("--config-dir", type=Path)
    given = reader.parse_args(argv)
    if given.kind not in LISTS:
        guess = nearest(given.kind, LISTS)
        named = f"list {given.kind}".strip()
        raise UserError(f"{named}: takes one of {', '.join(LISTS)}{guess}")
    if given.config_dir is not None and not given.config_dir.is_dir():
        raise UserError(f"--config-dir {given.config_dir}: no such folder")
    rows: dict[str, Any] = LISTS[given.kind](given.config_dir)
    width = max(map(len, rows), default=0)
    for name, line in rows.items():
        print(f"{name:<{width}}  {line}".rstrip())
    return cli.OK
