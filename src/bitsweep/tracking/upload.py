"""All of an experiment to one tracker: what ``bitsweep publish`` does, run by run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from bitsweep import tracking
from bitsweep.errors import UserError
from bitsweep.record import Record
from bitsweep.store import Store
from bitsweep.tracking import Say, Summary, Tracker
from bitsweep.tracking.flat import label
from bitsweep.tracking.ledger import Ledger, Slot

Artifacts = Mapping[str, tuple[Path, ...]]
"""Exported checkpoints by the run_id of the Record whose run refers to them."""


@dataclass(frozen=True)
class Task:
    """What is to be published. ``summary`` makes the report when its turn comes, last.

    What it makes is None where there is no report. ``anew``: every run under its next id.
    """

    store: Store
    records: tuple[Record, ...]
    summary: Callable[[], Summary | None]
    artifacts: Artifacts = field(default_factory=dict)
    anew: bool = False

    @property
    def total(self) -> int:
        """At most: every Record and the report."""
        return len(self.records) + 1


@dataclass
class Count:
    """How far one tracker came; ``left``: runs that could not be published or were not tried."""

    written: int = 0
    there: int = 0
    left: int = 0

    @property
    def total(self) -> int:
        return self.written + self.there + self.left


def upload(tracker: Tracker, task: Task, say: Say, progress: Callable[[int, str], None]) -> Count:
    """Publish what this tracker lacks.

    A run that fails leaves the others to be tried; a server that is lost, or three failures in a
    row, end it. What was published stays. ``progress`` takes the number of a run and its name.

    Raises:
        UserError: what no further try could help.
    """
    count, in_a_row = Count(left=task.total), 0
    for number, (title, write) in enumerate(_writes(tracker, task, say), start=1):
        progress(number, title)
        try:
            written = write()
        except UserError:
            raise
        except Exception as error:  # whatever a library or a server raises
            say(f"{tracker.name}: {title}: {_first_line(error)}")
            in_a_row += 1
            if isinstance(error, ConnectionError) or in_a_row >= tracking.GIVE_UP_AFTER:
                break
            continue
        in_a_row = 0
        count.left -= 1
        count.written += written is True
        count.there += written is False
    return count


def missing(tracker: Tracker, task: Task) -> list[tuple[str, Slot]]:
    """The runs that :func:`upload` would write, named, and the id of each."""
    if not tracker.destination():
        return []
    ledger = Ledger.of(task.store.folder)
    wanted = [
        (title(r), tracking.wanted_record(tracker, r, task.artifacts.get(r.run_id, ())))
        for r in task.records
    ]
    summary = task.summary()
    if summary is not None:
        wanted.append(("report", tracking.wanted_report(tracker, summary)))
    slots = ((name, ledger.slot(want, tracker.has, task.anew)) for name, want in wanted)
    return [(name, slot) for name, slot in slots if slot is not None]


def title(record: Record) -> str:
    """``rtn w4g64 uniform quality``."""
    return f"{label(record)} {record.kind}"


def _writes(
    tracker: Tracker, task: Task, say: Say
) -> Iterator[tuple[str, Callable[[], bool | None]]]:
    """Every run, named, and what writes it: True when it was written, False when it was there."""
    ledger = Ledger.of(task.store.folder)
    for record in task.records:
        carried = task.artifacts.get(record.run_id, ())
        publish = partial(tracking.publish_record, tracker, task.store, ledger, record, say)
        yield title(record), partial(publish, carried, task.anew)

    def report() -> bool | None:
        summary = task.summary()
        if summary is None:
            return None
        return tracking.publish_report(tracker, ledger, summary, say, task.anew)

    yield "report", report


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
