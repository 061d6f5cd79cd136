"""Which points are worth having: the Pareto front, and the points within noise of it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from bitsweep.report.frame import references

Numbers = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def best(x: Numbers, y: Numbers) -> Mask:
    """``(n,)``: whether no other point dominates this one, both to be minimised, none NaN.

    To dominate is to be no worse in both and better in one, so equal points never do: a point is
    best when its y is the least of its x, and below that of every smaller x.
    """
    order = np.lexsort((y, x))
    placed_x, placed_y = x[order], y[order]
    starts = np.flatnonzero(np.r_[True, placed_x[1:] != placed_x[:-1]][: len(x)])
    least = placed_y[starts]  # of each x, in the order of x
    lower = np.r_[True, least[1:] < np.minimum.accumulate(least)[:-1]][: len(starts)]
    sizes = np.diff(np.r_[starts, len(x)])
    found = np.zeros(len(x), dtype=bool)
    found[order] = (placed_y == np.repeat(least, sizes)) & np.repeat(lower, sizes)
    return found


def front(frame: pd.DataFrame, x: str, y: str) -> pd.Series:
    """``front``, ``tied``, ``dominated``, ``reference`` or an empty string for each row.

    Per model, among the ``ok`` rows that have both numbers. Each metric is taken in its better
    direction. Full precision is what the others are compared with and takes no part, nor do points
    of which one part alone is quantized. A dominated
    point is tied when every front point that dominates it does so within noise: the paired
    interval of its difference to full precision (``y.delta``) overlaps theirs. Latencies and
    sizes are taken as they are.
    """
    marks = pd.Series("", index=frame.index, dtype=object)
    ok, reference = frame["status"].eq("ok"), references(frame)
    marks[reference & ok] = "reference"
    if x not in frame or y not in frame:
        return marks
    usable = ok & ~reference & frame[x].notna() & frame[y].notna()
    if "only" in frame:
        usable &= frame["only"].isna()
    needed = [x, y, f"{y}.delta.lo", f"{y}.delta.hi", "model"]
    taking = frame.loc[usable, [name for name in dict.fromkeys(needed) if name in frame]]
    for _, rows in taking.groupby("model", sort=False):
        numbers = _minimise(frame, rows, x), _minimise(frame, rows, y), *_interval(frame, rows, y)
        marks[rows.index] = _marks(*numbers)
    return marks


def _marks(x: Numbers, y: Numbers, lo: Numbers, hi: Numbers) -> npt.NDArray[np.object_]:
    """A mark for each point; the front dominates all others, so only it is compared with."""
    kept = best(x, y)
    marks = np.full(len(x), "dominated", dtype=object)
    marks[kept] = "front"
    rest = np.flatnonzero(~kept)
    tied = np.ones(len(rest), dtype=bool)
    for i in np.flatnonzero(kept):
        above = (x[i] <= x[rest]) & (y[i] <= y[rest])
        tied &= ~above | (lo[rest] <= hi[i])
    marks[rest[tied]] = "tied"
    return marks


def _sign(frame: pd.DataFrame, metric: str) -> float:
    return -1.0 if frame.attrs["metrics"][metric]["better"] == "higher" else 1.0


def _minimise(frame: pd.DataFrame, rows: pd.DataFrame, metric: str) -> Numbers:
    return _sign(frame, metric) * rows[metric].to_numpy(dtype=float)


def _interval(frame: pd.DataFrame, rows: pd.DataFrame, metric: str) -> tuple[Numbers, Numbers]:
    """Bounds of the paired difference, smaller is better; NaN (never tied) where there is none."""
    if f"{metric}.delta.lo" not in rows:
        nothing = np.full(len(rows), np.nan)
        return nothing, nothing
    lo = rows[f"{metric}.delta.lo"].to_numpy(dtype=float)
    hi = rows[f"{metric}.delta.hi"].to_numpy(dtype=float)
    return (lo, hi) if _sign(frame, metric) > 0 else (-hi, -lo)
