"""Records -> tables, fronts, figures and a page, from the JSON alone: no model, no network, no GPU.

``frame`` and ``front`` compute, ``tables`` aggregates, ``sheet``, ``figures`` and ``page`` draw.
"""

from __future__ import annotations

import glob
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bitsweep.artifacts import write_atomically
from bitsweep.errors import UserError
from bitsweep.record import Record
from bitsweep.store import Store, uncollected

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from bitsweep.report.curves import Curve
    from bitsweep.report.sheet import Sheet

MANY = 300
"""Records that take so long to read that another process may begin meanwhile."""

MERGED = "merged.json"
"""Beside ``records/``: the points of the grid that were one point with another, and why."""

TABLES = (
    "main", "tasks", "agreement", "error", "latency", "heatmap", "seeds", "sensitivity",
    "correlation", "budget",
)  # fmt: skip

FIGURES = ("front_size", "front_speed", "heatmap", "error_depth", "sensitivity", "latency")
"""What the names of figures begin with; behind it the model and what else tells them apart."""


@dataclass(frozen=True)
class Report:
    """What was written where, and the frame it was written from."""

    folder: Path
    title: str
    frame: pd.DataFrame
    tables: tuple[Path, ...]
    figures: tuple[Path, ...]
    page: Path


def load(*patterns: str | Path) -> pd.DataFrame:
    """Records below the experiment folders that match, one row per point.

    ``load("results/demo", "results/lat*")``; columns as in :mod:`bitsweep.report.frame`.

    Raises:
        UserError: nothing matches, or two protocols share one metric.
    """
    from bitsweep.report.frame import frame

    return frame(collect(*patterns))


def collect(*patterns: str | Path) -> list[Record]:
    """The Records of every matching experiment folder, each folder once, in order of path.

    A file that is no Record is named on stderr and left out.
    """
    found = {Path(match) for pattern in patterns for match in glob.glob(str(pattern))}
    folders = sorted(path for path in found if (path / "records").is_dir())
    records = [record for folder in folders for record in Store(folder).records(warn=_warn)]
    if not records:
        asked = " ".join(map(str, patterns)) or "nothing"
        raise UserError(f"report {asked}: no Records there; run `bitsweep sweep NAME` first")
    return records


def write(*folders: str | Path, question: str = "", command: str = "") -> Report:
    """Write tables, figures and the page of one experiment, or of several together.

    One experiment's report goes into its own folder, several experiments' into the sibling folder
    ``a+b``. ``question`` and ``command`` open the folder's README.md, which is made once and is
    its reader's afterwards.

    Raises:
        UserError: as :func:`load`.
    """
    from bitsweep.report import page

    places = [Path(folder) for folder in folders]
    title = "+".join(place.name for place in places)
    folder = places[0] if len(places) == 1 else places[0].parent / title
    with _answer(places, folder, title) as (records, made, report, depths):
        merged = [pair for place in places for pair in read_merged(place)]
        small = list(dict.fromkeys(line for each in made.values() for line in each.small))
        stores = {place.name: Store(place) for place in places}
        with uncollected():
            text = page.render(
                report.frame, title, question, small, merged, depths, records, stores
            )
        _write(report.page, text)
    if not (folder / "README.md").exists():
        drawn = list(report.figures)
        _write(folder / "README.md", _readme(title, question, command, records, drawn))
    return report


def redraw(folder: Path) -> None:
    """One experiment's tables and figures anew, and nothing else: what is committed of a report.

    Raises:
        UserError: as :func:`load`.
    """
    with _answer([folder], folder, folder.name, alone=True):
        pass  # tables are written on the way in, figures on the way out


def ours(path: Path) -> bool:
    """Whether a report made this table or figure: one that it may remove. What else lies there is
    its reader's.
    """
    if path.parent.name == "tables":
        return path.stem in TABLES
    from bitsweep.report import style

    return path.suffix in (".pdf", ".png") and style.ours(path)


