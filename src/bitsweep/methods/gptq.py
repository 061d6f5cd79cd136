"""GPTQ (Frantar, Ashkboos, Hoefler & Alistarh, 2022): the error of each column into the next ones.

Minimises ``tr((W - Q) H (W - Q)^T)``, the squared error of the layer's output on calibration text,
with ``H = X^T X``. Columns are rounded in order; with ``U`` the upper Cholesky factor of the
inverse, ``H^-1 = U^T U``, the error ``e = (w_j - q_j) / U_jj`` of column j moves every later column
k by ``-e U_jk`` (Algorithm 1). Updates beyond a block of columns wait and are applied together.

Where a code stands for d columns P (GPTVQ, van Baalen et al., 2024), ``e = (w_P - q_P) U_PP^-1``
does the same for all of them, and ``|e|^2`` is what the choice adds to the objective: the entry
that makes it least is taken. A pruned weight has ``q = 0``, as in SparseGPT (Frantar & Alistarh,
2023): later columns make up for it.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bitsweep import formats
from bitsweep.calibration import Calibration
from bitsweep.calibration.statistics import Hessian
from bitsweep.errors import UserError
from bitsweep.methods import finite_weight, place
from bitsweep.methods._columns import Grid, round_columns, round_vectors
from bitsweep.methods._inputs import Inputs
from bitsweep.models import Model
from bitsweep.spec import PER_TENSOR, Plan, QuantSpec
from bitsweep.tensor import QuantTensor

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GPTQ:
    """Options of GPTQ.

    ``damping``: added to H's diagonal, as a share of its mean. ``act_order``: columns in falling
    order of their input's energy, so that errors of important ones meet the most columns that can
    absorb them. ``static_groups``: each group's grid is fitted before, to the original weights in
    their own order, so act_order needs no permutation at run time; without it a grid is fitted to
    the *updated* weights when its group begins, and act_order stores the order. ``block_size``:
    columns whose updates wait; it changes speed only. ``true_sequential``: layers of a block in
    the order in which they run, each seeing what those before it became.
    ``prefix``: inputs come from the ``quantized`` model so far, or from the ``full_precision`` one,
    whose Hessians serve every bits and group size.

    Where implementations differ: a column whose input is always zero is rounded to nearest (the
    authors' code sets it to zero, which another text would feel). Groups smaller than a block are
    fitted to weights with all earlier updates (the authors' code misses those of the running
    block). Formats that fit by error (codebooks) weight it with H's damped diagonal. Vectors keep
    together and act in order of their summed energy; their codebooks are always static, and are
    not tuned afterwards (GPTVQ's code does, by gradients). An embedding has no H to speak of, since
    its input is one-hot (H is diagonal, and rounding to nearest is the optimum): it is rounded,
    and so is a head tied to it.
    """

    damping: float = 0.01
    act_order: bool = True
    static_groups: bool = True
    block_size: int = 128
    true_sequential: bool = False
    prefix: str = "quantized"

    version: ClassVar[int] = 1
    ignores: ClassVar[frozenset[str]] = frozenset()
    calibrated: ClassVar[bool] = True

    def __post_init__(self) -> None:
        Inputs(self.prefix, self.true_sequential).check()
        if self.damping <= 0 or self.block_size < 1:
            raise UserError("method.damping, block_size: above 0, at least 1")

    def skip(self, spec: QuantSpec) -> str | None:
        return None

    def resolve(self, spec: QuantSpec) -> QuantSpec:
        return spec

    def __call__(self, model: Model, plan: Plan, calibration: Calibration) -> Model:
        inputs = Inputs(self.prefix, self.true_sequential)
        for names, hessian in inputs.of(model, plan, calibration, Hessian):
            weights = {name: finite_weight(model, name) for name in names}
            if hessian is None:
                log.warning(
                    "%s: the calibration text never reaches it; rounded to nearest",
                    ", ".join(names),
                )
                for name, weight in weights.items():
                    place(model, name, QuantTensor.quantize(weight, plan.layers[name].weight))
                continue
            for spec in dict.fromkeys(plan.layers[name].weight for name in names):
                alike = [name for name in names if plan.layers[name].weight == spec]
                quants = self.quantize_together(
                    [weights[name].to(model.device) for name in alike],
                    hessian.to(model.device),
                    spec,
                    ", ".join(alike),
                    [model.masks.get(name) for name in alike],
                )
                for name, quant in zip(alike, quants, strict=True):
                    place(model, name, quant.to(weights[name].device))
        model.plan = plan
        return model

    def quantize(
        self,
        weight: Tensor,
        hessian: Tensor,
        spec: QuantSpec,
        name: str = "",
        mask: Tensor | None = None,
    ) -> QuantTensor:
        """``weight`` ``(out, in)`` float32 quantized under ``hessian`` ``(in, in)`` float32.

        Where ``mask`` bool ``(out, in)`` is False the weight is pruned: 0 before and after.
        """
        return self.quantize_together([weight], hessian, spec, name, [mask])[0]

    @torch.no_grad()
    def quantize_together(
        self,
        weights: list[Tensor],
        hessian: Tensor,
        spec: QuantSpec,
        name: str,
        masks: list[Tensor | None],
    ) -> list[QuantTensor]:
        """Weights that read the same inputs: rows do not feel each other, so they are stacked.

        Unless the whole of a weight shares parameters: then one after the other.
        """
        family = formats.get(spec.format)
        vector = family.vector(spec)
        order = torch.arange(len(hessian), device=hessian.device)
        if self.act_order:
            energy = hessian.diagonal().view(-1, vector).sum(1)
            first = torch.argsort(energy, descending=True, stable=True).unsqueeze(1) * vector
            order = (first + order[:vector]).view(-1)
        factor = inverse_factor(hessian[order][:, order], self.damping, name)
        importance = hessian.diagonal() + self.damping * hessian.diagonal().mean()
        apart = spec.group_size == PER_TENSOR or bool(family.shared(weights[0], spec))
        each = [[i] for i in range(len(weights))] if apart else [list(range(len(weights)))]
        found: list[QuantTensor] = []
        for stack in each:
            rows = [len(weights[i]) for i in stack]
            pruned = any(masks[i] is not None for i in stack)
            kept = [_kept(weights[i], masks[i]) for i in stack]
            quant = self._stacked(
                torch.cat([weights[i] for i in stack]),
                torch.cat(kept) if pruned else None,
                order,
                factor,
                importance,
                spec,
            )
            found += [
                part.masked(masks[i]) for i, part in zip(stack, _rows(quant, rows), strict=True)
            ]
        return found

    def _stacked(
        self,
        weight: Tensor,
        mask: Tensor | None,
        order: Tensor,
        factor: Tensor,
        importance: Tensor,
        spec: QuantSpec,
    ) -> QuantTensor:
        family = formats.get(spec.format)
        vector = family.vector(spec)
        if mask is not None:
            weight = weight * mask
        grid = Grid(weight, mask, order, importance, spec, self.static_groups)
        columns = weight[:, order].T.contiguous()
        kept = None if mask is None else mask[:, order].T.contiguous()
        if vector == 1:
            codes = round_columns(columns, kept, factor, grid, self.block_size)
        else:
            codes = round_vectors(columns, kept, factor, grid, self.block_size, vector)
        places = order.view(-1, vector)[:, 0] // vector
        natural = torch.empty_like(codes).index_copy_(0, places, codes).T.contiguous()
        moved = self.act_order and not grid.static
        return QuantTensor(natural, grid.params(), spec, order if moved else None)


def _kept(weight: Tensor, mask: Tensor | None) -> Tensor:
    every = torch.ones(weight.shape, dtype=torch.bool, device=weight.device)
    return every if mask is None else mask.to(weight.device)


def _rows(quant: QuantTensor, counts: list[int]) -> list[QuantTensor]:
    """``quant`` cut into tensors of so many rows each."""
    if len(counts) == 1:
        return [quant]
    codes = quant.codes.split(counts)
    params = {name: value.split(counts) for name, value in quant.params.items()}
    return [
        QuantTensor(
            part.contiguous(),
            {n: v[i].contiguous() for n, v in params.items()},
            quant.spec,
            quant.permutation,
        )
        for i, part in enumerate(codes)
    ]


def inverse_factor(hessian: Tensor, damping: float, name: str = "") -> Tensor:
    """Upper triangular ``U`` ``(in, in)`` with ``U^T U = (H + damping * mean(diag H) I)^-1``.

    With J the reversal of the order, ``J H J = L L^T`` gives ``U = (J L J)^-1``: one Cholesky and
    one triangular inverse, and H is never inverted. A column that is always zero gets a diagonal
    of 1. In float64: a float32 factor is off by about 1e-4, and each code that flips for it sends
    the rest of its row another way. The damping grows tenfold, with a warning, until H is positive
    definite.
    """
    diagonal = hessian.diagonal().double()
    base = hessian.double() + torch.diag((diagonal == 0).double())
    mean = float(diagonal.mean()) or 1.0
    identity = torch.eye(len(diagonal), dtype=torch.float64, device=hessian.device)
    if not math.isfinite(float(base.sum())):
        raise FloatingPointError(f"{name}: its inputs on the calibration text are not finite")
    while True:
        lower, failed = torch.linalg.cholesky_ex((base + damping * mean * identity).flip(0, 1))
        if not int(failed):
            upper = torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True)
            return upper.float()
        damping *= 10
        log.warning("%s: Hessian not positive definite, damping raised to %g", name, damping)
