"""Rows and numbers of the page: by column, strings once, no more digits than a reader can use.

A column of strings is ``{"v": values, "i": index for each row}``, -1 where there is none; a column
of numbers is a list. A metric has a list for each of its ends: ``v`` the value, ``lo`` and ``hi``
its own interval, ``d``, ``dlo`` and ``dhi`` the paired change to full precision.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from bitsweep.report import acceptance, labels
from bitsweep.report.estimate import timing_marks
from bitsweep.report.frame import references
from bitsweep.report.latency import NOISY
from bitsweep.report.tables import metrics, primaries, primary, speed_metric
from bitsweep.timing import SUFFIX, is_time
from bitsweep.tracking.flat import plain as shown

TITLES = {
    "file_mib": "file, MiB",
    "bits_per_weight": "bits per weight",
    "resident_mib": "resident, MiB",
    "decode_vs_bf16": "decode speed, × bf16",
    "decode_vs_fp32": "decode speed, × fp32",
    "prefill_vs_bf16": "prefill speed, × bf16",
    "prefill_vs_fp32": "prefill speed, × fp32",
    "decode_tok_s": "tokens per second",
    "decode_ms": "decode, ms per token",
    "decode_p99_ms": "99 % of decode steps below, ms",
    "decode_mib": "weights read by a step, MiB",
    "decode_of_bytes": "decode speed over the ratio of bytes",
    "decode_of_bandwidth": "share of the memory's bandwidth",
    "decode_cost_per_mtok": "cost of a million decoded tokens",
    "prefill_ms": "prefill, ms",
}
KINDS = {
    "ppl": "perplexity",
    "kl_mean": "KL, mean",
    "kl_median": "KL, median",
    "kl_p99": "KL, 99 %",
    "top1": "top-1 agreement",
    "bleu": "BLEU",
    "bleu_fp": "BLEU against full precision",
    "rougeL": "ROUGE-L",
    "rougeL_fp": "ROUGE-L against full precision",
    "acc": "accuracy",
    "acc_norm": "accuracy, by length",
    "bits_per_byte": "bits per byte",
}
COSTS = ("file_mib", "bits_per_weight")
QUALITIES = ("ppl", "kl_mean", "top1", "bleu", "rougeL", "acc", "acc_norm")
ENDS = {
    "v": ("", 8),
    "lo": (".lo", 5),
    "hi": (".hi", 5),
    "d": (".delta", 9),
    "dlo": (".delta.lo", 9),
    "dhi": (".delta.hi", 9),
}
"""Key -> end of the frame's column, and significant digits. Rounding keeps the order of numbers,
so that a point is on the front here as it is in the tables."""

MOST_NUMBERS = 2_500_000
"""Above it, intervals of values that have a paired change are left to ``bitsweep show``."""

DIGITS_OF_ID = 16


def of(frame: pd.DataFrame) -> dict[str, Any]:
    """Columns, metrics and numbers, and what the page begins with."""
    names = measured(frame)
    x, y = axes(frame)
    quality = primary(frame)
    known: Mapping[str, Mapping[str, str | None]] = frame.attrs["metrics"]
    config = configuration(frame)
    plain = frame.copy(deep=False)
    plain.attrs = {}  # pandas copies them for each column that is looked at
    ends = _ends(plain, names)
    return {
        "count": len(frame),
        "metrics": {
            name: {
                "unit": known[name]["unit"],
                "better": known[name]["better"],
                "delta": known[name]["delta"],
                "title": title(name),
            }
            for name in names
        },
        "numbers": {name: _numbers(plain, name, ends) for name in names},
        "reasons": _reasons(plain, known),
        "signatures": _signatures(frame, names),
        "columns": _columns(frame, config),
        "config": config,
        "acceptance": _accepted(frame),
        "axes": _axis_names(frame),
        "x": x,
        "y": y,
        "heat": quality or "",
        "primaries": primaries(frame),
        "begin": [*x, *y[:1], *[name for name in y if name.startswith("kl_mean")][:1]],
        "trimmed": "lo" not in ends,
    }


def measured(frame: pd.DataFrame) -> list[str]:
    """Metrics with a number; of latencies those of the first shape (their table has all)."""
    return [
        name
        for name in frame.attrs["metrics"]
        if name in frame and not _other_shape(name) and frame[name].notna().any()
    ]


def _other_shape(name: str) -> bool:
    base, _, suffix = name.partition(" @ ")[0].partition("/")
    return bool(suffix) and base.startswith(("decode", "prefill", "memory", "peak")) and (
        SUFFIX.fullmatch(suffix) is not None
    )  # fmt: skip


def axes(frame: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Costs and qualities that the front is drawn by, the first of each to begin with."""
    quality = primary(frame)
    y = [name for kind in QUALITIES for name in metrics(frame, kind)]
    y.sort(key=lambda name: name != quality)
    speed = speed_metric(frame)
    known = measured(frame)
    x = [name for name in (*COSTS, *([speed] if speed else [])) if name in known]
    if not y and speed in x:  # of random weights: no quality, and still sizes and times
        x, y = x[:-1], [x[-1]]
    return x, y


