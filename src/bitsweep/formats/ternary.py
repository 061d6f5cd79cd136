"""Ternary: -1, 0 or 1 times the mean of |w|, 1.6 bits: five codes fill a byte.

BitNet b1.58 (Ma et al., 2024), for each group where it has one scale a tensor (``group_size=0``):

    s = mean |w|,      code = round(clip(w / s, -1, 1))

half to even, so ``|w| = s / 2`` becomes 0; that is also the nearest of the three values. ``bits``
is what a code takes as it is packed: 3**5 = 243 values of a byte's 256, so 8 / 5 and not log2(3) =
1.58. The scale is by definition the mean, not the least squared error: that of a normal
distribution lies 1.53 times higher. A scale that is a power of two is the nearest one.
"""

from __future__ import annotations

from types import MappingProxyType

import torch
from torch import Tensor

from bitsweep.formats import Family, Params
from bitsweep.formats._table import nearest_power, refuses
from bitsweep.formats.int import SCALE_BITS, store_scale
from bitsweep.packing import TRITS, pack_trits, unpack_trits
from bitsweep.spec import QuantSpec

BITS = 8 / TRITS


class Ternary(Family):
    """Codes 0, 1, 2 stand for ``-scale``, 0 and ``scale``."""

    def skip(self, spec: QuantSpec) -> str | None:
        return refuses(spec, (BITS,))

    def levels(self, spec: QuantSpec) -> int:
        return 3

    def fit(
        self,
        groups: Tensor,
        spec: QuantSpec,
        shared: Params = MappingProxyType({}),
        importance: Tensor | None = None,
    ) -> dict[str, Tensor]:
        mean = groups.abs().mean(-1)
        if spec.scale_dtype == "power_of_two":
            mean = nearest_power(mean)
        return {"scale": store_scale(mean, spec)}

    def quantize(self, groups: Tensor, params: Params, spec: QuantSpec) -> Tensor:
        scaled = groups / params["scale"].float().unsqueeze(-1)
        return scaled.clamp_(-1, 1).round_().add_(1).to(torch.uint8)

    def dequantize(self, codes: Tensor, params: Params, spec: QuantSpec) -> Tensor:
        return codes.float().sub_(1) * params["scale"].float().unsqueeze(-1)

    def params_bits(self, spec: QuantSpec) -> dict[str, int]:
        return {"scale": SCALE_BITS[spec.scale_dtype]}

    def packed_bytes(self, count: int, spec: QuantSpec) -> int:
        return -(-count // TRITS)

    def pack(self, codes: Tensor, spec: QuantSpec) -> Tensor:
        return pack_trits(codes)

    def unpack(self, stream: Tensor, spec: QuantSpec, count: int) -> Tensor:
        return unpack_trits(stream, count)
