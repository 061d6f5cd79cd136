"""Mirrors of finished Records elsewhere (W&B, MLflow, TensorBoard): views, never the source.

A tracker is a frozen dataclass named by ``_target_`` in ``conf/tracker/<name>.yaml``. It sees a
Record when that is on disk already, so losing it loses a view and nothing else. A sweep meets a
tracker only through :func:`open`, whose :class:`Mirror` never raises; ``bitsweep publish`` writes
the same runs with :func:`publish_record` and :func:`publish_report`. Both keep the ledger.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bitsweep.artifacts import digest, hash_file
from bitsweep.models.source import MANIFEST
from bitsweep.record import Record
from bitsweep.store import Store
from bitsweep.tracking.layers import Layers
from bitsweep.tracking.ledger import Ledger, Wanted
from bitsweep.tracking.private import without_paths

if TYPE_CHECKING:
    from bitsweep.report import Report

Say = Callable[[str], None]
GIVE_UP_AFTER = 3


@dataclass(frozen=True)
class Summary:
    """What a finished sweep shows: the front as a table, pictures of it, and the page's HTML."""

    experiment: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    pictures: tuple[Path, ...] = ()
    page: str = ""

    @classmethod
    def of(cls, report: Report, records: Iterable[Record]) -> Summary:
        """The front of a written report, one row a point; the page without paths of ``records``."""
        from bitsweep.report.terminal import front_rows

        columns, rows = front_rows(report.frame)
        pictures = tuple(path for path in report.figures if path.suffix == ".png")
        page = without_paths(report.page.read_text(encoding="utf-8"), records)
        return cls(report.title, columns, rows, pictures, page)


@dataclass(frozen=True)
class Entry:
    """One run over there: its id, and what stands in it beside the Record or the Summary.

    ``again``: an earlier try may have left a part of it (or a whole with less beside it) under this
    id: the run is written anew, whole, and there is one of it afterwards. ``superseded``: ids of
    the same point's older contents there, tagged so where that can be done.
    """

    ident: str
    again: bool = False
    superseded: tuple[str, ...] = ()
    layers: Layers | None = None
    artifacts: tuple[Path, ...] = ()


class Tracker(Protocol):
    """Where Records are mirrored. Every verb may raise; a sweep is protected by Mirror.

    ConnectionError says that its server is not reached: the next Record would wait in vain as well.
    """

    @property
    def name(self) -> str:
        """Its name on the command line, ``tracker=<name>``."""
        ...

    def destination(self) -> str:
        """Where runs go now (server, project, folder), as the ledger keeps it; holds no secret.

        After a failure it may be another one (offline), where the Record is tried once more.
        Empty: nowhere, nothing is written and the ledger stays as it is.
        """
        ...

    def has(self, ident: str) -> bool:
        """Whether a run that was published under this id is still there; True where asking would
        cost a request to a server."""
        ...

    def hint(self) -> str:
        """What to type, or where to look, to see what was published; empty for nothing."""
        ...

    def log(self, record: Record, entry: Entry, say: Say) -> None:
        """Mirror one Record, whole, in one go."""
        ...

    def summarize(self, summary: Summary, entry: Entry, say: Say) -> None:
        """Mirror what a sweep ended in."""
        ...


_hinted: set[str] = set()
"""What was said in this process: one line a sweep, not one an experiment or a point."""


def to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


def wanted_record(tracker: Tracker, record: Record, artifacts: tuple[Path, ...] = ()) -> Wanted:
    """The run of one Record: its id begins with the run_id, its content is all that it says."""
    return Wanted(
        tracker=tracker.name,
        destination=tracker.destination(),
        run_id=record.run_id,
        stem=record.run_id[:32],
        digest=digest(record.to_json()),
        extra=digest([hash_file(folder / MANIFEST) for folder in artifacts]) if artifacts else "",
    )


