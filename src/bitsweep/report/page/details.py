"""The plan by layer and the generations of the points on or near the front, from their details.

For the other points the page says ``bitsweep show RUN_ID``: details of thousands of points are
more than a page can hold. The nearest to the front come first: the reference, the front, tied
points, then the others in the frame's order, until one of the limits is reached.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from bitsweep.report.front import front
from bitsweep.report.page.payload import axes
from bitsweep.report.tables import primaries
from bitsweep.store import Store

MOST_POINTS = 240
MOST_CHARACTERS = 8_000_000
"""Of all strings, each counted once: they are packed to about a quarter."""

TEXTS_OF_A_TASK = 12
LONGEST_PROMPT = 600
RANK = {"reference": 0, "front": 1, "tied": 2}


@dataclass
class Words:
    """Every string once: prompts and layers are the same in most points."""

    known: dict[str, int] = field(default_factory=dict)
    characters: int = 0

    def __call__(self, text: Any) -> int:
        text = "" if text is None else str(text)
        if text not in self.known:
            self.characters += len(text)
        return self.known.setdefault(text, len(self.known))


def of(frame: pd.DataFrame, stores: Mapping[str, Store]) -> dict[str, Any]:
    """``plans``: row -> [layer, spec, ...]; ``texts``: row -> task, counts and generations.

    Strings are indices into ``words``; ``left`` counts the measured points without details here.
    """
    words = Words()
    plans: dict[str, list[int]] = {}
    texts: dict[str, list[dict[str, Any]]] = {}
    ranked = _nearest_first(frame)
    done = 0
    for place, experiment, run_id in ranked:
        if done == MOST_POINTS or words.characters > MOST_CHARACTERS or experiment not in stores:
            break
        done += 1
        plan, said = _read(stores[experiment].details(run_id), words)
        if plan:
            plans[str(place)] = plan
        if said:
            texts[str(place)] = said
    return {"words": list(words.known), "plans": plans, "texts": texts, "left": len(ranked) - done}


def _nearest_first(frame: pd.DataFrame) -> list[tuple[int, str, str]]:
    """Place in the frame, experiment and run_id of the measured rows."""
    rank = pd.Series(len(RANK), index=frame.index)
    costs, qualities = axes(frame)
    main = list(dict.fromkeys([*primaries(frame).values(), *qualities[:1]]))
    for x in costs:
        for y in main:
            marks = front(frame, x, y).map(RANK).fillna(len(RANK)).astype(int)
            rank = rank.where(rank <= marks, marks)
    found = zip(rank, range(len(frame)), frame["experiment"], frame["run_id"], frame["status"],
                strict=True)  # fmt: skip
    ok = sorted((r, place, name, run_id) for r, place, name, run_id, s in found if s == "ok")
    return [(place, name, run_id) for _, place, name, run_id in ok]


def _read(rows: Iterable[dict[str, Any]], words: Words) -> tuple[list[int], list[dict[str, Any]]]:
    plan: list[int] = []
    tasks: dict[str, dict[str, Any]] = {}
    for row in rows:
        if "plan" in row:
            plan = [words(item) for pair in row["plan"].items() for item in pair]
        elif "prompt" in row and "text" in row:
            task = tasks.setdefault(
                row["metric"], {"task": row["metric"], "all": 0, "same": 0, "rows": []}
            )
            task["all"] += 1
            task["same"] += int(row["text"] == row["full_precision"])
            if len(task["rows"]) < TEXTS_OF_A_TASK:
                said = (row["prompt"][-LONGEST_PROMPT:], row["text"], row["full_precision"],
                        next(iter(row.get("references") or ()), ""))  # fmt: skip
                task["rows"].append([words(item) for item in said])
    return plan, list(tasks.values())
