"""The view of an experiment in Weights & Biases as code: saved workspaces and a report.

What they show is decided in :mod:`bitsweep.tracking.view`. The specification is what W&B's app
reads, as wandb-workspaces writes it, in one file without dates or random ids; it is applied as
often as one likes: a view and a report of that name are replaced.
"""

from __future__ import annotations

import importlib
import json
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bitsweep.artifacts import digest, write_atomically
from bitsweep.errors import UserError
from bitsweep.record import Record
from bitsweep.tracking.environment import environment
from bitsweep.tracking.wandb import QUIET

FILE = "workspace.json"
FORMAT = 1
TITLE_CAP = 128
TIMEOUT_S = 15
MISSING = "install it with: pip install 'bitsweep[wandb-workspaces]'"


@dataclass(frozen=True)
class View:
    """One saved workspace or report: ``spec`` is what the app reads of it.

    ``name`` is the last part of a workspace's address; a report gets its own from the server.
    """

    title: str
    spec: dict[str, Any]
    name: str = ""
    description: str = ""


@dataclass(frozen=True)
class Specification:
    """Everything about an experiment's view. ``entity`` None: your default one when applied.

    ``command`` applies it.
    """

    experiment: str
    project: str
    entity: str | None
    command: str
    workspaces: tuple[View, ...]
    report: View


class Applied(NamedTuple):
    """Addresses over there."""

    workspaces: tuple[str, ...]
    report: str


def specification(
    records: Iterable[Record],
    experiment: str,
    project: str,
    entity: str | None = None,
    *,
    question: str = "",
    command: str = "",
    ids: Mapping[str, str] | None = None,
) -> Specification:
    """The workspaces, one a model that has points, and the report of an experiment's Records.

    ``question`` opens the report. ``command`` is what was typed to get here. ``ids``: run_id of a
    Record -> id of its run over there, for the colours; a Record's first attempt where it is not
    said.

    Raises:
        UserError: no Record is ``ok``, two protocols share one metric, or wandb-workspaces is
            missing.
    """
    panels = _library("panels")
    from bitsweep.tracking import flat, view

    records = list(records)
    blocks = view.blocks(records)
    if not blocks:
        raise UserError(f"publish {experiment} --workspace: no point of it is ok, nothing to show")
    known = ids or {}
    looks = {
        run_id: (known.get(run_id, f"{run_id[:32]}-1"), color)
        for run_id, color in view.colors(records).items()
    }
    command = command or f"bitsweep publish {experiment} --workspace"
    several = len(blocks) > 1
    workspaces = []
    for block in blocks:
        title = f"{experiment} fronts: {block.title}" if several else f"{experiment} fronts"
        spec = panels.workspace(block, looks)
        workspaces.append(View(_plain(title), spec, digest([experiment, block.title])[:11]))
    said = [str(flat.plain(text)) for text in (question, command)]
    report = panels.report(blocks, looks, experiment, *said)
    about = f"Pareto fronts of the bitsweep experiment {experiment}"
    return Specification(
        experiment=experiment,
        project=project,
        entity=entity,
        command=command,
        workspaces=tuple(workspaces),
        report=View(_plain(f"{experiment} report")[:TITLE_CAP], report, description=about),
    )


def write(specification: Specification, folder: str | Path) -> Path:
    """Write ``folder/workspace.json``, the same bytes for the same Records.

    Keys stay in the library's order: that of pinned columns is the order of the table.
    """
    path = Path(folder) / FILE
    value = {"format": FORMAT, **asdict(specification)}
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(path, lambda temporary: _put(temporary, text))
    return path


def load(path: str | Path) -> Specification:
    """The inverse of :func:`write`; every part was read by wandb-workspaces and is as it was.

    Raises:
        UserError: not such a file, or one of another wandb-workspaces, which would lose a part.
    """
    wire = _library("wire")
    try:
        value = json.loads(Path(path).read_bytes())
        if value.pop("format") != FORMAT:
            raise ValueError("another format")
        views = tuple(View(**one) for one in value.pop("workspaces"))
        report = View(**value.pop("report"))
        found = Specification(**value, workspaces=views, report=report)
        for one in views:
            if wire.spec_of(wire.read_workspace(one.spec)) != one.spec:
                raise ValueError(f"wandb-workspaces reads {one.title} otherwise")
        if wire.spec_of(wire.read_report(report.spec)) != report.spec:
            raise ValueError("wandb-workspaces reads the report otherwise")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"{path}: no view for W&B ({first}); write it anew with bitsweep publish NAME "
            "--workspace"
        ) from error
    return found


def how_to_apply(specification: Specification, path: Path) -> str:
    """What to tell a person without a login, in one line."""
    return f"The W&B view is kept in {path}; to apply it: wandb login, then {specification.command}"


@environment(QUIET)
def apply(specification: Specification, timeout_s: int = TIMEOUT_S) -> Applied:
    """Save the workspaces and the report over there; those of the same name are replaced.

    Raises:
        UserError: the server is not reached within ``timeout_s``, or refuses.
    """
    wire = _library("wire")
    import wandb

    try:
        wandb.setup(settings=wandb.Settings(silent=True))
        api = wandb.Api(timeout=timeout_s)
        entity = specification.entity or api.default_entity
        if not entity:
            raise ValueError("your login has no default entity; name one with tracker.entity=")
        place = (entity, specification.project)
        workspaces = tuple(
            wire.save_workspace(one.spec, wire.Place(*place, one.title), one.name)
            for one in specification.workspaces
        )
        one = specification.report
        mine = (one.title, one.description)  # a title alone may be another person's report
        same = (
            r.id for r in api.reports("/".join(place)) if (r.display_name, r.description) == mine
        )
        at = wire.Place(*place, one.title)
        report = wire.save_report(one.spec, at, one.description, next(same, ""))
    except Exception as error:  # whatever the server does, the file is on disk
        first = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"tracker=wandb: the view was not applied ({type(error).__name__}: {first}); "
            f"it is kept, to try again: {specification.command}"
        ) from error
    return Applied(workspaces, report)


def _library(module: str) -> Any:
    """One of the modules that need wandb-workspaces, an optional library."""
    try:
        return importlib.import_module(f"bitsweep.tracking.{module}")
    except ImportError as error:
        raise UserError(f"publish --workspace: {error}; {MISSING}") from error


def _plain(title: str) -> str:
    """W&B refuses symbols in the name of a view: ``×``, ``+``, ``=`` and every emoji."""
    kept = (" " if unicodedata.category(c)[0] in "SC" else c for c in title)
    return " ".join("".join(kept).split())


def _put(path: Path, text: str) -> None:
    path.write_bytes(text.encode("utf-8"))
