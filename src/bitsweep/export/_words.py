"""Codes in 32-bit words as GPTQ files hold them: a dense little-endian stream a row."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from bitsweep.packing import pack, unpack

WORD = 32


def words(each: Tensor, bits: int) -> Tensor:
    """Codes ``(n, count)`` as int32 ``(n, ceil(count * bits / 32))``: a stream a row."""
    padded = pad(each.contiguous(), (0, -each.shape[1] % _fill(bits)))
    return pack(padded, bits).view(torch.int32).view(len(each), -1)


def codes(packed: Tensor, bits: int, count: int) -> Tensor:
    """The inverse of :func:`words`: uint8 ``(n, count)``."""
    stream = packed.contiguous().view(torch.uint8).view(-1)
    each = packed.shape[1] * WORD // bits
    return unpack(stream, bits, len(packed) * each).view(len(packed), each)[:, :count].contiguous()


def _fill(bits: int) -> int:
    """How many codes fill whole words: 8 at 4 bits, 32 (in three words) at 3."""
    return WORD if bits == 3 else WORD // bits


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
