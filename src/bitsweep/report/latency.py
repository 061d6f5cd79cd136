"""Times of packed engines: a row for each point, engine and shape, and when not to believe it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from bitsweep.report import labels
from bitsweep.report.labels import Row
from bitsweep.report.sheet import Line, Sheet
from bitsweep.report.timed import METRICS, Timed
from bitsweep.timing import IMPOSSIBLE, STRAY, WIDE, Shape, unrest

ENDS = ("", ".lo", ".hi")
WHERE = ("engine", "device", "threads", "batch", "prompt")
NOISY, CACHED, BEYOND = "noisy", "in cache", "impossible"


@dataclass(frozen=True)
class Block:
    """Rows that may be compared: of one model, shape and machine. ``first``: its metrics have plain
    names, those of fronts and figures.
    """

    name: str
    model: str
    first: bool
    rows: tuple[tuple[Row, Timed], ...]


def blocks(frame: pd.DataFrame) -> list[Block]:
    """By model in the frame's order, then the shape with plain names first, the others by threads
    (most first), batch and prompt; in each the points in the frame's order.
    """
    every: tuple[Timed, ...] = frame.attrs.get("timings", ())
    if not every:
        return []
    points = {(row["experiment"], row["point_id"]): row for row in labels.rows(frame)}
    known = [
        timed for timed in every if timed.values and (timed.experiment, timed.point_id) in points
    ]
    models = {name: place for place, name in enumerate(dict.fromkeys(frame["model"].astype(str)))}
    machines = sorted({timed.device for timed in known})
    place = {point: index for index, point in enumerate(points)}
    grouped: dict[tuple[object, ...], list[Timed]] = {}
    for timed in known:
        shape = timed.shape or Shape(timed.threads, 0, 0)
        order = (-shape.threads, shape.batch, shape.prompt)
        key = (models[timed.model], timed.device, not timed.first, order)
        grouped.setdefault(key, []).append(timed)
    found = []
    for _, own in sorted(grouped.items(), key=lambda item: item[0]):
        own.sort(key=lambda t: (place[t.experiment, t.point_id], t.engine, t.run_id))
        named = [own[0].model, *([str(own[0].shape)] if own[0].shape else [])]
        named += [own[0].device] if len(machines) > 1 else []
        rows = tuple((points[t.experiment, t.point_id], t) for t in own)
        found.append(Block(", ".join(named), own[0].model, own[0].first, rows))
    return found


def marks(values: Mapping[str, float]) -> list[str]:
    """Why the numbers of a row are to be read with care."""
    found = []
    if unrest(values) > 1:
        found.append(NOISY)
    read, cache = values.get("decode_mib"), values.get("cache_mib")
    if read is not None and cache is not None and read < cache:
        found.append(CACHED)
    elif values.get("decode_of_bandwidth", 0.0) > IMPOSSIBLE:
        found.append(BEYOND)
    return found


def footnotes(found: Iterable[Timed]) -> list[str]:
    """What the marks of these rows mean, those that occur."""
    found = list(found)
    occur = {mark for timed in found for mark in marks(timed.values)}
    sizes = sorted({timed.values["cache_mib"] for timed in found if "cache_mib" in timed.values})
    cache = " or ".join(f"{size:.0f}" for size in sizes)
    meaning = {
        NOISY: (
            "in the null comparison, one model against itself, a median ratio strayed by more than "
            f"{100 * STRAY:.0f} % in every repetition, or the ends of a 95 % interval are more "
            f"than a factor of {WIDE:g} apart: other work disturbed the machine"
        ),
        CACHED: (
            f"what a step reads fits into the last-level cache ({cache} MiB as the system reports "
            "it): the speedup says little of models that do not fit"
        ),
        BEYOND: (
            f"a step would read its weights at more than {IMPOSSIBLE:g} times the bandwidth that "
            "was measured: not to be believed"
        ),
    }
    return [f"{mark}: {text}" for mark, text in meaning.items() if mark in occur]


def empty(frame: pd.DataFrame) -> list[str]:
    """Points that an engine did not time, by its reason."""
    missing: dict[tuple[str, str], list[Timed]] = {}
    for timed in frame.attrs.get("timings", ()):
        if timed.reason:
            missing.setdefault((timed.experiment, timed.point_id), []).append(timed)
    found: dict[str, dict[str, None]] = {}
    for row in labels.rows(frame) if missing else ():
        for timed in missing.get((row["experiment"], row["point_id"]), ()):
            of = "" if timed.first or timed.shape is None else f" ({timed.shape})"
            names = found.setdefault(str(timed.reason).splitlines()[0], {})
            names[f"{row.get('label')}{of}"] = None
    return [f"Empty ({len(names)}): {', '.join(names)}: {why}" for why, names in found.items()]


@dataclass(frozen=True)
class Cell:
    """A column of the table: ``metric`` times ``scale``, with its interval where ``interval``.

    ``digits`` None: as many as make four significant ones, at most three decimals.
    """

    head: str
    metric: str
    digits: int | None = None
    interval: bool = False
    scale: float = 1.0

    def show(self, values: Mapping[str, float]) -> str:
        if self.metric not in values:
            return ""
        value = values[self.metric] * self.scale
        digits = self.digits
        if digits is None:
            digits = 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1
        text = f"{value:.{digits}f}"
        if not self.interval or f"{self.metric}.lo" not in values:
            return text
        lo, hi = (values[f"{self.metric}{end}"] * self.scale for end in (".lo", ".hi"))
        return f"{text} [{lo:.{digits}f}, {hi:.{digits}f}]"


CELLS = (
    Cell("decode ms [95 %]", "decode_ms", interval=True),
    Cell("× bf16 [95 %]", "decode_vs_bf16", 2, interval=True),
    Cell("× fp32", "decode_vs_fp32", 2),
    Cell("tokens/s", "decode_tok_s", 1),
    Cell("p99 ms", "decode_p99_ms"),
    Cell("MiB/step", "decode_mib", 1),
    Cell("% of bandwidth", "decode_of_bandwidth", 0, scale=100),
    Cell("% of bytes' gain", "decode_of_bytes", 0, scale=100),
    Cell("cost/M tokens", "decode_cost_per_mtok", 3),
    Cell("prefill ms [95 %]", "prefill_ms", interval=True),
    Cell("× bf16 [95 %]", "prefill_vs_bf16", 2, interval=True),
    Cell("× fp32", "prefill_vs_fp32", 2),
    Cell("cost/M prompt tokens", "prefill_cost_per_mtok", 3),
)


def sheet(
    frame: pd.DataFrame,
    identity: Sequence[str],
    front: pd.Series,
    notes: Sequence[str],
    small: Sequence[str],
) -> Sheet:
    """The table: a block for each model and shape, a row for each point and engine.

    ``identity``: columns of the CSV before the numbers; ``front``: marks of points, shown beside
    the time that the fronts took; points that no engine ran stand in their model's first block.
    """
    axes = labels.varying(frame)
    frame = frame.assign(front=front)
    made = blocks(frame)
    every = [timed for block in made for _, timed in block.rows]
    cells = [cell for cell in CELLS if any(cell.metric in timed.values for timed in every)]
    raw = [f"{m}{e}" for m in METRICS for e in ENDS if any(f"{m}{e}" in t.values for t in every)]
    marked = any(marks(timed.values) for timed in every)
    heads: list[tuple[str, Callable[[Row], str]]] = [
        ("method", lambda row: labels.marked(labels.method(row, axes), row)),
        ("weights", labels.weights),
        ("policy", labels.policy),
    ]
    lines: list[Line] = []
    values: list[tuple[object, ...]] = []
    done: set[str] = set()
    for block in made:
        shown: list[tuple[Row, Timed | None]] = list(block.rows)
        if block.model not in done:
            shown = _with_untimed(frame, block, made)
        done.add(block.model)
        for row, timed in shown:
            own = timed.values if timed else {}
            engine, said = timed.engine if timed else "", marks(own)
            chosen = block.first and bool(own) and engine == row.get("engine")
            place = row["front"] if chosen and row["front"] in ("front", "tied") else ""
            values.append(
                (*(row.get(n) for n in identity), *_where(timed), *map(own.get, raw),
                 "; ".join(said), place)
            )  # fmt: skip
            if row["status"] != "ok":
                continue
            told = [*(show(row) for _, show in heads), engine, *(c.show(own) for c in cells)]
            told += [", ".join(said)] if marked else []
            lines.append(Line((*told, place), block.name, place == "front"))
    sides: list[Literal["l", "r"]] = ["r"] * len(cells)
    extra = ("marks",) if marked else ()
    left: list[Literal["l", "r"]] = ["l"] * 4
    return Sheet(
        title="Latency of the packed engines",
        heads=(*(h for h, _ in heads), "engine", *(c.head for c in cells), *extra, "front"),
        align=(*left, *sides, *left[: len(extra) + 1]),
        lines=tuple(lines),
        columns=(*identity, *WHERE, *raw, "marks", "front"),
        values=tuple(values),
        notes=(*footnotes(every), *notes),
        small=tuple(small),
    )


def _where(timed: Timed | None) -> tuple[object, ...]:
    if timed is None:
        return (None,) * len(WHERE)
    size = (timed.shape.batch, timed.shape.prompt) if timed.shape else (None, None)
    return (timed.engine, timed.device, timed.threads, *size)


def _with_untimed(
    frame: pd.DataFrame, block: Block, made: Sequence[Block]
) -> list[tuple[Row, Timed | None]]:
    """The rows of ``block`` and, in the frame's order, those of its model that nothing timed."""
    ran = {(row["experiment"], row["point_id"]) for other in made for row, _ in other.rows}
    own: dict[tuple[str, str], list[tuple[Row, Timed]]] = {}
    for pair in block.rows:
        own.setdefault((pair[1].experiment, pair[1].point_id), []).append(pair)
    found: list[tuple[Row, Timed | None]] = []
    for row in labels.rows(frame[frame["model"].astype(str) == block.model]):
        point = (row["experiment"], row["point_id"])
        if point not in ran:
            found.append((row, None))
        found += own.get(point, [])
    return found
