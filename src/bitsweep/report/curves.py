"""The error of the hidden states by depth, from the details of Records with the error probe."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from bitsweep.report import labels
from bitsweep.store import Store

METRIC = "hidden_error"


@dataclass(frozen=True)
class Curve:
    """One point's relative errors: at the input of the first block, and behind each block."""

    model: str
    label: str
    errors: tuple[float, ...]


def read(folders: Iterable[Path], frame: pd.DataFrame) -> list[Curve]:
    """The curves of all points that were measured so, in the frame's order."""
    if METRIC not in frame:
        return []
    stores = {folder.name: Store(folder) for folder in folders}
    found = []
    for row in labels.rows(frame):
        if row["status"] != "ok" or not row.get(METRIC):
            continue
        for detail in stores[row["experiment"]].details(row["run_id"]):
            if detail.get("metric") == METRIC:
                found.append(Curve(str(row["model"]), row["label"], tuple(detail["by_depth"])))
    return found
