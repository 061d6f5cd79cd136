"""Rows of a packed embedding, decoded when they are looked up: what 4 and 8 bits share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bitsweep.engines import grid
from bitsweep.engines.packed import COMPUTE, Packed
from bitsweep.linear import QuantEmbedding
from bitsweep.packing import pack_rows


class Lookup(Packed):
    """In place of a :class:`QuantEmbedding` of 4 or 8 bits, groups of any size; bf16 out.

    Only the rows asked for are decoded, in float32 as ``dense`` does, so both give the same bits.
    ``codes`` uint8 ``(rows, width)``, at 4 bits ``(rows, width / 2)`` with the even column in the
    low half. ``group`` ``(width,)`` says which group a column belongs to.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    group: Tensor | None
    embed_scale: Tensor | None

    def __init__(self, layer: QuantEmbedding) -> None:
        super().__init__()
        weight = layer.quant
        self.num_embeddings, self.embedding_dim = weight.shape
        self.halves = weight.spec.bits == 4
        codes = pack_rows(weight.codes, 4) if self.halves else weight.codes
        scale, zero = grid.affine(weight)
        groups = scale.shape[1]
        size = weight.spec.group_size if groups > 1 else self.embedding_dim
        place = torch.arange(self.embedding_dim) // size
        if weight.permutation is not None:
            place = torch.empty_like(place).index_copy_(0, weight.permutation, place)
        self.register_buffer("codes", codes.contiguous())
        self.register_buffer("scale", scale.contiguous())
        self.register_buffer("zero", None if weight.spec.symmetric else zero.contiguous())
        self.middle = 2.0 ** (weight.spec.bits - 1)
        self.register_buffer("group", place if groups > 1 else None)
        self.register_buffer("embed_scale", layer.embed_scale)

    def forward(self, input: Tensor) -> Tensor:
        codes = F.embedding(input, self.codes)
        if self.halves:
            codes = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(-2)
            codes = codes[..., : self.embedding_dim]
        zero = self.middle if self.zero is None else self._spread(F.embedding(input, self.zero))
        rows = (codes - zero) * self._spread(F.embedding(input, self.scale))
        rows = rows.to(COMPUTE)
        return rows if self.embed_scale is None else rows * self.embed_scale.to(COMPUTE)

    def _spread(self, parameter: Tensor) -> Tensor:
        """From ``(..., groups)`` to a value for each column."""
        return parameter if self.group is None else parameter.index_select(-1, self.group)
