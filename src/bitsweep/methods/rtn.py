"""RTN, round to nearest: every weight to its nearest code, no data.

Or, as a control, to one of its two neighbours by chance (stochastic rounding: Gupta, Agrawal,
Gopalakrishnan & Narayanan, 2015): between the neighbouring values ``a <= w < b`` of the grid

    P(b) = (w - a) / (b - a),    so that    E[rounded w] = w

The mean error vanishes and the squared error grows: on average over where ``w`` lies, from
``step**2 / 12`` to ``step**2 / 6``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from bitsweep import formats, pace
from bitsweep.calibration import Calibration
from bitsweep.errors import UserError
from bitsweep.formats import Family, Params
from bitsweep.methods import replace_layers, seeded
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

    ``rounding=stochastic`` draws each weight's code by ``seed=``; several seeds give a mean and a
    spread. A weight beyond the grid's ends (the largest of a symmetric group, or a clipped one)
    goes to the end, and there the expectation is not its own.

    Pruned weights do not count where a format is fitted by error.
    """

    clip: str = "none"
    rounding: str = field(default="nearest", metadata={"later": True})

    version: ClassVar[int] = 1
    calibrated: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.clip not in ("none", "mse"):
            raise UserError(f"method.clip={self.clip}: use none or mse")
        if self.rounding not in ("nearest", "stochastic"):
            raise UserError(f"method.rounding={self.rounding}: use nearest or stochastic")

    @property
    def ignores(self) -> frozenset[str]:
        seedless = {"seed"} if self.rounding == "nearest" else set()
        return frozenset({"calibration"} | seedless)

    def skip(self, spec: QuantSpec) -> str | None:
        if self.rounding == "stochastic" and formats.get(spec.format).vector(spec) > 1:
            return (
                f"format={spec.format}: a code stands for several weights, so no weight has two "
                "neighbours of its own; method.rounding=nearest works"
            )
        return None

    def resolve(self, spec: QuantSpec) -> QuantSpec:
        return spec

    def __call__(self, model: Model, plan: Plan, calibration: Calibration) -> Model:
        generator = seeded()

        def quantize(weight: Tensor, spec: QuantSpec, mask: Tensor | None) -> QuantTensor:
            params = self._fit(weight, spec, None if mask is None else mask.to(weight))
            if self.rounding == "nearest":
                return QuantTensor.quantize(weight, spec, params)
            return quantize_stochastic(weight, spec, params, generator)

        for name in pace.of(plan.layers, len(plan.layers), "layers"):
            replace_layers(model, plan, [name], partial(quantize, mask=model.masks.get(name)))
        model.plan = plan
        return model

    def skip_rows(self, spec: QuantSpec) -> str | None:
        """Why rows of ``spec`` need the whole matrix (with the key to change), or None."""
        if self.rounding == "stochastic":
            return "method.rounding=stochastic draws its numbers for a whole matrix"
        if formats.get(spec.format).spans_rows(spec):
            return f"{spec}: what a row becomes depends on all rows of its matrix"
        return None

    def rows(self, weight: Tensor, spec: QuantSpec) -> QuantTensor:
        """Some rows ``(n, in)`` float32 of a matrix as they become in the whole of it."""
        return QuantTensor.quantize(weight, spec, self._fit(weight, spec))

    def _fit(
        self, weight: Tensor, spec: QuantSpec, importance: Tensor | None = None
    ) -> dict[str, Tensor]:
        how = formats.plain if self.clip == "none" else fit_clipped
        return formats.fit(weight, spec, importance, how)


def quantize_stochastic(
    weight: Tensor, spec: QuantSpec, params: Params, generator: torch.Generator
) -> QuantTensor:
    """Each weight of ``weight`` ``(out, in)`` to one of its two neighbouring values, by chance."""
    parts = formats.split(weight, spec)
    each = formats.split_params(params, parts)
    codes = [draw(part, own, spec, generator) for part, own in zip(parts, each, strict=True)]
    return QuantTensor(formats.join(codes, weight.shape), params, spec)


def draw(groups: Tensor, params: Params, spec: QuantSpec, generator: torch.Generator) -> Tensor:
    """Codes uint8 for ``groups`` ``(rows, n, g)``, unbiased between the ends of each grid.

    Nothing is asked of the family but what its codes stand for: every one of them is dequantized
    in every group and sorted, which sets weights between two neighbours on any grid.
    """
    family, count = formats.get(spec.format), formats.get(spec.format).levels(spec)
    every = torch.arange(count, dtype=torch.uint8, device=groups.device)
    values = family.dequantize(every.expand(*groups.shape[:2], count).contiguous(), params, spec)
    values = torch.where(values.isfinite(), values, torch.inf)  # E4M3's NaN, E5M2's infinities
    values, order = values.sort(-1)
    last = values.isfinite().sum(-1, keepdim=True) - 1
    above = torch.searchsorted(values, groups.contiguous(), right=True)
    below = (above - 1).clamp_(min=0)
    above = torch.minimum(above, last)
    low, high = values.gather(-1, below), values.gather(-1, above)
    chance = torch.rand(groups.shape, generator=generator).to(groups.device)
    up = chance * (high - low) < groups - low
    place: Tensor = torch.where(up, above, below)
    return order.gather(-1, place).to(torch.uint8)


def fit_clipped(
    family: Family,
    groups: Tensor,
    spec: QuantSpec,
    shared: Params,
    importance: Tensor | None = None,
) -> dict[str, Tensor]:
    """Parameters of ``groups`` ``(rows, n, g)`` shrunk by the best factor of each group."""

    def tried() -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        for shrink in SHRINKS:
            params = family.fit(groups * shrink, spec, shared, importance)
            codes = family.quantize(groups, {**params, **shared}, spec)
            restored = family.dequantize(codes, {**params, **shared}, spec)
            error = (restored - groups).square_()
            yield params, (error if importance is None else error * importance).sum(-1)

    return formats.least(tried())
