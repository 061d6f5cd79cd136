"""What of full precision a row keeps, drops and saves: each number with its interval and its name.

Every function takes one row of the frame as a dict, None where a cell is empty
(:func:`labels.rows`), and returns an :class:`Estimate`; its ``reason`` says why there is no number.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from bitsweep.report.latency import marks
from bitsweep.timing import TIMES

Row = Mapping[str, Any]
Meaning = Mapping[str, Mapping[str, str | None]]
"""metric -> unit, better, kind of delta: the frame's ``attrs["metrics"]``."""

MIB = 2**20
WIDTHS = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
AGREEMENT = ("top1", "bleu_fp", "rouge1_fp", "rouge2_fp", "rougeL_fp")
"""Kinds of metrics that compare with full precision already, whose own value is all there is."""
DIVERGENCE = ("kl_mean", "kl_median", "kl_p99")
"""Kinds that are 0 for full precision: a distance has no share that is kept."""
NOT_TIMED = "not timed; probes=latency does"
"""Of a point that nobody tried to time: a command away from a number."""

ELSEWHERE = " @ "
"""Before the device and threads of another machine, in the name of a column."""

SPEED, PEAK, RESIDENT, FILE = "decode_vs_bf16", "decode_peak_mib", "resident_mib", "file_mib"


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval. ``of`` names what was measured; without a value ``reason``
    says why. ``lo`` and ``hi`` are None where there is no interval, and the value itself where the
    number is exact (a size).
    """

    value: float | None
    lo: float | None = None
    hi: float | None = None
    of: str = ""
    reason: str = ""

    @property
    def exact(self) -> bool:
        """Whether its interval has no width: a size, or a score of which no item changed."""
        return self.lo is not None and self.lo == self.hi == self.value

    @property
    def bounds(self) -> tuple[float, float] | None:
        return None if self.lo is None or self.hi is None else (self.lo, self.hi)

    def named(self, of: str) -> Estimate:
        return replace(self, of=of)


@functools.cache
def kind(metric: str) -> str:
    """``bleu`` of ``bleu/summary``."""
    return metric.partition("/")[0]


def is_quality(metric: str) -> bool:
    """Whether it is one of a model's answers, not of its size, its time, its rounding or inputs."""
    own = kind(metric)
    return "/" in metric and not own.startswith(("decode", "prefill", "load", "input"))


def rises(metric: str) -> bool:
    """Whether a worse model has more of it: a perplexity, a distance."""
    return kind(metric) in (*DIVERGENCE, "ppl", "bits_per_byte")


def is_share(metric: str, meaning: Meaning) -> bool:
    """Whether the metric is kept as 0 to 1 and spoken of in points of a hundred."""
    unit = meaning[metric]["unit"]
    return unit in ("", None) and kind(metric).startswith(("rouge", "acc", "top1"))


def points(metric: str, meaning: Meaning) -> float:
    """How many points (of a hundred), or of the metric's own unit, its value 1 is."""
    return 100.0 if is_share(metric, meaning) else 1.0


def full_value(row: Row, metric: str, meaning: Meaning, full: Row) -> float | None:
    """Full precision's own value, from the paired difference, else from its row ``full``."""
    if kind(metric) in AGREEMENT:
        return 100.0 if kind(metric) == "bleu_fp" else 1.0
    if kind(metric) in DIVERGENCE:
        return 0.0
    value, delta = row.get(metric), row.get(f"{metric}.delta")
    if value is None or delta is None:
        return full.get(metric)
    if meaning[metric]["delta"] == "ratio":
        return value / delta if delta else None
    found: float = value - delta
    return found


def kept(row: Row, metric: str, meaning: Meaning, full: Row) -> Estimate:
    """The share of full precision's quality that is left: 1 is all of it, more is better than it.

    ``ppl_fp / ppl`` for what is better lower, ``metric / metric_fp`` for what is better higher;
    of agreement with full precision (``top1``, ``bleu_fp``) the value itself, of its best.
    """
    missing = _missing(row, metric)
    if missing is not None:
        return missing
    base = full_value(row, metric, meaning, full)
    if not base:
        why = "is not known" if base is None else "is 0, of which there is no share"
        return Estimate(None, of=metric, reason=f"{metric} of full precision {why}")
    values = _values(row, metric, meaning, base)
    if meaning[metric]["better"] == "lower":
        lo, hi = (None if v is None or v <= 0 else base / v for v in (values[2], values[1]))
        own = base / values[0] if values[0] else None
        return Estimate(own, lo, hi, metric, "" if own is not None else f"{metric} is 0")
    shares = [None if v is None else v / base for v in values]
    return Estimate(shares[0], shares[1], shares[2], metric)


def drop(row: Row, metric: str, meaning: Meaning, full: Row, relative: bool = False) -> Estimate:
    """How much worse than full precision, positive where worse.

    In points of a hundred for scores and shares (BLEU, ROUGE, accuracy), else in the metric's own
    unit; ``relative``: in per cent of full precision's value.
    """
    missing = _missing(row, metric)
    if missing is not None:
        return missing
    base = full_value(row, metric, meaning, full)
    if base is None or (relative and not base):
        why = "is not known" if base is None else "is 0, of which there are no per cent"
        return Estimate(None, of=metric, reason=f"{metric} of full precision {why}")
    scale = 100.0 / base if relative else points(metric, meaning)
    worse = [
        None if value is None else (value - base) * scale
        for value in _values(row, metric, meaning, base)
    ]
    if meaning[metric]["better"] == "higher":
        value, hi, lo = (None if item is None else -item for item in worse)
    else:
        value, lo, hi = worse
    return Estimate(value, lo, hi, metric)


