"""Narrow: integers whose range is ``-m .. m`` with ``m = 2**(bits-1) - 1``, 2 to 8 bits.

    weight = scale * (code - 2**(bits-1)),      scale = max|w| / m

The ``narrow_range`` of TensorFlow (Jacob et al. 2018, arXiv 1712.05877), elsewhere "restricted
range": the largest number is exact, 0 too, and the lowest code is never used. That is 1 of 256
codes at 8 bits, and 1 of 4 at 2. Runtimes do this to *inputs*: what OpenVINO's dynamic quantization
multiplies is ``input.format=narrow`` to the last code. ``int`` has ``scale = max|w| / 127.5``.
"""

from __future__ import annotations

import dataclasses
from types import MappingProxyType

from torch import Tensor

from bitsweep.formats import Params
from bitsweep.formats._table import refuses
from bitsweep.formats.int import SCALE_BITS, WIDTHS, Int, store_scale
from bitsweep.spec import QuantSpec


class Narrow(Int):
    """The codes of a symmetric ``int`` of the same width, with a scale of its own."""

    def skip(self, spec: QuantSpec) -> str | None:
        return refuses(spec, WIDTHS, tuple(SCALE_BITS))

    def fit(
        self,
        groups: Tensor,
        spec: QuantSpec,
        shared: Params = MappingProxyType({}),
        importance: Tensor | None = None,
    ) -> dict[str, Tensor]:
        largest = groups.abs().amax(-1)
        return {"scale": store_scale(largest / (2 ** (int(spec.bits) - 1) - 1), spec)}

    def quantize(self, groups: Tensor, params: Params, spec: QuantSpec) -> Tensor:
        return super().quantize(groups, params, _signed(spec))

    def dequantize(self, codes: Tensor, params: Params, spec: QuantSpec) -> Tensor:
        return super().dequantize(codes, params, _signed(spec))

    def params_bits(self, spec: QuantSpec) -> dict[str, int]:
        return super().params_bits(_signed(spec))


def _signed(spec: QuantSpec) -> QuantSpec:
    """As a symmetric ``int``, whose codes mean the same."""
    return dataclasses.replace(spec, symmetric=True)
