"""``publish``: an experiment's Records as runs of W&B, MLflow or TensorBoard, each once."""

from __future__ import annotations

import argparse
import functools
import json
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitsweep import cli, config
from bitsweep.commands.launch import Parser, question, sweeping
from bitsweep.commands.look import folder_of
from bitsweep.compose import (
    compose,
    experiment_overrides,
    experiments,
    group_files,
    one_line_errors,
)
from bitsweep.config import command_line
from bitsweep.errors import UserError
from bitsweep.models.source import MANIFEST
from bitsweep.store import Store
from bitsweep.tracking import Summary, Tracker
from bitsweep.tracking.ledger import Ledger
from bitsweep.tracking.upload import Artifacts, Task, missing, upload
from bitsweep.tracking.wandb import Wandb

if TYPE_CHECKING:
    from bitsweep.record import Record


def publish(argv: list[str]) -> int:
    """``bitsweep publish NAME``: every run that is missing or changed, by the ledger."""
    given = _flags().parse_intermixed_args(argv)
    if not given.name or "=" in given.name:
        known = ", ".join(sorted(path.parent.name for path in given.results_dir.glob("*/records")))
        raise UserError(f"publish: takes the NAME of a sweep first; there are {known or 'none'}")
    folder = folder_of(given.name, given.results_dir, "publish")
    trackers = _trackers(folder.name, given.overrides, given.config_dir)
    found = Store(folder).records()
    records = tuple(record for record in found if record.status != "refused")
    if not records:
        raise UserError(f"publish {given.name}: {folder} has no point that was measured")
    wandb = [tracker for tracker in trackers if isinstance(tracker, Wandb)]
    if given.workspace and not wandb:
        raise UserError("--workspace: is a view of W&B; add tracker=wandb")
    make = partial(_front if given.dry_run else _report, folder, found)
    artifacts = _artifacts(given.artifact, records)
    task = Task(Store(folder), records, functools.cache(make), artifacts, given.again)
    if given.dry_run:
        for tracker in trackers:
            _say_missing(tracker, task)
        return cli.OK
    command = command_line("publish", argv)
    try:
        complete = [_upload(tracker, task, command) for tracker in trackers]
    except KeyboardInterrupt:
        print(f"stopped; what is published stays; go on with: {command}", file=sys.stderr)
        return cli.STOPPED
    for tracker in wandb if given.workspace else ():
        _workspace(tracker, task, command, reached=all(complete))
    return cli.OK if all(complete) else cli.FAILED


def _flags() -> argparse.ArgumentParser:
    flags = Parser(prog="bitsweep publish", add_help=False, allow_abbrev=False)
    flags.add_argument("name", nargs="?", default="")
    flags.add_argument("overrides", nargs="*")
    flags.add_argument("--results-dir", type=Path, default=Path("results"))
    flags.add_argument("--config-dir", "-cd")
    flags.add_argument("--artifact", type=Path, action="append", default=[])
    flags.add_argument("--workspace", action="store_true")
    flags.add_argument("--dry-run", action="store_true")
    flags.add_argument("--again", action="store_true")
    return flags


def _trackers(name: str, overrides: Sequence[str], config_dir: str | None) -> tuple[Tracker, ...]:
    """The trackers of the experiment's file, of ``conf`` or of the command line.

    Raises:
        UserError: a key that is no tracker's, a value that does not fit, or ``tracker=none``.
    """
    known = [choice for choice in group_files("tracker") if choice != "none"]
    for item in overrides:
        key = item.lstrip("+~").partition("=")[0]
        if key != "plugins" and key.partition(".")[0] != "tracker":
            raise UserError(
                f"publish {item}: takes tracker={'|'.join(known)} and their options, as "
                f"tracker.{item if '=' in item else 'KEY=VALUE'}; of Records nothing changes here"
            )
    own = experiment_overrides(name) if name in experiments() else []
    short = [item for item in overrides if _is_short(item, (*known, "none"))]
    values = _composed([*own, *(item for item in overrides if item not in short)], config_dir)
    if short:
        chosen = list(values["tracker"] or {})
        if len(chosen) != 1:
            raise UserError(
                f"{short[0]}: of which of {', '.join(chosen)}? write "
                f"tracker.{(chosen or known)[0]}.{short[0].partition('.')[2]}"
            )
        full = [item.replace("tracker.", f"tracker.{chosen[0]}.", 1) for item in short]
        given = [item for item in overrides if item not in short]
        values = _composed([*own, *given, *full], config_dir)
    trackers = config.trackers(values, values["plugins"] or [])
    found = tuple(tracker for tracker in trackers if tracker.name != "none")
    if not found:
        raise UserError(
            f"tracker=none: publishes nothing; use tracker={' or tracker='.join(known)}"
        )
    return found


def _is_short(item: str, known: Sequence[str]) -> bool:
    """Whether it is ``tracker.project=mine``: an option of the only tracker there is."""
    parts = item.partition("=")[0].split(".")
    return len(parts) == 2 and parts[0] == "tracker" and parts[1] not in known


