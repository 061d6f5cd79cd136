"""Power: uniform codes of ``sign(w) |w|**a``, 2 to 8 bits, with ``a`` searched for each tensor.

PowerQuant (Yvinec, Dapogny, Cord & Bailly, 2023): ``x -> sign(x) |x|**a`` are the automorphisms of
the positive reals under multiplication. Uniform steps of it are fine near 0 and coarse far from
it; ``a = 1`` is the uniform grid. With the largest ``|w|`` of a group as its scale s,

    w = s sign(k) (|k| / n)**(1 / a),      k = -(2**(bits-1) - 1) .. 2**(bits-1),  n: the last k
                                                                                of the sign
Conventions of ours: both ends of the range are values, 0 is one, and all codes are used (PowerQuant
leaves one out); a weight goes to the value nearest to *it* (PowerQuant rounds the power). As there,
``a`` minimises the squared error of the tensor, by rounding to nearest; one float32 is stored.
The error is smooth in ``a``, so two grids, coarse and fine, stand in for Nelder & Mead's search.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitsweep import formats
from bitsweep.formats import Params
from bitsweep.formats._table import Table
from bitsweep.spec import QuantSpec

COARSE = tuple(percent / 100 for percent in range(20, 105, 5))
"""Exponents tried first: 0.20, 0.25 ... 1.00; then hundredths between the best one's neighbours."""

SAMPLE = 2**18
"""Weights at most that the search looks at: rows evenly spaced."""


class Power(Table):
    """Uniform codes of a power of the weights; ``exponent`` ``(1, 1)`` is a parameter."""

    def shared(self, weight: Tensor, spec: QuantSpec) -> dict[str, Tensor]:
        rows = weight[:: max(1, weight.numel() // SAMPLE)]
        parts = [(part, self.fit(part, spec)) for part in formats.split(rows, spec)]

        def error(exponent: float) -> float:
            own = {"exponent": torch.full((1, 1), exponent, device=weight.device)}
            total = 0.0
            for part, params in parts:
                params = {**params, **own}
                codes = self.quantize(part, params, spec)
                total += float((self.dequantize(codes, params, spec) - part).square_().sum())
            return total

        best = min(COARSE, key=error)
        near = [best + percent / 100 for percent in range(-4, 5)]
        best = min((best, *(a for a in near if COARSE[0] <= a <= COARSE[-1])), key=error)
        return {"exponent": torch.full((1, 1), best, device=weight.device)}

    def table(self, params: Params, spec: QuantSpec) -> Tensor:
        half = 2 ** (int(spec.bits) - 1)
        exponent = params["exponent"]
        k = torch.arange(1 - half, half + 1, device=exponent.device)
        steps = torch.where(k < 0, k / max(half - 1, 1), k / half)
        return steps.sign() * steps.abs() ** (1 / exponent.float().reshape(()))

    def params_bits(self, spec: QuantSpec) -> dict[str, int]:
        return super().params_bits(spec) | {"exponent": 32}
