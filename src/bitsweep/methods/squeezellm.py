"""SqueezeLLM (Kim et al., 2023): codebooks where the loss feels them, by weighted k-means.

To second order a change of the weights costs ``sum_ij h_ij (w_ij - q_ij)^2`` (equations 2 to 4),
so k-means over a row, or a group, counts each weight with its ``h``. Codes are then the nearest
entries: no error is carried on, as GPTQ does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bitsweep import formats
from bitsweep.calibration import Calibration
from bitsweep.calibration.statistics import Energy
from bitsweep.formats.codebook import Codebook
from bitsweep.methods import finite_weight, place
from bitsweep.methods._inputs import Inputs
from bitsweep.models import Model
from bitsweep.spec import Plan, QuantSpec
from bitsweep.tensor import QuantTensor


@dataclass(frozen=True)
class SqueezeLLM:
    """``prefix``: inputs of the ``quantized`` model so far, or of the ``full_precision`` one.

    Where this differs from the authors' code: ``h_ij`` is the mean square of input j on the
    calibration text, the diagonal of the Hessian of the layer's squared error, and so the same for
    all rows; theirs is the squared gradient of the model's loss (the Fisher information), of each
    weight. Their sparse matrix of outliers is left out. A pruned weight does not count. In
    vectors each place of an entry is weighted. An embedding, whose input is one-hot, is fitted
    unweighted, as is what the text never reaches.
    """

    prefix: str = "full_precision"

    version: ClassVar[int] = 1
    ignores: ClassVar[frozenset[str]] = frozenset({"seed"})
    calibrated: ClassVar[bool] = True

    def __post_init__(self) -> None:
        Inputs(self.prefix).check()

    def skip(self, spec: QuantSpec) -> str | None:
        if not isinstance(formats.get(spec.format), Codebook):
            return (
                f"format={spec.format}: squeezellm places the entries of a codebook; "
                "try format=codebook, or vector2, vector4, vector8"
            )
        return None

    def resolve(self, spec: QuantSpec) -> QuantSpec:
        return spec

    def __call__(self, model: Model, plan: Plan, calibration: Calibration) -> Model:
        for names, energy in Inputs(self.prefix).of(model, plan, calibration, Energy):
            for name in names:
                weight, spec = finite_weight(model, name), plan.layers[name].weight
                importance = torch.ones_like(weight)
                if energy is not None:
                    importance *= energy.to(weight.device)
                if name in model.masks:
                    importance *= model.masks[name].to(weight.device)
                place(model, name, quantize(weight, spec, importance))
        model.plan = plan
        return model


def quantize(weight: Tensor, spec: QuantSpec, importance: Tensor) -> QuantTensor:
    """``weight`` ``(out, in)`` on codebooks fitted, and of vectors chosen, by ``importance``."""
    family = Codebook(spec.format)
    params = formats.fit(weight, spec, importance)
    parts = formats.split(weight, spec)
    each = zip(
        parts, formats.split_params(params, parts), formats.split(importance, spec), strict=True
    )
    codes = [family.quantize(part, own, spec, counts) for part, own, counts in each]
    shape = torch.Size((len(weight), weight.shape[1] // family.vector(spec)))
    return QuantTensor(formats.join(codes, shape), params, spec)
