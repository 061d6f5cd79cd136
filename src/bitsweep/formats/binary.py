"""Binary: the sign of each weight and a scale for each group, 1 bit.

XNOR-Net's binary weights (Rastegari, Ordonez, Redmon & Farhadi, 2016): the least squared error
``sum h (w - s b)**2`` with ``b`` of -1 and 1 is had by

    b = sign(w),      s = sum(h |w|) / sum(h)            the mean of |w| without importance h

A weight of 0 becomes ``+s``: the one format without a 0, unless the whole group is 0, which has
s = 0. A scale that is a power of two is the nearest one.
"""

from __future__ import annotations

from types import MappingProxyType

import torch
from torch import Tensor

from bitsweep.formats import Family, Params
from bitsweep.formats._table import nearest_power, refuses
from bitsweep.formats.int import SCALE_BITS, store_scale
from bitsweep.spec import QuantSpec


class Binary(Family):
    """Codes 0 and 1 stand for ``-scale`` and ``scale``."""

    has_zero = False

    def skip(self, spec: QuantSpec) -> str | None:
        return refuses(spec, (1,))

    def fit(
        self,
        groups: Tensor,
        spec: QuantSpec,
        shared: Params = MappingProxyType({}),
        importance: Tensor | None = None,
    ) -> dict[str, Tensor]:
        sizes = groups.abs()
        mean = sizes.mean(-1)
        if importance is not None:
            weights = importance.expand(groups.shape)
            total = weights.sum(-1)
            mean = torch.where(total > 0, (sizes * weights).sum(-1) / total, mean)
        if spec.scale_dtype == "power_of_two":
            mean = nearest_power(mean)
        scale = store_scale(mean, spec)
        return {"scale": scale.masked_fill_(sizes.amax(-1) == 0, 0)}

    def quantize(self, groups: Tensor, params: Params, spec: QuantSpec) -> Tensor:
        return (groups >= 0).to(torch.uint8)

    def dequantize(self, codes: Tensor, params: Params, spec: QuantSpec) -> Tensor:
        return codes.float().mul_(2).sub_(1) * params["scale"].float().unsqueeze(-1)

    def params_bits(self, spec: QuantSpec) -> dict[str, int]:
        return {"scale": SCALE_BITS[spec.scale_dtype]}
