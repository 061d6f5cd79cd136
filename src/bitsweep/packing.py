"""Codes of any width from 1 to 8 bits, or of three values, packed into bytes, and back, exactly.

The stream is dense and little-endian: code ``i`` occupies the bits ``[i * bits, (i + 1) * bits)``,
bit ``k`` of the stream being bit ``k % 8`` (from the least significant) of byte ``k // 8``. So
eight codes fill exactly ``bits`` bytes, which is the unit the loops below work in. Kernels
interleave codes to their own liking; this layout is the one of files and of size accounting.

Codes of three values go five to a byte, in base 3: code ``i`` is digit ``i % 5`` (from the lowest)
of byte ``i // 5``. 3**5 = 243 fit, so a code takes 1.6 bits; log2(3) = 1.585 is the least.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

TRITS = 5
"""Codes of three values in a byte."""

CHUNK = 2**18
"""Codes that are packed at a time: what lies between takes 24 times their bytes, and a cache."""


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that ``count`` codes of ``bits`` bits fill: the last byte may be part empty."""
    return (count * bits + 7) // 8


def pack(codes: Tensor, bits: int) -> Tensor:
    """``codes`` (uint8, any shape, each below ``2**bits``) as a flat uint8 bitstream."""
    _check(bits)
    flat = codes.reshape(-1)
    stream = torch.empty(packed_bytes(flat.numel(), bits), dtype=torch.uint8, device=codes.device)
    for part, place in zip(flat.split(CHUNK), stream.split(CHUNK // 8 * bits), strict=True):
        if part.numel() and int(part.max()) >> bits:
            raise ValueError(f"a code of {int(part.max())} does not fit {bits} bits")
        place.copy_(_within(part, bits) if 8 % bits == 0 else _across(part, bits)[: len(place)])
    return stream


def _within(codes: Tensor, bits: int) -> Tensor:
    """Flat codes as bytes, where none lies across two."""
    each = 8 // bits
    fields = pad(codes, (0, -len(codes) % each)).view(-1, each)
    packed = fields[:, 0].clone()
    for i in range(1, each):
        packed |= fields[:, i] << (i * bits)
    return packed


def _across(codes: Tensor, bits: int) -> Tensor:
    """Flat codes as bytes, eight of them at a time; zeros fill the last eight up."""
    eights = pad(codes, (0, -len(codes) % 8)).view(-1, 8)
    words = torch.zeros(len(eights), dtype=torch.int64, device=codes.device)
    for i in range(8):
        words |= eights[:, i].to(torch.int64) << (i * bits)
    return words.view(torch.uint8).view(-1, 8)[:, :bits].reshape(-1)


def pack_rows(codes: Tensor, bits: int) -> Tensor:
    """``codes`` (uint8, ``(..., n)``) with a stream for each row: ``(..., ceil(n * bits / 8))``."""
    columns = codes.shape[-1]
    whole = pad(codes, (0, -columns % 8)) if columns % 8 else codes  # that would be a copy
    stream = pack(whole, bits).view(*codes.shape[:-1], -1)
    return stream[..., : packed_bytes(columns, bits)].contiguous()


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The first ``count`` codes of a stream made by :func:`pack`, flat, uint8."""
    _check(bits)
    codes = torch.empty(count, dtype=torch.uint8, device=packed.device)
    stream = packed[: packed_bytes(count, bits)]
    for part, place in zip(stream.split(CHUNK // 8 * bits), codes.split(CHUNK), strict=True):
        spread = torch.zeros((place.numel() + 7) // 8, 8, dtype=torch.uint8, device=packed.device)
        whole = pad(part, (0, len(spread) * bits - part.numel()))
        spread[:, :bits] = whole.view(-1, bits)
        words = spread.view(torch.int64).view(-1)
        eights = torch.empty_like(spread)
        for i in range(8):
            eights[:, i] = ((words >> (i * bits)) & (2**bits - 1)).to(torch.uint8)
        place.copy_(eights.view(-1)[: place.numel()])
    return codes


def pack_trits(codes: Tensor) -> Tensor:
    """``codes`` (uint8, any shape, each 0, 1 or 2) as flat bytes of five."""
    flat = codes.reshape(-1)
    if flat.numel() and int(flat.max()) > 2:
        raise ValueError(f"a code of {int(flat.max())} is none of 0, 1 and 2")
    fives = pad(flat, (0, -flat.numel() % TRITS)).view(-1, TRITS)
    return (fives * _places(codes.device)).sum(1, dtype=torch.uint8)


def unpack_trits(packed: Tensor, count: int) -> Tensor:
    """The first ``count`` codes of bytes made by :func:`pack_trits`, flat, uint8."""
    digits = packed.unsqueeze(1) // _places(packed.device) % 3
    return digits.view(-1)[:count].clone()


def _places(device: torch.device) -> Tensor:
    return 3 ** torch.arange(TRITS, dtype=torch.uint8, device=device)


def _check(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise ValueError(f"bits={bits}: a code has 1 to 8 bits")
