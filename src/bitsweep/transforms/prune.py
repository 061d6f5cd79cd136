"""Pruning before quantization: random, magnitude, Wanda, SparseGPT; single weights or structures.

SparseGPT (Frantar & Alistarh, 2023) takes columns out in order and moves the later ones so that
they make up for it, as GPTQ does with rounding errors: with ``H^-1 = U^T U`` a pruned ``w_j``
moves every later column k by ``-(w_j / U_jj) U_jk`` (its Algorithm 1). The mask is chosen on the
weights as they stand when a block of columns begins: the least ``w_j^2 / U_jj^2`` of all its rows
together go (of each group of 4 or 8, when the group begins, in 2:4 and 4:8).

Whole heads or channels with ``sparsegpt``: the same error of a set S of columns in closed form,
``tr(W_S ([H^-1]_SS)^-1 W_S^T)``, chooses, and what stays is refitted by least squares,
``W_K' = W H_:K (H_KK)^-1``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from bitsweep.calibration import Calibration
from bitsweep.errors import UserError
from bitsweep.methods.gptq import inverse_factor
from bitsweep.models import Model
from bitsweep.pruning import OF, Pruning, best, prune
from bitsweep.pruning.structure import Units


@dataclass(frozen=True)
class Prune(Pruning):
    """Options beyond those of ``Pruning``, for ``score=sparsegpt`` alone.

    ``damping``: added to H's diagonal, as a share of its mean. ``block_size``: columns whose
    weights compete for the mask, and whose updates wait.

    Conventions: exactly the asked share goes (the authors' threshold takes one more where it is
    met). A column whose input is always 0 goes first (theirs is emptied, and counts or not).
    """

    damping: float = 0.01
    block_size: int = 128

    key: ClassVar[str] = "transforms.prune"
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.damping <= 0 or self.block_size < max(OF.values()):
            raise UserError(f"{self.key}.damping, block_size: above 0, at least {max(OF.values())}")
        if self.score == "sparsegpt" and self.pattern == "blocks":
            raise UserError(
                f"{self.key}.score=sparsegpt: of a block nothing stays that could make up for it; "
                f"use {self.key}.score=wanda"
            )

    def skip(self, model: Model) -> str | None:
        return self.unfit(model)

    def reshape(self, model: Model) -> None:
        """Every layer keeps its shape."""

    def __call__(self, model: Model, calibration: Calibration) -> Model:
        return prune(model, self, calibration)

    @torch.no_grad()
    def update(self, weight: Tensor, hessian: Tensor, name: str = "") -> tuple[Tensor, Tensor]:
        """Mask and updated weights of ``weight`` ``(out, in)`` under ``hessian`` ``(in, in)``."""
        factor = inverse_factor(hessian, self.damping, name)
        loss = factor.diagonal().square().reciprocal() * (hessian.diagonal() > 0)
        columns = weight.T.contiguous()  # (in, out): a column is contiguous
        kept = torch.ones(columns.shape, dtype=torch.bool, device=weight.device)
        group = OF.get(self.pattern, self.block_size)
        step = self.block_size // group * group
        for start in range(0, len(columns), step):
            stop = min(start + step, len(columns))
            errors = torch.zeros(stop - start, columns.shape[1], device=weight.device)
            for j in range(start, stop):
                if (j - start) % group == 0:
                    these = slice(j, min(j + group, stop))
                    score = columns[these].square() * loss[these].unsqueeze(1)
                    kept[these] = best(score.T, self.pattern, self.sparsity, whole=True).T
                error = errors[j - start]
                torch.div(columns[j].masked_fill(kept[j], 0), factor[j, j], out=error)
                columns[j + 1 : stop].addr_(factor[j, j + 1 : stop], error, alpha=-1)
            columns[stop:].addmm_(factor[start:stop, stop:].T, errors, alpha=-1)
        return kept.T.contiguous(), columns.T.contiguous()

    def unit_scores(
        self, units: Units, weights: dict[str, Tensor], seen: dict[str, Tensor], lot: Any
    ) -> Tensor:
        if self.score != "sparsegpt":
            return super().unit_scores(units, weights, seen, lot)
        total = torch.zeros(units.count, dtype=torch.float64)
        for name, unit in units.columns.items():
            inverse = torch.linalg.inv(self._damped(seen[name]))
            places = unit.argsort(stable=True).view(units.count, -1).to(inverse.device)
            own = inverse[places.unsqueeze(2), places.unsqueeze(1)]  # (count, width, width)
            columns = weights[name].double().T[places]  # (count, width, out)
            total += (columns * torch.linalg.solve(own, columns)).sum((1, 2)).cpu()
        return total

    def columns_gone(self, weight: Tensor, seen: Tensor, kept: Tensor) -> Tensor:
        if self.score != "sparsegpt":
            return weight
        hessian = self._damped(seen)
        cross = weight.double() @ hessian[:, kept]
        refitted = torch.zeros_like(weight)
        refitted[:, kept] = torch.linalg.solve(hessian[kept][:, kept], cross.T).T.to(weight.dtype)
        return refitted

    def _damped(self, hessian: Tensor) -> Tensor:
        hessian = hessian.double()
        share = self.damping * hessian.diagonal().mean()
        return hessian + share * torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)
