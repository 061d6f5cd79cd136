"""``publish``: an experiment's Records as runs of W&B, MLflow or TensorBoard, each once."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitsweep import cli, config, tracking
from bitsweep.commands.launch import Parser, question
from bitsweep.commands.look import folder_of
from bitsweep.compose import compose, experiment_overrides, experiments, group_files
from bitsweep.config import command_line
from bitsweep.errors import UserError
from bitsweep.store import Store
from bitsweep.tracking import MANIFEST, Summary, Tracker
from bitsweep.tracking.flat import label
from bitsweep.tracking.ledger import Ledger
from bitsweep.tracking.wandb import Wandb

if TYPE_CHECKING:
    from bitsweep.record import Record

Artifacts = Mapping[str, tuple[Path, ...]]
"""Exported checkpoints by the run_id of the Record whose run refers to them."""


@dataclass(frozen=True)
class Task:
    """What is to be published; ``command`` asks for it again."""

    store: Store
    records: tuple[Record, ...]
    summary: Summary | None
    artifacts: Artifacts
    anew: bool
    command: str

    @property
    def total(self) -> int:
        return len(self.records) + (self.summary is not None)


@dataclass
class Count:
    """How far one tracker came."""

    seen: int = 0
    written: int = 0
    there: int = 0

    def incomplete(self, task: Task) -> bool:
        return self.seen > 0 and self.written + self.there < task.total


def publish(argv: list[str]) -> int:
    """``bitsweep publish NAME``: every run that is missing or changed, by the ledger."""
    given = _flags().parse_intermixed_args(argv)
    folder = folder_of(given.name, given.results_dir, "publish")
    trackers = _trackers(given.name, given.overrides, given.config_dir)
    store = Store(folder)
    found = store.records()
    records = tuple(record for record in found if record.status != "refused")
    if not records:
        raise UserError(f"publish {given.name}: {folder} has no point that was measured")
    artifacts = _artifacts(given.artifact, records)
    summary = _front(given.name, found) if given.dry_run else _report(given.name, folder, found)
    task = Task(store, records, summary, artifacts, given.again, command_line("publish", argv))
    if given.dry_run:
        for tracker in trackers:
            _say_plan(tracker, task)
        return cli.OK
    try:
        counts = [_publish(tracker, task) for tracker in trackers]
    except KeyboardInterrupt:
        print(f"stopped; what is published stays; go on with: {task.command}", file=sys.stderr)
        return cli.STOPPED
    if any(count.incomplete(task) for count in counts):
        return cli.FAILED
    if given.workspace:
        _workspace(task, given.name, trackers)
    return cli.OK


def _flags() -> argparse.ArgumentParser:
    flags = Parser(prog="bitsweep publish", add_help=False, allow_abbrev=False)
    flags.add_argument("name")
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


def _front(name: str, records: Sequence[Record]) -> Summary | None:
    """The front alone, without writing the page: enough to say whether it is published."""
    from bitsweep.report.frame import frame
    from bitsweep.report.terminal import front_rows

    try:
        return Summary(Path(name).name, *front_rows(frame(list(records))))
    except UserError:
        return None


def _report(name: str, folder: Path, records: Sequence[Record]) -> Summary | None:
    """Tables, front and page as ``bitsweep report`` writes them; runs are published without."""
    from bitsweep import report

    command = f"bitsweep sweep {name}" if name in experiments() else ""
    try:
        written = report.write(folder, question=question(name), command=command)
    except UserError as reason:
        print(f"no report: {reason}")
        return None
    return Summary.of(written, records)


def _publish(tracker: Tracker, task: Task) -> Count:
    """All of ``task`` that this tracker lacks; a server that is lost ends it."""
    from rich.console import Console

    count, place, in_a_row = Count(), tracker.destination(), 0
    if not place:
        print(f"{tracker.name}: is turned off (mode=disabled); nothing is published")
        return count
    console = Console(stderr=True, highlight=False, markup=False)
    with console.status("") as status:
        for title, write in _writes(tracker, task):
            count.seen += 1
            status.update(f"{tracker.name} [{count.seen}/{task.total}] {title}")
            try:
                written = write()
            except UserError:
                raise
            except Exception as error:  # of a library or a server: the others go on
                first = (str(error).splitlines() or [""])[0]
                print(f"{tracker.name}: {title}: {first or type(error).__name__}", file=sys.stderr)
                in_a_row += 1
                if isinstance(error, ConnectionError) or in_a_row >= tracking.GIVE_UP_AFTER:
                    break
                continue
            in_a_row = 0
            count.written += written
            count.there += not written
    _say_result(tracker, place, count, task)
    return count


def _writes(tracker: Tracker, task: Task) -> Iterator[tuple[str, Callable[[], bool]]]:
    """Every run, named, and what writes it unless it is there."""
    ledger = Ledger.of(task.store.folder)

    def say(line: str) -> None:
        print(line, file=sys.stderr)

    for record in task.records:
        carried = task.artifacts.get(record.run_id, ())
        yield (
            f"{label(record)} {record.kind}",
            partial(
                tracking.publish_record,
                tracker,
                task.store,
                ledger,
                record,
                say,
                carried,
                task.anew,
            ),
        )
    if task.summary is not None:
        yield (
            "report",
            partial(tracking.publish_report, tracker, ledger, task.summary, say, task.anew),
        )


def _say_result(tracker: Tracker, place: str, count: Count, task: Task) -> None:
    there = f", {count.there} there before" if count.there else ""
    print(f"{tracker.name}: {count.written} of {task.total} runs published{there}; {place}")
    if count.incomplete(task):
        left = task.total - count.written - count.there
        print(
            f"{tracker.name}: {left} are not published, the others stay; go on with: {task.command}"
        )
    elif tracker.hint():
        print(tracker.hint())


def _say_plan(tracker: Tracker, task: Task) -> None:
    """What publishing now would write, a line a run."""
    place = tracker.destination()
    ledger = Ledger.of(task.store.folder)
    wanted = [
        (
            f"{label(r)} {r.kind}",
            tracking.wanted_record(tracker, r, task.artifacts.get(r.run_id, ())),
        )
        for r in task.records
    ]
    if task.summary is not None:
        wanted.append(("report", tracking.wanted_report(tracker, task.summary)))
    slots = [(title, ledger.slot(want, tracker.has, task.anew)) for title, want in wanted if place]
    todo = [(title, slot) for title, slot in slots if slot is not None]
    print(f"{tracker.name}: {len(todo)} of {len(slots)} runs to publish; {place or 'turned off'}")
    for title, slot in todo:
        why = "again" if slot.again else "changed" if slot.superseded else "new"
        print(f"  {why:<9}{slot.ident}  {title}")


def _workspace(task: Task, name: str, trackers: Sequence[Tracker]) -> None:
    """W&B's view of the experiment as code: applied where runs go online, else kept in a file."""
    from bitsweep.tracking import workspace

    mine = [tracker for tracker in trackers if isinstance(tracker, Wandb)]
    if not mine:
        raise UserError("--workspace: is a view of W&B; add tracker=wandb")
    for tracker in mine:
        ids = Ledger.of(task.store.folder).ids(tracker.name, tracker.destination())
        made = workspace.specification(
            task.records,
            Path(name).name,
            tracker.project,
            tracker.entity or None,
            question=question(name),
            command=task.command,
            ids=ids,
        )
        path = workspace.write(made, task.store.folder)
        if tracker.resolve_mode() != "online":
            print(workspace.how_to_apply(made, path))
            continue
        applied = workspace.apply(made)
        for address in (*applied.workspaces, applied.report):
            print(f"view    {address}")
