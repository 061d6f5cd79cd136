"""8-bit weights in groups on torch's packed 4-bit kernel: each code runs as two halves.

Torch's 8-bit kernel knows one scale a row. With ``code = 16 * high + low`` a weight in groups is

    (code - zero) * scale = (high - 8) * 16 * scale + (low - (zero - 128)) * scale,

two grids of 4 bits that :class:`~bitsweep.engines.torch_int4.Int4Linear` executes, and
``x @ w.T`` the sum of two products. Both read 4 bits a weight: together the 8 that are stored,
nothing is dequantized; scale and shift are read twice (9 bits a weight at groups of 64, where a
file holds 8.375). What differs from ``dense`` is bf16 scales, shifts and outputs, as there.
"""

from __future__ import annotations

from torch import Tensor, nn

from bitsweep.engines import grid
from bitsweep.engines._torch import TorchKernel
from bitsweep.engines.packed import Packed
from bitsweep.engines.torch_int4 import Int4Linear, unread_groups
from bitsweep.linear import QuantEmbedding, Quantized, QuantLinear
from bitsweep.spec import QuantSpec
from bitsweep.tensor import QuantTensor


class TorchInt4Pair(TorchKernel):
    """8-bit integers in groups of a multiple of 32; any zero-point."""

    name = "torch_int4_pair"
    bits = 8

    def refuses(self, layer: Quantized) -> str | None:
        if isinstance(layer, QuantEmbedding):
            return "it multiplies, and this is an embedding"
        return super().refuses(layer)

    def misfit(self, layer: QuantLinear) -> str | None:
        if layer.quant.spec.groups(layer.in_features) == 1:
            return "it has one scale a row, which torch_int8 reads in one pass"
        return unread_groups(layer.quant.spec)

    def linear(self, weight: QuantTensor, bias: Tensor | None) -> nn.Module:
        return PairLinear(weight, bias)


class PairLinear(Packed):
    """``y = x @ (high + low).T + bias``, bf16 in and out."""

    def __init__(self, weight: QuantTensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        half = QuantSpec(4, weight.spec.group_size, zero="real", ragged=weight.spec.ragged)
        scale, zero = grid.affine(weight)
        high = {"scale": 16 * scale, "zero": zero.new_full(zero.shape, 8)}
        low = {"scale": scale, "zero": zero - 128}
        order = weight.permutation
        self.high = Int4Linear(QuantTensor(weight.codes >> 4, high, half, order), None)
        self.low = Int4Linear(QuantTensor(weight.codes & 15, low, half, order), bias)

    def forward(self, input: Tensor) -> Tensor:
        return self.high(input) + self.low(input)
