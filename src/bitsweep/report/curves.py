"""The error of the hidden states by depth, from the details of Records with the error probe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from bitsweep.report import labels
from bitsweep.store import Store

METRIC = "hidden_error"
MOST = 32
"""Curves of a model: for so many there are colours, markers and dashes."""


@dataclass(frozen=True)
class Curve:
    """One point's relative errors: at the input of the first block, and behind each block."""

    model: str
    label: str
    errors: tuple[float, ...]


def read(folders: Iterable[Path], frame: pd.DataFrame) -> list[Curve]:
    """The curves of points that were measured so, in the frame's order, :data:`MOST` a model."""
    if METRIC not in frame:
        return []
    stores = {folder.name: Store(folder) for folder in folders}
    found: list[Curve] = []
    counts: Counter[str] = Counter()
    for row in labels.rows(frame):
        model = str(row["model"])
        if row["status"] != "ok" or not row.get(METRIC) or counts[model] == MOST:
            continue
        for detail in stores[row["experiment"]].details(row["run_id"]):
            if detail.get("metric") == METRIC:
                found.append(Curve(model, row["label"], tuple(detail["by_depth"])))
                counts[model] += 1
    return found
