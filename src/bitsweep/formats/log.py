"""Log: a sign and an exponent, 2 to 8 bits: values ``±2**(l_min + q step)``, and 0.

Logarithmic quantization (Miyashita, Lee & Murmann, 2016) with a base for each group. A code of
``b`` bits is a sign bit (the highest) and ``m`` from 0 to ``n = 2**(b-1) - 1``:

    w = ±scale * 2**(-(n - m) step),        code 0 = 0        l_min = log2(scale) - n step

The code that would be -0 is one exponent more of the negative side. ``scale`` is the largest
``|w|`` of the group, stored in ``scale_dtype``; ``step`` is a float16 of at least
:data:`SMALLEST_STEP`.

* **step** spreads the exponents from the group's largest to its smallest ``|w|`` above 0, or over
  the best of :data:`SPANS` of that way down: the least (weighted) squared error, as small weights
  may as well be 0.
* **Rounding** is to the nearest *value*, not to the nearest exponent, so that rounding to nearest
  has the least error: between ``v`` and ``v 2**step`` the middle is ``v (1 + 2**step) / 2``. (Up to
  float32's error of a logarithm; the middle itself goes up, and that between 0 and a value to 0.)
* ``pow2``: powers of two. ``step`` is 1 and not stored, the scale is the power of two nearest to
  the largest ``|w|`` (the rule of INQ, Zhou et al., 2017), an int8 exponent.
"""

from __future__ import annotations

import dataclasses
from types import MappingProxyType

import torch
from torch import Tensor

from bitsweep.formats import Family, Params
from bitsweep.formats._table import nearest_power, refuses
from bitsweep.formats.int import SCALE_BITS, store_scale
from bitsweep.spec import QuantSpec

VARIANTS = {"pow2": "Powers of two: log with a step of 1, 2 to 8 bits."}

SPANS = (1.0, 0.85, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
"""Shares of a group's range of logarithms that its exponents may cover."""

SMALLEST_STEP = 2.0**-8
"""Half an octave at 8 bits."""


class Log(Family):
    """A sign and an exponent in steps of the group's own, or of 1 (``pow2``)."""

    def resolve(self, spec: QuantSpec) -> QuantSpec:
        """Powers of two have a scale that is one."""
        if self.name == "pow2":
            return dataclasses.replace(spec, scale_dtype="power_of_two")
        return spec

    def skip(self, spec: QuantSpec) -> str | None:
        scales = ("power_of_two",) if self.name == "pow2" else tuple(SCALE_BITS)
        return refuses(spec, range(2, 9), scales)

    def fit(
        self,
        groups: Tensor,
        spec: QuantSpec,
        shared: Params = MappingProxyType({}),
        importance: Tensor | None = None,
    ) -> dict[str, Tensor]:
        sizes = groups.abs()
        largest = sizes.amax(-1)
        if self.name == "pow2":
            return {"scale": store_scale(nearest_power(largest), spec)}
        scale = store_scale(largest, spec)
        smallest = torch.where(sizes > 0, sizes, torch.inf).amin(-1)
        octaves = (largest / smallest).log2_().nan_to_num_(0, 0, 0).clamp_(min=0)
        ratios = sizes.div_(scale.float().unsqueeze(-1))
        logs, lowest = ratios.log2(), _lowest(groups < 0)
        last = _last(spec)
        best = least = torch.empty(0)
        for span in SPANS:
            step = (octaves * span / max(last - 1, 1)).clamp_(min=SMALLEST_STEP).half()
            places = torch.maximum(_places(logs, step.float().unsqueeze(-1), last), lowest)
            values = places.sub_(last).mul_(step.float().unsqueeze(-1)).exp2_()
            error = torch.minimum(values.sub_(ratios).square_(), ratios.square())  # that, or 0
            error = (error if importance is None else error * importance).sum(-1)
            if not best.numel():
                best, least = step, error
            best = torch.where(error < least, step, best)
            least = torch.minimum(error, least)
        return {"scale": scale, "step": best}

    def quantize(self, groups: Tensor, params: Params, spec: QuantSpec) -> Tensor:
        scale, step = self._grid(params)
        last = _last(spec)
        negative = groups < 0
        lowest = _lowest(negative)
        places = torch.maximum(_places((groups.abs() / scale).log2_(), step, last), lowest)
        nothing = groups.abs() * 2 <= scale * torch.exp2((lowest - last) * step)
        sign = (negative & ~nothing).to(torch.uint8) << (int(spec.bits) - 1)
        return places.masked_fill_(nothing, 0).to(torch.uint8) | sign

    def dequantize(self, codes: Tensor, params: Params, spec: QuantSpec) -> Tensor:
        scale, step = self._grid(params)
        last = _last(spec)
        values = torch.exp2(((codes & last).float() - last) * step) * scale
        values = torch.where(codes > last, -values, values)
        return values.masked_fill(codes == 0, 0)

    def params_bits(self, spec: QuantSpec) -> dict[str, int]:
        scale = {"scale": SCALE_BITS[spec.scale_dtype]}
        return scale if self.name == "pow2" else scale | {"step": 16}

    def _grid(self, params: Params) -> tuple[Tensor, Tensor]:
        """Scale and step of each group, float32, both ``(rows, n, 1)``."""
        scale = params["scale"].float().unsqueeze(-1)
        if self.name == "pow2":
            return scale, scale.new_ones(())
        return scale, params["step"].float().unsqueeze(-1)


def _last(spec: QuantSpec) -> int:
    """The largest exponent's place."""
    return int(2 ** (int(spec.bits) - 1)) - 1


def _places(logs: Tensor, step: Tensor, last: int) -> Tensor:
    """The exponent's place whose value is nearest to ``2**logs``, up to ``last``, in a new tensor.

    From ``m + 1 - log2((1 + 2**step) / 2) / step`` on, ``m + 1`` is nearer than ``m``.
    """
    offset = last + 1 - torch.log2((1 + torch.exp2(step)) / 2) / step
    return (logs / step).add_(offset).floor_().clamp_(max=last)


def _lowest(negative: Tensor) -> Tensor:
    """The lowest place of a value that is not 0: the code of -0 is a value."""
    return torch.where(negative, 0.0, 1.0)
