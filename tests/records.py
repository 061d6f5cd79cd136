"""Synthetic Records for the tests of reports and trackers: a plausible grid, no model behind it."""

from __future__ import annotations

import hashlib
import math
import random
from typing import Any

from bitsweep.record import Delta, Kind, Metric, Record
from bitsweep.spec import QuantSpec

FULL_PRECISION_PPL = {"in_domain": 2.6131, "out_of_domain": 9.8417}
HURT = {8: 0.0004, 4: 0.021, 3: 0.11, 2: 1.9}
GAIN = {"rtn": 1.0, "hqq": 0.72, "gptq": 0.41}
WEIGHTS = 3_000_000


def identifier(*words: object) -> str:
    return hashlib.sha256(repr(words).encode()).hexdigest()


def signature(metric: str, text: str, tokenizer: str = "reference") -> str:
    return f"{metric}|text:{text}|tokenizer:{tokenizer}|window:256|bos:no|tokens:204800|v1"


def columns(method: str, bits: int | None, group: int | None, policy: str | None) -> dict[str, Any]:
    spec = "" if bits is None else f" {QuantSpec(bits=bits, group_size=group or 0)} {policy}"
    quantized = bits is not None
    return {
        "model": "reference",
        "method": method,
        "method_options": "",
        "bits": bits,
        "group_size": group,
        "format": "int" if quantized else None,
        "symmetric": False if quantized else None,
        "scale_dtype": "float16" if quantized else None,
        "policy": policy,
        "misfit": "error",
        "data": "reference",
        "calibration": "reference" if method == "gptq" else None,
        "seed": 0 if method == "gptq" else None,
        "dtype": "float32",
        "transforms": "",
        "recover": "",
        "label": f"{method}{spec}",
    }


def record(
    method: str = "rtn",
    bits: int | None = 4,
    group: int | None = 64,
    policy: str | None = "uniform",
    kind: Kind = "quality",
    metrics: list[Metric] | None = None,
    **changes: Any,
) -> Record:
    """One Record; ``changes`` replace fields of the Record or columns of its point."""
    point = columns(method, bits, group, policy)
    point |= {name: changes.pop(name) for name in list(changes) if name in point}
    name = identifier(sorted(point.items(), key=str))
    plan = "nothing quantized" if method == "full_precision" else "w4g64 x28"
    made = Record(
        run_id=identifier(name, kind),
        point_id=name,
        kind=kind,
        experiment="demo",
        status="ok",
        point=point,
        model={
            "path": "reference",
            "revision": None,
            "sha256": identifier(point["model"]),
            "parameters": WEIGHTS,
            "tied": False,
        },
        plan={"digest": name, "summary": plan, "untied": False, "misfits": {}},
        metrics={metric.name: metric for metric in metrics or []},
        timings={"quantize": {"wall_s": 1.2, "cpu_s": 1.1, "peak_rss_mib": 900.0}},
        provenance={
            "commit": "0123456789abcdef0123456789abcdef01234567",
            "dirty": False,
            "versions": {"python": "3.11.7", "bitsweep": "0.1.0", "torch": "2.13.0"},
            "device": "AMD EPYC x2",
            "threads": 2,
            "utc": "2026-11-21T02:00:00Z",
            "command": "bitsweep sweep demo",
        },
    )
    for key, value in changes.items():
        setattr(made, key, value)
    return made


def ppl(
    value: float, lo: float = math.nan, hi: float = math.nan, text: str = "in_domain"
) -> Metric:
    """A perplexity whose ratio to full precision is ``value / FULL_PRECISION_PPL[text]``."""
    base = FULL_PRECISION_PPL[text]
    delta = None if math.isnan(lo) else Delta("ratio", value / base, lo / base, hi / base)
    return Metric(
        f"ppl/{text}", value, "", "lower", signature("ppl", text), value * 0.96, value * 1.04, delta
    )


def number(name: str, value: float, unit: str = "", better: str = "higher") -> Metric:
    return Metric(name, value, unit, better, f"{name}|v1")  # type: ignore[arg-type]


def size_bits(bits: int | None, group: int | None, policy: str | None) -> float:
    """Bits per weight with overhead: a scale of 16 bits and a zero of ``bits`` bits a group."""
    if bits is None or group is None:
        return 32.0
    own = bits + (16 + bits) / (group if group > 0 else 256)
    return 0.3 * 8.1 + 0.7 * own if policy == "by_role" else own