def title(name: str) -> str:
    """``perplexity, in_domain`` for ``ppl/in_domain``."""
    if name in TITLES:
        return TITLES[name]
    kind, slash, text = name.partition("/")
    return f"{KINDS[kind]}, {text}" if slash and kind in KINDS else name


def configuration(frame: pd.DataFrame) -> list[str]:
    """Columns that belong to no metric and are neither an id nor a constant None."""
    own = {f"{m}{end}" for m in frame.attrs["metrics"] for end, _ in ENDS.values()}
    own |= {f"{name}.reason" for name in frame.attrs["metrics"]}
    shown = [name for name in frame.columns if name not in own | {"run_id", "point_id"}]
    return [name for name in shown if frame[name].notna().any()]


def _axis_names(frame: pd.DataFrame) -> list[str]:
    names = list(frame.columns)
    if "point_id" not in names:
        return []
    return names[names.index("model") : names.index("point_id")]


def interned(values: Iterable[Any]) -> dict[str, list[Any]]:
    """Each value once and an index for each row; -1 for None."""
    known: dict[Any, int] = {}
    index = [-1 if value is None else known.setdefault(value, len(known)) for value in values]
    return {"v": list(known), "i": index}


def _columns(frame: pd.DataFrame, config: Sequence[str]) -> dict[str, Any]:
    """The config columns as they are, and what a row is called."""
    varying, reference = labels.varying(frame), references(frame)
    apart = [axis for axis in varying if not axis.endswith("seed")]  # seeds share colour and cell
    names = [*dict.fromkeys([*_axis_names(frame), *config, "run_id"])]
    plain = frame[names].copy(deep=False)
    plain.attrs = {}
    found = {name: _column(plain[name]) for name in config}
    rows = labels.rows(plain)
    return found | {
        "id": [run_id[:DIGITS_OF_ID] for run_id in plain["run_id"]],
        "name": interned(labels.grid(row, apart) for row in rows),
        "full": interned(labels.grid(row, varying) for row in rows),
        "weights": interned(labels.weights(row) for row in rows),
        "group": interned(labels.group(row.get("group_size")) or None for row in rows),
        "label": interned(str(row.get("label") or row["run_id"]) for row in rows),
        "reference": [int(value) for value in reference],
        "noisy": _noisy(frame),
    }


def _noisy(frame: pd.DataFrame) -> list[int]:
    """Of which rows times are marked so."""
    times = frame[["status", *(name for name in frame.columns if is_time(name))]].copy(deep=False)
    times.attrs = {}
    return [int(NOISY in timing_marks(row)) for row in labels.rows(times)]


