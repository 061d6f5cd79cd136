"""A mirror of finished Records elsewhere (Weights & Biases): a view, never the source.

A tracker is a frozen dataclass named by ``_target_`` in ``conf/tracker/<name>.yaml``. It sees a
Record when that is on disk already, so losing it loses a view and nothing else. The rest of
bitsweep meets a tracker only through :func:`open`, whose :class:`Mirror` never raises.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bitsweep.record import Record

if TYPE_CHECKING:
    from bitsweep.report import Report

Say = Callable[[str], None]
GIVE_UP_AFTER = 3


@dataclass(frozen=True)
class Summary:
    """What a finished sweep shows: the front as a table, and pictures of it."""

    experiment: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    pictures: tuple[Path, ...] = ()

    @classmethod
    def of(cls, report: Report) -> Summary:
        """The front of a written report, one row a point."""
        from bitsweep.report.terminal import front_rows

        columns, rows = front_rows(report.frame)
        pictures = tuple(path for path in report.figures if path.suffix == ".png")
        return cls(report.title, columns, rows, pictures)


class Tracker(Protocol):
    """Where Records are mirrored. Either verb may raise; a caller is protected by Mirror."""

    @property
    def name(self) -> str:
        """Its name on the command line, ``tracker=<name>``."""
        ...

    def log(self, record: Record, say: Say) -> None:
        """Mirror one Record, whole, in one go."""
        ...

    def summarize(self, summary: Summary, say: Say) -> None:
        """Mirror what a sweep ended in."""
        ...


def to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


@dataclass
class Mirror:
    """A tracker whose failures cost one line, not a point.

    After three failures in a row it is left alone: a server that is down would otherwise add its
    timeout to every point.
    """

    tracker: Tracker
    say: Say = to_stderr
    _failures: int = field(default=0, init=False)

    def log(self, record: Record) -> bool:
        """Mirror a Record; whether that worked."""
        return self._try(lambda: self.tracker.log(record, self.say))

    def report(self, report: Report) -> bool:
        """Mirror the end of a sweep, its front and the pictures of it; whether that worked."""
        return self._try(lambda: self.tracker.summarize(Summary.of(report), self.say))

    def _try(self, mirror: Callable[[], None]) -> bool:
        if self._failures >= GIVE_UP_AFTER:
            return False
        try:
            mirror()
        except Exception as error:  # whatever a tracker does, the Record is on disk
            if self._failures == 0:
                first = (str(error).splitlines() or [""])[0]
                self.say(
                    f"tracker={self.tracker.name}: {type(error).__name__}: {first}; "
                    "the Records are safe on disk, tracker=none turns it off"
                )
            self._failures += 1
            return False
        self._failures = 0
        return True


def open(tracker: Tracker, say: Say = to_stderr) -> Mirror:
    """The only door: ``mirror = tracking.open(tracker)``, then ``mirror.log(record)``."""
    return Mirror(tracker, say)