@contextmanager
def _answer(
    places: list[Path], folder: Path, title: str, alone: bool = False
) -> Iterator[tuple[list[Record], dict[str, Sheet], Report, list[Curve]]]:
    """Write tables and figures of the Records in ``places`` into ``folder``.

    The figures are drawn meanwhile and are there afterwards; ``alone`` as :func:`drawing` takes it.
    """
    from bitsweep.report.beside import beside

    many = sum(Store(place).count() for place in places) > MANY
    with beside(many and not alone) as early:
        from bitsweep.report import curves, tables
        from bitsweep.report.drawing import drawing
        from bitsweep.report.frame import frame
        from bitsweep.report.origin import origin

        with uncollected():
            records = collect(*(glob.escape(str(place)) for place in places))
            table = frame(records)
            depths = curves.read(places, table)
        (folder / "tables").mkdir(parents=True, exist_ok=True)
        (folder / "figures").mkdir(exist_ok=True)
        with drawing(table, folder / "figures", depths, alone, early) as begun:
            with uncollected():
                merged = [pair for place in places for pair in read_merged(place)]
                made = tables.sheets(table, origin(records), merged)
                written = _write_tables(made, folder / "tables")
            figures = tuple(begun.paths)
            report = Report(folder, title, table, tuple(written), figures, folder / "index.html")
            yield records, made, report, depths
            begun.finish()
    for path in (folder / "figures").iterdir():
        if path not in figures and ours(path):
            path.unlink()


def _write_tables(made: Mapping[str, Sheet], folder: Path) -> list[Path]:
    """Each as Markdown, CSV and LaTeX; those of a report before this one go."""
    from bitsweep.report import listing, sheet

    written = []
    for name in TABLES:
        for suffix, render in (
            ("md", sheet.markdown),
            ("csv", sheet.as_csv),
            ("tex", listing.latex),
        ):
            path = folder / f"{name}.{suffix}"
            if name in made:
                _write(path, render(made[name]))
                written.append(path)
            else:
                path.unlink(missing_ok=True)
    return written


def keep_merged(folder: str | Path, merged: Iterable[tuple[str, str]]) -> None:
    """Keep (label, reason) of the points that a sweep merged, for the report below its table.

    They have no Record: what they would have measured is another point's. The last launch's list
    stands; none leaves no file.
    """
    path = Path(folder) / MERGED
    pairs = [list(pair) for pair in merged]
    if pairs:
        _write(path, json.dumps(pairs, indent=1, ensure_ascii=False) + "\n")
    else:
        path.unlink(missing_ok=True)


def read_merged(folder: str | Path) -> list[tuple[str, str]]:
    """What :func:`keep_merged` kept, (label, reason) each; empty where there was nothing."""
    path = Path(folder) / MERGED
    if not path.exists():
        return []
    try:
        return [(str(label), str(reason)) for label, reason in json.loads(path.read_bytes())]
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: not a list of merged points ({error}); remove it") from error


def summary(report: Report, console: Console | None = None, next_command: str = "") -> None:
    """Print the end of a sweep, as :mod:`bitsweep.report.terminal` describes."""
    from bitsweep.report.terminal import show

    show(report, console, next_command)


def _readme(
    title: str, question: str, command: str, records: list[Record], drawn: list[Path]
) -> str:
    command = command or str(records[0].provenance.get("command") or "")
    machines = sorted(
        {
            f"{device}, {threads} thread{'s' * (threads != 1)}"
            for r in records
            if (device := r.provenance.get("device"))
            for threads in (r.provenance.get("threads"),)
        }
    )
    picture = next((path.name for path in drawn if path.match("front_size*.png")), None)
    parts = [
        f"# {title}",
        question,
        f"```bash\n{command}\n```" if command else "",
        f"Hardware: {'; '.join(machines)}" if machines else "",
        f"![The front: perplexity against file size](figures/{picture})" if picture else "",
        "[Quality and size](tables/main.md), with the other tables and their CSV and LaTeX beside "
        "it; commit, versions and protocols stand below each table.",
        "<!-- Yours from here on: `bitsweep report` made this file once and leaves it alone. -->",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _warn(line: str) -> None:
    print(f"bitsweep: {line}; reported without it", file=sys.stderr)


def _write(path: Path, text: str) -> None:
    def write(temporary: Path) -> None:
        temporary.write_bytes(text.encode("utf-8"))

    write_atomically(path, write)
