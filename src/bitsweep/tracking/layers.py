"""What became of each layer, as the one table that a run carries: never a metric per layer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Cell = str | float | None
PACKED = re.compile(r"(?P<format>[a-z]+(?:\d+-)?)(?P<bits>\d+(?:\.\d+)?)")
FLOATS = {"float32": 32.0, "float16": 16.0, "bfloat16": 16.0}
COLUMNS = ("layer", "became", "bits", "format")


@dataclass(frozen=True)
class Layers:
    """One row a layer: name, what it became, bits, format, then what the probes found of it."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    @classmethod
    def of(cls, details: Iterable[Mapping[str, Any]]) -> Layers | None:
        """From a Record's rows of detail; None where they name no layer (a timing)."""
        became: dict[str, str] = {}
        found: dict[str, dict[str, Cell]] = {}
        for row in details:
            became |= row.get("plan", {})
            if "layer" in row:
                numbers = {k: v for k, v in row.items() if isinstance(v, (int, float))}
                found.setdefault(str(row["layer"]), {}).update(numbers)
        if not became:
            return None
        names = tuple(dict.fromkeys(name for row in found.values() for name in row))
        rows = tuple(
            (layer, what, *read(what), *(found.get(layer, {}).get(name) for name in names))
            for layer, what in became.items()
        )
        return cls((*COLUMNS, *names), rows)


def read(became: str) -> tuple[float | None, str]:
    """Bits and format of ``w4g128``, ``nf4g64``, ``torch.float16``; no bits where none are said."""
    kept = FLOATS.get(became.removeprefix("torch."))
    if kept is not None:
        return kept, "kept"
    match = PACKED.match(became)
    if match is None:
        return None, became
    letters = match["format"].rstrip("-")
    return float(match["bits"]), "int" if letters == "w" else letters
