"""Low-rank correction of the quantization error: ``y = Q x + up down x``.

ZeroQuant-V2's LoRC (Yao, Wu, Li, Youn & He, 2023) takes the truncated SVD of ``W - Q``; LQER
(Zhang, Cheng, Constantinides & Zhao, 2024) weights its columns by what they meet; QERA (the same
authors, 2024) gives the exact optimum of the layer's outputs. :mod:`bitsweep.lowrank` has them all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from bitsweep.calibration import Calibration
from bitsweep.calibration.statistics import Energy, Hessian, Statistic, values
from bitsweep.errors import UserError
from bitsweep.library import LibraryLinear
from bitsweep.linear import QuantLinear
from bitsweep.lowrank import Correction, factorize
from bitsweep.models import Model
from bitsweep.models.fold import factor_since
from bitsweep.spec import Plan

WEIGHTINGS: dict[str, type[Statistic] | None] = {
    "plain": None,
    "diagonal": Energy,
    "hessian": Hessian,
}


@dataclass(frozen=True)
class LowRank:
    """``rank`` of every quantized linear layer's correction, kept in float16 and counted so.

    ``weighting`` of the error: ``plain`` (LoRC), ``diagonal`` of the inputs' root mean squares
    (QERA-approx; LQER takes mean magnitudes), ``hessian`` of their full second moments
    (QERA-exact).

    Conventions: the correction gets the input as the layer's codes get it, quantized where that is.
    Statistics are of the inputs in the quantized model, its earlier blocks corrected. The error is
    what the layer lacks of its weight before quantization: what ``recover=[prune]`` took out before
    is in it, what ``transforms=[prune]`` took out is not. A correction is dense: weights that were
    pruned are 0 in the codes, and not in the sum.
    """

    rank: int = 32
    weighting: str = "hessian"

    version: ClassVar[int] = 1
    seeded: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"recover.low_rank.rank={self.rank}: at least 1")
        if self.weighting not in WEIGHTINGS:
            raise UserError(
                f"recover.low_rank.weighting={self.weighting}: use {', '.join(WEIGHTINGS)}"
            )

    @property
    def calibrated(self) -> bool:
        return WEIGHTINGS[self.weighting] is not None

    def skip(self, plan: Plan) -> str | None:
        return None if plan.layers else "nothing is quantized, so there is no error to correct"

    def __call__(self, model: Model, plan: Plan, calibration: Calibration) -> Model:
        for names, seen in self._walk(model, plan, calibration):
            for name in names:
                layer = model.get(name)
                if isinstance(layer, LibraryLinear):
                    raise UserError(
                        f"recover=[low_rank]: {name} is a library's own layer, which takes no "
                        "correction; use one of bitsweep's methods"
                    )
                assert isinstance(layer, QuantLinear)
                full = calibration.model.weight(name).detach().float()
                full = full * factor_since(calibration.model, model, name).to(full.device)
                error = full.to(layer.weight.device) - layer.weight.float()
                layer.correction = self.correction(error, seen.get(name))
        return model

    def _walk(
        self, model: Model, plan: Plan, calibration: Calibration
    ) -> Iterator[tuple[list[str], dict[str, Tensor]]]:
        """Quantized linear layers by block, and the statistic of their inputs."""
        statistic = WEIGHTINGS[self.weighting]
        linear = [name for name in plan.layers if model.layers[name].kind != "embedding"]
        if statistic is None:
            yield linear, {}
            return
        blocks = model.by_block(linear)
        for block in calibration.blocks(model) if linear else ():
            names = blocks.get(block.index, [])
            seen = values(block.observe(names, statistic)) if names else {}
            yield names, {name: value for alike, value in seen.items() for name in alike}

    def correction(self, error: Tensor, seen: Tensor | None) -> Correction:
        """What makes up for ``error`` ``(out, in)`` at inputs with the statistic ``seen``."""
        seen = None if seen is None else seen.to(error.device)
        up, down = factorize(error, self.rank, seen)
        return Correction(up, down)
