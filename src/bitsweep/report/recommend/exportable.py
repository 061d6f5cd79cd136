"""Which format of ``bitsweep export`` can hold a point, by its Record alone: no model, no torch.

The rules are the exporters' own (:mod:`bitsweep.portable`). What a Record does not say of a layer
(its shape) is taken as what fits; export looks at the model itself before it writes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from bitsweep.portable import RULES
from bitsweep.report.estimate import Row
from bitsweep.spec import LayerSpec

LIBRARIES = ("bitsandbytes", "torch_dynamic", "torchao")
FLOATS = "hf-dense"
PREFERRED = ("compressed-tensors", "gptq", "onnx", FLOATS)
GRAPHS = {"openvino": "openvino", "openvino_bf16": "openvino", "onnxruntime": "onnx"}
"""Engine -> the format that its runtime loads."""

ROWS = 32
"""Of a layer whose shape a Record does not say: whole words of codes."""


@dataclass(frozen=True)
class Leaving:
    """``format`` of ``bitsweep export --to``, None where none is known; ``note`` says why so."""

    format: str | None
    note: str = ""

    @property
    def packed(self) -> bool:
        """Whether the files are as small as the Record says."""
        return self.format not in (None, FLOATS)


@dataclass(frozen=True)
class Layer:
    """A layer as far as a Record knows it: by its name, in a shape that fits its groups or, where
    the Record says so, does not.
    """

    name: str
    kind: str
    shape: tuple[int, int]


def leaving(row: Row, plan: Mapping[str, str], fast: bool = False) -> Leaving:
    """How the point of ``row`` can leave; ``plan`` is what each layer became, where it is known.

    ``fast``: a point that was timed in a runtime of whole graphs leaves as what that runtime loads,
    or its speed would stay behind; else as the first of :data:`PREFERRED` that holds it.
    """
    stays = _stays(row)
    if stays:
        return Leaving(None, stays)
    graph = GRAPHS.get(str(row.get("engine"))) if fast else None
    if graph is not None:
        return Leaving(graph, f"{row['engine']} loads it, in which it was timed")
    specs = _specs(row, plan)
    if not specs:
        return Leaving(FLOATS, "nothing of it is quantized: floats, nothing gets smaller")
    layers = {name: _layer(name, spec, row) for name, spec in specs.items()}
    masked = any("prune" in str(row.get(chain) or "") for chain in ("transforms", "recover"))
    permuted = "static_groups=False" in str(row.get("method_options"))
    why = ""
    for name in PREFERRED:
        reason = RULES[name].refuse(layers, specs, masked, permuted)
        if reason is None:
            return Leaving(name, _instead(name, why))
        why = why or reason
    return Leaving(None, f"no format can say it; {PREFERRED[0]}: {why}")


def _stays(row: Row) -> str:
    """Why no format at all can hold the point; empty: one may."""
    if row.get("weights") == "random":
        return "its weights are random: export your own checkpoint with its keys"
    if row.get("kv"):
        return "a quantized cache is nothing of a file; kv.bits=16 can leave"
    if row["method"] in LIBRARIES:
        return f"its layers are {row['method']}'s own; save it with that library"
    if "low_rank" in str(row.get("recover") or ""):
        return "no format has a place for corrections of low rank"
    if "low_rank" in str(row.get("transforms") or ""):
        return "its layers are pairs of factors, which no checkpoint of its architecture has"
    return ""


def _instead(name: str, reason: str) -> str:
    """Why the point leaves as ``name`` and not as a packed checkpoint."""
    if name == FLOATS:
        return f"not packed: {reason}; so floats on its grid: nothing gets smaller"
    return f"no packed checkpoint: {reason}; ONNX can" if name == "onnx" else ""


def _specs(row: Row, plan: Mapping[str, str]) -> dict[str, LayerSpec]:
    """Each quantized layer's spec; without a plan one for each kind of its summary."""
    named = {name: text for name, text in plan.items() if not text.startswith("torch.")}
    if not named:
        parts = [part.rpartition(" x")[0] for part in str(row.get("plan") or "").split(", ")]
        named = {f"layers of {part}": part for part in parts if part}
        if named and row.get("policy") in ("all", "by_role"):
            named["embed_tokens"] = parts[-1]
    real = row["method"] == "hqq" and "zero=integer" not in str(row.get("method_options"))
    found = {name: LayerSpec.read(text) for name, text in named.items()}
    if not real:
        return found
    return {
        name: replace(spec, weight=replace(spec.weight, zero="real"))
        for name, spec in found.items()
    }


def _layer(name: str, spec: LayerSpec, row: Row) -> Layer:
    kind = "linear"
    if re.search(r"embed(?!_out)|\bwte\b", name):
        kind = "embedding"
    elif re.search(r"\.c_(attn|proj|fc)$", name):  # GPT-2's
        kind = "conv1d"
    group = max(spec.weight.group_size, 1)
    ragged = row.get("misfit") == "ragged" and name in str(row.get("misfits") or "")
    return Layer(name, kind, (ROWS, ROWS * group + ragged))
