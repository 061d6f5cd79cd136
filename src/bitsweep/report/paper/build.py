"""Every table and figure of the paper from the Records, or whether those on disk are these."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from bitsweep import report
from bitsweep.artifacts import write_atomically
from bitsweep.compose import choices, experiments, nearest
from bitsweep.errors import UserError
from bitsweep.record import Record
from bitsweep.report import listing
from bitsweep.report.paper.document import WIDTHS_IN, Float, Written, document, index
from bitsweep.report.paper.language import Copy, Drawn, Section, sections
from bitsweep.report.sheet import PAGE_LINES, Sheet, as_csv, latex, markdown

LINK = re.compile(r"\]\((tables|figures)/([^)/]+)\.(?:md|pdf)\)")
ENDS = (".pdf", ".png", ".tex", ".md", ".csv")
GUIDE = Path("docs/paper.md")
"""Which a checkout of ours has, with a Makefile beside it; a folder of one's own has neither."""
WORKERS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True)
class Built:
    """What was written, by section, and the sections without Records, each with its reason."""

    written: tuple[Written, ...]
    skipped: tuple[str, ...]


def build(out: Path, results: Path) -> Built:
    """Write ``out``/tables, figures, tables.tex and README.md from the Records in ``results``.

    What the README.md that is there names and is no longer made is removed; what else lies in
    tables/ and figures/ is its author's.

    Raises:
        UserError: a part of an experiment's file is wrong, or no experiment has Records.
    """
    every = sections()
    ready = [section for section in every if (results / section.experiment / "records").is_dir()]
    if not every:
        raise UserError(
            "paper: no experiment in experiments/ has a part `paper:`, which names its tables and "
            "figures (docs/paper.md); `bitsweep report NAME` needs none"
        )
    if not ready:
        raise UserError(
            f"paper: no experiment with a part `paper:` has Records in {results}; run "
            "`bitsweep paper --rerun`, or name the folder with --results-dir"
        )
    for kind in ("tables", "figures"):
        (out / kind).mkdir(parents=True, exist_ok=True)
    job = partial(_section, out=out, results=results)
    found = tuple(Written(s, f) for s, f in zip(ready, _spread(job, ready), strict=True))
    kept = {f"{each.kind}/{name}" for made in found for each in made.floats for name in each.files}
    stale = indexed(out) - kept
    for path in (*(out / "tables").iterdir(), *(out / "figures").iterdir()):
        if _ours(stale, path):
            path.unlink()
    _write(out / "tables.tex", document(found))
    _write(out / "README.md", index(found, GUIDE.is_file()))
    skipped = tuple(
        f"{section.experiment}: no Records in {results / section.experiment}; left out until "
        f"`bitsweep sweep {section.experiment}`"
        for section in every
        if section not in ready
    )
    return Built(found, skipped)


def indexed(out: Path) -> set[str]:
    """``tables/NAME`` and ``figures/NAME`` of all that the index in ``out`` links."""
    path = out / "README.md"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return {f"{kind}/{name}" for kind, name in LINK.findall(text)}


def _ours(made: set[str], path: Path) -> bool:
    """Whether a file in tables/ or figures/ is one of those that were ``made``."""
    return path.suffix in ENDS and f"{path.parent.name}/{path.stem}" in made


def folders(results: Path) -> tuple[list[Path], list[Path]]:
    """Folders of Records in ``results``: those of an experiment's file, and the others.

    The others (``adhoc``) may mix whatever was tried, and are no part of a paper.
    """
    named = {name for section in sections() for name in _asked(section)} | {*experiments()}
    found = sorted(path.parent for path in results.glob("*/records"))
    return [p for p in found if p.name in named], [p for p in found if p.name not in named]


def _asked(section: Section) -> Iterator[str]:
    """The experiments whose Records a section reads beside its own."""
    for part in (*section.tables.values(), *section.figures.values()):
        yield from getattr(part, "records", ())


def reports(folders: Iterable[Path]) -> None:
    """Each experiment's own tables and figures anew, in its folder."""
    for _ in _spread(report.redraw, list(folders)):
        pass


def differences(out: Path, results: Path) -> list[str]:
    """Which files differ from those that the Records give, each with what is wrong with it."""
    with tempfile.TemporaryDirectory() as name:
        again = Path(name)
        build(again / "paper", results)
        made = ("tables", "figures", "tables.tex", "README.md")
        pairs: list[tuple[Path, Path, tuple[str, ...]]] = [(out, again / "paper", made)]
        for folder in folders(results)[0]:
            copy = again / "results" / folder.name
            shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("tables", "figures"))
            pairs.append((folder, copy, ("tables", "figures")))
        reports(copy for _, copy, _ in pairs[1:])
        found = list(differ(*pairs[0], ours=partial(_ours, indexed(out))))
        return found + [line for pair in pairs[1:] for line in differ(*pair, ours=report.ours)]


