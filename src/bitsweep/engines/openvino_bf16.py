"""OpenVINO on the CPU, in bfloat16: quick prefill for weight-only points.

Codes are dequantized to bf16 inside the multiplication, whose tiles a processor with AVX512-BF16 or
AMX multiplies two to four times as fast as float32's. Inputs float: in bf16 the plugin has no
dynamic quantization. Where the processor has AMX, rows of another length than a multiple of 64 are
dequantized when the plugin loads them; those layers are refused.
"""

from __future__ import annotations

import torch

from bitsweep.engines.openvino import Openvino
from bitsweep.spec import InputSpec
from bitsweep.tensor import QuantTensor


class OpenvinoBf16(Openvino):
    """The whole model in OpenVINO's CPU plugin, bfloat16, keys and values too."""

    name = "openvino_bf16"
    COMPUTE = torch.bfloat16

    def beyond(self, inputs: InputSpec, weight: QuantTensor) -> str | None:
        return f"inputs of {inputs}: in bf16 it leaves inputs floating; see engine=openvino"
