"""What files of other formats can say of a point: rules over its specs, without a tensor.

One truth for three: exporters refuse by it, before anything is quantized where that is possible,
the ONNX graph too, and ``recommend`` asks it which ``--to`` will hold a Record's point.
docs/export.md has it as a table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from bitsweep.spec import PER_CHANNEL, PER_TENSOR, InputSpec, LayerSpec, QuantSpec


class Matrix(Protocol):
    """What the rules look at of a :class:`bitsweep.models.Layer`."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str: ...

    @property
    def shape(self) -> tuple[int, int]: ...


Layers = Mapping[str, LayerSpec]
"""A plan: name of a layer -> what it becomes."""


class Rules(NamedTuple):
    """Each answers with a reason, naming what and what would work, or with None.

    - ``layer``: of one layer, by its spec;
    - ``plan``: of layers beside each other, each of which may be said;
    - ``codes``: of a layer's codes, ``masked`` (pruned) or ``permuted`` (columns of a group are no
      neighbours).
    """

    layer: Callable[[Matrix, LayerSpec], str | None]
    plan: Callable[[Layers], str | None] = lambda plan: None
    codes: Callable[[str, bool, bool], str | None] = lambda layer, masked, permuted: None

    def refuse(
        self,
        layers: Mapping[str, Matrix],
        plan: Layers,
        masked: bool = False,
        permuted: bool = False,
    ) -> str | None:
        """The first reason why ``plan`` for ``layers`` can not be said, or None."""
        for name, spec in plan.items():
            reason = self.layer(layers[name], spec) or self.codes(name, masked, permuted)
            if reason is not None:
                return reason
        return self.plan(plan)


# ----------------------------------------------------------------------------- compressed-tensors

PACKED = "pack-quantized"
BYTES = "int-quantized"
UNITS = {"linear": "Linear"}
"""The library's classes of our kinds of layer. It packs embeddings as well, but transformers 5.23
can not open such a model: it asks the embedding for a weight before that is unpacked."""

FLOAT_SCALES = ("float16", "float32")


def compression(bits: float, inputs: InputSpec | None) -> str:
    """How compressed-tensors holds a layer: bytes where vLLM looks for them."""
    return BYTES if bits == 8 and inputs is not None else PACKED


def _compressed_layer(layer: Matrix, spec: LayerSpec) -> str | None:
    weight = spec.weight
    reason = None
    if layer.kind not in UNITS:
        kind = {"conv1d": "a Conv1D", "embedding": "an embedding"}[layer.kind]
        reason = f"{kind}: transformers opens linear layers only; rules can keep it"
    elif weight.format != "int":
        reason = f"format={weight.format}: its integers only; use format=int"
    elif weight.zero != "integer":
        reason = "zero=real: its zeros are integers; use a method with integer zeros (gptq, rtn)"
    elif weight.scale_dtype not in FLOAT_SCALES:
        reason = f"scale_dtype={weight.scale_dtype}: use float16 or float32"
    elif not weight.fits(layer.shape[1]):
        reason = f"group_size={weight.group_size} leaves a part of a group: use whole groups"
    elif spec.input is not None:
        reason = _compressed_input(spec.input)
    return None if reason is None else f"{layer.name} ({spec}): {reason}"


def _compressed_input(spec: InputSpec) -> str | None:
    quant = spec.quant
    if quant.format != "int":
        return f"input.format={quant.format}: its integers only"
    if spec.adaptive:
        return "input.adaptive: a width for each token can not be said"
    if spec.range != "dynamic":
        return f"input.range={spec.range}: static ranges are not written; use input.range=dynamic"
    if quant.scale_dtype != "float32":
        return f"input.scale_dtype={quant.scale_dtype}: scales of inputs are the model's floats"
    return None


def _compressed_plan(plan: Layers) -> str | None:
    alike = dict.fromkeys(plan.values())
    packed = [spec for spec in alike if compression(spec.weight.bits, spec.input) == PACKED]
    zeros = [spec for spec in packed if not spec.weight.symmetric]
    if not zeros or len(alike) == 1:
        return None
    return (
        f"{zeros[0]} beside {len(alike) - 1} other kinds of layers: with packed zeros among them "
        "transformers 5.23 reads all as the first kind; use symmetric=true"
    )


def _compressed_codes(layer: str, masked: bool, permuted: bool) -> str | None:
    if permuted:
        return (
            f"{layer}: columns of a group are not neighbours (act_order), which "
            "compressed-tensors 0.20 has no place for; use method.static_groups=true"
        )
    if masked:
        return (
            f"{layer}: a mask of pruned weights has no place in {PACKED}; --to hf-dense "
            "holds them as zeros"
        )
    return None


# ------------------------------------------------------------------------------------------- gptq

GPTQ_BITS = (2, 3, 4, 8)
GPTQ_GROUPS = (PER_CHANNEL, 16, 32, 64, 128, 256, 512, 1024)
"""``group_size`` that GPTQModel's loader takes (7.6); it stops at any other."""
WORD = 32
"""Bits of the words that codes are packed in."""


def _gptq_layer(layer: Matrix, spec: LayerSpec) -> str | None:
    reason = _beyond_gptq(layer, spec)
    return None if reason is None else f"{layer.name} ({spec}): {reason}"


