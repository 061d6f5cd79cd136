"""No quantization: the model itself, or cast to the 16-bit dtype that it is served in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from bitsweep.calibration import Calibration
from bitsweep.errors import UserError
from bitsweep.models import Model
from bitsweep.spec import Plan, QuantSpec

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class FullPrecision:
    """Every parameter in ``dtype``: ``float32``, ``bfloat16`` or ``float16``.

    Buffers stay: rotary frequencies are float32 in a model that transformers loads in 16 bits, and
    ``module.to(dtype)`` would round them.
    """

    dtype: str = "float32"

    version: ClassVar[int] = 1
    ignores: ClassVar[frozenset[str]] = frozenset(
        {
            "bits",
            "group_size",
            "format",
            "symmetric",
            "scale_dtype",
            "policy",
            "misfit",
            "calibration",
            "seed",
        }
    )
    calibrated: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UserError(f"method.dtype={self.dtype}: use {', '.join(DTYPES)}")

    def skip(self, spec: QuantSpec) -> str | None:
        return None

    def resolve(self, spec: QuantSpec) -> QuantSpec:
        return spec

    def __call__(self, model: Model, plan: Plan, calibration: Calibration) -> Model:
        dtype = DTYPES[self.dtype]
        cast: dict[int, nn.Parameter] = {}  # a tied parameter stays one
        for module in model.module.modules():
            for name, parameter in list(module._parameters.items()):
                if parameter is not None and parameter.dtype != dtype:
                    new = nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
                    module._parameters[name] = cast.setdefault(id(parameter), new)
        model.plan = plan
        return model
