"""Which format of ``bitsweep export`` can hold a point, by its Record alone: no model, no torch.

What export itself refuses it says with the model at hand, before a file is written; this is the
same table (docs/export.md) as far as columns and the plan by layer tell, so that a command can be
named which will most likely do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from bitsweep.report.estimate import Row

PACKED = re.compile(
    r"w(?P<bits>\d+)(?:a(?P<inputs>\d+))?(?P<group>g\d+|t)?(?P<sym>-sym)?(?P<wide>-fp32scale)?"
    r"(?: a(?P<more>\S+))?"
)
"""A layer in integers, as ``str(LayerSpec)`` writes it."""

WHOLE_INPUTS = re.compile(r"\d+(?:g\d+|t)?(?:-sym)?")
"""Inputs that compressed-tensors can say: integers, dynamic ranges, float32 scales."""

GROUPS = (None, "g16", "g32", "g64", "g128", "g256", "g512", "g1024")
LIBRARIES = ("bitsandbytes", "torch_dynamic", "torchao")
REAL_ZEROS = ("hqq",)
FLOATS = "hf-dense"
GRAPHS = {"openvino": "openvino", "openvino_bf16": "openvino", "onnxruntime": "onnx"}
"""Engine -> the format that its runtime loads."""


@dataclass(frozen=True)
class Leaving:
    """``format`` of ``bitsweep export --to``, None where none is known; ``note`` says why so."""

    format: str | None
    note: str = ""

    @property
    def packed(self) -> bool:
        """Whether the files are as small as the Record says."""
        return self.format not in (None, FLOATS)


def leaving(row: Row, plan: Mapping[str, str], fast: bool = False) -> Leaving:
    """How the point of ``row`` can leave; ``plan`` is what each layer became, where it is known.

    ``fast``: a point that was timed in a runtime of whole graphs leaves as what that runtime loads,
    or its speed would stay behind; else as a packed checkpoint where one holds it, as floats if
    nothing does.
    """
    plan = {layer: spec for layer, spec in plan.items() if not spec.startswith("torch.")}
    if row.get("weights") == "random":
        return Leaving(None, "its weights are random: export your own checkpoint with its keys")
    if row.get("kv"):
        return Leaving(None, "a quantized cache is nothing of a file; kv.bits=16 can leave")
    if row["method"] in LIBRARIES:
        return Leaving(None, f"its layers are {row['method']}'s own; save it with that library")
    if "low_rank" in str(row.get("recover") or ""):
        return Leaving(None, "no format has a place for corrections of low rank")
    kinds = set(plan.values()) or _kinds(row)
    graph = GRAPHS.get(str(row.get("engine"))) if fast else None
    if graph is not None:
        return Leaving(graph, f"{row['engine']} loads it, in which it was timed")
    read = {kind: PACKED.fullmatch(kind) for kind in kinds}
    integers = {kind: found for kind, found in read.items() if found is not None}
    why = _unpacked(row, plan, read)
    if not why:
        if all(_compressed(row, plan, found, len(integers)) for found in integers.values()):
            return Leaving("compressed-tensors")
        if _gptq(row, integers):
            return Leaving("gptq")
        why = "checkpoints of packed weights can not say its mixture of layers"
    widths = {found["bits"] for found in integers.values()}
    exact = len(integers) == len(read) and row["method"] not in REAL_ZEROS
    if exact and widths and widths <= {"4", "8"} and not row.get("misfits"):
        return Leaving("onnx", f"{why}; ONNX can")
    return Leaving(FLOATS, f"{why}; so floats on its grid: nothing gets smaller")


def _unpacked(row: Row, plan: Mapping[str, str], read: Mapping[str, object]) -> str:
    """Why no checkpoint of packed weights holds the point, whatever its bits; empty: one may."""
    if not read:
        return "nothing of it is quantized"
    if any(found is None for found in read.values()):
        return "packed checkpoints have uniform integers only"
    if row["method"] in REAL_ZEROS:
        return f"{row['method']}'s zeros are real numbers, those of packed checkpoints integers"
    if "prune" in str(row.get("transforms") or "") or "prune" in str(row.get("recover") or ""):
        return "packed checkpoints have no place for masks"
    if _embedding(row, plan):
        return "packed checkpoints have no quantized embedding"
    if row.get("misfits") and row.get("misfit") == "ragged":
        return "packed checkpoints have whole groups only"
    return ""


def _compressed(row: Row, plan: Mapping[str, str], found: re.Match[str], kinds: int) -> bool:
    if "static_groups=False" in str(row.get("method_options")):
        return False  # columns of a group are no neighbours
    if any(re.search(r"\.c_(attn|proj|fc)$", name) for name in plan):
        return False  # GPT-2's Conv1D
    inputs = found["inputs"] or found["more"]
    packed = found["bits"] != "8" or not inputs
    return (
        2 <= int(found["bits"]) <= 8
        and (not inputs or WHOLE_INPUTS.fullmatch(inputs) is not None)
        and (kinds == 1 or found["sym"] is not None or not packed)
    )


def _gptq(row: Row, integers: Mapping[str, re.Match[str]]) -> bool:
    symmetric = {found["sym"] is not None for found in integers.values()}
    return len(symmetric) == 1 and all(
        found["bits"] in ("2", "3", "4", "8")
        and found["group"] in GROUPS
        and not (found["inputs"] or found["more"] or found["wide"])
        for found in integers.values()
    )


def _kinds(row: Row) -> set[str]:
    """The kinds of layers in a plan's summary, ``w4g32 x16, w8 x13``."""
    words = [part.rpartition(" x")[0] for part in str(row.get("plan") or "").split(", ")]
    return {word for word in words if word}


def _embedding(row: Row, plan: Mapping[str, str]) -> bool:
    """Whether the embedding is quantized: by the layers' names, else by what policies are known."""
    if plan:
        return any(re.search(r"embed(?!_out)|\bwte\b", name) for name in plan)
    return row.get("policy") in ("all", "by_role")