def quality(method: str, bits: int | None, group: int | None, policy: str | None) -> list[Metric]:
    """Plausible numbers: damage falls with bits and small groups; noise of a fixed seed."""
    noise = random.Random(identifier(method, bits, group, policy))
    damage = 0.0
    if bits is not None and group is not None:
        damage = (
            HURT[bits] * GAIN[method] * (1 + 0.12 * math.log2((group if group > 0 else 256) / 32))
        )
        damage *= (0.6 if policy == "by_role" else 1.0) * noise.uniform(0.93, 1.07)
    metrics = []
    for text, base in FULL_PRECISION_PPL.items():
        ratio = 1 + damage * (1.0 if text == "in_domain" else 1.3)
        half = 0.0002 + 0.05 * (ratio - 1) if damage else 0.0
        metrics.append(ppl(base * ratio, base * (ratio - half), base * (ratio + half), text))
    kl = 0.9 * damage**1.4
    metrics += [
        number("kl_mean/in_domain", kl, "nat", "lower"),
        number("kl_p99/in_domain", 9 * kl, "nat", "lower"),
        number("top1/in_domain", 1 / (1 + 0.6 * damage)),
    ]
    for task, full in {"translation": 91.2, "description": 71.4}.items():
        lost = full * (1 - 1 / (1 + damage))
        off = Delta("difference", -lost, -lost - 0.4, -lost + 0.4)
        metrics.append(
            Metric(f"bleu/{task}", full - lost, "", "higher", f"bleu/{task}|v1", delta=off)
        )
        metrics.append(number(f"rougeL/{task}", (full - lost) / 100))
    lost = 0.61 * (1 - 1 / (1 + 0.4 * damage))
    off = Delta("difference", -lost, -lost - 0.01, -lost + 0.01)
    metrics.append(Metric("acc/questions", 0.86 - lost, "", "higher", "acc|v1", delta=off))
    per_weight = size_bits(bits, group, policy)
    metrics += [
        number("file_mib", WEIGHTS * per_weight / 8 / 2**20 + 0.5, "MiB", "lower"),
        number("bits_per_weight", per_weight, "bit", "lower"),
        number("resident_mib", 14.0, "MiB", "none"),
    ]
    return metrics


def latency(bits: int) -> list[Metric]:
    """int8 and int4 have a kernel; 2 and 3 bits have none, and say so."""
    if bits not in (4, 8):
        reason = f"engine=auto: no packed kernel runs {bits} bits; 4 and 8 have one"
        names = ("prefill_ms", "decode_ms", "decode_vs_bf16")
        return [Metric(n, None, "", "none", "latency|engine:auto|v1", reason=reason) for n in names]
    speed = {8: 1.4, 4: 2.1}[bits]
    return [
        number("prefill_ms", 40 / speed, "ms", "lower"),
        number("prefill_vs_bf16", speed * 0.8),
        number("decode_ms", 2 / speed, "ms", "lower"),
        number("decode_vs_bf16", speed),
        number("decode_vs_fp32", speed * 1.7),
    ]


def grid(experiment: str = "demo", timing: bool = True) -> list[Record]:
    """rtn, hqq, gptq x 2, 3, 4, 8 bits x {g64 uniform, g32 by_role}, the reference, odd rows."""
    rows = [
        record(
            "full_precision", None, None, None, metrics=quality("full_precision", None, None, None)
        )
    ]
    for method in GAIN:
        for bits in HURT:
            for group, policy in ((64, "uniform"), (32, "by_role")):
                point = (method, bits, group, policy)
                rows.append(record(*point, metrics=quality(*point)))
                if timing:
                    engine = {"engine": "torch_packed", "threads": 2, "device": "AMD EPYC x2"}
                    timed = record(*point, kind="timing", metrics=latency(bits))
                    timed.point |= engine
                    rows.append(timed)
    rows.append(
        record(
            "rtn",
            4,
            48,
            status="refused",
            reason="group_size=48 does not divide in_features=256 of layers.0.q_proj; try 32 or 64",
        )
    )
    rows.append(
        record("hqq", 2, 128, status="failed", reason="RuntimeError: out of memory\nat all")
    )
    for row in rows:
        row.experiment = experiment
    return rows
