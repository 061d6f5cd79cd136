"""bitsandbytes as it is: LLM.int8 (Dettmers et al., 2022) and NF4 (QLoRA, 2023).

``format=int bits=8``: weights int8, one absmax a row over 127 codes (we write its scale,
``absmax / 127``); inputs int8 per token, but columns with a number beyond ``threshold`` are
multiplied in 16 bits, with the weights dequantized. ``format=nf bits=4``: blocks of ``group_size``
weights of the flattened matrix share a float32 absmax; not double-quantized.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import nn

from bitsweep.calibration import Calibration
from bitsweep.errors import UserError
from bitsweep.library import convert_layers, linear_only, wants_inputs
from bitsweep.models import Layer, Model
from bitsweep.spec import PER_CHANNEL, LayerSpec, Plan, QuantSpec
from bitsweep.tensor import QuantTensor

BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Block sizes that its 4-bit kernels have."""


@dataclass(frozen=True)
class Bitsandbytes:
    """``threshold`` of an outlier among the inputs of LLM.int8; 0 for none."""

    threshold: float = 6.0

    version: ClassVar[int] = 1
    ignores: ClassVar[frozenset[str]] = frozenset(
        {"symmetric", "scale_dtype", "calibration", "seed"}
    )
    calibrated: ClassVar[bool] = False
    library: ClassVar[str] = "bitsandbytes"

    def __post_init__(self) -> None:
        if self.threshold < 0:
            raise UserError(f"method.threshold={self.threshold:g}: at least 0 (no outliers)")

    def skip(self, spec: QuantSpec) -> str | None:
        if (spec.format, spec.bits) == ("int", 8):
            if spec.group_size != PER_CHANNEL:
                return f"group_size={spec.group_size}: LLM.int8 has -1 (per channel)"
            return None
        if (spec.format, spec.bits) == ("nf", 4):
            if spec.ragged:
                return "misfit=ragged: the blocks of NF4 run on across rows; try misfit=per_channel"
            if spec.group_size not in BLOCKS:
                return f"group_size={spec.group_size}: NF4 has one of {', '.join(map(str, BLOCKS))}"
            return None
        return f"{spec}: bitsandbytes has format=int bits=8 and format=nf bits=4"

    def skip_layer(self, layer: Layer, spec: LayerSpec) -> str | None:
        reason = linear_only("bitsandbytes", layer)
        inputs = spec.input
        if reason is not None:
            return reason
        if spec.weight.format == "nf":
            wanted = "in full precision with NF4"
            return wants_inputs("bitsandbytes", wanted, inputs) if inputs is not None else None
        wanted = "of 8 symmetric bits per token with LLM.int8 (input.bits=8 input.symmetric=true)"
        if inputs is None or inputs.adaptive:
            return wants_inputs("bitsandbytes", wanted, inputs)
        quant = inputs.quant
        codes = (quant.format, quant.bits, quant.symmetric, quant.group_size)
        rows = (inputs.per, inputs.range)
        if codes != ("int", 8, True, PER_CHANNEL) or rows != ("token", "dynamic"):
            return wants_inputs("bitsandbytes", wanted, inputs)
        return None

    def resolve(self, spec: QuantSpec) -> QuantSpec:
        return replace(spec, symmetric=spec.format == "int", scale_dtype="float32")

    def __call__(self, model: Model, plan: Plan, calibration: Calibration) -> Model:
        try:
            import bitsandbytes  # noqa: F401
        except ImportError:
            raise UserError(
                "method=bitsandbytes: it is not installed; pip install 'bitsweep[bitsandbytes]'"
            ) from None
        convert_layers(model, plan, self.convert)
        return model

    def convert(self, linear: nn.Linear, spec: LayerSpec) -> tuple[nn.Module, QuantTensor, int]:
        """``linear`` as bitsandbytes' module, and its codes."""
        convert = _nf4 if spec.weight.format == "nf" else self._int8
        return convert(linear, spec.weight)

    def _int8(self, linear: nn.Linear, spec: QuantSpec) -> tuple[nn.Module, QuantTensor, int]:
        import bitsandbytes as bnb

        weight = linear.weight
        held: Any = bnb.nn.Linear8bitLt(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            has_fp16_weights=False,
            threshold=self.threshold,
        )
        held.weight = bnb.nn.Int8Params(
            weight.detach().clone(), requires_grad=False, has_fp16_weights=False
        )
        held.bias = linear.bias
        held = held.to(weight.device)
        with torch.no_grad():
            held(weight.new_zeros(1, linear.in_features))  # it quantizes when first called
        codes = (held.state.CB.int() + 128).to(torch.uint8)
        scale = (held.state.SCB.float() / 127).view(-1, 1)
        size = codes.numel() + scale.nbytes
        return held, QuantTensor(codes, {"scale": scale}, spec), size


def _nf4(linear: nn.Linear, spec: QuantSpec) -> tuple[nn.Module, QuantTensor, int]:
    import bitsandbytes as bnb

    weight = linear.weight
    held: Any = bnb.nn.Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        compute_dtype=torch.float32,
        compress_statistics=False,
        quant_type="nf4",
    )
    held.weight = bnb.nn.Params4bit(
        weight.detach().clone(),
        requires_grad=False,
        quant_type="nf4",
        compress_statistics=False,
        blocksize=spec.group_size,
    )
    held.bias = linear.bias
    held = held.to(weight.device)
    if held.weight.quant_state is None:
        held.weight = held.weight._quantize(weight.device)
    absmax = held.weight.quant_state.absmax.float().view(len(weight), -1)
    pairs = held.weight.data.view(torch.uint8).view(-1)
    codes = torch.stack([pairs >> 4, pairs & 15], dim=1).view(weight.shape)
    size = pairs.numel() + absmax.nbytes
    return held, QuantTensor(codes, {"scale": absmax}, spec), size
