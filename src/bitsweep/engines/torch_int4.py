"""Torch's packed 4-bit kernel for CPUs: weight-only, in groups, with bf16 inputs.

``aten::_weight_int4pack_mm_for_cpu`` multiplies by

    w = (code - 8) * scale + shift,         scale and shift bf16, a pair for each group,

decoding 4 bits to float32 in registers and summing in float32. Our grid ``(code - zero) * scale``
is the same with ``shift = (8 - zero) * scale``, for integer and for real zeros; a symmetric grid
has no shift. So the codes run as they are, and what differs from ``dense`` is that scale and shift
become bf16: a weight moves by at most ``2^-9 * (|code - 8| * scale + |shift|)``, a 64th of a
step for each of both terms. ``TOLERANCE`` bounds what comes of it.

The executed bytes are 4 bits a weight and 32 bits a group (scale and shift), where a file holds 20
with an integer zero: 4.5 against 4.31 bits at groups of 64.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitsweep.engines import grid
from bitsweep.engines._torch import TorchKernel, TorchLinear
from bitsweep.engines.packed import COMPUTE
from bitsweep.linear import QuantLinear
from bitsweep.spec import QuantSpec
from bitsweep.tensor import QuantTensor


class TorchInt4(TorchKernel):
    """4-bit integers in groups of a multiple of 32, or one group a row; any zero-point."""

    name = "torch_int4"
    bits = 4

    def misfit(self, layer: QuantLinear) -> str | None:
        return unread_groups(layer.quant.spec)

    def linear(self, weight: QuantTensor, bias: Tensor | None) -> nn.Module:
        return Int4Linear(weight, bias)


BLOCKS = (256, 128, 64, 32)
"""Group sizes that the kernel reads; any multiple of one runs with its scale repeated."""

ROWS = 16
"""The kernel takes output channels by 16; the last block is filled up with empty ones."""


class Int4Linear(TorchLinear):
    """Codes as the kernel interleaves them, ``grid`` bf16 ``(blocks, out, 2)``: scale and shift."""

    codes: Tensor
    grid: Tensor

    def __init__(self, weight: QuantTensor, bias: Tensor | None) -> None:
        super().__init__(weight, bias, weight.permutation)
        self.block, repeat = blocks(weight.spec, self.in_features)
        codes = weight.codes.int()
        if self.ordered:
            codes = codes[:, self.order]
        scale, zero = grid.affine(weight)
        pairs = torch.stack([scale, (8 - zero) * scale], dim=-1).repeat_interleave(repeat, dim=1)
        self.extra_columns = pairs.shape[1] * self.block - self.in_features
        extra_rows = -self.out_features % ROWS
        codes = F.pad(codes, (0, self.extra_columns, 0, extra_rows))
        pairs = F.pad(pairs, (0, 0, 0, 0, 0, extra_rows))
        packed = torch._convert_weight_to_int4pack_for_cpu(codes, 1)
        self.register_buffer("codes", packed)
        self.register_buffer("grid", pairs.transpose(0, 1).to(COMPUTE).contiguous())

    def multiply(self, x: Tensor) -> Tensor:
        y: Tensor = torch._weight_int4pack_mm_for_cpu(x, self.codes, self.block, self.grid)
        return y if y.shape[1] == self.out_features else y[:, : self.out_features]


def unread_groups(spec: QuantSpec) -> str | None:
    """Why the kernel does not read groups of this size, or None."""
    if spec.group_size > 0 and spec.group_size % BLOCKS[-1]:
        return f"its group_size={spec.group_size} is not a multiple of {BLOCKS[-1]}"
    return None


def blocks(spec: QuantSpec, in_features: int) -> tuple[int, int]:
    """The kernel's group size for ``spec``, and how many of its groups make one of ours.

    The largest that fits, for the fewest scales; where a row has one group and none divides it,
    32, the row being filled up with columns of zeros (as the last group of a ragged row is).
    """
    size = spec.group_size if spec.group_size > 0 else in_features
    block = next((block for block in BLOCKS if size % block == 0), BLOCKS[-1])
    return block, -(-size // block)
