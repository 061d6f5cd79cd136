"""Points on their way to a launcher's processes, each in a file of its own.

A launcher sends the session with every job and does not say with which: what the session holds goes
to all of them. So the points stay behind, and each is read where it runs.
"""

from __future__ import annotations

import pickle
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bitsweep.artifacts import digest

if TYPE_CHECKING:
    from bitsweep.survey import Candidate


@dataclass(frozen=True)
class Parcels:
    """The folder of one launch: a file for each point, named by its overrides."""

    folder: Path

    @classmethod
    def of(cls, candidates: Iterable[Candidate], root: Path | None) -> Parcels:
        """Write the points with their numbers, below ``root`` where there is one.

        Names begin with a point: the cap of a cache does not see them.
        """
        if root is not None:
            root.mkdir(parents=True, exist_ok=True)
        parcels = cls(Path(tempfile.mkdtemp(prefix=".launch-", dir=root)))
        for number, candidate in enumerate(candidates, 1):
            body = pickle.dumps((candidate, number), pickle.HIGHEST_PROTOCOL)
            parcels._file(candidate.overrides).write_bytes(body)
        return parcels

    def take(self, overrides: Sequence[str]) -> tuple[Candidate, int] | None:
        """The point of these overrides and its number; None where there is none, or no folder:
        a process elsewhere may not see it."""
        try:
            body = self._file(overrides).read_bytes()
        except FileNotFoundError:
            return None
        found: tuple[Candidate, int] = pickle.loads(body)
        return found

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, overrides: Sequence[str]) -> Path:
        return self.folder / f".{digest(list(overrides))}"
