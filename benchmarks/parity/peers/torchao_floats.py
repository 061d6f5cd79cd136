"""torchao's casts on our weights: float8 by row, MXFP8, MXFP4 and NVFP4."""

from __future__ import annotations

from typing import Any

import torch
from exchange import Exchange
from torch import Tensor, nn
from torchao.prototype.mx_formats.mx_tensor import MXTensor
from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale
from torchao.quantization import Float8WeightOnlyConfig, quantize_

FLOAT8 = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


def cast(weight: Tensor, case: dict[str, Any]) -> Tensor:
    """What torchao's codes of ``weight`` ``(out, in)`` stand for, float32."""
    name = case["format"]
    if name in FLOAT8:
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        linear.weight = nn.Parameter(weight, requires_grad=False)
        held = nn.Sequential(linear)
        quantize_(held, Float8WeightOnlyConfig(weight_dtype=FLOAT8[name]))
        return held[0].weight.dequantize().float()
    if name == "nvfp4":
        scale = per_tensor_amax_to_scale(weight.abs().max())
        tensor = NVFP4Tensor.to_nvfp4(weight, per_tensor_scale=scale)
        return tensor.dequantize(torch.float32)
    kind = torch.float8_e4m3fn if name == "mxfp8" else torch.float4_e2m1fn_x2
    return MXTensor.to_mx(weight, kind, 32).dequantize(torch.float32)


def main() -> None:
    exchange = Exchange("torchao_floats", ("torchao", "torch"))
    for case in exchange.cases("torchao"):
        with exchange.timed(case["name"]):
            out = {
                f"{name}/weight": cast(weight.clone(), case)
                for name, weight in exchange.weights().items()
                if weight.shape[1] % 32 == 0
            }
        exchange.save(case["name"], out)
    exchange.finish()


if __name__ == "__main__":
    main()