def speedup(row: Row) -> Estimate:
    """Decoding: the time of bf16 over the point's own, in one process, of the packed engine.

    Of the machine that timed most points; else of the best other one, which ``of`` then names.
    """
    places = ["", *_elsewhere(tuple(row))]
    timed = [place for place in places if row.get(f"{SPEED}{place}") is not None]
    if not timed:
        reasons = (row.get(f"{SPEED}{place}.reason") for place in places)
        why = next((str(reason) for reason in reasons if reason), "")
        return Estimate(None, of="decode", reason=why or NOT_TIMED)
    place = timed[0] if timed[0] == "" else max(timed, key=lambda p: row[f"{SPEED}{p}"])
    name = f"{SPEED}{place}"
    of = f"decode in {row.get(f'engine{place}')}, × bf16{place}"
    return Estimate(row[name], row.get(f"{name}.lo"), row.get(f"{name}.hi"), of)


def timing_marks(row: Row) -> list[str]:
    """``noisy``, ``in cache``, ``impossible``: why :func:`speedup` is to be read with care."""
    place = next(
        (p for p in ("", *_elsewhere(tuple(row))) if row.get(f"{SPEED}{p}") is not None), None
    )
    if place is None:
        return []
    names = ("decode_noise", "prefill_noise", "decode_mib", "cache_mib", "decode_of_bandwidth")
    values = {name: row.get(f"{name}{place}") for name in names}
    values |= {
        f"{name}{end}": row.get(f"{name}{place}{end}") for name in TIMES for end in (".lo", ".hi")
    }
    return marks({name: value for name, value in values.items() if value is not None})


def memory(row: Row, relative: bool = True) -> Estimate:
    """Memory at work: MiB, or the share of what the same model takes in 16 bits.

    The measured peak of a process that decodes (``decode_peak_mib``) where there is one, as a ratio
    to bf16's. Else computed: the bytes of the weights, without activations, cache and runtime, of
    which what stays unquantized counts as in the file (``file_mib``; ``resident_mib`` would count
    it in float32 wherever quality was computed in float32, and engines run in 16 bits).
    """
    peak, ratio = row.get(PEAK), row.get(f"{PEAK}.delta")
    measured = ratio if relative else peak
    if measured is not None:
        of = "peak of decoding, × bf16" if relative else "peak of decoding"
        return Estimate(measured, measured, measured, of)
    held = row.get(FILE)
    if held is not None and relative:
        whole = _all_in_16_bits(row)
        held = None if whole is None else held / whole
    if held is None:
        why = row.get(f"{PEAK}.reason") or "not measured; probes=memory or probes=size does"
        return Estimate(None, of="memory", reason=str(why))
    of = "bytes of the weights, × 16 bit" if relative else "bytes of the weights"
    return Estimate(held, held, held, of)


def _all_in_16_bits(row: Row) -> float | None:
    """MiB of the whole model in 16 bits, from what full precision held in its compute dtype."""
    resident, ratio = row.get(RESIDENT), row.get(f"{RESIDENT}.delta")
    if resident is None or not ratio:
        return None
    found: float = resident / ratio * 2 / WIDTHS.get(str(row.get("dtype")), 2)
    return found


def file(row: Row, relative: bool = False) -> Estimate:
    """Bytes of the stored tensors: MiB, or the share of full precision's file."""
    value = row.get(f"{FILE}.delta" if relative else FILE)
    if value is None:
        return Estimate(None, of="file", reason="no size was measured; probes=size does")
    return Estimate(value, value, value, "file, × full precision" if relative else "file")


@functools.lru_cache(maxsize=8)
def _elsewhere(names: tuple[str, ...]) -> tuple[str, ...]:
    """`` @ DEVICE, N threads`` of the machines beside the first; all rows have the same columns."""
    start = f"{SPEED}{ELSEWHERE}"
    ends = (".lo", ".hi", ".reason")
    found = (name for name in names if name.startswith(start) and not name.endswith(ends))
    return tuple(name[len(SPEED) :] for name in found)


def _missing(row: Row, metric: str) -> Estimate | None:
    if row.get(metric) is not None:
        return None
    why = row.get(f"{metric}.reason") or f"no {metric} was measured"
    return Estimate(None, of=metric, reason=str(why))


def _values(
    row: Row, metric: str, meaning: Meaning, base: float
) -> tuple[float, float | None, float | None]:
    """Value and the interval that counts when full precision is taken as fixed at ``base``: that of
    the paired difference, or a metric's own where it compares with full precision itself.
    """
    value: float = row[metric]
    if kind(metric) in (*AGREEMENT, *DIVERGENCE):
        return value, row.get(f"{metric}.lo"), row.get(f"{metric}.hi")
    lo, hi = row.get(f"{metric}.delta.lo"), row.get(f"{metric}.delta.hi")
    if lo is None or hi is None:
        return value, None, None
    if meaning[metric]["delta"] == "ratio":
        return value, base * lo, base * hi
    return value, base + lo, base + hi
