"""RTN, round to nearest: every weight to its nearest code, no data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bitsweep import formats
from bitsweep.calibration import Calibration
from bitsweep.errors import UserError
from bitsweep.formats import Family, Params
from bitsweep.methods import replace_layers
from bitsweep.models import Model
from bitsweep.spec import Plan, QuantSpec
from bitsweep.tensor import QuantTensor

SHRINKS = tuple(percent / 100 for percent in range(100, 28, -2))
"""Factors on a group's range that ``clip=mse`` tries: 1.00, 0.98 ... 0.30.

The least squared error of 2 bits over a Gaussian's whole tensor lies near 0.3; other code stops
at 0.5 or 0.2, and at 4 bits all end up above 0.7.
"""


@dataclass(frozen=True)
class RTN:
    """``clip=none`` covers each group's range; ``mse`` shrinks it to the least squared error.

    The error of a clipped range is that of the group's own weights, each factor of
    :data:`SHRINKS` tried on every group by itself (the search of GPTQ's code, with norm 2).
    """

    clip: str = "none"

    version: ClassVar[int] = 1
    ignores: ClassVar[frozenset[str]] = frozenset({"calibration", "seed"})
    calibrated: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.clip not in ("none", "mse"):
            raise UserError(f"method.clip={self.clip}: use none or mse")

    def skip(self, spec: QuantSpec) -> str | None:
        return None

    def resolve(self, spec: QuantSpec) -> QuantSpec:
        return spec

    def __call__(self, model: Model, plan: Plan, calibration: Calibration) -> Model:
        quantize = QuantTensor.quantize if self.clip == "none" else quantize_clipped
        replace_layers(model, plan, plan.layers, quantize)
        model.plan = plan
        return model


def quantize_clipped(weight: Tensor, spec: QuantSpec) -> QuantTensor:
    """Round ``weight`` ``(out, in)``, each group on the range with the least squared error."""
    family = formats.get(spec.format)
    shared = family.shared(weight, spec)
    parts = [fit_clipped(family, part, spec, shared) for part in formats.split(weight, spec)]
    return QuantTensor.quantize(weight, spec, formats.join_params(parts) | shared)


def fit_clipped(
    family: Family, groups: Tensor, spec: QuantSpec, shared: Params
) -> dict[str, Tensor]:
    """Parameters of ``groups`` ``(rows, n, g)`` shrunk by the best factor of each group."""
    best: dict[str, Tensor] = {}
    least = torch.full(groups.shape[:2], torch.inf, device=groups.device)
    for shrink in SHRINKS:
        params = family.fit(groups * shrink, spec, shared)
        codes = family.quantize(groups, {**params, **shared}, spec)
        restored = family.dequantize(codes, {**params, **shared}, spec)
        error = (restored - groups).square_().sum(-1)
        better = error < least
        least = torch.where(better, error, least)
        best = {name: torch.where(better, new, best.get(name, new)) for name, new in params.items()}
    return best
