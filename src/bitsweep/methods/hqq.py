"""HQQ, half-quadratic quantization (Badri & Shaji, 2023): a better zero-point, no data.

Minimises ``sum |W - s (Q - z)|^p`` with p < 1 over the zero-point z of each group, the scale s
being fixed. The half-quadratic split puts the error into an auxiliary ``E`` and alternates

    Q = clamp(round(W / s + z)),   E = shrink_p(W - s (Q - z), beta),   z = mean(Q - (W - E) / s)

with ``shrink_p(x, beta) = sign(x) max(0, |x| - |x|^(p-1) / beta)`` and beta growing by kappa. Small
errors count in full and large ones, of outliers, hardly: the zero-point moves to suit the many.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from bitsweep import formats, pace
from bitsweep.calibration import Calibration
from bitsweep.errors import UserError
from bitsweep.formats.int import Int, store_zero
from bitsweep.methods import replace_layers
from bitsweep.models import Model
from bitsweep.spec import ZEROS, Plan, QuantSpec
from bitsweep.tensor import QuantTensor


@dataclass(frozen=True)
class HQQ:
    """Options as in the authors' code: norm ``p``, ``beta``, ``kappa``, at most ``iterations``.

    ``zero`` is ``real``: stored in float16, and counted so. With ``integer`` the result is that of
    rtn: a fixed scale moves the optimum by the mean of rounding errors less their shrunken selves,
    each within half a code, so the zero rounds back to where it began (a test holds it to that).

    Conventions of ours: the start is the unrounded ``-min / s`` (the authors round it at 4 bits);
    the zero is rounded to float16 before codes are chosen; the best zero seen is kept, and a
    matrix stops at the first iteration that does not lower its mean absolute error.
    """

    p: float = 0.7
    beta: float = 10.0
    kappa: float = 1.01
    iterations: int = 20
    zero: str = "real"

    version: ClassVar[int] = 1
    ignores: ClassVar[frozenset[str]] = frozenset({"calibration", "seed"})
    calibrated: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.p <= 1:
            raise UserError(f"method.p={self.p}: a norm above 0 and at most 1")
        if self.beta <= 0 or self.kappa < 1 or self.iterations < 1:
            raise UserError("method.beta, kappa, iterations: above 0, at least 1, at least 1")
        if self.zero not in ZEROS:
            raise UserError(f"method.zero={self.zero}: use {' or '.join(ZEROS)}")

    def skip(self, spec: QuantSpec) -> str | None:
        if spec.format != "int":
            return f"format={spec.format}: hqq optimises a zero-point, which only format=int has"
        if spec.symmetric:
            return "symmetric=true: hqq optimises a zero-point, and there is none"
        return None

    def resolve(self, spec: QuantSpec) -> QuantSpec:
        return spec if spec.symmetric else replace(spec, zero=self.zero)

    def __call__(self, model: Model, plan: Plan, calibration: Calibration) -> Model:
        names = pace.of(plan.layers, len(plan.layers), "layers")
        replace_layers(model, plan, names, self.quantize)
        model.plan = plan
        return model

    def quantize(self, weight: Tensor, spec: QuantSpec) -> QuantTensor:
        """``weight`` ``(out, in)`` on the grid with the optimised zero of each group."""
        parts = [self.fit(part, spec) for part in formats.split(weight, spec)]
        return QuantTensor.quantize(weight, spec, formats.join_params(parts))

    def fit(self, groups: Tensor, spec: QuantSpec) -> dict[str, Tensor]:
        """Scale and optimised zero of ``groups`` ``(rows, n, g)``."""
        family = Int(spec.format)
        params = best = family.fit(groups, spec)
        scale = params["scale"].float().unsqueeze(-1)
        least, beta = torch.inf, self.beta
        for _ in range(self.iterations):
            codes = family.quantize(groups, params, spec)
            error = groups - family.dequantize(codes, params, spec)
            mean = float(error.abs().mean())
            if mean >= least:
                break
            least, best = mean, params
            shrunk = groups - self._shrink(error, beta)
            zero = codes.float().sub_(shrunk.div_(scale)).mean(-1)
            params = {"scale": params["scale"], "zero": store_zero(zero, spec)}
            beta *= self.kappa
        return best

    def _shrink(self, error: Tensor, beta: float) -> Tensor:
        size = error.abs()
        less = size - size.pow(self.p - 1) / beta
        return error.sign() * less.clamp_(min=0)  # error 0: 0**(p-1) is inf, and the sign is 0
