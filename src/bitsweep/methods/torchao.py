"""torchao as it is: its own rounding, tensors and kernels, weight-only or with dynamic inputs.

    weights                                inputs                       torchao's configuration
    int, 8 bits, symmetric, -1 or groups   full precision               Int8WeightOnly
    int, 8 bits, symmetric, -1             8 bits per token, symmetric  Int8DynamicActivationInt8
    int, 2 to 8 bits, -1 or groups         full precision               IntxWeightOnly
    int, 2 to 8 bits, -1 or groups         8 bits per token             Int8DynamicActivationIntx
    e4m3, e5m2, per channel                full precision               Float8WeightOnly
    e4m3, per channel                      8 bits per token, e4m3       Float8Dynamic (a GPU)

torchao keeps codes of fewer than 8 bits in bytes (IntxUnpackedToInt8), so its layers are no smaller
than at 8 bits; our size counts the codes as a file would pack them. Its packed int4 layouts have no
``dequantize`` on a CPU, so nothing could be checked: they are not offered.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import nn

from bitsweep.calibration import Calibration
from bitsweep.errors import UserError
from bitsweep.formats.float import LAYOUTS
from bitsweep.library import convert_layers, linear_only, wants_inputs
from bitsweep.models import Layer, Model
from bitsweep.spec import PER_CHANNEL, PER_TENSOR, InputSpec, LayerSpec, Plan, QuantSpec
from bitsweep.tensor import QuantTensor

FLOATS = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


@dataclass(frozen=True)
class Torchao:
    """No options: the axes of weights and inputs choose torchao's configuration."""

    version: ClassVar[int] = 1
    ignores: ClassVar[frozenset[str]] = frozenset({"scale_dtype", "calibration", "seed"})
    calibrated: ClassVar[bool] = False
    library: ClassVar[str] = "torchao"

    def skip(self, spec: QuantSpec) -> str | None:
        if spec.group_size == PER_TENSOR:
            return "group_size=0: torchao has groups or -1 (per channel)"
        if spec.format in FLOATS:
            if spec.group_size != PER_CHANNEL:
                return f"group_size={spec.group_size}: torchao's float8 has -1 (per channel)"
            return None
        if spec.format != "int":
            return f"format={spec.format}: torchao has int, {' and '.join(FLOATS)} here"
        return None

    def skip_layer(self, layer: Layer, spec: LayerSpec) -> str | None:
        reason = linear_only("torchao", layer)
        inputs = spec.input
        if reason is not None or inputs is None:
            return reason
        wanted = "in full precision, or of 8 bits per token (input.bits=8)"
        whole = (inputs.bits, inputs.per, inputs.range, inputs.quant.group_size)
        if whole != (8, "token", "dynamic", PER_CHANNEL) or inputs.adaptive:
            return wants_inputs("torchao", wanted, inputs)
        if spec.weight.format in FLOATS:
            if inputs.quant.format != spec.weight.format or not torch.cuda.is_available():
                return "torchao's float8 inputs need a GPU and input.format=e4m3"
        elif inputs.quant.format != "int":
            return wants_inputs("torchao", wanted, inputs)
        elif inputs.quant.symmetric != _is_int8(spec):
            known = "symmetric inputs where weights are symmetric int8 per channel, else asymmetric"
            return f"input.symmetric={str(inputs.quant.symmetric).lower()}: torchao has {known}"
        return None

    def resolve(self, spec: QuantSpec) -> QuantSpec:
        return replace(spec, scale_dtype="float32")

    def __call__(self, model: Model, plan: Plan, calibration: Calibration) -> Model:
        try:
            import torchao  # noqa: F401
        except ImportError:
            raise UserError(
                "method=torchao: torchao is not installed; pip install 'bitsweep[torchao]'"
            ) from None
        convert_layers(model, plan, convert)
        return model


def _is_int8(spec: LayerSpec) -> bool:
    weight = spec.weight
    return (weight.bits, weight.symmetric, weight.group_size) == (8, True, PER_CHANNEL)


def configuration(spec: LayerSpec) -> Any:
    """torchao's configuration of a layer."""
    from torchao import quantization as ao
    from torchao.quantization.granularity import PerAxis, PerGroup, PerRow

    weight, inputs = spec.weight, spec.input
    if weight.format in FLOATS:
        dtype = FLOATS[weight.format]
        if inputs is None:
            return ao.Float8WeightOnlyConfig(weight_dtype=dtype)
        return ao.Float8DynamicActivationFloat8WeightConfig(granularity=PerRow())
    per_channel = weight.group_size == PER_CHANNEL
    if weight.bits == 8 and weight.symmetric and inputs is None:
        grouping = PerRow() if per_channel else PerGroup(weight.group_size)
        return ao.Int8WeightOnlyConfig(granularity=grouping)
    if _is_int8(spec):
        return ao.Int8DynamicActivationInt8WeightConfig()
    return _intx(weight, inputs, PerAxis(0) if per_channel else PerGroup(weight.group_size))


def _intx(weight: QuantSpec, inputs: InputSpec | None, grouping: Any) -> Any:
    from torchao import quantization as ao
    from torchao.quantization.quant_primitives import MappingType

    mapping = MappingType.SYMMETRIC if weight.symmetric else MappingType.ASYMMETRIC
    dtype = getattr(torch, f"int{int(weight.bits)}")
    if inputs is None:
        return ao.IntxWeightOnlyConfig(
            weight_dtype=dtype, granularity=grouping, mapping_type=mapping
        )
    return ao.Int8DynamicActivationIntxWeightConfig(
        weight_dtype=dtype, weight_granularity=grouping, weight_mapping_type=mapping
    )


def convert(linear: nn.Linear, spec: LayerSpec) -> tuple[nn.Module, QuantTensor, int]:
    """``linear`` with torchao's tensor for a weight, and its codes."""
    from torchao.quantization import quantize_

    held = nn.Sequential(linear)
    quantize_(held, configuration(spec))
    tensor: Any = held[0].weight
    scale = tensor.scale.float().view(len(tensor.scale), -1)
    params = {"scale": scale}
    if spec.weight.format in FLOATS:
        codes = tensor.qdata.view(torch.uint8)
        params["scale"] = scale * 2.0 ** LAYOUTS[spec.weight.format].emax  # as our format stores it
    else:
        half = 2 ** (int(spec.weight.bits) - 1)
        codes = (tensor.qdata.int() + half).to(torch.uint8)
        if not spec.weight.symmetric:
            params["zero"] = (tensor.zero_point.int() + half).to(torch.uint8).view(scale.shape)
    size = sum(value.nbytes for value in (tensor.qdata, *params.values()))
    return held, QuantTensor(codes, params, spec.weight), size
