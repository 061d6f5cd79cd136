"""No tracker: the Records on disk are all there is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bitsweep.record import Record
from bitsweep.tracking import Entry, Say, Summary


@dataclass(frozen=True)
class NoTracker:
    """Does nothing, at no cost: wandb is not even imported."""

    name: ClassVar[str] = "none"

    def destination(self) -> str:
        """Nowhere."""
        return ""

    def has(self, ident: str) -> bool:
        """Nothing."""
        return False

    def hint(self) -> str:
        """Nothing to see."""
        return ""

    def log(self, record: Record, entry: Entry, say: Say) -> None:
        """Leave the Record where it is."""

    def summarize(self, summary: Summary, entry: Entry, say: Say) -> None:
        """Leave the report where it is."""
