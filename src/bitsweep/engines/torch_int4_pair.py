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
from bitsweep.engines.packed import Packed
from bitsweep.engines.torch_int4 import BLOCKS, Int4Linear
from bitsweep.linear import QuantEmbedding, QuantLinear
from bitsweep.spec import QuantSpec
from bitsweep.tensor import QuantTensor


class TorchInt4Pair:
    """8-bit integers in groups of a multiple of 32; any zero-point."""

    name = "torch_int4_pair"
    device = "cpu"
    TOLERANCE = 1e-2
    """Relative error (Frobenius norm) of a layer's outputs against its float32 weights."""

    def refuses(self, layer: QuantLinear | QuantEmbedding) -> str | None:
        spec = layer.quant.spec
        if isinstance(layer, QuantEmbedding):
            return "it multiplies, and this is an embedding"
        if reason := grid.refuses(spec, bits=8):
            return reason
        if spec.groups(layer.in_features) == 1:
            return "it has one scale a row, which torch_int8 reads in one pass"
        if spec.group_size % BLOCKS[-1]:
            return f"its group_size={spec.group_size} is not a multiple of {BLOCKS[-1]}"
        return None

    def pack(self, layer: QuantLinear | QuantEmbedding) -> nn.Module:
        return PairLinear(layer.quant, getattr(layer, "bias", None))


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
