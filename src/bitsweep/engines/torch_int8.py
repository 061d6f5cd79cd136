"""Torch's packed 8-bit kernel for CPUs: weight-only, per output channel, with bf16 inputs.

``aten::_weight_int8pack_mm`` multiplies by ``w = code * scale`` with signed codes and one bf16
scale a row. Our codes are stored from 0 up; ``code - 128`` is signed, so a symmetric grid runs as
it is. Another zero-point adds a matrix of rank one, exactly:

    x @ w.T = x @ ((code - 128) * scale).T + sum(x) * (128 - zero) * scale,

its sum taken in float32. What differs from ``dense`` is that the scale becomes bf16 (2^-9
relative, as much as rounding the weights to bf16 would cost). ``TOLERANCE`` bounds the effect.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitsweep.engines import grid
from bitsweep.engines._torch import TorchKernel, TorchLinear
from bitsweep.engines.packed import COMPUTE
from bitsweep.linear import QuantLinear
from bitsweep.tensor import QuantTensor


class TorchInt8(TorchKernel):
    """8-bit integers with one scale a row (or tensor); any zero-point."""

    name = "torch_int8"
    bits = 8

    def misfit(self, layer: QuantLinear) -> str | None:
        return grid.grouped(layer.quant.spec, layer.in_features)

    def linear(self, weight: QuantTensor, bias: Tensor | None) -> nn.Module:
        return Int8Linear(weight, bias)


COLUMNS = 16
"""Columns that the kernel reads at once, without looking where the row ends: in a row of another
length it reads garbage or crashes. Rows are filled up with zeros to a multiple of it."""

ALIGNMENT = 32
"""Bytes; the kernel's loads of ``x`` fault elsewhere."""


class Int8Linear(TorchLinear):
    """``codes`` int8 ``(out, in)``, ``scale`` bf16 ``(out,)``; ``offset`` float32 ``(out,)`` is
    ``(128 - zero) * scale``, None where it is zero everywhere.
    """

    codes: Tensor
    scale: Tensor
    offset: Tensor

    def __init__(self, weight: QuantTensor, bias: Tensor | None) -> None:
        super().__init__(weight, bias)
        self.extra_columns = -self.in_features % COLUMNS
        scale, zero = (value[:, 0] for value in grid.affine(weight))
        offset = (128 - zero) * scale
        codes = (weight.codes.int() - 128).to(torch.int8)
        self.register_buffer("codes", F.pad(codes, (0, self.extra_columns)).contiguous())
        self.register_buffer("scale", scale.to(COMPUTE).contiguous())
        self.shifted = bool(offset.any())
        self.register_buffer("offset", offset if self.shifted else None)

    def multiply(self, x: Tensor) -> Tensor:
        if x.data_ptr() % ALIGNMENT:
            x = x.clone()
        y = torch._weight_int8pack_mm(x, self.codes, self.scale)
        if self.shifted:
            total = x.sum(dim=1, keepdim=True, dtype=torch.float32)
            y = torch.addcmul(y, total, self.offset).to(COMPUTE)
        return y
