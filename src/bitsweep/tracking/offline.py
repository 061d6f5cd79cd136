"""W&B's offline runs as the folders that they are: ``offline-run-DATE_TIME-ID``."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

MARK = "bitsweep-project"
"""A file beside an offline run that is whole: the project that it is for."""
SUPERSEDED = "superseded"
"""The folder of older runs, which are not uploaded any more; online they have it as a tag."""

_listed: dict[Path, tuple[int, dict[str, list[Path]]]] = {}


@dataclass(frozen=True)
class Offline:
    """The runs of one project among those of ``folder``: an id is unique in a project only."""

    folder: Path
    project: str

    def has(self, ident: str) -> bool:
        """Whether the run is there, whole."""
        return any(_project_of(run) == self.project for run in self._found(ident))

    def remove(self, ident: str) -> None:
        """What is there of the run: whole, or cut off, of which the project is not known."""
        for run in self._found(ident):
            if _project_of(run) in (None, self.project):
                gone = run.rename(run.with_name(f".{run.name}"))
                shutil.rmtree(gone, ignore_errors=True)  # a killed one's process may write yet

    def keep(self, run: Path) -> None:
        """Say of the folder of a run that it is whole."""
        (run / MARK).write_text(self.project, encoding="utf-8")

    def set_aside(self, ident: str) -> None:
        """Move an older run out of what is uploaded next, unless it was uploaded."""
        for run in self._found(ident):
            if _project_of(run) == self.project and not any(run.glob("*.synced")):
                aside = self.folder / SUPERSEDED
                aside.mkdir(exist_ok=True)
                run.rename(aside / run.name)

    def _found(self, ident: str) -> list[Path]:
        """Folders of this run; the names in a folder of ten thousand are read once a change."""
        try:
            changed = self.folder.stat().st_mtime_ns
        except FileNotFoundError:
            return []
        known = _listed.get(self.folder)
        fresh = time.time_ns() - changed < 10**9  # a second change may bear the same time
        if known is None or known[0] != changed or fresh:
            names: dict[str, list[Path]] = {}
            for path in self.folder.glob("offline-run-*"):
                names.setdefault(path.name.split("-", 3)[-1], []).append(path)
            known = _listed[self.folder] = (changed, names)
        return known[1].get(ident, [])


def _project_of(run: Path) -> str | None:
    """Whose a run is; None of one that was not finished."""
    try:
        return (run / MARK).read_text(encoding="utf-8")
    except OSError:
        return None