def differ(
    here: Path, again: Path, names: tuple[str, ...], ours: Callable[[Path], bool]
) -> Iterator[str]:
    """A line for each file in which two folders differ, in what ``names`` name; of those that are
    ``here`` alone, only for what is ``ours``.
    """
    old, new = ({p.relative_to(root): p for p in _files(root, names)} for root in (here, again))
    for name in sorted({*old, *new}):
        if name not in old:
            yield f"{here / name}: missing"
        elif name not in new:
            if ours(here / name):
                yield f"{here / name}: is made by nothing any more"
        elif old[name].read_bytes() != new[name].read_bytes():
            yield f"{here / name}: differs"


def _files(root: Path, names: tuple[str, ...]) -> Iterator[Path]:
    for name in names:
        path = root / name
        yield from (
            (p for p in path.glob("*") if p.is_file())
            if path.is_dir()
            else ([path] if path.exists() else [])
        )


def _spread(job: Callable[[Any], Any], items: list[Any]) -> list[Any]:
    """``job`` of each, in their order, on several processes: drawing is slow and shares nothing."""
    if len(items) < 2 or WORKERS < 2:
        return [job(item) for item in items]
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool:
        return list(pool.map(job, items))


def _section(section: Section, out: Path, results: Path) -> tuple[Float, ...]:
    """Write the files of one section."""
    sources = _Sources(section, results)
    floats = []
    for name, table in section.tables.items():
        where = f"{section.experiment}: paper.tables.{name}"
        sheet, origin = _sheet(where, table, sources)
        listed = isinstance(table, Copy)
        tex = listing.latex(sheet, WIDTHS_IN[table.width]) if listed else latex(sheet)
        for suffix, text in (("tex", tex), ("md", markdown(sheet)), ("csv", as_csv(sheet))):
            _write(out / "tables" / f"{name}.{suffix}", text)
        floats.append(Float("tables", name, table.caption, table.width, (name,), origin))
    for name, figure in section.figures.items():
        where = f"{section.experiment}: paper.figures.{name}"
        files, origin = _draw(where, name, figure, sources, out / "figures")
        floats.append(Float("figures", name, figure.caption, figure.width, files, origin))
    return tuple(floats)


class _Sources:
    """The Records that a section reads, each set of experiments once."""

    def __init__(self, section: Section, results: Path) -> None:
        self.own, self.results = section.experiment, results
        self._found: dict[tuple[str, ...], tuple[list[Record], Any]] = {}

    def __call__(self, where: str, names: tuple[str, ...] = ()) -> tuple[list[Record], Any]:
        """Records and frame of the experiments ``names``, by default the section's own."""
        from bitsweep.report.frame import frame

        names = names or (self.own,)
        if names not in self._found:
            known = sorted(path.parent.name for path in self.results.glob("*/records"))
            for name in names:
                if name not in known:
                    raise UserError(
                        f"{where}.records: {name}: no Records in {self.results / name}"
                        f"{nearest(name, known) or choices(known)}"
                    )
            records = report.collect(*(self.results / name for name in names))
            self._found[names] = records, frame(records)
        return self._found[names]


def _sheet(where: str, table: Any, sources: _Sources) -> tuple[Sheet, str]:
    from dataclasses import replace

    from bitsweep.report import tables
    from bitsweep.report.origin import origin
    from bitsweep.report.paper.pivot import make

    if isinstance(table, Copy):
        records, frame = sources(where)
        made = tables.sheets(frame, origin(records))
        if table.report not in made:
            raise UserError(
                f"{where}.report={table.report}: the report of {sources.own} has no such table"
                f"{nearest(table.report, made) or choices(sorted(made))}"
            )
        listed = made[table.report]
        if listing.is_tall(listed, WIDTHS_IN[table.width]):
            raise UserError(
                f"{where}.report={table.report}: has more lines than a page ({PAGE_LINES}); input "
                f"results/{sources.own}/tables/{table.report}.tex in an appendix instead"
            )
        return replace(listed, title=table.caption), origin(records)
    records, frame = sources(where, table.records)
    found = make(where, frame, table)
    said = f"From {origin([r for r in records if r.run_id in found.run_ids])}"
    return replace(found.sheet, small=(*found.sheet.small, said)), said


def _draw(
    where: str, name: str, figure: Any, sources: _Sources, folder: Path
) -> tuple[tuple[str, ...], str]:
    """Names of the pictures without their type, and which Records they show."""
    from bitsweep.report.origin import origin
    from bitsweep.report.paper.plot import drawn, pictures
    from bitsweep.report.style import in_style, save

    with in_style():
        if isinstance(figure, Drawn):
            records, frame = sources(where)
            found = drawn(where, frame, figure, sources.results / sources.own)
        else:
            records, frame = sources(where, figure.records)
            found = pictures(where, frame, figure)
        names: list[str] = []
        used: set[str] = set()
        for picture in found:
            names.append(f"{name}{picture.end}")
            used |= picture.run_ids
            save(picture.drawing, folder, names[-1])
    if not names:
        raise UserError(f"{where}: no Record has the numbers that it draws")
    return tuple(names), f"From {origin([r for r in records if r.run_id in used])}"


def _write(path: Path, text: str) -> None:
    def write(temporary: Path) -> None:
        temporary.write_bytes(text.encode("utf-8"))

    write_atomically(path, write)
