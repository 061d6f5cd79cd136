"""Float: sign, exponent and mantissa of 4 to 8 bits, plain or as the blocks of MX and NVFP4.

``float`` has the width's usual one: E2M1 at 4 bits, E3M2 at 6, E4M3 at 8. A code is the number's
own bits (sign highest), so E4M3 and E5M2 are torch's float8_e4m3fn and float8_e5m2, and E2M1 the
OCP's FP4; their NaN and infinities are never used. A weight divided by its group's stored scale is
rounded to nearest, ties to the even mantissa, and beyond the largest number to that; -0 keeps its
sign, as in a cast.

* Plain: ``scale = max|w| / largest`` (6 for E2M1, 448 for E4M3), stored in ``scale_dtype`` (a power
  of two is rounded up, so that nothing clips) and times ``2**emax``: E5M2's would be below
  float16's normal range. The factor is exact, codes and values are the same without it.
* ``mxfp4``, ``mxfp8``: E2M1, E4M3 in groups of 32, ``scale = 2**(floor(log2 max|w|) - emax)``,
  with emax 2 or 8 (OCP Microscaling Formats 1.0, section 6.3), an exponent of 8 bits. A largest
  weight above ``largest * scale`` saturates, by up to a quarter of it for E2M1, an eighth for E4M3.
* ``nvfp4``: E2M1 in groups of 16, scales in E4M3 and one of the tensor in float32,

      tensor_scale = max|W| / (6 * 448),     scale = E4M3(max|w| / 6 / tensor_scale) >= 2**-9

``mxfp4``, ``mxfp8`` and ``nvfp4`` *are* their groups and scales: :meth:`Float.resolve` puts them in
place of whatever ``group_size=`` and ``scale_dtype=`` say.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from bitsweep.formats import Family, Params
from bitsweep.formats._table import floor_log2, kept, powers, refuses
from bitsweep.formats.int import SCALE_BITS, SMALLEST, store_scale
from bitsweep.spec import QuantSpec

VARIANTS = {
    "e2m1": "Float of 4 bits: 2 of exponent, 1 of mantissa; up to 6.",
    "e3m2": "Float of 6 bits: 3 of exponent, 2 of mantissa; up to 28.",
    "e2m3": "Float of 6 bits: 2 of exponent, 3 of mantissa; up to 7.5.",
    "e4m3": "Float of 8 bits: 4 of exponent, 3 of mantissa; up to 448, no infinity.",
    "e5m2": "Float of 8 bits: 5 of exponent, 2 of mantissa; up to 57344.",
    "mxfp4": "OCP MXFP4: e2m1 in groups of 32, scales powers of two.",
    "mxfp8": "OCP MXFP8: e4m3 in groups of 32, scales powers of two.",
    "nvfp4": "NVIDIA's FP4: e2m1 in groups of 16, scales in e4m3, and one of the tensor.",
}


@dataclass(frozen=True)
class Layout:
    """One floating-point format; ``reserved`` codes at the top are NaN or infinity.

    Its numbers are taken ``2**shift`` times: -emax puts the largest between 1 and 2.
    """

    exponent: int
    mantissa: int
    reserved: int = 0
    shift: int = 0

    @property
    def bits(self) -> int:
        return 1 + self.exponent + self.mantissa

    @property
    def bias(self) -> int:
        return int(2 ** (self.exponent - 1)) - 1

    @property
    def emax(self) -> int:
        """The exponent of the largest number, without ``shift``."""
        last = 2 ** (self.bits - 1) - self.reserved - 1
        return int(last >> self.mantissa) - self.bias

    @property
    def largest(self) -> float:
        """The largest number, ``2**shift`` included."""
        steps = 2**self.mantissa
        top = (2 ** (self.bits - 1) - self.reserved - 1) % steps
        return float(2.0 ** (self.emax + self.shift) * (1 + top / steps))


@dataclass(frozen=True)
class Block:
    """What a block format fixes beside its numbers."""

    layout: str
    group_size: int
    scale_dtype: str


LAYOUTS = {
    "e2m1": Layout(2, 1),
    "e3m2": Layout(3, 2),
    "e2m3": Layout(2, 3),
    "e4m3": Layout(4, 3, reserved=1),
    "e5m2": Layout(5, 2, reserved=4),
}
USUAL = {4: "e2m1", 6: "e3m2", 8: "e4m3"}
BLOCKS = {
    "mxfp4": Block("e2m1", 32, "power_of_two"),
    "mxfp8": Block("e4m3", 32, "power_of_two"),
    "nvfp4": Block("e2m1", 16, "e4m3"),
}


class Float(Family):
    """Floating-point numbers times the scale of their group."""

    def resolve(self, spec: QuantSpec) -> QuantSpec:
        """A block format has its own groups and scales, whatever the axes say."""
        if self.name not in BLOCKS:
            return spec
        block = BLOCKS[self.name]
        return dataclasses.replace(spec, group_size=block.group_size, scale_dtype=block.scale_dtype)

    def skip(self, spec: QuantSpec) -> str | None:
        if self.name == "float":
            return refuses(spec, USUAL)
        if self.name in LAYOUTS:
            return refuses(spec, (LAYOUTS[self.name].bits,))
        block = BLOCKS[self.name]
        if spec.group_size != block.group_size:
            return (
                f"group_size={spec.group_size}: format={self.name} has groups of "
                f"{block.group_size}; where they do not divide a row, try misfit=ragged"
            )
        return refuses(spec, (LAYOUTS[block.layout].bits,), (block.scale_dtype,))

    def shared(self, weight: Tensor, spec: QuantSpec) -> dict[str, Tensor]:
        if self.name != "nvfp4":
            return {}
        largest = weight.abs().amax().reshape(1, 1) / (
            LAYOUTS["e2m1"].largest * LAYOUTS["e4m3"].largest
        )
        return {"tensor_scale": largest.clamp_(min=SMALLEST["float32"])}

    def fit(
        self,
        groups: Tensor,
        spec: QuantSpec,
        shared: Params = MappingProxyType({}),
        importance: Tensor | None = None,
    ) -> dict[str, Tensor]:
        layout = self._layout(spec)
        largest = groups.abs().amax(-1)
        if self.name == "nvfp4":
            exact = largest / LAYOUTS["e2m1"].largest / shared["tensor_scale"].float()
            scales = kept(magnitudes, LAYOUTS["e4m3"], groups.device)
            places = torch.bucketize(exact, kept(limits, LAYOUTS["e4m3"], groups.device))
            return {"scale": scales[places.clamp_(min=1)]}  # nothing is divided by 0
        if self.name in BLOCKS:
            return {"scale": powers(floor_log2(largest) - layout.emax)}
        return {"scale": store_scale(largest / layout.largest, spec)}

    def quantize(self, groups: Tensor, params: Params, spec: QuantSpec) -> Tensor:
        layout = self._layout(spec)
        scaled = groups / _scale(params)
        places = torch.bucketize(scaled.abs(), kept(limits, layout, groups.device), out_int32=True)
        sign = scaled.signbit().to(torch.uint8) << (layout.bits - 1)
        return places.to(torch.uint8) | sign

    def dequantize(self, codes: Tensor, params: Params, spec: QuantSpec) -> Tensor:
        return kept(numbers, self._layout(spec), codes.device)[codes.int()] * _scale(params)

    def params_bits(self, spec: QuantSpec) -> dict[str, int]:
        if self.name == "nvfp4":
            return {"scale": 8, "tensor_scale": 32}
        return {"scale": SCALE_BITS[spec.scale_dtype]}

    def _layout(self, spec: QuantSpec) -> Layout:
        if self.name in BLOCKS:
            return LAYOUTS[BLOCKS[self.name].layout]
        layout = LAYOUTS[USUAL[int(spec.bits)] if self.name == "float" else self.name]
        return dataclasses.replace(layout, shift=-layout.emax)


def _scale(params: Params) -> Tensor:
    """What a number of each group is multiplied by, float32 ``(rows, n, 1)``."""
    scale = params["scale"].float()
    if "tensor_scale" in params:
        scale = scale * params["tensor_scale"]
    return scale.unsqueeze(-1)


def numbers(layout: Layout) -> Tensor:
    """What every code stands for, float32 ``(2**bits,)``; NaN for those that are none."""
    positive = torch.full((2 ** (layout.bits - 1),), torch.nan)
    positive[: len(magnitudes(layout))] = magnitudes(layout)
    return torch.cat([positive, -positive])


def magnitudes(layout: Layout) -> Tensor:
    """The numbers from 0 up, float32, in the order of their codes.

    ``2**(e - bias) (1 + m / M)``, or of exponent code 0 ``2**(1 - bias) m / M``; and ``2**shift``.
    """
    steps = 2**layout.mantissa
    codes = torch.arange(2 ** (layout.bits - 1) - layout.reserved)
    exponent, mantissa = codes // steps, codes % steps / steps
    power = exponent.clamp(min=1) - layout.bias + layout.shift
    return powers(power) * (mantissa + (exponent > 0))


def limits(layout: Layout) -> Tensor:
    """The largest that rounds to each of :func:`magnitudes` but the last, float32.

    The middle to the next one where the mantissa is even, and just below it where it is odd: the
    middle, exact in float32, belongs to the even one.
    """
    values = magnitudes(layout)
    middles = (values[:-1] + values[1:]) / 2
    below = torch.nextafter(middles, torch.zeros_like(middles))
    odd = torch.arange(len(middles)) % 2 == 1
    return torch.where(odd, below, middles)