def _column(column: pd.Series) -> Any:
    """Numbers as a list, all else interned, without paths of this machine."""
    if is_numeric_dtype(column) and not is_bool_dtype(column):
        values = column.to_numpy(dtype=float, na_value=np.nan).tolist()
        return [None if v != v else int(v) if v.is_integer() else v for v in values]
    index, known = pd.factorize(column.astype(object))
    texts = [v if isinstance(v, bool) else str(shown(v)) for v in known]
    return {"v": texts, "i": index.tolist()}


def _ends(frame: pd.DataFrame, names: Sequence[str]) -> list[str]:
    columns = [f"{name}{end}" for name in names for end, _ in ENDS.values()]
    total = sum(int(frame[column].notna().sum()) for column in columns if column in frame)
    return [key for key in ENDS if total <= MOST_NUMBERS or key not in ("lo", "hi")]


def _numbers(frame: pd.DataFrame, name: str, ends: Sequence[str]) -> dict[str, list[float | None]]:
    paired = f"{name}.delta" in frame
    found = {}
    for key in ends if paired else ENDS:
        end, digits = ENDS[key]
        column = f"{name}{end}"
        if column in frame and frame[column].notna().any():
            found[key] = _rounded(frame[column], digits)
    return found


def _rounded(column: pd.Series, digits: int) -> list[float | None]:
    values = column.to_numpy(dtype=float, na_value=np.nan).tolist()
    shown = f"%.{digits}g".__mod__
    return [float(shown(v)) if v == v else None for v in values]


def _accepted(frame: pd.DataFrame) -> dict[str, Any]:
    """The acceptance line of the source articles: what each row passes of it, and why."""
    found = acceptance.of(frame)
    parts = [name for name in found if f"{name}.reason" in found]
    passes = {True: "yes", False: "no"}
    sure = zip(found["passes"], found["sure"], found["text"], strict=True)
    return {
        "line": _said(acceptance.ARTICLES),
        "text": interned(text or None for text in found["text"]),
        "passes": interned(
            None if not text else "surely" if certain else passes.get(value, "unknown")
            for value, certain, text in sure
        ),
        "parts": {
            name: {"said": interned(found[name]), "reason": interned(found[f"{name}.reason"])}
            for name in parts
        },
    }


def _said(line: acceptance.Acceptance) -> str:
    """``bleu, rougeL at most 2 points lower; decoding at least 2 × bf16; memory at most half``."""
    words = [
        f"{name} at most {most.value:g}{' %' if most.relative else ' points'} lower"
        for name, most in line.drop.items()
    ]
    words += [
        f"at least {share:g} of {name or 'perplexity'} kept" for name, share in line.keep.items()
    ]
    words += [f"decoding at least {line.speedup:g} × bf16"] if line.speedup is not None else []
    for name, most in (("memory", line.memory), ("file", line.file)):
        if most is not None:
            words.append(
                f"{name} at most {most.value:g}{' × that in 16 bits' if most.relative else ' MiB'}"
            )
    return "; ".join(words)


def _reasons(frame: pd.DataFrame, names: Iterable[str]) -> dict[str, Any]:
    """Metric -> why a row has no number of it; also of metrics that no row has."""
    found = {}
    for name in names:
        column = f"{name}.reason"
        if column in frame and not _other_shape(name):
            said = [str(v).splitlines()[0] if isinstance(v, str) and v else None for v in
                    frame[column]]  # fmt: skip
            if any(said):
                found[name] = interned(said)
    return found


def _signatures(frame: pd.DataFrame, names: Sequence[str]) -> dict[str, Any]:
    """Each signature once, and model -> metric -> its index."""
    every: dict[str, int] = {}
    index = {
        model: {name: every.setdefault(own[name], len(every)) for name in names if name in own}
        for model, own in frame.attrs.get("signatures", {}).items()
    }
    return {"texts": list(every), "of": index}
