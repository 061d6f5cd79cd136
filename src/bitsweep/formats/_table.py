"""What the families share whose codes mean values of a table times the scale of their group."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Hashable
from types import MappingProxyType

import torch
from torch import Tensor

from bitsweep.formats import Family, Params
from bitsweep.formats.int import SCALE_BITS, store_scale
from bitsweep.spec import PER_CHANNEL, QuantSpec

CACHED = 128
"""Tables kept: one for each format, width and device."""


class Table(Family):
    """``weight = scale * table[code]``: 2 to 8 bits, values in rising order from -1 to 1, 0 exact.

    The scale of a group is its largest ``|w|``, stored in ``scale_dtype``. A weight goes to the
    nearest value, from the middle between two to the lower one. It is multiplied by the reciprocal
    of the stored scale, as bitsandbytes does (another code divides: a weight within one float32
    rounding of a middle may go the other way).
    """

    def table(self, params: Params, spec: QuantSpec) -> Tensor:
        """What the codes stand for at scale 1, float32 ``(2**bits,)``, where ``params`` are."""
        raise NotImplementedError

    def skip(self, spec: QuantSpec) -> str | None:
        return refuses(spec, range(2, 9))

    def fit(
        self,
        groups: Tensor,
        spec: QuantSpec,
        shared: Params = MappingProxyType({}),
        importance: Tensor | None = None,
    ) -> dict[str, Tensor]:
        return {"scale": store_scale(groups.abs().amax(-1), spec)}

    def quantize(self, groups: Tensor, params: Params, spec: QuantSpec) -> Tensor:
        table = self.table(params, spec)
        middles = (table[:-1] + table[1:]) / 2
        scaled = groups * params["scale"].float().reciprocal().unsqueeze(-1)
        return torch.bucketize(scaled, middles, out_int32=True).to(torch.uint8)

    def dequantize(self, codes: Tensor, params: Params, spec: QuantSpec) -> Tensor:
        return self.table(params, spec)[codes.int()] * params["scale"].float().unsqueeze(-1)

    def params_bits(self, spec: QuantSpec) -> dict[str, int]:
        return {"scale": SCALE_BITS[spec.scale_dtype]}


def refuses(
    spec: QuantSpec, widths: Collection[float], scales: Collection[str] = tuple(SCALE_BITS)
) -> str | None:
    """Why a format without a zero-point, of ``widths`` and ``scales``, can not be ``spec``."""
    if spec.bits not in widths:
        *most, last = (f"{width:g}" for width in widths)
        has = f"{', '.join(most)} or {last}" if most else last
        return f"bits={spec.bits:g}: format={spec.format} has {has} bit{'s' * (has != '1')}"
    if spec.group_size < PER_CHANNEL:
        return f"group_size={spec.group_size}: a size, -1 (per channel) or 0 (per tensor)"
    if spec.scale_dtype not in scales:
        return f"scale_dtype={spec.scale_dtype}: format={spec.format} takes {' or '.join(scales)}"
    if spec.symmetric:
        return (
            f"symmetric=true: format={spec.format} has no zero-point to go without; "
            "use symmetric=false"
        )
    return None


@functools.lru_cache(CACHED)
@torch.inference_mode(False)
def kept(make: Callable[[Hashable], Tensor], key: Hashable, device: torch.device) -> Tensor:
    """``make(key)`` on ``device``, made once: GPTQ asks for a table with every column."""
    return make(key).to(device)


def powers(exponent: Tensor) -> Tensor:
    """``2**exponent`` for whole ``exponent`` float32, exact; held to float32's normal range."""
    return torch.ldexp(torch.ones_like(exponent), exponent.clamp(-126, 127).int())


def floor_log2(values: Tensor) -> Tensor:
    """``floor(log2(values))`` of positive float32 ``values``, exact; -128 or less for 0."""
    mantissa, exponent = torch.frexp(values)  # mantissa * 2**exponent, 1/2 <= mantissa < 1
    return torch.where(mantissa == 0, -128, exponent - 1).float()


def nearest_power(values: Tensor) -> Tensor:
    """The nearest power of two to each of ``values``, nearest in value: up from 0.75 of it."""
    return powers(floor_log2(values * (4 / 3)))
