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

TRITS = 5
"""Codes of three values in a byte."""


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that ``count`` codes of ``bits`` bits fill: the last byte may be part empty."""
    return (count * bits + 7) // 8


def pack(codes: Tensor, bits: int) -> Tensor:
    """``codes`` (uint8, any shape, each below ``2**bits``) as a flat uint8 bitstream."""
    _check(bits)
    flat = codes.reshape(-1)
    if flat.numel() and int(flat.max()) >> bits:
        raise ValueError(f"a code of {int(flat.max())} does not fit {bits} bits")
    eights = torch.nn.functional.pad(flat, (0, -flat.numel() % 8)).view(-1, 8)
    words = torch.zeros(len(eights), dtype=torch.int64, device=codes.device)
    for place in range(8):
        words |= eights[:, place].to(torch.int64) << (place * bits)
    stream = words.view(torch.uint8).view(-1, 8)[:, :bits].reshape(-1)
    return stream[: packed_bytes(flat.numel(), bits)].clone()


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The first ``count`` codes of a stream made by :func:`pack`, flat, uint8."""
    _check(bits)
    eights = (count + 7) // 8
    stream = torch.nn.functional.pad(packed, (0, eights * bits - packed.numel())).view(-1, bits)
    spread = torch.zeros(eights, 8, dtype=torch.uint8, device=packed.device)
    spread[:, :bits] = stream
    words = spread.view(torch.int64).view(-1)
    codes = torch.empty(eights, 8, dtype=torch.uint8, device=packed.device)
    for place in range(8):
        codes[:, place] = ((words >> (place * bits)) & (2**bits - 1)).to(torch.uint8)
    return codes.view(-1)[:count].clone()


def pack_trits(codes: Tensor) -> Tensor:
    """``codes`` (uint8, any shape, each 0, 1 or 2) as flat bytes of five."""
    flat = codes.reshape(-1)
    if flat.numel() and int(flat.max()) > 2:
        raise ValueError(f"a code of {int(flat.max())} is none of 0, 1 and 2")
    fives = torch.nn.functional.pad(flat, (0, -flat.numel() % TRITS)).view(-1, TRITS)
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
