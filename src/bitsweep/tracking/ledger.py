"""What was published where: ``results/NAME/published.jsonl``, one line an event, only appended.

A run over there is named ``<stem>-<attempt>``: the stem is the Record's, the attempt counts its
contents, because a deleted W&B id can never be used again. ``begun`` is written before a tracker is
called and ``done`` after it, under a file lock, so that what was killed in between is written once
more under the same id, and two publishers never write the same run twice.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

FILE = "published.jsonl"
State = Literal["begun", "done"]
Has = Callable[[str], bool]


@dataclass(frozen=True)
class Event:
    """One line. ``destination`` and ``id`` are over there; ``run_id`` and ``digest`` are here.

    ``extra`` is the digest of what was published beside the Record (an exported checkpoint).
    """

    event: State
    tracker: str
    destination: str
    run_id: str
    digest: str
    extra: str
    id: str
    utc: str

    @property
    def attempt(self) -> int:
        return int(self.id.rpartition("-")[2])


@dataclass(frozen=True)
class Wanted:
    """One run that should be over there: ``digest`` is of its content, ``stem`` begins its id."""

    tracker: str
    destination: str
    run_id: str
    stem: str
    digest: str
    extra: str = ""


@dataclass(frozen=True)
class Slot:
    """The id that a run gets over there.

    ``again``: an earlier try under this id may have left a part, which this one replaces, whole.
    ``superseded``: ids of the same point's older contents there.
    """

    ident: str
    again: bool = False
    superseded: tuple[str, ...] = ()


@dataclass
class Ledger:
    """The events of one folder of results; without a ``path`` they live as long as the process.

    Only lines that were added since are read, so that a sweep of ten thousand points stays linear.
    """

    path: Path | None = None
    _by_run: dict[tuple[str, str], list[Event]] = field(default_factory=dict, init=False)
    _read: int = field(default=0, init=False)

    @classmethod
    def of(cls, folder: Path) -> Ledger:
        """The ledger beside the Records of ``folder``."""
        return cls(folder / FILE)

    def slot(self, wanted: Wanted, has: Has, anew: bool = False) -> Slot | None:
        """What to write for ``wanted``, or None where it is there already.

        The same content keeps its attempt wherever it goes, so that an offline run that was synced
        and the same run published online are one. ``has`` says whether an id is (still) there;
        ``anew`` asks for the next attempt whatever is there.
        """
        self._catch_up()
        known = self._by_run.get((wanted.tracker, wanted.run_id), [])
        same = [event.attempt for event in known if event.digest == wanted.digest]
        newest = max((event.attempt for event in known), default=0)
        attempt = max(same) if same and not anew else newest + 1
        ident = f"{wanted.stem}-{attempt}"
        here = [event for event in known if event.destination == wanted.destination]
        mine = [event for event in here if event.id == ident]
        last = mine[-1] if mine else None
        complete = last is not None and last.event == "done"
        enough = last is not None and wanted.extra in ("", last.extra)
        if complete and enough and has(ident):
            return None
        older = dict.fromkeys(event.id for event in here if event.attempt < attempt)
        return Slot(ident, again=bool(mine), superseded=tuple(older))

    def ids(self, tracker: str, destination: str) -> dict[str, str]:
        """run_id -> the id that its newest content has there."""
        self._catch_up()
        events = (event for known in self._by_run.values() for event in known)
        here = [e for e in events if (e.tracker, e.destination) == (tracker, destination)]
        return {e.run_id: e.id for e in sorted(here, key=lambda e: e.attempt) if e.event == "done"}

    @contextmanager
    def claim(self, wanted: Wanted, has: Has, anew: bool = False) -> Iterator[Slot | None]:
        """Hold the ledger while ``wanted`` is written; leaving without an error says it is done."""
        with self._lock():
            slot = self.slot(wanted, has, anew)
            if slot is None:
                yield None
                return
            self._append("begun", wanted, slot)
            yield slot
            self._append("done", wanted, slot)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        if self.path is None:
            yield
            return
        from filelock import FileLock

        with FileLock(self.path.with_name(f".{self.path.name}.lock")):
            yield

    def _append(self, event: State, wanted: Wanted, slot: Slot) -> None:
        """One line in one write, durable; after a line that was cut short, on a line of its own."""
        made = Event(
            event,
            wanted.tracker,
            wanted.destination,
            wanted.run_id,
            wanted.digest,
            wanted.extra,
            slot.ident,
            datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        )
        if self.path is None:
            self._take(made)
            return
        line = json.dumps(asdict(made), sort_keys=True).encode() + b"\n"
        with self.path.open("ab+") as file:
            if file.tell() and not _ends_a_line(file):
                line = b"\n" + line
            os.write(file.fileno(), line)
            os.fsync(file.fileno())

    def _catch_up(self) -> None:
        """Take in whole lines that came since the last look; one that was cut short is no event."""
        if self.path is None or not self.path.exists():
            return
        if self.path.stat().st_size < self._read:  # removed, or put back from elsewhere
            self._by_run.clear()
            self._read = 0
        with self.path.open("rb") as file:
            file.seek(self._read)
            body = file.read()
        whole = body[: body.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            try:
                event = Event(**json.loads(line))
                _ = event.attempt
            except (ValueError, TypeError):
                continue
            self._take(event)

    def _take(self, event: Event) -> None:
        self._by_run.setdefault((event.tracker, event.run_id), []).append(event)


def _ends_a_line(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) == b"\n")