def _composed(overrides: Sequence[str], config_dir: str | None) -> dict[str, Any]:
    """The trackers' part of a configuration: what else it lacks (a model's path) is not asked."""
    from omegaconf import OmegaConf

    whole = compose(overrides, config_dir)
    with one_line_errors():
        return {
            key: None if whole[key] is None else OmegaConf.to_container(whole[key], resolve=True)
            for key in ("tracker", "plugins")
        }


def _artifacts(asked: Sequence[Path], records: Sequence[Record]) -> Artifacts:
    """Exported checkpoints that the user asks to refer to, by the Record that each is of.

    A folder is one export, or holds several (``exports``), of which those of these Records count.

    Raises:
        UserError: it is no export of ``bitsweep export``, or of none of these Records.
    """
    known = {record.run_id for record in records}
    found: dict[str, tuple[Path, ...]] = {}
    for folder in asked:
        manifests = [folder / MANIFEST] if (folder / MANIFEST).is_file() else []
        manifests = manifests or sorted(folder.glob(f"*/{MANIFEST}"))
        mine = [(path.parent, run_id) for path in manifests for run_id in _made(path, known)]
        if not manifests:
            raise UserError(
                f"--artifact {folder}: no {MANIFEST} there or one below; "
                "name a folder that `bitsweep export` made"
            )
        if not mine:
            raise UserError(f"--artifact {folder}: is of no Record of this experiment")
        for place, run_id in mine:
            found[run_id] = (*found.get(run_id, ()), place)
    return found


def _made(manifest: Path, known: set[str]) -> Iterator[str]:
    """The Record that an export is of: its quality's, else its timing's."""
    try:
        run_ids = dict(json.loads(manifest.read_text(encoding="utf-8")).get("run_ids", {}))
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"--artifact {manifest}: not a manifest of ours ({error})") from error
    yield from [run_ids[kind] for kind in sorted(run_ids) if run_ids[kind] in known][:1]


def _front(folder: Path, records: Sequence[Record]) -> Summary | None:
    """The front alone, without writing the page: enough to say whether it is published."""
    from bitsweep.report.frame import frame
    from bitsweep.report.terminal import front_rows

    try:
        return Summary(folder.name, *front_rows(frame(list(records))))
    except UserError:
        return None


def _report(folder: Path, records: Sequence[Record]) -> Summary | None:
    """Tables, front and page as ``bitsweep report`` writes them; runs are published without."""
    from bitsweep import report

    name = folder.name
    try:
        written = report.write(folder, question=question(name), command=sweeping(name))
    except UserError as reason:
        print(f"no report: {reason}")
        return None
    return Summary.of(written, records)


def _upload(tracker: Tracker, task: Task, command: str) -> bool:
    """Publish to one tracker and say how it went; whether all of it is there."""
    from rich.console import Console

    place = _place(tracker)
    if not place:
        print(f"{tracker.name}: is turned off (mode=disabled); nothing is published")
        return True
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    with console.status(tracker.name) as status:

        def progress(number: int, title: str) -> None:
            status.update(f"{tracker.name} [{number}/{task.total}] {title}")

        count = upload(tracker, task, console.print, progress)
    there = f", {count.there} there before" if count.there else ""
    if count.written or count.left:
        print(f"{tracker.name}: {count.written} of {count.total} runs published{there}; {place}")
    else:
        print(f"{tracker.name}: all {count.total} runs are there already; {place}")
    if count.left:
        print(f"{tracker.name}: {count.left} are missing, the others stay; go on with: {command}")
    elif tracker.hint():
        print(tracker.hint())
    return not count.left


def _place(tracker: Tracker) -> str:
    """Where its runs go, for a reader; empty for nowhere."""
    return tracker.place() if isinstance(tracker, Wandb) else tracker.destination()


def _say_missing(tracker: Tracker, task: Task) -> None:
    """What publishing now would write, a line a run."""
    todo = missing(tracker, task)
    place = _place(tracker) or "turned off"
    print(f"{tracker.name}: {len(todo)} of {task.total} runs to publish; {place}")
    for title, slot in todo:
        there = "again" if task.anew else "changed"
        why = "again" if slot.again else there if slot.superseded else "new"
        print(f"  {why:<9}{slot.ident}  {title}")


def _applying(command: str) -> str:
    """``command`` without the key that kept it offline."""
    words = shlex.split(command)
    return shlex.join(w for w in words if not re.match(r"tracker(\.wandb)?\.mode=", w))


def _workspace(tracker: Wandb, task: Task, command: str, reached: bool) -> None:
    """W&B's view of the experiment as code, in a file; applied as well where runs went online."""
    from bitsweep.tracking import workspace

    folder = task.store.folder
    made = workspace.specification(
        task.records,
        folder.name,
        tracker.project,
        tracker.entity or None,
        question=question(folder.name),
        command=_applying(command),
        ids=Ledger.of(folder).ids(tracker.name, tracker.destination()),
    )
    path = workspace.write(made, folder)
    if not reached or tracker.resolve_mode() != "online":
        print(workspace.how_to_apply(made, path))
        return
    applied = workspace.apply(made)
    for address in (*applied.workspaces, applied.report):
        print(f"W&B: {address}")
