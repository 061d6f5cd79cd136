"""Rounds of times to numbers: medians, ratios within a round, what the bytes say."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bitsweep.intervals import LEVEL, RESAMPLES, SEED, Interval
from bitsweep.record import Metric

POINT, BF16, FP32, AGAIN = "point", "bf16", "fp32", "again"
GIB, MIB = 2**30, 2**20

NAMES: dict[str, tuple[str, Literal["lower", "higher", "none"]]] = {
    "prefill_ms": ("ms", "lower"),
    "prefill_tok_s": ("tok/s", "higher"),
    "prefill_vs_bf16": ("", "higher"),
    "prefill_vs_fp32": ("", "higher"),
    "prefill_noise": ("", "lower"),
    "decode_ms": ("ms", "lower"),
    "decode_p90_ms": ("ms", "lower"),
    "decode_p99_ms": ("ms", "lower"),
    "decode_tok_s": ("tok/s", "higher"),
    "decode_vs_bf16": ("", "higher"),
    "decode_vs_fp32": ("", "higher"),
    "decode_noise": ("", "lower"),
    "decode_mib": ("MiB", "lower"),
    "decode_gib_s": ("GiB/s", "higher"),
    "decode_of_bandwidth": ("", "none"),
    "decode_of_bytes": ("", "higher"),
}
COSTS = ("prefill_cost_per_mtok", "decode_cost_per_mtok")
"""Per million tokens, in the currency of the user's ``price_per_hour``; with a price only."""

DIGITS = 5
"""Significant digits of a number that is kept: no clock here is better."""


@dataclass(frozen=True)
class Round:
    """Milliseconds by model: of the prefill, and of each token that followed."""

    prefill: Mapping[str, float]
    decode: Mapping[str, list[float]]

    def token(self, name: str) -> float:
        """The median token."""
        return float(np.median(self.decode[name]))

    def to_json(self) -> dict[str, Any]:
        return {
            "prefill_ms": {name: round(value, 4) for name, value in self.prefill.items()},
            "decode_ms": {name: [round(v, 4) for v in each] for name, each in self.decode.items()},
        }


@dataclass(frozen=True)
class Context:
    """What of a shape and a machine turns times into other numbers.

    ``step_bytes``: of weights that one decode step reads, by model; without those of the point
    nothing is said about bytes. ``bandwidth`` in bytes per second.
    """

    batch: int
    prompt: int
    step_bytes: Mapping[str, int]
    bandwidth: float | None = None
    price_per_hour: float | None = None


def numbers(rounds: Sequence[Round], context: Context) -> dict[str, Interval | float]:
    """Those of ``NAMES`` and ``COSTS`` that ``rounds`` (at least one) and ``context`` allow."""
    prefill = {name: np.array([r.prefill[name] for r in rounds]) for name in rounds[0].prefill}
    decode = {name: np.array([r.token(name) for r in rounds]) for name in rounds[0].decode}
    tokens = np.concatenate([r.decode[POINT] for r in rounds])
    strays = noise(rounds)
    tok_s = {
        "prefill": 1000 * context.batch * context.prompt / prefill[POINT],
        "decode": 1000 * context.batch / decode[POINT],
    }
    found: dict[str, NDArray[np.float64]] = {
        "prefill_ms": prefill[POINT],
        "prefill_tok_s": tok_s["prefill"],
        "decode_ms": decode[POINT],
        "decode_tok_s": tok_s["decode"],
    }
    for name in (BF16, FP32):
        if name in prefill:
            found[f"prefill_vs_{name}"] = prefill[name] / prefill[POINT]
            found[f"decode_vs_{name}"] = decode[name] / decode[POINT]
    own = context.step_bytes.get(POINT)
    if own:
        found["decode_gib_s"] = own / GIB / (decode[POINT] / 1000)
        if context.bandwidth:
            found["decode_of_bandwidth"] = found["decode_gib_s"] * GIB / context.bandwidth
        if BF16 in decode and context.step_bytes.get(BF16):
            fewer = context.step_bytes[BF16] / own
            found["decode_of_bytes"] = found["decode_vs_bf16"] / fewer
    if context.price_per_hour is not None:
        for name in COSTS:
            found[name] = 1e6 * context.price_per_hour / 3600 / tok_s[name.partition("_")[0]]
    exact = {
        "prefill_noise": strays["prefill"],
        "decode_p90_ms": float(np.percentile(tokens, 90)),
        "decode_p99_ms": float(np.percentile(tokens, 99)),
        "decode_noise": strays["decode"],
        **({"decode_mib": own / MIB} if own else {}),
    }
    return {name: median(values) for name, values in found.items()} | exact


def flat(found: Mapping[str, Interval | float]) -> dict[str, float]:
    """``found`` with the ends of intervals as ``NAME.lo`` and ``NAME.hi``, as reports have them."""
    values: dict[str, float] = {}
    for name, over in found.items():
        if isinstance(over, Interval):
            values |= {name: over.value, f"{name}.lo": over.lo, f"{name}.hi": over.hi}
        else:
            values[name] = over
    return values


def metrics(
    found: Mapping[str, Interval | float], signature: str, suffix: str = "", price: str = ""
) -> list[Metric]:
    """``found`` as metrics, in the order of ``NAMES``; a cost's signature names the ``price``."""
    made = []
    for name in (*NAMES, *COSTS):
        if name not in found:
            continue
        unit, better = NAMES.get(name, ("", "lower"))
        over, how = found[name], signature + (price if name in COSTS else "")
        if isinstance(over, Interval):
            value, lo, hi = map(_rounded, (over.value, over.lo, over.hi))
            made.append(Metric(name + suffix, value, unit, better, how, lo=lo, hi=hi))
        else:
            made.append(Metric(name + suffix, _rounded(over), unit, better, how))
    return made


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def null(names: Collection[str]) -> str:
    """Which of the models is timed twice: bf16 where it is there, then fp32, then the point."""
    return next(name for name in (BF16, FP32, POINT) if name in names)


def noise(rounds: Sequence[Round]) -> dict[str, float]:
    """How far one model strays from itself, timed twice in the same turns: 0.03 is 3 %."""
    twice = null(rounds[0].prefill)
    prefill = np.median([r.prefill[twice] / r.prefill[AGAIN] for r in rounds])
    decode = np.median([r.token(twice) / r.token(AGAIN) for r in rounds])
    return {"prefill": abs(float(prefill) - 1), "decode": abs(float(decode) - 1)}


def median(values: ArrayLike) -> Interval:
    """The median of ``values`` ``(n,)`` and its percentile bootstrap interval."""
    array = np.asarray(values, dtype=np.float64)
    generator = np.random.Generator(np.random.PCG64(SEED))
    drawn = array[generator.integers(len(array), size=(RESAMPLES, len(array)))]
    tail = (100 - LEVEL) / 2
    lo, hi = np.percentile(np.median(drawn, axis=1), [tail, 100 - tail])
    return Interval(float(np.median(array)), float(lo), float(hi))