def _beyond_gptq(layer: Matrix, spec: LayerSpec) -> str | None:
    weight = spec.weight
    rows, columns = layer.shape
    if layer.kind == "embedding":
        return (
            "an embedding: these files would group it along its tokens, ours runs along its "
            "width; rules can keep it"
        )
    if spec.input is not None:
        return f"input.bits={spec.input.bits:g}: these files hold weights only; use 16"
    if weight.format != "int":
        return f"format={weight.format}: these files hold uniform integers; use format=int"
    if weight.bits not in GPTQ_BITS:
        return f"bits={weight.bits:g}: these files have 2, 3, 4 or 8"
    if weight.zero != "integer":
        return f"zero={weight.zero}: a zero is a code in these files; try method=rtn or gptq"
    if weight.scale_dtype != "float16":
        return (
            f"scale_dtype={weight.scale_dtype}: scales are float16 in these files, "
            "two bytes each; use scale_dtype=float16"
        )
    if weight.group_size == PER_TENSOR:
        return "group_size=0: these files have no scale per tensor; use -1, 32, 64 or 128"
    if weight.group_size not in GPTQ_GROUPS:
        shown = ", ".join(map(str, GPTQ_GROUPS))
        return f"group_size={weight.group_size}: loaders of these files take {shown}"
    if not weight.fits(columns):
        return (
            f"group_size={weight.group_size} does not divide in_features={columns}: no ragged "
            "groups in these files; use misfit=per_channel"
        )
    if weight.bits == 3 and (rows % WORD or columns % WORD):
        return f"bits=3 packs 32 codes in 3 words, and {rows} x {columns} has a rest; use 4"
    return None


def _gptq_plan(plan: Layers) -> str | None:
    ways = {name: spec.weight.symmetric for name, spec in plan.items()}
    first = next(iter(ways.values()), None)
    other = next((name for name, way in ways.items() if way != first), None)
    return None if other is None else gptq_zeros(ways[other], other)


def gptq_zeros(symmetric: bool, layer: str) -> str:
    """Why ``layer`` can not stand beside those that say their zeros the other way."""
    return (
        f"symmetric={str(symmetric).lower()} of {layer}: all layers of these files say their "
        "zeros in one way; make all symmetric, or none"
    )


def _gptq_codes(layer: str, masked: bool, permuted: bool) -> str | None:
    if not masked:
        return None
    return (
        f"{layer} has a mask of pruned weights, which these files can not say; "
        "leave out transforms=[prune] and recover=[prune]"
    )


# ------------------------------------------------------------------------------------------- onnx

ONNX_BITS = (4, 8)
ONNX_INPUTS = ("int", "narrow")


def onnx_weight(spec: QuantSpec) -> str | None:
    """Why DequantizeLinear can not say ``spec``, or None."""
    if spec.format != "int":
        return f"format={spec.format}: ONNX's DequantizeLinear has integers on a uniform grid"
    if spec.bits not in ONNX_BITS:
        return f"bits={spec.bits:g}: ONNX stores integers of 4 and 8 bits"
    if spec.zero != "integer" and not spec.symmetric:
        return f"zero={spec.zero}: ONNX's zero points are codes"
    return None


def onnx_input(spec: InputSpec, in_features: int) -> str | None:
    """Why inputs of ``in_features`` numbers can not be quantized so in a graph, or None."""
    if spec.adaptive or spec.bits != 8 or spec.quant.format not in ONNX_INPUTS:
        return f"inputs a{spec}: a graph has inputs of 8 bits, input.format=int or narrow"
    if spec.quant.scale_dtype != "float32":
        return f"inputs a{spec}: a graph has input.scale_dtype=float32"
    if spec.per == "channel":
        return f"inputs a{spec}: a scale for each column stays inside the sum; use input.per=token"
    if not spec.quant.fits(in_features) or spec.quant.zero != "integer":
        return f"inputs a{spec}: a graph has full groups and integer zeros"
    if spec.per == "token" and spec.range != "dynamic":
        return f"inputs a{spec}: use input.range=dynamic"
    return None


def onnx_fused(spec: LayerSpec, in_features: int) -> str | None:
    """Why onnxruntime 1.31 would fail on such a layer, whose integers it multiplies, or None."""
    if spec.input is None or spec.input.per == "token" or spec.weight.groups(in_features) == 1:
        return None
    return f"inputs a{spec.input} with weights in groups: onnxruntime fuses these wrongly"


def _onnx_layer(layer: Matrix, spec: LayerSpec) -> str | None:
    columns = layer.shape[1]
    reason = onnx_weight(spec.weight)
    if reason is None and spec.input is not None:
        reason = onnx_input(spec.input, columns) or onnx_fused(spec, columns)
    return None if reason is None else f"{layer.name}: {reason}"


# --------------------------------------------------------------------------------------- hf-dense


def _dense_layer(layer: Matrix, spec: LayerSpec) -> str | None:
    if spec.input is None:
        return None
    return f"{layer.name} ({spec}): quantized inputs are nothing of a dense checkpoint"


RULES = {
    "compressed-tensors": Rules(_compressed_layer, _compressed_plan, _compressed_codes),
    "gptq": Rules(_gptq_layer, _gptq_plan, _gptq_codes),
    "onnx": Rules(_onnx_layer),
    "hf-dense": Rules(_dense_layer),
}
"""``--to`` -> its rules. OpenVINO's are what its plugin computes rightly, found by trying."""
