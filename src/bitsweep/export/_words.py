"""Codes in 32-bit words as checkpoints hold them: a dense little-endian stream a row."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from bitsweep.packing import pack, unpack

WORD = 32


def words(each: Tensor, bits: int) -> Tensor:
    """Codes uint8 ``(n, count)`` as int32 ``(n, ceil(count * bits / 32))``: a stream a row."""
    rows, columns = each.shape
    whole = each  # 32 codes fill whole words; a pad of nothing would be a copy
    if columns % WORD:
        whole = pad(each, (0, -columns % WORD))
    packed = pack(whole, bits).view(torch.int32).view(rows, -1)
    return packed[:, : math.ceil(columns * bits / WORD)].contiguous()


def codes(packed: Tensor, bits: int, count: int) -> Tensor:
    """The inverse of :func:`words`: uint8 ``(n, count)``."""
    rows, width = packed.shape
    whole = pad(packed, (0, -width % bits)).contiguous()  # bits words hold 32 codes
    each = whole.shape[1] // bits * WORD
    stream = whole.view(torch.uint8).view(-1)
    return unpack(stream, bits, rows * each).view(rows, each)[:, :count].contiguous()


def one_more(qzeros: Tensor, bits: int, count: int) -> Tensor:
    """``zero`` from the ``zero - 1`` of the older convention, as GPTQModel undoes it.

    It adds 1 to all fields of a word at once, so that what a zero of 0 borrowed comes back; at 3
    bits, whose fields lie across words, to each field by itself.
    """
    if bits == 3:
        return words(codes(qzeros, bits, count) + 1 & 7, bits)
    ones = sum(1 << place for place in range(0, WORD, bits))
    summed = qzeros.to(torch.int64) + ones
    return summed.view(torch.int32)[:, ::2].contiguous()  # the low halves
