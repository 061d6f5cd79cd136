"""Which points are worth having: the Pareto front, and the points within noise of it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from bitsweep.report.frame import references, whole

Numbers = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def dominators(x: Numbers, y: Numbers) -> Mask:
    """``(n, n)``: whether point j dominates point i, both to be minimised; NaN takes no part.

    To dominate is to be no worse in both and better in one, so equal points never do.
    """
    with np.errstate(invalid="ignore"):
        no_worse = (x[None, :] <= x[:, None]) & (y[None, :] <= y[:, None])
        better = (x[None, :] < x[:, None]) | (y[None, :] < y[:, None])
    return no_worse & better


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
    reference = references(frame) & (frame["status"] == "ok")
    marks[reference] = "reference"
    if x not in frame or y not in frame:
        return marks
    usable = (frame["status"] == "ok") & ~reference & frame[x].notna() & frame[y].notna()
    usable &= frame.index.isin(whole(frame).index)
    for _, rows in frame[usable].groupby("model", sort=False):
        numbers = _minimise(frame, rows, x), _minimise(frame, rows, y), *_interval(frame, rows, y)
        marks[rows.index] = np.array(_marks(*numbers), dtype=object)
    return marks


def _marks(x: Numbers, y: Numbers, lo: Numbers, hi: Numbers) -> list[str]:
    by = dominators(x, y)
    best: Mask = ~np.asarray(by.any(axis=1))
    marks = []
    for i in range(len(x)):
        above = by[i] & best
        with np.errstate(invalid="ignore"):
            tied = bool((lo[i] <= hi[above]).all())
        marks.append("front" if best[i] else "tied" if tied else "dominated")
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