def wanted_report(tracker: Tracker, summary: Summary) -> Wanted:
    """The run of a report: another front is another run, the same one with a new page is not."""
    content = digest([summary.experiment, summary.rows])
    return Wanted(
        tracker=tracker.name,
        destination=tracker.destination(),
        run_id=f"report {summary.experiment}",
        stem=f"report-{content[:24]}",
        digest=content,
        extra=digest(summary.page) if summary.page else "",
    )


def publish_record(
    tracker: Tracker,
    store: Store,
    ledger: Ledger,
    record: Record,
    say: Say,
    artifacts: tuple[Path, ...] = (),
    anew: bool = False,
) -> bool:
    """Write the run of ``record`` unless the ledger has it; whether anything was written."""
    wanted = wanted_record(tracker, record, artifacts)
    if not wanted.destination:
        return False
    with ledger.claim(wanted, tracker.has, anew) as slot:
        if slot is None:
            return False
        layers = Layers.of(store.details(record.run_id))
        entry = Entry(slot.ident, slot.again, slot.superseded, layers, artifacts)
        tracker.log(record, entry, say)
    return True


def publish_report(
    tracker: Tracker, ledger: Ledger, summary: Summary, say: Say, anew: bool = False
) -> bool:
    """Write the run of a report unless the ledger has it; whether anything was written."""
    wanted = wanted_report(tracker, summary)
    if not wanted.destination:
        return False
    with ledger.claim(wanted, tracker.has, anew) as slot:
        if slot is None:
            return False
        entry = Entry(slot.ident, slot.again, slot.superseded)
        tracker.summarize(summary, entry, say)
    return True


@dataclass
class Mirror:
    """A tracker whose failures cost one line, not a point.

    After three failures in a row it is left alone: a server that is down would otherwise add its
    timeout to every point.
    """

    tracker: Tracker
    store: Store
    say: Say = to_stderr
    ledger: Ledger = field(init=False)
    _failures: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.ledger = Ledger.of(self.store.folder)

    def log(self, record: Record) -> bool:
        """Mirror a Record; whether that worked."""
        return self._try(
            lambda: publish_record(self.tracker, self.store, self.ledger, record, self.say)
        )

    def report(self, report: Report) -> bool:
        """Mirror the end of a sweep, its front, pictures and page; whether that worked."""

        def mirror() -> bool:
            summary = Summary.of(report, self.store.records())
            return publish_report(self.tracker, self.ledger, summary, self.say)

        return self._try(mirror)

    def _try(self, mirror: Callable[[], object], last: bool = False) -> bool:
        if self._failures >= GIVE_UP_AFTER:
            return False
        before = self.tracker.destination()
        try:
            mirror()
        except Exception as error:  # whatever a tracker does, the Record is on disk
            first = (str(error).splitlines() or [""])[0]
            what = f"tracker={self.tracker.name}: {type(error).__name__}: {first}"
            if self.tracker.destination() != before and not last:
                self.say(f"{what}; going on offline")
                return self._try(mirror, last=True)
            if self._failures == 0:
                self.say(f"{what}; the Records are safe on disk, tracker=none turns it off")
            self._failures += 1
            return False
        self._failures = 0
        hint = self.tracker.hint()
        if hint and hint not in _hinted:
            _hinted.add(hint)
            self.say(hint)
        return True


@dataclass(frozen=True)
class Mirrors:
    """Several trackers at once: one that is down stops none of the others."""

    each: tuple[Mirror, ...]

    def log(self, record: Record) -> bool:
        """Mirror a Record in each; whether all of that worked."""
        worked = [mirror.log(record) for mirror in self.each]
        return all(worked)

    def report(self, report: Report) -> bool:
        """Mirror the end of a sweep in each; whether all of that worked."""
        worked = [mirror.report(report) for mirror in self.each]
        return all(worked)


def open(trackers: Iterable[Tracker], store: Store, say: Say = to_stderr) -> Mirrors:
    """A sweep's only door: ``mirror = tracking.open(trackers, store)``, ``mirror.log(record)``."""
    return Mirrors(tuple(Mirror(tracker, store, say) for tracker in trackers))
