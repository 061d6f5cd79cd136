"""Pruning after quantization: weights are dropped from the codes as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bitsweep.calibration import Calibration
from bitsweep.errors import UserError
from bitsweep.models import Model
from bitsweep.pruning import Pruning, prune
from bitsweep.spec import Plan


@dataclass(frozen=True)
class Prune(Pruning):
    """Options as in ``Pruning``; the weights that are scored are the dequantized ones.

    The same layers as in ``transforms=[prune]``, quantized or not, so that prune-then-quantize and
    quantize-then-prune are two points of the same masks' size. Codes that stay are the same codes:
    nothing is rounded again, so ``sparsegpt``, which moves what stays, is refused.
    """

    key: ClassVar[str] = "recover.prune"
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.score == "sparsegpt":
            raise UserError(
                f"{self.key}.score=sparsegpt: it moves the weights that stay off their codes; "
                f"use {self.key}.score=wanda, or transforms=[prune]"
            )

    def skip(self, plan: Plan) -> str | None:
        return None

    def __call__(self, model: Model, plan: Plan, calibration: Calibration) -> Model:
        reason = self.unfit(model)
        if reason is not None:
            raise UserError(f"recover=[prune]: {reason}")
        return prune(model, self, calibration)
