"""What torch's packed kernels for CPUs share: which layers they take, and how those multiply."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from bitsweep.engines import grid
from bitsweep.engines.lookup import Lookup
from bitsweep.engines.packed import COMPUTE, Packed
from bitsweep.engines.protocols import input_spec
from bitsweep.linear import QuantEmbedding, Quantized, QuantLinear
from bitsweep.tensor import QuantTensor


class TorchLinear(Packed):
    """``y = x @ w.T + bias``, bf16 in and out; a subclass holds the codes and multiplies.

    ``extra_columns``: zeros behind ``x``, for kernels that take columns by blocks. ``order``: the
    columns of ``x`` as the codes have them, where they have another.
    """

    order: Tensor
    bias: Tensor

    def __init__(
        self, weight: QuantTensor, bias: Tensor | None, order: Tensor | None = None
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.extra_columns = 0
        self.register_buffer("order", order)
        self.register_buffer("bias", None if bias is None else bias.detach().to(COMPUTE))
        self.ordered = order is not None  # quicker to ask than whether a buffer is there
        self.biased = bias is not None

    def multiply(self, x: Tensor) -> Tensor:
        """``x @ w.T``; ``x`` bf16 ``(rows, in + extra_columns)``, contiguous."""
        raise NotImplementedError

    def forward(self, input: Tensor) -> Tensor:
        x = input.reshape(-1, self.in_features)
        if self.ordered:
            x = x.index_select(1, self.order)
        if self.extra_columns:
            x = F.pad(x, (0, self.extra_columns))
        y = self.multiply(x.contiguous())
        if self.biased:
            y = y + self.bias
        return y.reshape(*input.shape[:-1], self.out_features)


class TorchKernel:
    """A kernel of ``bits``-wide integers on the CPU; embeddings are looked up."""

    name: ClassVar[str]
    bits: ClassVar[int]
    device = "cpu"
    TOLERANCE = 1e-2

    def refuses(self, layer: Quantized) -> str | None:
        reason = grid.refuses(layer.quant.spec, self.bits) or self.wrong_inputs(layer)
        if reason or isinstance(layer, QuantEmbedding):
            return reason
        return self.misfit(layer)

    def wrong_inputs(self, layer: Quantized) -> str | None:
        """Why the inputs of ``layer`` are not those that this kernel multiplies, or None."""
        found = input_spec(layer)
        if found is None:
            return None
        return f"it has quantized inputs (a{found}), and this kernel takes floating ones"

    def misfit(self, layer: QuantLinear) -> str | None:
        """Why the groups of a layer with the right codes do not fit, or None."""
        raise NotImplementedError

    def pack(self, layer: Quantized) -> nn.Module:
        if isinstance(layer, QuantEmbedding):
            return Lookup(layer)
        return self.linear(layer.quant, layer.bias)

    def linear(self, weight: QuantTensor, bias: Tensor | None) -> nn.Module:
        """The module that multiplies by ``weight``."""
        raise NotImplementedError
