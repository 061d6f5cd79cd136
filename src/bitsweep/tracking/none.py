"""No tracker: the Records on disk are all there is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bitsweep.record import Record
from bitsweep.tracking import Say, Summary


@dataclass(frozen=True)
class NoTracker:
    """Does nothing, at no cost: wandb is not even imported."""

    name: ClassVar[str] = "none"

    def log(self, record: Record, say: Say) -> None:
        """Leave the Record where it is."""

    def summarize(self, summary: Summary, say: Say) -> None:
        """Leave the report where it is."""
