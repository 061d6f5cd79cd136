"""Which points are worth having: the Pareto front, and the points within noise of it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from bitsweep.report.frame import references
from bitsweep.timing import is_time

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
    of which one part alone is quantized. A dominated point is tied when every front point that
    dominates it does so within noise: the paired interval of its difference to full precision
    (``y.delta``) overlaps theirs, or, where ``x`` is a time, the interval of that. What else ``x``
    may be, a size, is taken as it is.
    """
    marks = pd.Series("", index=frame.index, dtype=object)
    ok, reference = frame["status"].eq("ok"), references(frame)
    marks[reference & ok] = "reference"
    if x not in frame or y not in frame:
        return marks
    usable = ok & ~reference & frame[x].notna() & frame[y].notna()
    if "only" in frame:
        usable &= frame["only"].isna()
    noise = [*_ends(y), *(_ends(x) if is_time(x) else ())]
    needed = [x, y, *noise, "model"]
    taking = frame.loc[usable, [name for name in dict.fromkeys(needed) if name in frame]]
    for _, rows in taking.groupby("model", sort=False):
        cost = _minimise(frame, rows, x), *_interval(frame, rows, x)
        loss = _minimise(frame, rows, y), *_interval(frame, rows, y)
        marks[rows.index] = _marks(*cost, *loss)
    return marks


def _marks(
    x: Numbers, x_lo: Numbers, x_hi: Numbers, y: Numbers, y_lo: Numbers, y_hi: Numbers
) -> npt.NDArray[np.object_]:
    """A mark for each point; the front dominates all others, so only it is compared with."""
    kept = best(x, y)
    marks = np.full(len(x), "dominated", dtype=object)
    marks[kept] = "front"
    rest = np.flatnonzero(~kept)
    tied = np.ones(len(rest), dtype=bool)
    for i in np.flatnonzero(kept):
        above = (x[i] <= x[rest]) & (y[i] <= y[rest])
        tied &= ~above | (y_lo[rest] <= y_hi[i]) | (x_lo[rest] <= x_hi[i])
    marks[rest[tied]] = "tied"
    return marks


def _sign(frame: pd.DataFrame, metric: str) -> float:
    return -1.0 if frame.attrs["metrics"][metric]["better"] == "higher" else 1.0


def _minimise(frame: pd.DataFrame, rows: pd.DataFrame, metric: str) -> Numbers:
    return _sign(frame, metric) * rows[metric].to_numpy(dtype=float)


def _interval(frame: pd.DataFrame, rows: pd.DataFrame, metric: str) -> tuple[Numbers, Numbers]:
    """Bounds of the metric's noise, smaller is better; NaN (never tied) where ``rows`` has none."""
    names = _ends(metric)
    if names[0] not in rows:
        nothing = np.full(len(rows), np.nan)
        return nothing, nothing
    lo, hi = (rows[name].to_numpy(dtype=float) for name in names)
    return (lo, hi) if _sign(frame, metric) > 0 else (-hi, -lo)


def _ends(metric: str) -> tuple[str, str]:
    """Columns of the interval that says whether two points differ in ``metric``: a time's own."""
    own = metric if is_time(metric) else f"{metric}.delta"
    return f"{own}.lo", f"{own}.hi"
