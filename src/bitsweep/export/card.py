"""The model card: what an exported checkpoint is, its row's numbers, how to make and load it."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Sequence
from typing import Any

import yaml

from bitsweep.models import Model
from bitsweep.record import Metric, Record
from bitsweep.spec import Plan


def card(
    model: Model, name: str, label: str, command: str, records: Sequence[Record], size: int
) -> str:
    """README.md of ``model`` exported in the format ``name``: ``size`` bytes of weights."""
    base, plan = _base(model), model.plan
    assert plan is not None
    loading = _loading(name, plan)
    checkpoint = loading is not None
    front = {
        "base_model": base,
        "base_model_relation": "quantized",
        "pipeline_tag": "text-generation",
        "library_name": "transformers" if checkpoint else name,
        "tags": ["bitsweep", "quantized", name],
    }
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False).strip(),
        "---",
        "",
        f"# {base}, {label}",
        "",
        f"{base} quantized by bitsweep: "
        f"{plan.summary()}; format {name}. Weights: {size / 2**20:.2f} MiB.",
        "",
        "The licence is that of the base model, which these files carry no copy of.",
        "",
        "## Numbers",
        "",
        *_numbers(records),
        "",
        "## Made by",
        "",
        "```",
        command,
        *[f"bitsweep export {record.run_id[:12]} --to {name}" for record in records[:1]],
        "```",
        "",
        "## Loading",
        "",
        loading or f"```\n{inspect.getdoc(_module(name))}\n```\n",
    ]
    if checkpoint:
        lines += [
            f"config.json names {model.source.dtype}, in which its numbers are computed; `dtype=` "
            "of `from_pretrained` chooses another, which rounds the weights once more.",
        ]
    return "\n".join(lines).rstrip() + "\n"


def _base(model: Model) -> str:
    """The base model's hub id, or its name here: a path of this machine says little."""
    path = model.source.path
    return path if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path) else model.source.name


def _numbers(records: Sequence[Record]) -> list[str]:
    metrics = [metric for record in records for metric in record.metrics.values()]
    measured = [metric for metric in metrics if metric.value is not None]
    if not measured:
        return ["None: this point was exported without being measured."]
    lines = ["| metric | value | to full precision | signature |", "|-|-|-|-|"]
    lines += [f"| {' | '.join(_row(metric))} |" for metric in measured]
    machines = {
        f"Times are of engine-specific kernels on {record.provenance.get('device')}, "
        f"{record.provenance.get('threads')} threads."
        for record in records
        if record.kind == "timing"
    }
    return [*lines, "", *sorted(machines)] if machines else lines


def _row(metric: Metric) -> list[str]:
    value = f"{metric.value:.6g} {metric.unit}".strip()
    if metric.lo is not None and metric.hi is not None:
        value += f" [{metric.lo:.4g}, {metric.hi:.4g}]"
    delta = ""
    if metric.delta is not None:
        sign = "×" if metric.delta.kind == "ratio" else "+"
        delta = f"{sign}{metric.delta.value:.5g} [{metric.delta.lo:.5g}, {metric.delta.hi:.5g}]"
    return [metric.name, value, delta, f"`{metric.signature}`".replace("|", "\\|")]


def _loading(name: str, plan: Plan) -> str | None:
    """How transformers opens the files, Markdown, as the format's own module says it; or None."""
    module = _module(name)
    said = module.loading(plan) if hasattr(module, "loading") else getattr(module, "LOADING", None)
    return None if said is None else str(said)


def _module(name: str) -> Any:
    return importlib.import_module(f"bitsweep.export.{name.replace('-', '_')}")
