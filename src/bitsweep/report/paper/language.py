"""What an experiment's file says under ``paper:``; see docs/paper.md.

Read strictly: an unknown key, metric or column is one line that names what would work.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bitsweep.compose import EXPERIMENTS, experiments
from bitsweep.errors import UserError
from bitsweep.typed import build

Width = Literal["column", "text"]
Source = Literal["points", "timings"]
COMMAND = re.compile(r"#\s+(bitsweep \S.*?)(?:\s{2,}(.*))?$")
NAME = re.compile(r"[a-z0-9_]+")


@dataclass(frozen=True)
class Value:
    """A number of a row: ``of`` a metric or column, as it is or as its change to full precision.

    ``of: ppl`` without a text is each model's own text. ``interval`` prints the 95 % interval;
    ``digits`` null: as many as three significant ones need; ``best`` null: where the metric has a
    better direction.
    """

    of: str
    show: Literal["value", "change"] = "value"
    head: str | None = None
    digits: int | None = None
    scale: float = 1.0
    interval: bool = False
    best: bool | None = None


@dataclass(frozen=True)
class Table:
    """One table: a pivot where ``columns`` is given, else a row for each point."""

    caption: str
    rows: tuple[str, ...]
    values: tuple[str | Value, ...]
    columns: str | None = None
    blocks: tuple[str, ...] = ("model",)
    where: Mapping[str, Any] = field(default_factory=dict)
    records: tuple[str, ...] = ()
    source: Source = "points"
    over: tuple[str, ...] = ()
    sort: tuple[str, ...] = ()
    names: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    heads: Mapping[str, str] = field(default_factory=dict)
    front: str | None = None
    reference: bool = True
    notes: tuple[str, ...] = ()
    width: Width = "column"

    def shown(self) -> list[Value]:
        """The values, those given by name alone as they are."""
        return [Value(each) if isinstance(each, str) else each for each in self.values]


@dataclass(frozen=True)
class Copy:
    """One of the tables that `bitsweep report` makes of the experiment, as it is."""

    caption: str
    report: str
    width: Width = "text"


@dataclass(frozen=True)
class Front:
    """Perplexity against ``x`` with the Pareto front: a picture for each model."""

    caption: str
    kind: Literal["front"]
    x: str = "file_mib"
    series: tuple[str, ...] = ("approach",)
    label: str | None = None
    where: Mapping[str, Any] = field(default_factory=dict)
    records: tuple[str, ...] = ()
    names: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    width: Width = "column"


@dataclass(frozen=True)
class Lines:
    """``y`` over ``x``, one line for each of ``series``, a picture for each of ``panels``."""

    caption: str
    kind: Literal["lines"]
    x: str
    y: str | Value
    series: tuple[str, ...] = ("approach",)
    panels: str | None = "model"
    label: str | None = None
    log: tuple[Literal["x", "y"], ...] = ()
    where: Mapping[str, Any] = field(default_factory=dict)
    records: tuple[str, ...] = ()
    source: Source = "points"
    over: tuple[str, ...] = ()
    names: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    width: Width = "column"

    def value(self) -> Value:
        """What stands on the y axis."""
        return Value(self.y) if isinstance(self.y, str) else self.y


@dataclass(frozen=True)
class Heatmap:
    """Change of perplexity, method x bits: a picture for each model."""

    caption: str
    kind: Literal["heatmap"]
    where: Mapping[str, Any] = field(default_factory=dict)
    records: tuple[str, ...] = ()
    width: Width = "column"


@dataclass(frozen=True)
class Drawn:
    """Figures that `bitsweep report` draws of the experiment, by their file names."""

    caption: str
    kind: Literal["report"]
    figures: tuple[str, ...]
    width: Width = "column"


Figure = Front | Lines | Heatmap | Drawn
KINDS: dict[str, type[Figure]] = {
    "front": Front, "lines": Lines, "heatmap": Heatmap, "report": Drawn,
}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """What one experiment gives the paper; sections are in order of ``section``."""

    section: int
    title: str
    tables: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """An experiment's part, read, with what its file opens with and the file's other ``keys``."""

    experiment: str
    number: int
    title: str
    question: str
    commands: tuple[tuple[str, str], ...]
    tables: Mapping[str, Table | Copy]
    figures: Mapping[str, Figure]
    keys: tuple[str, ...]


def sections() -> list[Section]:
    """The parts of every experiment file that has one, in the paper's order.

    Where the working directory has experiments, the paper is theirs alone.

    Raises:
        UserError: a part says what the language does not know, or two have one name for a table.
    """
    every = experiments()
    own = {name: path for name, path in every.items() if path.parent == Path.cwd() / EXPERIMENTS}
    found = [s for name, path in (own or every).items() if (s := read(name, path))]
    found.sort(key=lambda section: (section.number, section.experiment))
    for kind in ("tables", "figures"):
        owner: dict[str, str] = {}
        for section in found:
            for name in getattr(section, kind):
                other = owner.setdefault(name, section.experiment)
                if other != section.experiment:
                    raise UserError(
                        f"{section.experiment}: paper.{kind}.{name}: {other} has a part of that "
                        "name already; call one of them otherwise"
                    )
    return found


def read(experiment: str, path: Path) -> Section | None:
    """The part in one experiment's file; None where it has none."""
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 ({error.reason}); convert it") from error
    try:
        whole = yaml.safe_load(text) or {}
        raw = whole.get("paper")
    except (yaml.YAMLError, AttributeError) as error:
        raise UserError(f"{path}: not a YAML mapping ({str(error).splitlines()[0]})") from error
    if raw is None:
        return None
    where = f"{experiment}: paper"
    if not isinstance(raw, Mapping):
        raise UserError(f"{where}: takes a mapping with section, title, tables and figures")
    part = build(Part, where, raw)
    opened, commands = _opening(text)
    return Section(
        experiment, part.section, part.title, opened,
        commands or ((f"bitsweep sweep {experiment}", ""),),
        {n: _table(f"{where}.tables.{n}", given) for n, given in _named(where, part.tables)},
        {n: _figure(f"{where}.figures.{n}", given) for n, given in _named(where, part.figures)},
        tuple(map(str, whole)),
    )  # fmt: skip


def _named(where: str, parts: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
    for name, raw in parts.items():
        if not NAME.fullmatch(str(name)):
            raise UserError(f"{where}: {name!r} becomes a file's name; take a-z, 0-9 and _")
        if not isinstance(raw, Mapping):
            raise UserError(f"{where}: {name}: takes a mapping with a caption; see docs/paper.md")
        yield str(name), raw


def _table(where: str, raw: Mapping[str, Any]) -> Table | Copy:
    return build(Copy, where, raw) if "report" in raw else build(Table, where, raw)


def _figure(where: str, raw: Mapping[str, Any]) -> Figure:
    kind = raw.get("kind")
    if kind not in KINDS:
        raise UserError(f"{where}.kind={kind}: takes one of {', '.join(KINDS)}")
    return build(KINDS[kind], where, raw)


def _opening(text: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The question that the file opens with, and its commands, each with its cost."""
    words, commands = [], []
    for line in text.splitlines():
        if not line.startswith("#") or "@package" in line:
            break
        if found := COMMAND.match(line):
            commands.append((found[1].strip(), (found[2] or "").strip()))
        elif not commands and line.lstrip("# "):
            words.append(line.lstrip("# ").strip())
    return " ".join(words), tuple(commands)
