"""Uniform integers, 2 to 8 bits: ``weight = scale * (code - zero)``.

Conventions, where implementations differ:

* **Symmetric**: ``scale = 2 * max|w| / (2**bits - 1)`` (``max|w| / 7.5`` at 4 bits), signed codes
  ``-2**(bits-1) .. 2**(bits-1) - 1``. The full range of codes is used and the largest positive
  weight moves by half a step: the grid of GPTQ, compressed-tensors and torchao. (``max|w| / 7``,
  of other code, never uses one of the codes: a quarter of them at 2 bits.) Stored codes are
  unsigned, offset by ``2**(bits-1)``; there is no zero to store.
* **Asymmetric**: the range always includes 0; ``scale = (max - min) / (2**bits - 1)``,
  ``zero = round(-min / scale)`` clamped to a code, so that 0 is exact.
* **Zero** is found from the scale before that is rounded to its stored dtype, as in
  compressed-tensors and torchao (but from a power of two itself); codes are chosen against the
  *stored* scale.
* **Rounding** is half to even, of ``w / scale + zero`` in signed codes and float32, then clamped:
  the operations of compressed-tensors, whose codes come out equal bit for bit. (torchao multiplies
  by the reciprocal: a weight within one float32 rounding of a tie may go the other way.)
* **Scales**: ``float16`` (nearest; at least 2**-24, the smallest; below 2**-14 the stored scale is
  off by up to 2**-25, so a code by at most 8e-6 in weight at 8 bits), ``float32``, or
  ``power_of_two``: fixed point, rounded *up* to 2**k, so that nothing clips; k is stored as int8.
* **Real zero** (``zero=real``): float16, not clamped, in units of unsigned codes.
"""

from __future__ import annotations

from types import MappingProxyType

import torch
from torch import Tensor

from bitsweep.errors import UserError
from bitsweep.formats import Family, Params
from bitsweep.spec import PER_CHANNEL, ZEROS, QuantSpec

WIDTHS = range(2, 9)
SCALE_BITS = {"float16": 16, "float32": 32, "power_of_two": 8}
SMALLEST = {"float16": 2.0**-24, "float32": 2.0**-126, "power_of_two": 2.0**-126}
LARGEST = {"float16": 65504.0, "float32": 3.0e38, "power_of_two": 2.0**127}


class Int(Family):
    """Uniform integers of 2 to 8 bits, symmetric or with a zero-point."""

    def skip(self, spec: QuantSpec) -> str | None:
        if spec.bits == 1:
            return "bits=1: format=int has 2 to 8 bits; one bit is format=binary"
        if spec.bits not in WIDTHS:
            return f"bits={spec.bits:g}: format=int has 2, 3, 4, 5, 6, 7 or 8 bits"
        if spec.group_size < PER_CHANNEL:
            return f"group_size={spec.group_size}: a size, -1 (per channel) or 0 (per tensor)"
        if spec.scale_dtype not in SCALE_BITS:
            return f"scale_dtype={spec.scale_dtype}: one of {', '.join(SCALE_BITS)}"
        if spec.zero not in ZEROS:
            return f"zero={spec.zero}: one of {', '.join(ZEROS)}"
        if spec.symmetric and spec.zero == "real":
            return "symmetric=true has no zero-point that could be real; try symmetric=false"
        return None

    def fit(
        self,
        groups: Tensor,
        spec: QuantSpec,
        shared: Params = MappingProxyType({}),
        importance: Tensor | None = None,
    ) -> dict[str, Tensor]:
        levels = 2 ** int(spec.bits) - 1
        low = groups.amin(-1).clamp_(max=0)
        high = groups.amax(-1).clamp_(min=0)
        if spec.symmetric:
            return {"scale": store_scale(torch.maximum(-low, high) / (levels / 2), spec)}
        exact = ((high - low) / levels).clamp_(min=SMALLEST[spec.scale_dtype])
        scale = store_scale(exact, spec)
        if spec.scale_dtype == "power_of_two":
            exact = scale  # rounded up by as much as 2: from its own zero codes begin at 0
        return {"scale": scale, "zero": store_zero(-low / exact, spec)}

    def quantize(self, groups: Tensor, params: Params, spec: QuantSpec) -> Tensor:
        half = 2 ** (int(spec.bits) - 1)
        signed = groups / params["scale"].float().unsqueeze(-1)
        if not spec.symmetric:
            signed += (params["zero"].float() - half).unsqueeze(-1)
        return signed.round_().clamp_(-half, half - 1).add_(half).to(torch.uint8)

    def dequantize(self, codes: Tensor, params: Params, spec: QuantSpec) -> Tensor:
        values = codes.float()
        if spec.symmetric:
            values -= 2 ** (int(spec.bits) - 1)
        else:
            values -= params["zero"].float().unsqueeze(-1)
        return values.mul_(params["scale"].float().unsqueeze(-1))

    def params_bits(self, spec: QuantSpec) -> dict[str, int]:
        scale = {"scale": SCALE_BITS[spec.scale_dtype]}
        if spec.symmetric:
            return scale
        return scale | {"zero": 16 if spec.zero == "real" else int(spec.bits)}


def store_scale(scale: Tensor, spec: QuantSpec) -> Tensor:
    """``scale`` (float32) as it is stored: float16, float32, or 2**k held as float32.

    Raises:
        UserError: the weights are too large for a scale of this dtype (``scale_dtype=``).
    """
    kind = spec.scale_dtype
    if scale.numel() and float(scale.max()) > LARGEST[kind]:
        raise UserError(
            f"scale_dtype={kind}: weights need a scale of {float(scale.max()):.3g}, "
            f"and it ends at {LARGEST[kind]:g}; try scale_dtype=float32"
        )
    scale = scale.clamp(min=SMALLEST[kind])
    if kind == "float16":
        return scale.to(torch.float16)
    if kind == "power_of_two":
        mantissa, exponent = torch.frexp(scale)  # mantissa * 2**exponent, 1/2 <= mantissa < 1
        return torch.ldexp(torch.ones_like(scale), exponent - (mantissa == 0.5).int())
    return scale


def store_zero(zero: Tensor, spec: QuantSpec) -> Tensor:
    """``zero`` (float32, in unsigned codes) as it is stored: a code in uint8, or a float16."""
    if spec.zero == "real":
        return zero.to(torch.float16)
    half = 2 ** (int(spec.bits) - 1)
    signed = (zero - half).clamp_(-half, half - 1).round_()  # signed: ties as compressed-tensors
    return signed.add_(half).to(torch.uint8)
