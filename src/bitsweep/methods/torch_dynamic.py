"""torch's own dynamic quantization of linear layers, as it is: int8 weights and int8 inputs.

What ``torch.ao.quantization.quantize_dynamic`` puts in place of ``nn.Linear``. Weights are
symmetric int8, rounded to nearest, per tensor (its default) or per output channel. Inputs get one
scale and zero-point per call for the *whole* tensor, all tokens and all windows of a batch
together, and 7 of their 8 bits are used where torch's kernel asks for that (``reduce_range``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import nn

from bitsweep.calibration import Calibration
from bitsweep.library import convert_layers, linear_only, wants_inputs
from bitsweep.models import Layer, Model
from bitsweep.spec import PER_CHANNEL, PER_TENSOR, LayerSpec, Plan, QuantSpec
from bitsweep.tensor import QuantTensor


@dataclass(frozen=True)
class TorchDynamic:
    """No options: ``group_size=-1`` is torch's per-channel configuration, ``0`` its default one."""

    version: ClassVar[int] = 1
    ignores: ClassVar[frozenset[str]] = frozenset(
        {"symmetric", "scale_dtype", "calibration", "seed"}
    )
    calibrated: ClassVar[bool] = False
    library: ClassVar[str] = "torch"

    def skip(self, spec: QuantSpec) -> str | None:
        if (spec.format, spec.bits) != ("int", 8):
            return f"{spec}: torch_dynamic has format=int bits=8 only"
        if spec.group_size not in (PER_CHANNEL, PER_TENSOR):
            return f"group_size={spec.group_size}: torch_dynamic has -1 (per channel) or 0"
        return None

    def skip_layer(self, layer: Layer, spec: LayerSpec) -> str | None:
        reason, found = linear_only("torch_dynamic", layer), spec.input
        if reason is not None:
            return reason
        wanted = "of 8 asymmetric bits per tensor (input.bits=8 input.per=tensor)"
        if found is None:
            return wants_inputs("it", wanted, found)
        quant = found.quant
        known = (quant.format, quant.bits, quant.symmetric, found.per, found.range)
        if known != ("int", 8, False, "tensor", "dynamic"):
            return wants_inputs("it", wanted, found)
        return None

    def resolve(self, spec: QuantSpec) -> QuantSpec:
        return replace(spec, symmetric=True, scale_dtype="float32")

    def __call__(self, model: Model, plan: Plan, calibration: Calibration) -> Model:
        convert_layers(model, plan, convert)
        return model


def convert(linear: nn.Linear, spec: LayerSpec) -> tuple[nn.Module, QuantTensor, int]:
    """``linear`` as torch's dynamic module, and its codes."""
    from torch.ao import quantization
    from torch.ao.nn.quantized import dynamic

    per_channel = spec.weight.group_size == PER_CHANNEL
    config: Any = (
        quantization.per_channel_dynamic_qconfig
        if per_channel
        else quantization.default_dynamic_qconfig
    )
    linear.qconfig = config
    held = dynamic.Linear.from_float(linear)
    weight = held.weight()
    codes = (weight.int_repr().int() + 128).to(torch.uint8)
    scale = (
        weight.q_per_channel_scales().float().view(-1, 1)
        if per_channel
        else torch.tensor([[weight.q_scale()]])
    )
    size = codes.numel() + scale.nbytes
    return held, QuantTensor(codes, {"scale": scale}, spec.weight), size
